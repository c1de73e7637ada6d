// One over the deviation of a row, and its mean where that is subtracted, by all threads.
var<workgroup> statistics_$n: array<vec2f, 1>;
var<workgroup> sums_$n: array<f32, THREADS>;

fn joined_$n(thread: u32, part: f32) -> f32 {
    sums_$n[thread] = part;
    workgroupBarrier();
    for (var other = THREADS / 2u; other > 0u; other /= 2u) {
        if (thread < other) {
            sums_$n[thread] += sums_$n[thread + other];
        }
        workgroupBarrier();
    }
    let sum = sums_$n[0];
    workgroupBarrier();
    return sum;
}

fn measure_$n(thread: u32) {
    let row = 0u;
    var mean = 0.0;
    if ($mean) {
        var sum = 0.0;
        for (var column = thread; column < ${size}u; column += THREADS) {
            sum += $x;
        }
        mean = joined_$n(thread, sum) / $size.0;
    }
    var sum = 0.0;
    for (var column = thread; column < ${size}u; column += THREADS) {
        let x = $x - mean;
        sum += x * x;
    }
    let deviation = joined_$n(thread, sum) / $size.0;
    if (thread == 0u) {
        statistics_$n[0] = vec2f(inverseSqrt(deviation + $epsilon), mean);
    }
}
