//! Sixteen rows and sixteen outputs at a time: what a tile unit computes, and how it reads.
//!
//! For: products of many rows, where one row after the other would unpack the same weights anew.
//! Must never: give a dot that isn't exact.
//! Relies on: nothing but integers. [`Portable`] is the definition; `amx.rs` is what runs.

use super::blocks::BLOCK;
use super::lanes::{LANES, Lanes, Line};

/// Rows of a tile.
pub(crate) const ROWS: usize = 16;

/// A group of fewer rows than this isn't worth a tile, which takes as long for one row as for
/// sixteen. By the count of vector instructions it would be from five rows on; up to eight are
/// left to lanes all the same, since with so few what counts is how fast weights are read.
const ROWS_MIN: usize = 9;

/// How many of `rows` rows are computed in tiles: all but a small rest.
pub(crate) fn rows_in_tiles(rows: usize) -> usize {
    let rest = rows % ROWS;
    if rest < ROWS_MIN { rows - rest } else { rows }
}

/// One block of sixteen rows of activations, side by side: rows of a matrix are often a power of
/// two of bytes apart, and sixteen such places don't fit the nearest cache together.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct TileRows {
    pub(crate) q: [[i8; BLOCK]; ROWS],
    pub(crate) scale: [f32; ROWS],
    pub(crate) scaled_sum: [f32; ROWS],
}

impl TileRows {
    /// Sets one row: its values, their scale, and the scale times their sum.
    pub(crate) fn set(&mut self, row: usize, q: &[i8; BLOCK], (scale, scaled_sum): (f32, f32)) {
        self.q[row] = *q;
        self.scale[row] = scale;
        self.scaled_sum[row] = scaled_sum;
    }
}

/// `dots[row][lane]`.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Dots(pub(crate) [[i32; LANES]; ROWS]);

impl Dots {
    pub(crate) const ZERO: Dots = Dots([[0; LANES]; ROWS]);
}

/// A unit that computes tiles, ready on the calling thread until it is dropped.
pub(crate) trait Tiles {
    /// Makes the calling thread's unit ready.
    ///
    /// # Safety
    /// The processor has it, and the process may use it.
    unsafe fn set_up() -> Self;

    /// `to[row][lane] = Σ x[row][k]·w[lane][k]` over a block, exact. Byte `4 lane + i` of line j
    /// is w of k = 4j + i, signed. Calls with another `SET` (0 or 1) don't wait for each other.
    fn dots<const SET: usize>(
        &self,
        x: &[[i8; BLOCK]; ROWS],
        weights: &[Line; BLOCK / 4],
        to: &mut Dots,
    );
}

/// What tiles need of lanes.
pub(crate) trait TileLanes: Lanes {
    /// Lanes from whole numbers; exact below 2²⁴.
    fn load_i32(from: &[i32; LANES]) -> Self;
    /// The weights less `zero` as [`Tiles::dots`] reads them. They fit a signed byte.
    fn signed(weights: &Self::Weights, zero: u8) -> [Line; BLOCK / 4];
}

/// The definition of [`Tiles`].
pub(crate) struct Portable;

impl Tiles for Portable {
    unsafe fn set_up() -> Self {
        Portable
    }

    fn dots<const SET: usize>(
        &self,
        x: &[[i8; BLOCK]; ROWS],
        weights: &[Line; BLOCK / 4],
        to: &mut Dots,
    ) {
        for (x, dots) in x.iter().zip(&mut to.0) {
            *dots = [0; LANES];
            for (x, line) in x.as_chunks::<4>().0.iter().zip(weights) {
                for (dot, w) in dots.iter_mut().zip(line.0.as_chunks::<4>().0) {
                    *dot += (0..4).map(|i| i32::from(x[i]) * i32::from(w[i] as i8)).sum::<i32>();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_rest_is_left_to_lanes() {
        let all = [1, 8, 9, 16, 17, 24, 25, 64, 70].map(rows_in_tiles);
        assert_eq!(all, [0, 0, 9, 16, 16, 16, 25, 64, 64]);
    }
}
