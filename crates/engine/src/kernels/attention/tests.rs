//! Attention's inside as tests see it: the parts that `attend_split` has, called one by one.

use super::{Cell, Rows, Units, score_part, weigh_part, weights_of};
use crate::kernels::Cpu;
use crate::kernels::attention::head::TOGETHER;
use crate::kernels::lanes::LANES;

/// What one query head of one row makes of the keys it sees.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Looked {
    pub(crate) row: usize,
    pub(crate) head: usize,
    /// q·k / √dim of the keys from the sequence's beginning to the row's own.
    pub(crate) scores: Vec<f32>,
    /// Their softmax.
    pub(crate) weights: Vec<f32>,
}

/// Scores and weights of every row and query head; `qkv` as `store_rows` left it. No windows.
pub(crate) fn looked<C: Cell>(cpu: Cpu, rows: &Rows<'_>, of: (&[f32], &[C])) -> Vec<Looked> {
    let units = Units { rows, qkv: of.0, cells: C::cells(of.1) };
    let mut all = Vec::new();
    for unit in 0..units.count() {
        let job = units.job(unit);
        let (blocks, group) = (job.blocks.len(), job.group());
        let (mut scores, mut scales) = (vec![0.0; blocks * group * LANES], [0.0; TOGETHER]);
        score_part(cpu, &job, 0..blocks, &mut scores);
        let mut weights = scores.clone();
        weights_of(cpu, &job, &mut weights, &mut scales);
        let (row, _, first) = units.place(unit);
        for (g, scale) in scales.iter().enumerate().take(group) {
            let of_head = |values: &[f32]| -> Vec<f32> {
                let at = |key: usize| (key / LANES * group + g) * LANES + key % LANES;
                (0..job.keys).map(|key| values[at(key)]).collect()
            };
            let weights = of_head(&weights).iter().map(|weight| weight * scale).collect();
            all.push(Looked { row, head: first + g, scores: of_head(&scores), weights });
        }
    }
    all.sort_by_key(|looked| (looked.row, looked.head));
    all
}

/// The value that each query head's key head has at `key`, `[query heads][dim]`, as a row of the
/// batch reads it: a sum in which this key weighs 1 and all others 0.
pub(crate) fn value_at<C: Cell>(
    cpu: Cpu,
    rows: &Rows<'_>,
    of: (&[f32], &[C]),
    (row, key): (usize, usize),
) -> Vec<f32> {
    let units = Units { rows, qkv: of.0, cells: C::cells(of.1) };
    let mut values = vec![0.0; rows.heads.query * rows.heads.dim];
    for unit in (0..units.count()).filter(|unit| units.place(*unit).0 == row) {
        let job = units.job(unit);
        let group = job.group();
        let mut weights = vec![0.0; job.blocks.len() * group * LANES];
        for g in 0..group {
            weights[(key / LANES * group + g) * LANES + key % LANES] = 1.0;
        }
        let first = units.place(unit).2;
        for at in (0..rows.heads.dim).step_by(LANES) {
            let mut sums = vec![0.0; group * LANES];
            weigh_part(cpu, &job, (&weights, &[1.0; TOGETHER]), at, &mut sums);
            for (g, sums) in sums.chunks_exact(LANES).enumerate() {
                values[(first + g) * rows.heads.dim + at..][..LANES].copy_from_slice(sums);
            }
        }
    }
    values
}
