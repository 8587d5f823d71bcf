//! How a client wants tokens drawn.
//!
//! For: the ranges of every setting, in one place.
//! Must never: accept a setting that the sampler doesn't carry out.
//! Relies on: nothing.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::error::StartError;

/// Most likely ids that are told with a token, at most.
pub const LOGPROBS_MAX: u32 = 20;

/// How a sequence's tokens are drawn (docs/spec/numerics.md, rule 6).
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits, 0 to 100; below 1e-6 the most likely token is taken.
    pub temperature: f32,
    /// Keep the k most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Keep the most likely tokens that together reach this probability; 1 keeps all, 0 one.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of ids that are in the prompt or the
    /// completion so far, 0.01 to 100; 1 changes nothing.
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

    /// Checks the ranges for a vocabulary of `vocab_size`.
    ///
    /// # Errors
    /// [`StartError::InvalidSetting`].
    pub fn check(&self, vocab_size: u32) -> Result<(), StartError> {
        let rules = [
            ("temperature", self.temperature, 0.0..=100.0),
            ("top_p", self.top_p, 0.0..=1.0),
            ("min_p", self.min_p, 0.0..=1.0),
            ("repetition_penalty", self.repetition_penalty, 0.01..=100.0),
            ("frequency_penalty", self.frequency_penalty, -2.0..=2.0),
            ("presence_penalty", self.presence_penalty, -2.0..=2.0),
        ];
        for (name, value, range) in rules {
            within(name, value, range)?;
        }
        for (id, bias) in &self.logit_bias {
            if *id >= vocab_size {
                let reason = format!("names id {id}, the vocabulary has {vocab_size}");
                return Err(StartError::InvalidSetting { setting: "logit_bias", reason });
            }
            within("logit_bias", *bias, -100.0..=100.0)?;
        }
        match self.logprobs {
            Some(top) if top > LOGPROBS_MAX => {
                let reason = format!("must be at most {LOGPROBS_MAX}, is {top}");
                Err(StartError::InvalidSetting { setting: "logprobs", reason })
            }
            _ => Ok(()),
        }
    }

    /// Whether any setting changes logits before they are divided by the temperature.
    pub(super) fn edits_logits(&self) -> bool {
        self.repetition_penalty != 1.0 || self.penalises_completion() || !self.logit_bias.is_empty()
    }

    /// Whether it matters how often an id was generated.
    pub(super) fn penalises_completion(&self) -> bool {
        self.frequency_penalty != 0.0 || self.presence_penalty != 0.0
    }
}

fn within(setting: &'static str, value: f32, range: RangeInclusive<f32>) -> Result<(), StartError> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    let reason = format!("must be from {low} to {high}, is {value}");
    Err(StartError::InvalidSetting { setting, reason })
}
