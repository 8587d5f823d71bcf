//! The same products where the processor has tiles: sixteen rows at a time.
//!
//! For: prompts and many sequences together. What is left over, and float weights, go the way of
//! all others.
//! Must never: round, add or order otherwise than the definition in the parent module: only the
//! exact dots come from elsewhere.
//! Relies on: [`Tiles`] for the dots of a block, and [`Activations`] for sixteen rows side by side.

use std::ops::Range;

use super::{Blocks, Place, Product, Tile, finish, product_rows, scales_of, unpack};
use super::{Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};
use super::{fetch_ahead, fetch_first};
use crate::kernels::blocks::{BLOCK, Format};
use crate::kernels::lanes::Line;
use crate::kernels::pack::TileParts;
use crate::kernels::quantise::Activations;
use crate::kernels::tiles::{Dots, ROWS, TileLanes, TileRows, Tiles};
use crate::kernels::{Cpu, TileUnit};

/// [`super::product_tiles`], by the tile unit that `cpu` has. Calls must have disjoint `tiles`.
pub(super) fn product_tiles(cpu: Cpu, job: &Product<'_>, tiles: Range<usize>) {
    #[cfg(test)]
    use crate::kernels::{Isa, lanes::Scalar, tiles::Portable};
    #[cfg(target_arch = "x86_64")]
    use crate::kernels::{amx::Amx, lanes_avx512::Avx512};

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn avx512<T: Tiles>(job: &Product<'_>, tiles: Range<usize>) {
        // SAFETY: the caller promises that the unit is there.
        unsafe { product_tiles_body::<Avx512, T>(job, tiles) }
    }
    match (cpu.tile_unit, cpu.isa()) {
        // SAFETY: a `Cpu` with this unit exists only if detection found it and AVX-512.
        #[cfg(target_arch = "x86_64")]
        (Some(TileUnit::Amx), _) => unsafe { avx512::<Amx>(job, tiles) },
        // SAFETY: a `Cpu` exists only if detection found its features; the unit is always there.
        #[cfg(all(test, target_arch = "x86_64"))]
        (Some(TileUnit::Portable), Isa::Avx512Vnni) => unsafe { avx512::<Portable>(job, tiles) },
        // SAFETY: the unit is always there.
        #[cfg(test)]
        (Some(TileUnit::Portable), _) => unsafe {
            product_tiles_body::<Scalar, Portable>(job, tiles);
        },
        _ => super::product_tiles(cpu, job, tiles),
    }
}

/// # Safety
/// The processor has the unit.
#[inline(always)]
unsafe fn product_tiles_body<V: TileLanes, T: Tiles>(job: &Product<'_>, tiles: Range<usize>) {
    // SAFETY: the caller's promise.
    let unit = unsafe { T::set_up() };
    fetch_first::<V>(job, &tiles);
    for tile in tiles {
        let place = Place::of(job, tile);
        let in_tiles = match place.matrices().any(|tile| tile.weights.format.is_float()) {
            true => 0,
            false => job.x.rows_in_tiles(),
        };
        let mut row = 0;
        while row < in_tiles {
            let rows = row..in_tiles.min(row + ROWS);
            let mut dots = [[V::splat(0.0); ROWS]; 2];
            for (tile, dots) in place.matrices().zip(&mut dots) {
                dot_sixteen::<V, T>(&unit, tile, job.x, row, dots);
            }
            finish::<V, ROWS>(job, &place, rows.clone(), dots);
            row = rows.end;
        }
        product_rows::<V>(job, &place, in_tiles..job.x.rows);
    }
}

/// `dots[i] = tile·x[row + i]`, choosing the form by format.
#[inline(always)]
fn dot_sixteen<V: TileLanes, T: Tiles>(
    unit: &T,
    tile: Tile<'_>,
    x: &Activations,
    row: usize,
    dots: &mut [V; ROWS],
) {
    let x = x.tile_rows(row);
    match tile.weights.format {
        Format::Q4_0 => dot_blocks::<V, T, Q4_0>(unit, tile, x, dots),
        Format::Q4_1 => dot_blocks::<V, T, Q4_1>(unit, tile, x, dots),
        Format::Q5_0 => dot_blocks::<V, T, Q5_0>(unit, tile, x, dots),
        Format::Q5_1 => dot_blocks::<V, T, Q5_1>(unit, tile, x, dots),
        Format::Q8_0 => dot_blocks::<V, T, Q8_0>(unit, tile, x, dots),
        Format::Q4K => dot_blocks::<V, T, Q4K>(unit, tile, x, dots),
        Format::Q5K => dot_blocks::<V, T, Q5K>(unit, tile, x, dots),
        Format::Q6K => dot_blocks::<V, T, Q6K>(unit, tile, x, dots),
        // The caller keeps them away.
        Format::F16 | Format::Bf16 | Format::F32 => {}
    }
}

/// The parent's definition with the dots of a block by `unit`: it computes a block's while the
/// lanes add those of the block before.
///
/// Whatever may panic, by an index, comes first in the loop: a branch between two blocks' sums
/// would have the compiler move them to memory and back.
#[inline(always)]
fn dot_blocks<V: TileLanes, T: Tiles, F: Blocks>(
    unit: &T,
    tile: Tile<'_>,
    x: &[TileRows],
    dots: &mut [V; ROWS],
) {
    let parts = tile.weights.tile(tile.tile);
    let x = &x[..tile.weights.blocks()];
    let [mut even, mut odd] = [[Dots::ZERO; 2]; 2];
    let mut weights = [Weights::ZERO; 2];
    let mut acc = [V::splat(0.0); ROWS];
    take::<V, F>(parts, 0, &mut weights[0]);
    begin::<T, F, 0>(unit, &x[0], &weights[0], &mut even);
    for b in (1..x.len()).step_by(2) {
        // The last one once more rather than none; nobody reads its dots then.
        let next = (b + 1).min(x.len() - 1);
        let (before, this, after) = (&x[b - 1], &x[b], &x[next]);
        let scales = (scales_of::<V, F>(parts, b - 1), scales_of::<V, F>(parts, b));
        take::<V, F>(parts, b, &mut weights[1]);
        take::<V, F>(parts, next, &mut weights[0]);
        begin::<T, F, 1>(unit, this, &weights[1], &mut odd);
        add::<V, F>(before, scales.0, &even, &mut acc);
        begin::<T, F, 0>(unit, after, &weights[0], &mut even);
        add::<V, F>(this, scales.1, &odd, &mut acc);
    }
    if x.len() % 2 == 1 {
        let last = x.len() - 1;
        add::<V, F>(&x[last], scales_of::<V, F>(parts, last), &even, &mut acc);
    }
    *dots = acc;
}

/// The weights of a block as a unit reads them: all of them; or, where each half has a scale, the
/// two halves, each filled up with zeros to a block's length.
struct Weights {
    all_or_low: [Line; BLOCK / 4],
    high: [Line; BLOCK / 4],
}

impl Weights {
    const ZERO: Weights =
        Weights { all_or_low: [Line([0; 64]); BLOCK / 4], high: [Line([0; 64]); BLOCK / 4] };
}

/// Unpacks a block, and asks for a later one.
#[inline(always)]
fn take<V: TileLanes, F: Blocks>(parts: TileParts<'_>, b: usize, to: &mut Weights) {
    fetch_ahead::<V, F>(parts, b);
    let lines = V::signed(&unpack::<V, F>(parts.lines, b), F::ZERO as u8);
    if F::BITS == 6 {
        let half = BLOCK / 8;
        to.all_or_low[..half].copy_from_slice(&lines[..half]);
        to.high[half..].copy_from_slice(&lines[half..]);
    } else {
        to.all_or_low = lines;
    }
}

/// Has `unit` compute the dots of a block, or of its two halves.
#[inline(always)]
fn begin<T: Tiles, F: Blocks, const SET: usize>(
    unit: &T,
    x: &TileRows,
    weights: &Weights,
    dots: &mut [Dots; 2],
) {
    if F::BITS == 6 {
        unit.dots::<0>(&x.q, &weights.all_or_low, &mut dots[0]);
        unit.dots::<1>(&x.q, &weights.high, &mut dots[1]);
    } else {
        unit.dots::<SET>(&x.q, &weights.all_or_low, &mut dots[0]);
    }
}

/// Adds a block whose dots are there.
#[inline(always)]
fn add<V: TileLanes, F: Blocks>(
    x: &TileRows,
    (d, second): (V, V),
    dots: &[Dots; 2],
    acc: &mut [V; ROWS],
) {
    unrolled!(ROWS, |R| {
        let scale = V::splat(x.scale[R]);
        acc[R] = V::load_i32(&dots[0].0[R]).fma(d.mul(scale), acc[R]);
        if F::BITS == 6 {
            acc[R] = V::load_i32(&dots[1].0[R]).fma(second.mul(scale), acc[R]);
        }
        if F::MINIMUM {
            acc[R] = second.fma(V::splat(x.scaled_sum[R]), acc[R]);
        }
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::ModelConfig;
    use crate::files::{ModelFiles, ModelKind};
    use crate::kernels::threads::Crew;
    use crate::kernels::{Isa, golden};
    use crate::kv::KvPool;
    use crate::model::{Batch, Logits, Model, Segment};
    use crate::tokenizer::Tokenizer;

    /// What a machine with tiles computes, but for the tile instructions themselves.
    #[test]
    fn a_models_states_and_logits_have_the_golden_bits() {
        let path = std::env::var_os("TALLY_TEST_MODEL").expect("TALLY_TEST_MODEL names the model");
        let files = ModelFiles::open(Path::new(&path)).unwrap();
        let ModelKind::Gguf(gguf) = files.kind() else { panic!("the test model is a GGUF file") };
        let tokenizer = Tokenizer::from_gguf(gguf).unwrap();
        let ids = &tokenizer.encode_plain(golden::TEXT).unwrap()[..36];
        let config = ModelConfig::from_gguf(gguf).unwrap();
        let cpu = Cpu::new(Isa::Avx512Vnni).or(Cpu::new(Isa::Scalar)).unwrap();
        let crew = Crew { count: 2, is_pinned: false };
        let mut model = Model::on_cpu(&files, crew, cpu.with_portable_tiles()).unwrap();
        // All in tiles but four; then some in part of a tile.
        for chunk in [36, 25] {
            let mut kv = KvPool::new(&config, 16 << 20);
            let table = kv.allocate(ids.len()).unwrap();
            let (mut states, mut logits) = (Vec::new(), Vec::new());
            for (i, tokens) in ids.chunks(chunk).enumerate() {
                let segment =
                    Segment { tokens, start: i * chunk, table: &table, logits: Logits::All };
                let out = model.forward(&Batch { segments: vec![segment] }, &mut kv).unwrap();
                states.extend(out.states.iter().map(|x| x.to_bits()));
                logits.extend(out.logits.iter().map(|x| x.to_bits()));
            }
            assert_eq!(golden::digest(states), golden::GOLDEN_STATES, "chunks of {chunk}");
            assert_eq!(golden::digest(logits), golden::GOLDEN_LOGITS, "chunks of {chunk}");
        }
    }
}
