//! From logits to a token, seeded and replayable (docs/spec/numerics.md, rule 6).
//!
//! For: the same token wherever the same logits, settings, seed and position are given.
//! Must never: use a generator with state, libm, or an order of summation that depends on how
//! candidates were found; return no candidate at all.
//! Relies on: `philox.rs` for noise, `math.rs` for ln and exp in f64.
//!
//! Order: repetition penalty → temperature → top-k → top-p → min-p; then the token is the
//! candidate with the largest logit/T + G, where G is Gumbel noise of its id and position.

use std::collections::BTreeMap;

use sha3::{Digest, Keccak256};

use crate::math;
use crate::philox::philox4x32_10;

/// Most likely ids that are told with a token, at most.
pub const LOGPROBS_MAX: u32 = 20;

/// Below this temperature the token is the plain argmax.
const GREEDY_BELOW: f32 = 1e-6;
/// No noise is larger: u ≤ 1 − 2⁻³², so −ln(−ln u) ≤ 32·ln 2.
const NOISE_MAX: f64 = 22.2;

/// How a sequence's tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 (below 1e-6) takes the most likely token.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens that together reach this probability; 1 keeps all, 0 one.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of ids that are in the prompt or the
    /// completion so far; 1 changes nothing.
    pub repetition_penalty: f32,
    /// Taken off an id's logit for each time it is in the completion so far: −2 to 2.
    pub frequency_penalty: f32,
    /// Taken off an id's logit once it is in the completion so far: −2 to 2.
    pub presence_penalty: f32,
    /// Added to the logits of these ids, before everything else: −100 to 100.
    pub logit_bias: BTreeMap<u32, f32>,
    /// How many of the most likely ids are told with each token, at most [`LOGPROBS_MAX`];
    /// `None` tells no probabilities at all. Changes no token.
    pub logprobs: Option<u32>,
    /// 256 bits, big-endian.
    pub seed: [u8; 32],
}

impl Sampling {
    /// The most likely token each time.
    pub fn greedy() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            seed: [0; 32],
        }
    }

    /// Checks the ranges; the error names the setting.
    pub fn check(&self) -> Result<(), String> {
        let rules = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top_p", self.top_p, 0.0..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01..=100.0),
            ("frequency_penalty", self.frequency_penalty, -2.0..=2.0),
            ("presence_penalty", self.presence_penalty, -2.0..=2.0),
        ];
        for (name, value, range) in rules {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                return Err(format!("{name} must be from {low} to {high}, is {value}"));
            }
        }
        Ok(())
    }
}

/// Draws one sequence's tokens.
pub(crate) struct Sampler {
    sampling: Sampling,
    key: [u32; 2],
    /// Bit i: id i is in the prompt or the completion. Kept only where there is a penalty.
    seen: Vec<u64>,
}

/// A token that may be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Candidate {
    id: u32,
    logit: f32,
}

/// The logits hold something that isn't a finite number: the forward pass has failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotFinite;

impl Sampler {
    /// A sampler for a sequence that begins with `prompt`.
    pub(crate) fn new(sampling: Sampling, prompt: &[u32], vocab_size: usize) -> Sampler {
        let key = noise_key(&sampling.seed);
        let bits = match sampling.repetition_penalty == 1.0 {
            true => 0,
            false => vocab_size.div_ceil(64),
        };
        let mut sampler = Sampler { sampling, key, seen: vec![0; bits] };
        prompt.iter().for_each(|id| sampler.note(*id));
        sampler
    }

    /// Draws the token at `position`: its index in the sequence, the prompt included, so the
    /// first generated token has the prompt's length. Changes `logits` (penalties).
    pub(crate) fn sample(&mut self, logits: &mut [f32], position: u32) -> Result<u32, NotFinite> {
        self.penalise(logits);
        let best = argmax(logits)?;
        let id = match self.sampling.temperature < GREEDY_BELOW {
            true => best.id,
            false => self.draw(logits, best, position),
        };
        self.note(id);
        Ok(id)
    }

    fn note(&mut self, id: u32) {
        if let Some(word) = self.seen.get_mut(id as usize / 64) {
            *word |= 1 << (id % 64);
        }
    }

    fn penalise(&self, logits: &mut [f32]) {
        let penalty = self.sampling.repetition_penalty;
        for (word, logits) in self.seen.iter().zip(logits.chunks_mut(64)) {
            let mut left = *word;
            while left != 0 {
                if let Some(logit) = logits.get_mut(left.trailing_zeros() as usize) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
                left &= left - 1;
            }
        }
    }

    fn draw(&self, logits: &[f32], best: Candidate, position: u32) -> u32 {
        let temperature = f64::from(self.sampling.temperature);
        let filter = Filter { sampling: &self.sampling, temperature, best: best.logit };
        let mut noise = Noise { key: self.key, position, block: None };
        match filter.candidates(logits) {
            Some(kept) => pick(kept.into_iter(), temperature, &mut noise),
            None => {
                let all = (0u32..).zip(logits).map(|(id, logit)| Candidate { id, logit: *logit });
                // Most likely first: then nearly all others can't win any more.
                pick(std::iter::once(best).chain(all), temperature, &mut noise)
            }
        }
    }
}

/// The candidate with the largest logit/T + noise; ties go to the lowest id. A candidate may
/// come twice.
///
/// Noise costs two logarithms, so it is bounded first, exactly: g > t needs −ln u < e^−t, and
/// 1 − u ≤ −ln u. Candidates that fail 1 − u < e^−t with room to spare can't win.
fn pick(candidates: impl Iterator<Item = Candidate>, t: f64, noise: &mut Noise) -> u32 {
    let (mut best_score, mut best_id) = (f64::NEG_INFINITY, u32::MAX);
    for Candidate { id, logit } in candidates {
        let level = f64::from(logit) / t;
        let needed = best_score - level;
        if needed > NOISE_MAX {
            continue;
        }
        let x = noise.word(id);
        // 0.1 % of room is far more than the error of `exp`.
        if needed > 0.0 && f64::from(u32::MAX - x) > math::exp(-needed) * 4_294_967_296.0 * 1.001 {
            continue;
        }
        let score = level + gumbel(x);
        if score > best_score || (score == best_score && id < best_id) {
            (best_score, best_id) = (score, id);
        }
    }
    best_id
}

/// −ln(−ln u), u = max(x, 1) / 2³².
fn gumbel(x: u32) -> f64 {
    let u = f64::from(x.max(1)) / 4_294_967_296.0;
    -math::ln(-math::ln(u))
}

/// Philox words by id: four ids share a block.
struct Noise {
    key: [u32; 2],
    position: u32,
    block: Option<(u32, [u32; 4])>,
}

impl Noise {
    fn word(&mut self, id: u32) -> u32 {
        let block = match self.block {
            Some((at, block)) if at == id / 4 => block,
            _ => {
                let block = philox4x32_10([id / 4, self.position, 0, 0], self.key);
                self.block = Some((id / 4, block));
                block
            }
        };
        block[(id % 4) as usize]
    }
}

/// The first eight bytes of keccak256(seed), as two big-endian words.
fn noise_key(seed: &[u8; 32]) -> [u32; 2] {
    let hash = Keccak256::digest(seed);
    let word = |at: usize| u32::from_be_bytes([hash[at], hash[at + 1], hash[at + 2], hash[at + 3]]);
    [word(0), word(4)]
}

/// The largest logit, the lowest id of equals.
fn argmax(logits: &[f32]) -> Result<Candidate, NotFinite> {
    let mut best: Option<Candidate> = None;
    for (id, logit) in (0u32..).zip(logits) {
        if !logit.is_finite() {
            return Err(NotFinite);
        }
        if best.is_none_or(|best| *logit > best.logit) {
            best = Some(Candidate { id, logit: *logit });
        }
    }
    best.ok_or(NotFinite)
}

/// Top-k, top-p and min-p.
struct Filter<'a> {
    sampling: &'a Sampling,
    temperature: f64,
    best: f32,
}

impl Filter<'_> {
    /// The candidates in order (logit descending, id ascending), at least one; `None` if all
    /// tokens are, in no order.
    fn candidates(&self, logits: &[f32]) -> Option<Vec<Candidate>> {
        let Sampling { top_k, top_p, min_p, .. } = *self.sampling;
        let limits_k = top_k > 0 && (top_k as usize) < logits.len();
        if !limits_k && top_p >= 1.0 && min_p <= 0.0 {
            return None;
        }
        let all = (0u32..).zip(logits).map(|(id, logit)| Candidate { id, logit: *logit });
        let mut kept: Vec<Candidate> = all.collect();
        if limits_k {
            keep_first(&mut kept, top_k as usize);
        }
        if top_p < 1.0 {
            self.keep_mass(&mut kept, f64::from(top_p));
        }
        if min_p > 0.0 {
            let least = f64::from(min_p);
            kept.retain(|c| c.logit == self.best || self.weight(c.logit) >= least);
        }
        Some(kept)
    }

    /// Probability relative to the most likely token.
    fn weight(&self, logit: f32) -> f64 {
        math::exp((f64::from(logit) - f64::from(self.best)) / self.temperature)
    }

    /// Weights as integers of 2⁻⁴⁰: their sum doesn't depend on the order of adding.
    fn mass(&self, logit: f32) -> u64 {
        (self.weight(logit) * (1u64 << 40) as f64) as u64
    }

    /// Keeps the shortest beginning of the ordered candidates whose probability reaches `p`.
    fn keep_mass(&self, candidates: &mut Vec<Candidate>, p: f64) {
        let total: u64 = candidates.iter().map(|c| self.mass(c.logit)).sum();
        let wanted = (total as f64 * p) as u64;
        // Mostly a few candidates are enough: order more only when they aren't.
        let mut ordered = 128;
        loop {
            let mut head = candidates.clone();
            keep_first(&mut head, ordered);
            let mut mass = 0;
            let enough = head.iter().position(|c| {
                mass += self.mass(c.logit);
                mass >= wanted
            });
            if let Some(last) = enough {
                head.truncate(last + 1);
                *candidates = head;
                return;
            }
            if ordered >= candidates.len() {
                *candidates = head;
                return;
            }
            ordered *= 8;
        }
    }
}

/// Keeps the first `count` in order (logit descending, id ascending), ordered.
fn keep_first(candidates: &mut Vec<Candidate>, count: usize) {
    let order = |a: &Candidate, b: &Candidate| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id));
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, order);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(order);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampling() -> Sampling {
        Sampling { temperature: 1.0, ..Sampling::greedy() }
    }

    fn draw(sampling: &Sampling, logits: &[f32], position: u32) -> u32 {
        let mut sampler = Sampler::new(sampling.clone(), &[], logits.len());
        sampler.sample(&mut logits.to_vec(), position).unwrap()
    }

    /// Rule 6 once more, without shortcuts: full sort, no pruning, std's ln and exp.
    fn oracle(sampling: &Sampling, logits: &[f32], position: u32) -> u32 {
        let t = f64::from(sampling.temperature);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k as usize);
        }
        let best = logits[order[0]];
        let weight = |id: usize| ((f64::from(logits[id]) - f64::from(best)) / t).exp();
        let total: f64 = order.iter().map(|id| weight(*id)).sum();
        if sampling.top_p < 1.0 {
            let mut mass = 0.0;
            let end = order.iter().position(|id| {
                mass += weight(*id) / total;
                mass >= f64::from(sampling.top_p)
            });
            order.truncate(end.map_or(order.len(), |end| end + 1));
        }
        order.retain(|id| weight(*id) >= f64::from(sampling.min_p));
        let score = |id: usize| {
            let key = noise_key(&sampling.seed);
            let x = philox4x32_10([id as u32 / 4, position, 0, 0], key)[id % 4];
            let u = f64::from(x.max(1)) / 2f64.powi(32);
            f64::from(logits[id]) / t - (-u.ln()).ln()
        };
        let by_score = |a: &usize, b: &usize| score(*a).total_cmp(&score(*b)).then(b.cmp(a));
        order.into_iter().max_by(by_score).unwrap() as u32
    }

    #[test]
    fn the_noise_key_is_the_beginning_of_keccak256() {
        // keccak256 of 32 zero bytes, as every Ethereum tool gives it:
        // 290decd9 548b62a8 d60345a9 88386fc8 …
        assert_eq!(noise_key(&[0; 32]), [0x290d_ecd9, 0x548b_62a8]);
    }

    fn settings() -> impl Strategy<Value = Sampling> {
        let top_p = prop_oneof![Just(1f32), 0f32..1.0];
        let min_p = prop_oneof![Just(0f32), 0f32..1.0];
        (any::<[u8; 32]>(), 0.05f32..3.0, 0..40u32, top_p, min_p).prop_map(
            |(seed, temperature, top_k, top_p, min_p)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                seed,
                ..Sampling::greedy()
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn shortcuts_never_change_the_token(
            logits in prop::collection::vec(-20f32..20.0, 1..700),
            position: u32,
            sampling in settings(),
        ) {
            let expected = oracle(&sampling, &logits, position);
            prop_assert_eq!(draw(&sampling, &logits, position), expected);
        }
    }

    #[test]
    fn tokens_come_as_often_as_their_probability_says() {
        let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].map(f32::ln).to_vec();
        let mut counts = [0; 4];
        for position in 0..40_000 {
            counts[draw(&sampling(), &logits, position) as usize] += 1;
        }
        for (count, expected) in counts.into_iter().zip([20_000, 10_000, 6_000, 4_000]) {
            // Five standard deviations of the largest; the draw is fixed, so this can't flicker.
            assert!(i32::abs(count - expected) < 500, "{counts:?}");
        }
    }

    #[test]
    fn at_least_one_candidate_is_always_left() {
        let logits = [1.0, 3.0, 3.0, 2.0];
        let none = Sampling { top_p: 0.0, ..sampling() };
        let min = Sampling { min_p: 1.0, top_k: 1, ..sampling() };
        for position in 0..50 {
            // The first in order: of equals the lowest id.
            assert_eq!(draw(&none, &logits, position), 1);
            assert_eq!(draw(&min, &logits, position), 1);
        }
    }

    #[test]
    fn no_temperature_takes_the_first_of_the_largest() {
        let logits = [1.0, 3.0, 3.0, 2.0];
        for temperature in [0.0, 9e-7] {
            assert_eq!(draw(&Sampling { temperature, ..sampling() }, &logits, 7), 1);
        }
    }

    #[test]
    fn the_same_seed_and_position_give_the_same_token_and_others_do_not() {
        let logits = vec![0.0; 1000];
        let tokens = |seed: u8| -> Vec<u32> {
            let sampling = Sampling { seed: [seed; 32], ..sampling() };
            (0..20).map(|position| draw(&sampling, &logits, position)).collect()
        };
        assert_eq!(tokens(1), tokens(1));
        assert_ne!(tokens(1), tokens(2));
        let mut distinct = tokens(1);
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() > 15, "positions differ: {distinct:?}");
    }

    #[test]
    fn a_penalty_counts_prompt_and_completion_once_each() {
        let greedy = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut sampler = Sampler::new(greedy, &[0, 0, 70], 100);
        let mut logits = vec![-1.0; 100];
        (logits[0], logits[1], logits[2], logits[70]) = (4.0, 2.5, 2.2, -0.5);
        // 0: 4/2 = 2; then 1 was drawn and has 1.25.
        assert_eq!(sampler.sample(&mut logits.clone(), 3), Ok(1));
        let mut second = logits.clone();
        assert_eq!(sampler.sample(&mut second, 4), Ok(2));
        assert_eq!((second[0], second[1], second[2], second[70]), (2.0, 1.25, 2.2, -1.0));
    }

    #[test]
    fn logits_that_are_not_finite_are_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut sampler = Sampler::new(sampling(), &[], 2);
            assert_eq!(sampler.sample(&mut [0.0, bad], 0), Err(NotFinite));
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let ok = sampling();
        for (name, bad) in [
            ("temperature", Sampling { temperature: -0.1, ..ok.clone() }),
            ("temperature", Sampling { temperature: f32::NAN, ..ok.clone() }),
            ("top_p", Sampling { top_p: 1.1, ..ok.clone() }),
            ("min_p", Sampling { min_p: -1.0, ..ok.clone() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..ok.clone() }),
        ] {
            assert!(bad.check().unwrap_err().starts_with(name));
        }
        assert_eq!(ok.check(), Ok(()));
    }
}
