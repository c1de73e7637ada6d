// One over the deviation of each piece of each row, and its mean where that is subtracted, by a thread each.
var<workgroup> statistics_$n: array<vec2f, $count>;

fn measure_$n(thread: u32) {
    for (var piece = thread; piece < ${count}u; piece += THREADS) {
        let row = piece / ${pieces}u;
        let begin = piece % ${pieces}u * ${size}u;
        var mean = 0.0;
        if ($mean) {
            for (var column = begin; column < begin + ${size}u; column++) {
                mean += $x;
            }
            mean /= $size.0;
        }
        var sum = 0.0;
        for (var column = begin; column < begin + ${size}u; column++) {
            let x = $x - mean;
            sum += x * x;
        }
        statistics_$n[piece] = vec2f(inverseSqrt(sum / $size.0 + $epsilon), mean);
    }
}
