// 32 weights of row `row` of the matrix: two in each word.
fn chunk_$n(row: u32, chunk: u32) -> array<vec4f, 8> {
    let at = 4u * (row * CHUNKS_$n + chunk);
    let a = matrix_$n[at];
    let b = matrix_$n[at + 1u];
    let c = matrix_$n[at + 2u];
    let d = matrix_$n[at + 3u];
    return array<vec4f, 8>(
        four_$n(a.x, a.y), four_$n(a.z, a.w), four_$n(b.x, b.y), four_$n(b.z, b.w),
        four_$n(c.x, c.y), four_$n(c.z, c.w), four_$n(d.x, d.y), four_$n(d.z, d.w),
    );
}

fn four_$n(first: u32, second: u32) -> vec4f {
    return $four;
}
