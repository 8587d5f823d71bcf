//! Row-wise f32 steps: norms, biases, and the functions of the feed-forward layer.
//!
//! For: everything between two products that isn't attention.
//! Must never: sum in an order that depends on anything but the index.
//! Relies on: widths being multiples of 16, which `config.rs` checks at load.

use super::lanes::{LANES, Lanes, exp, tree_sum};
use super::threads::{Disjoint, Threads};
use super::{Cpu, per_isa};

per_isa! {
    /// `out = x / √(mean x² + eps) · weight`, each product rounded.
    ///
    /// Σ x² runs over 16 lanes by index mod 16 with one rounding a step, then the fixed tree.
    /// All three slices have the same length, a multiple of 16.
    pub(crate) fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body
}

#[inline(always)]
fn rms_norm_body<V: Lanes>(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (x, _) = x.as_chunks::<LANES>();
    let (weight, _) = weight.as_chunks::<LANES>();
    let (out, _) = out.as_chunks_mut::<LANES>();
    let mut squares = V::splat(0.0);
    for x in x {
        let x = V::load(x);
        squares = x.fma(x, squares);
    }
    let mean = tree_sum(squares) / (x.len() * LANES) as f32;
    let scale = V::splat(1.0 / (mean + eps).sqrt());
    for ((x, weight), out) in x.iter().zip(weight).zip(out) {
        V::load(x).mul(scale).mul(V::load(weight)).store(out);
    }
}

/// `silu(gate) · up`, where silu(g) = g / (1 + e^−g).
#[inline(always)]
pub(crate) fn swiglu<V: Lanes>(gate: V, up: V) -> V {
    let minus = V::splat(0.0).sub(gate);
    gate.div(V::splat(1.0).add(exp(minus))).mul(up)
}

/// A layer norm's weight and bias, `[width]` each, and epsilon.
#[derive(Clone, Copy)]
pub(crate) struct LayerNorm<'a> {
    pub(crate) weight: &'a [f32],
    pub(crate) bias: &'a [f32],
    pub(crate) eps: f32,
}

per_isa! {
    /// `out = (x − mean x) / √(variance x + eps) · weight + bias`; the variance divides by N.
    ///
    /// Both sums run over 16 lanes by index mod 16, then the fixed tree; the second one sums the
    /// squares of the rounded x − mean with one rounding a step. The last product and sum are one
    /// fma. All slices have the same length, a multiple of 16.
    fn layer_norm(x: &[f32], norm: LayerNorm<'_>, out: &mut [f32]) = layer_norm_body
}

#[inline(always)]
fn layer_norm_body<V: Lanes>(x: &[f32], norm: LayerNorm<'_>, out: &mut [f32]) {
    let count = x.len() as f32;
    let (x, _) = x.as_chunks::<LANES>();
    let (weight, _) = norm.weight.as_chunks::<LANES>();
    let (bias, _) = norm.bias.as_chunks::<LANES>();
    let (out, _) = out.as_chunks_mut::<LANES>();
    let sum = x.iter().fold(V::splat(0.0), |sum, x| sum.add(V::load(x)));
    let mean = V::splat(tree_sum(sum) / count);
    let mut squares = V::splat(0.0);
    for x in x {
        let x = V::load(x).sub(mean);
        squares = x.fma(x, squares);
    }
    let scale = V::splat(1.0 / (tree_sum(squares) / count + norm.eps).sqrt());
    for (((x, weight), bias), out) in x.iter().zip(weight).zip(bias).zip(out) {
        let x = V::load(x).sub(mean).mul(scale);
        x.fma(V::load(weight), V::load(bias)).store(out);
    }
}

per_isa! {
    /// `x += addend`, of one length, a multiple of 16.
    fn add(addend: &[f32], x: &mut [f32]) = add_body
}

#[inline(always)]
fn add_body<V: Lanes>(addend: &[f32], x: &mut [f32]) {
    let (addend, _) = addend.as_chunks::<LANES>();
    let (x, _) = x.as_chunks_mut::<LANES>();
    for (addend, x) in addend.iter().zip(x) {
        V::load(x).add(V::load(addend)).store(x);
    }
}

per_isa! {
    /// GPT-2's GELU, `x · ½(1 + tanh(√(2/π)·(x + 0.044715·x³)))`, of as many as a multiple of 16.
    ///
    /// ½(1 + tanh u) = 1 / (1 + e^−2u), so it is `x / (1 + e^−(x·fma(x², c₃, c₁)))` with
    /// c₁ = 2√(2/π), c₃ = 0.044715·c₁ and our own exp.
    fn gelu_new(x: &mut [f32]) = gelu_new_body
}

#[inline(always)]
fn gelu_new_body<V: Lanes>(x: &mut [f32]) {
    const C1: f32 = 1.595_769_2;
    const C3: f32 = 0.071_354_814;
    let (x, _) = x.as_chunks_mut::<LANES>();
    for x in x {
        let lanes = V::load(x);
        let twice = lanes.mul(lanes).fma(V::splat(C3), V::splat(C1)).mul(lanes);
        let minus = V::splat(0.0).sub(twice);
        lanes.div(V::splat(1.0).add(exp(minus))).store(x);
    }
}

/// Layer norm of each row: `[rows, width]` to the same. Blocks; `threads` share the rows out.
pub(crate) fn layer_norm_rows(
    (cpu, threads): (Cpu, &Threads),
    x: &[f32],
    norm: LayerNorm<'_>,
    out: &mut [f32],
) {
    let width = norm.weight.len();
    each_row(threads, width, out, &|row, out| {
        layer_norm(cpu, &x[row * width..(row + 1) * width], norm, out);
    });
}

/// `x += bias` in each row, `[rows, bias's length]`. Blocks; `threads` share the rows out.
pub(crate) fn add_bias_rows((cpu, threads): (Cpu, &Threads), bias: &[f32], x: &mut [f32]) {
    each_row(threads, bias.len(), x, &|_, x| add(cpu, bias, x));
}

/// `x += addend`, both `[rows, width]`. Blocks; `threads` share the rows out.
pub(crate) fn add_rows(
    (cpu, threads): (Cpu, &Threads),
    width: usize,
    addend: &[f32],
    x: &mut [f32],
) {
    each_row(threads, width, x, &|row, x| {
        add(cpu, &addend[row * width..(row + 1) * width], x);
    });
}

/// GPT-2's GELU of every value, `[rows, width]`. Blocks; `threads` share the rows out.
pub(crate) fn gelu_new_rows((cpu, threads): (Cpu, &Threads), width: usize, x: &mut [f32]) {
    each_row(threads, width, x, &|_, x| gelu_new(cpu, x));
}

/// Hands each row of `out`, and its index, to `work`.
fn each_row(
    threads: &Threads,
    width: usize,
    out: &mut [f32],
    work: &(dyn Fn(usize, &mut [f32]) + Sync),
) {
    let rows = out.len() / width;
    let out = Disjoint::new(out);
    threads.run_ranges(rows, &|range| {
        for row in range {
            // SAFETY: each row is in one range only.
            work(row, unsafe { out.part(row * width, width) });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Isa;

    fn cpus() -> impl Iterator<Item = Cpu> {
        Isa::ALL.into_iter().filter_map(Cpu::new)
    }

    /// The definition in f64.
    fn gelu_in_f64(x: f32) -> f64 {
        let x = f64::from(x);
        let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
        x * 0.5 * (1.0 + u.tanh())
    }

    #[test]
    fn gelu_new_is_within_four_ten_millionths_of_its_definition() {
        // Every 1/4096 from −20 to 20, then magnitudes up to the largest float.
        let mut values: Vec<f32> = (-81_920..81_920).map(|i| i as f32 / 4096.0).collect();
        let large = (0..64).map(|i| 2f32.powi(2 * i));
        values.extend(large.flat_map(|x| [x, -x, 1.0 / x, -1.0 / x]));
        let (mut absolute, mut relative) = (0f64, 0f64);
        let mut bits = None;
        for cpu in cpus() {
            let mut found = values.clone();
            gelu_new(cpu, &mut found);
            for (x, y) in values.iter().zip(&found) {
                let (wanted, y) = (gelu_in_f64(*x), f64::from(*y));
                let error = (y - wanted).abs();
                absolute = absolute.max(if x.abs() <= 20.0 { error } else { 0.0 });
                if *x >= -1.0 && wanted != 0.0 {
                    relative = relative.max(error / wanted.abs());
                }
                assert!(error <= 4e-7 * f64::from(x.abs()).max(1.0), "{x}: {y}, not {wanted}");
            }
            let found: Vec<u32> = found.iter().map(|x| x.to_bits()).collect();
            assert_eq!(*bits.get_or_insert_with(|| found.clone()), found, "{cpu:?}");
        }
        assert!(absolute < 4e-6 && relative < 2e-6, "{absolute:.2e}, relative {relative:.2e}");
        let mut nan = [f32::NAN; LANES];
        gelu_new(Cpu::new(Isa::Scalar).unwrap(), &mut nan);
        assert!(nan.iter().all(|x| x.is_nan()), "what isn't a number stays visible");
    }

    #[test]
    fn a_layer_norm_is_its_definition_and_the_same_bits_everywhere() {
        let wave = |seed: f32, scale: f32, offset: f32| -> Vec<f32> {
            (0..160).map(|i| (seed * (i * i + 1) as f32).sin() * scale + offset).collect()
        };
        // A mean far from zero is what a sum of squares without it would get wrong.
        let (x, weight, bias) = (wave(0.7, 3.0, 40.0), wave(1.3, 0.5, 1.0), wave(2.1, 0.5, 0.0));
        let norm = LayerNorm { weight: &weight, bias: &bias, eps: 1e-5 };
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / 160.0;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / 160.0;
        let mut bits = None;
        for cpu in cpus() {
            for count in [1, 3] {
                let threads = Threads::new(count).unwrap();
                let mut out = vec![0.0; 320];
                layer_norm_rows((cpu, &threads), &[x.clone(), x.clone()].concat(), norm, &mut out);
                for (i, found) in out[..160].iter().enumerate() {
                    let scaled = (f64::from(x[i]) - mean) / (variance + 1e-5).sqrt();
                    let wanted = scaled * f64::from(weight[i]) + f64::from(bias[i]);
                    assert!((f64::from(*found) - wanted).abs() < 5e-6, "{found} not {wanted}");
                }
                let found: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
                assert_eq!(found[..160], found[160..], "a row doesn't depend on its neighbours");
                assert_eq!(*bits.get_or_insert_with(|| found.clone()), found, "{cpu:?}");
            }
        }
    }
}
