//! Names of all metrics, with unit, labels and meaning.
//!
//! Never records and never installs anything: every layer may name a metric, `node/metrics.rs`
//! alone collects them. `docs/metrics.md` repeats this list, which a test checks. Labels hold a
//! few fixed words, never an id. Relies on nothing.

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// Only up; from 0 at start.
    Counter,
    /// Up and down.
    Gauge,
    /// A distribution.
    Histogram,
}

impl MetricKind {
    /// As Prometheus calls it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: &'static str,
    /// Its labels; the words each may hold stand in `about`.
    pub labels: &'static [&'static str],
    /// What it means.
    pub about: &'static str,
}

/// Declares one constant a metric and the list of all.
macro_rules! metrics {
    ($(
        $constant:ident = $name:literal, $kind:ident, $unit:literal, $labels:expr, $about:literal;
    )*) => {
        $(#[doc = $about] pub const $constant: &str = $name;)*

        /// All metrics.
        pub const METRICS: &[Metric] = &[$(Metric {
            name: $name,
            kind: MetricKind::$kind,
            unit: $unit,
            labels: &$labels,
            about: $about,
        }),*];
    };
}

metrics! {
    REQUESTS = "requests_total", Counter, "requests", ["api", "outcome"],
        "Requests that ended, by front-end and how: a finish reason or an error code";
    TOKENS_DELIVERED = "tokens_delivered_total", Counter, "tokens", [],
        "Tokens whose frame was written to a client's socket";
    TOKENS_RECORDED = "tokens_recorded_total", Counter, "tokens", [],
        "Delivered tokens that are durable in the ledger";
    TOKENS_CLAIMED = "tokens_claimed_total", Counter, "tokens", [],
        "Tokens of claims that were signed and sent";
    TOKENS_CONFIRMED = "tokens_confirmed_total", Counter, "tokens", [],
        "Tokens of claims that are final on chain";
    TOKENS_UNCLAIMABLE = "tokens_unclaimable_total", Counter, "tokens", [],
        "Recorded tokens of ended sessions that were too few for a claim";
    TOKENS_FORFEITED = "tokens_forfeited_total", Counter, "tokens", [],
        "Recorded tokens that a claim could have carried in time and that are lost";
    CLAIMS = "claims_total", Counter, "claims", ["outcome"],
        "Claims by what became of them: submitted, included, confirmed, rejected";
    CLAIM_GAS_FEE = "claim_gas_fee_wei_total", Counter, "wei", [],
        "What included claims cost";
    TTFT = "ttft_seconds", Histogram, "seconds", ["api"],
        "Time from a request's arrival to its first delivered token";
    INTER_TOKEN = "inter_token_seconds", Histogram, "seconds", ["api"],
        "Time between two deliveries of one stream";
    ENGINE_SEQUENCES_RUNNING = "engine_sequences_running", Gauge, "sequences", [],
        "Sequences that make progress";
    ENGINE_SEQUENCES_QUEUED = "engine_sequences_queued", Gauge, "sequences", [],
        "Sequences that wait for room";
    KV_BLOCK_COUNT_FREE = "kv_block_count_free", Gauge, "blocks", [],
        "Blocks of the KV cache that no sequence uses, the cached ones among them";
    KV_BLOCK_COUNT_CACHED = "kv_block_count_cached", Gauge, "blocks", [],
        "Blocks that no sequence uses, kept with their tokens until room is needed";
    KV_EVICTIONS = "kv_evictions_total", Counter, "blocks", [],
        "Cached blocks that were given up for lack of room";
    PREFIX_HITS = "prefix_hits_total", Counter, "sequences", [],
        "Sequences that found a beginning of theirs in the KV cache";
    PREFIX_TOKENS = "prefix_tokens_total", Counter, "tokens", [],
        "Tokens that sequences found in the KV cache and that were not read again";
    PREEMPTIONS = "preemptions_total", Counter, "sequences", [],
        "Sequences that gave their blocks to older ones, to be read again later";
    SPECULATION_GUESSED_TOKENS = "speculation_guessed_tokens_total", Counter, "tokens", [],
        "Tokens that were guessed where a text repeats itself or its prompt, and checked";
    SPECULATION_RIGHT_TOKENS = "speculation_right_tokens_total", Counter, "tokens", [],
        "Guessed tokens that came true, for which the weights were not read once more";
    SESSIONS_ACTIVE = "sessions_active", Gauge, "sessions", [],
        "Sessions that are not over on chain";
    CHAIN_HEAD_BLOCK = "chain_head_block", Gauge, "blocks", [],
        "Height of the newest block seen";
    CHAIN_ERRORS = "chain_errors_total", Counter, "errors", ["kind"],
        "Looks at the chain that failed: unreachable, unexpected";
    CHAIN_DISAGREEMENTS = "chain_disagreements_total", Counter, "reads", ["read"],
        "Reads on which RPC endpoints contradict each other, by what was read";
    CHAIN_ENDPOINTS_USABLE = "chain_endpoints_usable", Gauge, "endpoints", [],
        "RPC endpoints with which nothing is wrong";
    LEDGER_GROUPS = "ledger_groups_total", Counter, "groups", [],
        "Groups of entries that became durable";
    LEDGER_APPEND = "ledger_append_seconds", Histogram, "seconds", [],
        "Time from handing a group to the ledger to its acknowledgement";
    WEBSOCKET_CONNECTIONS_ACTIVE = "websocket_connections_active", Gauge, "connections", [],
        "Open WebSocket connections";
    HTTP_RESPONSES = "http_responses_total", Counter, "responses", ["route", "status"],
        "HTTP responses by route pattern and status";
    BUILD_INFO = "build_info", Gauge, "1", ["version", "commit"],
        "Always 1; its labels say what runs";
}

impl Metric {
    /// Its row in `docs/metrics.md`.
    #[must_use]
    pub fn markdown_row(&self) -> String {
        let kind = self.kind.word();
        let labels: Vec<_> = self.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = labels.join(", ");
        format!("| `{}` | {kind} | {} | {labels} | {} |", self.name, self.unit, self.about)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        for metric in METRICS {
            let is_snake = |symbol: char| symbol.is_ascii_lowercase() || symbol == '_';
            assert!(metric.name.chars().all(is_snake), "{}", metric.name);
            let is_total = metric.name.ends_with("_total");
            assert_eq!(is_total, metric.kind == MetricKind::Counter, "{}", metric.name);
        }
    }

    #[test]
    fn the_document_lists_exactly_the_metrics_there_are() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
        let document = std::fs::read_to_string(path).unwrap();
        let rows: Vec<_> = document.lines().filter(|line| line.starts_with("| `")).collect();
        let wanted: Vec<_> = METRICS.iter().map(Metric::markdown_row).collect();
        assert!(rows == wanted, "docs/metrics.md; rows must be:\n{}", wanted.join("\n"));
    }
}
