//! Sixteen lanes in one 512-bit register; block dots by VNNI.
//!
//! For: processors with AVX-512 F/BW/VL/DQ and VNNI.
//! Must never: be used outside a function that enables those features (`per_isa!`).
//! Relies on: `vpdpbusd` (u8 × i8, four to an i32) being exact and not saturating.
//!
//! The methods are inlined into such a function before code is made for them; that is why
//! the intrinsics can be called here and still become single instructions.

use std::arch::x86_64::*;

use super::lanes::{LANES, Lanes, Line};

/// See the module.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

/// Loads 64 bytes.
#[inline(always)]
fn load64(from: &Line) -> __m512i {
    // SAFETY: 64 bytes are readable and aligned to 64, `per_isa!` proved AVX-512.
    unsafe { _mm512_load_si512(from.0.as_ptr().cast()) }
}

/// Bytes 4j..4j+4 of `x` in every lane.
#[inline(always)]
fn group(x: &[i8; 32], j: usize) -> __m512i {
    let four = [x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]].map(|b| b as u8);
    // SAFETY: `per_isa!` proved AVX-512.
    unsafe { _mm512_set1_epi32(i32::from_ne_bytes(four)) }
}

/// `Σ w·x + start` in two accumulators, so that the dependent chain is half as long.
#[inline(always)]
fn dot(weights: &[__m512i; 8], x: &[i8; 32], start: i32) -> Avx512 {
    // SAFETY: `per_isa!` proved AVX-512 VNNI; all operands are registers.
    unsafe {
        let mut even = _mm512_set1_epi32(start);
        let mut odd = _mm512_setzero_si512();
        for j in 0..4 {
            even = _mm512_dpbusd_epi32(even, weights[2 * j], group(x, 2 * j));
            odd = _mm512_dpbusd_epi32(odd, weights[2 * j + 1], group(x, 2 * j + 1));
        }
        Avx512(_mm512_cvtepi32_ps(_mm512_add_epi32(even, odd)))
    }
}

/// `bits & mask | into`, in one instruction.
#[inline(always)]
fn or_masked(bits: __m512i, mask: __m512i, into: __m512i) -> __m512i {
    // SAFETY: `per_isa!` proved AVX-512; all operands are registers.
    unsafe { _mm512_ternarylogic_epi32::<0b1110_1010>(bits, mask, into) }
}

// SAFETY of every block below: `per_isa!` proved AVX-512 F/BW/VL/DQ/VNNI; memory operands are
// references to arrays of the width that is read or written.
impl Lanes for Avx512 {
    type Weights = [__m512i; 8];

    /// Accumulators, unpacked weights and scales of eight rows fit the 32 registers.
    const ROWS_TOGETHER: usize = 8;
    const SUMS: usize = 16;

    #[inline(always)]
    fn fetch(at: *const Line) {
        // SAFETY: a prefetch changes nothing that a program could see, and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32; LANES]) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; LANES]) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn load_f16(from: &[u16; LANES]) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn load_bf16(from: &[u16; LANES]) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.as_ptr().cast()));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits)))
        }
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_add_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_sub_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_mul_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn div(self, b: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_div_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn max(self, b: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_max_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn min(self, b: Self) -> Self {
        // SAFETY: see the impl.
        Avx512(unsafe { _mm512_min_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn where_ge(self, x: Self, limit: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x.0, limit.0);
            Avx512(_mm512_maskz_mov_ps(mask, self.0))
        }
    }
    #[inline(always)]
    fn shift_exponent(self, biased: Self) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(biased.0));
            Avx512(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n)))
        }
    }

    #[inline(always)]
    fn load_u8(from: &[u8; LANES]) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            Avx512(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)))
        }
    }
    #[inline(always)]
    fn load_i8(from: &[u8; LANES]) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let bytes = _mm_loadu_si128(from.as_ptr().cast());
            Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
        }
    }
    #[inline(always)]
    fn unpack_nibbles(from: &[Line; 4]) -> Self::Weights {
        // SAFETY: see the impl.
        unsafe {
            let mask = _mm512_set1_epi8(15);
            let mut out = [_mm512_setzero_si512(); 8];
            for j in 0..4 {
                let both = load64(&from[j]);
                out[2 * j] = _mm512_and_si512(both, mask);
                out[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16::<4>(both), mask);
            }
            out
        }
    }
    #[inline(always)]
    fn unpack_fives(from: &[Line; 5]) -> Self::Weights {
        let [nibbles @ .., fifths] = from;
        let mut out = Self::unpack_nibbles(nibbles);
        // SAFETY: see the impl.
        unsafe {
            let bits = load64(fifths);
            let mask = _mm512_set1_epi8(16);
            // Bits cross bytes in these shifts, but none of those that the mask keeps.
            out[0] = or_masked(_mm512_slli_epi16::<4>(bits), mask, out[0]);
            out[1] = or_masked(_mm512_slli_epi16::<3>(bits), mask, out[1]);
            out[2] = or_masked(_mm512_slli_epi16::<2>(bits), mask, out[2]);
            out[3] = or_masked(_mm512_slli_epi16::<1>(bits), mask, out[3]);
            out[4] = or_masked(bits, mask, out[4]);
            out[5] = or_masked(_mm512_srli_epi16::<1>(bits), mask, out[5]);
            out[6] = or_masked(_mm512_srli_epi16::<2>(bits), mask, out[6]);
            out[7] = or_masked(_mm512_srli_epi16::<3>(bits), mask, out[7]);
        }
        out
    }
    #[inline(always)]
    fn unpack_sixes(from: &[Line; 6]) -> Self::Weights {
        let [nibbles @ .., low, high] = from;
        let mut out = Self::unpack_nibbles(nibbles);
        for (half, line) in [low, high].into_iter().enumerate() {
            // SAFETY: see the impl.
            unsafe {
                let bits = load64(line);
                let mask = _mm512_set1_epi8(48);
                let out = &mut out[4 * half..4 * half + 4];
                out[0] = or_masked(_mm512_slli_epi16::<4>(bits), mask, out[0]);
                out[1] = or_masked(_mm512_slli_epi16::<2>(bits), mask, out[1]);
                out[2] = or_masked(bits, mask, out[2]);
                out[3] = or_masked(_mm512_srli_epi16::<2>(bits), mask, out[3]);
            }
        }
        out
    }
    #[inline(always)]
    fn unpack_octets(from: &[Line; 8]) -> Self::Weights {
        // SAFETY: see the impl.
        let mut out = [unsafe { _mm512_setzero_si512() }; 8];
        for j in 0..8 {
            out[j] = load64(&from[j]);
        }
        out
    }
    #[inline(always)]
    fn dot_nibbles(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        dot(weights, x, start)
    }
    #[inline(always)]
    fn dot_fives(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        dot(weights, x, start)
    }
    #[inline(always)]
    fn dot_six_halves(weights: &Self::Weights, x: &[i8; 32], starts: [i32; 2]) -> [Self; 2] {
        // SAFETY: see the impl.
        unsafe {
            let mut low = _mm512_set1_epi32(starts[0]);
            let mut high = _mm512_set1_epi32(starts[1]);
            for j in 0..4 {
                low = _mm512_dpbusd_epi32(low, weights[j], group(x, j));
                high = _mm512_dpbusd_epi32(high, weights[4 + j], group(x, 4 + j));
            }
            [Avx512(_mm512_cvtepi32_ps(low)), Avx512(_mm512_cvtepi32_ps(high))]
        }
    }
    #[inline(always)]
    fn dot_octets(weights: &Self::Weights, x: &[i8; 32], start: i32) -> Self {
        dot(weights, x, start)
    }
}
