//! `tally ledger backup|restore|check|retire`: care of the ledger's file, and what a node does
//! when its ledger came out of a backup.
//!
//! Never overwrites or deletes a ledger; the adapter moves aside what makes place. Takes the locks
//! of a running node for whatever needs a stopped one. Relies on the file's own word for whose it
//! is, so that no password is asked for.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::lock::{self, LockError, WalletLock};
use super::settings::InspectSettings;
use crate::chain::{Chain, ChainError};
use crate::ledger::LedgerError;
use crate::ledger::sqlite::{self, CareError, Inspection, LedgerSums, SqliteLedger};
use crate::units::WalletNonce;

/// The ledger was left as it was, for this reason.
#[derive(Debug, thiserror::Error)]
pub enum CareFailure {
    /// There is none yet.
    #[error("there is no ledger at {}", .0.display())]
    Missing(PathBuf),
    /// A node runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The adapter refused.
    #[error(transparent)]
    Care(#[from] CareError),
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The check found something. All was printed.
    #[error("the ledger is not sound: {0} faults; restore a backup, and keep this file")]
    Unsound(usize),
}

/// Copies the ledger; lines for the operator. Blocks.
///
/// # Errors
/// [`CareFailure`]; there is no copy then.
pub fn back_up(settings: &InspectSettings, to: &Path) -> Result<Vec<String>, CareFailure> {
    let from = present(settings)?;
    let sums = sqlite::back_up(&from, to)?;
    Ok(vec![told(&sums), to.display().to_string()])
}

/// Puts a backup in the ledger's place; lines for the operator. Blocks.
///
/// # Errors
/// [`CareFailure`]; the ledger in place is as it was.
pub fn restore(
    settings: &InspectSettings,
    from: &Path,
    may_replace: bool,
) -> Result<Vec<String>, CareFailure> {
    let wallet = sqlite::binding_of(from)?.wallet;
    let _lock = WalletLock::take(Some(wallet), &lock::user_dir(), &settings.data_dir)?;
    let to = settings.ledger_path();
    if let Some(folder) = to.parent() {
        let made = std::fs::create_dir_all(folder);
        made.map_err(|error| CareError::Disk { path: folder.to_owned(), error })?;
    }
    let done = sqlite::restore(from, &to, may_replace)?;
    let mut lines = vec![told(&done.sums)];
    if let Some(kept) = &done.moved_to {
        lines.push(format!("the ledger that was in place: {}", kept.display()));
    }
    if done.is_behind {
        lines.push(
            "entries may have been lost: the node starts once the wallet has no transaction in \
             flight, and halts every job of which the chain counts more"
                .to_owned(),
        );
    }
    lines.push(to.display().to_string());
    Ok(lines)
}

/// Reads the whole ledger and makes its sums anew. Blocks.
///
/// # Errors
/// [`CareFailure`] where it cannot be opened; faults are in the result.
pub fn check(settings: &InspectSettings) -> Result<Checked, CareFailure> {
    let ledger = present(settings)?;
    let found = sqlite::inspect(&ledger)?;
    Ok(Checked { ledger, found })
}

/// Puts a finished ledger away; lines for the operator. Blocks.
///
/// # Errors
/// [`CareFailure`] names what is open; the ledger is in its place then.
pub fn retire(settings: &InspectSettings) -> Result<Vec<String>, CareFailure> {
    let ledger = present(settings)?;
    let wallet = sqlite::binding_of(&ledger)?.wallet;
    let _lock = WalletLock::take(Some(wallet), &lock::user_dir(), &settings.data_dir)?;
    let kept = sqlite::retire(&ledger)?;
    Ok(vec![format!("the ledger of {wallet} is finished"), kept.display().to_string()])
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    /// The ledger's file.
    pub ledger: PathBuf,
    /// What was found.
    pub found: Inspection,
}

impl Checked {
    /// For a reader.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("ledger     {}", self.ledger.display())];
        lines.push(format!("holds      {}, {} jobs", told(&self.found.sums), self.found.jobs));
        lines.extend(self.found.faults.iter().map(|fault| format!("fault      {fault}")));
        if self.found.faults.is_empty() {
            lines.push("sound      every page, row and sum".to_owned());
        }
        lines
    }

    /// One JSON object.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Inspection { sums, jobs, faults } = &self.found;
        json!({
            "ledger": self.ledger.display().to_string(),
            "ok": faults.is_empty(),
            "entries": sums.entries(),
            "deliveries": sums.deliveries,
            "tokens_recorded": sums.tokens.get(),
            "jobs": jobs,
            "faults": faults,
        })
    }

    /// # Errors
    /// [`CareFailure::Unsound`] where there are faults.
    pub fn verdict(&self) -> Result<(), CareFailure> {
        match self.found.faults.len() {
            0 => Ok(()),
            faults => Err(CareFailure::Unsound(faults)),
        }
    }
}

fn present(settings: &InspectSettings) -> Result<PathBuf, CareFailure> {
    let path = settings.ledger_path();
    if path.exists() { Ok(path) } else { Err(CareFailure::Missing(path)) }
}

fn told(sums: &LedgerSums) -> String {
    format!("{} entries, {} tokens recorded", sums.entries(), sums.tokens)
}

/// A node may not work on a restored ledger yet.
#[derive(Debug, thiserror::Error)]
pub enum RestoredError {
    /// The ledger.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The chain did not answer.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The wallet has transactions that a lost entry may have known.
    #[error(
        "the ledger came out of a backup, and the wallet has transactions in flight (nonces \
         {mined} up to {pending}) that it may not know, claims perhaps: wait until they are mined \
         or replaced, then start again"
    )]
    InFlight {
        /// The next nonce by the newest block.
        mined: WalletNonce,
        /// The next nonce counting the pool.
        pending: WalletNonce,
    },
}

/// Lets a restored ledger be worked on once no lost claim can still be mined unseen.
///
/// Claims that were mined after the backup show in the chain's `tokensUsed`, and the reconciler
/// halts their jobs before it claims anything. One that is still in flight would not show, and its
/// tokens would be claimed a second time under another nonce: so nothing starts until the wallet
/// has none.
///
/// # Errors
/// [`RestoredError`].
pub async fn admit_restored(ledger: &SqliteLedger, chain: &dyn Chain) -> Result<(), RestoredError> {
    if !ledger.is_restored()? {
        return Ok(());
    }
    let wallet = chain.wallet().await?;
    let (mined, pending) = (wallet.nonce_mined, wallet.nonce_pending);
    if pending > mined {
        return Err(RestoredError::InFlight { mined, pending });
    }
    tracing::warn!("the ledger came out of a backup; jobs of which the chain counts more halt");
    Ok(ledger.forget_restored()?)
}
