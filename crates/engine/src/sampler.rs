//! From logits to a token, seeded and replayable (docs/spec/numerics.md, rule 6).
//!
//! For: the same token wherever the same logits, settings, seed and position are given.
//! Must never: use a generator with state, libm, or an order of summation that depends on how
//! candidates were found; return no candidate at all.
//! Relies on: `philox.rs` for noise, `math.rs` for ln and exp in f64, `kernels/vocabulary.rs`
//! for passes over a vocabulary.
//!
//! Order: logit bias → repetition penalty → frequency and presence penalty → temperature →
//! top-k → top-p → min-p; then the token is the candidate with the largest logit/T + G, where G
//! is Gumbel noise of its id and position.

mod cut;
mod row;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use sha3::{Digest, Keccak256};

pub use settings::{LOGPROBS_MAX, Sampling};

use crate::kernels::Cpu;
use crate::kernels::vocabulary::{BLOCK, MASS_UNIT, Noise, NoiseOf, Scale, noise};
use crate::math;
use crate::philox::philox4x32_10;
use cut::Cut;
use row::{Candidate, Row, below};

/// Below this temperature the token is the plain argmax.
const GREEDY_BELOW: f32 = 1e-6;
/// No noise is larger: u ≤ 1 − 2⁻³², so −ln(−ln u) ≤ 32·ln 2.
const NOISE_MAX: f64 = 22.2;

/// Draws one sequence's tokens.
#[derive(Clone)]
pub(crate) struct Sampler {
    sampling: Sampling,
    key: [u32; 2],
    cpu: Cpu,
    /// Bit i: id i is in the prompt or the completion. Kept only where there is a penalty.
    seen: Vec<u64>,
    /// How often an id was generated. Kept only where there is a penalty.
    generated: BTreeMap<u32, u32>,
    maxima: Vec<f32>,
    room: Vec<Candidate>,
}

/// A drawn token.
#[derive(Debug, PartialEq)]
pub(crate) struct Drawn {
    pub(crate) id: u32,
    pub(crate) logprobs: Option<Logprobs>,
}

/// Logarithms of probabilities, by the logits as the model gave them.
#[derive(Debug, PartialEq)]
pub(crate) struct Logprobs {
    /// The drawn token's.
    pub(crate) chosen: f64,
    /// Of the most likely tokens, in order.
    pub(crate) top: Vec<(u32, f64)>,
}

/// The logits hold something that isn't a finite number: the forward pass has failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`; the settings were checked.
    pub(crate) fn new(sampling: Sampling, prompt: &[u32], vocab_size: usize, cpu: Cpu) -> Sampler {
        let bits = match sampling.repetition_penalty == 1.0 {
            true => 0,
            false => vocab_size.div_ceil(64),
        };
        let mut sampler = Sampler {
            key: noise_key(&sampling.seed),
            sampling,
            cpu,
            seen: vec![0; bits],
            generated: BTreeMap::new(),
            maxima: Vec::new(),
            room: Vec::new(),
        };
        prompt.iter().for_each(|id| sampler.see(*id));
        sampler
    }

    /// Draws the token at `position`: its index in the sequence, the prompt included, so the
    /// first generated token has the prompt's length. Changes `logits` (bias and penalties).
    pub(crate) fn sample(&mut self, logits: &mut [f32], position: u32) -> Result<Drawn, NotFinite> {
        let ranking = match self.sampling.logprobs {
            Some(top) => Some(self.rank(logits, top as usize)?),
            None => None,
        };
        // What the drawn one's own logit was can't be read off after a change.
        let unchanged = match ranking.is_some() && self.sampling.edits_logits() {
            true => Some(logits.to_vec()),
            false => None,
        };
        self.edit(logits);
        let id = self.choose(logits, position)?;
        self.note(id);
        let logprobs = ranking.map(|ranking| {
            let logits = unchanged.as_deref().unwrap_or(logits);
            ranking.logprobs(logits[id as usize])
        });
        Ok(Drawn { id, logprobs })
    }

    /// Notes that `id` is the next token of the completion: for a sampler that goes on where
    /// another is expected to come to.
    pub(crate) fn note(&mut self, id: u32) {
        self.see(id);
        if self.sampling.penalises_completion() {
            *self.generated.entry(id).or_default() += 1;
        }
    }

    fn see(&mut self, id: u32) {
        if let Some(word) = self.seen.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    /// Bias, then the penalties.
    fn edit(&self, logits: &mut [f32]) {
        let Sampling { repetition_penalty, frequency_penalty, presence_penalty, .. } =
            self.sampling;
        for (id, bias) in &self.sampling.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
        for (word, logits) in self.seen.iter().zip(logits.chunks_mut(64)) {
            let mut left = *word;
            while left != 0 {
                if let Some(logit) = logits.get_mut(left.trailing_zeros() as usize) {
                    *logit = match *logit > 0.0 {
                        true => *logit / repetition_penalty,
                        false => *logit * repetition_penalty,
                    };
                }
                left &= left - 1;
            }
        }
        for (id, count) in &self.generated {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit = *logit - *count as f32 * frequency_penalty - presence_penalty;
            }
        }
    }

    fn choose(&mut self, logits: &[f32], position: u32) -> Result<u32, NotFinite> {
        let row = Row::new(logits, &mut self.maxima, self.cpu)?;
        let best = row.best();
        if self.sampling.temperature < GREEDY_BELOW {
            return Ok(best.id);
        }
        let cut = Cut::of(&row, best, &self.sampling, &mut self.room);
        let mut race = Race {
            temperature: f64::from(self.sampling.temperature),
            score: f64::NEG_INFINITY,
            id: u32::MAX,
        };
        let own = philox4x32_10([best.id / 4, position, 0, 0], self.key)[best.id as usize % 4];
        // The most likely token first: then nearly all others can't win any more.
        race.enter(best.id, best.logit, own);
        let of = NoiseOf { key: self.key, position, quarter: 0, least: 0 };
        race.run(&row, cut, of, self.cpu);
        Ok(race.id)
    }

    fn rank(&mut self, logits: &[f32], top: usize) -> Result<Ranking, NotFinite> {
        let row = Row::new(logits, &mut self.maxima, self.cpu)?;
        let best = row.best().logit;
        let mass = row.mass(Scale::at(best, 1.0));
        self.room.clear();
        if top > 0 {
            row.first(top.min(logits.len()), &mut self.room);
            self.room.sort_unstable_by(Candidate::order);
        }
        let ranking = Ranking { best, ln_sum: math::ln(mass as f64 * MASS_UNIT), top: Vec::new() };
        let top = self.room.iter().map(|one| (one.id, ranking.logprob(one.logit))).collect();
        Ok(Ranking { top, ..ranking })
    }
}

/// What probabilities of a row need.
struct Ranking {
    best: f32,
    /// ln Σ e^(logit − best).
    ln_sum: f64,
    top: Vec<(u32, f64)>,
}

impl Ranking {
    fn logprob(&self, logit: f32) -> f64 {
        f64::from(logit) - f64::from(self.best) - self.ln_sum
    }

    fn logprobs(self, chosen: f32) -> Logprobs {
        Logprobs { chosen: self.logprob(chosen), top: self.top }
    }
}

/// The search for the largest logit/T + noise; ties go to the lowest id. A token may enter twice.
struct Race {
    temperature: f64,
    /// The winner's so far.
    score: f64,
    id: u32,
}

impl Race {
    /// Everybody whom `cut` keeps and who could win.
    fn run(&mut self, row: &Row<'_>, cut: Cut, mut of: NoiseOf, cpu: Cpu) {
        let limit = below((self.score - NOISE_MAX) * self.temperature).max(cut.logit);
        let mut words = Noise::new();
        for (index, max) in row.blocks_from(limit) {
            let needed = self.score - f64::from(max) / self.temperature;
            if needed > NOISE_MAX {
                continue;
            }
            of.quarter = (index * BLOCK / 4) as u32;
            of.least = least_word(needed);
            noise(cpu, of, &mut words);
            if !words.is_large {
                continue;
            }
            for (at, logit) in row.block(index).iter().enumerate() {
                let id = (index * BLOCK + at) as u32;
                if words.word(at) >= of.least && cut.keeps(id, *logit) {
                    self.enter(id, *logit, words.word(at));
                }
            }
        }
    }

    fn enter(&mut self, id: u32, logit: f32, word: u32) {
        let level = f64::from(logit) / self.temperature;
        let needed = self.score - level;
        // Noise costs two logarithms.
        if needed > NOISE_MAX || word < least_word(needed) {
            return;
        }
        let score = level + gumbel(word);
        if score > self.score || (score == self.score && id < self.id) {
            (self.score, self.id) = (score, id);
        }
    }
}

/// No smaller word gives noise of `needed` ≤ 22.2 or more.
///
/// −ln(−ln u) ≥ t needs −ln u ≤ e^−t, and 1 − u ≤ −ln u, so 2³² − x ≤ 2³²·e^−t ≤ 2^(32 − k) for
/// k ≤ t / ln 2. A thousandth and one more is room for rounding.
fn least_word(needed: f64) -> u32 {
    if needed <= 0.0 {
        return 0;
    }
    let k = ((needed * std::f64::consts::LOG2_E) as u32).min(32);
    let most = (1u64 << 32) >> k;
    let least = (1u64 << 32).saturating_sub(most + most / 1024 + 1);
    least as u32
}

/// −ln(−ln u), u = max(x, 1) / 2³².
fn gumbel(x: u32) -> f64 {
    let u = f64::from(x.max(1)) / 4_294_967_296.0;
    -math::ln(-math::ln(u))
}

/// The first eight bytes of keccak256(seed), as two big-endian words.
fn noise_key(seed: &[u8; 32]) -> [u32; 2] {
    let hash = Keccak256::digest(seed);
    let word = |at: usize| u32::from_be_bytes([hash[at], hash[at + 1], hash[at + 2], hash[at + 3]]);
    [word(0), word(4)]
}
