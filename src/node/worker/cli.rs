//! Arguments of `tally worker`.
//!
//! Never takes a secret: every user of a machine can read another's command line. Reads no settings
//! file and no settings of the node: a pool manager's command line is all there is, but for the
//! token.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use secrecy::{ExposeSecret, SecretString};
use tally_engine::{KvType, SharePrefixes};

use super::WorkerError;
use crate::api::worker::WorkerToken;
use crate::node::settings::{bytes, secret_line};

/// The name under which the program is a worker, whatever its arguments.
const WORKER_NAME: &str = "llorch-cpud";

/// The worker's token, and the file that holds it.
const TOKEN: &str = "TALLY_WORKER_TOKEN";
const TOKEN_FILE: &str = "TALLY_WORKER_TOKEN_FILE";

/// What all variables of a worker begin with.
const PREFIX: &str = "TALLY_WORKER_";

/// What a pool manager spawns a worker with.
#[derive(Args, Clone, Debug)]
pub struct WorkerTask {
    /// Name of this worker, given by the pool manager.
    #[arg(long, value_name = "ID")]
    pub worker_id: String,
    /// The model: a GGUF file, or a folder of safetensors.
    #[arg(long, value_name = "PATH")]
    pub model: PathBuf,
    /// Port of the HTTP server, on all addresses; 0 takes a free one.
    #[arg(long, value_name = "PORT")]
    pub port: u16,
    /// Address of the pool manager, which is told once when the worker answers; one with
    /// localhost:9999 in it is never called.
    #[arg(long, value_name = "URL")]
    pub callback_url: String,
    /// Jobs that run at once.
    #[arg(long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub slots: u32,
    /// Jobs that may wait beyond those; one more is answered with 503.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u32).range(0..=1024))]
    pub queue: u32,
    /// Threads of the forward pass [default: all cores].
    #[arg(long, value_name = "N", value_parser = threads)]
    pub engine_threads: Option<usize>,
    /// Keep each of these threads on a processor of its own, where nothing else runs.
    #[arg(long)]
    pub engine_pin_threads: bool,
    /// Memory of the KV cache, bytes or 512MiB.
    #[arg(long, value_name = "SIZE", default_value = "512MiB", value_parser = kv_memory)]
    pub engine_kv_memory_bytes: u64,
    /// What keys and values are stored as.
    #[arg(long, value_enum, default_value_t = KvTypeArg::F16)]
    pub engine_kv_type: KvTypeArg,
    /// Whose prompts are not read again where they begin like earlier ones: the time to the first
    /// token then tells that such a beginning was sent before.
    #[arg(long, value_enum, default_value_t = SharePrefixesArg::Nobody)]
    pub engine_share_prefixes: SharePrefixesArg,
}

/// What keys and values are stored as.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum KvTypeArg {
    /// Half precision.
    F16,
    /// As computed.
    F32,
}

/// Which jobs share what was read.
#[derive(ValueEnum, Clone, Copy, Debug)]
pub enum SharePrefixesArg {
    /// None.
    Nobody,
    /// All.
    Everyone,
}

impl From<KvTypeArg> for KvType {
    fn from(argument: KvTypeArg) -> Self {
        match argument {
            KvTypeArg::F16 => Self::F16,
            KvTypeArg::F32 => Self::F32,
        }
    }
}

impl From<SharePrefixesArg> for SharePrefixes {
    fn from(argument: SharePrefixesArg) -> Self {
        match argument {
            SharePrefixesArg::Nobody => Self::Nobody,
            SharePrefixesArg::Everyone => Self::Everyone,
        }
    }
}

fn threads(text: &str) -> Result<usize, String> {
    let found = text.parse().ok().filter(|count| (1..=256).contains(count));
    found.ok_or_else(|| "wanted a whole number 1 to 256".to_owned())
}

fn kv_memory(text: &str) -> Result<u64, String> {
    let found = bytes(text).and_then(|size| u64::try_from(size).ok());
    let found = found.filter(|size| (1 << 20..=1 << 44).contains(size));
    found.ok_or_else(|| "wanted a size 1MiB to 16TiB, bytes or 512MiB".to_owned())
}

impl WorkerTask {
    /// What clap cannot check.
    ///
    /// # Errors
    /// [`WorkerError::Argument`] names the first argument that means nothing.
    pub(super) fn check(&self) -> Result<(), WorkerError> {
        let id = &self.worker_id;
        // Both stand for other paths in an address.
        if id.is_empty() || id == "." || id == ".." || id.chars().any(char::is_control) {
            let why = "wanted a name without control characters".to_owned();
            return Err(WorkerError::Argument { name: "--worker-id", why });
        }
        Ok(())
    }

    /// The token from the environment, or from the file that it names; `None` where neither is set.
    /// Blocks on a small file.
    ///
    /// # Errors
    /// [`WorkerError`] where both are set, the file cannot be read, no request could carry the
    /// token, or a variable looks like a worker's and is none.
    pub(super) fn token(&self) -> Result<Option<WorkerToken>, WorkerError> {
        refuse_unknown()?;
        let secret = match (std::env::var_os(TOKEN), std::env::var_os(TOKEN_FILE)) {
            (None, None) => return Ok(None),
            (Some(_), Some(_)) => {
                return Err(bad_token(TOKEN, "set together with TALLY_WORKER_TOKEN_FILE"));
            }
            (Some(text), None) => {
                let text = text.into_string().map_err(|_| bad_token(TOKEN, "it is not UTF-8"))?;
                (TOKEN, SecretString::from(text))
            }
            (None, Some(path)) if path.is_empty() => {
                return Err(bad_token(TOKEN_FILE, "set, but empty"));
            }
            (None, Some(path)) => (TOKEN_FILE, secret_line(Path::new(&path))?),
        };
        check_token(secret).map(Some)
    }
}

/// A token that a header can carry as it is. Another would lock everybody out, and an empty one let
/// everybody in.
fn check_token((name, secret): (&'static str, SecretString)) -> Result<WorkerToken, WorkerError> {
    let text = secret.expose_secret();
    let words = match text {
        "" => "set, but empty",
        _ if text.trim() != text => "it begins or ends with white space",
        _ if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) => {
            "it has characters beside printable ASCII"
        }
        _ => return Ok(WorkerToken::new(secret)),
    };
    Err(bad_token(name, words))
}

fn bad_token(name: &'static str, why: &str) -> WorkerError {
    WorkerError::Argument { name, why: why.to_owned() }
}

/// A variable that is nearly the token's would leave the worker open to all.
fn refuse_unknown() -> Result<(), WorkerError> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut own = names.filter(|name| name.starts_with(PREFIX));
    match own.find(|name| ![TOKEN, TOKEN_FILE].contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let why = format!("no such variable; there are {TOKEN} and {TOKEN_FILE}");
            Err(WorkerError::Argument { name: PREFIX, why: format!("{name}: {why}") })
        }
    }
}

/// The process's arguments, with the command where the program's name stands for it.
#[must_use]
pub fn arguments(given: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = given.into_iter().collect();
    let name = arguments.first().map(Path::new).and_then(Path::file_name);
    if name == Some(OsStr::new(WORKER_NAME)) {
        arguments.insert(1, OsString::from("worker"));
    }
    arguments
}

/// Whether these arguments ask for a worker, well or badly.
#[must_use]
pub fn is_worker(arguments: &[OsString]) -> bool {
    arguments.get(1).is_some_and(|first| first == "worker")
}

/// What is wrong with a command line, in one line.
#[must_use]
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim);
    let told = lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For "));
    let told: Vec<_> = told.filter(|line| !line.is_empty()).collect();
    told.join(" ")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::node::cli::{Cli, Task};

    fn parsed(arguments: &[&str]) -> Result<WorkerTask, String> {
        let arguments = super::arguments(arguments.iter().map(OsString::from));
        assert!(is_worker(&arguments));
        match Cli::try_parse_from(arguments).map_err(|error| one_line(&error))?.command {
            Some(Task::Worker(task)) => Ok(*task),
            _ => Err("another command".to_owned()),
        }
    }

    const WHOLE: [&str; 8] = [
        "--worker-id",
        "test-worker",
        "--model",
        "test.gguf",
        "--port",
        "8080",
        "--callback-url",
        "http://localhost:9999",
    ];

    #[test]
    fn the_seeds_command_line_makes_a_worker_under_either_name() {
        for before in [vec!["tally", "worker"], vec!["/opt/bin/llorch-cpud"]] {
            let task = parsed(&[before, WHOLE.to_vec()].concat()).unwrap();
            assert_eq!((task.worker_id.as_str(), task.port), ("test-worker", 8080));
            assert_eq!((task.slots, task.queue), (1, 8));
        }
    }

    #[test]
    fn a_missing_flag_is_told_in_one_line_that_names_it() {
        for (index, flag) in WHOLE.iter().enumerate().step_by(2) {
            let mut arguments = vec!["llorch-cpud"];
            arguments.extend(&WHOLE[..index]);
            arguments.extend(&WHOLE[index + 2..]);
            let told = parsed(&arguments).unwrap_err();
            assert!(told.contains(flag) && !told.contains('\n'), "{told}");
        }
    }

    #[test]
    fn a_token_that_no_request_could_carry_is_refused_and_not_shown() {
        let checked = |text: &str| check_token((TOKEN, text.to_owned().into()));
        assert!(checked("correct horse").unwrap().is_same("correct horse"));
        for text in ["", " ", "zanzibar ", " zanzibar", "zanzibar\n", "zanzib\u{e4}r", "zanzi\tbar"]
        {
            let told = checked(text).err().unwrap().to_string();
            assert!(told.starts_with("TALLY_WORKER_TOKEN: "), "{told}");
            assert!(!told.contains("zanzi"), "{told}");
        }
    }

    #[test]
    fn arguments_out_of_range_are_refused_and_so_is_a_token() {
        for more in [
            ["--slots", "0"],
            ["--slots", "1025"],
            ["--queue", "1025"],
            ["--engine-threads", "0"],
            ["--engine-kv-memory-bytes", "1MB"],
            ["--token", "x"],
        ] {
            let arguments = [&["llorch-cpud"], &WHOLE[..], &more[..]].concat();
            let told = parsed(&arguments).unwrap_err();
            assert!(told.contains(more[0]) && !told.contains('\n'), "{told}");
        }
    }
}
