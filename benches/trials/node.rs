//! A node of its own for some jobs: the engine behind the session service, with the ledger and the
//! claims that settlement would make of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tally::billing::{Attempt, ClaimBody, Entry, Fact, Purpose};
use tally::chain::evm::EvmWallet;
use tally::chain::fixed::FixedChain;
use tally::chain::{Chain, Wallet};
use tally::clock::SystemClock;
use tally::engine::Engine;
use tally::engine::local::{LocalEngine, LocalModel, ModelHashes};
use tally::ledger::Ledger;
use tally::ledger::memory::MemoryLedger;
use tally::node::file_hash::{sha256_model, sha256_tokenizer};
use tally::node::models::load_alone;
use tally::node::wiring;
use tally::proof::{
    self, Blob, FLAG_CANONICAL, FLAG_NONCE_DERIVED, ProofBytes, Transcript, Voucher, VoucherDomain,
};
use tally::session::{
    Beyond, BooksParts, ExposureRule, LegacyAccess, PaidBy, PromptRequest, Refusal, Reply,
    ReplyEvent, SessionRules, Sessions,
};
use tally::units::{
    Amount, ClaimSeq, JobId, Millis, Signature, TokenCount, TurnNo, TxHash, WalletNonce,
};
use tally_engine::{EngineOptions, ModelFiles};

use crate::requests::Reader;

pub const CHAIN_ID: u64 = 31_337;

/// A running node.
pub struct Node {
    pub sessions: Arc<Sessions>,
    pub ledger: Arc<MemoryLedger>,
    engine: Arc<LocalEngine>,
    chain: Arc<FixedChain>,
    wallet: Arc<EvmWallet>,
    nonce: Arc<AtomicU64>,
    /// Held while a claim is made of what the ledger holds.
    claiming: Arc<Mutex<()>>,
    /// The model's name in the catalog.
    pub model: String,
}

/// What a client was told of a turn.
pub struct Heard {
    pub turn: TurnNo,
    pub text: String,
}

/// The key of all hosts here.
pub fn host() -> Arc<EvmWallet> {
    let key = format!("{}1", "0".repeat(63)).into();
    Arc::new(EvmWallet::from_key(&key).unwrap())
}

impl Node {
    /// A node with an empty ledger. `deposits`: what each job buys, in tokens.
    pub async fn start(path: &Path, options: EngineOptions, deposits: &[(JobId, u64)]) -> Self {
        let (chain, wallet) = (FixedChain::new(CHAIN_ID), host());
        for (job, tokens) in deposits {
            chain.open(*job, *tokens);
            chain.change(*job, |job| job.host = wallet.address());
        }
        let ledger = Arc::new(MemoryLedger::new());
        let nonce = Arc::new(AtomicU64::new(0));
        Self::boot(path, options, (ledger, chain, wallet, nonce)).await
    }

    /// The same node after a restart with other engine options.
    pub async fn restart(self, path: &Path, options: EngineOptions) -> Self {
        self.engine.shutdown();
        let ledger = Arc::new(self.ledger.crash());
        let (chain, wallet) = (self.chain.clone(), self.wallet.clone());
        Self::boot(path, options, (ledger, chain, wallet, self.nonce.clone())).await
    }

    async fn boot(
        path: &Path,
        options: EngineOptions,
        (ledger, chain, wallet, nonce): (
            Arc<MemoryLedger>,
            Arc<FixedChain>,
            Arc<EvmWallet>,
            Arc<AtomicU64>,
        ),
    ) -> Self {
        let path = path.to_owned();
        let loaded = tokio::task::spawn_blocking(move || load(&path, &options)).await.unwrap();
        let model = loaded.name.clone();
        let engine = Arc::new(LocalEngine::new(vec![loaded]));
        let clock = SystemClock::shared();
        let tracker = wiring::restore(&*ledger, &*clock).await.unwrap();
        let parts = BooksParts { ledger: ledger.clone(), tracker, clock: clock.clone() };
        let limits = FixedChain::fixed_limits();
        let paid = PaidBy::new(chain.clone(), wallet.clone(), limits, parts).unwrap();
        let sessions = Sessions::new(engine.clone(), Some(paid), rules(), clock);
        let (sessions, claiming) = (Arc::new(sessions), Arc::default());
        Self { sessions, ledger, engine, chain, wallet, nonce, claiming, model }
    }

    /// Where its claims count.
    pub fn domain(&self) -> VoucherDomain {
        VoucherDomain { chain_id: CHAIN_ID, marketplace: self.chain.marketplace() }
    }

    /// Starts a turn; its number is that of the job's newest header.
    pub async fn begin(&self, request: PromptRequest) -> Result<(TurnNo, Reply), Refusal> {
        let job = request.job.unwrap();
        let reply = self.sessions.begin(request).await?;
        let mut headers = self.entries(job).into_iter().filter_map(|entry| match entry.fact {
            Fact::TurnStarted(header) => Some(header.turn),
            _ => None,
        });
        Ok((headers.next_back().unwrap(), reply))
    }

    /// Reads an answer as `reader` does; every `claim_each`-th frame a claim is made meanwhile.
    pub async fn listen(
        &self,
        (job, turn): (JobId, TurnNo),
        mut reply: Reply,
        (reader, claim_each): (Reader, usize),
    ) -> Heard {
        if reader == Reader::Whole {
            let (frame, end) = reply.whole().await;
            let text = format!("{}{}", frame.text, end.tail_text);
            frame.delivered();
            return Heard { turn, text };
        }
        let (mut text, mut tokens, mut frames) = (String::new(), 0, 0);
        loop {
            if reader == Reader::Leaves(tokens) {
                return Heard { turn, text };
            }
            if matches!(reader, Reader::Stops(after) if tokens >= after) {
                self.engine.shutdown();
            }
            match reply.next().await {
                ReplyEvent::Frame(frame) => {
                    frames += 1;
                    tokens += frame.token_count();
                    if matches!(reader, Reader::Leaves(after) if tokens > after) {
                        // It was gone before this frame was written.
                        return Heard { turn, text };
                    }
                    text += &frame.text;
                    frame.delivered();
                    if frames % claim_each == 0 {
                        self.claim(job);
                    }
                }
                ReplyEvent::End(end) => {
                    text += &end.tail_text;
                    return Heard { turn, text };
                }
            }
        }
    }

    /// Claims what the ledger holds and no claim has, as settlement does; the claim's number.
    pub fn claim(&self, job: JobId) -> Option<ClaimSeq> {
        let claim = {
            let _one = self.claiming.lock().unwrap_or_else(PoisonError::into_inner);
            let entries = self.entries(job);
            let (seq, claimed) = claims_of(&entries)
                .last()
                .map_or((0, 0), |(body, _)| (body.seq.get(), body.tokens_cumulative.get()));
            let transcript = Transcript::from_entries(job, &entries);
            assert_eq!(transcript.fault(), None);
            let total = transcript.tokens();
            if total.get() == claimed {
                return None;
            }
            let seq = ClaimSeq::new(seq + 1);
            let cut = transcript.cut_at(total).unwrap();
            let root = proof::root(job, seq, &cut);
            let flags =
                [(cut.is_canonical, FLAG_CANONICAL), (cut.lacks_user_nonce, FLAG_NONCE_DERIVED)];
            let flags = flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum();
            let voucher =
                Voucher { job, tokens_cumulative: total, seq, root, model: cut.model_spec };
            let signature = sign(&*self.wallet, &self.domain(), &voucher);
            let proof =
                ProofBytes { flags, tokens_cumulative: total, seq, salt: 0, root, signature };
            let tokens = TokenCount::new(total.get() - claimed);
            let proof = proof.encode().to_vec();
            let body = ClaimBody { seq, tokens, tokens_cumulative: total, proof };
            let number = self.nonce.fetch_add(1, Ordering::Relaxed);
            let appended = self.ledger.submit(vec![prepared(job, number, body)], Box::new(drop));
            appended.unwrap();
            seq
        };
        Some(claim)
    }

    /// The claims of a job with what each is claimed by, oldest first.
    pub fn claims(&self, job: JobId) -> Vec<(Blob, ProofBytes)> {
        let entries = self.entries(job);
        let made = claims_of(&entries).into_iter();
        let blob = |seq| Blob::of_claim(self.domain(), job, seq, &entries).unwrap();
        made.map(|(body, proof)| (blob(body.seq), proof)).collect()
    }

    fn entries(&self, job: JobId) -> Vec<Entry> {
        let all = self.ledger.entries().into_iter();
        all.filter(|entry| entry.job() == Some(job)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.engine.shutdown();
    }
}

/// The model as a node serves it, its hashes included.
fn load(path: &Path, options: &EngineOptions) -> LocalModel {
    let files = ModelFiles::open(path).unwrap();
    let weights_sha256 = sha256_model(&files);
    let tokenizer_sha256 = match &files.tokenizer_paths()[..] {
        [] => weights_sha256,
        apart => sha256_tokenizer(apart).unwrap(),
    };
    let hashes = Some(ModelHashes { weights_sha256, tokenizer_sha256 });
    LocalModel { hashes, ..load_alone(path, options).unwrap() }
}

/// The host's signature over a voucher.
pub fn sign(wallet: &dyn Wallet, domain: &VoucherDomain, voucher: &Voucher) -> Signature {
    wallet.sign_digest(proof::voucher_digest(domain, voucher)).unwrap()
}

fn claims_of(entries: &[Entry]) -> Vec<(ClaimBody, ProofBytes)> {
    let claims = entries.iter().filter_map(|entry| match &entry.fact {
        Fact::TxPrepared { purpose: Purpose::Claim(body), .. } => Some(body.clone()),
        _ => None,
    });
    claims.map(|body| (body.clone(), ProofBytes::decode(&body.proof).unwrap())).collect()
}

fn prepared(job: JobId, number: u64, body: ClaimBody) -> Entry {
    let attempt = Attempt {
        hash: TxHash::new(*proof::keccak256(&number.to_be_bytes()).bytes()),
        raw: Vec::new(),
        fee_max: Amount::ZERO,
        tip_max: Amount::ZERO,
        gas_limit: 0,
    };
    let (nonce, purpose) = (WalletNonce::new(number), Purpose::Claim(body));
    let fact = Fact::TxPrepared { nonce, purpose, attempt };
    Entry { subject: job.into(), at: Millis::ZERO, fact }
}

fn rules() -> SessionRules {
    SessionRules {
        price_min: 0,
        payment_tokens: BTreeMap::new(),
        exposure: ExposureRule { tokens_max: TokenCount::new(u64::MAX), beyond: Beyond::Slow },
        model_ids: BTreeMap::new(),
        aliases: BTreeMap::new(),
        legacy: LegacyAccess::On { cap: None },
        snapshot_age_max: Millis::new(60_000),
        challenge_lifetime: Millis::new(60_000),
        token_lifetime: Millis::new(60_000),
        chain_wait_max: Duration::from_secs(5),
    }
}
