// Attention of HEADS query heads of one token, which share keys and values. A block of KEYS keys after the other gets
// scores; the sums so far are scaled down as larger scores turn up, as softmax allows.
var<workgroup> scores: array<f32, HEADS * KEYS>;
var<workgroup> sums: array<vec2f, HEADS * PAIRS>;
var<workgroup> largest: array<f32, HEADS>;
var<workgroup> total: array<f32, HEADS>;
var<workgroup> shrink: array<f32, HEADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
    let token = group.y;
    let head = group.x * HEADS;
    let kv_head = head / SHARING;
    let position = batch[POSITION + token];
    let end = batch[KEY_COUNT + token];
    var begin = 0u;
    if (WINDOW > 0u && position + 1u > WINDOW) {
        begin = position + 1u - WINDOW;
    }
    for (var i = thread; i < HEADS * PAIRS; i += THREADS) {
        sums[i] = vec2f(0.0);
    }
    for (var i = thread; i < HEADS; i += THREADS) {
        largest[i] = LOWEST;
        total[i] = 0.0;
    }
    workgroupBarrier();
    for (var first = begin; first < end; first += KEYS) {
        for (var i = thread; i < HEADS * KEYS; i += THREADS) {
            let key = first + i % KEYS;
            var score = LOWEST;
            if (key < end && seen(token, key)) {
                let query = token * ROW_PAIRS + (head + i / KEYS) * PAIRS;
                let at = place(token, key, kv_head);
                var sum = 0.0;
                for (var pair = 0u; pair < PAIRS; pair++) {
                    sum += dot(queries[query + pair], unpacked(keys[at + pair]));
                }
                score = capped(SCALE * sum);
            }
            scores[i] = score;
        }
        workgroupBarrier();
        for (var i = thread; i < HEADS; i += THREADS) {
            var top = largest[i];
            for (var key = 0u; key < KEYS; key++) {
                top = max(top, scores[i * KEYS + key]);
            }
            var sum = 0.0;
            for (var key = 0u; key < KEYS; key++) {
                let score = scores[i * KEYS + key];
                let weight = select(exp(score - top), 0.0, score == LOWEST);
                scores[i * KEYS + key] = weight;
                sum += weight;
            }
            shrink[i] = exp(largest[i] - top);
            total[i] = total[i] * shrink[i] + sum;
            largest[i] = top;
        }
        workgroupBarrier();
        for (var i = thread; i < HEADS * PAIRS; i += THREADS) {
            var sum = sums[i] * shrink[i / PAIRS];
            for (var key = 0u; key < min(KEYS, end - first); key++) {
                let at = place(token, first + key, kv_head);
                sum += scores[i / PAIRS * KEYS + key] * unpacked(values[at + i % PAIRS]);
            }
            sums[i] = sum;
        }
        workgroupBarrier();
    }
    for (var i = thread; i < HEADS * PAIRS; i += THREADS) {
        result[token * ROW_PAIRS + head * PAIRS + i] = sums[i] / total[i / PAIRS];
    }
}

// Where the numbers of a key or value begin: a page has, for each head, those of its tokens.
fn place(token: u32, key: u32, head: u32) -> u32 {
    let page = pages[batch[PAGES_BEGIN + token] + key / PAGE];
    return ((page * KV_HEADS + head) * PAGE + key % PAGE) * PAIRS;
}

fn capped(score: f32) -> f32 {
    if (SOFT_CAP == 0.0) {
        return score;
    }
    return SOFT_CAP * tanh(clamp(score / SOFT_CAP, -15.0, 15.0));
}
