//! What a key's or value's number is stored as in the cache: half or single precision.
//!
//! For: the write into the cache and the loops that read it, which are the same for both.
//! Must never: round in another way than numerics.md says (rule 5).
//! Relies on: `lanes.rs` for the conversion of 16 halves at once.

use crate::kernels::lanes::{LANES, Lanes};

/// A number of the cache.
pub(crate) trait Cell: Copy + Send + Sync {
    /// `x` rounded to nearest even, and whether it was out of range and held to its end.
    fn of(x: f32) -> (Self, bool);
    /// 16 of them.
    fn load<V: Lanes>(from: &[Self; LANES]) -> V;
    /// All of a pool's.
    fn cells(of: &[Self]) -> Cells<'_>;
}

/// The cache's numbers, in one form or the other.
#[derive(Clone, Copy)]
pub(crate) enum Cells<'a> {
    /// Half precision, as its bits.
    Half(&'a [u16]),
    /// Single precision.
    Single(&'a [f32]),
}

/// Largest finite half-precision value; larger keys and values are held to it and counted.
const F16_MAX: f32 = 65504.0;

impl Cell for u16 {
    #[inline(always)]
    fn of(x: f32) -> (u16, bool) {
        (half::f16::from_f32(x.clamp(-F16_MAX, F16_MAX)).to_bits(), x.abs() > F16_MAX)
    }
    #[inline(always)]
    fn load<V: Lanes>(from: &[u16; LANES]) -> V {
        V::load_f16(from)
    }
    fn cells(of: &[u16]) -> Cells<'_> {
        Cells::Half(of)
    }
}

impl Cell for f32 {
    #[inline(always)]
    fn of(x: f32) -> (f32, bool) {
        (x, false)
    }
    #[inline(always)]
    fn load<V: Lanes>(from: &[f32; LANES]) -> V {
        V::load(from)
    }
    fn cells(of: &[f32]) -> Cells<'_> {
        Cells::Single(of)
    }
}
