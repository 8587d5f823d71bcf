//! Products of quantised weights and quantised activations.
//!
//! For: every linear layer, one row or many (a weight tile is read once for all rows).
//! Must never: split or reorder a sum. One lane is one output; its blocks are added in ascending
//! order: `acc = fma(f32(Σ₃₂ q·x), d·s, acc)`, then for formats with a minimum
//! `acc = fma(m, s·Σx, acc)`; where each 16 weights have a scale, two steps of 16
//! (docs/spec/numerics.md, rule 1). Float weights: `acc = fma(w, x, acc)`, k ascending. Rows that
//! are computed together don't touch each other.
//! Relies on: exact block dots of [`Lanes`], and scales that are exact in f32.

use std::ops::Range;

use super::blocks::Format;
use super::lanes::{LANES, Lanes, Line};
use super::pack::{PackedMatrix, TileParts};
use super::quantise::Activations;
use super::rows::swiglu;
use super::threads::{Disjoint, Threads};
use super::{Cpu, per_isa};

/// The most rows that share one pass over a weight tile ([`Lanes::ROWS_TOGETHER`]).
const GROUP: usize = 8;

/// The body once for each `r` below `$count` (a constant up to sixteen), with `r` a literal: a loop
/// of this size isn't unrolled by the compiler, and then the accumulators leave the registers.
macro_rules! unrolled {
    ($count:expr, |$r:ident| $body:block) => {
        unrolled!(@ $count, $r, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $count:expr, $r:ident, $body:block, $($n:literal)*) => {
        $(if $n < $count { const $r: usize = $n; $body })*
    };
}

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
mod tiles;

/// What is done with a product before it is stored.
#[derive(Clone, Copy)]
pub(crate) enum Then {
    /// `out[r] = [w₀·x[r] | w₁·x[r] | …]`, the matrices one below the other.
    Store,
    /// `out[r] = w₀·x[r] + out[r]`.
    Add,
    /// `out[r] = silu(w₀·x[r]) · (w₁·x[r])`; two matrices of one shape.
    SwiGlu,
}

/// One product: weights, activations, and where the result goes.
struct Product<'a> {
    weights: &'a [PackedMatrix],
    x: &'a Activations,
    then: Then,
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
    then: Then,
    out: &mut [f32],
) {
    let (tiles, out_cols) = match then {
        Then::Store => {
            (weights.iter().map(PackedMatrix::tiles).sum(), weights.iter().map(|w| w.rows).sum())
        }
        Then::Add | Then::SwiGlu => (weights[0].tiles(), weights[0].rows),
    };
    assert_eq!(out.len(), x.rows * out_cols, "a product's output has rows × columns");
    assert!(weights.iter().all(|w| w.cols == x.cols), "a product's inner sizes agree");
    let job = Product { weights, x, then, out: Disjoint::new(out), out_cols };
    if cpu.has_tiles() {
        threads.run_ranges(tiles, &|tiles| tiles::product_tiles(cpu, &job, tiles));
    } else {
        threads.run_ranges(tiles, &|tiles| product_tiles(cpu, &job, tiles));
    }
}

per_isa! {
    /// The output columns of `tiles`, for all rows. Calls must have disjoint `tiles`.
    fn product_tiles(job: &Product<'_>, tiles: Range<usize>) = product_tiles_body
}

#[inline(always)]
fn product_tiles_body<V: Lanes>(job: &Product<'_>, tiles: Range<usize>) {
    fetch_first::<V>(job, &tiles);
    for tile in tiles {
        product_rows::<V>(job, &Place::of(job, tile), 0..job.x.rows);
    }
}

/// The output columns at `place`, for some rows.
#[inline(always)]
fn product_rows<V: Lanes>(job: &Product<'_>, place: &Place<'_>, rows: Range<usize>) {
    let mut row = rows.start;
    while row < rows.end {
        let rows = row..row + group::<V>(rows.end - row);
        let mut dots = [[V::splat(0.0); GROUP]; 2];
        for (tile, dots) in place.matrices().zip(&mut dots) {
            dot_tile::<V>(tile, job.x, rows.clone(), dots);
        }
        finish::<V, GROUP>(job, place, rows.clone(), dots);
        row = rows.end;
    }
}

/// Rows to compute together when `left` are left: the largest power of two that fits the
/// registers.
#[inline(always)]
fn group<V: Lanes>(left: usize) -> usize {
    let mut size = V::ROWS_TOGETHER;
    while size > left {
        size /= 2;
    }
    size
}

/// Where the `tile`-th tile of a product is.
struct Place<'a> {
    /// Of one matrix, or of the two whose results become one.
    tiles: [Tile<'a>; 2],
    count: usize,
    /// The output's columns that it gives.
    cols: Range<usize>,
}

impl<'a> Place<'a> {
    #[inline(always)]
    fn of(job: &Product<'a>, tile: usize) -> Place<'a> {
        let (mut part, mut tile, mut col) = (0, tile, 0);
        while tile >= job.weights[part].tiles() {
            tile -= job.weights[part].tiles();
            col += job.weights[part].rows;
            part += 1;
        }
        let count = if let Then::SwiGlu = job.then { 2 } else { 1 };
        let first = Tile { weights: &job.weights[part], tile };
        let tiles = [first, Tile { weights: &job.weights[part + count - 1], tile }];
        let col = col + tile * LANES;
        let cols = col..col + (first.weights.rows - tile * LANES).min(LANES);
        Place { tiles, count, cols }
    }

    #[inline(always)]
    fn matrices(&self) -> impl Iterator<Item = Tile<'a>> {
        self.tiles.into_iter().take(self.count)
    }
}

/// Does what is to be done with the dots of each of the place's matrices, and stores the result.
#[inline(always)]
fn finish<V: Lanes, const N: usize>(
    job: &Product<'_>,
    place: &Place<'_>,
    rows: Range<usize>,
    [mut dots, up]: [[V; N]; 2],
) {
    if let Then::SwiGlu = job.then {
        for (gate, up) in dots.iter_mut().zip(up).take(rows.len()) {
            *gate = swiglu(*gate, up);
        }
    }
    for (row, dot) in rows.zip(dots) {
        let at = row * job.out_cols + place.cols.start;
        // SAFETY: these columns belong to this tile alone, and tiles are disjoint.
        let out = unsafe { job.out.part(at, place.cols.len()) };
        if let Ok(out) = <&mut [f32; LANES]>::try_from(&mut *out) {
            match job.then {
                Then::Add => dot.add(V::load(out)).store(out),
                Then::Store | Then::SwiGlu => dot.store(out),
            }
            continue;
        }
        let mut lanes = [0.0; LANES];
        dot.store(&mut lanes);
        if let Then::Add = job.then {
            for (lane, out) in lanes.iter_mut().zip(out.iter()) {
                *lane += out;
            }
        }
        out.copy_from_slice(&lanes[..place.cols.len()]);
    }
}

#[derive(Clone, Copy)]
struct Tile<'a> {
    weights: &'a PackedMatrix,
    tile: usize,
}

/// How a format's weights enter a sum; each form is compiled by itself.
trait Form {
    /// `dots[i] = tile·x[first_row + i]` for `M` rows at once.
    fn dot<V: Lanes, const M: usize>(
        tile: Tile<'_>,
        x: &Activations,
        first_row: usize,
        dots: &mut [V; GROUP],
    );
}

/// A form of quantised blocks.
trait Blocks {
    /// Bits of a weight. With six, each 16 weights have a scale.
    const BITS: usize;
    /// What a stored weight is above its value.
    const ZERO: i32 = 0;
    /// With a minimum.
    const MINIMUM: bool = false;
    /// With scales (and minima) that are products of a half and a whole number.
    const FACTORS: bool = false;
}

macro_rules! forms {
    ($($name:ident { $($option:ident = $value:literal),* })*) => {$(
        struct $name;
        impl Blocks for $name {
            $(const $option: forms!(@ $option) = $value;)*
        }
    )*};
    (@ BITS) => { usize };
    (@ ZERO) => { i32 };
    (@ $option:ident) => { bool };
}
forms! {
    Q4_0 { BITS = 4, ZERO = 8 }
    Q4_1 { BITS = 4, MINIMUM = true }
    Q5_0 { BITS = 5, ZERO = 16 }
    Q5_1 { BITS = 5, MINIMUM = true }
    Q8_0 { BITS = 8, ZERO = 128 }
    Q4K { BITS = 4, MINIMUM = true, FACTORS = true }
    Q5K { BITS = 5, MINIMUM = true, FACTORS = true }
    Q6K { BITS = 6, ZERO = 32, FACTORS = true }
}

/// `dots[i] = tile·x[rows.start + i]`, choosing the form by format and row count.
#[inline(always)]
fn dot_tile<V: Lanes>(tile: Tile<'_>, x: &Activations, rows: Range<usize>, dots: &mut [V; GROUP]) {
    match tile.weights.format {
        Format::Q4_0 => dot_rows::<V, Q4_0>(tile, x, rows, dots),
        Format::Q4_1 => dot_rows::<V, Q4_1>(tile, x, rows, dots),
        Format::Q5_0 => dot_rows::<V, Q5_0>(tile, x, rows, dots),
        Format::Q5_1 => dot_rows::<V, Q5_1>(tile, x, rows, dots),
        Format::Q8_0 => dot_rows::<V, Q8_0>(tile, x, rows, dots),
        Format::Q4K => dot_rows::<V, Q4K>(tile, x, rows, dots),
        Format::Q5K => dot_rows::<V, Q5K>(tile, x, rows, dots),
        Format::Q6K => dot_rows::<V, Q6K>(tile, x, rows, dots),
        Format::F16 | Format::Bf16 | Format::F32 => dot_rows::<V, Floats>(tile, x, rows, dots),
    }
}

/// Row counts are those of [`group`]; forms that `V` doesn't use aren't compiled.
#[inline(always)]
fn dot_rows<V: Lanes, F: Form>(
    tile: Tile<'_>,
    x: &Activations,
    rows: Range<usize>,
    dots: &mut [V; GROUP],
) {
    let (first, count) = (rows.start, rows.len());
    if V::ROWS_TOGETHER >= 8 && count == 8 {
        F::dot::<V, 8>(tile, x, first, dots);
    } else if V::ROWS_TOGETHER >= 4 && count == 4 {
        F::dot::<V, 4>(tile, x, first, dots);
    } else if V::ROWS_TOGETHER >= 2 && count == 2 {
        F::dot::<V, 2>(tile, x, first, dots);
    } else {
        F::dot::<V, 1>(tile, x, first, dots);
    }
}

/// The definition of a product with quantised weights.
impl<F: Blocks> Form for F {
    #[inline(always)]
    fn dot<V: Lanes, const M: usize>(
        tile: Tile<'_>,
        x: &Activations,
        first_row: usize,
        dots: &mut [V; GROUP],
    ) {
        let parts = tile.weights.tile(tile.tile);
        let blocks = tile.weights.blocks();
        let (mut q, mut s) = ([&[][..]; M], [&[][..]; M]);
        for r in 0..M {
            let row = x.row(first_row + r);
            (q[r], s[r]) = (&row.0[..blocks], &row.1[..blocks]);
        }
        let mut acc = [V::splat(0.0); M];
        for b in 0..blocks {
            // One row of bytes is nothing but reading: there the processor is quick by itself.
            if M > 2 || F::BITS < 8 {
                fetch_ahead::<V, F>(parts, b);
            }
            let weights = unpack::<V, F>(parts.lines, b);
            let (d, second) = scales_of::<V, F>(parts, b);
            unrolled!(M, |R| {
                let (q, s) = (&q[R][b], s[R][b]);
                let scale = V::splat(s.scale);
                if F::BITS == 6 {
                    let sums = [s.low_sum, s.sum - s.low_sum];
                    let [low, high] = V::dot_six_halves(&weights, q, sums.map(|s| -F::ZERO * s));
                    acc[R] = low.fma(d.mul(scale), acc[R]);
                    acc[R] = high.fma(second.mul(scale), acc[R]);
                } else {
                    let start = -F::ZERO * s.sum;
                    let dot = match F::BITS {
                        4 => V::dot_nibbles(&weights, q, start),
                        5 => V::dot_fives(&weights, q, start),
                        _ => V::dot_octets(&weights, q, start),
                    };
                    acc[R] = dot.fma(d.mul(scale), acc[R]);
                }
                if F::MINIMUM {
                    acc[R] = second.fma(V::splat(s.scaled_sum), acc[R]);
                }
            });
        }
        dots[..M].copy_from_slice(&acc);
    }
}

/// The form of weights that are not quantised.
struct Floats;

/// The definition of a product with float weights: `acc = fma(w, x, acc)`, k ascending.
impl Form for Floats {
    #[inline(always)]
    fn dot<V: Lanes, const M: usize>(
        tile: Tile<'_>,
        x: &Activations,
        first_row: usize,
        dots: &mut [V; GROUP],
    ) {
        let parts = tile.weights.tile(tile.tile);
        let (halves, fulls) = (parts.halves.as_chunks::<LANES>().0, parts.fulls.as_chunks().0);
        let format = tile.weights.format;
        let mut rows = [&[][..]; M];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = &x.floats(first_row + r)[..tile.weights.cols];
        }
        let mut acc = [V::splat(0.0); M];
        for k in 0..tile.weights.cols {
            match format {
                Format::F32 => fetch::<V, _>(parts.fulls, k * LANES + AHEAD / 4, 1),
                _ => fetch::<V, _>(parts.halves, k * LANES + AHEAD / 2, 1),
            }
            let weights = match format {
                Format::F32 => V::load(&fulls[k]),
                Format::Bf16 => V::load_bf16(&halves[k]),
                _ => V::load_f16(&halves[k]),
            };
            unrolled!(M, |R| {
                acc[R] = weights.fma(V::splat(rows[R][k]), acc[R]);
            });
        }
        dots[..M].copy_from_slice(&acc);
    }
}

/// Bytes between the weights that are used and those that are asked for. Rows that are computed
/// together keep the processor busy too long for it to look so far ahead by itself: with eight
/// rows a product was 3.4 times slower without. Less than 6 KiB come too late, and more than
/// 12 KiB push the activations out of the nearest cache (measured on an AMD Zen 5).
const AHEAD: usize = 8 << 10;

/// Asks for the first weights of a range of tiles, which nothing before it asked for.
#[inline(always)]
fn fetch_first<V: Lanes>(job: &Product<'_>, tiles: &Range<usize>) {
    if tiles.is_empty() {
        return;
    }
    for Tile { weights, tile } in Place::of(job, tiles.start).matrices() {
        let lines = weights.tile(tile).lines;
        fetch::<V, _>(lines, 0, lines.len().min(AHEAD / 2 / size_of::<Line>()));
    }
}

/// Asks for what a later block needs; mostly of this tile, else of the next.
#[inline(always)]
fn fetch_ahead<V: Lanes, F: Blocks>(parts: TileParts<'_>, block: usize) {
    let later = block + AHEAD / size_of::<Line>() / F::BITS;
    fetch::<V, _>(parts.lines, later * F::BITS, F::BITS);
    if F::FACTORS {
        // Their halves are few: a line or two to eight blocks.
        fetch::<V, _>(parts.factors, later * 2 * LANES, 1);
    } else {
        let each = if F::MINIMUM { 2 * LANES } else { LANES };
        fetch::<V, _>(parts.halves, later * each, 1);
    }
}

/// Asks for `lines` cache lines from the element `at` on, which may lie beyond the end.
#[inline(always)]
fn fetch<V: Lanes, T>(of: &[T], at: usize, lines: usize) {
    for line in 0..lines {
        V::fetch(of.as_ptr().wrapping_add(at).cast::<Line>().wrapping_add(line));
    }
}

/// The scales of a block, and its minima or the scales of its second halves: the scales again
/// where a format has neither.
#[inline(always)]
fn scales_of<V: Lanes, F: Blocks>(parts: TileParts<'_>, block: usize) -> (V, V) {
    let halves = parts.halves.as_chunks::<LANES>().0;
    let (blocks, count) = (if F::FACTORS { 8 } else { 1 }, if F::MINIMUM { 2 } else { 1 });
    let at = block / blocks * count;
    let (d, second) = (V::load_f16(&halves[at]), V::load_f16(&halves[at + count - 1]));
    if !F::FACTORS {
        return (d, second);
    }
    let factors = parts.factors.as_chunks::<LANES>().0;
    let (first, other) = (&factors[2 * block], &factors[2 * block + 1]);
    // Eleven bits times six or seven: exact.
    match F::BITS {
        6 => (d.mul(V::load_i8(first)), d.mul(V::load_i8(other))),
        _ => (d.mul(V::load_u8(first)), second.mul(V::load_u8(other))),
    }
}

#[inline(always)]
fn unpack<V: Lanes, F: Blocks>(lines: &[Line], block: usize) -> V::Weights {
    match F::BITS {
        4 => V::unpack_nibbles(&lines.as_chunks::<4>().0[block]),
        5 => V::unpack_fives(&lines.as_chunks::<5>().0[block]),
        6 => V::unpack_sixes(&lines.as_chunks::<6>().0[block]),
        _ => V::unpack_octets(&lines.as_chunks::<8>().0[block]),
    }
}
