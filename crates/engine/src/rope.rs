//! Rotary position embedding: which values form a pair, and how fast each pair turns.
//!
//! For: the angles of the forward pass, from what a model file says.
//! Must never: use libm, or know a scaling rule by half: what isn't listed here is refused by the
//! readers of configurations.
//! Relies on: `math.rs`, f64 throughout; only the finished cosines and sines are rounded to f32.

use std::f64::consts::PI;

use crate::math;

/// Which two values of a head turn together. Source: RoFormer (Su et al. 2021) pairs neighbours;
/// GPT-NeoX pairs the halves. A checkpoint's query and key weights fit one of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// (2i, 2i + 1): GGUF files of the Llama family.
    Neighbours,
    /// (i, i + dim / 2): Qwen in either format, and all of HuggingFace's checkpoints.
    Halves,
    /// None: positions are learned rows beside the embedding (GPT-2).
    None,
}

/// How angles are changed for contexts longer than the ones trained on. All numbers are positive
/// and finite.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by `factor`. Source: Chen et al. 2023.
    Linear {
        /// New context length over the old one.
        factor: f64,
    },
    /// Slow pairs are slowed by `factor`, fast ones are left, in between it is mixed. Source:
    /// Llama 3.1's `config.json` and reference code.
    Llama3 {
        /// New context length over the old one.
        factor: f64,
        /// Pairs that turn less often than this in the old context are slowed.
        low: f64,
        /// Pairs that turn more often than this are left; above `low`.
        high: f64,
        /// The old context length.
        original: f64,
    },
    /// As `Llama3`, mixed along the pair's index, and attention is sharpened. Source: YaRN (Peng
    /// et al. 2023), section 3.
    Yarn {
        /// New context length over the old one, at least 1.
        factor: f64,
        /// The old context length.
        original: f64,
        /// Pairs that turn more often than this in the old context are left.
        fast: f64,
        /// Pairs that turn less often than this are slowed; below `fast`.
        slow: f64,
        /// Factor of cosines and sines, so that scores grow by its square.
        magnitude: f64,
    },
}

/// Angles of one model's heads.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rope {
    /// Angle of each pair at position 1.
    frequencies: Vec<f64>, // [dim / 2]
    /// Factor of cosines and sines.
    magnitude: f64,
}

impl Rope {
    /// For heads of `dim` values and angles that fall from 1 by `base^(−2 / dim)` a pair, divided
    /// by `divisors` (one a pair) where a file has them, then scaled.
    pub(crate) fn new(
        dim: usize,
        base: f64,
        divisors: Option<&[f32]>,
        scaling: &RopeScaling,
    ) -> Rope {
        let ln_base = math::ln(base);
        let frequency = |i: usize| {
            let exponent = (2 * i) as f64 / dim as f64;
            let divisor = divisors.map_or(1.0, |divisors| f64::from(divisors[i]));
            scaling.scale(math::exp(-exponent * ln_base) / divisor, i, (dim, ln_base))
        };
        let magnitude = match scaling {
            RopeScaling::Yarn { magnitude, .. } => *magnitude,
            RopeScaling::None | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
        };
        Rope { frequencies: (0..dim / 2).map(frequency).collect(), magnitude }
    }

    /// Cosine and sine of every pair at `position`, which is below 10⁶.
    pub(crate) fn at(&self, position: usize) -> impl Iterator<Item = (f32, f32)> + '_ {
        self.frequencies.iter().map(move |frequency| {
            let (sin, cos) = math::sin_cos(position as f64 * frequency);
            ((cos * self.magnitude) as f32, (sin * self.magnitude) as f32)
        })
    }
}

impl RopeScaling {
    /// Whether the numbers fit each other; they are known to be positive and finite.
    ///
    /// # Errors
    /// What they don't fit, as a phrase that follows a model's name.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let (factor, order) = match *self {
            RopeScaling::None => (1.0, true),
            RopeScaling::Linear { factor } => (factor, true),
            RopeScaling::Llama3 { factor, low, high, .. } => (factor, low < high),
            RopeScaling::Yarn { factor, fast, slow, .. } => (factor, slow < fast),
        };
        match (factor >= 1.0, order) {
            (true, true) => Ok(()),
            (false, _) => Err("with a rope scaling factor below 1"),
            (true, false) => Err("with rope scaling limits in the wrong order"),
        }
    }

    /// YaRN's rule for the factor of cosines and sines: 0.1·ln(factor) + 1.
    pub(crate) fn yarn_magnitude(factor: f64) -> f64 {
        0.1 * math::ln(factor) + 1.0
    }

    /// Pair `i`'s frequency, scaled; of heads of `dim` values with angles of base e^`ln_base`.
    fn scale(&self, frequency: f64, i: usize, (dim, ln_base): (usize, f64)) -> f64 {
        match *self {
            RopeScaling::None => frequency,
            RopeScaling::Linear { factor } => frequency / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let turns = original * frequency / (2.0 * PI);
                if turns < low {
                    frequency / factor
                } else if turns > high {
                    frequency
                } else {
                    let kept = (turns - low) / (high - low);
                    frequency * ((1.0 - kept) / factor + kept)
                }
            }
            RopeScaling::Yarn { factor, original, fast, slow, .. } => {
                // The index, not whole, of the pair that makes `turns` turns in the old context.
                let index = |turns: f64| {
                    dim as f64 * math::ln(original / (turns * 2.0 * PI)) / (2.0 * ln_base)
                };
                let first = index(fast).floor().max(0.0);
                let last = index(slow).ceil().min((dim - 1) as f64);
                let slowed = (i as f64 - first) / (last - first).max(0.001);
                let slowed = slowed.clamp(0.0, 1.0);
                frequency * (slowed / factor + (1.0 - slowed))
            }
        }
    }

    /// Name and numbers as one fixed text, floats as bits.
    pub(crate) fn canonical_text(&self) -> String {
        let bits = |numbers: &[f64]| -> String {
            numbers.iter().map(|x| format!(":{:016x}", x.to_bits())).collect()
        };
        match *self {
            RopeScaling::None => "none".into(),
            RopeScaling::Linear { factor } => "linear".to_owned() + &bits(&[factor]),
            RopeScaling::Llama3 { factor, low, high, original } => {
                "llama3".to_owned() + &bits(&[factor, low, high, original])
            }
            RopeScaling::Yarn { factor, original, fast, slow, magnitude } => {
                "yarn".to_owned() + &bits(&[factor, original, fast, slow, magnitude])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: &[f64], wanted: &[f64]) {
        assert_eq!(found.len(), wanted.len());
        for (a, b) in found.iter().zip(wanted) {
            assert!((a - b).abs() <= 2e-7 * b.abs(), "{found:?} is not {wanted:?}");
        }
    }

    fn frequencies(scaling: RopeScaling) -> Vec<f64> {
        Rope::new(16, 10_000.0, None, &scaling).frequencies
    }

    /// Made by `ROPE_INIT_FUNCTIONS` of HuggingFace transformers 4.51.3, in f32: heads of 16,
    /// base 10,000, and the numbers of the test below.
    const LINEAR: [f64; 8] = [
        0.25,
        0.079_056_940_972_805_02,
        0.025_000_000_372_529_03,
        0.007_905_694_656_074_047,
        0.002_499_999_944_120_645_5,
        0.000_790_569_465_607_404_7,
        0.000_250_000_011_874_362_8,
        7.905_694_656_074_047e-5,
    ];
    const LLAMA3: [f64; 8] = [
        1.0,
        0.244_384_586_811_065_67,
        0.013_042_256_236_076_355,
        0.003_952_847_328_037_023_5,
        0.001_249_999_972_060_322_8,
        0.000_395_284_732_803_702_33,
        0.000_125_000_005_937_181_4,
        3.952_847_328_037_023_5e-5,
    ];
    const YARN: [f64; 8] = [
        1.0,
        0.237_170_815_467_834_47,
        0.049_999_997_019_767_76,
        0.007_905_694_656_074_047,
        0.002_499_999_944_120_645_5,
        0.000_790_569_465_607_404_7,
        0.000_250_000_011_874_362_8,
        7.905_694_656_074_047e-5,
    ];

    #[test]
    fn without_scaling_the_angles_are_those_of_the_paper() {
        let wanted: Vec<f64> = (0..8).map(|i| 10_000f64.powf(-f64::from(i) / 8.0)).collect();
        close(&frequencies(RopeScaling::None), &wanted);
    }

    #[test]
    fn scaled_angles_are_those_of_transformers() {
        close(&frequencies(RopeScaling::Linear { factor: 4.0 }), &LINEAR);
        let llama3 = RopeScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 64.0 };
        close(&frequencies(llama3), &LLAMA3);
        let magnitude = RopeScaling::yarn_magnitude(4.0);
        let yarn =
            RopeScaling::Yarn { factor: 4.0, original: 64.0, fast: 32.0, slow: 1.0, magnitude };
        close(&frequencies(yarn), &YARN);
        close(&[magnitude], &[1.138_629_436_111_989]);
    }

    #[test]
    fn divisors_of_the_file_come_before_the_scaling() {
        let divisors = [1.0, 2.0, 4.0, 8.0, 1.0, 1.0, 1.0, 1.0];
        let rope = Rope::new(16, 10_000.0, Some(&divisors), &RopeScaling::Linear { factor: 2.0 });
        let plain = frequencies(RopeScaling::None);
        let wanted: Vec<f64> =
            plain.iter().zip(divisors).map(|(f, d)| f / f64::from(d) / 2.0).collect();
        close(&rope.frequencies, &wanted);
    }

    #[test]
    fn the_magnitude_lengthens_every_pair() {
        let (fast, slow, magnitude) = (32.0, 1.0, 1.5);
        let yarn = RopeScaling::Yarn { factor: 4.0, original: 64.0, fast, slow, magnitude };
        for (cos, sin) in Rope::new(16, 10_000.0, None, &yarn).at(77) {
            assert!((cos.hypot(sin) - 1.5).abs() < 1e-6);
        }
    }
}
