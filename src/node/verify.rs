//! `tally verify`: a claim, checked by whoever holds its blob.
//!
//! Never writes, never needs a key. What could not be checked is said so and never counts as
//! checked. Two halves: what the blob says by itself and against the proof bytes (`paper`), and
//! what the model says to every token (`turns`).

mod onchain;
mod paper;
mod turns;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::cli::VerifyTask;
use super::settings::{Inputs, InspectSettings, SettingsError};
use crate::billing::{ClaimBody, Fact, Purpose};
use crate::chain::ChainError;
use crate::chain::evm::ConnectError;
use crate::ledger::LedgerError;
use crate::ledger::sqlite::SqliteReader;
use crate::proof::{Blob, BlobError, ProofBytes, ProofBytesError, VoucherDomain};
use crate::units::{Address, ClaimSeq, Hash32, JobId, TurnNo};
pub use turns::{Model, ModelError};

/// The check could not be made: nothing is shown.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    File {
        /// Its path.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// The blob is none.
    #[error("{path}: {error}")]
    Blob {
        /// Its path.
        path: String,
        /// Why.
        error: BlobError,
    },
    /// The proof bytes are none.
    #[error("--proof: {0}")]
    Proof(String),
    /// The texts are none.
    #[error("{path}: wanted a JSON object of turn numbers and texts: {why}")]
    Texts {
        /// Its path.
        path: String,
        /// Why.
        why: String,
    },
    /// The settings do not hold.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// There is no ledger to look into.
    #[error("no ledger at {0}: this node has not run yet")]
    NoLedger(PathBuf),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger has no such claim.
    #[error("this ledger has no claim {} of job {job}", seq.unwrap_or(1))]
    NoClaim {
        /// The job.
        job: u64,
        /// As asked for.
        seq: Option<u32>,
    },
    /// There is no chain to ask.
    #[error("--on-chain needs {0}")]
    NotSet(&'static str),
    /// The marketplace cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The chain stopped answering.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A share that is none.
    #[error("--sample: wanted more than 0 and at most 1, found {0}")]
    Sample(f64),
    /// A model cannot be loaded.
    #[error("model {path}: {error}")]
    Model {
        /// Its path.
        path: String,
        /// Why.
        error: ModelError,
    },
    /// The machine failed in the middle; says nothing about the claim.
    #[error("turn {turn} could not be derived: {why}")]
    Failed {
        /// The turn.
        turn: TurnNo,
        /// Why.
        why: String,
    },
}

/// What is checked, and against what.
#[derive(Debug, Clone, Default)]
pub struct Claim {
    /// The claim's proof bytes, as the chain has them.
    pub proof: Option<ProofBytes>,
    /// Who must have signed them.
    pub signer: Option<Address>,
    /// The chain and the marketplace where it was claimed; else the blob's word is taken.
    pub marketplace: Option<(u64, Address)>,
    /// What the chain was found to say, where it was asked.
    pub chain: Vec<Check>,
    /// What the client read, by turn.
    pub texts: BTreeMap<TurnNo, String>,
    /// Which turns are derived again; `None`: all.
    pub sample: Option<BTreeSet<TurnNo>>,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It holds.
    Holds,
    /// It does not: the claim is wrong.
    Fails,
    /// It could not be made.
    NotChecked,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// How it came out.
    pub outcome: Outcome,
    /// What was checked: a stable word.
    pub what: &'static str,
    /// The turn that it is about.
    pub turn: Option<TurnNo>,
    /// Index of the first wrong token in its turn.
    pub position: Option<u32>,
    /// In words.
    pub words: String,
}

impl Check {
    fn new(outcome: Outcome, what: &'static str, words: impl Into<String>) -> Self {
        Self { outcome, what, turn: None, position: None, words: words.into() }
    }

    fn holds(what: &'static str, words: impl Into<String>) -> Self {
        Self::new(Outcome::Holds, what, words)
    }

    fn fails(what: &'static str, words: impl Into<String>) -> Self {
        Self::new(Outcome::Fails, what, words)
    }

    fn not_checked(what: &'static str, words: impl Into<String>) -> Self {
        Self::new(Outcome::NotChecked, what, words)
    }

    fn of(self, turn: TurnNo) -> Self {
        Self { turn: Some(turn), ..self }
    }
}

/// Everything that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The job.
    pub job: JobId,
    /// Number of the root.
    pub seq: ClaimSeq,
    /// The root over the blob; `None` where its parts do not fit.
    pub root: Option<Hash32>,
    /// Tokens that the claim covers.
    pub tokens: u64,
    /// Those of them that came out again.
    pub tokens_derived: u64,
    /// The checks.
    pub checks: Vec<Check>,
}

impl Verdict {
    /// Whether nothing that was checked is wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.count(Outcome::Fails) == 0
    }

    /// Whether everything was checked.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.count(Outcome::NotChecked) == 0
    }

    fn count(&self, outcome: Outcome) -> usize {
        self.checks.iter().filter(|check| check.outcome == outcome).count()
    }
}

/// Carries out the command. Blocks for as long as deriving takes.
///
/// # Errors
/// [`VerifyError`]: nothing is shown then.
pub async fn carry_out(inputs: &Inputs, task: &VerifyTask) -> Result<Verdict, VerifyError> {
    let proof = task.proof.as_deref().map(read_proof).transpose()?;
    let (blob, proof) = match (&task.file, task.job) {
        (Some(path), _) => (read_blob(path)?, proof),
        (None, job) => own_claim(inputs, job.unwrap_or_default(), task.seq)?,
    };
    let texts = task.texts.as_deref().map(read_texts).transpose()?.unwrap_or_default();
    let is_whole = task.sample >= 1.0;
    let chosen = sample(&blob, task.sample, task.sample_seed)?;
    let mut claim = Claim {
        proof,
        signer: task.signer,
        marketplace: task.claimed_at,
        texts,
        sample: (!is_whole).then_some(chosen),
        ..Claim::default()
    };
    if task.on_chain {
        onchain::look(&InspectSettings::load(inputs)?, (&blob, &mut claim), task.from_block)
            .await?;
    }
    let mut models = load_models(&task.weights, &blob)?;
    verify(&blob, &claim, &mut models)
}

/// A claim of this node's ledger, with the proof bytes that were sent.
fn own_claim(
    inputs: &Inputs,
    job: u64,
    seq: Option<u32>,
) -> Result<(Blob, Option<ProofBytes>), VerifyError> {
    let settings = InspectSettings::load(inputs)?;
    let job = JobId::new(job).ok_or(VerifyError::NoClaim { job, seq })?;
    let path = settings.ledger_path();
    if !path.exists() {
        return Err(VerifyError::NoLedger(path));
    }
    let reader = SqliteReader::open(&path)?;
    let entries = reader.job_entries(job)?;
    let mut claims = entries.iter().filter_map(|entry| match &entry.fact {
        Fact::TxPrepared { purpose: Purpose::Claim(claim), .. } => Some(claim),
        _ => None,
    });
    let wanted = |claim: &&ClaimBody| seq.is_none_or(|seq| claim.seq.get() == seq);
    let missing = VerifyError::NoClaim { job: job.get(), seq };
    let claim = claims.rfind(wanted).ok_or(missing)?;
    let binding = reader.binding();
    let domain = VoucherDomain { chain_id: binding.chain_id, marketplace: binding.contract };
    let missing = VerifyError::NoClaim { job: job.get(), seq };
    let blob = Blob::of_claim(domain, job, claim.seq, &entries).ok_or(missing)?;
    let proof = ProofBytes::decode(&claim.proof);
    Ok((blob, Some(proof.map_err(|error| VerifyError::Proof(error.to_string()))?)))
}

/// Reads a blob.
///
/// # Errors
/// [`VerifyError::File`], [`VerifyError::Blob`].
pub fn read_blob(path: &Path) -> Result<Blob, VerifyError> {
    let bytes = read(path)?;
    let named = |error| VerifyError::Blob { path: path.display().to_string(), error };
    Blob::decode(&bytes).map_err(named)
}

/// Reads proof bytes in hex, or the content of a file after `@`.
///
/// # Errors
/// [`VerifyError::Proof`], [`VerifyError::File`].
pub fn read_proof(text: &str) -> Result<ProofBytes, VerifyError> {
    let from_file = text.strip_prefix('@').map(|path| read(Path::new(path))).transpose()?;
    let hex_text = from_file.map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
    let hex_text = hex_text.unwrap_or_else(|| text.to_owned());
    let digits = hex_text.strip_prefix("0x").unwrap_or(&hex_text);
    let bytes = hex::decode(digits).map_err(|error| VerifyError::Proof(error.to_string()))?;
    let wrong = |error: ProofBytesError| VerifyError::Proof(error.to_string());
    ProofBytes::decode(&bytes).map_err(wrong)
}

/// Reads what a client was told, by turn.
///
/// # Errors
/// [`VerifyError::File`], [`VerifyError::Texts`].
pub fn read_texts(path: &Path) -> Result<BTreeMap<TurnNo, String>, VerifyError> {
    let named = |why: String| VerifyError::Texts { path: path.display().to_string(), why };
    let texts: BTreeMap<u32, String> =
        serde_json::from_slice(&read(path)?).map_err(|error| named(error.to_string()))?;
    Ok(texts.into_iter().map(|(turn, text)| (TurnNo::new(turn), text)).collect())
}

/// Turns to derive: each with this chance, one at least; the same for the same seed.
///
/// # Errors
/// [`VerifyError::Sample`].
pub fn sample(blob: &Blob, share: f64, seed: u64) -> Result<BTreeSet<TurnNo>, VerifyError> {
    if !(share > 0.0 && share <= 1.0) {
        return Err(VerifyError::Sample(share));
    }
    let turns: BTreeSet<TurnNo> = blob.chunks.iter().map(|chunk| chunk.turn).collect();
    let lot = |turn: &TurnNo| {
        let text = format!("{seed} {turn}");
        let [a, b, c, d, ..] = *crate::proof::keccak256(text.as_bytes()).bytes();
        f64::from(u32::from_be_bytes([a, b, c, d])) / f64::from(u32::MAX)
    };
    let least = turns.iter().min_by(|a, b| lot(a).total_cmp(&lot(b))).copied();
    let drawn = turns.iter().filter(|turn| lot(turn) < share || share >= 1.0);
    Ok(drawn.copied().chain(least).collect())
}

/// Checks a claim; its turns are derived again by those models that they name. Blocks for as long
/// as that takes.
///
/// # Errors
/// [`VerifyError::Failed`]: nothing is shown then.
pub fn verify(blob: &Blob, claim: &Claim, models: &mut [Model]) -> Result<Verdict, VerifyError> {
    let mut checks = claim.chain.clone();
    checks.extend(paper::all(blob, claim));
    let (derived, tokens_derived) = turns::all(blob, claim, models)?;
    checks.extend(derived);
    Ok(Verdict {
        job: blob.job,
        seq: blob.seq,
        root: blob.root().ok(),
        tokens: blob.tokens().get(),
        tokens_derived,
        checks,
    })
}

fn read(path: &Path) -> Result<Vec<u8>, VerifyError> {
    let named = |error| VerifyError::File { path: path.display().to_string(), error };
    std::fs::read(path).map_err(named)
}

/// Loads models, each of which derives the turns that name it. Blocks while they are read.
///
/// # Errors
/// [`VerifyError::Model`].
pub fn load_models(paths: &[PathBuf], blob: &Blob) -> Result<Vec<Model>, VerifyError> {
    let load = |path: &PathBuf| {
        let named = |error| VerifyError::Model { path: path.display().to_string(), error };
        Model::load(path, blob).map_err(named)
    };
    paths.iter().map(load).collect()
}

const fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Holds => "ok",
        Outcome::Fails => "WRONG",
        Outcome::NotChecked => "not checked",
    }
}

/// The verdict as lines; the last one sums up.
#[must_use]
pub fn lines(verdict: &Verdict) -> Vec<String> {
    let one = |check: &Check| {
        let turn = check.turn.map(|turn| format!("turn {turn}: ")).unwrap_or_default();
        format!("{:<12} {:<10} {turn}{}", word(check.outcome), check.what, check.words)
    };
    let Verdict { job, seq, tokens, tokens_derived, .. } = verdict;
    let result = match (verdict.is_ok(), verdict.is_complete()) {
        (false, _) => "the claim is WRONG",
        (true, true) => "the claim holds",
        (true, false) => "nothing is wrong, not everything was checked",
    };
    let summary = format!(
        "job {job}, claim {seq}: {tokens} tokens, {tokens_derived} derived again: {result}"
    );
    verdict.checks.iter().map(one).chain([summary]).collect()
}

/// The verdict as one JSON object.
#[must_use]
pub fn to_json(verdict: &Verdict) -> Value {
    let one = |check: &Check| {
        json!({
            "outcome": word(check.outcome).to_lowercase(),
            "what": check.what,
            "turn": check.turn.map(TurnNo::get),
            "position": check.position,
            "words": check.words,
        })
    };
    json!({
        "ok": verdict.is_ok(),
        "complete": verdict.is_complete(),
        "job_id": verdict.job.get(),
        "seq": verdict.seq.get(),
        "root": verdict.root.map(|root| root.to_string()),
        "tokens": verdict.tokens,
        "tokens_derived": verdict.tokens_derived,
        "checks": verdict.checks.iter().map(one).collect::<Vec<_>>(),
    })
}
