//! Checkpoint 12: greedy text from end to end, and the known answers of gpt2-medium.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use super::harness::{Checkpoint, argmax, bits_that_differ, ids, pool, step, unchanged};
use super::small::Small;
use crate::kv::KvType;
use crate::model::Model;
use crate::probe::Stage;
use crate::{Engine, EngineOptions, Event, EventSink, Sampling, SequenceHandle, SequenceRequest};

struct Tap(Sender<Event>);

impl EventSink for Tap {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        self.0.send(event).unwrap();
    }
}

pub fn engine(folder: &Path, options: EngineOptions) -> Engine {
    Engine::load(folder, EngineOptions { threads: 2, kv_memory_bytes: 64 << 20, ..options })
        .unwrap()
}

/// Starts ten greedy tokens after `prompt`.
fn start(engine: &Engine, prompt: &[u32]) -> (SequenceHandle, Receiver<Event>) {
    let (sender, events) = channel();
    let request = SequenceRequest {
        prompt_ids: prompt.to_vec(),
        max_tokens: 10,
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        ignore_eos: true,
        owner: Some([7; 32]),
    };
    (engine.start(request, Box::new(Tap(sender))).unwrap(), events)
}

/// How many prompt tokens were cached, the tokens' ids, and their states' digests.
fn collect(events: &Receiver<Event>) -> (u32, Vec<u32>, Vec<[u8; 32]>) {
    let mut answer = (0, Vec::new(), Vec::new());
    for event in events {
        match event {
            Event::Prefilled { cached_tokens, .. } => answer.0 = cached_tokens,
            Event::Token { id, state_digest, .. } => {
                answer.1.push(id);
                answer.2.push(state_digest.expect("GPT-2 is canonical"));
            }
            Event::Finished { .. } => (),
        }
    }
    answer
}

pub fn answer(engine: &Engine, prompt: &[u32]) -> (u32, Vec<u32>, Vec<[u8; 32]>) {
    let (_handle, events) = start(engine, prompt);
    collect(&events)
}

/// Ten greedy tokens after `prompt`, and their rows of logits. Without a cache all is computed
/// anew for each token. `position` says where the i-th of them stands, given its place; `table`
/// has the positions' rows.
pub fn greedy(
    (table, model): (&[f32], &mut Model),
    prompt: &[u32],
    has_cache: bool,
    position: &dyn Fn(usize, usize) -> usize,
) -> (Vec<u32>, Vec<f32>) {
    let config = model.config();
    let (width, vocab, layers) = (config.width, config.vocab_size, config.layers);
    let row = |position: usize| &table[position * width..(position + 1) * width];
    let (mut kv, blocks) = pool(model, KvType::F32, 64);
    let (mut all, mut rows, mut from) = (prompt.to_vec(), Vec::new(), 0);
    for i in 0..10 {
        let mut change = |stage: Stage, _: usize, values: &mut [f32]| {
            let place = all.len() - 1;
            if stage == Stage::Embedded && i > 0 && position(i, place) != place {
                let last = values.len() - width;
                for (d, x) in values[last..].iter_mut().enumerate() {
                    *x += row(position(i, place))[d] - row(place)[d];
                }
            }
        };
        if !has_cache {
            (kv, from) = (pool(model, KvType::F32, 64).0, 0);
        }
        let seen = step(model, (&mut kv, &blocks), (&all[from..], from), &mut change);
        from = all.len();
        let logits = &seen[&(Stage::Logits, layers)];
        rows.extend_from_slice(&logits[logits.len() - vocab..]);
        all.push(argmax(&logits[logits.len() - vocab..]));
    }
    (all.split_off(prompt.len()), rows)
}

pub fn wrong(ours: &[u32], theirs: &[u32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).filter(|(a, b)| a != b).count() as f64
}

#[test]
fn checkpoint_12_ten_greedy_tokens() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let table = small.weights.get("transformer.wpe.weight");
    let folder = small.folder();
    let options = EngineOptions { kv_type: KvType::F32, ..EngineOptions::default() };
    let served = engine(folder.path(), options);
    let mut checkpoint = Checkpoint::new("12 ten greedy tokens, ids that differ", 0.0);
    let straight = |_: usize, place: usize| place;
    let mut fewest = f64::INFINITY;
    let mut started = Vec::new();
    for case in small.fixture["answers"].as_array().unwrap() {
        let (prompt, theirs) = (ids(&case["ids"]), ids(&case["chosen"]));
        let encoded = served.encode_raw(case["text"].as_str().unwrap()).unwrap();
        assert_eq!(encoded, prompt, "the text's ids");
        let first = answer(&served, &prompt);
        checkpoint.part("served", wrong(&first.1, &theirs));
        for _ in 0..2 {
            let again = answer(&served, &prompt);
            checkpoint.part("served again", wrong(&again.1, &theirs));
            assert_eq!(again.2, first.2, "the states' bits of three runs");
            assert_eq!(again.0 as usize, prompt.len() - 1, "prompt tokens that were cached");
        }
        let (cached, rows) = greedy((&table, &mut model), &prompt, true, &straight);
        let (computed, other) = greedy((&table, &mut model), &prompt, false, &straight);
        checkpoint.part("with KV cache", wrong(&cached, &theirs));
        checkpoint.part("without", wrong(&computed, &theirs));
        checkpoint.part("logits between them", bits_that_differ(&rows, &other));
        let from_zero = |i: usize, _: usize| i;
        let counted = greedy((&table, &mut model), &prompt, true, &from_zero).0;
        fewest = fewest.min(wrong(&counted, &theirs));
        started.push((prompt, theirs, first.2));
    }
    checkpoint.negative("positions from the generated index, at least", fewest);
    // All of them at once, with keys and values in half precision: the default.
    let crowd = engine(folder.path(), EngineOptions::default());
    let running: Vec<_> = started.iter().map(|(prompt, ..)| start(&crowd, prompt)).collect();
    for ((_handle, events), (_, theirs, _)) in running.iter().zip(&started) {
        checkpoint.part("five at once, cache in f16", wrong(&collect(events).1, theirs));
    }
    let running: Vec<_> = started.iter().map(|(prompt, ..)| start(&served, prompt)).collect();
    for ((_handle, events), (_, _, states)) in running.iter().zip(&started) {
        assert_eq!(collect(events).2, *states, "the states' bits alone and in a batch");
    }
    checkpoint.finish();
}

#[test]
fn a_context_that_overflows_is_an_error_of_its_own() {
    let small = Small::new();
    let folder = small.folder();
    let served = engine(folder.path(), EngineOptions::default());
    assert_eq!(served.info().context_length, 64);
    let (sender, _events) = channel();
    let request = SequenceRequest {
        prompt_ids: vec![5; 64],
        max_tokens: 1,
        sampling: Sampling::greedy(),
        stop: Vec::new(),
        ignore_eos: true,
        owner: None,
    };
    let refused = served.start(request, Box::new(Tap(sender))).map(|_| ()).unwrap_err();
    assert!(refused.to_string().contains("64"), "{refused}");
    // 60 tokens of prompt leave room for four more and no more.
    let (_, ids, _) = answer(&served, &[5; 60]);
    assert_eq!(ids.len(), 4);
    // Below the engine, the table's end is the end.
    let mut model = small.weights.model(&small.config);
    let bytes = crate::kv::KvPool::block_bytes(model.config(), KvType::F32) * 8;
    let mut kv = crate::kv::KvPool::of_type(model.config(), KvType::F32, bytes);
    let table = kv.allocate(80).unwrap();
    let mut at = |start: usize, tokens: &[u32]| {
        let logits = crate::model::Logits::Last;
        let segment = crate::model::Segment { tokens, start, table: &table, logits };
        let batch = crate::model::Batch { segments: vec![segment] };
        model.forward(&batch, &mut kv).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(at(0, &[1; 64]), Ok(()));
    assert!(at(64, &[1]).unwrap_err().contains("64 positions"));
    let _ = step(
        &mut small.weights.model(&small.config),
        (&mut kv, &table),
        (&[1], 63),
        &mut unchanged,
    );
}

/// Where the real gpt2-medium lies, if it is here: config.json, safetensors, vocab.json and
/// merges.txt (or tokenizer.json), as HuggingFace has them.
fn medium() -> Option<PathBuf> {
    std::env::var_os("GPT2_MEDIUM_DIR").map(PathBuf::from)
}

#[test]
fn checkpoint_known_answers_of_gpt2_medium() {
    let Some(folder) = medium() else {
        let line = "checkpoint gpt2-medium's known answers: NOT RUN, GPT2_MEDIUM_DIR is not set; \
            a random model of its shape stands in (checkpoint medium)\n";
        std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
        return;
    };
    let engine = engine(&folder, EngineOptions { kv_type: KvType::F32, ..Default::default() });
    let mut checkpoint = Checkpoint::new("gpt2-medium's known answers, texts that differ", 0.0);
    assert_eq!(engine.encode_raw("Hello.").unwrap(), [15496, 13]);
    let table = [
        ("Hello.", " I'm a little late to the party, but"),
        (
            "What is the answer to life, the universe, and everything?",
            "\n\nThe answer is that we are all one",
        ),
    ];
    let mut exchanged = 0.0;
    for (text, known) in table {
        let prompt = engine.encode_raw(text).unwrap();
        for _ in 0..3 {
            let (_, ids, _) = answer(&engine, &prompt);
            assert_eq!(ids.len(), 10);
            let decoded = engine.decode(&ids);
            let is_known = decoded == known;
            checkpoint.part(&format!("{text:?}"), f64::from(u8::from(!is_known)));
            let others = table.iter().filter(|(other, _)| *other != text);
            exchanged += others.filter(|(_, known)| decoded != *known).count() as f64;
        }
    }
    checkpoint.negative("the other text's answer", exchanged);
    checkpoint.finish();
}
