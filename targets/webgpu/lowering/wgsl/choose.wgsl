// The first of the largest logits of each row, and that logit's bits: a workgroup for a row. Numbers are compared as
// integers in their order, where one that is none (NaN) is above all, so that no driver can assume there are none.
var<workgroup> keys: array<u32, THREADS>;
var<workgroup> columns: array<u32, THREADS>;

fn key_of(bits: u32) -> u32 {
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return 0xffffffffu;
    }
    if (bits == 0x80000000u) { // -0 is 0
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let row = group.y * VOCAB;
    var best = 0u;
    var chosen = 0u;
    for (var column = thread; column < VOCAB; column += THREADS) {
        let key = key_of(logits[row + column]);
        if (key > best) {
            best = key;
            chosen = column;
        }
    }
    keys[thread] = best;
    columns[thread] = chosen;
    workgroupBarrier();
    for (var other = THREADS / 2u; other > 0u; other /= 2u) {
        if (thread < other) {
            let key = keys[thread + other];
            if (key > keys[thread] || (key == keys[thread] && columns[thread + other] < columns[thread])) {
                keys[thread] = key;
                columns[thread] = columns[thread + other];
            }
        }
        workgroupBarrier();
    }
    if (thread == 0u) {
        result[2u * group.y] = columns[0];
        result[2u * group.y + 1u] = logits[row + columns[0]];
    }
}
