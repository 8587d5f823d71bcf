//! What came of the trials.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Value, json};
use tally::node::verify::{Outcome, Verdict, lines};
use tally::proof::Blob;
use tally_engine::EngineOptions;

use crate::record::Record;

/// Counts of everything.
#[derive(Default)]
pub struct Tallies {
    pub honest_turns: usize,
    pub false_rejects: usize,
    pub cheats: BTreeMap<&'static str, Cheats>,
    /// Cheats that were found, but not by the check that they were made for.
    pub wrong_reasons: usize,
    /// How the trials were spread: lines of the report.
    spread: BTreeMap<String, usize>,
    pub verify_cost_ratio: f64,
    pub blob_bytes_per_token: f64,
}

#[derive(Default, Clone, Copy)]
pub struct Cheats {
    pub tried: usize,
    pub accepted: usize,
}

impl Tallies {
    pub fn engine(&mut self, options: &EngineOptions) {
        let isa = options.isa.map(|isa| format!("{isa:?}")).unwrap_or_default();
        self.count(format!("starts on {isa}"));
        self.count(format!("starts with {} threads", options.threads));
        self.count(format!("starts with chunks of {}", options.prefill_chunk));
        self.count(format!("starts with batches of {}", options.running_max));
        self.count(format!("starts with prefixes shared {:?}", options.share_prefixes));
        self.count(format!("starts with cache of {:?}", options.kv_type));
        self.count(format!("starts with speculation {}", options.speculation));
    }

    /// The turns of a claim that was found right.
    pub fn honest(&mut self, model: &str, blob: &Blob) {
        self.count(format!("claims of {model}"));
        for turn in &blob.turns {
            let tokens = blob.output(turn.header.turn).len();
            if tokens == 0 {
                self.count("turns without a token (not counted)".into());
                continue;
            }
            self.honest_turns += 1;
            self.count(format!("turns of {model}"));
            let end = turn.end.map_or("none".to_owned(), |end| format!("{end:?}"));
            self.count(format!("turns with end {end}"));
            let size = match tokens {
                1 => "1 token",
                2..8 => "2 to 7 tokens",
                8..32 => "8 to 31 tokens",
                32..64 => "32 to 63 tokens",
                _ => "64 tokens and more",
            };
            self.count(format!("turns of {size}"));
        }
    }

    /// An honest claim that was refused.
    pub fn false_reject(&mut self, name: &str, record: &Record, verdict: &Verdict) {
        let bad = verdict.checks.iter().filter(|check| check.outcome != Outcome::Holds);
        let mut turns: Vec<_> = bad.map(|check| check.turn).collect();
        turns.dedup();
        self.false_rejects += turns.len().max(1);
        self.keep(&format!("false reject {name}"), &record.blob, verdict);
        let texts: BTreeMap<u32, &String> =
            record.texts.iter().map(|(turn, text)| (turn.get(), text)).collect();
        eprintln!("what the client read: {}", json!(texts));
    }

    pub fn tried(&mut self, kind: &'static str) {
        self.cheats.entry(kind).or_default().tried += 1;
    }

    /// A cheat that was believed.
    pub fn accepted(&mut self, kind: &'static str, name: &str, (blob, verdict): (&Blob, &Verdict)) {
        self.cheats.entry(kind).or_default().accepted += 1;
        self.keep(&format!("accepted {kind} {name}"), blob, verdict);
    }

    /// A cheat that was found by another check than the one it was made for.
    pub fn wrong_reason(&mut self, name: &str, (blob, verdict): (&Blob, &Verdict)) {
        self.wrong_reasons += 1;
        self.keep(&format!("wrong reason {name}"), blob, verdict);
    }

    pub fn count(&mut self, what: String) {
        *self.spread.entry(what).or_default() += 1;
    }

    /// Says what happened and keeps the blob, so that it can be looked into.
    fn keep(&self, name: &str, blob: &Blob, verdict: &Verdict) {
        let file: PathBuf = std::env::temp_dir().join(format!("{}.blob", name.replace(' ', "-")));
        eprintln!("{name}: {}\n{}", file.display(), lines(verdict).join("\n"));
        drop(std::fs::write(&file, blob.encode()));
    }

    pub fn spread(&self) -> String {
        let lines = self.spread.iter().map(|(what, count)| format!("{count:>8}  {what}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    pub fn is_ok(&self, turns_wanted: usize, cheats_wanted: usize) -> bool {
        let whole = |it: &Cheats| it.tried == cheats_wanted && it.accepted == 0;
        self.honest_turns >= turns_wanted
            && self.false_rejects == 0
            && self.wrong_reasons == 0
            && self.cheats.values().all(whole)
    }

    pub fn report(&self, is_ok: bool) -> Value {
        let one = |(kind, it): (&&str, &Cheats)| {
            ((*kind).to_owned(), json!({"tried": it.tried, "accepted": it.accepted}))
        };
        let cheats: serde_json::Map<String, Value> = self.cheats.iter().map(one).collect();
        json!({
            "ok": is_ok,
            "honest_turns": self.honest_turns,
            "false_rejects": self.false_rejects,
            "cheats": cheats,
            "verify_cost_ratio": (self.verify_cost_ratio * 1e4).round() / 1e4,
            "blob_bytes_per_token": (self.blob_bytes_per_token * 100.0).round() / 100.0,
        })
    }
}
