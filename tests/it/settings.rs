//! Settings: precedence, names, ranges, secrets, and the document that lists them.

use std::collections::BTreeMap;
use std::path::Path;

use tally::chain::evm::ContractVersion;
use tally::node::settings::catalog::SETTINGS;
use tally::node::settings::{
    Cors, Inputs, InspectSettings, KeySource, Kind, LegacyMode, PasswordSource, Settings,
};
use tally_engine::{EngineOptions, KvType, SharePrefixes};

const KEY: &str = "4f3edf983ac636a65a842ce7c78d9aa706d3b113bce9c46f30d7d21715b23b1d";
const MARKETPLACE: &str = "0x1273e6358aa52bb5b160c34bf2e617b745e4a944";

/// An environment in an empty folder.
struct Case {
    dir: tempfile::TempDir,
    inputs: Inputs,
}

impl Case {
    fn new(env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut all = BTreeMap::from([("HOME".to_owned(), "/home/host".to_owned())]);
        all.extend(env.iter().map(|(name, text)| (name.to_string(), text.to_string())));
        let inputs = Inputs { env: all, dir: dir.path().to_owned(), ..Inputs::default() };
        Self { dir, inputs: Inputs { has_arguments: true, ..inputs } }
    }

    /// A paid node's environment plus `more`.
    fn paid(more: &[(&str, &str)]) -> Self {
        let mut env = vec![
            ("TALLY_MODEL_PATH", "/m/model.gguf"),
            ("TALLY_CHAIN_RPC_URLS", "https://rpc.example/v3/s3cret-access"),
            ("TALLY_CHAIN_ID", "31337"),
            ("TALLY_CHAIN_MARKETPLACE", MARKETPLACE),
            ("TALLY_HOST_PRIVATE_KEY", KEY),
        ];
        env.extend_from_slice(more);
        Self::new(&env)
    }

    fn file(self, name: &str, text: &str) -> Self {
        std::fs::write(self.dir.path().join(name), text).unwrap();
        self
    }

    fn flag(mut self, key: &'static str, text: &str) -> Self {
        self.inputs.flags.insert(key, text.to_owned());
        self
    }

    fn unset(mut self, name: &str) -> Self {
        self.inputs.env.remove(name);
        self
    }

    fn load(&self) -> Settings {
        Settings::load(&self.inputs).unwrap_or_else(|error| panic!("{error}"))
    }

    fn refused(&self) -> String {
        Settings::load(&self.inputs).expect_err("settings that must be refused").to_string()
    }
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in:\n{message}");
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let settings = Case::paid(&[]).load();
    assert_eq!(settings.listen, "0.0.0.0:8080".parse().unwrap());
    assert_eq!(settings.data_dir, Path::new("/home/host/.local/share/tally"));
    assert_eq!(settings.settlement.claim_at.get(), 100);
    assert_eq!(settings.settlement.confirmations, 3);
    assert_eq!(settings.engine.kv_memory_bytes, 512 << 20);
    assert_eq!(settings.engine.share_prefixes, SharePrefixes::WithinOwner);
    assert_eq!(settings.engine.kv_type, KvType::F16);
    assert_eq!(settings.api.body_max_bytes, 1 << 20);
    assert_eq!(settings.api.cors, Cors::Any, "31337 is a development chain");
    assert_eq!(settings.session.legacy, LegacyMode::Off, "reachable from outside");
    assert_eq!(settings.model.file.as_deref(), Some("model.gguf"));
    assert!(!settings.launcher_compat);
}

#[test]
fn flag_beats_environment_beats_dot_env_beats_file_beats_default() {
    let case = Case::paid(&[]);
    assert_eq!(case.load().settlement.poll.as_millis(), 500);
    let case = case.file("tally.toml", "[settlement]\npoll_milliseconds = 11\n");
    assert_eq!(case.load().settlement.poll.as_millis(), 11);
    let mut case = case.file(".env", "TALLY_SETTLEMENT_POLL_MILLISECONDS=12\n");
    assert_eq!(case.load().settlement.poll.as_millis(), 12);
    case.inputs.env.insert("TALLY_SETTLEMENT_POLL_MILLISECONDS".into(), "13".into());
    assert_eq!(case.load().settlement.poll.as_millis(), 13);
    assert_eq!(
        case.flag("settlement.poll_milliseconds", "14").load().settlement.poll.as_millis(),
        14
    );
}

#[test]
fn a_file_can_hold_every_kind_of_value() {
    let case = Case::new(&[("TALLY_HOST_PASSWORD", "pw")]).file(
        "host.toml",
        r#"
            listen = "127.0.0.1:9000"
            [model]
            path = "~/m.gguf"
            aliases = { tiny-vicuna = "smollm2" }
            [engine]
            kv_memory_bytes = "1GiB"
            [chain]
            rpc_urls = ["http://a.example", "http://b.example"]
            quorum = 2
            id = 84532
            marketplace = "1273e6358aa52bb5b160c34bf2e617b745e4a944"
            [host]
            keystore = "key.json"
            [settlement]
            fee_share_max = 0.25
            [api]
            cors_origins = ["https://app.example"]
        "#,
    );
    let config = Some("host.toml".into());
    let settings = Settings::load(&Inputs { config, ..case.inputs.clone() }).unwrap();
    assert_eq!(settings.model.path, Path::new("/home/host/m.gguf"));
    assert_eq!(settings.model.aliases["tiny-vicuna"], "smollm2");
    let chain = settings.chain.unwrap();
    assert_eq!(chain.rpc_urls.len(), 2);
    assert_eq!((chain.quorum, settings.notes.len()), (Some(2), 0));
    assert_eq!(chain.marketplace.to_string(), MARKETPLACE);
    assert_eq!(settings.api.cors, Cors::Listed(vec!["https://app.example".into()]));
    let by_environment = |key: KeySource| {
        matches!(key, KeySource::Keystore { password: PasswordSource::Env(_), .. })
    };
    assert!(by_environment(settings.key.unwrap()));
}

#[test]
fn an_unknown_key_is_refused_with_the_name_that_was_meant() {
    let case = Case::paid(&[]).file("tally.toml", "[settlement]\nclaimat = 5\n[databse]\nx = 1\n");
    assert_says(
        &case.refused(),
        &["unknown key `settlement.claimat`; did you mean `settlement.claim_at`?", "`databse`"],
    );
}

#[test]
fn an_unknown_variable_is_refused_and_scripts_may_have_theirs() {
    let case = Case::paid(&[("TALLY_CHIAN_ID", "1"), ("TALLY_TEST_MODEL", "/x")]);
    let message = case.refused();
    assert_says(&message, &["TALLY_CHIAN_ID is no setting; did you mean `TALLY_CHAIN_ID`?"]);
    assert!(!message.contains("TALLY_TEST_MODEL"), "{message}");
    assert_says(&Case::paid(&[]).file(".env", "TALLY_X=1\n").refused(), &["TALLY_X in .env"]);
}

#[test]
fn values_out_of_range_name_setting_found_and_wanted() {
    let cases = [
        ("TALLY_SETTLEMENT_CLAIM_AT", "99", "settlement.claim_at: found \"99\""),
        ("TALLY_SETTLEMENT_FEE_SHARE_MAX", "1.5", "wanted number 0 to 1"),
        ("TALLY_LISTEN", "localhost", "wanted `IP:PORT` or `PORT`"),
        ("TALLY_LOG_FORMAT", "xml", "wanted `text`, `json`"),
        ("TALLY_ENGINE_KV_MEMORY_BYTES", "12", "wanted size 1MiB to 16TiB"),
        ("TALLY_CHAIN_NODE_REGISTRY", "0x12", "wanted address, 40 hex digits"),
        ("TALLY_LOG_FILTER", "tally=nonsense", "log.filter"),
        (
            "TALLY_SETTLEMENT_POLL_MILLISECONDS",
            "1e3",
            "environment variable TALLY_SETTLEMENT_POLL_MILLISECONDS",
        ),
    ];
    for (name, text, part) in cases {
        assert_says(&Case::paid(&[(name, text)]).refused(), &[part]);
    }
    for (text, fits) in [("99", false), ("100", true), ("101", true)] {
        let case = Case::paid(&[("TALLY_SETTLEMENT_CLAIM_AT", text)]);
        assert_eq!(Settings::load(&case.inputs).is_ok(), fits, "claim_at {text}");
    }
}

#[test]
fn a_launchers_variables_are_enough() {
    let mut case = Case::new(&[
        ("API_PORT", "8081"),
        ("MODEL_PATH", "/m/model.gguf"),
        ("P2P_PORT", "9000"),
        ("CHAIN_ID", "84532"),
        ("RPC_URL", "https://rpc.example"),
        ("HOST_PRIVATE_KEY", KEY),
        ("CONTRACT_JOB_MARKETPLACE", MARKETPLACE),
        ("CONTRACT_NODE_REGISTRY", "0x0000000000000000000000000000000000000a01"),
        ("CONTRACT_PROOF_SYSTEM", "0x0000000000000000000000000000000000000a02"),
        ("CONTRACT_HOST_EARNINGS", "0x0000000000000000000000000000000000000a03"),
        ("RUST_LOG", "debug"),
    ]);
    case.inputs.has_arguments = false;
    let settings = case.load();
    assert!(settings.launcher_compat && case.inputs.is_launcher());
    assert_eq!(settings.listen.port(), 8081);
    assert_eq!(settings.log.filter, "debug");
    assert_eq!(settings.notes.len(), 1);
    assert_says(&settings.notes[0], &["P2P_PORT"]);
    let chain = settings.chain.unwrap();
    assert_eq!(chain.chain_id, 84532);
    assert!(chain.proof_system.is_some() && chain.host_earnings.is_some());
}

#[test]
fn a_shell_with_rust_log_is_no_launcher() {
    let mut case = Case::new(&[("RUST_LOG", "info")]);
    case.inputs.has_arguments = false;
    assert!(!case.inputs.is_launcher());
}

#[test]
fn an_alias_that_contradicts_its_setting_is_refused() {
    let message = Case::paid(&[("CHAIN_ID", "1")]).refused();
    assert_says(&message, &["TALLY_CHAIN_ID and CHAIN_ID are both set and differ"]);
    Case::paid(&[("CHAIN_ID", "31337")]).load();
    let listen = [("API_PORT", "9000"), ("TALLY_LISTEN", "127.0.0.1:9000")];
    assert!(Case::paid(&listen).load().listen.ip().is_loopback());
    let other = "00".repeat(31) + "01";
    let message = Case::paid(&[("HOST_PRIVATE_KEY", &other)]).refused();
    assert_says(&message, &["TALLY_HOST_PRIVATE_KEY and HOST_PRIVATE_KEY"]);
    assert!(!message.contains(KEY) && !message.contains(&other));
}

#[test]
fn a_paid_node_names_everything_that_is_missing() {
    let message = Case::new(&[("TALLY_MODEL_PATH", "/m")]).refused();
    assert_says(
        &message,
        &[
            "chain.rpc_urls is missing",
            "--chain-rpc-urls or TALLY_CHAIN_RPC_URLS",
            "chain.id is missing",
            "chain.marketplace is missing",
            "host.keystore is missing",
            "--free serves without pay on purpose",
        ],
    );
    assert_says(&Case::new(&[]).refused(), &["model.path is missing", "tally model pull"]);
}

#[test]
fn further_models_have_names_paths_and_perhaps_a_place_in_the_registry() {
    let case = Case::new(&[("TALLY_FREE", "true"), ("TALLY_MODEL_REPO", "owner/repo")]).file(
        "host.toml",
        r#"
            [model]
            path = "~/m.Q4_1.gguf"
            more = { tiny = "~/tiny.gguf", "qwen2.5" = "/models/qwen2.5-0.5b" }
            more_registered = { tiny = "owner/name/folder/tiny.gguf" }
            [engine]
            memory_bytes = "2GiB"
        "#,
    );
    let config = Some("host.toml".into());
    let settings = Settings::load(&Inputs { config, ..case.inputs.clone() }).unwrap();
    let all = settings.model.all();
    let names: Vec<_> = all.iter().map(|model| model.served_name()).collect();
    assert_eq!(names, ["m.Q4_1", "qwen2.5", "tiny"]);
    assert_eq!(all[0].registered, Some(("owner/repo".into(), "m.Q4_1.gguf".into())));
    assert_eq!((all[1].path.to_str(), &all[1].registered), (Some("/models/qwen2.5-0.5b"), &None));
    assert_eq!(all[2].path, Path::new("/home/host/tiny.gguf"));
    assert_eq!(all[2].registered, Some(("owner/name".into(), "folder/tiny.gguf".into())));
    assert_eq!(settings.engine.memory_bytes, Some(2 << 30));

    for (registered, wanted) in [
        ("other=a/b/c", "not one of model.more"),
        ("tiny=a/b", "OWNER/NAME/FILE"),
        ("tiny=a/b/", "OWNER/NAME/FILE"),
    ] {
        let message = Case::new(&[
            ("TALLY_FREE", "true"),
            ("TALLY_MODEL_PATH", "/m"),
            ("TALLY_MODEL_MORE", "tiny=/t"),
            ("TALLY_MODEL_MORE_REGISTERED", registered),
        ])
        .refused();
        assert_says(&message, &["model.more_registered", wanted]);
    }
}

#[test]
fn each_chain_setting_is_asked_for_by_name() {
    for name in ["TALLY_CHAIN_RPC_URLS", "TALLY_CHAIN_ID", "TALLY_CHAIN_MARKETPLACE"] {
        let message = Case::paid(&[]).unset(name).refused();
        assert_says(&message, &[name]);
        assert_eq!(message.matches("is missing").count(), 1, "{message}");
    }
}

#[test]
fn serving_without_pay_is_said_aloud_and_excludes_a_chain() {
    let free = Case::new(&[("TALLY_MODEL_PATH", "/m"), ("TALLY_FREE", "true")]);
    let settings = free.load();
    assert!(settings.free && settings.chain.is_none());
    assert_says(
        &Case::paid(&[]).flag("free", "true").refused(),
        &["--free serves without pay", "chain.id (environment variable TALLY_CHAIN_ID)"],
    );
}

#[test]
fn every_contract_version_can_be_pinned_and_none_is_by_itself() {
    let pinned = |word| Case::paid(&[("TALLY_CHAIN_CONTRACT_VERSION", word)]).load();
    for version in ContractVersion::ALL {
        let chain = pinned(version.name()).chain.unwrap();
        assert_eq!(chain.contract_version, Some(version));
    }
    assert_eq!(pinned("auto").chain.unwrap().contract_version, None);
    assert_eq!(Case::paid(&[]).load().chain.unwrap().contract_version, None);
    let refused = Case::paid(&[("TALLY_CHAIN_CONTRACT_VERSION", "v8")]).refused();
    assert_says(&refused, &["chain.contract_version", "v8", "v3a"]);
}

#[test]
fn the_proof_system_is_not_taken_for_the_marketplace() {
    let both = [("TALLY_CHAIN_PROOF_SYSTEM", MARKETPLACE)];
    assert_says(&Case::paid(&both).refused(), &["proof system's address"]);
}

#[test]
fn plain_clients_are_served_on_a_local_dev_chain_or_with_a_cap() {
    let local = ("TALLY_LISTEN", "127.0.0.1:0");
    let on = ("TALLY_SESSION_LEGACY", "on");
    let cap = ("TALLY_SESSION_LEGACY_CAP_TOKENS", "500");
    let legacy = |env: &[(&str, &str)]| Case::paid(env).load().session.legacy;
    assert_eq!(legacy(&[local]), LegacyMode::On { cap: None });
    assert_eq!(legacy(&[local, ("TALLY_SESSION_LEGACY", "off")]), LegacyMode::Off);
    assert_eq!(legacy(&[cap]), LegacyMode::Off);
    assert!(matches!(legacy(&[on, cap]), LegacyMode::On { cap: Some(_) }));
    assert_says(&Case::paid(&[on]).refused(), &["set a cap per session"]);
}

#[test]
fn no_secret_shows_in_debug_output_or_errors() {
    let settings = Case::paid(&[]).load();
    let shown = format!("{settings:?} {settings:#?}");
    assert!(!shown.contains(KEY) && !shown.contains("s3cret-access"), "{shown}");
    assert_says(&shown, &["https://rpc.example"]);

    let broken = [
        Case::paid(&[("TALLY_HOST_PRIVATE_KEY", &KEY[1..])]),
        Case::paid(&[("TALLY_CHAIN_RPC_URLS", "ftp://s3cret-access")]),
        Case::paid(&[("TALLY_HOST_KEYSTORE", "k.json")]),
        Case::paid(&[]).file(".env", &format!("HOST_PRIVATE_KEY {KEY}\n")),
        Case::paid(&[]).file("tally.toml", &format!("[host]\nprivate_key = \"{KEY}\"\n")),
        Case::paid(&[]).file("tally.toml", &format!("[host]\nprivate_key = {KEY}\n")),
    ];
    for case in broken {
        let error = Settings::load(&case.inputs).expect_err("refused");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(&KEY[1..]) && !shown.contains("s3cret"), "{shown}");
    }
}

#[test]
fn a_keystore_needs_exactly_one_password() {
    let keystore = ("TALLY_HOST_KEYSTORE", "k.json");
    let file = ("TALLY_HOST_PASSWORD_FILE", "pw");
    let text = ("TALLY_HOST_PASSWORD", "pw");
    let case = |env: &[(&str, &str)]| Case::paid(env).unset("TALLY_HOST_PRIVATE_KEY");
    case(&[keystore, file]).load();
    case(&[keystore, text]).load();
    assert_says(&case(&[keystore]).refused(), &["host.password_file is missing"]);
    assert_says(&case(&[keystore, file, text]).refused(), &["set one of them"]);
    assert_says(&case(&[text]).refused(), &["no keystore that it opens"]);
}

#[test]
fn an_empty_variable_counts_as_unset() {
    Case::paid(&[("TALLY_PUBLIC_URL", ""), ("CHAIN_ID", " ")]).load();
}

#[test]
fn a_named_file_must_be_there_and_be_toml() {
    let case = Case::paid(&[("TALLY_CONFIG", "absent.toml")]);
    assert_says(&case.refused(), &["absent.toml"]);
    let case = Case::paid(&[]).file("tally.toml", "a = 1\nb = = 2\n");
    assert_says(&case.refused(), &["tally.toml: line 2"]);
}

#[test]
fn looking_at_a_nodes_data_needs_no_model_and_no_chain() {
    let case = Case::new(&[]);
    let settings = InspectSettings::load(&case.inputs).unwrap();
    assert!(settings.chain.is_none() && settings.key.is_none());
    let wrong = Case::new(&[("TALLY_CHAIN_ID", "x")]);
    assert!(InspectSettings::load(&wrong.inputs).is_err());
}

#[test]
fn two_deployments_never_share_a_ledger() {
    let one = Case::paid(&[]).load().ledger_path();
    let other = "0x0000000000000000000000000000000000000a01";
    let two = Case::paid(&[("TALLY_CHAIN_MARKETPLACE", other)]).load().ledger_path();
    let three = Case::paid(&[("TALLY_CHAIN_ID", "1")]).load().ledger_path();
    assert!(one != two && one != three && two != three);
}

#[test]
fn the_document_lists_exactly_the_settings_there_are() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/config.md")).unwrap();
    let rows: Vec<_> = document.lines().filter(|line| line.contains("| `TALLY_")).collect();
    let expected: Vec<_> = SETTINGS.iter().map(|setting| setting.markdown_row()).collect();
    let wanted = expected.join("\n");
    assert!(
        rows == expected,
        "docs/config.md does not list the settings; its rows must be:\n{wanted}"
    );
}

#[test]
fn the_settings_take_what_the_engine_takes() {
    type Set = fn(&mut EngineOptions, usize);
    let options: [(&str, Set); 3] = [
        ("engine.threads", |options, value| options.threads = value),
        ("engine.running_max", |options, value| options.running_max = value),
        ("engine.prefill_chunk", |options, value| options.prefill_chunk = value),
    ];
    for (key, set) in options {
        let setting = SETTINGS.iter().find(|setting| setting.key == key).unwrap();
        let Kind::Integer { min, max, .. } = setting.kind else { panic!("{key} is no number") };
        for (value, is_fine) in [(min - 1, false), (min, true), (max, true), (max + 1, false)] {
            let mut options = EngineOptions::default();
            set(&mut options, usize::try_from(value).unwrap());
            assert_eq!(options.check().is_ok(), is_fine, "{key} = {value}");
        }
    }
}

#[test]
fn keys_and_values_are_stored_as_the_setting_says() {
    for (word, expected) in [("f16", KvType::F16), ("f32", KvType::F32)] {
        let settings = Case::paid(&[]).flag("engine.kv_type", word).load();
        assert_eq!(settings.engine.kv_type, expected);
    }
}

#[test]
fn prefixes_are_shared_with_whom_the_setting_says() {
    for (word, expected) in [
        ("nobody", SharePrefixes::Nobody),
        ("owner", SharePrefixes::WithinOwner),
        ("everyone", SharePrefixes::Everyone),
    ] {
        let settings = Case::paid(&[]).flag("engine.share_prefixes", word).load();
        assert_eq!(settings.engine.share_prefixes, expected);
    }
}

/// Reading a setting into a struct is not yet using it.
#[test]
fn every_setting_is_used_where_the_node_is_put_together() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/node");
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let users = [
        "access.rs",
        "commands.rs",
        "doctor.rs",
        "models.rs",
        "logging.rs",
        "operator.rs",
        "orders.rs",
        "preflight.rs",
        "registration.rs",
        "serve.rs",
        "status.rs",
        "wiring.rs",
    ];
    let code: String = users.into_iter().map(read).collect();
    let is_used = |name: &str| {
        code.match_indices(&format!(".{name}")).any(|(at, found)| {
            let next = code[at + found.len()..].chars().next();
            next.is_none_or(|next| !next.is_alphanumeric() && next != '_' && next != '(')
        })
    };
    let structs = read("settings.rs");
    let fields = structs.lines().filter_map(|line| line.strip_prefix("    pub "));
    let fields = fields.filter(|line| !line.starts_with("fn "));
    let fields = fields.filter_map(|line| Some(line.split_once(": ")?.0));
    // What is free has no chain, and that is what is asked for.
    let fields = fields.filter(|name| *name != "free");
    let (used, unused): (Vec<_>, Vec<_>) = fields.partition(|name| is_used(name));
    assert!(used.len() > 40, "the structs are written in another way: {used:?}");
    assert!(unused.is_empty(), "settings that nothing uses: {unused:?}");
}

#[test]
fn the_example_files_hold() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = std::fs::read_to_string(root.join("deploy/tally.example.toml")).unwrap();
    let env = std::fs::read_to_string(root.join(".env.example")).unwrap();
    Case::new(&[]).file("tally.toml", &file).load();
    // Every line that is commented out is a setting as well.
    let all: String = file.lines().map(|line| format!("{}\n", uncommented(line))).collect();
    Case::new(&[]).file("tally.toml", &all).load();
    Case::new(&[]).file(".env", &env).load();
}

/// A setting without the mark that disables it; prose keeps its mark.
fn uncommented(line: &str) -> &str {
    match line.strip_prefix('#') {
        Some(rest) if rest.contains(" = ") && !rest.starts_with(' ') => rest,
        _ => line,
    }
}
