//! A chain that holds what a test put there, and a wallet without a key. Tests only.
//!
//! Never moves by itself: head, time and jobs change when the test changes them, and nothing
//! that is sent is ever mined.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::{
    Broadcast, Call, Chain, ChainError, ChainEvent, ChainJob, DryRun, Fees, Head, Inclusion,
    JobStatus, Limits, PrepareError, SignedTx, TxSpec, Wallet, WalletState,
};
use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainSeconds, ChainTime, Gas, Hash32, JobId,
    PricePerToken, PriceUnit, Signature, TokenCount, TxHash, WalletNonce,
};

/// The host of jobs made by [`FixedChain::open`].
pub const HOST: Address = Address::new([0xaa; 20]);
/// Their depositor.
pub const DEPOSITOR: Address = Address::new([0xdd; 20]);

struct State {
    head: Head,
    jobs: BTreeMap<JobId, ChainJob>,
    is_reachable: bool,
}

/// The chain.
pub struct FixedChain {
    id: u64,
    state: Mutex<State>,
}

impl FixedChain {
    /// An empty chain.
    #[must_use]
    pub fn new(id: u64) -> Arc<Self> {
        let head = Head {
            number: BlockNumber::new(1),
            hash: BlockHash::new([1; 32]),
            time: ChainTime::new(1_000),
        };
        let state = State { head, jobs: BTreeMap::new(), is_reachable: true };
        Arc::new(Self { id, state: Mutex::new(state) })
    }

    /// An active job of ours that buys `tokens` at price 1, under this number.
    pub fn open(&self, job: JobId, tokens: u64) {
        let start_time = self.lock().head.time;
        self.put(ChainJob {
            id: job,
            depositor: DEPOSITOR,
            host: HOST,
            payment_token: Address::ZERO,
            deposit: Amount::new(tokens.into()),
            price: PricePerToken::new(1),
            tokens_used: TokenCount::ZERO,
            duration_max: ChainSeconds::new(86_400),
            start_time,
            last_proof_time: start_time,
            silence_max: ChainSeconds::new(3_600),
            rate_per_second: 2_000,
            model: None,
            status: JobStatus::Active,
        });
    }

    /// Sets a job as it stands.
    pub fn put(&self, job: ChainJob) {
        self.lock().jobs.insert(job.id, job);
    }

    /// Changes a job that is there.
    pub fn change(&self, job: JobId, change: impl FnOnce(&mut ChainJob)) {
        if let Some(job) = self.lock().jobs.get_mut(&job) {
            change(job);
        }
    }

    /// Sets the newest block.
    pub fn set_head(&self, head: Head) {
        self.lock().head = head;
    }

    /// Whether it answers.
    pub fn set_reachable(&self, is_reachable: bool) {
        self.lock().is_reachable = is_reachable;
    }

    /// Its limits: claims from 100 tokens, 2000 a second, price unit 1.
    #[must_use]
    pub const fn fixed_limits() -> Limits {
        Limits {
            claim_min: TokenCount::new(100),
            price_unit: PriceUnit::ONE,
            dispute_window: ChainSeconds::new(30),
            fee_basis_points: 1_000,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reached(&self) -> Result<std::sync::MutexGuard<'_, State>, ChainError> {
        let state = self.lock();
        let unreachable = || ChainError::Unreachable("switched off by the test".to_owned());
        state.is_reachable.then_some(state).ok_or_else(unreachable)
    }
}

#[async_trait]
impl Chain for FixedChain {
    fn chain_id(&self) -> u64 {
        self.id
    }

    fn marketplace(&self) -> Address {
        Address::new([0xcc; 20])
    }

    async fn head(&self) -> Result<Head, ChainError> {
        self.reached().map(|state| state.head)
    }

    async fn limits(&self) -> Result<Limits, ChainError> {
        self.reached().map(|_| Self::fixed_limits())
    }

    async fn job(&self, job: JobId) -> Result<Option<ChainJob>, ChainError> {
        self.reached().map(|state| state.jobs.get(&job).cloned())
    }

    async fn events(
        &self,
        _from: BlockNumber,
        _to: BlockNumber,
    ) -> Result<Vec<ChainEvent>, ChainError> {
        self.reached().map(|_| Vec::new())
    }

    async fn wallet(&self) -> Result<WalletState, ChainError> {
        self.reached().map(|_| WalletState {
            nonce_mined: WalletNonce::new(0),
            nonce_pending: WalletNonce::new(0),
            balance: Amount::new(1),
        })
    }

    async fn fees(&self) -> Result<Fees, ChainError> {
        self.reached().map(|_| Fees { fee_max: Amount::new(1), tip_max: Amount::new(1) })
    }

    async fn dry_run(&self, _call: &Call) -> Result<DryRun, ChainError> {
        self.reached().map(|_| DryRun::Succeeds(Gas::new(1)))
    }

    fn prepare(&self, _call: &Call, _spec: TxSpec) -> Result<SignedTx, PrepareError> {
        Err(PrepareError("a fixed chain takes no transactions".to_owned()))
    }

    async fn broadcast(&self, _tx: &SignedTx) -> Broadcast {
        Broadcast::Rejected("a fixed chain takes no transactions".to_owned())
    }

    async fn inclusion(&self, _tx: TxHash) -> Result<Inclusion, ChainError> {
        self.reached().map(|_| Inclusion::Absent)
    }

    async fn earnings(&self, _token: Address) -> Result<Amount, ChainError> {
        self.reached().map(|_| Amount::ZERO)
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

/// A wallet whose signatures say who signed: the address stands in the first 20 bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct FixedWallet;

impl FixedWallet {
    /// What `signer` would sign with, whatever the message.
    #[must_use]
    pub fn signature_of(signer: Address) -> Signature {
        let mut bytes = [0; 65];
        bytes[..20].copy_from_slice(signer.bytes());
        Signature::new(bytes)
    }
}

impl Wallet for FixedWallet {
    fn address(&self) -> Address {
        HOST
    }

    fn sign_digest(&self, _digest: Hash32) -> Result<Signature, PrepareError> {
        Ok(Self::signature_of(HOST))
    }

    fn recover_message(&self, _message: &[u8], signature: &Signature) -> Option<Address> {
        let mut bytes = [0; 20];
        bytes.copy_from_slice(signature.bytes().get(..20)?);
        Some(Address::new(bytes))
    }
}
