//! Rule 6 against a plain form of itself, and each rule by table.

#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::error::StartError;
use crate::kernels::Isa;

fn cpu() -> Cpu {
    Cpu::new(Isa::best()).unwrap()
}

fn sampling() -> Sampling {
    Sampling { temperature: 1.0, ..Sampling::greedy() }
}

fn sampler(sampling: &Sampling, prompt: &[u32], vocab_size: usize) -> Sampler {
    Sampler::new(sampling.clone(), prompt, vocab_size, cpu())
}

fn draw(sampling: &Sampling, logits: &[f32], position: u32) -> u32 {
    let mut sampler = sampler(sampling, &[], logits.len());
    sampler.sample(&mut logits.to_vec(), position).unwrap().id
}

/// Rule 6 once more, without shortcuts: everything is sorted, all noise is drawn, std's ln and
/// exp, bias and penalties from the ids alone.
struct Plain<'a> {
    sampling: &'a Sampling,
    prompt: &'a [u32],
    completion: &'a [u32],
}

impl Plain<'_> {
    fn edited(&self, logits: &[f32]) -> Vec<f32> {
        let s = self.sampling;
        let edit = |(id, logit): (u32, &f32)| {
            let mut logit = logit + s.logit_bias.get(&id).copied().unwrap_or(0.0);
            if self.prompt.contains(&id) || self.completion.contains(&id) {
                let r = s.repetition_penalty;
                logit = if logit > 0.0 { logit / r } else { logit * r };
            }
            let count = self.completion.iter().filter(|one| **one == id).count();
            if count > 0 {
                logit = (logit - count as f32 * s.frequency_penalty) - s.presence_penalty;
            }
            logit
        };
        (0..).zip(logits).map(edit).collect()
    }

    /// In order.
    fn candidates(&self, logits: &[f32]) -> Vec<usize> {
        let Sampling { top_k, top_p, min_p, .. } = *self.sampling;
        let t = f64::from(self.sampling.temperature);
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|a, b| logits[*b].partial_cmp(&logits[*a]).unwrap().then(a.cmp(b)));
        if top_k > 0 {
            order.truncate(top_k as usize);
        }
        let best = f64::from(logits[order[0]]);
        let above = |id: usize| f64::from(logits[id]) - best;
        if top_p < 1.0 {
            let unit = 2f64.powi(40);
            let mass = |id: usize| ((above(id) * (1.0 / t)).exp() * unit).round_ties_even() as u64;
            let total: u64 = order.iter().map(|id| mass(*id)).sum();
            let wanted = (total as f64 * f64::from(top_p)).floor() as u64;
            let mut sum = 0;
            let end = order.iter().position(|id| {
                sum += mass(*id);
                sum >= wanted
            });
            order.truncate(end.unwrap() + 1);
        }
        if min_p > 0.0 {
            let least = best + t * f64::from(min_p).ln();
            order.retain(|id| above(*id) == 0.0 || f64::from(logits[*id]) >= least);
        }
        order
    }

    fn draw(&self, logits: &[f32], position: u32) -> u32 {
        let logits = self.edited(logits);
        let t = f64::from(self.sampling.temperature);
        if self.sampling.temperature < 1e-6 {
            return Plain { sampling: &sampling(), ..*self }.candidates(&logits)[0] as u32;
        }
        let key = noise_key(&self.sampling.seed);
        let score = |id: usize| {
            let x = philox4x32_10([id as u32 / 4, position, 0, 0], key)[id % 4];
            let u = f64::from(x.max(1)) / 2f64.powi(32);
            f64::from(logits[id]) / t - (-u.ln()).ln()
        };
        let by_score = |a: &usize, b: &usize| score(*a).total_cmp(&score(*b)).then(b.cmp(a));
        self.candidates(&logits).into_iter().max_by(by_score).unwrap() as u32
    }
}

fn settings() -> impl Strategy<Value = Sampling> {
    let temperature = prop_oneof![8 => 0.05f32..3.0, 1 => Just(0f32), 1 => 3f32..100.0];
    let top_k = prop_oneof![Just(0u32), 1..40u32, 30..3000u32];
    let top_p = prop_oneof![Just(1f32), 0f32..1.0, Just(0f32)];
    let min_p = prop_oneof![2 => Just(0f32), 1 => 0f32..1.0, 1 => 0f32..0.01, 1 => Just(1f32)];
    let repetition = prop_oneof![Just(1f32), 0.5f32..2.0];
    let completion = || prop_oneof![Just(0f32), -2f32..=2.0];
    let bias = prop::collection::btree_map(0..700u32, -100f32..=100.0, 0..4);
    let penalties = (repetition, completion(), completion(), bias);
    (any::<[u8; 32]>(), temperature, top_k, top_p, min_p, penalties).prop_map(
        |(seed, temperature, top_k, top_p, min_p, (repetition, frequency, presence, bias))| {
            Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repetition_penalty: repetition,
                frequency_penalty: frequency,
                presence_penalty: presence,
                logit_bias: bias,
                logprobs: None,
                seed,
            }
        },
    )
}

/// Rows of different shapes: flat, peaked, with many equals, of every length around blocks.
fn rows() -> impl Strategy<Value = Vec<f32>> {
    let length = prop_oneof![1..700usize, 1..3000usize, 60..70usize, 126..131usize];
    (length, prop_oneof![Just(0.5f32), Just(5.0), Just(20.0), Just(200.0)], any::<bool>())
        .prop_flat_map(|(length, spread, coarse)| {
            let logit = (-spread..spread).prop_map(move |x| if coarse { x.round() } else { x });
            prop::collection::vec(logit, length)
        })
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None, cases: 3000, ..Default::default()
    })]

    #[test]
    fn shortcuts_never_change_a_token(
        rows in prop::collection::vec(rows(), 1..4),
        prompt in prop::collection::vec(0..700u32, 0..5),
        position: u32,
        mut sampling in settings(),
    ) {
        let size = rows.iter().map(Vec::len).min().unwrap();
        sampling.logit_bias.retain(|id, _| (*id as usize) < size);
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let cpu = Cpu::new(isa).unwrap();
            let mut sampler = Sampler::new(sampling.clone(), &prompt, size, cpu);
            let mut completion = Vec::new();
            for (i, row) in (0..).zip(&rows) {
                let at = position.wrapping_add(i);
                let plain = Plain { sampling: &sampling, prompt: &prompt, completion: &completion };
                let row = &row[..size];
                let expected = plain.draw(row, at);
                let found = sampler.sample(&mut row.to_vec(), at).unwrap().id;
                prop_assert_eq!(found, expected, "{:?}", isa);
                completion.push(found);
            }
        }
    }

    #[test]
    fn probabilities_are_those_of_a_plain_softmax_whatever_the_settings(
        row in rows(),
        mut sampling in settings(),
        top in 0..=LOGPROBS_MAX,
    ) {
        sampling.logit_bias.retain(|id, _| (*id as usize) < row.len());
        let silent = draw(&sampling, &row, 3);
        sampling.logprobs = Some(top);
        let mut of_isa = Vec::new();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let cpu = Cpu::new(isa).unwrap();
            let mut sampler = Sampler::new(sampling.clone(), &[], row.len(), cpu);
            of_isa.push(sampler.sample(&mut row.clone(), 3).unwrap());
        }
        prop_assert!(of_isa.iter().all(|drawn| *drawn == of_isa[0]));
        let drawn = of_isa.pop().unwrap();
        prop_assert_eq!(drawn.id, silent, "telling probabilities changes no token");
        let plain = Sampling { logprobs: None, ..self::sampling() };
        let order = Plain { sampling: &plain, prompt: &[], completion: &[] }.candidates(&row);
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        let expected = |id: usize| f64::from(row[id]) - sum.ln();
        let Logprobs { chosen, top: told } = drawn.logprobs.unwrap();
        prop_assert!((chosen - expected(drawn.id as usize)).abs() < 1e-6);
        prop_assert!(chosen <= 0.0);
        prop_assert_eq!(told.len(), row.len().min(top as usize));
        for ((id, logprob), wanted) in told.into_iter().zip(order) {
            prop_assert_eq!(id as usize, wanted);
            prop_assert!((logprob - expected(wanted)).abs() < 1e-6 && logprob <= 0.0);
        }
    }
}

#[test]
fn the_noise_key_is_the_beginning_of_keccak256() {
    // keccak256 of 32 zero bytes, as every Ethereum tool gives it:
    // 290decd9 548b62a8 d60345a9 88386fc8 …
    assert_eq!(noise_key(&[0; 32]), [0x290d_ecd9, 0x548b_62a8]);
}

#[test]
fn a_words_bound_never_shuts_out_a_winner() {
    for step in 0..2220 {
        let needed = f64::from(step) * 0.01;
        let least = least_word(needed);
        assert!(least == 0 || gumbel(least - 1) < needed, "{needed}");
        // Nor lets in many more than could win: twice as many and two.
        let allowed = 4_294_967_296.0 - f64::from(least);
        assert!(allowed <= 2.01 * (-needed).exp() * 4_294_967_296.0 + 2.0, "{needed}");
    }
    assert_eq!(least_word(f64::NEG_INFINITY), 0);
    assert!(gumbel(u32::MAX) < NOISE_MAX);
}

#[test]
fn tokens_come_as_often_as_their_probability_says() {
    // 0.5, 0.25, 0.15, 0.1, and what temperature, penalties and cuts make of them.
    let logits: Vec<f32> = [0.5f32, 0.25, 0.15, 0.1].map(f32::ln).to_vec();
    let half = Sampling { temperature: 0.5, ..sampling() };
    let squares: f64 = [0.25, 0.0625, 0.0225, 0.01].iter().sum();
    let biased = Sampling { logit_bias: BTreeMap::from([(3, 5f32.ln())]), ..sampling() };
    let repeated = Sampling { repetition_penalty: 2.0, ..sampling() };
    let halves: f64 = 0.5 + 0.25 + 0.15 * 0.15 + 0.1;
    #[rustfmt::skip]
    let table = [
        (sampling(), [0.5, 0.25, 0.15, 0.1]),
        (half, [0.25, 0.0625, 0.0225, 0.01].map(|p| p / squares)),
        (Sampling { top_k: 2, ..sampling() }, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
        // 0.5 + 0.25 < 0.8 ≤ 0.5 + 0.25 + 0.15.
        (Sampling { top_p: 0.8, ..sampling() }, [0.5 / 0.9, 0.25 / 0.9, 0.15 / 0.9, 0.0]),
        (Sampling { min_p: 0.4, ..sampling() }, [2.0 / 3.0, 1.0 / 3.0, 0.0, 0.0]),
        (biased, [0.5 / 1.4, 0.25 / 1.4, 0.15 / 1.4, 0.5 / 1.4]),
        // Logarithms of probabilities are negative, so doubling them squares.
        (repeated, [0.5, 0.25, 0.15 * 0.15, 0.1].map(|p| p / halves)),
    ];
    for (sampling, expected) in table {
        let mut counts = [0; 4];
        for position in 0..40_000 {
            let mut sampler = sampler(&sampling, &[2], 4);
            let drawn = sampler.sample(&mut logits.clone(), position).unwrap();
            counts[drawn.id as usize] += 1;
        }
        for (count, p) in counts.into_iter().zip(expected) {
            let (mean, deviation) = (40_000.0 * p, (40_000.0 * p * (1.0 - p)).sqrt());
            // The draws are fixed, so this can't flicker.
            assert!((f64::from(count) - mean).abs() <= 4.0 * deviation, "{counts:?} {sampling:?}");
        }
    }
}

#[test]
fn noise_of_a_large_vocabulary_is_uniform() {
    // 49 152 equal logits: each sixteenth of the ids is drawn as often as the others.
    let logits = vec![0.5; 49_152];
    let mut sampler = sampler(&sampling(), &[], logits.len());
    let mut counts = [0i32; 16];
    for position in 0..3200 {
        let drawn = sampler.sample(&mut logits.clone(), position).unwrap();
        counts[drawn.id as usize * 16 / 49_152] += 1;
    }
    // χ² of 15 degrees: 37.7 is passed once in a thousand; the draws are fixed.
    let chi: f64 = counts.iter().map(|count| f64::from(count - 200).powi(2) / 200.0).sum();
    assert!(chi < 37.7, "{counts:?}");
}

#[test]
fn at_least_one_candidate_is_always_left() {
    let logits = [1.0, 3.0, 3.0, 2.0];
    let none = Sampling { top_p: 0.0, ..sampling() };
    let one = Sampling { min_p: 1.0, top_k: 1, ..sampling() };
    for position in 0..50 {
        // The first in order: of equals the lowest id.
        assert_eq!(draw(&none, &logits, position), 1);
        assert_eq!(draw(&one, &logits, position), 1);
    }
}

#[test]
fn a_cut_among_equals_keeps_the_lowest_ids() {
    let logits = [0.0, 2.0, -0.0, 2.0, 0.0, 2.0, 2.0];
    let drawn = |sampling: Sampling| {
        let ids = (0..400).map(|position| draw(&sampling, &logits, position));
        ids.collect::<std::collections::BTreeSet<u32>>().into_iter().collect::<Vec<_>>()
    };
    assert_eq!(drawn(Sampling { top_k: 2, ..sampling() }), [1, 3]);
    // Four of 0.2272 and three of 0.0307: three of the first reach two thirds.
    assert_eq!(drawn(Sampling { top_p: 0.667, ..sampling() }), [1, 3, 5]);
    assert_eq!(drawn(Sampling { min_p: 0.9, ..sampling() }), [1, 3, 5, 6]);
    // −0 is 0: of those three the first by id.
    assert_eq!(drawn(Sampling { top_k: 6, ..sampling() }), [0, 1, 2, 3, 5, 6]);
}

#[test]
fn no_temperature_takes_the_first_of_the_largest() {
    let logits = [1.0, 3.0, 3.0, 2.0];
    for temperature in [0.0, 9e-7] {
        assert_eq!(draw(&Sampling { temperature, ..sampling() }, &logits, 7), 1);
    }
    assert_eq!(draw(&Sampling::greedy(), &[-1.0, -0.0, 0.0], 7), 1);
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
fn a_repetition_penalty_counts_prompt_and_completion_once_each() {
    let greedy = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
    let mut sampler = sampler(&greedy, &[0, 0, 70], 100);
    let mut logits = vec![-1.0; 100];
    (logits[0], logits[1], logits[2], logits[70]) = (4.0, 2.5, 2.2, -0.5);
    // 0: 4/2 = 2; then 1 was drawn and has 1.25.
    assert_eq!(sampler.sample(&mut logits.clone(), 3).unwrap().id, 1);
    let mut second = logits.clone();
    assert_eq!(sampler.sample(&mut second, 4).unwrap().id, 2);
    assert_eq!((second[0], second[1], second[2], second[70]), (2.0, 1.25, 2.2, -1.0));
}

#[test]
fn frequency_and_presence_count_the_completion_only() {
    let greedy = Sampling { frequency_penalty: 0.25, presence_penalty: 0.5, ..Sampling::greedy() };
    let mut sampler = sampler(&greedy, &[0, 0, 0], 3);
    let logits = [4.0, 3.0, 0.0];
    let mut drawn = Vec::new();
    let mut last = Vec::new();
    for position in 3..8 {
        last = logits.to_vec();
        drawn.push(sampler.sample(&mut last, position).unwrap().id);
    }
    // 0: 4, 3.25, 3.0 (a tie: the lower id), 2.75; then 1: 3, 2.25.
    assert_eq!(drawn, [0, 0, 0, 1, 0]);
    assert_eq!(last, [2.75, 2.25, 0.0]);
}

#[test]
fn biases_come_before_penalties_and_a_hundred_is_as_good_as_a_ban() {
    let greedy = Sampling {
        repetition_penalty: 2.0,
        logit_bias: BTreeMap::from([(0, -3.0), (1, 1.5)]),
        ..Sampling::greedy()
    };
    let mut logits = [2.0, 2.0, 3.0];
    let mut sampler = sampler(&greedy, &[0, 1], 3);
    assert_eq!(sampler.sample(&mut logits, 2).unwrap().id, 2);
    assert_eq!(logits, [-2.0, 1.75, 3.0]);
    let banned = Sampling { logit_bias: BTreeMap::from([(0, -100.0)]), ..sampling_hot() };
    let forced = Sampling { logit_bias: BTreeMap::from([(0, 100.0)]), ..sampling_hot() };
    for position in 0..2000 {
        // 40 above all others, or 40 below: the bias decides, at any temperature up to 2.
        assert_ne!(draw(&banned, &[40.0, 0.0, 0.0], position), 0);
        assert_eq!(draw(&forced, &[0.0, 40.0, 40.0], position), 0);
    }
}

fn sampling_hot() -> Sampling {
    Sampling { temperature: 2.0, ..sampling() }
}

#[test]
fn logits_that_are_not_finite_are_refused_wherever_they_stand() {
    for size in [2usize, 64, 65, 200] {
        for at in [0, size / 2, size - 1] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut logits = vec![0.5; size];
                logits[at] = bad;
                for logprobs in [None, Some(1)] {
                    let mut sampler = sampler(&Sampling { logprobs, ..sampling() }, &[], size);
                    assert_eq!(sampler.sample(&mut logits.clone(), 0), Err(NotFinite), "{at}");
                }
            }
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let ok = sampling();
    let bias = |id, bias| Sampling { logit_bias: BTreeMap::from([(id, bias)]), ..ok.clone() };
    for (name, bad) in [
        ("temperature", Sampling { temperature: -0.1, ..ok.clone() }),
        ("temperature", Sampling { temperature: f32::NAN, ..ok.clone() }),
        ("top_p", Sampling { top_p: 1.1, ..ok.clone() }),
        ("min_p", Sampling { min_p: -1.0, ..ok.clone() }),
        ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..ok.clone() }),
        ("frequency_penalty", Sampling { frequency_penalty: 2.1, ..ok.clone() }),
        ("presence_penalty", Sampling { presence_penalty: -2.1, ..ok.clone() }),
        ("logprobs", Sampling { logprobs: Some(21), ..ok.clone() }),
        ("logit_bias", bias(9, -100.5)),
        ("logit_bias", bias(9, f32::NAN)),
        ("logit_bias", bias(10, 1.0)),
    ] {
        match bad.check(10) {
            Err(StartError::InvalidSetting { setting, .. }) => assert_eq!(setting, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(ok.check(10), Ok(()));
    let edge = Sampling { frequency_penalty: -2.0, logprobs: Some(20), ..bias(9, 100.0) };
    assert_eq!(edge.check(10), Ok(()));
}
