//! `tally status`: what was delivered, claimed and earned, from the ledger and the chain.
//!
//! Never writes and takes no lock, so it works while the node runs: it reads committed entries
//! only. Without an endpoint the ledger alone is told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::control::{AskError, Command, ask};
use super::settings::InspectSettings;
use super::{access, pause};
use crate::billing::{Account, AccountFault, Accounts, Errand, ErrandKind, Purpose, Tx, TxState};
use crate::chain::Chain;
use crate::ledger::LedgerError;
use crate::ledger::sqlite::SqliteReader;
use crate::units::{Address, Amount, JobId, TokenCount};

/// The status could not be told.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The ledger holds an entry that does not fit.
    #[error("the ledger does not add up: {0}")]
    Fault(#[from] AccountFault),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The ledger's file.
    pub ledger: PathBuf,
    /// All accounts; none where the node has not run yet.
    pub accounts: Accounts,
    /// What the chain says.
    pub earnings: Earnings,
    /// Whether a node runs on this data folder, and takes work.
    pub node: NodeState,
}

/// Whether a node runs, and takes work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeState {
    /// It answers on its control socket, with these reasons for taking no new work.
    Running(Vec<String>),
    /// None runs. The next one begins paused, or not.
    Stopped {
        /// The operator's order stands.
        paused: bool,
    },
    /// It cannot be asked, for this reason.
    Unknown(String),
}

/// What the host has earned and not withdrawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Earnings {
    /// By payment token; zero is the native currency.
    Known(BTreeMap<Address, Amount>),
    /// The chain was not asked or did not answer, for this reason.
    Unknown(String),
}

/// Reads the ledger, then asks the chain. Blocks on disk.
///
/// # Errors
/// [`StatusError`]; an endpoint that does not answer is none.
pub async fn look(settings: &InspectSettings) -> Result<Status, StatusError> {
    let ledger = settings.ledger_path();
    let accounts = if ledger.exists() {
        let reader = SqliteReader::open(&ledger)?;
        fold(|each| reader.replay(each))?
    } else {
        Accounts::default()
    };
    let earnings = match earnings(settings, &accounts.jobs).await {
        Ok(earnings) => Earnings::Known(earnings),
        Err(why) => Earnings::Unknown(why),
    };
    let node = node_state(&settings.data_dir).await;
    Ok(Status { ledger, accounts, earnings, node })
}

async fn node_state(data_dir: &Path) -> NodeState {
    match ask(data_dir, &Command::Status).await {
        Ok(Ok(answer)) => {
            let pauses = answer["pauses"].as_array().into_iter().flatten();
            let words = pauses.filter_map(|why| why.as_str().map(str::to_owned));
            NodeState::Running(words.collect())
        }
        Ok(Err(fault)) => NodeState::Unknown(fault.to_string()),
        Err(AskError::NotRunning) => NodeState::Stopped { paused: pause::is_paused(data_dir) },
        Err(error) => NodeState::Unknown(error.to_string()),
    }
}

fn node_words(node: &NodeState) -> String {
    match node {
        NodeState::Running(pauses) if pauses.is_empty() => "running".to_owned(),
        NodeState::Running(pauses) => format!("running, no new work: {}", pauses.join("; ")),
        NodeState::Stopped { paused: true } => "not running, paused".to_owned(),
        NodeState::Stopped { paused: false } => "not running".to_owned(),
        NodeState::Unknown(why) => format!("not known: {why}"),
    }
}

fn node_json(node: &NodeState) -> Value {
    match node {
        NodeState::Running(pauses) => {
            json!({"running": true, "paused": !pauses.is_empty(), "pauses": pauses})
        }
        NodeState::Stopped { paused } => {
            json!({"running": false, "paused": paused, "pauses": []})
        }
        NodeState::Unknown(why) => json!({"running": null, "why": why}),
    }
}

/// Folds entries into accounts.
fn fold(
    replay: impl FnOnce(&mut dyn FnMut(crate::billing::Entry)) -> Result<(), LedgerError>,
) -> Result<Accounts, StatusError> {
    let mut accounts = Accounts::default();
    let mut fault = None;
    replay(&mut |entry| {
        if let Err(error) = accounts.apply(&entry) {
            fault.get_or_insert(error);
        }
    })?;
    fault.map_or(Ok(accounts), |fault| Err(fault.into()))
}

async fn earnings(
    settings: &InspectSettings,
    accounts: &BTreeMap<JobId, Account>,
) -> Result<BTreeMap<Address, Amount>, String> {
    let (Some(chain), Some(key)) = (&settings.chain, &settings.key) else {
        return Err("no chain or no key is set".to_owned());
    };
    let wallet = access::open_wallet(key).map_err(|error| error.to_string())?;
    let chain = access::connect(chain, wallet).await.map_err(|error| error.to_string())?;
    let paid_in = accounts.values().filter_map(|account| Some(account.terms()?.payment_token));
    let tokens: BTreeSet<_> = paid_in.chain([Address::ZERO]).collect();
    let mut earned = BTreeMap::new();
    for token in tokens {
        let amount = chain.earnings(token).await.map_err(|error| error.to_string())?;
        earned.insert(token, amount);
    }
    Ok(earned)
}

/// The sum over all accounts.
fn total(status: &Status, of: impl Fn(&Account) -> TokenCount) -> u64 {
    let sum = status.accounts.jobs.values().map(of);
    sum.fold(TokenCount::ZERO, TokenCount::saturating_add).get()
}

/// The report as lines.
#[must_use]
pub fn lines(status: &Status) -> Vec<String> {
    let mut lines = vec![format!("node       {}", node_words(&status.node))];
    lines.push(format!("ledger     {}", status.ledger.display()));
    lines.push(format!(
        "tokens     {} recorded, {} claimed, {} confirmed, {} unclaimed, {} forfeited",
        total(status, Account::recorded),
        total(status, Account::claimed),
        total(status, Account::confirmed),
        total(status, Account::unclaimed),
        total(status, |account| account.lost().unwrap_or_default().total()),
    ));
    match &status.earnings {
        Earnings::Unknown(why) => lines.push(format!("earnings   not known: {why}")),
        Earnings::Known(amounts) => lines.extend(amounts.iter().map(|(token, amount)| {
            let unit = if *token == Address::ZERO { "wei".into() } else { format!("of {token}") };
            format!("earnings   {amount} {unit}, not withdrawn")
        })),
    }
    lines.push(format!("sessions   {}", status.accounts.jobs.len()));
    for account in status.accounts.jobs.values() {
        lines.extend(account_lines(account));
    }
    let own = status.accounts.wallet.txs().all();
    if !own.is_empty() {
        lines.push("wallet".to_owned());
        lines.extend(own.iter().map(tx_line));
    }
    lines
}

fn account_lines(account: &Account) -> Vec<String> {
    let (job, recorded) = (account.job(), account.recorded());
    let (claimed, confirmed) = (account.claimed(), account.confirmed());
    let state = state(account);
    let mut lines = vec![format!(
        "job {job:<6} {state}: {recorded} recorded, {claimed} claimed, {confirmed} confirmed, {} \
         unclaimed",
        account.unclaimed()
    )];
    if let Some(why) = account.halted() {
        lines.push(format!("           look into it: {why}"));
    }
    lines.extend(account.txs().iter().map(tx_line));
    lines
}

fn tx_line(tx: &Tx) -> String {
    let what = match &tx.purpose {
        Purpose::Claim(claim) => format!("claim {} of {} tokens", claim.seq, claim.tokens),
        Purpose::Complete => "completion".to_owned(),
        Purpose::Fill => "empty transfer".to_owned(),
        Purpose::Errand(Errand { kind, .. }) => match kind {
            ErrandKind::Withdraw { token, amount, .. } => {
                format!("withdrawal of {amount} of {token}")
            }
            ErrandKind::Forward { token, amount, .. } => format!("forward of {amount} of {token}"),
            ErrandKind::Registry { name } => name.clone(),
        },
    };
    format!("           {what}: {} {}", tx_state(tx), tx.named())
}

/// The report as one JSON object. Amounts are texts: they pass what JSON readers hold exactly.
#[must_use]
pub fn to_json(status: &Status) -> Value {
    let sessions: Vec<_> = status.accounts.jobs.values().map(account_json).collect();
    let earnings = match &status.earnings {
        Earnings::Known(amounts) => {
            let by_token = |(token, amount): (&Address, &Amount)| {
                (token.to_string(), Value::from(amount.to_string()))
            };
            let by_token: serde_json::Map<_, _> = amounts.iter().map(by_token).collect();
            json!({"known": true, "amount_by_token": by_token})
        }
        Earnings::Unknown(why) => json!({"known": false, "why": why}),
    };
    json!({
        "ledger": status.ledger.display().to_string(),
        "tokens_recorded": total(status, Account::recorded),
        "tokens_claimed": total(status, Account::claimed),
        "tokens_confirmed": total(status, Account::confirmed),
        "tokens_unclaimed": total(status, Account::unclaimed),
        "tokens_forfeited":
            total(status, |account| account.lost().unwrap_or_default().total()),
        "earnings": earnings,
        "sessions": sessions,
        "wallet": status.accounts.wallet.txs().all().iter().map(tx_json).collect::<Vec<_>>(),
        "node": node_json(&status.node),
    })
}

fn account_json(account: &Account) -> Value {
    let txs = account.txs().iter().map(tx_json);
    json!({
        "job": account.job().get(),
        "state": state(account),
        "halted": account.halted(),
        "price": account.terms().map(|terms| terms.price.to_string()),
        "deposit": account.terms().map(|terms| terms.deposit.to_string()),
        "tokens_recorded": account.recorded().get(),
        "tokens_claimed": account.claimed().get(),
        "tokens_confirmed": account.confirmed().get(),
        "tokens_unclaimed": account.unclaimed().get(),
        "tokens_forfeited": account.lost().map(|lost| lost.total().get()),
        "transactions": txs.collect::<Vec<_>>(),
    })
}

fn tx_json(tx: &Tx) -> Value {
    let purpose = match &tx.purpose {
        Purpose::Claim(_) => "claim",
        Purpose::Complete => "complete",
        Purpose::Fill => "fill",
        Purpose::Errand(Errand { kind, .. }) => match kind {
            ErrandKind::Withdraw { .. } => "withdraw",
            ErrandKind::Forward { .. } => "forward",
            ErrandKind::Registry { .. } => "registry",
        },
    };
    json!({
        "purpose": purpose,
        "seq": tx.claim().map(|claim| claim.seq.get()),
        "tokens": tx.claim().map(|claim| claim.tokens.get()),
        "nonce": tx.nonce.get(),
        "tx": tx.named().to_string(),
        "state": tx_state(tx),
        "attempts": tx.attempts.len(),
        "fee_wei": tx.fee.to_string(),
    })
}

fn state(account: &Account) -> &'static str {
    match (account.halted(), account.is_closed(), account.completion()) {
        (Some(_), _, _) => "halted",
        (None, true, _) => "closed",
        (None, false, Some(_)) => "settling",
        (None, false, None) => "open",
    }
}

const fn tx_state(tx: &Tx) -> &'static str {
    match tx.state {
        TxState::Prepared => "prepared",
        TxState::Included { .. } => "included",
        TxState::Confirmed => "confirmed",
        TxState::Rejected(_) => "rejected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::billing::SeedOrigin;
    use crate::billing::{Entry, Fact, TurnHeader};
    use crate::units::{Hash32, Millis, TurnNo};

    fn status(facts: Vec<Fact>) -> Status {
        let job = JobId::new(7).unwrap();
        let entry = |fact| Entry { subject: job.into(), at: Millis::ZERO, fact };
        let accounts = fold(|each| {
            facts.into_iter().map(entry).for_each(each);
            Ok(())
        });
        let earnings = Earnings::Unknown("no chain or no key is set".into());
        let node = NodeState::Stopped { paused: false };
        Status { ledger: "l".into(), accounts: accounts.unwrap(), earnings, node }
    }

    fn turn() -> Fact {
        Fact::TurnStarted(TurnHeader {
            turn: TurnNo::ZERO,
            model_spec: Hash32::ZERO,
            tokenizer_spec: Hash32::ZERO,
            decode_spec: Hash32::ZERO,
            engine_spec: 0,
            seed: Hash32::ZERO,
            seed_origin: SeedOrigin::Client,
            decode: None,
            nonces: None,
            prompt_ids: vec![1],
        })
    }

    #[test]
    fn recorded_tokens_show_as_unclaimed_until_a_claim_carries_them() {
        let delivered =
            Fact::Delivered { turn: TurnNo::ZERO, position: 0, ids: vec![5; 42], states: vec![] };
        let status = status(vec![turn(), delivered]);
        let json = to_json(&status);
        assert_eq!(json["tokens_unclaimed"], 42);
        assert_eq!(json["sessions"][0]["state"], "open");
        let text = lines(&status).join("\n");
        assert!(text.contains("42 recorded, 0 claimed"), "{text}");
        assert!(text.contains("not known: no chain"), "{text}");
    }

    #[test]
    fn a_halted_job_says_what_a_human_must_look_into() {
        let status = status(vec![Fact::JobHalted { why: "chain says 300, ledger 200".into() }]);
        assert!(lines(&status).join("\n").contains("look into it: chain says 300"));
        assert_eq!(to_json(&status)["sessions"][0]["state"], "halted");
    }
}
