// Products of ROWS rows at once: 32 inputs of each row and the weights of AT_ONCE columns for them are put into
// workgroup memory, weights dequantised, and each thread adds up four columns of PER_THREAD rows.
var<workgroup> rows: array<vec4f, ROWS * 8>;
var<workgroup> weights: array<vec4f, AT_ONCE * 8>;

fn product_of_$number(thread: u32) {
    let four = 4u * (thread % (AT_ONCE / 4u));
    let mine = thread / (AT_ONCE / 4u) * PER_THREAD;
    for (var begin = 0u; begin < UNIT; begin += AT_ONCE) {
        var sums = array<vec4f, PER_THREAD>();
        for (var chunk = 0u; chunk < CHUNKS_$n; chunk++) {
            for (var i = thread; i < ROWS * 8u; i += THREADS) {
                rows[i] = input[(first_row + i / 8u) * INPUT_VECTORS + 8u * chunk + i % 8u];
            }
            for (var i = thread; i < AT_ONCE; i += THREADS) {
                let column = unit * UNIT + begin + i;
                if (begin + i < UNIT && column < COLUMNS) {
                    var w = chunk_$n(column, chunk);
                    for (var k = 0u; k < 8u; k++) {
                        weights[k * AT_ONCE + i] = w[k];
                    }
                }
            }
            workgroupBarrier();
            for (var k = 0u; k < 8u; k++) {
                let at = k * AT_ONCE + four;
                let w0 = weights[at];
                let w1 = weights[at + 1u];
                let w2 = weights[at + 2u];
                let w3 = weights[at + 3u];
                for (var row = 0u; row < PER_THREAD; row++) {
                    let x = rows[(mine + row) * 8u + k];
                    sums[row] += vec4f(dot(x, w0), dot(x, w1), dot(x, w2), dot(x, w3));
                }
            }
            workgroupBarrier();
        }
        for (var row = 0u; row < PER_THREAD; row++) {
            for (var column = 0u; column < 4u; column++) {
                if (begin + four + column < UNIT) {
                    products[(${number}u * ROWS + mine + row) * UNIT + begin + four + column] = sums[row][column];
                }
            }
        }
    }
    workgroupBarrier();
}
