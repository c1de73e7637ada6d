// Products of one or a few rows: the weights are read once, LANES threads side by side along each column of theirs.
// A thread adds up its share of 32 inputs at a time, and the first of them what the others have. What is done for each row is
// written out, since arrays that are indexed by a variable are slow.
var<workgroup> parts: array<f32, ROWS * THREADS>;

fn product_of_$number(thread: u32) {
    let lane = thread % LANES_$n;
    let slot = thread / LANES_$n;
    const SLOTS = THREADS / LANES_$n;
    for (var begin = 0u; begin < UNIT; begin += SLOTS) {
        let column = unit * UNIT + begin + slot;
        $zero
        if (begin + slot < UNIT && column < COLUMNS) {
            for (var chunk = lane; chunk < CHUNKS_$n; chunk += LANES_$n) {
                let w = chunk_$n(column, chunk);
                let first = first_row * INPUT_VECTORS + 8u * chunk;
                $add
            }
        }
        $keep
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
