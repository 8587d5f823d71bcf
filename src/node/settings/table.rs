//! The list of settings, by section; see [`super::catalog`] for what a row means.
//!
//! Never computes: rows only. Relies on the tests of `catalog.rs` for the names' regularity and on
//! `tests/it/settings.rs` for `docs/config.md`.

use std::sync::LazyLock;

use super::catalog::{Fallback, Setting};
use super::host_table::HOST;
use super::kind::Kind;
use super::table_paid::PAID;

/// The most threads the engine takes.
pub(super) const THREADS_MAX: u128 = 256;

/// The settings.
pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| [NODE, PAID, HOST, FACES].concat());

/// The node, its model, its engine, its chain and its key.
const NODE: &[Setting] = &[
    Setting {
        key: "listen",
        flag: Some("listen"),
        env: "TALLY_LISTEN",
        alias: Some("API_PORT"),
        kind: Kind::Listen,
        fallback: Fallback::Text("0.0.0.0:8080"),
        about: "Address and port of the HTTP and WebSocket server; a bare port means all \
                addresses, port 0 a free one",
    },
    Setting {
        key: "free",
        flag: Some("free"),
        env: "TALLY_FREE",
        alias: None,
        kind: Kind::Switch,
        fallback: Fallback::Text("false"),
        about: "Serve without pay and without a chain; refused together with chain settings",
    },
    Setting {
        key: "data_dir",
        flag: Some("data-dir"),
        env: "TALLY_DATA_DIR",
        alias: None,
        kind: Kind::Path,
        fallback: Fallback::Computed("~/.local/share/tally"),
        about: "Folder of the ledger and of the node's lock",
    },
    Setting {
        key: "public_url",
        flag: Some("public-url"),
        env: "TALLY_PUBLIC_URL",
        alias: None,
        kind: Kind::Url,
        fallback: Fallback::None,
        about: "Address under which clients reach the node; compared with the registered one",
    },
    Setting {
        key: "launcher_compat",
        flag: Some("launcher-compat"),
        env: "TALLY_LAUNCHER_COMPAT",
        alias: None,
        kind: Kind::Switch,
        fallback: Fallback::Computed(
            "true when started without arguments under a launcher's variables",
        ),
        about: "Print the line a host launcher waits for once the node is healthy",
    },
    Setting {
        key: "shutdown_grace_seconds",
        flag: Some("shutdown-grace-seconds"),
        env: "TALLY_SHUTDOWN_GRACE_SECONDS",
        alias: None,
        kind: Kind::Integer { min: 0, max: 3600, unit: "s" },
        fallback: Fallback::Text("30"),
        about: "Time running streams get to finish after a stop signal",
    },
    Setting {
        key: "model.path",
        flag: Some("model-path"),
        env: "TALLY_MODEL_PATH",
        alias: Some("MODEL_PATH"),
        kind: Kind::Path,
        fallback: Fallback::Required(
            "a GGUF weight file; `tally model pull REPO FILE` fetches one",
        ),
        about: "Weight file (GGUF), or a folder of safetensors with `config.json` and \
                `tokenizer.json`",
    },
    Setting {
        key: "model.name",
        flag: Some("model-name"),
        env: "TALLY_MODEL_NAME",
        alias: None,
        kind: Kind::Text,
        fallback: Fallback::Computed("the weight file's name without its ending"),
        about: "Name clients send in `model`",
    },
    Setting {
        key: "model.repo",
        flag: Some("model-repo"),
        env: "TALLY_MODEL_REPO",
        alias: None,
        kind: Kind::Text,
        fallback: Fallback::None,
        about: "Hub repository of the weights: first half of the registry's model id",
    },
    Setting {
        key: "model.file",
        flag: Some("model-file"),
        env: "TALLY_MODEL_FILE",
        alias: None,
        kind: Kind::Text,
        fallback: Fallback::Computed("the file name of `model.path`"),
        about: "Hub file name of the weights: second half of the registry's model id",
    },
    Setting {
        key: "model.aliases",
        flag: Some("model-aliases"),
        env: "TALLY_MODEL_ALIASES",
        alias: None,
        kind: Kind::Map,
        fallback: Fallback::Text(""),
        about: "Other names for the model that clients hard-code, as `alias=name` pairs",
    },
    Setting {
        key: "model.more",
        flag: Some("model-more"),
        env: "TALLY_MODEL_MORE",
        alias: None,
        kind: Kind::Map,
        fallback: Fallback::Text(""),
        about: "Further models to serve, as `name=path` pairs; each has a queue of its own, and \
                they compute in turns",
    },
    Setting {
        key: "model.more_registered",
        flag: Some("model-more-registered"),
        env: "TALLY_MODEL_MORE_REGISTERED",
        alias: None,
        kind: Kind::Map,
        fallback: Fallback::Text(""),
        about: "Names of further models in the model registry, as `name=OWNER/NAME/FILE` pairs",
    },
    Setting {
        key: "engine.memory_bytes",
        flag: Some("engine-memory-bytes"),
        env: "TALLY_ENGINE_MEMORY_BYTES",
        alias: None,
        kind: Kind::Bytes { min: 1 << 20, max: 1 << 50 },
        fallback: Fallback::None,
        about: "Memory that the weights and KV caches of all models may take; a model that does \
                not fit stops the start by its name",
    },
    Setting {
        key: "engine.threads",
        flag: Some("engine-threads"),
        env: "TALLY_ENGINE_THREADS",
        alias: None,
        kind: Kind::Integer { min: 1, max: THREADS_MAX, unit: "threads" },
        fallback: Fallback::Computed(
            "as many as processors, of those that affinity and cgroup leave the process, 256 at \
             most",
        ),
        about: "Threads of the forward pass; more than processors make it slower",
    },
    Setting {
        key: "engine.pin_threads",
        flag: Some("engine-pin-threads"),
        env: "TALLY_ENGINE_PIN_THREADS",
        alias: None,
        kind: Kind::Switch,
        fallback: Fallback::Text("false"),
        about: "Keep each of these threads on a processor of its own; only for machines on which \
                nothing else runs: such a thread waits where another would move on",
    },
    Setting {
        key: "engine.kv_memory_bytes",
        flag: Some("engine-kv-memory-bytes"),
        env: "TALLY_ENGINE_KV_MEMORY_BYTES",
        alias: None,
        kind: Kind::Bytes { min: 1 << 20, max: 1 << 44 },
        fallback: Fallback::Text("512MiB"),
        about: "Memory of the KV cache; several models share it in equal parts",
    },
    Setting {
        key: "engine.kv_type",
        flag: Some("engine-kv-type"),
        env: "TALLY_ENGINE_KV_TYPE",
        alias: None,
        kind: Kind::Choice(&["f16", "f32"]),
        fallback: Fallback::Text("f16"),
        about: "What keys and values are stored as; f32 takes twice the memory, gives other texts, \
                and says so in the digest of the model",
    },
    Setting {
        key: "engine.running_max",
        flag: Some("engine-running-max"),
        env: "TALLY_ENGINE_RUNNING_MAX",
        alias: None,
        kind: Kind::Integer { min: 1, max: 1024, unit: "sequences" },
        fallback: Fallback::Text("16"),
        about: "Sequences that make progress at once",
    },
    Setting {
        key: "engine.queue_max",
        flag: Some("engine-queue-max"),
        env: "TALLY_ENGINE_QUEUE_MAX",
        alias: None,
        kind: Kind::Integer { min: 0, max: 65536, unit: "sequences" },
        fallback: Fallback::Text("64"),
        about: "Sequences that may wait; one more is refused with 429",
    },
    Setting {
        key: "engine.prefill_chunk",
        flag: Some("engine-prefill-chunk"),
        env: "TALLY_ENGINE_PREFILL_CHUNK",
        alias: None,
        kind: Kind::Integer { min: 16, max: 8192, unit: "tokens" },
        fallback: Fallback::Text("64"),
        about: "Prompt tokens read in one step, so that other sequences are not held up",
    },
    Setting {
        key: "engine.share_prefixes",
        flag: Some("engine-share-prefixes"),
        env: "TALLY_ENGINE_SHARE_PREFIXES",
        alias: None,
        kind: Kind::Choice(&["nobody", "owner", "everyone"]),
        fallback: Fallback::Text("owner"),
        about: "Whose prompts are not read again where they begin like earlier ones: none, those \
                of one depositor (in free mode all, as the operator's own), or all; the time to \
                the first token and `cached_tokens` then tell whether such a beginning was sent \
                before",
    },
    Setting {
        key: "engine.speculation",
        flag: Some("engine-speculation"),
        env: "TALLY_ENGINE_SPECULATION",
        alias: None,
        kind: Kind::Switch,
        fallback: Fallback::Text("true"),
        about: "Guess tokens of texts that repeat themselves or their prompt, and check the \
                guesses in one step; the text is the same either way",
    },
    Setting {
        key: "chain.rpc_urls",
        flag: Some("chain-rpc-urls"),
        env: "TALLY_CHAIN_RPC_URLS",
        alias: Some("RPC_URL"),
        kind: Kind::Urls,
        fallback: Fallback::Required("one or more JSON-RPC endpoints, first choice first"),
        about: "JSON-RPC endpoints (http or https), first choice first; the next is asked where \
                one fails, lags or refuses",
    },
    Setting {
        key: "chain.quorum",
        flag: Some("chain-quorum"),
        env: "TALLY_CHAIN_QUORUM",
        alias: None,
        kind: Kind::Integer { min: 1, max: 100, unit: "endpoints" },
        fallback: Fallback::Computed("2 where three or more endpoints are named, else 1"),
        about: "Endpoints that must agree before money is freed or final; with fewer, settlement \
                waits. Where two answer, two must agree, whatever stands here",
    },
    Setting {
        key: "chain.id",
        flag: Some("chain-id"),
        env: "TALLY_CHAIN_ID",
        alias: Some("CHAIN_ID"),
        kind: Kind::Integer { min: 1, max: u64::MAX as u128, unit: "" },
        fallback: Fallback::Required(
            "the eip155 id of the chain, for example 84532 for Base Sepolia",
        ),
        about: "eip155 id that the endpoints must report",
    },
    Setting {
        key: "chain.marketplace",
        flag: Some("chain-marketplace"),
        env: "TALLY_CHAIN_MARKETPLACE",
        alias: Some("CONTRACT_JOB_MARKETPLACE"),
        kind: Kind::Address,
        fallback: Fallback::Required("the JobMarketplace contract's address"),
        about: "JobMarketplace contract",
    },
    Setting {
        key: "chain.node_registry",
        flag: Some("chain-node-registry"),
        env: "TALLY_CHAIN_NODE_REGISTRY",
        alias: Some("CONTRACT_NODE_REGISTRY"),
        kind: Kind::Address,
        fallback: Fallback::Computed("what the marketplace names"),
        about: "NodeRegistry contract",
    },
    Setting {
        key: "chain.model_registry",
        flag: Some("chain-model-registry"),
        env: "TALLY_CHAIN_MODEL_REGISTRY",
        alias: None,
        kind: Kind::Address,
        fallback: Fallback::Computed("none; models are not checked"),
        about: "ModelRegistry contract",
    },
    Setting {
        key: "chain.proof_system",
        flag: Some("chain-proof-system"),
        env: "TALLY_CHAIN_PROOF_SYSTEM",
        alias: Some("CONTRACT_PROOF_SYSTEM"),
        kind: Kind::Address,
        fallback: Fallback::None,
        about: "ProofSystem contract; refused where it is given as the marketplace",
    },
    Setting {
        key: "chain.host_earnings",
        flag: Some("chain-host-earnings"),
        env: "TALLY_CHAIN_HOST_EARNINGS",
        alias: Some("CONTRACT_HOST_EARNINGS"),
        kind: Kind::Address,
        fallback: Fallback::Computed("what the marketplace names"),
        about: "HostEarnings contract",
    },
    Setting {
        key: "chain.contract_version",
        flag: Some("chain-contract-version"),
        env: "TALLY_CHAIN_CONTRACT_VERSION",
        alias: None,
        kind: Kind::Choice(&["auto", "v3a", "v3", "v4", "v5", "v6", "v7"]),
        fallback: Fallback::Text("auto"),
        about: "The only contract version to start with; auto: whichever is found",
    },
    Setting {
        key: "host.keystore",
        flag: Some("host-keystore"),
        env: "TALLY_HOST_KEYSTORE",
        alias: None,
        kind: Kind::Path,
        fallback: Fallback::None,
        about: "Encrypted key file of the host (`tally keystore new` makes one)",
    },
    Setting {
        key: "host.password_file",
        flag: Some("host-password-file"),
        env: "TALLY_HOST_PASSWORD_FILE",
        alias: None,
        kind: Kind::Path,
        fallback: Fallback::None,
        about: "File whose first line is the keystore's password",
    },
    Setting {
        key: "host.password",
        flag: None,
        env: "TALLY_HOST_PASSWORD",
        alias: None,
        kind: Kind::Secret,
        fallback: Fallback::None,
        about: "Password of the keystore",
    },
    Setting {
        key: "host.private_key",
        flag: None,
        env: "TALLY_HOST_PRIVATE_KEY",
        alias: Some("HOST_PRIVATE_KEY"),
        kind: Kind::Secret,
        fallback: Fallback::None,
        about: "The host's private key, 64 hex digits; a keystore is preferred",
    },
];

/// What the outside sees.
const FACES: &[Setting] = &[
    Setting {
        key: "api.cors_origins",
        flag: Some("api-cors-origins"),
        env: "TALLY_API_CORS_ORIGINS",
        alias: None,
        kind: Kind::Origins,
        fallback: Fallback::Computed("`*` on chain 31337, else none"),
        about: "Origins of web pages that may call the node, or `*`",
    },
    Setting {
        key: "api.body_max_bytes",
        flag: Some("api-body-max-bytes"),
        env: "TALLY_API_BODY_MAX_BYTES",
        alias: None,
        kind: Kind::Bytes { min: 1 << 10, max: 1 << 30 },
        fallback: Fallback::Text("1MiB"),
        about: "Largest request body and WebSocket message",
    },
    Setting {
        key: "api.ping_seconds",
        flag: Some("api-ping-seconds"),
        env: "TALLY_API_PING_SECONDS",
        alias: None,
        kind: Kind::Integer { min: 1, max: 3_600, unit: "s" },
        fallback: Fallback::Text("20"),
        about: "Pause between WebSocket pings; two misses close the connection",
    },
    Setting {
        key: "log.filter",
        flag: Some("log-filter"),
        env: "TALLY_LOG_FILTER",
        alias: Some("RUST_LOG"),
        kind: Kind::Text,
        fallback: Fallback::Text("info"),
        about: "Which log lines appear, in the syntax of `tracing_subscriber::EnvFilter`",
    },
    Setting {
        key: "log.format",
        flag: Some("log-format"),
        env: "TALLY_LOG_FORMAT",
        alias: None,
        kind: Kind::Choice(&["text", "json"]),
        fallback: Fallback::Text("text"),
        about: "Form of the log lines on stderr",
    },
];
