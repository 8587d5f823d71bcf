//! What is computed wrongly on purpose, plainly and in f64.

/// The exact GELU, `x·½(1 + erf(x/√2))`, which GPT-2 doesn't have.
pub fn erf_gelu(x: f32) -> f32 {
    let x = f64::from(x);
    let end = (x / std::f64::consts::SQRT_2).clamp(-6.0, 6.0);
    // erf by Simpson's rule: with 400 steps its error is below 1e-9.
    let (steps, h) = (400, end / 400.0);
    let f = |i: i32| (-(h * f64::from(i)).powi(2)).exp();
    let inner: f64 = (1..steps).map(|i| f(i) * if i % 2 == 1 { 4.0 } else { 2.0 }).sum();
    let erf = std::f64::consts::FRAC_2_SQRT_PI * h / 3.0 * (f(0) + inner + f(steps));
    (x * 0.5 * (1.0 + erf)) as f32
}

/// Layer norm of each row.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let mut out = Vec::new();
    for row in x.chunks_exact(weight.len()) {
        let count = row.len() as f64;
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / count;
        for (i, x) in row.iter().enumerate() {
            let scaled = (f64::from(*x) - mean) / (variance + 1e-5).sqrt();
            out.push((scaled * f64::from(weight[i]) + f64::from(bias[i])) as f32);
        }
    }
    out
}
