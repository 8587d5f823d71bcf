//! What checking costs beside generating, and what a blob costs in bytes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Instant;

use tally::engine::{Prompt, Turn};
use tally::node::verify::{Claim, load_models, verify};
use tally::session::{Credential, PromptInput, PromptRequest, SamplingInput};
use tally::units::JobId;
use tally_engine::{Engine, EngineOptions, Event, EventSink, SequenceRequest};

use crate::models::request;
use crate::node::Node;
use crate::requests::Reader;

/// Tokens of an answer.
const ANSWER: u64 = 96;

/// Questions of one session.
const QUESTIONS: [&str; 4] = [
    "Tell me about the rivers of Europe, and where they go.",
    "Write a short story about a lamp.",
    "And what happened then?",
    "Explain how bread is made, step by step.",
];

/// A blob's bytes for each token of answers and of what was new in prompts, all answers being of
/// 64 tokens and more; and the median of what deriving answers takes of what generating them took.
pub struct Costs {
    pub blob_bytes_per_token: f64,
    pub verify_cost_ratio: f64,
}

/// Measures both on a session of the real model; `rounds` pairs for each of its turns.
pub async fn measure(path: &Path, rounds: usize) -> Costs {
    let job = JobId::new(1).unwrap();
    let node = Node::start(path, EngineOptions::default(), &[(job, 100_000)]).await;
    for (number, question) in QUESTIONS.iter().enumerate() {
        let reply = node.begin(question_of(job, &node.model, (number, question))).await;
        let (turn, reply) = reply.unwrap();
        node.listen((job, turn), reply, (Reader::Streams, usize::MAX)).await;
    }
    node.claim(job);
    let (blob, _) = node.claims(job).pop().unwrap();
    let blob_bytes_per_token = blob.encode().len() as f64 / new_tokens(&blob) as f64;
    drop(node);
    let engine = Engine::load(path, EngineOptions::default()).unwrap();
    let mut models = load_models(&[path.to_owned()], &blob).unwrap();
    let mut ratios = Vec::new();
    for turn in &blob.turns {
        let chosen = [turn.header.turn].into_iter().collect();
        let claim = Claim { sample: Some(chosen), texts: BTreeMap::new(), ..Claim::default() };
        let mut derive = || {
            let begin = Instant::now();
            let verdict = verify(&blob, &claim, &mut models).unwrap();
            assert!(verdict.is_ok() && verdict.tokens_derived == ANSWER);
            begin.elapsed().as_secs_f64()
        };
        // Prompts are in the cache of both from then on.
        derive();
        generate(&engine, request(&turn.header));
        for _ in 0..rounds {
            let generated = generate(&engine, request(&turn.header));
            ratios.push(derive() / generated);
        }
    }
    ratios.sort_unstable_by(f64::total_cmp);
    eprintln!(
        "derived / generated, {} pairs: {:.4} to {:.4}",
        ratios.len(),
        ratios[0],
        ratios[ratios.len() - 1]
    );
    Costs { blob_bytes_per_token, verify_cost_ratio: ratios[ratios.len() / 2] }
}

fn question_of(job: JobId, model: &str, (number, question): (usize, &str)) -> PromptRequest {
    let role = "user".to_owned();
    let chat = vec![Turn { role, content: question.to_owned() }];
    PromptRequest {
        job: Some(job),
        credential: Credential::JobNumber,
        chain_id: None,
        model: model.to_owned(),
        // Every other turn follows the one before it.
        input: match number % 2 {
            0 => PromptInput::Complete(Prompt::Chat(chat)),
            _ => PromptInput::Continue(question.to_owned()),
        },
        max_tokens: ANSWER,
        sampling: SamplingInput { ignore_eos: true, ..SamplingInput::default() },
        user_nonce: None,
    }
}

/// Tokens of answers, and of prompts what no turn before had.
fn new_tokens(blob: &tally::proof::Blob) -> usize {
    let histories: Vec<Vec<u32>> = blob
        .turns
        .iter()
        .map(|turn| [turn.header.prompt_ids.clone(), blob.output(turn.header.turn)].concat())
        .collect();
    let shared = |a: &[u32], b: &[u32]| a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let new = blob.turns.iter().enumerate().map(|(place, turn)| {
        let prompt = &turn.header.prompt_ids;
        let known = histories[..place].iter().map(|it| shared(prompt, it)).max();
        prompt.len() - known.unwrap_or_default() + blob.output(turn.header.turn).len()
    });
    new.sum()
}

struct Timed(SyncSender<Instant>);

impl EventSink for Timed {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        if let Event::Token { .. } = event {
            self.0.try_send(Instant::now()).unwrap();
        }
    }
}

/// Seconds from the first token to the last, as if the first had cost as much as the others.
fn generate(engine: &Engine, request: SequenceRequest) -> f64 {
    let (sender, times) = sync_channel(ANSWER as usize);
    let request = SequenceRequest { owner: Some([1; 32]), ..request };
    let _handle = engine.start(request, Box::new(Timed(sender))).unwrap();
    let times: Vec<Instant> = times.iter().collect();
    assert_eq!(times.len() as u64, ANSWER);
    let between = times[times.len() - 1] - times[0];
    between.as_secs_f64() * ANSWER as f64 / (ANSWER - 1) as f64
}
