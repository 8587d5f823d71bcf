//! Random claims for another program to check, and blobs of another program's to judge.
//!
//! `claims make COUNT SEED` prints one claim a line, as JSON: blob, proof bytes, what the chain
//! knows, and the job's history. `claims judge` reads one blob a line, as hex, and prints its root
//! and its tokens, or `no`. Never part of the node; `scripts/test-web.sh` runs it.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tally::billing::{
    Attempt, ClaimBody, Decode, Entry, Fact, Purpose, SeedOrigin, TurnEnd, TurnHeader, TurnNonces,
};
use tally::chain::Wallet;
use tally::chain::evm::EvmWallet;
use tally::proof;
use tally::units::{
    Address, Amount, ClaimSeq, Hash32, JobId, Millis, Signature, TokenCount, TurnNo, TxHash,
    WalletNonce,
};

/// Random numbers of one seed (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    fn below(&mut self, end: u32) -> u32 {
        u32::try_from(self.roll() % u64::from(end.max(1))).unwrap_or(0)
    }

    fn one_in(&mut self, chances: u32) -> bool {
        self.below(chances) == 0
    }

    fn word(&mut self) -> Hash32 {
        proof::keccak256(&self.roll().to_be_bytes())
    }

    /// One of a few words, so that turns share them.
    fn common_word(&mut self, mark: &str, of: u32) -> Hash32 {
        proof::keccak256(format!("{mark} {}", self.below(of)).as_bytes())
    }
}

/// How one job behaves.
struct Ways {
    ids_end: u64,
    turns: u32,
    live_max: usize,
    models: u32,
    has_states: bool,
    is_old: bool,
    is_stray: bool,
}

/// A job as it grows.
struct Story {
    dice: Dice,
    ways: Ways,
    job: JobId,
    nonces: proof::HostNonces,
    entries: Vec<Entry>,
    steps: Vec<Value>,
    cuts: Vec<u64>,
    commitments: BTreeMap<u32, Hash32>,
    /// Turns that go on: number, position, tokens to come, prompt and output.
    live: Vec<(TurnNo, u32, u32, Vec<u32>)>,
    texts: Vec<Vec<u32>>,
    tokens: u64,
    honest: bool,
}

impl Story {
    fn new(mut dice: Dice) -> Result<Self> {
        let ways = Ways {
            ids_end: if dice.one_in(4) { 1 << 32 } else { 49_152 },
            turns: dice.below(8).saturating_add(1),
            live_max: if dice.one_in(2) { 1 } else { 4 },
            models: if dice.one_in(5) { 3 } else { 1 },
            has_states: !dice.one_in(3),
            is_old: dice.one_in(10),
            is_stray: dice.one_in(20),
        };
        let bits = dice.below(64);
        let job = JobId::new((dice.roll() >> bits).max(1)).context("job 0")?;
        let mut secret = [0; 65];
        secret[..32].copy_from_slice(dice.word().bytes());
        Ok(Self {
            ways,
            job,
            nonces: proof::HostNonces::new(&Signature::new(secret)),
            entries: Vec::new(),
            steps: Vec::new(),
            cuts: Vec::new(),
            commitments: BTreeMap::new(),
            live: Vec::new(),
            texts: Vec::new(),
            tokens: 0,
            honest: true,
            dice,
        })
    }

    fn push(&mut self, fact: Fact) {
        self.entries.push(Entry { subject: self.job.into(), at: Millis::ZERO, fact });
    }

    fn ids(&mut self, count: u32) -> Vec<u32> {
        let end = self.ways.ids_end;
        (0..count).map(|_| u32::try_from(self.dice.roll() % end).unwrap_or(u32::MAX)).collect()
    }

    /// New words, often behind what an earlier turn said.
    fn prompt(&mut self) -> Vec<u32> {
        let mut ids = Vec::new();
        if !self.texts.is_empty() && !self.dice.one_in(4) {
            let at = self.dice.below(u32::try_from(self.texts.len()).unwrap_or(u32::MAX));
            ids.clone_from(&self.texts[at as usize]);
            if self.dice.one_in(3) {
                let kept = self.dice.below(u32::try_from(ids.len()).unwrap_or(u32::MAX));
                ids.truncate(kept as usize);
            }
        }
        let added = self.dice.below(40);
        ids.extend(self.ids(added));
        ids
    }

    fn settings(&mut self) -> Decode {
        let dice = &mut self.dice;
        let quarter = |dice: &mut Dice, end: u32| {
            f32::from(u16::try_from(dice.below(end)).unwrap_or(0)) / 4.0
        };
        let is_rich = dice.one_in(3);
        let biases = if is_rich { dice.below(4) } else { 0 };
        let stops = dice.below(3);
        let texts = ["\n\n", "", "Ende 🦉", "\u{feff}stop"];
        Decode {
            temperature: quarter(dice, 6),
            top_k: dice.below(3) * 40,
            top_p: 1.0 - quarter(dice, 2),
            min_p: quarter(dice, 2),
            repetition_penalty: 1.1,
            frequency_penalty: if is_rich { quarter(dice, 4) } else { 0.0 },
            presence_penalty: if is_rich { -quarter(dice, 4) } else { 0.0 },
            // The biggest id first, since a map puts it last.
            logit_bias: (0..biases).map(|_| (dice.below(100_000), -0.5)).collect(),
            max_tokens: dice.below(1_000),
            stop: (0..stops).map(|_| texts[dice.below(4) as usize].to_owned()).collect(),
            ignore_eos: is_rich && dice.one_in(2),
        }
    }

    fn start(&mut self, number: u32) {
        let turn = TurnNo::new(number);
        let prompt_ids = self.prompt();
        let settings = self.settings();
        let host = self.nonces.link(self.job, turn);
        let chain = number / proof::TURNS_PER_CHAIN;
        self.commitments.insert(chain, self.nonces.commitment(self.job, turn));
        let user = (!self.dice.one_in(3)).then(|| self.dice.word());
        let nonces = if self.ways.is_old { None } else { Some(TurnNonces { host, user }) };
        let ruled = match nonces {
            None => proof::seed(Hash32::ZERO, Hash32::ZERO, turn),
            Some(TurnNonces { host, user }) => {
                let user = user.unwrap_or_else(|| proof::derived_user_nonce(&prompt_ids));
                proof::seed(host, user, turn)
            }
        };
        let (is_own, is_stray) = (self.dice.one_in(5), self.ways.is_stray && self.dice.one_in(2));
        let seed_origin = if is_own { SeedOrigin::Client } else { SeedOrigin::Derived };
        self.honest &= is_own || !is_stray;
        let own = proof::seed_from_client(self.dice.roll());
        let header = TurnHeader {
            turn,
            model_spec: self.dice.common_word("model", self.ways.models),
            tokenizer_spec: self.dice.common_word("tokenizer", self.ways.models),
            decode_spec: proof::decode_spec(&settings),
            decode: (!self.ways.is_old).then(|| Box::new(settings)),
            engine_spec: u32::from(self.ways.has_states || self.dice.one_in(2)),
            seed: if is_own || is_stray { own } else { ruled },
            seed_origin,
            nonces,
            prompt_ids: prompt_ids.clone(),
        };
        self.push(Fact::TurnStarted(header));
        self.steps.push(json!(["start", number]));
        let length = self.dice.below(130);
        self.live.push((turn, 0, length, prompt_ids));
    }

    /// A few tokens of a turn that goes on, and its end where there are no more.
    fn go_on(&mut self) {
        let at = self.dice.below(u32::try_from(self.live.len()).unwrap_or(1)) as usize;
        let (turn, position, left, mut text) = self.live.swap_remove(at);
        let count = self.dice.below(40).saturating_add(1).min(left);
        if count > 0 {
            let ids = self.ids(count);
            let has_states = self.ways.has_states && !self.dice.one_in(200);
            let states = ids.iter().filter(|_| has_states).map(|_| self.dice.word()).collect();
            text.extend(&ids);
            self.push(Fact::Delivered { turn, position, ids, states });
            self.steps.push(json!(["ids", turn.get(), count]));
            self.tokens += u64::from(count);
        }
        if left > count {
            self.live.push((turn, position + count, left - count, text));
            return;
        }
        self.texts.push(text);
        if !self.dice.one_in(10) {
            let ends = [
                TurnEnd::Stop,
                TurnEnd::Length,
                TurnEnd::Cancelled,
                TurnEnd::DepositExhausted,
                TurnEnd::Error,
            ];
            let end = ends[self.dice.below(5) as usize];
            self.push(Fact::TurnEnded { turn, end });
            self.steps.push(json!(["end", turn.get()]));
        }
    }

    fn claim(&mut self, tokens: u64) {
        self.cuts.push(tokens);
        let seq = u32::try_from(self.cuts.len()).unwrap_or(u32::MAX);
        let body = ClaimBody {
            seq: ClaimSeq::new(seq),
            tokens: TokenCount::ZERO,
            tokens_cumulative: TokenCount::new(tokens),
            proof: Vec::new(),
        };
        let attempt = Attempt {
            hash: TxHash::new([0; 32]),
            raw: Vec::new(),
            fee_max: Amount::ZERO,
            tip_max: Amount::ZERO,
            gas_limit: 0,
        };
        let nonce = WalletNonce::new(u64::from(seq));
        self.push(Fact::TxPrepared { nonce, purpose: Purpose::Claim(body), attempt });
    }

    fn run(&mut self) {
        let first = if self.dice.one_in(4) { 1_020 } else { 0 };
        let mut number = 0;
        while number < self.ways.turns || !self.live.is_empty() || self.tokens == 0 {
            let is_room = self.live.len() < self.ways.live_max;
            let is_more = number < self.ways.turns || self.tokens == 0;
            if is_room && is_more && (self.live.is_empty() || self.dice.one_in(2)) {
                self.start(first + number);
                number += 1;
            } else {
                self.go_on();
            }
            let last = self.cuts.last().copied().unwrap_or(0);
            if self.tokens > last && self.dice.one_in(6) {
                let more = self.dice.roll() % (self.tokens - last);
                self.claim(last + 1 + more);
            }
        }
        if self.cuts.is_empty() || self.cuts.last() < Some(&self.tokens) {
            self.claim(self.tokens);
        }
    }

    /// One of the job's claims as the chain and a blob's holder see it.
    fn told(&mut self) -> Result<Value> {
        let index = if self.dice.one_in(3) { 0 } else { self.cuts.len() - 1 };
        let seq = ClaimSeq::new(u32::try_from(index + 1)?);
        let transcript = proof::Transcript::from_entries(self.job, &self.entries);
        if let Some(fault) = transcript.fault() {
            bail!("a transcript that contradicts itself: {fault}");
        }
        let cut = transcript.cut_of(seq).context("no such claim")?;
        let root = proof::root(self.job, seq, &cut);
        let mut marketplace = [0; 20];
        marketplace.copy_from_slice(&self.dice.word().bytes()[..20]);
        let domain = proof::VoucherDomain {
            chain_id: [1, 8_453, 31_337, u64::MAX][self.dice.below(4) as usize],
            marketplace: Address::new(marketplace),
        };
        let (tokens_cumulative, model) = (cut.tokens, cut.model_spec);
        let voucher = proof::Voucher { job: self.job, tokens_cumulative, seq, root, model };
        let key = hex::encode(proof::keccak256(&self.job.get().to_be_bytes()).bytes());
        let wallet = EvmWallet::from_key(&key.into())?;
        let signature = wallet.sign_digest(proof::voucher_digest(&domain, &voucher))?;
        let flags = [
            (self.dice.one_in(4), proof::FLAG_FINAL),
            (cut.is_canonical, proof::FLAG_CANONICAL),
            (cut.lacks_user_nonce, proof::FLAG_NONCE_DERIVED),
        ];
        let flags = flags.iter().filter(|(is_set, _)| *is_set).fold(0, |all, (_, flag)| all | flag);
        let salt = u16::try_from(self.dice.below(1 << 16))?;
        let bytes = proof::ProofBytes { flags, tokens_cumulative, seq, salt, root, signature };
        let blob =
            proof::Blob::of_claim(domain, self.job, seq, &self.entries).context("no blob")?;
        // A stray seed may stand in a turn that this claim does not reach.
        let honest = self.honest || blob.turns.iter().all(|turn| is_honest(&turn.header));
        Ok(json!({
            "blob": hex::encode(blob.encode()), "proof": hex::encode(bytes.encode()),
            "chain_id": domain.chain_id.to_string(), "marketplace": domain.marketplace.to_string(),
            "signer": wallet.address().to_string(), "root": root.to_string(),
            "tokens": cut.tokens.get(), "model": model.to_string(), "honest": honest,
            "commitments": self.commitments.iter()
                .map(|(chain, link)| json!([chain, link.to_string()])).collect::<Vec<_>>(),
            "cuts": self.cuts.iter().take(index).collect::<Vec<_>>(), "steps": self.steps,
        }))
    }
}

fn is_honest(header: &TurnHeader) -> bool {
    let (host, user) = header
        .nonces
        .map_or((Hash32::ZERO, Some(Hash32::ZERO)), |nonces| (nonces.host, nonces.user));
    let user = user.unwrap_or_else(|| proof::derived_user_nonce(&header.prompt_ids));
    header.seed_origin == SeedOrigin::Client || header.seed == proof::seed(host, user, header.turn)
}

fn make(count: u64, seed: u64, out: &mut impl Write) -> Result<()> {
    let mut seeds = Dice(seed);
    for _ in 0..count {
        let mut story = Story::new(Dice(seeds.roll()))?;
        story.run();
        writeln!(out, "{}", story.told()?)?;
    }
    Ok(())
}

/// What the blob in these bytes says, or why it is none.
fn verdict(line: &str) -> Result<String> {
    let blob = proof::Blob::decode(&hex::decode(line.trim())?)?;
    Ok(format!("{} {}", blob.root()?, blob.tokens()))
}

fn main() -> Result<()> {
    let told: Vec<String> = std::env::args().skip(1).collect();
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    let mut out = io::BufWriter::new(io::stdout().lock());
    match told[..] {
        ["make", count, seed] => make(count.parse()?, seed.parse()?, &mut out)?,
        ["judge"] | ["judge", "--why"] => {
            for line in io::stdin().lock().lines() {
                match verdict(&line?) {
                    Ok(said) => writeln!(out, "{said}")?,
                    Err(why) if told.len() > 1 => writeln!(out, "no {why}")?,
                    Err(_) => writeln!(out, "no")?,
                }
            }
        }
        _ => bail!("wanted: claims make COUNT SEED | claims judge [--why]"),
    }
    out.flush()?;
    Ok(())
}
