//! The program from outside: arguments, environment, exit codes, what stands on stdout.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::model_pull::Hub;

/// The end of a run.
struct Run {
    ok: bool,
    out: String,
    err: String,
}

/// The program in an empty folder with nothing but `env`.
async fn tally(dir: &Path, arguments: &[&str], env: &[(&str, &str)]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tally"));
    command.args(arguments).env_clear().env("HOME", dir).envs(env.iter().copied());
    command.current_dir(dir).stdin(Stdio::null());
    // The stand-in hub of some tests runs on this runtime: it must not be held up.
    let ended = tokio::task::spawn_blocking(move || command.output()).await;
    let output = ended.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Run { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

#[tokio::test]
async fn a_node_without_settings_stops_with_the_list_of_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &["serve"], &[]).await;
    assert!(!run.ok && run.out.is_empty());
    for part in ["model.path", "chain.rpc_urls", "chain.id", "chain.marketplace", "host.keystore"] {
        assert!(run.err.contains(&format!("{part} is missing")), "{part}:\n{}", run.err);
    }
}

#[tokio::test]
async fn the_version_names_what_a_deployment_looks_for_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &["--version"], &[]).await;
    let line = tally::node::version::line();
    assert!(run.ok, "{}", run.err);
    assert_eq!(run.out.trim_end().replacen("tally", "VERSION", 1), line);
    assert!(line.contains(" commit ") && line.contains(" built "), "{line}");
}

#[tokio::test]
async fn without_arguments_only_a_launcher_starts_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &[], &[]).await;
    assert!(!run.ok && run.err.contains("tally --help"), "{}", run.err);
    let run = tally(dir.path(), &[], &[("API_PORT", "8080")]).await;
    assert!(run.err.contains("chain.id is missing"), "{}", run.err);
}

#[tokio::test]
async fn the_doctor_says_what_is_wrong_as_text_and_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &["doctor"], &[]).await;
    assert!(!run.ok && run.out.contains("failure  settings"), "{}{}", run.out, run.err);
    let env = [("TALLY_FREE", "true"), ("TALLY_MODEL_PATH", "absent.gguf")];
    let run = tally(dir.path(), &["doctor", "--json"], &env).await;
    let report: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert!(!run.ok);
    assert_eq!(report["ok"], false);
    assert_eq!(report["findings"][0]["check"], "weights");
    assert!(report["findings"][0]["remedy"].as_str().unwrap().contains("tally model pull"));
}

#[tokio::test]
async fn a_free_node_with_a_file_passes_the_doctor_with_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    // A header that is sound: version 3, no tensors, no keys.
    let header = [&b"GGUF\x03\0\0\0"[..], &[0; 16]].concat();
    std::fs::write(dir.path().join("m.gguf"), header).unwrap();
    let run = tally(dir.path(), &["doctor", "--free", "--model-path", "m.gguf"], &[]).await;
    assert!(run.ok, "{}", run.out);
    assert!(run.out.contains("warning  chain"), "{}", run.out);
}

#[tokio::test]
async fn the_status_of_a_node_that_never_ran_is_empty_and_fine() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &["status", "--json"], &[]).await;
    assert!(run.ok, "{}", run.err);
    let status: serde_json::Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(status["tokens_recorded"], 0);
    assert_eq!(status["earnings"]["known"], false);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "looking leaves nothing behind");
}

#[tokio::test]
async fn a_pulled_files_path_is_the_last_line() {
    let (hub, endpoint) = Hub::start(100_000).await;
    let dir = tempfile::tempdir().unwrap();
    let sha256 = tally::node::model_pull::plain(hub.sha256());
    let arguments = ["model", "pull", "owner/repo", "model.gguf", "--sha256", sha256.as_str()];
    let run = tally(dir.path(), &arguments, &[("HF_ENDPOINT", &endpoint)]).await;
    assert!(run.ok, "{}", run.err);
    let path = dir.path().join(run.out.lines().last().unwrap());
    assert_eq!(std::fs::metadata(path).unwrap().len(), 100_000);
    assert!(run.out.contains(&sha256), "{}", run.out);

    let run = tally(dir.path(), &["model", "pull", "o/r", "f", "--sha256", "zz"], &[]).await;
    assert!(!run.ok && run.err.contains("64 hex digits"), "{}", run.err);
}

#[tokio::test]
async fn a_key_is_imported_from_a_file_and_never_printed() {
    let dir = tempfile::tempdir().unwrap();
    let key = "4f3edf983ac636a65a842ce7c78d9aa706d3b113bce9c46f30d7d21715b23b1d";
    std::fs::write(dir.path().join("key"), format!("{key}\n")).unwrap();
    std::fs::write(dir.path().join("password"), "correct horse\n").unwrap();
    let arguments =
        ["keystore", "import", "--dir", "keys", "--key-file", "key", "--password-file", "password"];
    let run = tally(dir.path(), &arguments, &[]).await;
    assert!(run.ok, "{}", run.err);
    // The address of this key; it is the first of a well-known test mnemonic.
    assert!(run.out.contains("0x90f8bf6a479f320ead074411a4b0e7944ea8c9c1"), "{}", run.out);
    let path = dir.path().join(run.out.lines().last().unwrap());
    let file = std::fs::read_to_string(path).unwrap();
    for text in [&run.out, &run.err, &file] {
        assert!(!text.contains(key) && !text.contains("correct horse"));
    }
    let again = tally(dir.path(), &arguments, &[]).await;
    assert!(!again.ok && again.err.contains("exists already"), "{}", again.err);
}

#[tokio::test]
async fn no_key_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let run = tally(dir.path(), &["serve", "--host-private-key", "00"], &[]).await;
    assert!(!run.ok && run.err.contains("unexpected argument"), "{}", run.err);
}
