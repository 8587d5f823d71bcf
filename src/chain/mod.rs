//! The port to the blockchain, and its types.
//!
//! Never decides what to claim and never retries by itself: it answers, signs and sends what
//! settlement tells it. Callers rely on the errors' classes: *unknown* is never *failed*.

pub mod evm;
#[cfg(feature = "test-support")]
pub mod fixed;
pub mod registry;
#[cfg(feature = "test-support")]
pub mod sim;

use async_trait::async_trait;

use crate::units::{
    Address, Amount, BlockHash, BlockNumber, ChainSeconds, ChainTime, Gas, Hash32, JobId,
    PricePerToken, PriceUnit, Signature, TokenCount, TxHash, WalletNonce,
};

/// The newest block an endpoint knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Its height.
    pub number: BlockNumber,
    /// Its hash.
    pub hash: BlockHash,
    /// Its timestamp: the chain's clock.
    pub time: ChainTime,
}

/// What the contract itself says about its rules. Read, never assumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// `MIN_PROVEN_TOKENS`: the smallest claim.
    pub claim_min: TokenCount,
    /// Price unit of every session.
    pub price_unit: PriceUnit,
    /// Time after a session's start from which anyone may complete it.
    pub dispute_window: ChainSeconds,
    /// Share of a payment that goes to the treasury, in 1/10000.
    pub fee_basis_points: u64,
}

/// `status` of a session on chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JobStatus {
    /// It can be worked for.
    Active,
    /// Settled by completion.
    Completed,
    /// Settled by timeout.
    TimedOut,
    /// Disputed, abandoned or cancelled: nothing can be claimed. Holds the contract's number.
    Ended(u8),
}

/// A session as the contract holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainJob {
    /// Its number.
    pub id: JobId,
    /// Who locked the deposit.
    pub depositor: Address,
    /// Who may claim.
    pub host: Address,
    /// The ERC-20 it is paid in; [`Address::ZERO`] for the native currency.
    pub payment_token: Address,
    /// The locked amount.
    pub deposit: Amount,
    /// The agreed price.
    pub price: PricePerToken,
    /// Tokens proven so far.
    pub tokens_used: TokenCount,
    /// After start plus this, anyone may trigger the timeout.
    pub duration_max: ChainSeconds,
    /// When it began.
    pub start_time: ChainTime,
    /// When it was last proven; the start before the first proof.
    pub last_proof_time: ChainTime,
    /// Silence after which anyone may trigger the timeout (v3: 3 × proofInterval seconds).
    pub silence_max: ChainSeconds,
    /// Tokens per second since the last proof that one claim may carry; by model since v7, where 0
    /// means that nothing can be claimed until the registry's owner sets a rate.
    pub rate_per_second: u64,
    /// The model it was opened for (`keccak256(repo/file)`); `None` where sessions name none.
    pub model: Option<Hash32>,
    /// Where it stands.
    pub status: JobStatus,
}

/// What happened on chain to a job of ours. The contract's events of an ending name no host, so
/// [`ChainEvent::Completed`] and [`ChainEvent::TimedOut`] may also tell of another host's job: a
/// reader ignores a number it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChainEvent {
    /// A session was opened with us as host.
    Created(JobId),
    /// A claim of ours was accepted.
    Proven {
        /// For this job.
        job: JobId,
        /// The amount the contract added.
        tokens: TokenCount,
        /// In this transaction.
        tx: TxHash,
    },
    /// The session was completed, with its final count.
    Completed {
        /// This job.
        job: JobId,
        /// Tokens paid for.
        tokens: TokenCount,
    },
    /// The session was ended by timeout.
    TimedOut(JobId),
}

/// A call the node sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// `submitProofOfWork`.
    Claim {
        /// The job.
        job: JobId,
        /// The delta, never the running total.
        tokens: TokenCount,
        /// The proof bytes (docs/spec/proof.md), under 256.
        proof: Vec<u8>,
    },
    /// `completeSessionJob`.
    Complete {
        /// The job.
        job: JobId,
    },
    /// An empty transfer to ourselves: takes a nonce out of the way.
    Nothing,
    /// A call made elsewhere: an errand of the wallet.
    Raw {
        /// Receiver.
        to: Address,
        /// Native currency sent along, wei.
        value: Amount,
        /// Call data.
        input: Vec<u8>,
    },
}

/// EIP-1559 fees, in wei per gas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fees {
    /// `maxFeePerGas`.
    pub fee_max: Amount,
    /// `maxPriorityFeePerGas`.
    pub tip_max: Amount,
}

/// What signing needs besides the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxSpec {
    /// The wallet's transaction number.
    pub nonce: WalletNonce,
    /// What it may cost per gas.
    pub fees: Fees,
    /// Gas it may use.
    pub gas_limit: Gas,
}

/// A signed transaction: re-sending these very bytes can never count twice.
#[derive(Clone, PartialEq, Eq)]
pub struct SignedTx {
    /// Its hash.
    pub hash: TxHash,
    /// Its bytes (EIP-2718).
    pub raw: Vec<u8>,
}

/// The answer to a broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broadcast {
    /// The endpoint took it.
    Accepted,
    /// The endpoint had it already: as good as accepted.
    AlreadyKnown,
    /// The nonce is behind the chain: this transaction, an earlier attempt or a foreign one is
    /// mined. Look for inclusion before anything else.
    NonceUsed,
    /// The fee is too low to enter or to replace.
    Underpriced,
    /// The endpoint refused it for good, in these words.
    Rejected(String),
    /// No answer, or one that says nothing. It may or may not be on its way: send the same bytes
    /// again, never others under a new nonce.
    Unknown(String),
}

/// Where a transaction stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Inclusion {
    /// No endpoint knows it.
    Absent,
    /// In the pool.
    Pending,
    /// In a block.
    Included {
        /// The block's height.
        block: BlockNumber,
        /// The block's hash, to notice a reorg.
        block_hash: BlockHash,
        /// Whether it succeeded; a reverted claim earned nothing.
        success: bool,
        /// `tokensClaimed` of its `ProofSubmitted` event, where it has one.
        proven: Option<TokenCount>,
        /// What it cost: gas used × effective price.
        fee: Amount,
    },
}

/// Outcome of a dry run on the pending block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DryRun {
    /// It would succeed and use this much gas.
    Succeeds(Gas),
    /// It would revert, in these words (for the log: decide on state, not on words).
    Reverts(String),
}

/// The wallet's standing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WalletState {
    /// Transactions mined: the next free number by the newest block.
    pub nonce_mined: WalletNonce,
    /// The next free number, counting the endpoint's pool.
    pub nonce_pending: WalletNonce,
    /// Native balance that pays for gas.
    pub balance: Amount,
}

/// The chain did not answer as hoped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// No answer: try again later.
    #[error("chain endpoint did not answer: {0}")]
    Unreachable(String),
    /// An answer that makes no sense for this contract: a human must look.
    #[error("chain endpoint answered nonsense: {0}")]
    Unexpected(String),
}

/// Signing failed: a key or encoding fault of our own, nothing left the node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot sign: {0}")]
pub struct PrepareError(pub String);

/// Reads the marketplace and sends our transactions.
#[async_trait]
pub trait Chain: Send + Sync {
    /// `eip155` chain id.
    fn chain_id(&self) -> u64;

    /// The marketplace's address.
    fn marketplace(&self) -> Address;

    /// The newest block.
    async fn head(&self) -> Result<Head, ChainError>;

    /// The contract's own limits; constant for a deployment except the fee.
    async fn limits(&self) -> Result<Limits, ChainError>;

    /// The session, or `None` where the contract knows none by this number.
    async fn job(&self, job: JobId) -> Result<Option<ChainJob>, ChainError>;

    /// Events of our jobs in blocks `from ..= to`, oldest first. `to` must not pass the head.
    async fn events(
        &self,
        from: BlockNumber,
        to: BlockNumber,
    ) -> Result<Vec<ChainEvent>, ChainError>;

    /// The wallet's nonces and balance.
    async fn wallet(&self) -> Result<WalletState, ChainError>;

    /// Current fees with room for a few blocks of rising base fee.
    async fn fees(&self) -> Result<Fees, ChainError>;

    /// Dry run on the pending block: on an idle chain "latest" has yesterday's clock.
    async fn dry_run(&self, call: &Call) -> Result<DryRun, ChainError>;

    /// Signs; no network.
    ///
    /// # Errors
    /// [`PrepareError`]: nothing left the node.
    fn prepare(&self, call: &Call, spec: TxSpec) -> Result<SignedTx, PrepareError>;

    /// Sends signed bytes. Safe to repeat.
    async fn broadcast(&self, tx: &SignedTx) -> Broadcast;

    /// Where a transaction stands.
    async fn inclusion(&self, tx: TxHash) -> Result<Inclusion, ChainError>;

    /// What the host has earned and not withdrawn, in `token` (zero: native).
    async fn earnings(&self, token: Address) -> Result<Amount, ChainError>;

    /// The call that moves `amount` of `token` (zero: native) from the earnings to the wallet.
    fn withdrawal(&self, token: Address, amount: Amount) -> Call;

    /// The call that sends `amount` of `token` (zero: native) from the wallet to `to`.
    fn transfer(&self, token: Address, to: Address, amount: Amount) -> Call;

    /// What the marketplace itself holds of `token` (zero: native): the deposits that settlements
    /// are paid from.
    async fn funds(&self, token: Address) -> Result<Amount, ChainError>;
}

/// The host's key: signs, and tells who signed.
pub trait Wallet: Send + Sync {
    /// The host's address.
    fn address(&self) -> Address;

    /// Signature over a ready digest (EIP-712 voucher digests, auth challenges).
    ///
    /// # Errors
    /// [`PrepareError`] when the key refuses.
    fn sign_digest(&self, digest: Hash32) -> Result<Signature, PrepareError>;

    /// The signer of an EIP-191 personal message; `None` for a malformed signature.
    fn recover_message(&self, message: &[u8], signature: &Signature) -> Option<Address>;
}
