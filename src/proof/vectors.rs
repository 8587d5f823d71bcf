//! Known answers: everything hashed here, compared with an independent program's results
//! (`tests/fixtures/proof/make.py`: pycryptodome and eth-account).

use serde_json::Value;

use super::*;
use crate::billing::{
    Attempt, ClaimBody, Decode, Entry, Fact, Purpose, SeedOrigin, TurnEnd, TurnHeader,
};
use crate::units::{
    Address, Amount, ClaimSeq, Hash32, JobId, Millis, Signature, TokenCount, TurnNo, TxHash,
    WalletNonce,
};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../tests/fixtures/proof/vectors.json")).unwrap()
}

fn hash(value: &Value) -> Hash32 {
    Hash32::parse(value.as_str().unwrap()).unwrap()
}

fn small(value: &Value) -> u32 {
    u32::try_from(value.as_u64().unwrap()).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(small).collect()
}

#[allow(clippy::cast_possible_truncation)]
fn float(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn job(value: &Value) -> JobId {
    JobId::new(value.as_u64().unwrap()).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap().trim_start_matches("0x")).unwrap()
}

fn fact(kind: &str, body: &Value) -> Fact {
    match kind {
        "start" => Fact::TurnStarted(TurnHeader {
            turn: TurnNo::new(small(&body["turn"])),
            model_spec: hash(&body["model_spec"]),
            tokenizer_spec: hash(&body["tokenizer_spec"]),
            decode_spec: hash(&body["decode_spec"]),
            engine_spec: small(&body["engine_spec"]),
            seed: hash(&body["seed"]),
            seed_origin: SeedOrigin::Derived,
            decode: None,
            nonces: None,
            prompt_ids: ids(&body["prompt_ids"]),
        }),
        "ids" => Fact::Delivered {
            turn: TurnNo::new(small(&body["turn"])),
            position: small(&body["position"]),
            ids: ids(&body["ids"]),
            states: body["states"].as_array().into_iter().flatten().map(hash).collect(),
        },
        "end" => Fact::TurnEnded { turn: TurnNo::new(small(&body["turn"])), end: TurnEnd::Stop },
        "claim" => Fact::TxPrepared {
            nonce: WalletNonce::new(body["seq"].as_u64().unwrap()),
            purpose: Purpose::Claim(ClaimBody {
                seq: ClaimSeq::new(small(&body["seq"])),
                tokens: TokenCount::ZERO,
                tokens_cumulative: TokenCount::new(body["tokens"].as_u64().unwrap()),
                proof: Vec::new(),
            }),
            attempt: Attempt {
                hash: TxHash::new([0; 32]),
                raw: Vec::new(),
                fee_max: Amount::ZERO,
                tip_max: Amount::ZERO,
                gas_limit: 0,
            },
        },
        other => panic!("{other}"),
    }
}

#[test]
fn transcripts_hash_as_the_independent_program_says() {
    let mut claims = 0;
    for scenario in vectors()["transcripts"].as_array().unwrap() {
        let job = job(&scenario["job"]);
        let entries: Vec<Entry> = scenario["steps"]
            .as_array()
            .unwrap()
            .iter()
            .map(|step| fact(step[0].as_str().unwrap(), &step[1]))
            .map(|fact| Entry { subject: job.into(), at: Millis::ZERO, fact })
            .collect();
        let transcript = Transcript::from_entries(job, &entries);
        assert_eq!(transcript.fault(), None);
        assert_eq!(transcript.tokens().get(), scenario["total"].as_u64().unwrap());
        assert_eq!(transcript.cut_at(transcript.tokens()).unwrap().top, hash(&scenario["top"]));
        for claim in scenario["claims"].as_array().unwrap() {
            let seq = ClaimSeq::new(small(&claim["seq"]));
            let cut = transcript.cut_of(seq).unwrap();
            assert_eq!(cut.tokens.get(), claim["tokens"].as_u64().unwrap());
            assert_eq!(cut.top, hash(&claim["top"]), "claim {seq} of job {job}");
            assert_eq!(cut.model_spec, hash(&claim["model_spec"]));
            assert_eq!(cut.is_canonical, claim["is_canonical"]);
            assert_eq!(root(job, seq, &cut), hash(&claim["root"]));
            claims += 1;
        }
    }
    assert!(claims > 10, "{claims}");
}

#[test]
fn vouchers_and_proof_bytes_are_what_wallets_sign_and_contracts_read() {
    for vector in vectors()["vouchers"].as_array().unwrap() {
        let domain = VoucherDomain {
            chain_id: vector["chain_id"].as_u64().unwrap(),
            marketplace: Address::parse(vector["contract"].as_str().unwrap()).unwrap(),
        };
        let voucher = Voucher {
            job: job(&vector["job"]),
            tokens_cumulative: TokenCount::new(vector["tokens"].as_u64().unwrap()),
            seq: ClaimSeq::new(small(&vector["seq"])),
            root: hash(&vector["root"]),
            model: hash(&vector["model"]),
        };
        assert_eq!(voucher_digest(&domain, &voucher), hash(&vector["digest"]));
        let proof = ProofBytes {
            flags: u8::try_from(small(&vector["flags"])).unwrap(),
            tokens_cumulative: voucher.tokens_cumulative,
            seq: voucher.seq,
            salt: u16::try_from(small(&vector["salt"])).unwrap(),
            root: voucher.root,
            signature: Signature::parse(vector["signature"].as_str().unwrap()).unwrap(),
        };
        let wanted = bytes(&vector["proof"]);
        assert_eq!(proof.encode().as_slice(), wanted);
        assert_eq!(ProofBytes::decode(&wanted), Ok(proof));
    }
}

#[test]
fn specs_and_seeds_hash_as_the_independent_program_says() {
    let specs = &vectors()["specs"];
    for vector in specs["decode"].as_array().unwrap() {
        let stop = vector["stop"].as_array().unwrap();
        let stop: Vec<String> = stop.iter().map(|s| s.as_str().unwrap().to_owned()).collect();
        let optional = |key: &str| vector.get(key).map_or(0.0, float);
        let biases = vector.get("logit_bias").and_then(|map| map.as_object());
        let biases = biases.into_iter().flatten();
        let logit_bias = biases.map(|(id, bias)| (id.parse().unwrap(), float(bias))).collect();
        let spec = Decode {
            temperature: float(&vector["temperature"]),
            top_k: small(&vector["top_k"]),
            top_p: float(&vector["top_p"]),
            min_p: float(&vector["min_p"]),
            repetition_penalty: float(&vector["repetition_penalty"]),
            frequency_penalty: optional("frequency_penalty"),
            presence_penalty: optional("presence_penalty"),
            logit_bias,
            max_tokens: small(&vector["max_tokens"]),
            stop,
            ignore_eos: vector["ignore_eos"].as_bool().unwrap_or(false),
        };
        assert_eq!(decode_spec(&spec), hash(&vector["digest"]));
    }
    let model = &specs["model"];
    let (weights, text) = (hash(&model["weights"]), |name: &str| model[name].as_str().unwrap());
    let digest = model_spec(weights, text("quantisation"), text("architecture"));
    assert_eq!(digest, hash(&model["digest"]));
    assert_eq!(tokenizer_spec(weights), hash(&model["tokenizer"]));
    let vector = &specs["seed"];
    let turn = TurnNo::new(small(&vector["turn"]));
    assert_eq!(seed(hash(&vector["host"]), hash(&vector["user"]), turn), hash(&vector["digest"]));
}
