fn sigmoid(x: f32) -> f32 {
    return 1.0 / (1.0 + exp(-x));
}

fn silu(x: f32) -> f32 {
    return x * sigmoid(x);
}

// Beyond 15 it is 1 in float32; some devices' own overflows there.
fn hyperbolic_tangent(x: f32) -> f32 {
    return select(tanh(clamp(x, -15.0, 15.0)), x, x != x);
}

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

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + error_function(0.70710678 * x));
}

fn gelu_by_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + hyperbolic_tangent(0.7978845608 * (x + 0.044715 * x * x * x)));
}
