//! Passes over a row of logits: what is largest, how much probability there is, whose noise is
//! large.
//!
//! For: a sampler that looks at most of a vocabulary only sixteen lanes at a time.
//! Must never: give a number that depends on the order of its passes: masses are integers, noise
//! belongs to an id and a position.
//! Relies on: rows in blocks of 64 logits; the last block of a row may be shorter.

use super::lanes::{LANES, Lanes};
use super::per_isa;
use crate::philox::{multiply, next_key};

/// Logits to a block: sixteen words of noise by four.
pub(crate) const BLOCK: usize = 64;

/// 2⁻⁴⁰, the unit of a mass.
pub(crate) const MASS_UNIT: f64 = 1.0 / (1u64 << 40) as f64;

per_isa! {
    /// The largest logit of each block into `maxima` (one more than there are whole blocks where
    /// the last isn't whole), and whether all are finite; if not, the maxima mean nothing.
    pub(crate) fn survey(logits: &[f32], maxima: &mut [f32], is_finite: &mut bool) = survey_body
}

#[inline(always)]
fn survey_body<V: Lanes>(logits: &[f32], maxima: &mut [f32], is_finite: &mut bool) {
    let (blocks, rest) = logits.as_chunks::<BLOCK>();
    // x·0 is 0 where x is finite, else NaN, which stays.
    let mut odd = V::splat(0.0);
    let zero = V::splat(0.0);
    for (block, max) in blocks.iter().zip(maxima.iter_mut()) {
        let (lanes, _) = block.as_chunks::<LANES>();
        let mut most = V::load(&lanes[0]);
        for x in lanes {
            let x = V::load(x);
            odd = odd.add(x.mul(zero));
            most = x.max(most);
        }
        *max = most_of(most);
    }
    let mut odds = [0.0; LANES];
    odd.store(&mut odds);
    *is_finite = odds.iter().all(|odd| *odd == 0.0) && rest.iter().all(|x| x.is_finite());
    if let Some(max) = maxima.get_mut(blocks.len()) {
        *max = rest.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
    }
}

/// The largest lane, halving.
#[inline(always)]
fn most_of<V: Lanes>(lanes: V) -> f32 {
    let mut a = [0.0f32; LANES];
    lanes.store(&mut a);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] = if a[i] > a[i + width] { a[i] } else { a[i + width] };
        }
        width /= 2;
    }
    a[0]
}

/// How logits become probabilities: (logit − best) · inverse.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale {
    /// The largest logit.
    pub(crate) best: f32,
    /// 1 / temperature.
    pub(crate) inverse: f64,
}

impl Scale {
    /// That of probabilities at `temperature`, above 0.
    pub(crate) fn at(best: f32, temperature: f32) -> Scale {
        Scale { best, inverse: 1.0 / f64::from(temperature) }
    }

    /// The mass of one logit, at most `best`.
    pub(crate) fn mass(self, logit: f32) -> u64 {
        mass((f64::from(logit) - f64::from(self.best)) * self.inverse)
    }
}

per_isa! {
    /// Adds the masses of `logits`, each at most `scale.best`, to `sum`. Integers: no order.
    pub(crate) fn add_masses(logits: &[f32], scale: Scale, sum: &mut u64) = add_masses_body
}

#[inline(always)]
fn add_masses_body<V: Lanes>(logits: &[f32], scale: Scale, sum: &mut u64) {
    let (blocks, rest) = logits.as_chunks::<LANES>();
    let mut sums = [0u64; LANES];
    for block in blocks {
        for (sum, logit) in sums.iter_mut().zip(block) {
            *sum += mass((f64::from(*logit) - f64::from(scale.best)) * scale.inverse);
        }
    }
    *sum += sums.iter().sum::<u64>();
    for logit in rest {
        *sum += scale.mass(*logit);
    }
}

/// e^x for x ≤ 0, rounded to units of [`MASS_UNIT`], ties to even; relative error of e^x before
/// rounding under 10⁻¹⁴.
///
/// x = n·ln 2 + r, |r| ≤ 0.347; e^r by its Taylor series to r¹¹. Sums of a vocabulary's masses
/// fit u64 up to 2²³ ids.
#[inline(always)]
fn mass(x: f64) -> u64 {
    // 1.5·2⁵²: adding it rounds to the nearest integer, ties to even.
    const BIAS: f64 = 6_755_399_441_055_744.0;
    // ln 2 in two parts, the first with its low 32 bits zero, so that n·hi is exact.
    const HI: f64 = f64::from_bits(0x3fe6_2e42_0000_0000);
    const LO: f64 = std::f64::consts::LN_2 - HI;
    // 1.5·2¹²: its last place is the unit.
    const UNITS: f64 = 6144.0;
    // e^−40 is far below half a unit.
    let x = if x > -40.0 { x } else { -40.0 };
    let biased = x * std::f64::consts::LOG2_E + BIAS;
    let n = biased - BIAS;
    let r = (x - n * HI) - n * LO;
    let mut p = 1.0 / 39_916_800.0;
    for c in [
        1.0 / 3_628_800.0,
        1.0 / 362_880.0,
        1.0 / 40_320.0,
        1.0 / 5_040.0,
        1.0 / 720.0,
        1.0 / 120.0,
        1.0 / 24.0,
        1.0 / 6.0,
        0.5,
        1.0,
        1.0,
    ] {
        p = p * r + c;
    }
    let e = f64::from_bits(p.to_bits().wrapping_add(biased.to_bits() << 52));
    (e + UNITS).to_bits().wrapping_sub(UNITS.to_bits())
}

/// The noise of a block's ids, and whether any of it is large.
#[derive(Debug, Clone)]
pub(crate) struct Noise {
    /// Word of id `first + 4·i + j` at `[j][i]`.
    words: [[u32; LANES]; 4],
    /// Whether any word is at least the wanted one.
    pub(crate) is_large: bool,
}

/// Whose noise it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoiseOf {
    /// Philox's key.
    pub(crate) key: [u32; 2],
    /// Index in the sequence.
    pub(crate) position: u32,
    /// The block's first id, divided by four.
    pub(crate) quarter: u32,
    /// What counts as large.
    pub(crate) least: u32,
}

impl Noise {
    /// Nothing drawn yet.
    pub(crate) fn new() -> Noise {
        Noise { words: [[0; LANES]; 4], is_large: false }
    }

    /// The word of the block's id number `at`, below [`BLOCK`].
    pub(crate) fn word(&self, at: usize) -> u32 {
        self.words[at % 4][at / 4]
    }
}

per_isa! {
    /// Philox4x32-10 for the 64 ids of a block, as `philox.rs` has it for four.
    pub(crate) fn noise(of: NoiseOf, out: &mut Noise) = noise_body
}

#[inline(always)]
fn noise_body<V: Lanes>(of: NoiseOf, out: &mut Noise) {
    let mut c = [[0u32; LANES], [of.position; LANES], [0; LANES], [0; LANES]];
    for (i, quarter) in (0u32..).zip(&mut c[0]) {
        *quarter = of.quarter.wrapping_add(i);
    }
    let mut key = of.key;
    for _ in 0..10 {
        let mut next = [[0u32; LANES]; 4];
        for i in 0..LANES {
            let ((high0, low0), (high1, low1)) = multiply(c[0][i], c[2][i]);
            next[0][i] = high1 ^ c[1][i] ^ key[0];
            next[1][i] = low1;
            next[2][i] = high0 ^ c[3][i] ^ key[1];
            next[3][i] = low0;
        }
        c = next;
        key = next_key(key);
    }
    let mut large = 0;
    for words in &c {
        for word in words {
            large |= u32::from(*word >= of.least);
        }
    }
    *out = Noise { words: c, is_large: large != 0 };
}
