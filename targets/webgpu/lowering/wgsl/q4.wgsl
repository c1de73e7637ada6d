// 32 weights of row `row` of the matrix: four bits each, the first in the lowest, and as many as a scale is for.
fn chunk_$n(row: u32, chunk: u32) -> array<vec4f, 8> {
    let q = matrix_$n[row * CHUNKS_$n + chunk];
    let s = scale_$n(row, chunk);
    return array<vec4f, 8>(
        low_$n(q.x, s), high_$n(q.x, s), low_$n(q.y, s), high_$n(q.y, s),
        low_$n(q.z, s), high_$n(q.z, s), low_$n(q.w, s), high_$n(q.w, s),
    );
}

fn low_$n(word: u32, s: vec2f) -> vec4f {
    return s.x * vec4f((vec4u(word) >> vec4u(0, 4, 8, 12)) & vec4u(15)) + s.y;
}

fn high_$n(word: u32, s: vec2f) -> vec4f {
    return s.x * vec4f((vec4u(word) >> vec4u(16, 20, 24, 28)) & vec4u(15)) + s.y;
}
