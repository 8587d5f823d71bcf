//! A chain in memory that mines, forgets and reorganises on command, and enforces the money rules
//! of docs/spec/contract.md section 2. For random traffic, where a real one would be too slow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tally::chain::fixed::{DEPOSITOR, FixedChain, HOST};
use tally::chain::{
    Broadcast, Call, Chain, ChainError, ChainEvent, ChainJob, DryRun, Fees, Head, Inclusion,
    JobStatus, Limits, PrepareError, SignedTx, TxSpec, WalletState,
};
use tally::proof::keccak256;
use tally::units::{
    Address, Amount, BlockHash, BlockNumber, ChainSeconds, ChainTime, Gas, JobId, PricePerToken,
    TokenCount, TxHash, WalletNonce,
};

/// Tokens a second that a claim may carry.
const RATE: u64 = 20;

#[derive(Clone)]
struct Tx {
    nonce: u64,
    hash: TxHash,
    call: Call,
}

/// What a reorg takes back.
#[derive(Clone)]
struct Ledger {
    jobs: BTreeMap<JobId, ChainJob>,
    words: BTreeSet<Vec<u8>>,
    nonce: u64,
    mined: BTreeMap<[u8; 32], Inclusion>,
    claims: BTreeMap<JobId, Vec<u64>>,
}

struct State {
    now: Ledger,
    before: Ledger,
    head: u64,
    forks: u64,
    time: u64,
    pool: Vec<Tx>,
    signed: BTreeMap<[u8; 32], Tx>,
    is_down: bool,
    loses: bool,
}

/// The chain.
pub struct SimChain {
    state: Mutex<State>,
}

impl SimChain {
    pub fn new(jobs: &[(JobId, u64)]) -> Arc<Self> {
        let opened = jobs.iter().map(|(job, tokens)| (*job, opened(*job, *tokens))).collect();
        let now = Ledger {
            jobs: opened,
            words: BTreeSet::new(),
            nonce: 0,
            mined: BTreeMap::new(),
            claims: BTreeMap::new(),
        };
        let state = State {
            before: now.clone(),
            now,
            head: 1,
            forks: 0,
            time: 1_060,
            pool: Vec::new(),
            signed: BTreeMap::new(),
            is_down: false,
            loses: false,
        };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// A block `seconds` later, with everything of the pool that fits.
    pub fn mine(&self, seconds: u64) {
        let mut state = self.lock();
        state.begin_block(seconds);
        let mut pool = std::mem::take(&mut state.pool);
        pool.sort_by_key(|tx| tx.nonce);
        for tx in pool {
            if tx.nonce == state.now.nonce {
                state.execute(&tx);
            } else if tx.nonce > state.now.nonce {
                state.pool.push(tx);
            }
        }
    }

    /// The newest block is replaced by an empty one; what was in it is in no pool.
    pub fn reorg(&self) {
        let mut state = self.lock();
        state.forks += 1;
        state.now = state.before.clone();
    }

    /// Somebody else uses the wallet's next nonce. A reorg does not undo it: their node sends it
    /// again, as ours does.
    pub fn foreign(&self) {
        let mut state = self.lock();
        state.begin_block(1);
        let nonce = state.now.nonce;
        state.pool.retain(|tx| tx.nonce != nonce);
        state.now.nonce += 1;
        state.before = state.now.clone();
    }

    pub fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
    }

    /// Whether broadcasts vanish.
    pub fn set_loses(&self, loses: bool) {
        self.lock().loses = loses;
    }

    /// Claims that count now.
    pub fn claims(&self, job: JobId) -> Vec<u64> {
        self.lock().now.claims.get(&job).cloned().unwrap_or_default()
    }

    pub fn is_active(&self, job: JobId) -> bool {
        self.lock().now.jobs[&job].status == JobStatus::Active
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn reached(&self) -> Result<MutexGuard<'_, State>, ChainError> {
        let state = self.lock();
        let down = || ChainError::Unreachable("down".into());
        (!state.is_down).then_some(state).ok_or_else(down)
    }
}

fn opened(job: JobId, tokens: u64) -> ChainJob {
    ChainJob {
        id: job,
        depositor: DEPOSITOR,
        host: HOST,
        payment_token: Address::ZERO,
        deposit: Amount::new(tokens.into()),
        price: PricePerToken::new(1),
        tokens_used: TokenCount::ZERO,
        duration_max: ChainSeconds::new(86_400),
        start_time: ChainTime::new(1_000),
        last_proof_time: ChainTime::new(1_000),
        silence_max: ChainSeconds::new(86_400),
        rate_per_second: RATE,
        model: None,
        status: JobStatus::Active,
    }
}

impl State {
    fn begin_block(&mut self, seconds: u64) {
        self.before = self.now.clone();
        self.head += 1;
        self.time += seconds;
    }

    fn block_hash(&self) -> BlockHash {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.head.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.forks.to_be_bytes());
        BlockHash::new(bytes)
    }

    /// Why a call would revert at `time`.
    fn refusal(&self, call: &Call, time: u64) -> Option<&'static str> {
        let (job, claim) = match call {
            Call::Claim { job, tokens, proof } => (job, Some((tokens.get(), proof))),
            Call::Complete { job } => (job, None),
            Call::Nothing | Call::Raw { .. } => return None,
        };
        let known = &self.now.jobs[job];
        if known.status != JobStatus::Active {
            return Some("Session not active");
        }
        let Some((tokens, proof)) = claim else {
            let opens = known.start_time.get() + 30;
            return (time < opens).then_some("Must wait dispute window");
        };
        let used = known.tokens_used.get();
        let allowed = RATE * (time - known.last_proof_time.get());
        if tokens < 100 {
            Some("Must claim minimum tokens")
        } else if tokens > allowed {
            Some("Excessive tokens claimed")
        } else if u128::from(used + tokens) > known.deposit.get() {
            Some("Exceeds deposit")
        } else if self.now.words.contains(&proof[..32]) {
            Some("Invalid proof")
        } else {
            None
        }
    }

    fn execute(&mut self, tx: &Tx) {
        let success = self.refusal(&tx.call, self.time).is_none();
        self.now.nonce += 1;
        let mut proven = None;
        match &tx.call {
            Call::Claim { job, tokens, proof } if success => {
                proven = Some(*tokens);
                self.now.words.insert(proof[..32].to_vec());
                self.now.claims.entry(*job).or_default().push(tokens.get());
                let known = self.now.jobs.get_mut(job).unwrap();
                known.tokens_used = known.tokens_used.checked_add(*tokens).unwrap();
                known.last_proof_time = ChainTime::new(self.time);
            }
            Call::Complete { job } if success => {
                self.now.jobs.get_mut(job).unwrap().status = JobStatus::Completed;
            }
            Call::Claim { .. } | Call::Complete { .. } | Call::Nothing | Call::Raw { .. } => {}
        }
        let included = Inclusion::Included {
            block: BlockNumber::new(self.head),
            block_hash: self.block_hash(),
            success,
            proven,
            fee: Amount::new(1),
        };
        self.now.mined.insert(*tx.hash.bytes(), included);
    }
}

#[async_trait]
impl Chain for SimChain {
    fn chain_id(&self) -> u64 {
        31_337
    }

    fn marketplace(&self) -> Address {
        Address::new([0xcc; 20])
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.reached().map(|state| Head {
            number: BlockNumber::new(state.head),
            hash: state.block_hash(),
            time: ChainTime::new(state.time),
        })
    }

    async fn limits(&self) -> Result<Limits, ChainError> {
        Ok(FixedChain::fixed_limits())
    }

    async fn job(&self, job: JobId) -> Result<Option<ChainJob>, ChainError> {
        self.reached().map(|state| state.now.jobs.get(&job).cloned())
    }

    async fn events(
        &self,
        _from: BlockNumber,
        _to: BlockNumber,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        self.reached().map(|_| Vec::new())
    }

    async fn wallet(&self) -> Result<WalletState, ChainError> {
        self.reached().map(|state| WalletState {
            nonce_mined: WalletNonce::new(state.now.nonce),
            nonce_pending: WalletNonce::new(state.now.nonce),
            balance: Amount::new(1),
        })
    }

    async fn fees(&self) -> Result<Fees, ChainError> {
        self.reached().map(|_| Fees { fee_max: Amount::new(100), tip_max: Amount::new(10) })
    }

    async fn dry_run(&self, call: &Call) -> Result<DryRun, ChainError> {
        let state = self.reached()?;
        // The pending block comes at least a second later.
        Ok(match state.refusal(call, state.time + 1) {
            Some(words) => DryRun::Reverts(words.into()),
            None => DryRun::Succeeds(Gas::new(200_000)),
        })
    }

    fn prepare(&self, call: &Call, spec: TxSpec) -> Result<SignedTx, PrepareError> {
        let raw = format!("{call:?} {spec:?}").into_bytes();
        let hash = TxHash::new(*keccak256(&raw).bytes());
        let tx = Tx { nonce: spec.nonce.get(), hash, call: call.clone() };
        self.lock().signed.insert(*hash.bytes(), tx);
        Ok(SignedTx { hash, raw })
    }

    async fn broadcast(&self, tx: &SignedTx) -> Broadcast {
        let Ok(mut state) = self.reached() else { return Broadcast::Unknown("down".into()) };
        if state.loses {
            return Broadcast::Unknown("lost".into());
        }
        let ours = state.signed[tx.hash.bytes()].clone();
        if ours.nonce < state.now.nonce {
            return Broadcast::NonceUsed;
        }
        if state.pool.iter().any(|known| known.hash == tx.hash) {
            return Broadcast::AlreadyKnown;
        }
        state.pool.retain(|known| known.nonce != ours.nonce);
        state.pool.push(ours);
        Broadcast::Accepted
    }

    async fn inclusion(&self, tx: TxHash) -> Result<Inclusion, ChainError> {
        let state = self.reached()?;
        if let Some(mined) = state.now.mined.get(tx.bytes()) {
            return Ok(mined.clone());
        }
        let is_pending = state.pool.iter().any(|known| known.hash == tx);
        Ok(if is_pending { Inclusion::Pending } else { Inclusion::Absent })
    }

    async fn earnings(&self, _token: Address) -> Result<Amount, ChainError> {
        Ok(Amount::ZERO)
    }

    fn withdrawal(&self, token: Address, amount: Amount) -> Call {
        Call::Raw { to: token, value: amount, input: b"withdraw".to_vec() }
    }

    fn transfer(&self, token: Address, to: Address, amount: Amount) -> Call {
        Call::Raw { to, value: amount, input: token.bytes().to_vec() }
    }

    async fn funds(&self, _token: Address) -> Result<Amount, ChainError> {
        Ok(Amount::new(u128::MAX))
    }
}
