//! Sixteen f32 lanes: the unit that every f32 kernel is written in.
//!
//! For: one body per kernel. [`Scalar`] is the definition; the AVX forms must equal it bit for
//! bit, which holds because each method is one exactly rounded IEEE operation (or integers).
//! Must never: hold a method whose result depends on the order of lanes, except [`tree_sum`],
//! whose order is fixed here for all.
//! Relies on: callers being inside a function that enables the features (see `per_isa!`).

use std::ops::Range;

/// Lanes per vector: also the output rows of a weight tile and the tokens of a KV block.
pub(crate) const LANES: usize = 16;

/// One cache line of packed weights: 16 lanes of four bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Sixteen f32 values and the exact integer dot of one weight block with them.
pub(crate) trait Lanes: Copy {
    /// One block of 16 rows × 32 unsigned weights, unpacked.
    type Weights: Copy;

    /// Activation rows that share one pass over a weight tile, at most: 1, 2, 4 or 8. Speed
    /// only.
    const ROWS_TOGETHER: usize;
    /// Sums that attention keeps at once beside what it adds to them. Speed only.
    const SUMS: usize;

    /// Asks for the cache line at `at` without waiting for it; any address will do. Speed only.
    fn fetch(_at: *const Line) {}

    /// All lanes `x`.
    fn splat(x: f32) -> Self;
    /// Lanes from memory.
    fn load(from: &[f32; LANES]) -> Self;
    /// Lanes to memory.
    fn store(self, to: &mut [f32; LANES]);
    /// Lanes from IEEE half precision bits; exact.
    fn load_f16(from: &[u16; LANES]) -> Self;
    /// Lanes from the upper halves of f32; exact.
    fn load_bf16(from: &[u16; LANES]) -> Self;
    /// `self + b`.
    fn add(self, b: Self) -> Self;
    /// `self - b`.
    fn sub(self, b: Self) -> Self;
    /// `self * b`.
    fn mul(self, b: Self) -> Self;
    /// `self / b`.
    fn div(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn fma(self, b: Self, c: Self) -> Self;
    /// `self` where `self > b`, else `b` (so `b` where either is NaN).
    fn max(self, b: Self) -> Self;
    /// `self` where `self < b`, else `b` (so `b` where either is NaN).
    fn min(self, b: Self) -> Self;
    /// `self` where `x >= limit`, else +0.
    fn where_ge(self, x: Self, limit: Self) -> Self;
    /// Adds `n` to the exponent, where `n` is the low bits of `biased` = 1.5·2²³ + n.
    fn shift_exponent(self, biased: Self) -> Self;

    /// Lanes from bytes; exact.
    fn load_u8(from: &[u8; LANES]) -> Self;
    /// Lanes from bytes that are signed numbers; exact.
    fn load_i8(from: &[u8; LANES]) -> Self;

    /// Four-bit weights: byte `4 lane + i` of line j holds k = 8j + i (low), 8j + 4 + i (high).
    fn unpack_nibbles(from: &[Line; 4]) -> Self::Weights;
    /// Five-bit weights: four lines as of four bits, then one whose byte `4 lane + i` has in bit
    /// j the fifth bit of k = 4j + i.
    fn unpack_fives(from: &[Line; 5]) -> Self::Weights;
    /// Six-bit weights: four lines as of four bits, then two whose bytes `4 lane + i` have in bits
    /// 2j and 2j + 1 the upper bits of k = 4j + i and, in the second, of k = 16 + 4j + i.
    fn unpack_sixes(from: &[Line; 6]) -> Self::Weights;
    /// Eight-bit weights, offset by 128: byte `4 lane + i` of line j holds k = 4j + i.
    fn unpack_octets(from: &[Line; 8]) -> Self::Weights;
    /// `Σ w·x + start` over the 32 of a block, exact; weights ≤ 15, `x` within ±127.
    fn dot_nibbles(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self;
    /// The same for weights ≤ 31.
    fn dot_fives(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self;
    /// The same for weights ≤ 63 over each half of a block, with a start for each.
    fn dot_six_halves(weights: &Self::Weights, x: &[i8; 32], starts: [i32; 2]) -> [Self; 2];
    /// The same over a block for eight-bit weights; `start` = −128·Σ x, so it is Σ (w − 128)·x.
    fn dot_octets(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self;
}

/// The sum of sixteen lanes in the one order: i + (i+8), then +4, +2, +1.
#[inline(always)]
pub(crate) fn tree_sum<V: Lanes>(lanes: V) -> f32 {
    let mut a = [0.0; LANES];
    lanes.store(&mut a);
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            a[i] += a[i + width];
        }
        width /= 2;
    }
    a[0]
}

/// The largest lane.
#[inline(always)]
pub(crate) fn lane_max<V: Lanes>(lanes: V) -> f32 {
    let mut a = [0.0; LANES];
    lanes.store(&mut a);
    a.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
}

/// 1.5·2²³: adding it rounds an f32 below 2²² to the nearest integer, ties to even.
pub(crate) const ROUND_BIAS: f32 = 12_582_912.0;

/// e^x for each lane: 0 below −87, and as for 88 above 88. Relative error under 2⁻²².
///
/// x = n·ln 2 + r, |r| ≤ 0.347; e^r by its Taylor series to r⁷ (the rest is under 6·10⁻⁹).
#[inline(always)]
pub(crate) fn exp<V: Lanes>(x: V) -> V {
    // ln 2 in two parts: the first is 355/512, nine bits, so n·hi is exact for |n| < 2¹⁵.
    const LN2_HI: f32 = 355.0 / 512.0;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let clamped = x.min(V::splat(88.0)).max(V::splat(-87.0));
    let biased = clamped.fma(V::splat(std::f32::consts::LOG2_E), V::splat(ROUND_BIAS));
    let n = biased.sub(V::splat(ROUND_BIAS));
    let r = n.fma(V::splat(-LN2_HI), clamped);
    let r = n.fma(V::splat(-LN2_LO), r);
    let mut p = V::splat(1.0 / 5040.0);
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p.fma(r, V::splat(c));
    }
    p.shift_exponent(biased).where_ge(x, V::splat(-87.0))
}

/// The definition: arrays and plain arithmetic.
#[derive(Clone, Copy)]
pub(crate) struct Scalar([f32; LANES]);

impl Scalar {
    #[inline(always)]
    fn zip(self, b: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Scalar(std::array::from_fn(|i| f(self.0[i], b.0[i])))
    }
}

impl Lanes for Scalar {
    type Weights = [[u8; 32]; LANES];

    const ROWS_TOGETHER: usize = 1;
    const SUMS: usize = 4;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Scalar([x; LANES])
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        Scalar(*from)
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        Scalar(from.map(|bits| half::f16::from_bits(bits).to_f32_const()))
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        Scalar(from.map(|bits| f32::from_bits(u32::from(bits) << 16)))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        self.zip(b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        self.zip(b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        self.zip(b, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        self.zip(b, |a, b| a / b)
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        Scalar(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        self.zip(b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        self.zip(b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn where_ge(self, x: Self, limit: Self) -> Self {
        Scalar(std::array::from_fn(|i| if x.0[i] >= limit.0[i] { self.0[i] } else { 0.0 }))
    }
    #[inline(always)]
    fn shift_exponent(self, biased: Self) -> Self {
        self.zip(biased, |p, b| f32::from_bits(p.to_bits().wrapping_add(b.to_bits() << 23)))
    }

    fn load_u8(from: &[u8; LANES]) -> Self {
        Scalar(from.map(f32::from))
    }
    fn load_i8(from: &[u8; LANES]) -> Self {
        Scalar(from.map(|byte| f32::from(byte as i8)))
    }

    fn unpack_nibbles(from: &[Line; 4]) -> Self::Weights {
        let mut out = [[0; 32]; LANES];
        for (j, line) in from.iter().enumerate() {
            for (at, byte) in line.0.iter().enumerate() {
                out[at / 4][8 * j + at % 4] = byte & 15;
                out[at / 4][8 * j + 4 + at % 4] = byte >> 4;
            }
        }
        out
    }
    fn unpack_fives(from: &[Line; 5]) -> Self::Weights {
        let [nibbles @ .., fifths] = from;
        let mut out = Self::unpack_nibbles(nibbles);
        for (at, byte) in fifths.0.iter().enumerate() {
            for j in 0..8 {
                out[at / 4][4 * j + at % 4] |= (byte >> j & 1) << 4;
            }
        }
        out
    }
    fn unpack_sixes(from: &[Line; 6]) -> Self::Weights {
        let [nibbles @ .., low, high] = from;
        let mut out = Self::unpack_nibbles(nibbles);
        for (half, line) in [low, high].into_iter().enumerate() {
            for (at, byte) in line.0.iter().enumerate() {
                for j in 0..4 {
                    out[at / 4][16 * half + 4 * j + at % 4] |= (byte >> (2 * j) & 3) << 4;
                }
            }
        }
        out
    }
    fn unpack_octets(from: &[Line; 8]) -> Self::Weights {
        let mut out = [[0; 32]; LANES];
        for (j, line) in from.iter().enumerate() {
            for (at, byte) in line.0.iter().enumerate() {
                out[at / 4][4 * j + at % 4] = *byte;
            }
        }
        out
    }
    fn dot_nibbles(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        scalar_dot(weights, x, 0..32, start)
    }
    fn dot_fives(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        scalar_dot(weights, x, 0..32, start)
    }
    fn dot_six_halves(weights: &Self::Weights, x: &[i8; 32], starts: [i32; 2]) -> [Self; 2] {
        [scalar_dot(weights, x, 0..16, starts[0]), scalar_dot(weights, x, 16..32, starts[1])]
    }
    fn dot_octets(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        scalar_dot(weights, x, 0..32, start)
    }
}

/// `Σ w·x + start` over `range` of a block, for each lane.
fn scalar_dot(
    weights: &[[u8; 32]; LANES],
    x: &[i8; 32],
    range: Range<usize>,
    start: i32,
) -> Scalar {
    Scalar(weights.map(|row| {
        let pairs = row[range.clone()].iter().zip(&x[range.clone()]);
        let products = pairs.map(|(w, x)| i32::from(*w) * i32::from(*x));
        (start + products.sum::<i32>()) as f32
    }))
}
