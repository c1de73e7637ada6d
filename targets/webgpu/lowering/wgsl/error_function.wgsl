// Near 0 its series; elsewhere 7.1.26 of Abramowitz and Stegun's handbook, whose error is below 1.5e-7.
fn error_function(x: f32) -> f32 {
    let a = abs(x);
    let s = a * a;
    if (a < 0.5) {
        return x * (1.1283792 + s * (-0.37612638 + s * (0.11283792 + s * (-0.026866171 + s * 0.0052239776))));
    }
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let tail = t * (0.25482959 + t * (-0.28449674 + t * (1.4214137 + t * (-1.4531520 + t * 1.0614054))));
    return sign(x) * (1.0 - tail * exp(-s));
}
