//! The start of a paid node: the chain is found, examined and believed before anything is served.
//!
//! Never falls back to serving for free, and never gives up over one bad answer: a node that comes
//! back after a crash has claims to make.

use std::sync::Arc;
use std::time::Duration;

use super::ledger_care::RestoredError;
use super::preflight::{self, Finding, Findings, Grade, Subject};
use super::settings::{ChainSettings, Settings};
use super::wiring::{self, Paid, WiringError};
use super::{access, ledger_care, model_names};
use crate::chain::evm::{ConnectError, EvmChain, EvmWallet};
use crate::chain::{Chain, ChainError};
use crate::clock::Clock;
use crate::engine::Engine;
use crate::engine::local::LocalEngine;
use crate::units::Hash32;

/// How often a start asks a silent chain, and how long it waits in between: a restart of the
/// endpoint beside the node is over in that time.
const START_TRIES: u32 = 10;
const START_PAUSE: Duration = Duration::from_secs(1);

/// What stands before the chain is asked.
pub(super) struct Parts<'a> {
    pub settings: &'a Settings,
    pub engine: &'a LocalEngine,
    pub clock: &'a Arc<dyn Clock>,
}

/// A paid node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A part could not be made.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The chain, the registry or the wallet does not allow a paid node; the log says the remedy.
    #[error("the node cannot be paid like this: {0}; `tally doctor` says more")]
    Unfit(String),
    /// The ledger came out of a backup and may not be worked on yet.
    #[error(transparent)]
    Restored(#[from] RestoredError),
    /// The chain does not answer.
    #[error("the chain does not answer: {0}")]
    Silent(String),
}

impl StartError {
    /// Whether waiting may cure it.
    fn may_pass(&self) -> bool {
        match self {
            Self::Silent(_) => true,
            Self::Wiring(WiringError::Connect(ConnectError::Chain(error))) => {
                matches!(error, ChainError::Unreachable(_))
            }
            Self::Wiring(_) | Self::Unfit(_) | Self::Restored(_) => false,
        }
    }
}

pub(super) fn log_finding(finding: &Finding) {
    let Finding { check, found, remedy, grade } = finding;
    match grade {
        Grade::Ok => tracing::info!(check, found, "preflight"),
        Grade::Warning => tracing::warn!(check, found, remedy, "preflight"),
        Grade::Unanswered => tracing::warn!(check, found, remedy, "preflight: no answer"),
        Grade::Failure => tracing::error!(check, found, remedy, "preflight"),
    }
}

/// What `tally doctor` prints, to the log; a failure stops the start.
async fn check(
    settings: &Settings,
    chain: &EvmChain,
    weights_sha256: &[Hash32],
) -> Result<(), StartError> {
    let subject = Subject { chain, registry: chain, settings, weights_sha256 };
    let mut findings = Findings::default();
    preflight::endpoints(&chain.endpoints().await, &mut findings);
    findings.0.extend(preflight::examine(&subject).await.0);
    findings.0.iter().for_each(log_finding);
    let of = |grade| findings.0.iter().find(|finding| finding.grade == grade);
    let words = |finding: &Finding| format!("{}: {}", finding.check, finding.found);
    if let Some(failed) = of(Grade::Failure) {
        return Err(StartError::Unfit(words(failed)));
    }
    of(Grade::Unanswered).map_or(Ok(()), |silent| Err(StartError::Silent(words(silent))))
}

/// Connects and checks; tries again for a while where the chain does not answer. A node that comes
/// back after a crash must not stay down over one bad answer, with claims to make.
async fn connect(
    parts: &Parts<'_>,
    chain: &ChainSettings,
    wallet: &Arc<EvmWallet>,
) -> Result<Arc<EvmChain>, StartError> {
    let Parts { settings, engine, clock } = parts;
    let weights_sha256: Vec<_> =
        engine.catalog().into_iter().map(|card| card.weights_sha256).collect();
    let mut tries = 1;
    loop {
        let failed = match access::connect(chain, Arc::clone(wallet)).await {
            Ok(connected) => match check(settings, &connected, &weights_sha256).await {
                Ok(()) => return Ok(Arc::new(connected)),
                Err(error) => error,
            },
            Err(error) => WiringError::from(error).into(),
        };
        if !failed.may_pass() || tries >= START_TRIES {
            return Err(failed);
        }
        tracing::warn!(error = %failed, tries, "the chain does not answer: trying again");
        tries = tries.saturating_add(1);
        clock.sleep(START_PAUSE).await;
    }
}

/// Everything that is paid, once chain, registry and wallet were found fit; `None` for a node that
/// serves for free because it was told to.
pub(super) async fn paid(
    parts: Parts<'_>,
    wallet: Option<Arc<EvmWallet>>,
) -> Result<Option<Arc<Paid>>, StartError> {
    match (&parts.settings.chain, wallet) {
        (Some(chain), Some(wallet)) => prepare(parts, chain, wallet).await.map(Some),
        (Some(_) | None, _) => Ok(None),
    }
}

async fn prepare(
    parts: Parts<'_>,
    chain: &ChainSettings,
    wallet: Arc<EvmWallet>,
) -> Result<Arc<Paid>, StartError> {
    let chain = connect(&parts, chain, &wallet).await?;
    let Parts { settings, engine, clock } = parts;
    let limits = chain.limits().await.map_err(WiringError::from)?;
    let ledger = wiring::open_ledger(&settings.ledger_path(), &*chain, &*wallet)?;
    ledger_care::admit_restored(&ledger, &*chain).await?;
    model_names::remember(&settings.ledger_path(), &engine.catalog());
    let tracker = wiring::restore(&*ledger, &**clock).await?;
    let clock = Arc::clone(clock);
    Ok(Arc::new(Paid { chain, wallet, limits, ledger, tracker, clock }))
}
