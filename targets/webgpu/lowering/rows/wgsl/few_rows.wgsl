// Products of one or a few rows: the weights are read once, LANES threads side by side along each column of theirs.
// A thread adds up its share of 32 inputs at a time, and the first of them what the others have.
var<workgroup> parts: array<f32, ROWS * THREADS>;

fn product_of_$number(thread: u32) {
    let lane = thread % LANES_$n;
    let slot = thread / LANES_$n;
    const SLOTS = THREADS / LANES_$n;
    for (var begin = 0u; begin < UNIT; begin += SLOTS) {
        let column = unit * UNIT + begin + slot;
        var sums = array<f32, ROWS>();
        if (begin + slot < UNIT && column < COLUMNS) {
            for (var chunk = lane; chunk < CHUNKS_$n; chunk += LANES_$n) {
                let w = chunk_$n(column, chunk);
                for (var row = 0u; row < ROWS; row++) {
                    let at = (first_row + row) * INPUT_VECTORS + 8u * chunk;
                    sums[row] += dot(w[0], input[at]) + dot(w[1], input[at + 1u])
                        + dot(w[2], input[at + 2u]) + dot(w[3], input[at + 3u])
                        + dot(w[4], input[at + 4u]) + dot(w[5], input[at + 5u])
                        + dot(w[6], input[at + 6u]) + dot(w[7], input[at + 7u]);
                }
            }
        }
        for (var row = 0u; row < ROWS; row++) {
            parts[row * THREADS + thread] = sums[row];
        }
        workgroupBarrier();
        for (var i = thread; i < ROWS * SLOTS; i += THREADS) {
            if (begin + i % SLOTS < UNIT) {
                var sum = 0.0;
                for (var other = 0u; other < LANES_$n; other++) {
                    sum += parts[i * LANES_$n + other];
                }
                products[(${number}u * ROWS + i / SLOTS) * UNIT + begin + i % SLOTS] = sum;
            }
        }
        workgroupBarrier();
    }
}
