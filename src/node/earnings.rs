//! `tally earnings`: what the ledger's work earned, by day, model or job.
//!
//! Never writes and takes no lock, so it works while the node runs. The chain is asked for the
//! price unit and the treasury's share only; what it does not say is told as unknown.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::settings::InspectSettings;
use super::{access, model_names};
use crate::billing::earnings::{
    ContractTerms, Earnings, EarningsError, Group, GroupBy, Parts, Report, Row, date,
};
use crate::chain::Chain;
use crate::ledger::LedgerError;
use crate::ledger::sqlite::SqliteReader;
use crate::units::{Address, Hash32};

/// The earnings could not be told.
#[derive(Debug, thiserror::Error)]
pub enum EarningsFailure {
    /// The ledger cannot be read.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// It does not add up, or not in our numbers.
    #[error(transparent)]
    Sums(#[from] EarningsError),
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// How rows are made.
    pub by: GroupBy,
    /// The rows.
    pub report: Report,
    /// Names of models.
    pub names: BTreeMap<Hash32, String>,
    /// The contract's terms that the money was worked out with.
    pub terms: ContractTerms,
    /// Why terms are unknown, where they are.
    pub terms_unknown: Option<String>,
}

/// Reads the ledger, then asks the chain for its terms. Blocks on disk.
///
/// # Errors
/// [`EarningsFailure`]; an endpoint that does not answer is none.
pub async fn look(settings: &InspectSettings, by: GroupBy) -> Result<Statement, EarningsFailure> {
    let ledger = settings.ledger_path();
    let mut earnings = Earnings::default();
    if ledger.exists() {
        let mut fault = None;
        SqliteReader::open(&ledger)?.replay(&mut |entry| {
            if fault.is_none()
                && let Err(error) = earnings.apply(&entry)
            {
                fault = Some(error);
            }
        })?;
        if let Some(fault) = fault {
            return Err(EarningsError::from(fault).into());
        }
    }
    let (terms, terms_unknown) = match terms(settings).await {
        Ok(terms) => (terms, None),
        Err(why) => (ContractTerms::default(), Some(why)),
    };
    let report = earnings.report(by, terms)?;
    Ok(Statement { by, report, names: model_names::recall(&ledger), terms, terms_unknown })
}

async fn terms(settings: &InspectSettings) -> Result<ContractTerms, String> {
    let (Some(chain), Some(key)) = (&settings.chain, &settings.key) else {
        return Err("no chain or no key is set".to_owned());
    };
    let wallet = access::open_wallet(key).map_err(|error| error.to_string())?;
    let chain = access::connect(chain, wallet).await.map_err(|error| error.to_string())?;
    let limits = chain.limits().await.map_err(|error| error.to_string())?;
    Ok(ContractTerms {
        price_unit: Some(limits.price_unit),
        fee_basis_points: Some(limits.fee_basis_points),
    })
}

const fn by_word(by: GroupBy) -> &'static str {
    match by {
        GroupBy::Day => "day",
        GroupBy::Model => "model",
        GroupBy::Job => "job",
    }
}

fn group_text(group: Group) -> String {
    match group {
        Group::Day(day) => date(day),
        Group::Model(spec) => spec.to_string(),
        Group::Job(job) => job.to_string(),
        Group::Wallet => "wallet".to_owned(),
        Group::Total => "total".to_owned(),
    }
}

fn model_name(statement: &Statement, group: Group) -> Option<&str> {
    match group {
        Group::Model(spec) => statement.names.get(&spec).map(String::as_str),
        Group::Day(_) | Group::Job(_) | Group::Wallet | Group::Total => None,
    }
}

fn currency(token: Address) -> String {
    if token == Address::ZERO { "native".to_owned() } else { token.to_string() }
}

/// The report as lines.
#[must_use]
pub fn lines(statement: &Statement) -> Vec<String> {
    let mut lines = Vec::new();
    for row in statement.report.rows.iter().chain(&statement.report.totals) {
        lines.extend(row_lines(statement, row));
    }
    if lines.is_empty() {
        lines.push("nothing was earned yet".to_owned());
    }
    lines.extend(notes(statement));
    lines
}

fn row_lines(statement: &Statement, row: &Row) -> Vec<String> {
    let name = model_name(statement, row.group).map(str::to_owned);
    let title = name.unwrap_or_else(|| group_text(row.group));
    let unit = if row.payment_token == Address::ZERO {
        "wei".to_owned()
    } else {
        format!("of {}", row.payment_token)
    };
    let mut lines = vec![format!("{title}: {} tokens", in_words(row.tokens))];
    if let Some(paid) = row.paid {
        lines.push(format!("    paid by clients  {} {unit}", in_words(paid)));
    }
    if let (Some(paid), Some(host)) = (row.paid, row.host) {
        let fee = paid.claimed.saturating_sub(host.claimed);
        let host = host.claimed;
        lines.push(format!("    of the claimed   {host} for the host, {fee} for the treasury"));
    }
    let net = row.net().map_or_else(String::new, |net| format!(", net {net} wei"));
    lines.push(format!("    gas              {} wei{net}", row.gas));
    lines
}

/// `150 earned = 100 claimed + 50 pending + 0 unclaimable + 0 forfeited`.
fn in_words<T: std::fmt::Display>(parts: Parts<T>) -> String {
    let Parts { earned, claimed, pending, unclaimable, forfeited } = parts;
    format!(
        "{earned} earned = {claimed} claimed + {pending} pending + {unclaimable} unclaimable \
         + {forfeited} forfeited"
    )
}

/// What a reader must know to take the numbers for what they are.
fn notes(statement: &Statement) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(why) = &statement.terms_unknown {
        notes.push(format!("money is not known: the contract was not read ({why})"));
    }
    if !statement.report.jobs_without_terms.is_empty() {
        let jobs: Vec<_> =
            statement.report.jobs_without_terms.iter().map(ToString::to_string).collect();
        let jobs = jobs.join(", ");
        notes.push(format!("counted without a value, for want of a price: jobs {jobs}"));
    }
    notes
}

/// Columns of [`csv`].
const COLUMNS: [&str; 22] = [
    "group_by",
    "group",
    "model_name",
    "payment_token",
    "tokens_earned",
    "tokens_claimed",
    "tokens_pending",
    "tokens_unclaimable",
    "tokens_forfeited",
    "paid_earned",
    "paid_claimed",
    "paid_pending",
    "paid_unclaimable",
    "paid_forfeited",
    "host_earned",
    "host_claimed",
    "host_pending",
    "host_unclaimable",
    "host_forfeited",
    "treasury_claimed",
    "gas_wei",
    "net_wei",
];

/// The rows as comma-separated values with a header, without totals; unknown money is empty.
#[must_use]
pub fn csv(statement: &Statement) -> Vec<String> {
    let header = COLUMNS.join(",");
    let line = |row: &Row| {
        let mut cells = vec![
            by_word(statement.by).to_owned(),
            group_text(row.group),
            quoted(model_name(statement, row.group).unwrap_or_default()),
            currency(row.payment_token),
        ];
        cells.extend(cells_of(Some(row.tokens)));
        cells.extend(cells_of(row.paid));
        cells.extend(cells_of(row.host));
        cells.push(treasury(row).map_or_else(String::new, |fee| fee.to_string()));
        cells.push(row.gas.to_string());
        cells.push(row.net().map_or_else(String::new, |net| net.to_string()));
        cells.join(",")
    };
    [header].into_iter().chain(statement.report.rows.iter().map(line)).collect()
}

fn cells_of<T: std::fmt::Display>(parts: Option<Parts<T>>) -> Vec<String> {
    match parts {
        None => vec![String::new(); 5],
        Some(Parts { earned, claimed, pending, unclaimable, forfeited }) => {
            [earned, claimed, pending, unclaimable, forfeited].map(|one| one.to_string()).to_vec()
        }
    }
}

/// A cell whose text is not ours (RFC 4180).
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

fn treasury(row: &Row) -> Option<u128> {
    row.paid?.claimed.checked_sub(row.host?.claimed)
}

/// The report as one JSON object. Amounts are texts: they pass what JSON readers hold exactly.
#[must_use]
pub fn to_json(statement: &Statement) -> Value {
    let each =
        |rows: &[Row]| -> Vec<Value> { rows.iter().map(|row| row_json(statement, row)).collect() };
    let jobs: Vec<u64> = statement.report.jobs_without_terms.iter().map(|job| job.get()).collect();
    json!({
        "by": by_word(statement.by),
        "rows": each(&statement.report.rows),
        "totals": each(&statement.report.totals),
        "terms": {
            "price_unit": statement.terms.price_unit.map(crate::units::PriceUnit::get),
            "treasury_basis_points": statement.terms.fee_basis_points,
            "unknown_because": statement.terms_unknown,
        },
        "jobs_without_terms": jobs,
    })
}

fn row_json(statement: &Statement, row: &Row) -> Value {
    json!({
        "group": group_text(row.group),
        "model_name": model_name(statement, row.group),
        "payment_token": currency(row.payment_token),
        "tokens": {
            "earned": row.tokens.earned,
            "claimed": row.tokens.claimed,
            "pending": row.tokens.pending,
            "unclaimable": row.tokens.unclaimable,
            "forfeited": row.tokens.forfeited,
        },
        "paid": row.paid.map(money_json),
        "host": row.host.map(money_json),
        "treasury_claimed": treasury(row).map(|fee| fee.to_string()),
        "gas_wei": row.gas.to_string(),
        "net_wei": row.net().map(|net| net.to_string()),
    })
}

fn money_json(parts: Parts<u128>) -> Value {
    json!({
        "earned": parts.earned.to_string(),
        "claimed": parts.claimed.to_string(),
        "pending": parts.pending.to_string(),
        "unclaimable": parts.unclaimable.to_string(),
        "forfeited": parts.forfeited.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PriceUnit;

    fn statement(row: Row, name: &str) -> Statement {
        let Group::Model(spec) = row.group else { panic!("a row of a model") };
        Statement {
            by: GroupBy::Model,
            report: Report { rows: vec![row], ..Report::default() },
            names: BTreeMap::from([(spec, name.to_owned())]),
            terms: ContractTerms { price_unit: PriceUnit::new(1), fee_basis_points: Some(1000) },
            terms_unknown: None,
        }
    }

    fn row() -> Row {
        let tokens = Parts { earned: 3, claimed: 2, pending: 1, ..Parts::default() };
        let paid = Parts { earned: 30, claimed: 20, pending: 10, ..Parts::default() };
        let host = Parts { earned: 27, claimed: 18, pending: 9, ..Parts::default() };
        Row {
            group: Group::Model(Hash32::ZERO),
            payment_token: Address::ZERO,
            tokens,
            paid: Some(paid),
            host: Some(host),
            gas: 20,
        }
    }

    #[test]
    fn a_csv_row_has_a_cell_for_every_column_and_quotes_what_is_not_ours() {
        let lines = csv(&statement(row(), "a,\"b\""));
        assert_eq!(lines[0].split(',').count(), COLUMNS.len());
        let zeros = "0x".to_owned() + &"0".repeat(64);
        let expected = format!(
            "model,{zeros},\"a,\"\"b\"\"\",native,3,2,1,0,0,30,20,10,0,0,27,18,9,0,0,2,20,-2"
        );
        assert_eq!(lines[1], expected);
        let unknown = Row { paid: None, host: None, ..row() };
        let lines = csv(&statement(unknown, "m"));
        assert_eq!(lines[1].split(',').count(), COLUMNS.len());
        assert!(lines[1].ends_with(",,,,,,,,,,,,20,"), "{}", lines[1]);
    }

    #[test]
    fn amounts_are_exact_in_json_and_a_loss_is_negative() {
        let huge = Parts { earned: u128::MAX, pending: u128::MAX, ..Parts::default() };
        let json = to_json(&statement(Row { paid: Some(huge), ..row() }, "m"));
        assert_eq!(json["rows"][0]["paid"]["earned"], u128::MAX.to_string());
        assert_eq!(json["rows"][0]["net_wei"], "-2");
        assert_eq!(json["rows"][0]["model_name"], "m");
    }
}
