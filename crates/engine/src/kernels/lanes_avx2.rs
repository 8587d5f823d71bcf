//! Sixteen lanes in two 256-bit registers; block dots by `maddubs` within its exact range.
//!
//! For: processors with AVX2, FMA and F16C.
//! Must never: be used outside a function that enables those features (`per_isa!`).
//! Relies on: `maddubs` (u8 × i8, two to an i16) saturating only beyond ±32767, which can't be
//! reached: see [`dot_small_half`] and [`dot_octets_half`].

use std::arch::x86_64::*;

use super::lanes::{LANES, Lanes, Line};

/// See the module: lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// Loads half a line: 32 bytes of side 0 or 1.
#[inline(always)]
fn load32(from: &Line, side: usize) -> __m256i {
    let from = &from.0[32 * side..32 * side + 32];
    // SAFETY: 32 bytes are readable, the load needs no alignment, `per_isa!` proved AVX2.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Bytes 4j..4j+4 of `x` in every lane.
#[inline(always)]
fn group(x: &[i8; 32], j: usize) -> __m256i {
    let four = [x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]].map(|b| b as u8);
    // SAFETY: `per_isa!` proved AVX2.
    unsafe { _mm256_set1_epi32(i32::from_ne_bytes(four)) }
}

/// Σ w·x + start for eight rows, from group `first` of x on, for weights ≤ 15 (`RUN` = 8), 31 (4)
/// or 63 (2): |w·x + w·x| ≤ 2·w·127 a pair, so the sums of `RUN` pairs are at most 30 480, 31 496
/// and 32 004: within an i16, and pairs are added before they are widened.
#[inline(always)]
fn dot_small_half<const RUN: usize>(
    weights: &[__m256i],
    (x, first): (&[i8; 32], usize),
    start: i32,
) -> __m256 {
    // SAFETY: `per_isa!` proved AVX2; all operands are registers.
    unsafe {
        let mut sums = _mm256_set1_epi32(start);
        for (run, weights) in weights.chunks_exact(RUN).enumerate() {
            let mut pairs = _mm256_setzero_si256();
            for (j, w) in weights.iter().enumerate() {
                let x = group(x, first + run * RUN + j);
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(*w, x));
            }
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        _mm256_cvtepi32_ps(sums)
    }
}

/// Σ w·x + start for sixteen rows of weights ≤ 63, over the four groups of x from `first` on.
///
/// A function, not a closure: only `#[inline(always)]` brings the intrinsics into code that has
/// the features, and without it each was a call (80 times slower).
#[inline(always)]
fn six_half(weights: &[__m256i; 16], x: &[i8; 32], first: usize, start: i32) -> Avx2 {
    let (low, high) = (&weights[first..first + 4], &weights[8 + first..12 + first]);
    Avx2(dot_small_half::<2>(low, (x, first), start), dot_small_half::<2>(high, (x, first), start))
}

/// Σ w·x for eight rows of signed weights: |w| as u8 (128 for −128) times x with w's sign: a pair
/// is at most 2·128·127 = 32 512, within an i16; pairs are widened before they are added.
#[inline(always)]
fn dot_octets_half(weights: &[__m256i], x: &[i8; 32]) -> __m256 {
    // SAFETY: `per_isa!` proved AVX2; all operands are registers.
    unsafe {
        let mut sums = _mm256_setzero_si256();
        let ones = _mm256_set1_epi16(1);
        for (j, w) in weights.iter().enumerate() {
            let signed = _mm256_sign_epi8(group(x, j), *w);
            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(*w), signed);
            sums = _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, ones));
        }
        _mm256_cvtepi32_ps(sums)
    }
}

/// `bits & mask | into`.
#[inline(always)]
fn or_masked(bits: __m256i, mask: __m256i, into: __m256i) -> __m256i {
    // SAFETY: `per_isa!` proved AVX2; all operands are registers.
    unsafe { _mm256_or_si256(_mm256_and_si256(bits, mask), into) }
}

// SAFETY of every block below: `per_isa!` proved AVX2, FMA and F16C; memory operands are
// references to arrays of the width that is read or written.
impl Lanes for Avx2 {
    /// Rows 0..8 in the first eight, rows 8..16 in the last eight.
    type Weights = [__m256i; 16];

    /// Of 16 registers the weights alone take more than there are; four rows still share the
    /// unpacking.
    const ROWS_TOGETHER: usize = 4;
    /// Two registers each.
    const SUMS: usize = 6;

    #[inline(always)]
    fn fetch(at: *const Line) {
        // SAFETY: a prefetch changes nothing that a program could see, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr())) }
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), self.1);
        }
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        // SAFETY: see the impl.
        unsafe {
            Avx2(
                _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from[8..].as_ptr().cast())),
            )
        }
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        #[inline(always)]
        fn half(from: &[u16]) -> __m256 {
            // SAFETY: see the impl; eight values are read.
            unsafe {
                let bits = _mm_loadu_si128(from[..8].as_ptr().cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
            }
        }
        Avx2(half(&from[..8]), half(&from[8..]))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_add_ps(self.0, b.0), _mm256_add_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_sub_ps(self.0, b.0), _mm256_sub_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_mul_ps(self.0, b.0), _mm256_mul_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_div_ps(self.0, b.0), _mm256_div_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_max_ps(self.0, b.0), _mm256_max_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_min_ps(self.0, b.0), _mm256_min_ps(self.1, b.1)) }
    }
    #[inline(always)]
    fn where_ge(self, x: Self, limit: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let low = _mm256_cmp_ps::<_CMP_GE_OQ>(x.0, limit.0);
            let high = _mm256_cmp_ps::<_CMP_GE_OQ>(x.1, limit.1);
            Avx2(_mm256_and_ps(self.0, low), _mm256_and_ps(self.1, high))
        }
    }
    #[inline(always)]
    fn shift_exponent(self, biased: Self) -> Self {
        #[inline(always)]
        fn half(p: __m256, biased: __m256) -> __m256 {
            // SAFETY: see the impl.
            unsafe {
                let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(biased));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), n))
            }
        }
        Avx2(half(self.0, biased.0), half(self.1, biased.1))
    }

    #[inline(always)]
    fn load_u8(from: &[u8; LANES]) -> Self {
        // SAFETY: see the impl; eight bytes are read from 0 and from 8.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let high = _mm256_cvtepu8_epi32(_mm_loadl_epi64(from[8..].as_ptr().cast()));
            Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        // SAFETY: see the impl; eight bytes are read from 0 and from 8.
        unsafe {
            let low = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()));
            let high = _mm256_cvtepi8_epi32(_mm_loadl_epi64(from[8..].as_ptr().cast()));
            Avx2(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    fn unpack_nibbles(from: &[Line; 4]) -> Self::Weights {
        // SAFETY: see the impl.
        unsafe {
            let mask = _mm256_set1_epi8(15);
            let mut out = [_mm256_setzero_si256(); 16];
            for j in 0..4 {
                for side in 0..2 {
                    let both = load32(&from[j], side);
                    out[8 * side + 2 * j] = _mm256_and_si256(both, mask);
                    out[8 * side + 2 * j + 1] =
                        _mm256_and_si256(_mm256_srli_epi16::<4>(both), mask);
                }
            }
            out
        }
    }
    #[inline(always)]
    fn unpack_fives(from: &[Line; 5]) -> Self::Weights {
        let [nibbles @ .., fifths] = from;
        let mut out = Self::unpack_nibbles(nibbles);
        for side in 0..2 {
            // SAFETY: see the impl.
            unsafe {
                let bits = load32(fifths, side);
                let mask = _mm256_set1_epi8(16);
                let out = &mut out[8 * side..8 * side + 8];
                // Bits cross bytes in these shifts, but none of those that the mask keeps.
                out[0] = or_masked(_mm256_slli_epi16::<4>(bits), mask, out[0]);
                out[1] = or_masked(_mm256_slli_epi16::<3>(bits), mask, out[1]);
                out[2] = or_masked(_mm256_slli_epi16::<2>(bits), mask, out[2]);
                out[3] = or_masked(_mm256_slli_epi16::<1>(bits), mask, out[3]);
                out[4] = or_masked(bits, mask, out[4]);
                out[5] = or_masked(_mm256_srli_epi16::<1>(bits), mask, out[5]);
                out[6] = or_masked(_mm256_srli_epi16::<2>(bits), mask, out[6]);
                out[7] = or_masked(_mm256_srli_epi16::<3>(bits), mask, out[7]);
            }
        }
        out
    }
    #[inline(always)]
    fn unpack_sixes(from: &[Line; 6]) -> Self::Weights {
        let [nibbles @ .., low, high] = from;
        let mut out = Self::unpack_nibbles(nibbles);
        for (part, side) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            // SAFETY: see the impl.
            unsafe {
                let bits = load32(if part == 0 { low } else { high }, side);
                let mask = _mm256_set1_epi8(48);
                let out = &mut out[8 * side + 4 * part..8 * side + 4 * part + 4];
                out[0] = or_masked(_mm256_slli_epi16::<4>(bits), mask, out[0]);
                out[1] = or_masked(_mm256_slli_epi16::<2>(bits), mask, out[1]);
                out[2] = or_masked(bits, mask, out[2]);
                out[3] = or_masked(_mm256_srli_epi16::<2>(bits), mask, out[3]);
            }
        }
        out
    }
    #[inline(always)]
    fn unpack_octets(from: &[Line; 8]) -> Self::Weights {
        // SAFETY: see the impl.
        unsafe {
            let offset = _mm256_set1_epi8(-128);
            let mut out = [_mm256_setzero_si256(); 16];
            for j in 0..8 {
                for side in 0..2 {
                    let stored = load32(&from[j], side);
                    out[8 * side + j] = _mm256_xor_si256(stored, offset);
                }
            }
            out
        }
    }
    #[inline(always)]
    fn dot_nibbles(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        let (low, high) = weights.split_at(8);
        Avx2(dot_small_half::<8>(low, (x, 0), start), dot_small_half::<8>(high, (x, 0), start))
    }
    #[inline(always)]
    fn dot_fives(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        let (low, high) = weights.split_at(8);
        Avx2(dot_small_half::<4>(low, (x, 0), start), dot_small_half::<4>(high, (x, 0), start))
    }
    #[inline(always)]
    fn dot_six_halves(weights: &Self::Weights, x: &[i8; 32], starts: [i32; 2]) -> [Self; 2] {
        [six_half(weights, x, 0, starts[0]), six_half(weights, x, 4, starts[1])]
    }
    #[inline(always)]
    fn dot_octets(weights: &Self::Weights, x: &[i8; 32], _start: i32) -> Self {
        let (low, high) = weights.split_at(8);
        Avx2(dot_octets_half(low, x), dot_octets_half(high, x))
    }
}
