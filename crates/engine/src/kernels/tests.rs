//! Every kernel on every instruction set of this machine: the bits are the scalar form's, and
//! the scalar form's are those of an oracle written from the definitions alone.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::attention::{Cell, Heads, RowPlace, Rows, attend_rows, store_rows};
use super::blocks::{BLOCK, Format};
use super::lanes::{LANES, Lanes, Scalar, exp};
use super::matmul::{Then, product};
use super::memory::Arena;
use super::pack::PackedMatrix;
use super::quantise::Activations;
use super::rows::rms_norm;
use super::threads::Threads;
use super::{Cpu, Isa};
use crate::rope::Pairing;

/// No file of failures: a found seed becomes a named test.
fn config() -> ProptestConfig {
    ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() }
}

/// What this machine can run, and what is around a tile unit with its dots by the definition.
fn cpus() -> Vec<Cpu> {
    let own = || Isa::ALL.into_iter().filter_map(Cpu::new);
    let has_room = |cpu: &Cpu| matches!(cpu.isa(), Isa::Scalar | Isa::Avx512Vnni);
    own().chain(own().filter(has_room).map(Cpu::with_portable_tiles)).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    // One NaN is as good as another: IEEE leaves its payload open.
    values.iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}

/// A small generator for bulk data; proptest gives the seed and the shapes.
struct Bytes(u64);

impl Bytes {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In −1..1.
    fn float(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
    fn floats(&mut self, count: usize, scale: f32) -> Vec<f32> {
        (0..count).map(|_| self.float() * scale).collect()
    }
    /// GGUF blocks: random weights, scales and minima of ordinary size.
    fn blocks(&mut self, format: Format, count: usize) -> Vec<u8> {
        let mut raw: Vec<u8> =
            (0..count * format.block_bytes()).map(|_| self.next() as u8).collect();
        for block in raw.chunks_exact_mut(format.block_bytes()) {
            set_scales(format, block, self.float() * 0.1, self.float() * 0.1);
        }
        raw
    }
}

/// Writes the halves of a GGUF block: its scale, and its minimum where it has one. Floats have
/// neither, and become multiples of `d`.
fn set_scales(format: Format, block: &mut [u8], d: f32, m: f32) {
    let value = |byte: u8| d * (f32::from(byte) / 128.0 - 1.0);
    match format {
        Format::F16 | Format::Bf16 => {
            for pair in block.as_chunks_mut::<2>().0 {
                let value = value(pair[0]);
                *pair = match format {
                    Format::F16 => half::f16::from_f32(value).to_le_bytes(),
                    _ => half::bf16::from_f32(value).to_le_bytes(),
                };
            }
            return;
        }
        Format::F32 => {
            for four in block.as_chunks_mut::<4>().0 {
                *four = value(four[0]).to_le_bytes();
            }
            return;
        }
        _ => {}
    }
    let at = if format == Format::Q6K { 208 } else { 0 };
    block[at..at + 2].copy_from_slice(&half::f16::from_f32(d).to_le_bytes());
    if format.has_minimum() {
        block[2..4].copy_from_slice(&half::f16::from_f32(m).to_le_bytes());
    }
}

/// One weight: value = d·q + m.
#[derive(Clone, Copy, Default)]
struct Weight {
    d: f32,
    m: f32,
    q: i32,
}

/// The weights of a GGUF block, in the order in which ggml's reference writes them.
fn weights(format: Format, raw: &[u8]) -> Vec<Weight> {
    let half = |at: usize| half::f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32();
    match format {
        Format::Q4K | Format::Q5K => return weights_with_six_bits(format, raw),
        Format::Q6K => return weights_q6k(raw),
        Format::F16 | Format::Bf16 | Format::F32 => {
            let floats: Vec<f32> = match format {
                Format::F16 => {
                    raw.as_chunks().0.iter().map(|b| half::f16::from_le_bytes(*b).into()).collect()
                }
                Format::Bf16 => {
                    raw.as_chunks().0.iter().map(|b| half::bf16::from_le_bytes(*b).into()).collect()
                }
                _ => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            };
            return floats.into_iter().map(|d| Weight { d, m: 0.0, q: 1 }).collect();
        }
        _ => {}
    }
    let (m, header) = match format {
        Format::Q4_1 => (half(2), 4),
        Format::Q5_0 => (0.0, 6),
        Format::Q5_1 => (half(2), 8),
        _ => (0.0, 2),
    };
    let nibble = |k: usize| i32::from(raw[header + k % 16] >> (4 * (k / 16))) & 15;
    let fifth = |k: usize| {
        let bits = &raw[header - 4..header];
        (u32::from_le_bytes(bits.try_into().unwrap()) >> k & 1) as i32 * 16
    };
    let q = |k: usize| match format {
        Format::Q4_0 => nibble(k) - 8,
        Format::Q4_1 => nibble(k),
        Format::Q5_0 => nibble(k) + fifth(k) - 16,
        Format::Q5_1 => nibble(k) + fifth(k),
        _ => i32::from(raw[2 + k] as i8),
    };
    (0..BLOCK).map(|k| Weight { d: half(0), m, q: q(k) }).collect()
}

fn weights_with_six_bits(format: Format, raw: &[u8]) -> Vec<Weight> {
    let half = |at: usize| half::f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32();
    // All sixteen six-bit numbers from the twelve bytes as one: ggml packs them this way.
    let s: Vec<u32> = raw[4..16].iter().map(|b| u32::from(*b)).collect();
    let scale = |j: usize| if j < 4 { s[j] & 63 } else { s[j + 4] & 15 | (s[j - 4] >> 6) << 4 };
    let min = |j: usize| if j < 4 { s[j + 4] & 63 } else { s[j + 4] >> 4 | (s[j] >> 6) << 4 };
    let (high, quants) = match format {
        Format::Q5K => (&raw[16..48], &raw[48..]),
        _ => (&[0; 32][..], &raw[16..]),
    };
    let mut out = Vec::new();
    for pair in 0..4 {
        for side in 0..2 {
            let j = 2 * pair + side;
            for l in 0..32 {
                let low = i32::from(quants[32 * pair + l] >> (4 * side)) & 15;
                let q = low + if high[l] & (1 << j) != 0 { 16 } else { 0 };
                let (d, m) = (half(0) * scale(j) as f32, -(half(2) * min(j) as f32));
                out.push(Weight { d, m, q });
            }
        }
    }
    out
}

fn weights_q6k(raw: &[u8]) -> Vec<Weight> {
    let d = half::f16::from_le_bytes([raw[208], raw[209]]).to_f32();
    let mut out = vec![Weight::default(); 256];
    for n in 0..2 {
        let (ql, qh) = (&raw[64 * n..], &raw[128 + 32 * n..]);
        let scale = |i: usize| d * f32::from(raw[192 + 8 * n + i] as i8);
        for l in 0..32 {
            let bits = |low: u8, shift: u32| i32::from(low | (qh[l] >> shift & 3) << 4) - 32;
            let at = 128 * n + l;
            let of = |q, i: usize| Weight { d: scale(l / 16 + i), m: 0.0, q };
            out[at] = of(bits(ql[l] & 15, 0), 0);
            out[at + 32] = of(bits(ql[l + 32] & 15, 2), 2);
            out[at + 64] = of(bits(ql[l] >> 4, 4), 4);
            out[at + 96] = of(bits(ql[l + 32] >> 4, 6), 6);
        }
    }
    out
}

/// docs/spec/numerics.md, rule 1, for one output.
fn oracle_dot(format: Format, raw_row: &[u8], x: &[f32]) -> f32 {
    let weights: Vec<Weight> =
        raw_row.chunks_exact(format.block_bytes()).flat_map(|raw| weights(format, raw)).collect();
    let step = if format == Format::Q6K { 16 } else { BLOCK };
    let mut acc = 0.0f32;
    if format.is_float() {
        return weights.iter().zip(x).fold(acc, |acc, (w, x)| w.d.mul_add(*x, acc));
    }
    for (weights, x) in weights.chunks_exact(BLOCK).zip(x.chunks_exact(BLOCK)) {
        let max = x.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        if max < 1e-30 {
            // All zero: nothing is added but +0.
            acc = 0.0f32.mul_add(weights[0].d * 0.0, acc);
            continue;
        }
        let (s, inverse) = (max / 127.0, 127.0 / max);
        let xq: Vec<i32> = x.iter().map(|x| (x * inverse).round_ties_even() as i32).collect();
        for (weights, xq) in weights.chunks_exact(step).zip(xq.chunks_exact(step)) {
            let dot: i32 = weights.iter().zip(xq).map(|(w, x)| w.q * x).sum();
            acc = (dot as f32).mul_add(weights[0].d * s, acc);
        }
        if format.has_minimum() {
            acc = weights[0].m.mul_add(s * xq.iter().sum::<i32>() as f32, acc);
        }
    }
    acc
}

fn packed(format: Format, size: (usize, usize), raw: &[u8]) -> Option<PackedMatrix> {
    PackedMatrix::pack(format, size, raw, &Arena::default())
}

fn taken(run: (Cpu, &Threads), x: &[f32], weights: &[PackedMatrix]) -> Activations {
    let mut activations = Activations::default();
    activations.take(run, x, None, weights);
    activations
}

fn check_product(format: Format, (rows, outputs, cols): (usize, usize, usize), seed: u64) {
    let mut bytes = Bytes(seed);
    let raw = bytes.blocks(format, outputs * cols / format.block_weights());
    let mut x = bytes.floats(rows * cols, 3.0);
    x[..BLOCK].fill(0.0);
    let matrix = [packed(format, (outputs, cols), &raw).unwrap()];
    let residual = bytes.floats(rows * outputs, 1.0);
    let row_bytes = cols / format.block_weights() * format.block_bytes();
    let mut expected = residual.clone();
    for (at, out) in expected.iter_mut().enumerate() {
        let (row, output) = (at / outputs, at % outputs);
        let raw = &raw[output * row_bytes..(output + 1) * row_bytes];
        *out += oracle_dot(format, raw, &x[row * cols..(row + 1) * cols]);
    }
    for cpu in cpus() {
        for threads in [1, 3] {
            let run = (cpu, &Threads::new(threads).unwrap());
            let mut out = residual.clone();
            product(run, &matrix, &taken(run, &x, &matrix), Then::Add, &mut out);
            assert_eq!(bits(&out), bits(&expected), "{format:?} {cpu:?} {threads} threads");
        }
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn products_have_the_defined_bits_on_every_instruction_set(
        seed: u64, format in 0..Format::ALL.len(), rows in 1..20usize, outputs in 1..50usize,
        blocks in 1..8usize,
    ) {
        let format = Format::ALL[format];
        let blocks = if format.block_weights() == BLOCK { blocks } else { blocks.div_ceil(3) };
        check_product(format, (rows, outputs, blocks * format.block_weights()), seed);
    }

    #[test]
    fn attention_has_one_result_on_every_instruction_set(
        seed: u64, keys in 1..70usize, group in 1..6usize, kv in 1..3usize, dim in 1..6usize,
    ) {
        check_attention(Heads { query: kv * group, kv, dim: dim * 16 }, keys, seed);
    }
}

#[test]
fn products_have_the_defined_bits_at_the_models_own_sizes() {
    for format in Format::ALL {
        // 576 is no whole number of super-blocks.
        let cols = if format.block_weights() == BLOCK { 576 } else { 2048 };
        check_product(format, (1, 64, cols), 1);
        check_product(format, (9, 32, 1536), 2);
    }
}

/// A file may quantise one of the two otherwise than the other, or not at all.
#[test]
fn two_matrices_of_different_formats_become_one_result_everywhere() {
    let (rows, outputs, cols, mut bytes) = (27, 20, 256, Bytes(3));
    let x = bytes.floats(rows * cols, 3.0);
    for formats in [[Format::Q4_0, Format::F16], [Format::F32, Format::Q6K], [Format::Q4K; 2]] {
        let mut matrix = |format: Format| {
            let raw = bytes.blocks(format, outputs * cols / format.block_weights());
            packed(format, (outputs, cols), &raw).unwrap()
        };
        let matrices = formats.map(&mut matrix);
        let mut expected = None;
        for cpu in cpus() {
            let run = (cpu, &Threads::new(2).unwrap());
            let mut out = vec![0.0; rows * outputs];
            product(run, &matrices, &taken(run, &x, &matrices), Then::SwiGlu, &mut out);
            assert!(out.iter().all(|y| *y != 0.0), "{formats:?} {cpu:?}");
            let expected = expected.get_or_insert_with(|| bits(&out));
            assert_eq!(&bits(&out), expected, "{formats:?} {cpu:?}");
        }
    }
}

#[test]
fn products_have_the_defined_bits_for_any_number_of_rows() {
    for format in Format::ALL {
        // An odd number of blocks where the format has it; super-blocks are eight at a time.
        let cols = if format.block_weights() == BLOCK { 3 * BLOCK } else { 256 };
        for rows in 1..=70 {
            check_product(format, (rows, 20, cols), rows as u64);
        }
    }
}

/// Weights and activations at their extremes: the products where narrower sums would overflow.
#[test]
fn block_dots_are_exact_at_the_extremes() {
    for format in Format::ALL {
        for (byte, x) in [0x00, 0xff, 0x80, 0x7f].into_iter().flat_map(|b| [(b, 1.0), (b, -1.0)]) {
            let cols = format.block_weights();
            let mut raw = vec![byte; 16 * format.block_bytes()];
            for block in raw.chunks_exact_mut(format.block_bytes()) {
                set_scales(format, block, 1.0, -1.0);
            }
            let matrix = [packed(format, (16, cols), &raw).unwrap()];
            let expected = oracle_dot(format, &raw[..format.block_bytes()], &vec![x; cols]);
            for (cpu, rows) in cpus().into_iter().flat_map(|cpu| [(cpu, 1), (cpu, 16)]) {
                let run = (cpu, &Threads::new(1).unwrap());
                let (x, mut out) = (vec![x; rows * cols], vec![0.0; rows * 16]);
                product(run, &matrix, &taken(run, &x, &matrix), Then::Store, &mut out);
                assert_eq!(out, vec![expected; rows * 16], "{format:?} {byte:#x} {cpu:?}");
            }
        }
    }
}

/// What the cache keeps of a number.
type Kept = fn(f32) -> f64;

fn half(x: f32) -> f64 {
    f64::from(half::f16::from_f32(x).to_f32())
}

/// Attention in f64 with libm: independent of lanes and pages.
fn oracle_attention(heads: Heads, qkv: &[f32], keys: usize, kept: Kept) -> Vec<f64> {
    let (cols, dim) = (heads.qkv_cols(), heads.dim);
    let last = &qkv[(keys - 1) * cols..];
    let mut out = Vec::new();
    for head in 0..heads.query {
        let kv_head = head / (heads.query / heads.kv);
        let part = |row: usize, first: usize, d: usize| kept(qkv[row * cols + first * dim + d]);
        let score = |key: usize| -> f64 {
            let q = &last[head * dim..(head + 1) * dim];
            let dot = |(d, q): (usize, &f32)| f64::from(*q) * part(key, heads.query + kv_head, d);
            q.iter().enumerate().map(dot).sum::<f64>() / (dim as f64).sqrt()
        };
        let scores: Vec<f64> = (0..keys).map(score).collect();
        let max = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
        let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        for d in 0..dim {
            let value = |key: usize| part(key, heads.query + heads.kv + kv_head, d);
            out.push((0..keys).map(|key| weights[key] * value(key)).sum::<f64>() / total);
        }
    }
    out
}

fn rows<'a>(
    heads: Heads,
    places: &'a [RowPlace],
    tables: &'a [&'a [u32]],
    (cos, sin): (&'a [f32], &'a [f32]),
) -> Rows<'a> {
    Rows {
        heads,
        places,
        tables,
        layer_at: 0,
        window: None,
        bias: None,
        norms: None,
        pairing: Pairing::Neighbours,
        cos,
        sin,
    }
}

fn check_attention(heads: Heads, keys: usize, seed: u64) {
    check_attention_in::<u16>(heads, keys, seed, half);
    check_attention_in::<f32>(heads, keys, seed, f64::from);
}

fn check_attention_in<C: Cell + Default + PartialEq>(
    heads: Heads,
    keys: usize,
    seed: u64,
    kept: Kept,
) {
    let mut bytes = Bytes(seed);
    let qkv = bytes.floats(keys * heads.qkv_cols(), 2.0);
    // No rotation: that is tested by itself, and the oracle knows none.
    let (cos, sin) = (vec![1.0; keys * heads.dim / 2], vec![0.0; keys * heads.dim / 2]);
    let places: Vec<_> = (0..keys).map(|position| RowPlace { position, sequence: 0 }).collect();
    let blocks = keys.div_ceil(LANES);
    // Blocks in reverse order of memory: paging must not matter.
    let table: Vec<u32> = (0..blocks as u32).rev().collect();
    let oracle = oracle_attention(heads, &qkv, keys, kept);
    let mut first: Option<Vec<u32>> = None;
    for cpu in cpus() {
        for threads in [1, 2] {
            let threads = Threads::new(threads).unwrap();
            // Of two layers the second: the first must stay untouched.
            let layer_at = blocks * heads.block_values();
            let tables = [&table[..]];
            let rows = Rows { layer_at, ..rows(heads, &places, &tables, (&cos, &sin)) };
            let mut cells = vec![C::default(); 2 * blocks * heads.block_values()];
            let mut qkv = qkv.clone();
            assert_eq!(store_rows((cpu, &threads), &rows, &mut qkv, &mut cells), 0);
            let mut out = vec![0.0; keys * heads.query * heads.dim];
            attend_rows((cpu, &threads), &rows, (&qkv, &cells), &mut Vec::new(), &mut out);
            assert!(cells[..layer_at].iter().all(|cell| *cell == C::default()));
            let last = &out[(keys - 1) * heads.query * heads.dim..];
            for (ours, oracle) in last.iter().zip(&oracle) {
                assert!((f64::from(*ours) - oracle).abs() < 2e-5, "{ours} {oracle} {cpu:?}");
            }
            assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{cpu:?}");
        }
    }
}

/// The last row alone takes other ways through the kernels than all rows together (its keys and
/// dimensions are divided among threads); windows hide what lies before them.
#[test]
fn a_row_alone_has_the_bits_it_has_among_others() {
    let shapes = [(3, 1, 64, 700), (8, 1, 48, 613), (9, 3, 64, 530), (2, 2, 16, 1040)];
    for (query, kv, dim, keys) in shapes {
        let heads = Heads { query, kv, dim };
        let mut bytes = Bytes(keys as u64);
        let mut qkv = bytes.floats(keys * heads.qkv_cols(), 2.0);
        let (cos, sin) = (vec![1.0; keys * dim / 2], vec![0.0; keys * dim / 2]);
        let places: Vec<_> = (0..keys).map(|position| RowPlace { position, sequence: 0 }).collect();
        let table: Vec<u32> = (0..keys.div_ceil(LANES) as u32).rev().collect();
        let mut cells = vec![0u16; table.len() * heads.block_values()];
        let tables = [&table[..]];
        let all = rows(heads, &places, &tables, (&cos, &sin));
        store_rows((cpus()[0], &Threads::new(1).unwrap()), &all, &mut qkv, &mut cells);
        let last = &qkv[(keys - 1) * heads.qkv_cols()..];
        for window in [None, Some(1), Some(17), Some(512), Some(keys)] {
            let mut alone: Option<Vec<u32>> = None;
            for (cpu, threads) in cpus().into_iter().flat_map(|cpu| [(cpu, 1), (cpu, 3)]) {
                let run = (cpu, &Threads::new(threads).unwrap());
                let mut out = vec![0.0; query * dim];
                let place = [RowPlace { position: keys - 1, sequence: 0 }];
                let row = Rows { window, ..rows(heads, &place, &tables, (&cos, &sin)) };
                attend_rows(run, &row, (last, &cells), &mut Vec::new(), &mut out);
                assert_eq!(*alone.get_or_insert_with(|| bits(&out)), bits(&out), "{window:?}");
                let some =
                    Rows { window, ..rows(heads, &places[keys - 9..], &tables, (&cos, &sin)) };
                let mut out = vec![0.0; 9 * query * dim];
                let of_some = &qkv[(keys - 9) * heads.qkv_cols()..];
                attend_rows(run, &some, (of_some, &cells), &mut Vec::new(), &mut out);
                assert_eq!(alone.as_deref(), Some(&bits(&out)[8 * query * dim..]), "{window:?}");
            }
            let seen = window.unwrap_or(keys).min(keys);
            let oracle =
                oracle_attention(heads, &qkv[(keys - seen) * heads.qkv_cols()..], seen, half);
            for (ours, oracle) in alone.iter().flatten().zip(&oracle) {
                let ours = f64::from(f32::from_bits(*ours));
                assert!((ours - oracle).abs() < 2e-5, "{ours} {oracle} {window:?}");
            }
        }
    }
}

#[test]
fn keys_and_values_beyond_half_precision_are_held_and_counted() {
    let heads = Heads { query: 1, kv: 1, dim: 16 };
    let mut qkv = vec![0.0; heads.qkv_cols()];
    (qkv[16], qkv[17], qkv[32]) = (1e6, 65504.0, -70000.0);
    let (cos, sin) = (vec![1.0; 8], vec![0.0; 8]);
    let places = [RowPlace { position: 0, sequence: 0 }];
    let rows = rows(heads, &places, &[&[0]], (&cos, &sin));
    let mut cells = vec![0u16; heads.block_values()];
    let held = store_rows((cpus()[0], &Threads::new(1).unwrap()), &rows, &mut qkv, &mut cells);
    assert_eq!(held, 2);
    let value = |at: usize| half::f16::from_bits(cells[at]).to_f32();
    assert_eq!([value(0), value(LANES), value(16 * LANES)], [65504.0, 65504.0, -65504.0]);
}

#[test]
fn norms_have_one_result_and_follow_the_formula() {
    for (width, scale) in [(32, 1.0), (576, 1e-3), (1536, 1e3)] {
        let mut bytes = Bytes(width as u64);
        let (x, weight) = (bytes.floats(width, scale), bytes.floats(width, 2.0));
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
        let mut first: Option<Vec<u32>> = None;
        for cpu in cpus() {
            let mut out = vec![0.0; width];
            rms_norm(cpu, &x, &weight, 1e-5, &mut out);
            for ((x, weight), out) in x.iter().zip(&weight).zip(&out) {
                let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                assert!((f64::from(*out) - expected).abs() < 1e-5 * expected.abs().max(1e-3));
            }
            assert_eq!(*first.get_or_insert_with(|| bits(&out)), bits(&out), "{cpu:?}");
        }
    }
}

#[test]
fn exp_is_within_its_stated_error() {
    for i in -9000..9000 {
        let x = i as f32 * 0.01;
        let mut out = [0.0; LANES];
        exp(Scalar::splat(x)).store(&mut out);
        let expected = f64::from(x.min(88.0)).exp();
        match x >= -87.0 {
            true => assert!((f64::from(out[0]) / expected - 1.0).abs() < 2.4e-7, "e^{x}"),
            false => assert_eq!(out[0], 0.0),
        }
    }
}

#[test]
fn a_block_that_is_not_finite_stays_visible() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let matrix = [packed(Format::Q8_0, (16, BLOCK), &[1; 16 * 34]).unwrap()];
        let mut x = [1.0; BLOCK];
        x[7] = bad;
        for cpu in cpus() {
            let run = (cpu, &Threads::new(1).unwrap());
            let mut out = [0.0; 16];
            product(run, &matrix, &taken(run, &x, &matrix), Then::Store, &mut out);
            assert!(out.iter().all(|y| y.is_nan()), "{bad} {cpu:?}");
        }
    }
}

#[test]
fn a_packed_row_reads_back_as_it_was() {
    for format in Format::ALL {
        let cols = 3 * format.block_weights();
        let raw = Bytes(5).blocks(format, 20 * 3);
        let matrix = packed(format, (20, cols), &raw).unwrap();
        for (row, raw) in raw.chunks_exact(3 * format.block_bytes()).enumerate() {
            let mut out = vec![0.0; cols];
            matrix.row(row, &mut out);
            let of_row = raw.chunks_exact(format.block_bytes());
            let expected = of_row.flat_map(|raw| weights(format, raw));
            let expected: Vec<f32> = expected.map(|w| w.d * w.q as f32 + w.m).collect();
            assert_eq!(out, expected, "{format:?} row {row}");
        }
        assert!(packed(format, (20, cols), &raw[1..]).is_none());
        assert!(packed(format, (20, cols - 1), &raw).is_none());
    }
}

/// candle reads the same files by code of its own.
#[test]
fn packed_rows_are_what_candle_reads() {
    use candle_core::quantized::{GgmlDType, QTensor};
    use candle_core::{Device, Tensor};
    let dtypes = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::F32,
    ];
    let values = Bytes(9).floats(16 * 512, 1.0);
    let tensor = Tensor::from_vec(values, (16, 512), &Device::Cpu).unwrap();
    for (format, dtype) in Format::ALL.into_iter().zip(dtypes) {
        let quantised = QTensor::quantize(&tensor, dtype).unwrap();
        let matrix = packed(format, (16, 512), &quantised.data().unwrap()).unwrap();
        let theirs = quantised.dequantize(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        for (row, theirs) in theirs.iter().enumerate() {
            let mut ours = vec![0.0; 512];
            matrix.row(row, &mut ours);
            for (k, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                // Who rounds where differs by a bit.
                let is_close = (ours - theirs).abs() <= 2e-7 * theirs.abs().max(1e-2);
                assert!(is_close, "{format:?} row {row} weight {k}: {ours}, theirs {theirs}");
            }
        }
    }
}

#[test]
fn a_panicking_task_reaches_the_caller_and_the_threads_live_on() {
    let threads = Threads::new(3).unwrap();
    for round in 0..20 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.run(8, &|task| assert_ne!(task, round % 8, "on purpose"));
        }));
        assert!(result.is_err());
        let count = std::sync::atomic::AtomicUsize::new(0);
        threads.run(100, &|_| {
            count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 100);
    }
}
