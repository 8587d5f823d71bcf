//! How an answer is told and timed: the fields that every protocol shares, and its metrics.
//!
//! Never counts tokens by itself: the numbers are the session service's.

use std::sync::Arc;

use metrics::{Histogram, counter, histogram};
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::session::{Logprob, ReplyInfo, TokenLogprobs, TurnEnd, Usage};
use crate::units::Millis;

/// The wire name of a reason.
pub(super) const fn finish_reason(end: TurnEnd) -> &'static str {
    match end {
        TurnEnd::Stop => "stop",
        TurnEnd::Length => "length",
        TurnEnd::Cancelled => "cancelled",
        TurnEnd::DepositExhausted => "deposit_exhausted",
        TurnEnd::Error => "error",
    }
}

/// `usage` on the wire.
pub(super) fn usage(usage: Usage) -> Value {
    let total = u64::from(usage.prompt_tokens).saturating_add(u64::from(usage.completion_tokens));
    json!({
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
        "context_window_size": usage.context_window,
    })
}

/// One entry for each token, as OpenAI's API has them; `None` where the request asked for none.
pub(super) fn logprobs(tokens: &[TokenLogprobs]) -> Option<Vec<Value>> {
    let entry = |token: &TokenLogprobs| {
        let mut map = logprob(&token.chosen);
        let top: Vec<Value> = token.top.iter().map(|one| logprob(one).into()).collect();
        map.insert("top_logprobs".into(), top.into());
        Value::Object(map)
    };
    (!tokens.is_empty()).then(|| tokens.iter().map(entry).collect())
}

fn logprob(one: &Logprob) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("token".into(), String::from_utf8_lossy(&one.bytes).into());
    map.insert("logprob".into(), one.logprob.into());
    map.insert("bytes".into(), one.bytes.clone().into());
    map
}

/// Adds `logprobs` to a message of the marketplace's protocols, whose frames have no such field
/// where nobody asked for it.
pub(super) fn put_logprobs(map: &mut Map<String, Value>, tokens: &[TokenLogprobs]) {
    if let Some(content) = logprobs(tokens) {
        map.insert("logprobs".into(), json!({ "content": content }));
    }
}

/// What an answer's end says in every protocol.
pub(super) fn summary(
    info: &ReplyInfo,
    (end, counts): (TurnEnd, Usage),
    chain_id: Option<u64>,
) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("model".into(), info.model.clone().into());
    map.insert("tokens_used".into(), counts.completion_tokens.into());
    map.insert("finish_reason".into(), finish_reason(end).into());
    map.insert("usage".into(), usage(counts));
    map.insert("chain_id".into(), chain_id.into());
    map.insert("job_id".into(), info.job.map(crate::units::JobId::get).into());
    map
}

/// Times one request and tells how it ended, once.
pub(super) struct Pace {
    api: &'static str,
    clock: Arc<dyn Clock>,
    started: Millis,
    last: Option<Millis>,
    /// Kept, since looking it up for each token costs more than recording.
    gaps: Histogram,
    outcome: Option<&'static str>,
}

impl Pace {
    /// A request that arrived now.
    pub fn start(api: &'static str, clock: Arc<dyn Clock>) -> Self {
        let started = clock.now();
        let gaps = histogram!("inter_token_seconds", "api" => api);
        Self { api, clock, started, last: None, gaps, outcome: None }
    }

    /// A frame is on its way.
    pub fn frame(&mut self) {
        let now = self.clock.now();
        match self.last.replace(now) {
            None => {
                let ttft = seconds(now.saturating_sub(self.started));
                histogram!("ttft_seconds", "api" => self.api).record(ttft);
            }
            Some(last) => {
                self.gaps.record(seconds(now.saturating_sub(last)));
            }
        }
    }

    /// How it ended: a finish reason or a refusal's code.
    pub fn ended(&mut self, outcome: &'static str) {
        self.outcome = Some(outcome);
    }
}

impl Drop for Pace {
    /// Nobody said how it ended: its client is gone.
    fn drop(&mut self) {
        let outcome = self.outcome.unwrap_or("disconnected");
        counter!("requests_total", "api" => self.api, "outcome" => outcome).increment(1);
    }
}

fn seconds(span: Millis) -> f64 {
    std::time::Duration::from_millis(span.get()).as_secs_f64()
}
