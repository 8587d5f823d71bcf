//! The auditor: its own arithmetic over what the chain's log, the ledger's entries and the clients
//! say. Shares no sum with the code under test.

use std::collections::BTreeMap;

use tally::billing::{Entry, Fact, Purpose, RejectReason};
use tally::chain::sim::{Accepted, Sent, SimTerms};
use tally::units::JobId;

/// Tokens of a job that a crash may make a gift (docs/spec/marketplace-api.md, "What is billed").
const CREDIT: u64 = 8;

/// What is known of a job without asking the node.
#[derive(Debug, Clone, Default)]
pub struct Book {
    /// Tokens that the deposit pays for, beyond what was claimed before.
    pub affordable: u64,
    /// Tokens that clients saw.
    pub delivered: u64,
    /// Of those: seen, and lost by a crash before they were recorded. The host's gift.
    pub gifts: u64,
    /// Of those: delivered at once or past a ledger that took nothing, outside the credit.
    pub beyond_credit: u64,
    /// Tokens durable in the ledger.
    pub recorded: u64,
    /// Tokens that the contract counts now.
    pub claimed: u64,
    /// Whether the ledger says that the node stopped the job.
    pub halted: Option<String>,
}

#[derive(Debug, Default)]
pub struct Auditor {
    books: BTreeMap<JobId, Book>,
    /// Entries read so far, and the next position of each turn.
    read: usize,
    turns: BTreeMap<(JobId, u32), u32>,
    kinds: BTreeMap<&'static str, u64>,
    /// Signed bytes that the ledger holds, and the nonce it has for them.
    signed: BTreeMap<[u8; 32], u64>,
}

impl Auditor {
    pub fn opened(&mut self, job: JobId, terms: &SimTerms, unit: u64) {
        let buys = terms.deposit * u128::from(unit) / terms.price;
        let affordable = u64::try_from(buys).unwrap().saturating_sub(terms.tokens_before);
        self.books.insert(job, Book { affordable, ..Book::default() });
    }

    pub fn books(&self) -> &BTreeMap<JobId, Book> {
        &self.books
    }

    /// Entries by kind.
    pub fn kinds(&self) -> &BTreeMap<&'static str, u64> {
        &self.kinds
    }

    /// How many of the ledger's entries were read.
    pub fn read(&self) -> usize {
        self.read
    }

    /// A client saw tokens.
    pub fn delivered(&mut self, job: JobId, tokens: u64, is_beyond_credit: bool) {
        let book = self.books.get_mut(&job).unwrap();
        book.delivered += tokens;
        if is_beyond_credit {
            book.beyond_credit += tokens;
        }
    }

    /// New durable entries.
    pub fn entries(&mut self, entries: &[Entry]) -> Result<(), String> {
        self.read += entries.len();
        for entry in entries {
            *self.kinds.entry(kind(&entry.fact)).or_insert(0) += 1;
            if let Fact::TxPrepared { nonce, attempt, .. }
            | Fact::TxRepriced { nonce, attempt }
            | Fact::TxCancelled { nonce, attempt } = &entry.fact
            {
                self.signed.insert(*attempt.hash.bytes(), nonce.get());
            }
            let Some(job) = entry.job() else { continue };
            match &entry.fact {
                Fact::Delivered { turn, position, ids, .. } => {
                    let next = self.turns.entry((job, turn.get())).or_insert(0);
                    if next != position {
                        return Err(format!("job {job}: {next} expected in {entry:?}"));
                    }
                    let count = u32::try_from(ids.len()).unwrap();
                    *next += count;
                    self.books.get_mut(&job).unwrap().recorded += u64::from(count);
                }
                Fact::JobHalted { why } => {
                    self.books.get_mut(&job).unwrap().halted = Some(why.clone());
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Nothing is sent that the ledger does not hold, nor under another nonce than it says.
    pub fn sent(&self, sent: &[Sent]) -> Result<(), String> {
        for Sent { hash, nonce } in sent {
            match self.signed.get(hash.bytes()) {
                Some(known) if known == nonce => {}
                Some(known) => {
                    return Err(format!("{hash} has nonce {nonce}, the ledger says {known}"));
                }
                None => return Err(format!("{hash} was sent before it was durable")),
            }
        }
        Ok(())
    }

    /// The process is gone: what clients saw beyond the ledger is theirs. At most the credit.
    pub fn crashed(&mut self) -> Result<(), String> {
        for (job, book) in &mut self.books {
            let lost = (book.delivered - book.gifts).saturating_sub(book.recorded);
            if lost > CREDIT + book.beyond_credit {
                return Err(format!("job {job}: {lost} tokens lost by a crash: {book:?}"));
            }
            book.gifts += lost;
            book.beyond_credit = 0;
        }
        Ok(())
    }

    /// The node stopped in good order: everything that clients saw is recorded.
    pub fn stopped(&self) -> Result<(), String> {
        let lost = self.books.iter().find(|(_, book)| book.delivered - book.gifts != book.recorded);
        lost.map_or(Ok(()), |(job, book)| Err(format!("job {job}: lost by a stop: {book:?}")))
    }

    /// The sentence, over the claims that count now.
    pub fn check(&mut self, claims: &[Accepted]) -> Result<(), String> {
        for book in self.books.values_mut() {
            book.claimed = 0;
        }
        for claim in claims {
            if claim.tokens < 100 {
                return Err(format!("a claim under the minimum: {claim:?}"));
            }
            self.books.get_mut(&claim.job).unwrap().claimed += claim.tokens;
        }
        for (job, book) in &self.books {
            let Book { claimed, recorded, delivered, gifts, affordable, .. } = book;
            let billed = delivered - gifts;
            if claimed > recorded || *recorded > billed || billed > *affordable {
                return Err(format!(
                    "job {job}: claimed ≤ recorded ≤ delivered ≤ affordable \
                    does not hold: {book:?}"
                ));
            }
        }
        Ok(())
    }

    /// What was paid beyond the credit is recorded by now: nothing is outstanding.
    pub fn flushed(&mut self) {
        for book in self.books.values_mut() {
            if book.delivered - book.gifts == book.recorded {
                book.beyond_credit = 0;
            }
        }
    }
}

fn kind(fact: &Fact) -> &'static str {
    match fact {
        Fact::JobOpened { .. } => "jobs",
        Fact::TurnStarted(_) => "turns",
        Fact::Delivered { .. } => "deliveries",
        Fact::TxPrepared { purpose: Purpose::Claim(_), .. } => "claims",
        Fact::TxPrepared { purpose: Purpose::Complete, .. } => "completions",
        Fact::TxPrepared { purpose: Purpose::Fill, .. } => "gaps filled",
        Fact::TxRepriced { .. } => "repricings",
        Fact::TxIncluded { .. } => "inclusions",
        Fact::TxReorged { .. } => "reorged",
        Fact::TxConfirmed { .. } => "confirmed",
        Fact::TxRejected { reason: RejectReason::Reverted, .. } => "reverted",
        Fact::TxRejected { .. } => "nonces taken",
        Fact::JobClosed { .. } => "closed",
        Fact::JobReopened { .. } => "reopened",
        Fact::TxCancelled { .. } => "cancelled",
        Fact::JobHalted { .. } => "halted",
        _ => "others",
    }
}
