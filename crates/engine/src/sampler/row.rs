//! A row of logits, surveyed: blocks that can't matter are passed over by their largest logit.
//!
//! For: finding the most likely ids and adding up probability without sorting a vocabulary.
//! Must never: pass over a logit that would change a result.
//! Relies on: `kernels/vocabulary.rs`.

use crate::kernels::Cpu;
use crate::kernels::vocabulary::{BLOCK, Scale, add_masses, survey};

use super::NotFinite;

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Candidate {
    pub(super) id: u32,
    /// Never −0, so that order by bits is order by value.
    pub(super) logit: f32,
}

impl Candidate {
    fn new(id: usize, logit: f32) -> Candidate {
        Candidate { id: id as u32, logit: logit + 0.0 }
    }

    /// Logit descending, id ascending.
    pub(super) fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
        b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
    }
}

/// A row of finite logits and the largest of each block.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) logits: &'a [f32],
    maxima: &'a [f32],
    cpu: Cpu,
}

impl<'a> Row<'a> {
    /// Surveys `logits` in one pass; `maxima` is room that is used again and again.
    pub(super) fn new(
        logits: &'a [f32],
        maxima: &'a mut Vec<f32>,
        cpu: Cpu,
    ) -> Result<Row<'a>, NotFinite> {
        maxima.resize(logits.len().div_ceil(BLOCK), 0.0);
        let mut is_finite = false;
        survey(cpu, logits, maxima, &mut is_finite);
        match is_finite && !logits.is_empty() {
            true => Ok(Row { logits, maxima, cpu }),
            false => Err(NotFinite),
        }
    }

    /// The first in order.
    pub(super) fn best(&self) -> Candidate {
        let most = self.maxima.iter().fold(f32::NEG_INFINITY, |m, x| if *x > m { *x } else { m });
        let block = self.maxima.iter().position(|max| *max == most).unwrap_or(0);
        let at = self.block(block).iter().position(|logit| *logit == most).unwrap_or(0);
        Candidate::new(block * BLOCK + at, most)
    }

    /// Blocks with a logit of at least `limit`: number and largest logit.
    pub(super) fn blocks_from(&self, limit: f32) -> impl Iterator<Item = (usize, f32)> {
        let maxima = self.maxima.iter().copied().enumerate();
        maxima.filter(move |(_, max)| *max >= limit)
    }

    /// The logits of block `index`.
    pub(super) fn block(&self, index: usize) -> &'a [f32] {
        let start = index * BLOCK;
        &self.logits[start..self.logits.len().min(start + BLOCK)]
    }

    /// All with a logit of at least `limit`, by id.
    pub(super) fn gather(&self, limit: f32, into: &mut Vec<Candidate>) {
        into.clear();
        for (index, _) in self.blocks_from(limit) {
            let block = self.block(index).iter().enumerate();
            let kept = block.filter(|(_, logit)| **logit >= limit);
            into.extend(kept.map(|(at, logit)| Candidate::new(index * BLOCK + at, *logit)));
        }
    }

    /// The first `count` (1 to all) in order; only the last of them stands where it belongs.
    pub(super) fn first(&self, count: usize, into: &mut Vec<Candidate>) {
        // As many blocks have a logit from here on, so as many logits are there at least.
        let limit = match count <= self.maxima.len() {
            true => {
                let mut maxima = self.maxima.to_vec();
                *maxima.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a)).1
            }
            false => f32::NEG_INFINITY,
        };
        self.gather(limit, into);
        if count < into.len() {
            into.select_nth_unstable_by(count - 1, Candidate::order);
            into.truncate(count);
        } else if let Some(last) = into.len().checked_sub(1) {
            into.select_nth_unstable_by(last, Candidate::order);
        }
    }

    /// The mass of all logits.
    pub(super) fn mass(&self, scale: Scale) -> u64 {
        let mut sum = 0;
        // Below half a unit there is nothing to add: ln 2⁻⁴¹ = −28.4.
        let limit = reach(scale, 29.0);
        for (index, _) in self.blocks_from(limit) {
            add_masses(self.cpu, self.block(index), scale, &mut sum);
        }
        sum
    }
}

/// A logit below all whose probability is at least e^−`nats` of the best one's.
pub(super) fn reach(scale: Scale, nats: f64) -> f32 {
    below(f64::from(scale.best) - nats / scale.inverse)
}

/// A logit below `limit`, if only by a little.
pub(super) fn below(limit: f64) -> f32 {
    // Rounding moves by less than one step.
    (limit as f32).next_down()
}
