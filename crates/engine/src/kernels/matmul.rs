//! Products of quantised weights and quantised activations.
//!
//! For: every linear layer, one row or many (a weight tile is read once for all rows).
//! Must never: split or reorder a sum. One lane is one output; its blocks are added in ascending
//! order: `acc = fma(f32(Σ₃₂ q·x), d·s, acc)`, then for formats with a minimum
//! `acc = fma(m, s·Σx, acc)` (docs/spec/numerics.md, rule 1). Rows that are computed together
//! don't touch each other.
//! Relies on: exact block dots of [`Lanes`].

use std::ops::Range;

use super::lanes::{LANES, Lanes, Line};
use super::pack::PackedMatrix;
use super::quantise::Activations;
use super::rows::swiglu;
use super::threads::{Disjoint, Threads};
use super::{Cpu, per_isa};

/// Rows that share one pass over a weight tile: with eight, accumulators, unpacked weights and
/// scales still fit the 32 registers of AVX-512.
const GROUP: usize = 8;

/// What is done with a product before it is stored.
pub(crate) enum Then<'a> {
    /// `out[r] = [w₀·x[r] | w₁·x[r] | …]`, the matrices one below the other.
    Store,
    /// `out[r] = w₀·x[r] + residual[r]`.
    Add(&'a [f32]),
    /// `out[r] = silu(w₀·x[r]) · (w₁·x[r])`; two matrices of one shape.
    SwiGlu,
}

/// One product: weights, activations, and where the result goes.
struct Product<'a> {
    weights: &'a [PackedMatrix],
    x: &'a Activations,
    then: Then<'a>,
    out: Disjoint<'a, f32>,
    out_cols: usize,
}

/// Computes the product of `weights` and `x` into `out`, `[x.rows, out columns]`.
///
/// Blocks until done; `threads` share the output columns out.
pub(crate) fn product(
    (cpu, threads): (Cpu, &Threads),
    weights: &[PackedMatrix],
    x: &Activations,
    then: Then<'_>,
    out: &mut [f32],
) {
    let (tiles, out_cols) = match then {
        Then::Store => {
            (weights.iter().map(PackedMatrix::tiles).sum(), weights.iter().map(|w| w.rows).sum())
        }
        Then::Add(_) | Then::SwiGlu => (weights[0].tiles(), weights[0].rows),
    };
    assert_eq!(out.len(), x.rows * out_cols, "a product's output has rows × columns");
    assert!(weights.iter().all(|w| w.cols == x.cols), "a product's inner sizes agree");
    let job = Product { weights, x, then, out: Disjoint::new(out), out_cols };
    threads.run_ranges(tiles, &|tiles| product_tiles(cpu, &job, tiles));
}

per_isa! {
    /// The output columns of `tiles`, for all rows. Calls must have disjoint `tiles`.
    fn product_tiles(job: &Product<'_>, tiles: Range<usize>) = product_tiles_body
}

#[inline(always)]
fn product_tiles_body<V: Lanes>(job: &Product<'_>, tiles: Range<usize>) {
    for tile in tiles {
        let (part, tile, first_col) = locate(job, tile);
        let cols = first_col..first_col + (job.weights[part].rows - tile * LANES).min(LANES);
        let mut row = 0;
        while row < job.x.rows {
            let rows = row..(row + GROUP).min(job.x.rows);
            let mut dots = [V::splat(0.0); GROUP];
            dot_tile::<V>(&job.weights[part], tile, job.x, rows.clone(), &mut dots);
            if let Then::SwiGlu = job.then {
                let mut up = [V::splat(0.0); GROUP];
                dot_tile::<V>(&job.weights[1], tile, job.x, rows.clone(), &mut up);
                for (gate, up) in dots.iter_mut().zip(up) {
                    *gate = swiglu(*gate, up);
                }
            }
            store::<V>(job, rows.clone(), cols.clone(), &dots);
            row = rows.end;
        }
    }
}

/// Matrix, tile within it and first output column of the `tile`-th tile of a product.
#[inline(always)]
fn locate(job: &Product<'_>, tile: usize) -> (usize, usize, usize) {
    let (mut part, mut tile, mut col) = (0, tile, 0);
    while tile >= job.weights[part].tiles() {
        tile -= job.weights[part].tiles();
        col += job.weights[part].rows;
        part += 1;
    }
    (part, tile, col + tile * LANES)
}

#[inline(always)]
fn store<V: Lanes>(job: &Product<'_>, rows: Range<usize>, cols: Range<usize>, dots: &[V; GROUP]) {
    for (row, dot) in rows.zip(dots) {
        let mut lanes = [0.0; LANES];
        dot.store(&mut lanes);
        let at = row * job.out_cols + cols.start;
        if let Then::Add(residual) = job.then {
            for (lane, residual) in lanes.iter_mut().zip(&residual[at..at + cols.len()]) {
                *lane += residual;
            }
        }
        // SAFETY: these columns belong to this tile alone, and tiles are disjoint.
        let out = unsafe { job.out.part(at, cols.len()) };
        out.copy_from_slice(&lanes[..cols.len()]);
    }
}

/// `dots[i] = weights[tile]·x[rows.start + i]`, choosing the form by format and row count.
#[inline(always)]
fn dot_tile<V: Lanes>(
    weights: &PackedMatrix,
    tile: usize,
    x: &Activations,
    rows: Range<usize>,
    dots: &mut [V; GROUP],
) {
    let tile = Tile { weights, tile };
    match (weights.format.is_octet(), weights.format.has_minimum()) {
        (false, false) => dot_rows::<V, false, false>(tile, x, rows, dots),
        (false, true) => dot_rows::<V, false, true>(tile, x, rows, dots),
        (true, false) => dot_rows::<V, true, false>(tile, x, rows, dots),
        (true, true) => dot_rows::<V, true, true>(tile, x, rows, dots),
    }
}

#[derive(Clone, Copy)]
struct Tile<'a> {
    weights: &'a PackedMatrix,
    tile: usize,
}

#[inline(always)]
fn dot_rows<V: Lanes, const OCTET: bool, const MIN: bool>(
    tile: Tile<'_>,
    x: &Activations,
    rows: Range<usize>,
    dots: &mut [V; GROUP],
) {
    let first = rows.start;
    match rows.len() {
        1 => dot_group::<V, OCTET, MIN, 1>(tile, x, first, dots),
        2 => dot_group::<V, OCTET, MIN, 2>(tile, x, first, dots),
        3 => dot_group::<V, OCTET, MIN, 3>(tile, x, first, dots),
        4 => dot_group::<V, OCTET, MIN, 4>(tile, x, first, dots),
        8 => dot_group::<V, OCTET, MIN, 8>(tile, x, first, dots),
        n => {
            // Rare remainders: four and the rest, so that fewer forms are compiled.
            let mut rest = [V::splat(0.0); GROUP];
            dot_group::<V, OCTET, MIN, 4>(tile, x, first, dots);
            let tail = first + 4..first + n;
            for (i, row) in tail.enumerate() {
                dot_group::<V, OCTET, MIN, 1>(tile, x, row, &mut rest);
                dots[4 + i] = rest[0];
            }
        }
    }
}

/// The definition of a product, for `M` rows at once.
#[inline(always)]
fn dot_group<V: Lanes, const OCTET: bool, const MIN: bool, const M: usize>(
    tile: Tile<'_>,
    x: &Activations,
    first_row: usize,
    dots: &mut [V; GROUP],
) {
    let (lines, scales) = tile.weights.tile(tile.tile);
    let blocks = tile.weights.blocks();
    let rows: [_; M] = std::array::from_fn(|r| {
        let (q, scales) = x.row(first_row + r);
        (&q[..blocks], &scales[..blocks])
    });
    let scales_of = if MIN { 2 * LANES } else { LANES };
    let mut acc = [V::splat(0.0); M];
    for b in 0..blocks {
        let weights = unpack::<V, OCTET>(lines, b);
        let d = V::load_f16(half_lanes(scales, b * scales_of));
        let m = half_lanes(scales, b * scales_of + if MIN { LANES } else { 0 });
        for (acc, (q, scales)) in acc.iter_mut().zip(&rows) {
            let (q, s) = (&q[b], scales[b]);
            let dot = if OCTET {
                V::dot_octets(&weights, q, s.sum)
            } else {
                V::dot_nibbles(&weights, q, if MIN { 0 } else { -8 * s.sum })
            };
            *acc = dot.fma(d.mul(V::splat(s.scale)), *acc);
            if MIN {
                *acc = V::load_f16(m).fma(V::splat(s.scaled_sum), *acc);
            }
        }
    }
    dots[..M].copy_from_slice(&acc);
}

#[inline(always)]
fn unpack<V: Lanes, const OCTET: bool>(lines: &[Line], block: usize) -> V::Weights {
    if OCTET {
        V::unpack_octets(&lines.as_chunks::<8>().0[block])
    } else {
        V::unpack_nibbles(&lines.as_chunks::<4>().0[block])
    }
}

#[inline(always)]
fn half_lanes(scales: &[u16], at: usize) -> &[u16; LANES] {
    &scales.as_chunks::<LANES>().0[at / LANES]
}
