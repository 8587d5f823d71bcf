//! Checkpoints 10 and 11: from logits to a token.

use super::harness::{Checkpoint, cpu, ids, run, unchanged};
use super::small::Small;
use crate::kernels::vocabulary::{Scale, add_masses};
use crate::probe::Stage;
use crate::sampler::{Sampler, Sampling};

fn choose(temperature: f32, logits: &[f32], position: u32) -> u32 {
    let sampling = Sampling { temperature, ..Sampling::greedy() };
    let mut sampler = Sampler::new(sampling, &[], logits.len(), cpu());
    sampler.sample(&mut logits.to_vec(), position).unwrap().id
}

#[test]
fn checkpoint_10_argmax() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let seen = run(&mut model, &small.ids, &mut unchanged).0;
    let theirs = ids(&small.fixture["argmax"]);
    let rows: Vec<&[f32]> = seen[&(Stage::Logits, 4)].chunks_exact(869).collect();
    let wrong = |temperature: f32| {
        let chosen = (0..).zip(&rows).map(|(at, row)| choose(temperature, row, at));
        chosen.zip(&theirs).filter(|(a, b)| a != *b).count() as f64
    };
    let mut checkpoint = Checkpoint::new("10 argmax, rows with another id", 0.0);
    checkpoint.part("T = 0", wrong(0.0));
    checkpoint.part("T = 0.99e-6", wrong(0.99e-6));
    // Two ids share the largest logit, in one block of the search and in two; 0 and −0 too.
    let tie = |ids: &[usize], values: [f32; 2]| {
        let mut row = vec![-3.0; 869];
        ids.iter().zip(values).for_each(|(id, value)| row[*id] = value);
        f64::from(u8::from(choose(0.0, &row, 0) as usize != ids[0]))
    };
    let ties = [([5, 9], 2.0), ([63, 64], 2.0), ([5, 868], 2.0)];
    let found = ties.iter().map(|(ids, value)| tie(ids, [*value; 2])).sum::<f64>();
    checkpoint.part("ties", found + tie(&[7, 300], [-0.0, 0.0]));
    // From 1e-6 on a tie is drawn: over some positions either id comes.
    let mut row = vec![-3.0; 869];
    (row[5], row[9]) = (2.0, 2.0);
    let both = |temperature: f32| {
        let chosen: Vec<u32> = (0..64).map(|at| choose(temperature, &row, at)).collect();
        assert!(chosen.iter().all(|id| [5, 9].contains(id)), "{chosen:?}");
        chosen.contains(&5) && chosen.contains(&9)
    };
    checkpoint.part("T = 1e-6, ties not drawn", f64::from(u8::from(!both(1e-6))));
    checkpoint.part("T = 0.99e-6, ties drawn", f64::from(u8::from(both(0.99e-6))));
    checkpoint.negative("T = 1", wrong(1.0));
    checkpoint.finish();
}

/// Probabilities of a row by the sampler's own masses (docs/spec/numerics.md, rule 6).
pub fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = Scale::at(best, temperature);
    let mass = |of: &[f32]| {
        let mut sum = 0;
        add_masses(cpu(), of, scale, &mut sum);
        sum as f64
    };
    let all = mass(logits);
    logits.chunks(1).map(|logit| mass(logit) / all).collect()
}

/// The largest difference of two distributions.
fn furthest(ours: &[f64], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let each = ours.iter().zip(theirs).map(|(a, b)| (a - f64::from(*b)).abs());
    each.fold(0.0, f64::max)
}

#[test]
fn checkpoint_11_probabilities() {
    let small = Small::new();
    let logits = small.theirs.get("logits").split_off(19 * 869);
    let mut checkpoint = Checkpoint::new("11 probabilities", 1e-6);
    for case in small.fixture["softmax"].as_array().unwrap() {
        let temperature = case["temperature"].as_f64().unwrap() as f32;
        let theirs: Vec<f32> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let ours = probabilities(&logits, temperature);
        let apart = |ours: &[f64]| furthest(ours, &theirs);
        checkpoint.part(&format!("T = {temperature}"), apart(&ours));
        checkpoint.part("sum − 1", (ours.iter().sum::<f64>() - 1.0).abs());
        let mut order: Vec<u32> = (0..869).collect();
        order.sort_by(|a, b| ours[*b as usize].total_cmp(&ours[*a as usize]).then(a.cmp(b)));
        assert_eq!(order[..5], ids(&case["top"]), "the five most likely, in order");
        if temperature != 1.0 {
            let wrong = apart(&probabilities(&logits, 1.0));
            checkpoint.negative(&format!("T = {temperature} left out"), wrong);
        }
    }
    // What clients are told is the same distribution at T = 1.
    let sampling = Sampling { logprobs: Some(5), ..Sampling::greedy() };
    let mut sampler = Sampler::new(sampling, &[], 869, cpu());
    let told = sampler.sample(&mut logits.clone(), 0).unwrap().logprobs.unwrap();
    let theirs: Vec<f64> =
        serde_json::from_value(small.fixture["softmax"][1]["probabilities"].clone()).unwrap();
    for (id, logprob) in told.top {
        let told = crate::math::exp(logprob);
        checkpoint.part("told to clients", (told - theirs[id as usize]).abs());
    }
    checkpoint.finish();
}

/// How often each id is drawn, at as many positions.
fn frequencies(logits: &[f32], temperature: f32, draws: u32) -> Vec<f64> {
    let sampling = Sampling { temperature, ..Sampling::greedy() };
    let mut sampler = Sampler::new(sampling, &[], logits.len(), cpu());
    let mut counts = vec![0.0; logits.len()];
    let mut row = logits.to_vec();
    for position in 0..draws {
        let id = sampler.sample(&mut row, position).unwrap().id;
        counts[id as usize] += 1.0 / f64::from(draws);
    }
    counts
}

#[test]
fn checkpoint_11_tokens_are_drawn_as_often_as_they_are_likely() {
    let small = Small::new();
    let logits = small.theirs.get("logits").split_off(19 * 869);
    // Nearly three standard deviations of a token that comes every second time, √(¼ / 20 000).
    let mut checkpoint = Checkpoint::new("11 frequencies of 20 000 draws", 1e-2);
    for case in small.fixture["softmax"].as_array().unwrap() {
        let temperature = case["temperature"].as_f64().unwrap() as f32;
        let theirs: Vec<f32> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let drawn = frequencies(&logits, temperature, 20_000);
        checkpoint.part(&format!("T = {temperature}"), furthest(&drawn, &theirs));
        if temperature != 1.0 {
            let wrong = furthest(&frequencies(&logits, 1.0, 20_000), &theirs);
            checkpoint.negative(&format!("T = {temperature} left out"), wrong);
        }
    }
    checkpoint.finish();
}
