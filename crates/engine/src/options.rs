//! Settings of an engine, and their ranges.
//!
//! For: whoever loads a model, to serve it or to derive its text again.
//! Must never: change what a model says: only how fast, how many at once and in how much memory;
//! the precision of keys and values alone is told with the model's digest.

use crate::error::LoadError;
use crate::kernels::Isa;
use crate::kernels::threads::Crew;
use crate::kv::{BLOCK_TOKENS, KvType, Scope};

/// Who may use whose cached prefixes: tokens that were computed before are not computed again.
///
/// The text is the same either way. The time to the first token isn't: it tells the sender
/// whether somebody it shares with has sent the same beginning before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SharePrefixes {
    /// Nobody, not even a conversation its own earlier turns.
    Nobody,
    /// Requests of one owner; those without an owner share nothing.
    #[default]
    WithinOwner,
    /// All requests.
    Everyone,
}

impl SharePrefixes {
    /// The scope that a request of `owner` shares in.
    pub(crate) fn scope(self, owner: Option<[u8; 32]>) -> Option<Scope> {
        match self {
            SharePrefixes::Nobody => None,
            SharePrefixes::WithinOwner => owner,
            SharePrefixes::Everyone => Some(Scope::default()),
        }
    }
}

/// Settings of an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads that compute, the model's own included: 1 to 256.
    pub threads: usize,
    /// Whether each of them is kept on a processor of its own, from the first that the process
    /// may use on. Only for machines on which nothing else runs; results don't depend on it.
    pub pin_threads: bool,
    /// Bytes for the KV cache, allocated at once, touched as it fills.
    pub kv_memory_bytes: u64,
    /// What keys and values are stored as.
    pub kv_type: KvType,
    /// Sequences that run at once, at most: 1 to 1024.
    pub running_max: usize,
    /// Sequences that wait beyond those, at most; more are refused.
    pub queue_max: usize,
    /// Prompt tokens in one step, all sequences together: 16 to 8192. More reads prompts
    /// faster, less keeps the others' tokens coming evenly.
    pub prefill_chunk: usize,
    /// Whether tokens are guessed where a text repeats itself or its prompt, and checked several
    /// at a time. Results don't depend on it.
    pub speculation: bool,
    /// Who may use whose cached prefixes.
    pub share_prefixes: SharePrefixes,
    /// Instruction set; the best one if `None`. Results don't depend on it.
    pub isa: Option<Isa>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            threads: std::thread::available_parallelism().map_or(1, |n| n.get().min(256)),
            pin_threads: false,
            kv_memory_bytes: 1 << 30,
            kv_type: KvType::default(),
            running_max: 8,
            queue_max: 64,
            prefill_chunk: 64,
            speculation: true,
            share_prefixes: SharePrefixes::default(),
            isa: None,
        }
    }
}

impl EngineOptions {
    /// # Errors
    /// [`LoadError::Options`] names the first option that is out of range.
    pub fn check(&self) -> Result<(), LoadError> {
        let rules = [
            ("threads", self.threads, 1..=256),
            ("running_max", self.running_max, 1..=1024),
            ("queue_max", self.queue_max, 0..=1 << 20),
            ("prefill_chunk", self.prefill_chunk, BLOCK_TOKENS..=8192),
        ];
        for (option, value, range) in rules {
            if !range.contains(&value) {
                let (low, high) = (range.start(), range.end());
                let reason = format!("must be from {low} to {high}, is {value}");
                return Err(LoadError::Options { option, reason });
            }
        }
        let places = self.crew().check().map_err(|error| error.to_string());
        places.map_err(|reason| LoadError::Options { option: "pin_threads", reason })
    }

    pub(crate) fn crew(&self) -> Crew {
        Crew { count: self.threads, is_pinned: self.pin_threads }
    }
}
