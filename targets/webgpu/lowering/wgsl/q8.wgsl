// 32 weights of row `row` of the matrix: a byte each.
fn chunk_$n(row: u32, chunk: u32) -> array<vec4f, 8> {
    let at = 2u * (row * CHUNKS_$n + chunk);
    let a = matrix_$n[at];
    let b = matrix_$n[at + 1u];
    let s = scale_$n(row, chunk);
    return array<vec4f, 8>(
        four_$n(a.x, s), four_$n(a.y, s), four_$n(a.z, s), four_$n(a.w, s),
        four_$n(b.x, s), four_$n(b.y, s), four_$n(b.z, s), four_$n(b.w, s),
    );
}

fn four_$n(word: u32, s: vec2f) -> vec4f {
    return s.x * vec4f((vec4u(word) >> vec4u(0, 8, 16, 24)) & vec4u(255)) + s.y;
}
