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

fn gelu(x: f32) -> f32 {
    return 0.5 * x * (1.0 + error_function(0.70710678 * x));
}

fn gelu_by_tanh(x: f32) -> f32 {
    return 0.5 * x * (1.0 + hyperbolic_tangent(0.7978845608 * (x + 0.044715 * x * x * x)));
}
