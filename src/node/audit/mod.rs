//! `tally audit`: proves the ledger against the chain, line by line.
//!
//! Never writes, never signs and takes no lock, so it works while the node runs: what is on its
//! way is told as pending. Shares no sum with the code it audits: it folds the entries by its own
//! arithmetic (`view`), reads the chain (`facts`) and compares (`compare`).

mod compare;
mod facts;
mod view;

use serde_json::{Value, json};

use super::access::{self, WalletError};
use super::settings::InspectSettings;
use crate::chain::ChainError;
use crate::chain::evm::{ConnectError, EvmChain};
use crate::ledger::LedgerError;
use crate::ledger::sqlite::SqliteReader;
use crate::units::BlockNumber;
use view::View;

/// A node that claims while it is audited may move between two readings: a difference counts when
/// it was found this often in a row.
const ROUNDS: usize = 3;

/// The audit could not be made: nothing is proven.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// There is nothing to compare with.
    #[error("an audit needs the chain and the host's key: set {0}")]
    NotSet(&'static str),
    /// There is nothing to compare.
    #[error("no ledger at {0}: this node has not run yet")]
    NoLedger(std::path::PathBuf),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The key cannot be opened.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The marketplace cannot be reached.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The chain stopped answering.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// How a line is to be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grade {
    /// Ledger and chain agree.
    Agrees,
    /// On its way: not final, and no difference.
    Pending,
    /// Not ours, and no harm by itself: a nonce that another program used.
    Foreign,
    /// Ledger and chain contradict each other: a human must look.
    Differs,
}

/// One thing that was compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// How it is to be taken.
    pub grade: Grade,
    /// What it is about: `job 7`, `wallet` or `ledger`.
    pub about: String,
    /// What was compared.
    pub what: String,
    /// What one side says.
    pub wanted: String,
    /// What the other says; empty where both agree.
    pub found: String,
}

/// Everything that was compared.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verdict {
    /// The lines, by job, then the wallet's.
    pub lines: Vec<Line>,
}

impl Verdict {
    /// How many lines differ.
    #[must_use]
    pub fn differences(&self) -> usize {
        self.count(Grade::Differs)
    }

    fn count(&self, grade: Grade) -> usize {
        self.lines.iter().filter(|line| line.grade == grade).count()
    }
}

/// Reads and compares. Blocks on disk; takes as long as the chain takes for every transaction.
///
/// `events_from`: the block from which events are compared; by default that of the ledger's first
/// claim.
///
/// # Errors
/// [`AuditError`]: nothing is proven then.
pub async fn examine(
    settings: &InspectSettings,
    events_from: Option<BlockNumber>,
) -> Result<Verdict, AuditError> {
    let chain = settings.chain.as_ref();
    let chain = chain.ok_or(AuditError::NotSet("chain.rpc_urls, chain.id, chain.marketplace"))?;
    let key = settings.key.as_ref().ok_or(AuditError::NotSet("host.keystore"))?;
    let ledger = settings.ledger_path();
    if !ledger.exists() {
        return Err(AuditError::NoLedger(ledger));
    }
    let chain = access::connect(chain, access::open_wallet(key)?).await?;
    let mut verdict = Verdict::default();
    for _ in 0..ROUNDS {
        verdict = round(&ledger, &chain, events_from).await?;
        if verdict.differences() == 0 {
            break;
        }
    }
    Ok(verdict)
}

async fn round(
    ledger: &std::path::Path,
    chain: &EvmChain,
    events_from: Option<BlockNumber>,
) -> Result<Verdict, AuditError> {
    let mut view = View::default();
    SqliteReader::open(ledger)?.replay(&mut |entry| view.apply(&entry))?;
    let facts = facts::read(chain, &view, events_from).await?;
    Ok(Verdict { lines: compare::all(&view, &facts) })
}

const fn word(grade: Grade) -> &'static str {
    match grade {
        Grade::Agrees => "ok",
        Grade::Pending => "pending",
        Grade::Foreign => "foreign",
        Grade::Differs => "DIFFERS",
    }
}

/// The verdict as lines; the last one sums up.
#[must_use]
pub fn lines(verdict: &Verdict) -> Vec<String> {
    let one = |line: &Line| {
        let Line { grade, about, what, wanted, found } = line;
        let grade = word(*grade);
        let found = if found.is_empty() { String::new() } else { format!("; found {found}") };
        format!("{grade:<8} {about:<10} {what}: {wanted}{found}")
    };
    let summary = format!(
        "{} agree, {} pending, {} foreign, {} differ",
        verdict.count(Grade::Agrees),
        verdict.count(Grade::Pending),
        verdict.count(Grade::Foreign),
        verdict.differences(),
    );
    verdict.lines.iter().map(one).chain([summary]).collect()
}

/// The verdict as one JSON object.
#[must_use]
pub fn to_json(verdict: &Verdict) -> Value {
    let one = |line: &Line| {
        json!({
            "grade": word(line.grade).to_lowercase(),
            "about": line.about,
            "what": line.what,
            "wanted": line.wanted,
            "found": line.found,
        })
    };
    json!({
        "ok": verdict.differences() == 0,
        "agree": verdict.count(Grade::Agrees),
        "pending": verdict.count(Grade::Pending),
        "foreign": verdict.count(Grade::Foreign),
        "differ": verdict.differences(),
        "lines": verdict.lines.iter().map(one).collect::<Vec<_>>(),
    })
}
