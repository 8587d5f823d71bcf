//! Ledger against chain: what was wanted, what was found.
//!
//! Never reads anything: a function of the two sides. A state that may still move is pending,
//! what cannot be explained by waiting differs.

use std::collections::{BTreeMap, BTreeSet};

use super::facts::{Facts, Proven};
use super::view::{Fate, JobView, Kind, Mined, Opened, Sent, View};
use super::{Grade, Line};
use crate::billing::{RejectReason, Subject};
use crate::chain::{ChainJob, Inclusion, JobStatus};
use crate::units::{JobId, TxHash, WalletNonce};

/// Every line: jobs in order, then events, the wallet's transactions, its nonces, the ledger.
pub(super) fn all(view: &View, facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    for (job, known) in &view.jobs {
        lines.extend(job_lines((*job, known), view, facts));
    }
    lines.extend(event_lines(view, facts));
    lines.extend(view.of(Subject::Wallet).map(|sent| tx_line(sent, facts)));
    lines.extend(nonce_lines(view, facts));
    for (subject, what) in &view.faults {
        let wanted = "entries that add up".to_owned();
        lines.push(differs(about(*subject), "ledger", wanted, what.clone()));
    }
    lines
}

fn about(subject: Subject) -> String {
    match subject {
        Subject::Wallet => "wallet".to_owned(),
        Subject::Job(job) => format!("job {job}"),
    }
}

fn agrees(about: String, what: impl Into<String>, wanted: String) -> Line {
    Line { grade: Grade::Agrees, about, what: what.into(), wanted, found: String::new() }
}

fn pending(about: String, what: impl Into<String>, wanted: String, found: String) -> Line {
    Line { grade: Grade::Pending, about, what: what.into(), wanted, found }
}

fn differs(about: String, what: impl Into<String>, wanted: String, found: String) -> Line {
    Line { grade: Grade::Differs, about, what: what.into(), wanted, found }
}

fn job_lines((job, known): (JobId, &JobView), view: &View, facts: &Facts) -> Vec<Line> {
    let about = about(job.into());
    let mut lines = Vec::new();
    if let Some(why) = &known.halted {
        let found = format!("halted: {why}");
        lines.push(pending(about.clone(), "state", "a job that runs".into(), found));
    }
    lines.extend(view.of(job.into()).map(|sent| tx_line(sent, facts)));
    match facts.jobs.get(&job).and_then(Option::as_ref) {
        Some(found) => {
            lines.push(terms_line(&about, known, found, facts));
            lines.push(count_line((job, known), view, found));
            lines.push(status_line((job, known), view, found));
        }
        None => {
            let wanted = "a session of this number on chain".to_owned();
            lines.push(differs(about, "session", wanted, "none".to_owned()));
        }
    }
    lines
}

/// One transaction: its receipt against its entries.
fn tx_line(sent: &Sent, facts: &Facts) -> Line {
    let who = about(sent.subject);
    let what = match sent.kind {
        Kind::Claim(tokens) => format!("nonce {}, claim of {tokens} tokens", sent.nonce),
        Kind::Complete => format!("nonce {}, completion", sent.nonce),
        Kind::Wallet => format!("nonce {}, the wallet's own", sent.nonce),
    };
    let found = found_in_block(sent, facts);
    match sent.fate {
        Fate::Open => match found {
            Some((hash, _)) => pending(who, what, "in flight".into(), format!("{hash} is mined")),
            None => pending(who, what, "in flight".into(), "not mined".into()),
        },
        Fate::Included(mined) => match receipt_fault(sent, mined, found) {
            None => agrees(who, what, mined_words(mined)),
            Some((Fault::Missing, why)) => pending(who, what, mined_words(mined), why),
            Some((Fault::Wrong, why)) => differs(who, what, mined_words(mined), why),
        },
        Fate::Final(mined) => match receipt_fault(sent, mined, found) {
            None => agrees(who, what, format!("final, {}", mined_words(mined))),
            Some((Fault::Missing | Fault::Wrong, why)) => {
                differs(who, what, format!("final, {}", mined_words(mined)), why)
            }
        },
        Fate::Rejected(reason) => rejected_line((who, what), sent, reason, found),
    }
}

fn mined_words(mined: Mined) -> String {
    format!("{} in block {} for {} wei", mined.hash, mined.block, mined.fee)
}

/// The attempt that is in a block, and what its receipt says.
fn found_in_block<'a>(sent: &Sent, facts: &'a Facts) -> Option<(TxHash, &'a Inclusion)> {
    let in_block =
        |hash: &&TxHash| matches!(facts.seen.get(hash), Some(Inclusion::Included { .. }));
    let hash = sent.attempts.iter().find(in_block)?;
    Some((*hash, facts.seen.get(hash)?))
}

/// How a receipt may fail to be what the ledger says.
enum Fault {
    /// It is not there: a reorg may have taken it.
    Missing,
    /// It is there and says something else.
    Wrong,
}

fn receipt_fault(
    sent: &Sent,
    mined: Mined,
    found: Option<(TxHash, &Inclusion)>,
) -> Option<(Fault, String)> {
    let Some((hash, Inclusion::Included { block, success, proven, fee, .. })) = found else {
        return Some((Fault::Missing, "not in a block".to_owned()));
    };
    if hash != mined.hash || *block != mined.block {
        return Some((Fault::Missing, format!("{hash} in block {block}")));
    }
    if !success {
        return Some((Fault::Wrong, "a revert".to_owned()));
    }
    if !sent.does_work(hash) {
        return Some((Fault::Wrong, "the empty transfer that took its nonce".to_owned()));
    }
    if *fee != mined.fee {
        return Some((Fault::Wrong, format!("a fee of {fee} wei")));
    }
    match (sent.kind, proven) {
        (Kind::Claim(tokens), Some(counted)) if counted.get() == tokens => None,
        (Kind::Claim(_), Some(counted)) => {
            Some((Fault::Wrong, format!("its event counts {counted} tokens")))
        }
        (Kind::Claim(_), None) => Some((Fault::Wrong, "no event that counts tokens".to_owned())),
        (Kind::Complete | Kind::Wallet, _) => None,
    }
}

fn rejected_line(
    (who, what): (String, String),
    sent: &Sent,
    reason: RejectReason,
    found: Option<(TxHash, &Inclusion)>,
) -> Line {
    let done = found.map(|(hash, inclusion)| {
        let succeeded = matches!(inclusion, Inclusion::Included { success: true, .. });
        (hash, succeeded, sent.does_work(hash))
    });
    match (reason, done) {
        (RejectReason::Reverted, Some((hash, false, _))) => {
            agrees(who, what, format!("reverted, {hash}"))
        }
        (RejectReason::Cancelled, Some((hash, true, false))) => {
            agrees(who, what, format!("cancelled by {hash}"))
        }
        // A cancellation may be too late for a claim that reverts: nothing was counted either.
        (RejectReason::Cancelled, Some((hash, false, _))) => {
            agrees(who, what, format!("cancelled, {hash} reverted"))
        }
        (RejectReason::NonceTaken, None) => {
            agrees(who, what, "none of its attempts in a block".to_owned())
        }
        (_, Some((hash, true, true))) => {
            differs(who, what, "no effect".to_owned(), format!("{hash} succeeded"))
        }
        (reason, found) => {
            let found = found.map_or_else(|| "nothing".to_owned(), |(hash, ..)| hash.to_string());
            differs(who, what, format!("rejected: {reason:?}"), format!("{found} in a block"))
        }
    }
}

fn terms_line(about: &str, known: &JobView, found: &ChainJob, facts: &Facts) -> Line {
    let about = about.to_owned();
    let words = |opened: Opened| {
        let Opened { depositor, deposit, price, payment_token, .. } = opened;
        format!("depositor {depositor}, deposit {deposit}, price {price}, token {payment_token}")
    };
    let on_chain = Opened {
        depositor: found.depositor,
        deposit: found.deposit,
        price: found.price.get(),
        payment_token: found.payment_token,
        tokens_before: known.opened.map_or(0, |opened| opened.tokens_before),
    };
    if found.host != facts.host {
        let found = format!("host {}", found.host);
        return differs(about, "terms", format!("host {}", facts.host), found);
    }
    match known.opened {
        Some(opened) if opened == on_chain => agrees(about, "terms", words(opened)),
        Some(opened) => differs(about, "terms", words(opened), words(on_chain)),
        None => differs(about, "terms", "none in the ledger".to_owned(), words(on_chain)),
    }
}

/// The sum that everything is about.
fn count_line((job, known): (JobId, &JobView), view: &View, found: &ChainJob) -> Line {
    let about = about(job.into());
    let before = known.opened.map_or(0, |opened| opened.tokens_before);
    let last = view.claims(job, |fate| matches!(fate, Fate::Final(_)));
    let new = view.claims(job, |fate| matches!(fate, Fate::Included(_)));
    let open = view.claims(job, |fate| fate == Fate::Open);
    let mined = last.saturating_add(new);
    let wanted = before.saturating_add(mined);
    let used = found.tokens_used.get();
    let recorded = known.recorded;
    let words = format!("{before} before + {mined} claimed of {recorded} recorded = {wanted}");
    if used == wanted {
        return agrees(about, "tokens used", words);
    }
    // A reorg may have taken back what is not final, and a block may have brought what is open.
    let moving = before.saturating_add(last)..=wanted.saturating_add(open);
    let found = used.to_string();
    if moving.contains(&used) {
        let words = format!("{words}, {new} not final, {open} in flight");
        return pending(about, "tokens used", words, found);
    }
    differs(about, "tokens used", words, found)
}

fn status_line((job, known): (JobId, &JobView), view: &View, found: &ChainJob) -> Line {
    let about = about(job.into());
    let status = format!("{:?} on chain", found.status);
    let is_final =
        |sent: &&Sent| sent.kind == Kind::Complete && matches!(sent.fate, Fate::Final(_));
    if view.of(job.into()).any(|sent| is_final(&sent)) && found.status != JobStatus::Completed {
        return differs(about, "status", "completed by us".to_owned(), status);
    }
    match (known.lost, found.status) {
        (None, JobStatus::Active) => agrees(about, "status", "open, active on chain".to_owned()),
        (None, JobStatus::Completed | JobStatus::TimedOut | JobStatus::Ended(_)) => {
            pending(about, "status", "open".to_owned(), status)
        }
        (Some(_), JobStatus::Active) => differs(about, "status", "closed".to_owned(), status),
        (Some(lost), JobStatus::Completed | JobStatus::TimedOut | JobStatus::Ended(_)) => {
            agrees(about, "status", format!("closed with {lost} tokens lost, {status}"))
        }
    }
}

/// Proofs of ours that the chain counted and the ledger does not know.
fn event_lines(view: &View, facts: &Facts) -> Vec<Line> {
    let mut claims: BTreeMap<TxHash, (JobId, u64)> = BTreeMap::new();
    for sent in &view.sent {
        if let (Kind::Claim(tokens), Some(job)) = (sent.kind, sent.subject.job()) {
            claims.extend(sent.attempts.iter().map(|hash| (*hash, (job, tokens))));
        }
    }
    let mut lines = Vec::new();
    let mut counted = 0_usize;
    for Proven { job, tokens, tx } in &facts.proven {
        if claims.get(tx) == Some(&(*job, tokens.get())) {
            counted = counted.saturating_add(1);
            continue;
        }
        let wanted = "a claim of the ledger".to_owned();
        let found = format!("{tokens} tokens in {tx}");
        lines.push(differs(about((*job).into()), "event", wanted, found));
    }
    let from = facts.events_from;
    let wanted = format!("{counted} from block {from} on, all in the ledger");
    if lines.is_empty() {
        lines.push(agrees("wallet".to_owned(), "events", wanted));
    }
    lines
}

/// Every nonce from our first to our last is ours or somebody's by name.
fn nonce_lines(view: &View, facts: &Facts) -> Vec<Line> {
    let about = || "wallet".to_owned();
    let mut by_nonce: BTreeMap<WalletNonce, Vec<&Sent>> = BTreeMap::new();
    for sent in &view.sent {
        by_nonce.entry(sent.nonce).or_default().push(sent);
    }
    let (Some(first), Some(last)) =
        (by_nonce.keys().next().copied(), by_nonce.keys().next_back().copied())
    else {
        return vec![agrees(about(), "nonces", "none of ours yet".to_owned())];
    };
    let mut lines = Vec::new();
    let (mut ours, mut foreign) = (0_u64, BTreeSet::new());
    let end = last.get().max(facts.nonce_mined.get().saturating_sub(1));
    for nonce in first.get()..=end {
        let nonce = WalletNonce::new(nonce);
        let sent = by_nonce.get(&nonce).map_or(&[][..], Vec::as_slice);
        match nonce_state(nonce, sent, facts) {
            NonceState::Ours => ours = ours.saturating_add(1),
            NonceState::Foreign => {
                foreign.insert(nonce);
            }
            NonceState::Waiting => {
                let wanted = "a transaction in a block".to_owned();
                lines.push(pending(about(), format!("nonce {nonce}"), wanted, "none".into()));
            }
            NonceState::Wrong(found) => {
                let wanted = "one transaction in a block at most".to_owned();
                lines.push(differs(about(), format!("nonce {nonce}"), wanted, found));
            }
        }
    }
    for nonce in &foreign {
        let (what, wanted) = (format!("nonce {nonce}"), "a transaction of ours".to_owned());
        let found = "used by another program with this key".to_owned();
        lines.push(Line { grade: Grade::Foreign, about: about(), what, wanted, found });
    }
    let words = format!("{first} to {end}: {ours} ours, {} foreign", foreign.len());
    lines.push(agrees(about(), "nonces", words));
    lines
}

/// Who used a nonce.
enum NonceState {
    Ours,
    Foreign,
    Waiting,
    Wrong(String),
}

fn nonce_state(nonce: WalletNonce, sent: &[&Sent], facts: &Facts) -> NonceState {
    let is_used = nonce < facts.nonce_mined;
    let mined = sent.iter().filter(|one| found_in_block(one, facts).is_some()).count();
    match (mined, is_used) {
        (0, false) => NonceState::Waiting,
        (1, true) => NonceState::Ours,
        (1.., false) => NonceState::Wrong("in a block, but the wallet's count is below".into()),
        (2.., true) => NonceState::Wrong(format!("{mined} transactions in blocks")),
        // What was signed for it and is in no block lost it, or is about to be seen.
        (0, true) if sent.iter().any(|one| one.fate == Fate::Open) => NonceState::Waiting,
        (0, true) => NonceState::Foreign,
    }
}
