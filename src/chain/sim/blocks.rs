//! Blocks: mining, and the loss of the newest ones to another branch.
//!
//! Never loses a block that lies [`REORG_DEPTH_MAX`] under the highest one there ever was: that
//! deep the chain is final. What was in a lost block is mined again, waits, comes back later or is
//! gone, as the generator has it.

use std::collections::BTreeMap;

use super::contract::{Contract, Deed, Reverted, Sender, SimRules};
use super::pool::{Market, Offer, Pool, SimTx};
use super::rng::Rng;
use crate::chain::ChainEvent;
use crate::units::{BlockHash, BlockNumber, JobId, TokenCount, TxHash};

/// The deepest reorg.
pub const REORG_DEPTH_MAX: u64 = 12;
/// Gas of a first claim (docs/spec/contract.md section 2).
const CLAIM_GAS: u64 = 184_000;
/// What each earlier claim of a job adds.
const CLAIM_GAS_STEP: u64 = 2_400;

/// A call of somebody without the host's key.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    pub sender: Sender,
    pub deed: Deed,
}

/// A transaction of the host's key in a block.
#[derive(Debug, Clone)]
pub(super) struct Mined {
    pub tx: SimTx,
    pub outcome: Result<(), Reverted>,
    /// Wei.
    pub fee: u128,
}

/// What a block holds, in order.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Ours(Mined),
    Guest(Guest, Result<(), Reverted>),
}

#[derive(Debug, Clone)]
pub(super) struct Block {
    pub hash: BlockHash,
    pub time: u64,
    pub contents: Vec<Content>,
    /// The state it leaves behind.
    pub contract: Contract,
    pub nonce: u64,
    pub balance: u128,
}

/// How a branch treats what waits.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Habits {
    /// Chance in percent that a block leaves a transaction out though it could be mined.
    pub skip: u64,
    /// Chance in percent that a claim runs out of gas.
    pub revert: u64,
    /// Chances in percent that a transaction of a lost block is gone, or comes back later; else it
    /// waits in the pool again.
    pub vanish: u64,
    /// See `vanish`.
    pub late: u64,
    /// Whether the pool throws out what cannot pay the base fee.
    pub is_strict: bool,
}

/// The canonical chain, and what waits for it.
#[derive(Debug)]
pub(super) struct Blocks {
    pub rules: SimRules,
    pub chain: Vec<Block>,
    pub pool: Pool,
    pub guests: Vec<Guest>,
    /// Transactions that come back, with the height from which they do.
    pub late: Vec<(u64, SimTx)>,
    pub mined_at: BTreeMap<TxHash, usize>,
    pub base_fee: u128,
    pub habits: Habits,
    /// How many more of the host's claims may fail for no reason of the contract's.
    pub reverts_left: u32,
    pub rng: Rng,
    forks: u64,
    top_ever: usize,
}

impl Blocks {
    pub fn new(rules: SimRules, balance: u128, rng: Rng) -> Self {
        let genesis = Block {
            hash: block_hash(0, 0),
            time: 1_000,
            contents: Vec::new(),
            contract: Contract::default(),
            nonce: 0,
            balance,
        };
        Self {
            rules,
            chain: vec![genesis],
            pool: Pool::default(),
            guests: Vec::new(),
            late: Vec::new(),
            mined_at: BTreeMap::new(),
            base_fee: 10,
            habits: Habits::default(),
            reverts_left: 0,
            rng,
            forks: 0,
            top_ever: 0,
        }
    }

    pub fn height(&self) -> usize {
        self.chain.len().saturating_sub(1)
    }

    /// Reorgs so far.
    pub const fn forks(&self) -> u64 {
        self.forks
    }

    /// The block `back` under the newest; the first where there is none.
    pub fn back(&self, back: u64) -> (usize, &Block) {
        let back = usize::try_from(back).unwrap_or(usize::MAX);
        let at = self.height().saturating_sub(back);
        // The chain begins with a block and never loses it.
        (at, &self.chain[at])
    }

    pub fn newest(&self) -> &Block {
        self.back(0).1
    }

    pub fn market(&self) -> Market {
        let newest = self.newest();
        Market {
            nonce_mined: newest.nonce,
            balance: newest.balance,
            base_fee: self.base_fee,
            is_strict: self.habits.is_strict,
        }
    }

    pub fn offer(&mut self, tx: SimTx) -> Offer {
        let market = self.market();
        self.pool.offer(tx, market)
    }

    /// A block `seconds` later with what waits and fits.
    pub fn mine(&mut self, seconds: u64) {
        self.take_late();
        let parent = self.newest();
        let mut block = Block {
            hash: block_hash(self.chain.len(), self.forks),
            time: parent.time.saturating_add(seconds),
            contents: Vec::new(),
            contract: parent.contract.clone(),
            nonce: parent.nonce,
            balance: parent.balance,
        };
        let guests = std::mem::take(&mut self.guests);
        // Sessions are there before anybody calls them.
        let (opened, others): (Vec<_>, Vec<_>) =
            guests.into_iter().partition(|guest| matches!(guest.deed, Deed::Open(_)));
        let (before, after): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|_| self.rng.chance(50));
        for guest in opened.into_iter().chain(before) {
            self.run_guest(&mut block, guest);
        }
        self.run_ours(&mut block);
        for guest in after {
            self.run_guest(&mut block, guest);
        }
        let height = self.chain.len();
        for content in &block.contents {
            if let Content::Ours(mined) = content {
                self.mined_at.insert(mined.tx.hash, height);
            }
        }
        self.chain.push(block);
        self.top_ever = self.top_ever.max(height);
        let market = self.market();
        self.pool.purge(market);
    }

    fn run_guest(&self, block: &mut Block, guest: Guest) {
        let outcome = block.contract.apply(&guest.deed, guest.sender, block.time, &self.rules);
        block.contents.push(Content::Guest(guest, outcome));
    }

    fn run_ours(&mut self, block: &mut Block) {
        while let Some(tx) = self.pool.get(block.nonce).cloned() {
            let gas = self.gas(&block.contract, &tx.deed);
            let price = tx.fee_max.min(self.base_fee.saturating_add(tx.tip_max));
            let fee = price.saturating_mul(u128::from(gas.min(tx.gas_limit)));
            if tx.fee_max < self.base_fee
                || fee > block.balance
                || self.rng.chance(self.habits.skip)
            {
                return;
            }
            self.pool.drop_nonce(tx.nonce);
            let outcome = if self.fails_by_itself(&tx, gas) {
                Err(Reverted::OutOfGas)
            } else {
                block.contract.apply(&tx.deed, Sender::Host, block.time, &self.rules)
            };
            block.nonce += 1;
            block.balance -= fee;
            block.contents.push(Content::Ours(Mined { tx, outcome, fee }));
        }
    }

    fn fails_by_itself(&mut self, tx: &SimTx, gas: u64) -> bool {
        if gas > tx.gas_limit {
            return true;
        }
        let is_claim = matches!(tx.deed, Deed::Claim { .. });
        let fails = is_claim && self.reverts_left > 0 && self.rng.chance(self.habits.revert);
        self.reverts_left -= u32::from(fails);
        fails
    }

    /// What a call uses.
    pub fn gas(&self, contract: &Contract, deed: &Deed) -> u64 {
        let Deed::Claim { job, .. } = deed else { return 100_000 };
        let used = contract.jobs.get(job).map_or(0, |known| known.tokens_used.get());
        // Not the number of proofs, but one that grows with it and needs no count of its own.
        let proofs = used.checked_div(self.rules.claim_min).unwrap_or(0).min(30);
        CLAIM_GAS.saturating_add(CLAIM_GAS_STEP.saturating_mul(proofs))
    }

    fn take_late(&mut self) {
        let height = u64::try_from(self.height()).unwrap_or(u64::MAX);
        let (due, late): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.late).into_iter().partition(|(from, _)| *from <= height);
        self.late = late;
        for (_, tx) in due {
            // One that came too late is refused, as by any pool.
            self.offer(tx);
        }
    }

    /// Comes into the pool some blocks from now.
    pub fn delay(&mut self, tx: SimTx, blocks: u64) {
        let height = u64::try_from(self.height()).unwrap_or(u64::MAX);
        self.late.push((height.saturating_add(blocks), tx));
    }

    /// Loses the newest blocks, at most `depth`, and puts as many others or one more in their
    /// place. Returns how many were lost.
    pub fn reorg(&mut self, depth: u64) -> u64 {
        let final_height =
            self.top_ever.saturating_sub(usize::try_from(REORG_DEPTH_MAX).unwrap_or(0));
        let deepest = u64::try_from(self.height().saturating_sub(final_height)).unwrap_or(0);
        let depth = depth.min(deepest);
        if depth == 0 {
            return 0;
        }
        self.forks += 1;
        let kept = self.chain.len() - usize::try_from(depth).unwrap_or(0);
        let lost = self.chain.split_off(kept);
        let first_time = self.newest().time;
        let last_time = lost.last().map_or(first_time, |block| block.time);
        for content in lost.into_iter().flat_map(|block| block.contents) {
            self.give_back(content);
        }
        let blocks = depth + self.rng.below(2);
        let mut left = last_time.saturating_sub(first_time) + self.rng.below(8);
        for at in 0..blocks {
            let is_last = at + 1 == blocks;
            let seconds = if is_last { left } else { self.rng.between(0, left) };
            left -= seconds;
            self.mine(seconds.max(self.rules.block_gap));
        }
        depth
    }

    fn give_back(&mut self, content: Content) {
        let (is_gone, is_late) =
            (self.rng.chance(self.habits.vanish), self.rng.chance(self.habits.late));
        match content {
            Content::Ours(mined) => {
                self.mined_at.remove(&mined.tx.hash);
                if is_late {
                    let blocks = self.rng.between(1, 20);
                    self.delay(mined.tx, blocks);
                } else if !is_gone {
                    self.offer(mined.tx);
                }
            }
            // Whoever opened a session wants it, and sends it again.
            Content::Guest(guest, _) if matches!(guest.deed, Deed::Open(_)) || !is_gone => {
                self.guests.push(guest);
            }
            Content::Guest(..) => {}
        }
    }

    /// What the contract logged in a block, as the node's port tells it.
    pub fn events_of(&self, height: usize) -> Vec<ChainEvent> {
        let Some(block) = self.chain.get(height) else { return Vec::new() };
        let count = |job: JobId| {
            block.contract.jobs.get(&job).map_or(TokenCount::ZERO, |known| known.tokens_used)
        };
        let event = |content: &Content| {
            let (deed, tx) = match content {
                Content::Ours(Mined { tx, outcome: Ok(()), .. }) => (&tx.deed, Some(tx.hash)),
                Content::Guest(guest, Ok(())) => (&guest.deed, None),
                Content::Ours(_) | Content::Guest(..) => return None,
            };
            match (deed, tx) {
                (Deed::Open(job), _) => Some(ChainEvent::Created(job.id)),
                (Deed::Claim { job, tokens, .. }, Some(tx)) => {
                    Some(ChainEvent::Proven { job: *job, tokens: TokenCount::new(*tokens), tx })
                }
                (Deed::Complete(job), _) => {
                    Some(ChainEvent::Completed { job: *job, tokens: count(*job) })
                }
                (Deed::Timeout(job), _) => Some(ChainEvent::TimedOut(*job)),
                (Deed::Claim { .. } | Deed::Burn(_) | Deed::Nothing, _) => None,
            }
        };
        block.contents.iter().filter_map(event).collect()
    }
}

impl Block {
    /// What happened in it, in one line.
    pub fn words(&self) -> String {
        let words = self.contents.iter().map(|content| match content {
            Content::Ours(Mined { tx, outcome, .. }) => {
                let whose = if tx.is_foreign { "foreign" } else { "ours" };
                format!("{whose} {} {}: {outcome:?}", tx.nonce, deed_words(&tx.deed))
            }
            Content::Guest(guest, outcome) => {
                format!("{:?} {}: {outcome:?}", guest.sender, deed_words(&guest.deed))
            }
        });
        let words: Vec<_> = words.collect();
        format!("block at {}: {}", self.time, words.join(", "))
    }
}

fn deed_words(deed: &Deed) -> String {
    match deed {
        Deed::Open(job) => format!("opens {}", job.id),
        Deed::Claim { job, tokens, .. } => format!("claims {tokens} for {job}"),
        Deed::Complete(job) => format!("completes {job}"),
        Deed::Timeout(job) => format!("times {job} out"),
        Deed::Burn(_) => "burns a word".to_owned(),
        Deed::Nothing => "does nothing".to_owned(),
    }
}

/// A hash that differs by height and by branch.
fn block_hash(height: usize, forks: u64) -> BlockHash {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::try_from(height).unwrap_or(u64::MAX).to_be_bytes());
    bytes[8..16].copy_from_slice(&forks.to_be_bytes());
    BlockHash::new(bytes)
}

/// A height as the port has it.
pub(super) fn number(height: usize) -> BlockNumber {
    BlockNumber::new(u64::try_from(height).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PriceUnit;

    fn blocks() -> Blocks {
        let rules = SimRules {
            claim_min: 100,
            price_unit: PriceUnit::ONE,
            dispute_window: 30,
            words_are_single_use: true,
            block_gap: 1,
        };
        Blocks::new(rules, 1_000_000_000, Rng::new(1))
    }

    fn tx(nonce: u64, name: u8, (fee_max, tip_max): (u128, u128)) -> SimTx {
        let hash = TxHash::new([name; 32]);
        let deed = Deed::Nothing;
        SimTx { hash, nonce, fee_max, tip_max, gas_limit: 100_000, deed, is_foreign: false }
    }

    #[test]
    fn a_nonce_is_mined_once_and_never_before_the_one_under_it() {
        let mut blocks = blocks();
        assert_eq!(blocks.offer(tx(1, 1, (20, 2))), Offer::Taken);
        blocks.mine(1);
        assert_eq!(blocks.newest().nonce, 0, "the chain waits for nonce 0");
        assert_eq!(blocks.offer(tx(0, 2, (20, 2))), Offer::Taken);
        blocks.mine(1);
        assert_eq!(blocks.newest().nonce, 2);
        assert_eq!(blocks.offer(tx(0, 3, (90, 9))), Offer::NonceUsed);
    }

    #[test]
    fn a_replacement_raises_both_fees_by_a_tenth() {
        let mut blocks = blocks();
        blocks.offer(tx(0, 1, (100, 10)));
        assert_eq!(blocks.offer(tx(0, 1, (100, 10))), Offer::Known);
        for fees in [(109, 11), (110, 10)] {
            assert_eq!(blocks.offer(tx(0, 2, fees)), Offer::Underpriced, "{fees:?}");
        }
        assert_eq!(blocks.offer(tx(0, 2, (110, 11))), Offer::Taken);
    }

    #[test]
    fn no_row_of_reorgs_reaches_a_final_block() {
        let mut blocks = blocks();
        for _ in 0..40 {
            blocks.mine(10);
        }
        let final_hash = blocks.back(REORG_DEPTH_MAX).1.hash;
        let next_hash = blocks.back(REORG_DEPTH_MAX - 1).1.hash;
        let mut lost_at_all = 0;
        for _ in 0..20 {
            lost_at_all += blocks.reorg(50);
        }
        assert!(lost_at_all >= 20 * (REORG_DEPTH_MAX - 1), "{lost_at_all}");
        let hashes: Vec<_> = blocks.chain.iter().map(|block| block.hash).collect();
        assert!(hashes.contains(&final_hash) && !hashes.contains(&next_hash));
    }

    #[test]
    fn what_a_reorg_takes_back_is_undone() {
        let mut blocks = blocks();
        blocks.mine(1);
        blocks.habits.vanish = 100;
        blocks.offer(tx(0, 1, (20, 2)));
        blocks.mine(1);
        assert_eq!((blocks.newest().nonce, blocks.mined_at.len()), (1, 1));
        blocks.reorg(1);
        assert_eq!((blocks.newest().nonce, blocks.mined_at.len()), (0, 0));
        assert_eq!(blocks.newest().balance, 1_000_000_000);
    }
}
