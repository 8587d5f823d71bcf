//! Top-k, top-p and min-p: where the candidates end.
//!
//! For: the last candidate in order (logit descending, id ascending), without putting others
//! in order.
//! Must never: leave no candidate, or add probabilities in an order that matters.
//! Relies on: `row.rs`; masses are integers.

use super::row::{Candidate, Row, reach};
use super::settings::Sampling;
use crate::kernels::vocabulary::Scale;
use crate::math;

/// Candidates are those before and at this place in the order.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Cut {
    pub(super) logit: f32,
    /// Of those with exactly this logit the ids up to here.
    id: u32,
}

impl Cut {
    const NOWHERE: Cut = Cut { logit: f32::NEG_INFINITY, id: u32::MAX };

    /// Whether a token is a candidate.
    pub(super) fn keeps(&self, id: u32, logit: f32) -> bool {
        logit > self.logit || (logit == self.logit && id <= self.id)
    }

    /// Where the candidates of `row` end; `room` is for its use.
    pub(super) fn of(
        row: &Row<'_>,
        best: Candidate,
        sampling: &Sampling,
        room: &mut Vec<Candidate>,
    ) -> Cut {
        let temperature = f64::from(sampling.temperature);
        let scale = Scale::at(best.logit, sampling.temperature);
        let mut cut = Cut::NOWHERE;
        let top_k = sampling.top_k as usize;
        let is_top_k = top_k > 0 && top_k < row.logits.len();
        if is_top_k {
            row.first(top_k, room);
            cut = room.last().map_or(cut, Cut::after);
        }
        if sampling.top_p < 1.0 {
            let p = f64::from(sampling.top_p);
            cut = match is_top_k {
                true => {
                    let total = mass_of(scale, room);
                    Cut::after(&reaching(scale, room, part(total, p)))
                }
                false => nucleus(row, scale, p, room),
            };
        }
        if sampling.min_p > 0.0 {
            let limit = f64::from(best.logit) + temperature * math::ln(f64::from(sampling.min_p));
            let logit = at_least(limit).min(best.logit);
            if logit > cut.logit {
                cut = Cut { logit, id: u32::MAX };
            }
        }
        cut
    }

    fn after(last: &Candidate) -> Cut {
        Cut { logit: last.logit, id: last.id }
    }
}

/// The smallest f32 that is not below `limit`.
fn at_least(limit: f64) -> f32 {
    let near = limit as f32;
    if f64::from(near) < limit { near.next_up() } else { near }
}

/// ⌊total · p⌋, the product rounded to f64 once.
fn part(total: u64, p: f64) -> u64 {
    ((total as f64 * p) as u64).min(total)
}

fn mass_of(scale: Scale, candidates: &[Candidate]) -> u64 {
    candidates.iter().map(|candidate| scale.mass(candidate.logit)).sum()
}

/// Top-p over a whole row: mostly a few of the most likely tokens are enough.
fn nucleus(row: &Row<'_>, scale: Scale, p: f64, room: &mut Vec<Candidate>) -> Cut {
    let wanted = part(row.mass(scale), p);
    for nats in [1.0, 2.0, 4.0, 8.0, 16.0] {
        row.gather(reach(scale, nats), room);
        if mass_of(scale, room) >= wanted {
            return Cut::after(&reaching(scale, room, wanted));
        }
    }
    row.gather(f32::NEG_INFINITY, room);
    Cut::after(&reaching(scale, room, wanted))
}

/// The first in order at which the mass so far reaches `wanted`, or the last of all.
///
/// Halves what is in question each time, so it takes time in proportion to their number.
fn reaching(scale: Scale, candidates: &mut [Candidate], mut wanted: u64) -> Candidate {
    let mut left = candidates;
    loop {
        let half = left.len() / 2;
        if half == 0 {
            return left[0];
        }
        left.select_nth_unstable_by(half - 1, Candidate::order);
        let mass = mass_of(scale, &left[..half]);
        left = match mass >= wanted {
            true => &mut left[..half],
            false => {
                wanted -= mass;
                &mut left[half..]
            }
        };
    }
}
