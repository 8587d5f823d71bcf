//! `tally verify` on what real models said: what a node served and claimed is found right, and what
//! was changed is found wrong where it was changed.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tally::billing::{Attempt, ClaimBody, Entry, Fact, Purpose};
use tally::engine::Engine;
use tally::ledger::Ledger;
use tally::node::models;
use tally::node::verify::{Claim, Model, Outcome, Verdict, lines, load_models, verify};
use tally::proof::{Blob, VoucherDomain};
use tally::units::{
    Address, Amount, ClaimSeq, Hash32, Millis, TokenCount, TurnNo, TxHash, WalletNonce,
};

use crate::models::settings_of;
use crate::support::http::post;
use crate::support::ledger::Tallied;
use crate::support::node::{Setup, TestNode, eventually, job, prompt};
use crate::support::tiny::{Family, folder};

/// The blob of a claim over everything that a node on this model served for these requests.
async fn served(model: &Path, requests: &[Value]) -> Blob {
    let settings = settings_of(&model.display().to_string(), &[]);
    let engine = tokio::task::spawn_blocking(move || models::load(&settings)).await;
    let engine = Arc::new(engine.unwrap().unwrap());
    let name = engine.catalog()[0].name.clone();
    let node = TestNode::start_real(Setup::default(), engine).await;
    for (number, request) in requests.iter().enumerate() {
        let mut body = prompt(json!({ "model": name }));
        body.as_object_mut().unwrap().extend(request.as_object().unwrap().clone());
        let answer = post(node.addr, "/v1/inference", &body).await;
        assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
        eventually(|| node.ledger.turns_ended(job(139)) == number + 1).await;
    }
    let tokens = TokenCount::new(node.ledger.recorded(job(139)));
    let body =
        ClaimBody { seq: ClaimSeq::new(1), tokens, tokens_cumulative: tokens, proof: Vec::new() };
    let attempt = Attempt {
        hash: TxHash::new([1; 32]),
        raw: Vec::new(),
        fee_max: Amount::ZERO,
        tip_max: Amount::ZERO,
        gas_limit: 0,
    };
    let (nonce, purpose) = (WalletNonce::new(0), Purpose::Claim(body));
    let fact = Fact::TxPrepared { nonce, purpose, attempt };
    let claimed = Entry { subject: job(139).into(), at: Millis::ZERO, fact };
    node.ledger.append(vec![claimed]).await.unwrap();
    let entries = node.ledger.job_entries(job(139)).await.unwrap();
    let domain = VoucherDomain { chain_id: 31_337, marketplace: Address::ZERO };
    Blob::of_claim(domain, job(139), ClaimSeq::new(1), &entries).unwrap()
}

fn requests() -> Vec<Value> {
    vec![
        json!({"max_tokens": 40, "temperature": 0.0, "prompt": "Once upon a time"}),
        json!({"max_tokens": 40, "temperature": 0.9, "seed": 7}),
        json!({"max_tokens": 40, "temperature": 1.0, "top_p": 0.9, "top_k": 40, "stop": ["e"]}),
        json!({"max_tokens": 40, "repetition_penalty": 1.2, "min_p": 0.02, "raw": true}),
        json!({"max_tokens": 40, "logit_bias": {"5": 3.5}, "frequency_penalty": 0.5,
            "user_nonce": format!("0x{}", "5a".repeat(32))}),
        json!({"max_tokens": 1}),
    ]
}

/// Blobs go through their bytes, as they do between host and auditor.
fn examine(blob: &Blob, models: &mut [Model]) -> Verdict {
    let blob = Blob::decode(&blob.encode()).unwrap();
    verify(&blob, &Claim::default(), models).unwrap()
}

fn derived_whole(verdict: &Verdict) -> bool {
    verdict.is_ok() && verdict.tokens > 0 && verdict.tokens_derived == verdict.tokens
}

/// Turn and position of the first wrong token.
fn wrong(verdict: &Verdict) -> (Option<TurnNo>, Option<u32>) {
    let failed = verdict.checks.iter().find(|check| check.outcome == Outcome::Fails);
    failed.map_or((None, None), |check| (check.turn, check.position))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_every_family_served_comes_out_again() {
    for family in Family::ALL {
        let folder = folder(family);
        let blob = served(folder.path(), &requests()).await;
        let mut models = load_models(&[folder.path().to_owned()], &blob).unwrap();
        let verdict = examine(&blob, &mut models);
        assert!(derived_whole(&verdict), "{family:?}: {}", lines(&verdict).join("\n"));
        assert!(verdict.tokens > 100, "{family:?}: {} tokens", verdict.tokens);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_real_model_served_comes_out_again_and_a_changed_token_does_not() {
    let path = crate::models::model();
    let mut asked = requests();
    asked.push(json!({"max_tokens": 50, "temperature": 0.0, "prompt": "Name three rivers."}));
    let blob = served(path.as_ref(), &asked).await;
    let mut models = load_models(&[path.into()], &blob).unwrap();
    let verdict = examine(&blob, &mut models);
    assert!(derived_whole(&verdict), "{}", lines(&verdict).join("\n"));
    let mut changed = blob.clone();
    let at = changed.chunks.iter().position(|chunk| chunk.ids.len() > 9).unwrap();
    changed.chunks[at].ids[8] ^= 1;
    let (turn, place) = (changed.chunks[at].turn, changed.chunks[at].position + 8);
    assert_eq!(wrong(&examine(&changed, &mut models)), (Some(turn), Some(place)));
}

type Cheat<'a> = &'a dyn Fn(&mut Blob);

#[tokio::test(flavor = "multi_thread")]
async fn each_cheat_is_found() {
    let (honest, other) = (folder(Family::Llama), folder(Family::Qwen3));
    let blob = served(honest.path(), &requests()).await;
    let mut models = load_models(&[honest.path().to_owned()], &blob).unwrap();
    let cheat = |change: &dyn Fn(&mut Blob)| {
        let mut changed = blob.clone();
        change(&mut changed);
        changed
    };
    let last = blob.turns.len() - 2;
    let padded = |blob: &mut Blob| {
        let turn = blob.turns[0].header.turn;
        let chunk = blob.chunks.iter_mut().rfind(|chunk| chunk.turn == turn).unwrap();
        chunk.ids.push(chunk.ids[0]);
    };
    let cheats: [(&str, Cheat<'_>); 8] = [
        ("a prompt token", &|blob| blob.turns[0].header.prompt_ids[0] ^= 1),
        ("an output token", &|blob| blob.chunks[0].ids[3] ^= 1),
        ("a padded token", &padded),
        ("another seed", &|blob| blob.turns[1].header.seed = Hash32::new([3; 32])),
        ("a seed that was not derived", &|blob| {
            blob.turns[2].header.seed = Hash32::new([3; 32]);
        }),
        ("another temperature", &|blob| {
            let header = &mut blob.turns[last].header;
            let decode = header.decode.as_mut().unwrap();
            decode.temperature = 2.0;
            header.decode_spec = tally::proof::decode_spec(decode);
        }),
        ("a hidden state", &|blob| blob.chunks[0].act_digest = Hash32::new([3; 32])),
        ("another model", &|blob| blob.turns[0].header.model_spec = Hash32::new([3; 32])),
    ];
    for (what, change) in cheats {
        let verdict = examine(&cheat(change), &mut models);
        assert!(!verdict.is_ok(), "{what}: {}", lines(&verdict).join("\n"));
    }
    let verdict = examine(&blob, &mut load_models(&[other.path().to_owned()], &blob).unwrap());
    assert!(!verdict.is_ok(), "other weights: {}", lines(&verdict).join("\n"));
    // Without weights nothing is derived, and nothing is said to be.
    let verdict = examine(&blob, &mut []);
    assert!(verdict.is_ok() && !verdict.is_complete() && verdict.tokens_derived == 0);
}
