//! Wiring: settings become a model, a chain, a ledger and the two services on top of them.
//!
//! Never opens a port and never starts a task: whatever fails here fails before anyone was
//! promised anything. Relies on the settings being complete.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::settings::{LegacyMode, MoneySettings, Settings};
use crate::billing::{AccountFault, Accounts, Entry, Fact, TurnEnd};
use crate::chain::evm::{ConnectError, EvmChain, EvmWallet};
use crate::chain::registry::ModelId;
use crate::chain::{Chain, ChainError, Limits, PrepareError, Wallet};
use crate::clock::Clock;
use crate::ledger::sqlite::{LedgerBinding, SqliteLedger, SqliteOptions};
use crate::ledger::{Ledger, LedgerError};
use crate::session::{BooksParts, Grace, LegacyAccess, PaidBy, SessionRules, Tracker};
use crate::settlement::{Observer, Settlement, SettlementParts, SettlementRules};
use crate::units::{Hash32, Millis};

/// Longest a prompt for an unknown job waits for the chain.
const ADMISSION_WAIT: Duration = Duration::from_secs(5);
/// Every job is compared with the chain this often, whatever events say.
const SWEEP_EVERY: Millis = Millis::new(30_000);

/// A part of the node could not be made.
#[derive(Debug, thiserror::Error)]
pub enum WiringError {
    /// The model file.
    #[error("model file {path}: {why}")]
    Model {
        /// Its path.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A model that does not fit beside the others.
    #[error(
        "model {model}: its weights take {needed} bytes, and of engine.memory_bytes = {all} \
         beside KV caches and the models before it {left} are left"
    )]
    Memory {
        /// Its name.
        model: String,
        /// Bytes that it takes.
        needed: u64,
        /// Bytes that are left for it.
        left: u64,
        /// Bytes in all.
        all: u64,
    },
    /// Two models of one name.
    #[error("two models are named {0}: set model.name, or another name in model.more")]
    ModelName(String),
    /// The chain.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The chain's contract did not answer.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The host's key does not sign.
    #[error(transparent)]
    Key(#[from] PrepareError),
    /// The ledger.
    #[error("ledger {path}: {error}")]
    Ledger {
        /// Its path.
        path: String,
        /// What is wrong with it.
        error: LedgerError,
    },
    /// The ledger holds an entry that does not fit: it was written by another version, or edited.
    #[error("the ledger does not add up: {0}")]
    Account(#[from] AccountFault),
}

/// Opens the ledger of this chain, contract and wallet. Blocks.
///
/// # Errors
/// [`WiringError::Ledger`].
pub fn open_ledger(
    path: &Path,
    chain: &dyn Chain,
    wallet: &dyn Wallet,
) -> Result<Arc<SqliteLedger>, WiringError> {
    let fail = |error| WiringError::Ledger { path: path.display().to_string(), error };
    if let Some(folder) = path.parent() {
        let made = std::fs::create_dir_all(folder);
        made.map_err(|error| fail(LedgerError::Store(error.to_string())))?;
    }
    let binding = LedgerBinding {
        chain_id: chain.chain_id(),
        contract: chain.marketplace(),
        wallet: wallet.address(),
    };
    SqliteLedger::open(path, SqliteOptions::new(binding)).map(Arc::new).map_err(fail)
}

/// Folds the ledger into accounts. Blocks for as long as reading it takes.
///
/// # Errors
/// [`WiringError`] when an entry cannot be read or does not fit.
pub fn replay(ledger: &dyn Ledger) -> Result<Accounts, WiringError> {
    let mut accounts = Accounts::default();
    let mut fault = None;
    let replayed = ledger.replay(&mut |entry: Entry| {
        if let Err(error) = accounts.apply(&entry) {
            fault.get_or_insert(error);
        }
    });
    replayed.map_err(|error| WiringError::Ledger { path: "replay".into(), error })?;
    fault.map_or(Ok(accounts), |fault| Err(fault.into()))
}

/// The live view as the ledger left it. Turns that a crash cut off are ended now, durably.
///
/// # Errors
/// [`WiringError`].
pub async fn restore(ledger: &dyn Ledger, clock: &dyn Clock) -> Result<Arc<Tracker>, WiringError> {
    let tracker = Tracker::default();
    let accounts = replay(ledger)?;
    tracker.restore_wallet(accounts.wallet);
    for (job, mut account) in accounts.jobs {
        let open: Vec<_> = account.turns_open().collect();
        let ended = open.into_iter().map(|turn| Entry {
            subject: job.into(),
            at: clock.unix(),
            fact: Fact::TurnEnded { turn, end: TurnEnd::Error },
        });
        let ended: Vec<Entry> = ended.collect();
        if !ended.is_empty() {
            let appended = ledger.append(ended.clone()).await;
            appended.map_err(|error| WiringError::Ledger { path: "restore".into(), error })?;
        }
        for entry in &ended {
            account.apply(entry)?;
        }
        tracker.restore(account, clock.now());
    }
    Ok(Arc::new(tracker))
}

/// Everything that is paid.
pub struct Paid {
    /// The chain.
    pub chain: Arc<EvmChain>,
    /// The host's key.
    pub wallet: Arc<EvmWallet>,
    /// The contract's limits.
    pub limits: Limits,
    /// The ledger.
    pub ledger: Arc<SqliteLedger>,
    /// The live view.
    pub tracker: Arc<Tracker>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

impl Paid {
    /// What sessions need of it.
    ///
    /// # Errors
    /// [`PrepareError`] where the key refuses to sign.
    pub fn for_sessions(&self) -> Result<PaidBy, PrepareError> {
        let (chain, wallet) = (Arc::clone(&self.chain), Arc::clone(&self.wallet));
        PaidBy::new(chain, wallet, self.limits, self.books())
    }

    /// The settlement service over it.
    #[must_use]
    pub fn settlement(&self, rules: SettlementRules, observer: Arc<dyn Observer>) -> Settlement {
        Settlement::new(SettlementParts {
            chain: Arc::clone(&self.chain) as Arc<dyn Chain>,
            wallet: Arc::clone(&self.wallet) as Arc<dyn Wallet>,
            books: self.books(),
            limits: self.limits,
            rules,
            observer,
        })
    }

    fn books(&self) -> BooksParts {
        BooksParts {
            ledger: Arc::clone(&self.ledger) as Arc<dyn Ledger>,
            tracker: Arc::clone(&self.tracker),
            clock: Arc::clone(&self.clock),
        }
    }
}

/// The operator's wishes for sessions.
#[must_use]
pub fn session_rules(settings: &Settings) -> SessionRules {
    let session = &settings.session;
    SessionRules {
        price_min: session.price_min.get(),
        payment_tokens: session
            .payment_tokens
            .iter()
            .map(|of| (of.address, of.price_min))
            .collect(),
        exposure: session.exposure,
        model_ids: model_ids(settings),
        aliases: settings.model.aliases.clone(),
        legacy: match session.legacy {
            LegacyMode::Off => LegacyAccess::Off,
            LegacyMode::On { cap } => LegacyAccess::On { cap },
        },
        snapshot_age_max: millis(session.chain_stale_max),
        challenge_lifetime: millis(session.challenge_life),
        token_lifetime: millis(session.token_life),
        chain_wait_max: ADMISSION_WAIT,
    }
}

/// The operator's wishes for settlement.
#[must_use]
pub fn settlement_rules(money: &MoneySettings<'_>) -> SettlementRules {
    let MoneySettings { settlement: wishes, payment_tokens, wallet } = money;
    let worth = payment_tokens.iter().filter_map(|of| Some((of.address, of.wei_per_unit?)));
    SettlementRules {
        claim_at: wishes.claim_at,
        claim_margin: wishes.claim_margin,
        fee_share_max: wishes.fee_share_max,
        fee_max: wishes.fee_max,
        confirmations: wishes.confirmations,
        reorg_depth: wishes.reorg_depth,
        grace: Grace {
            dropped: millis(wishes.grace),
            closed: millis(wishes.grace_clean),
            idle: millis(wishes.idle),
        },
        reprice_after: millis(wishes.reprice_after),
        sweep_every: SWEEP_EVERY,
        complete_at_a_loss: wishes.complete_at_a_loss,
        wei_per_unit: worth.collect(),
        cold_address: wallet.cold_address,
        withdraw_above: wallet.withdraw_above.clone(),
    }
}

/// The registry's ids of the models that are served, of those whose repository is known.
fn model_ids(settings: &Settings) -> BTreeMap<Hash32, String> {
    let all = settings.model.all().into_iter();
    all.filter_map(|model| {
        let name = model.served_name();
        model.registered.map(|(repo, file)| (ModelId::of(&repo, &file).hash(), name))
    })
    .collect()
}

fn millis(span: Duration) -> Millis {
    Millis::new(u64::try_from(span.as_millis()).unwrap_or(u64::MAX))
}
