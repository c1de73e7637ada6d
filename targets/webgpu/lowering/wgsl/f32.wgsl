// 32 weights of row `row` of the matrix.
fn chunk_$n(row: u32, chunk: u32) -> array<vec4f, 8> {
    let at = 8u * (row * CHUNKS_$n + chunk);
    return array<vec4f, 8>(
        four_$n(at), four_$n(at + 1u), four_$n(at + 2u), four_$n(at + 3u),
        four_$n(at + 4u), four_$n(at + 5u), four_$n(at + 6u), four_$n(at + 7u),
    );
}

fn four_$n(at: u32) -> vec4f {
    return bitcast<vec4f>(matrix_$n[at]);
}
