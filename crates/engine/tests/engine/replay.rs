//! Honest turns are derived again on every path, and no other.

use std::path::{Path, PathBuf};

use candle_core::quantized::GgmlDType;
use candle_core::quantized::gguf_file::Value;
use tally_engine::{
    ClaimedEnd, ClaimedTurn, Engine, EngineOptions, Fault, FinishReason, Found, Isa, Replay,
    ReplayError, Replayed, Sampling, SequenceRequest, StartError,
};

use crate::families::settings;
use crate::kit::{Answer, ROOM, Tap, answer, collect, model_path, user};
use crate::models::{Made, Noise, write_gguf};

/// The end token of all small models.
const END: u32 = 0;

/// Texts of a small vocabulary: an end, a control token, a character in four parts, syllables.
fn texts(count: usize) -> Vec<String> {
    let special = ["<|endoftext|>", "<|pause|>", "ð", "Ł", "ĺ", "Ģ", "b", "a"];
    let syllable = |(first, second): (char, char)| format!("{first}{second}");
    let pairs = "bcdfghjklmnp".chars().flat_map(|a| "aeiouy".chars().map(move |b| (a, b)));
    special.map(String::from).into_iter().chain(pairs.map(syllable)).take(count).collect()
}

/// Keys of a GGUF file's tokenizer.
fn tokenizer(count: usize) -> Vec<(String, Value)> {
    let strings = |items: Vec<String>| Value::Array(items.into_iter().map(Value::String).collect());
    let kinds = (0..count).map(|id| Value::I32(if id < 2 { 3 } else { 1 })).collect();
    let keys = [
        ("model", Value::String("gpt2".into())),
        ("pre", Value::String("smollm".into())),
        ("tokens", strings(texts(count))),
        ("merges", strings(vec!["b a".into()])),
        ("token_type", Value::Array(kinds)),
        ("eos_token_id", Value::U32(END)),
    ];
    keys.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).into()
}

/// A random model of a family with weights of `seed` in `format`.
fn small(folder: &Path, family: &str, seed: u64, format: GgmlDType) -> PathBuf {
    let made = Made::random(settings(family), seed);
    let mut keys = made.metadata();
    keys.retain(|(key, _)| !key.starts_with("tokenizer."));
    keys.extend(tokenizer(made.size("vocab_size")));
    write_gguf(folder, &format!("{family}-{seed}-{format:?}"), &keys, &made.quantised(format))
}

/// The GPT-2 that HuggingFace saved, with a vocabulary.
fn gpt2(folder: &Path) -> PathBuf {
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints/saved");
    let path = folder.join("gpt2");
    std::fs::create_dir(&path).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(saved.join(file), path.join(file)).unwrap();
    }
    let vocab: serde_json::Map<String, serde_json::Value> =
        texts(48).into_iter().zip(0..48).map(|(text, id)| (text, id.into())).collect();
    std::fs::write(path.join("vocab.json"), serde_json::Value::from(vocab).to_string()).unwrap();
    std::fs::write(path.join("merges.txt"), "#version: 0.2\nb a\n").unwrap();
    path
}

fn options() -> EngineOptions {
    EngineOptions { threads: 2, kv_memory_bytes: 8 << 20, ..EngineOptions::default() }
}

/// Numbers for a test, from a seed that its messages print.
struct Dice(Noise);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
    fn below(&mut self, bound: usize) -> usize {
        let uniform = (f64::from(self.0.floats(1, 0.0, 1.0)[0]) + 1.0) / 2.0;
        ((uniform * bound as f64) as usize).min(bound - 1)
    }
    fn one<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())].clone()
    }
    fn below_one_of(&mut self, bounds: &[usize]) -> usize {
        let bound = self.one(bounds);
        self.below(bound)
    }
    fn is(&mut self, one_in: usize) -> bool {
        self.below(one_in) == 0
    }
    fn ids(&mut self, count: usize, vocab: u32) -> Vec<u32> {
        // No end tokens: a prompt has none but what its template puts there.
        (0..count).map(|_| 1 + self.below(vocab as usize - 1) as u32).collect()
    }
    fn seed(&mut self) -> [u8; 32] {
        std::array::from_fn(|_| self.below(256) as u8)
    }

    fn sampling(&mut self, vocab: u32) -> Sampling {
        // Random weights don't know that texts end.
        let end = self.one(&[0.0, 3.0, 6.0]);
        let bias = if self.is(4) { self.below(6) } else { 0 };
        Sampling {
            temperature: self.one(&[0.0, 0.5, 1.0, 1.5, 2.0]),
            top_k: self.one(&[0, 0, 5, 40]),
            top_p: self.one(&[1.0, 1.0, 0.9, 0.5]),
            min_p: self.one(&[0.0, 0.0, 0.05]),
            repetition_penalty: self.one(&[1.0, 1.0, 1.1]),
            frequency_penalty: self.one(&[0.0, 0.0, 0.3]),
            presence_penalty: self.one(&[0.0, 0.0, -0.2]),
            logit_bias: (0..bias)
                .map(|_| (self.below(vocab as usize) as u32, self.one(&[-100.0, -2.0, 1.5])))
                .chain([(END, end)])
                .collect(),
            logprobs: self.one(&[None, None, Some(3)]),
            seed: self.seed(),
        }
    }

    /// A stop text, often inside and across tokens, and sometimes longer than it is likely.
    fn stop(&mut self) -> String {
        let letter = |dice: &mut Dice, of: &str| dice.one(&of.chars().collect::<Vec<_>>());
        let mut text = String::new();
        for _ in 0..1 + self.below(2) {
            text.extend([letter(self, "aeiou"), letter(self, "bcdfg")]);
        }
        text
    }

    fn request(&mut self, prompt_ids: Vec<u32>, vocab: u32) -> SequenceRequest {
        let stops = if self.is(2) { 1 + self.below(6) } else { 0 };
        SequenceRequest {
            prompt_ids,
            max_tokens: 1 + self.below_one_of(&[5, 20, 20, 70]) as u32,
            sampling: self.sampling(vocab),
            stop: (0..stops).map(|_| self.stop()).collect(),
            ignore_eos: self.is(4),
            owner: Some([7; 32]),
        }
    }
}

/// What an engine's answer makes the host claim.
fn claim(request: &SequenceRequest, answer: &Answer) -> ClaimedTurn {
    let end = match answer.reason {
        FinishReason::Stop | FinishReason::StopString(_) => ClaimedEnd::Stop,
        FinishReason::Length => ClaimedEnd::Length,
        FinishReason::Cancelled | FinishReason::Error(_) => ClaimedEnd::Cut,
    };
    ClaimedTurn { request: request.clone(), output_ids: answer.ids.clone(), end }
}

/// That the derivation says what the engine's reader was told.
fn assert_honest(replayed: &Replayed, answer: &Answer, case: &str) {
    assert_eq!(replayed.fault, None, "{case}");
    let digests: Vec<_> = replayed.state_digests.iter().map(|digest| Some(*digest)).collect();
    assert_eq!(digests, answer.states, "{case}");
    assert_eq!((&replayed.text, &replayed.end), (&answer.text(), &Some(answer.reason.clone())));
}

/// A beginning of an answer, as a client sees it who left there.
fn cut(answer: &Answer, count: usize) -> (Vec<u32>, String) {
    (answer.ids[..count].to_vec(), answer.texts[..count].concat())
}

/// Random turns of random conversations; gives request and answer of each, in order.
fn conversations(
    engine: &Engine,
    dice: &mut Dice,
    (count, turns): (usize, usize),
) -> Vec<(SequenceRequest, Answer)> {
    let info = engine.info();
    let (vocab, room) = (info.vocab_size, info.context_length as usize);
    let mut all = Vec::new();
    for _ in 0..count {
        let first = 1 + dice.below(20);
        let mut history = dice.ids(first, vocab);
        for _ in 0..turns {
            let request = dice.request(history.clone(), vocab);
            let answer = answer(engine, request.clone());
            history.extend(&answer.ids);
            let more = 1 + dice.below(12);
            history.extend(dice.ids(more, vocab));
            all.push((request, answer));
            if history.len() + 2 >= room {
                break;
            }
        }
    }
    all
}

/// Derives honest turns, whole and cut anywhere, with each of `ways`.
fn derive_all(path: &Path, turns: &[(SequenceRequest, Answer)], ways: &[EngineOptions]) {
    let mut dice = Dice::new(turns.len() as u64);
    for options in ways {
        let mut replay = Replay::load(path, options.clone()).unwrap();
        for (at, (request, answer)) in turns.iter().enumerate() {
            let case = format!("{path:?} turn {at} {request:?} {options:?}");
            let claim = claim(request, answer);
            assert_honest(&replay.turn(&claim).unwrap(), answer, &case);
            let count = dice.below(answer.ids.len() + 1);
            let (output_ids, text) = cut(answer, count);
            let part = ClaimedTurn { output_ids, end: ClaimedEnd::Cut, ..claim };
            let found = replay.turn(&part).unwrap();
            assert_eq!((found.fault, found.text), (None, text), "{case}, cut at {count}");
            assert_eq!(found.state_digests.len(), count);
        }
    }
}

fn ways() -> Vec<EngineOptions> {
    let mut ways = Vec::new();
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for (threads, prefill_chunk) in [(1, 16), (2, 64), (3, 17), (2, 512)] {
            ways.push(EngineOptions { isa: Some(isa), threads, prefill_chunk, ..options() });
        }
    }
    ways
}

fn families(folder: &Path) -> [PathBuf; 3] {
    [
        small(folder, "LlamaForCausalLM", 1, GgmlDType::Q8_0),
        small(folder, "Qwen3ForCausalLM", 2, GgmlDType::Q5_1),
        gpt2(folder),
    ]
}

#[test]
fn an_honest_turn_is_never_refused_however_it_was_made_and_is_derived() {
    let files = tempfile::tempdir().unwrap();
    for (family, path) in families(files.path()).iter().enumerate() {
        // Made on each path, cold and warm, with drafts and without; derived on some.
        for (way, made) in ways().into_iter().enumerate() {
            let made = EngineOptions { speculation: way % 2 == 0, ..made };
            let engine = Engine::load(path, made).unwrap();
            let mut dice = Dice::new((family * 100 + way) as u64);
            let turns = conversations(&engine, &mut dice, (3, 3));
            let ways = [ways()[way].clone(), dice.one(&ways())];
            derive_all(path, &turns, &ways);
        }
    }
}

#[test]
fn turns_end_in_every_way_and_all_are_derived_on_every_path() {
    let files = tempfile::tempdir().unwrap();
    for path in families(files.path()) {
        let engine = Engine::load(&path, options()).unwrap();
        let turns = conversations(&engine, &mut Dice::new(5), (16, 3));
        let ended =
            |is: fn(&FinishReason) -> bool| turns.iter().filter(|t| is(&t.1.reason)).count();
        let counts = [
            ended(|reason| *reason == FinishReason::Stop),
            ended(|reason| matches!(reason, FinishReason::StopString(_))),
            ended(|reason| *reason == FinishReason::Length),
        ];
        assert!(counts.iter().all(|count| *count >= 2), "{counts:?}");
        derive_all(&path, &turns, &ways());
    }
}

#[test]
fn what_was_made_in_a_crowd_is_derived_alone() {
    let files = tempfile::tempdir().unwrap();
    for path in families(files.path()) {
        let crowd = EngineOptions { running_max: 5, prefill_chunk: 16, ..options() };
        let engine = Engine::load(&path, crowd).unwrap();
        let mut dice = Dice::new(9);
        let vocab = engine.info().vocab_size;
        let requests: Vec<_> = (0..12)
            .map(|_| {
                let prompt = 1 + dice.below(30);
                let prompt = dice.ids(prompt, vocab);
                dice.request(prompt, vocab)
            })
            .collect();
        let started: Vec<_> = requests
            .iter()
            .map(|request| {
                let (tap, events) = Tap::new(ROOM);
                (engine.start(request.clone(), Box::new(tap)).unwrap(), events)
            })
            .collect();
        let answers = started.iter().map(|(_handle, events)| collect(events));
        let turns: Vec<_> = requests.iter().cloned().zip(answers).collect();
        derive_all(&path, &turns, &[options()]);
    }
}

#[test]
fn a_conversation_costs_each_token_once() {
    let files = tempfile::tempdir().unwrap();
    let path = small(files.path(), "LlamaForCausalLM", 1, GgmlDType::Q8_0);
    let engine = Engine::load(&path, options()).unwrap();
    let turns = conversations(&engine, &mut Dice::new(3), (1, 4));
    assert!(turns.len() > 1);
    let mut replay = Replay::load(&path, options()).unwrap();
    let mut known = 0;
    for (request, answer) in &turns {
        let found = replay.turn(&claim(request, answer)).unwrap();
        assert_honest(&found, answer, "warm");
        assert!(found.cached_tokens as usize >= known, "{} of {known}", found.cached_tokens);
        // The last token was drawn and needs no row where nothing follows it.
        known = request.prompt_ids.len() + answer.ids.len().saturating_sub(1);
    }
}

/// Where a claim first departs from what the engine answers to its request; `None` where it
/// doesn't.
fn departure(claim: &ClaimedTurn, truth: &Answer) -> Option<usize> {
    let same = common(&claim.output_ids, &truth.ids);
    let is_whole = same == claim.output_ids.len();
    let is_end = match (claim.end, &truth.reason) {
        (ClaimedEnd::Cut, _) => true,
        (ClaimedEnd::Stop, FinishReason::Stop | FinishReason::StopString(_))
        | (ClaimedEnd::Length, FinishReason::Length) => same == truth.ids.len(),
        _ => false,
    };
    (!is_whole || !is_end).then_some(same)
}

fn common(ours: &[u32], theirs: &[u32]) -> usize {
    ours.iter().zip(theirs).take_while(|(ours, theirs)| ours == theirs).count()
}

/// That a claim's fault is where it departs from the serving engine's own answer to what is
/// claimed to have been asked. Tokens that a stop text swallows are drawn, too: a claim of some
/// of them may depart at the first or where it goes on otherwise.
fn assert_found(engine: &Engine, claim: &ClaimedTurn, replayed: &Replayed, case: &str) {
    let truth = answer(engine, claim.request.clone());
    let expected = departure(claim, &truth);
    let Some(Fault { position, claimed, found }) = &replayed.fault else {
        return assert_eq!(expected, None, "{case}");
    };
    let at = *position as usize;
    assert_eq!(*claimed, claim.output_ids.get(at).copied(), "{case}");
    match found {
        Found::End(reason) => {
            assert_eq!((Some(at), reason), (expected, &truth.reason), "{case}");
            assert_eq!(at, truth.ids.len(), "{case}");
        }
        Found::Token(drawn) => {
            assert_ne!(Some(*drawn), *claimed, "{case}");
            let free = SequenceRequest { stop: Vec::new(), ..claim.request.clone() };
            let free = answer(engine, free);
            assert_eq!((at, *drawn), (common(&claim.output_ids, &free.ids), free.ids[at]));
            let is_swallowed = matches!(truth.reason, FinishReason::StopString(_));
            assert!(Some(at) == expected || (is_swallowed && at > truth.ids.len()), "{case}");
        }
    }
}

/// Ways to claim what isn't so; each gives a claim of a request that was answered.
const CHEATS: [&str; 9] = [
    "a token is another",
    "tokens are padded",
    "tokens stand behind an end token",
    "it was cut and is said to have ended",
    "another seed",
    "another temperature",
    "another nucleus",
    "greedy",
    "a prompt's token is another",
];

fn cheat(kind: usize, honest: &ClaimedTurn, vocab: u32, dice: &mut Dice) -> ClaimedTurn {
    let mut claim = honest.clone();
    let count = claim.output_ids.len();
    let other = |id: u32, dice: &mut Dice| (id + 1 + dice.below(vocab as usize - 1) as u32) % vocab;
    match kind {
        0 => {
            let at = dice.below(count);
            claim.output_ids[at] = other(claim.output_ids[at], dice);
        }
        1 => {
            let more = 1 + dice.below(32);
            claim.output_ids.extend(dice.ids(more, vocab));
        }
        2 => {
            claim.output_ids.push(END);
            let more = dice.below(5);
            claim.output_ids.extend(dice.ids(more, vocab));
        }
        3 => {
            claim.output_ids.truncate(dice.below(count));
            claim.end = dice.one(&[ClaimedEnd::Stop, ClaimedEnd::Length]);
        }
        4 => claim.request.sampling.seed = dice.seed(),
        5 => claim.request.sampling.temperature += 0.7,
        6 => claim.request.sampling.top_p *= 0.3,
        7 => claim.request.sampling.temperature = 0.0,
        _ => {
            let at = dice.below(claim.request.prompt_ids.len());
            let id = claim.request.prompt_ids[at];
            claim.request.prompt_ids[at] = other(id, dice);
        }
    }
    claim
}

#[test]
fn every_cheat_is_found_at_its_first_token() {
    let files = tempfile::tempdir().unwrap();
    let mut found = [0; CHEATS.len()];
    for (family, path) in families(files.path()).iter().enumerate() {
        let engine = Engine::load(path, options()).unwrap();
        let mut replay = Replay::load(path, options()).unwrap();
        let vocab = engine.info().vocab_size;
        for round in 0..240u64 {
            let kind = round as usize % CHEATS.len();
            let seed = 1000 * (family as u64 + 1) + round;
            let mut dice = Dice::new(seed);
            let prompt = 2 + dice.below(20);
            let prompt = dice.ids(prompt, vocab);
            let request = dice.request(prompt, vocab);
            let honest = answer(&engine, request.clone());
            if honest.ids.is_empty() {
                continue;
            }
            let claimed = cheat(kind, &claim(&request, &honest), vocab, &mut dice);
            let case = format!("{path:?} {:?} seed {seed}: {claimed:?}", CHEATS[kind]);
            let replayed = replay.turn(&claimed).expect(&case);
            assert_found(&engine, &claimed, &replayed, &case);
            // Hidden states give a changed prompt away where the ids don't.
            let first = replayed.state_digests.first().copied();
            if CHEATS[kind].starts_with("a prompt") {
                assert_ne!(Some(first), honest.states.first().copied(), "{case}");
                found[kind] += 1;
            } else {
                found[kind] += usize::from(replayed.fault.is_some());
            }
        }
    }
    println!("{:?}", CHEATS.iter().zip(found).collect::<Vec<_>>());
    assert!(found.iter().all(|count| *count >= 15), "{found:?}");
}

#[test]
fn other_weights_and_other_quantisations_have_other_states() {
    let files = tempfile::tempdir().unwrap();
    let llama = |seed, format| small(files.path(), "LlamaForCausalLM", seed, format);
    let path = llama(1, GgmlDType::F16);
    let engine = Engine::load(&path, options()).unwrap();
    let turns = conversations(&engine, &mut Dice::new(11), (20, 2));
    let others = [
        (llama(2, GgmlDType::F16), options()),
        (llama(1, GgmlDType::Q8_0), options()),
        (llama(1, GgmlDType::Q4_0), options()),
        (llama(1, GgmlDType::F32), options()),
        (path, EngineOptions { kv_type: tally_engine::KvType::F32, ..options() }),
    ];
    for (path, options) in others {
        let mut replay = Replay::load(&path, options).unwrap();
        for (request, answer) in turns.iter().filter(|(_, answer)| !answer.ids.is_empty()) {
            let found = replay.turn(&claim(request, answer)).unwrap();
            let theirs = answer.states[..found.state_digests.len()].iter().copied();
            let is_same = found.state_digests.iter().map(|d| Some(*d)).eq(theirs);
            assert!(!is_same || found.fault.is_some(), "{path:?} {request:?}");
        }
    }
}

#[test]
fn tokens_that_a_stop_text_swallows_are_not_billed_even_where_the_client_left() {
    let files = tempfile::tempdir().unwrap();
    let path = small(files.path(), "LlamaForCausalLM", 1, GgmlDType::Q8_0);
    let engine = Engine::load(&path, options()).unwrap();
    let mut replay = Replay::load(&path, options()).unwrap();
    let mut swallowed = 0;
    for seed in 0..60 {
        let mut dice = Dice::new(seed);
        let prompt = dice.ids(5, 72);
        let request = SequenceRequest { ignore_eos: true, ..dice.request(prompt, 72) };
        let request = SequenceRequest { max_tokens: 60, ..request };
        let whole = answer(&engine, SequenceRequest { stop: Vec::new(), ..request.clone() });
        let stopped = answer(&engine, request.clone());
        if !matches!(stopped.reason, FinishReason::StopString(_)) {
            continue;
        }
        let count = stopped.ids.len();
        for end in [ClaimedEnd::Cut, ClaimedEnd::Stop, ClaimedEnd::Length] {
            let output_ids = whole.ids[..count + 1].to_vec();
            let turn = ClaimedTurn { request: request.clone(), output_ids, end };
            let fault = replay.turn(&turn).unwrap().fault.unwrap();
            assert_eq!(fault.position as usize, count, "seed {seed} {end:?}");
            assert_eq!(fault.found, Found::End(stopped.reason.clone()), "seed {seed} {end:?}");
        }
        // Where the host's bound ended the text, nobody knew that a stop text was to come.
        let bounded = SequenceRequest { max_tokens: count as u32 + 1, ..request.clone() };
        let bounded = answer(&engine, bounded);
        if bounded.reason == FinishReason::Length {
            let output_ids = bounded.ids.clone();
            let turn = ClaimedTurn { request, output_ids, end: ClaimedEnd::Exhausted };
            assert_honest(&replay.turn(&turn).unwrap(), &bounded, "exhausted");
            swallowed += 1;
        }
    }
    assert!(swallowed >= 3, "{swallowed}");
}

#[test]
fn who_left_before_the_end_has_not_read_what_stands_before_a_stop_text() {
    let files = tempfile::tempdir().unwrap();
    let path = small(files.path(), "LlamaForCausalLM", 1, GgmlDType::Q8_0);
    let engine = Engine::load(&path, options()).unwrap();
    let mut replay = Replay::load(&path, options()).unwrap();
    let mut tails = 0;
    for seed in 0..30 {
        let mut dice = Dice::new(seed);
        let prompt = dice.ids(5, 72);
        let request = SequenceRequest { ignore_eos: true, ..dice.request(prompt, 72) };
        // In one token with what stands before it.
        let request = SequenceRequest { max_tokens: 60, stop: vec!["e".into()], ..request };
        let stopped = answer(&engine, request.clone());
        let (output_ids, text) = cut(&stopped, stopped.ids.len());
        let turn = ClaimedTurn { request, output_ids, end: ClaimedEnd::Cut };
        let found = replay.turn(&turn).unwrap();
        assert_eq!((found.fault, found.text), (None, text), "seed {seed}");
        tails += usize::from(!stopped.tail.is_empty() && !stopped.ids.is_empty());
    }
    assert!(tails >= 3, "{tails}");
}

#[test]
fn what_no_engine_would_serve_is_refused() {
    let files = tempfile::tempdir().unwrap();
    let path = small(files.path(), "LlamaForCausalLM", 1, GgmlDType::Q8_0);
    let mut replay = Replay::load(&path, options()).unwrap();
    let turn = |change: &dyn Fn(&mut SequenceRequest)| {
        let mut request = crate::kit::request(vec![5, 6, 7], 10);
        change(&mut request);
        ClaimedTurn { request, output_ids: vec![9], end: ClaimedEnd::Cut }
    };
    let table: [(ClaimedTurn, &str); 6] = [
        (turn(&|r| r.prompt_ids.clear()), "no tokens"),
        (turn(&|r| r.prompt_ids = vec![5; 128]), "does not fit the context of 128"),
        (turn(&|r| r.prompt_ids[1] = 72), "not in the vocabulary"),
        (turn(&|r| r.max_tokens = 0), "max_tokens"),
        (turn(&|r| r.stop = vec![String::new()]), "empty string"),
        (turn(&|r| r.sampling.temperature = -1.0), "temperature"),
    ];
    for (turn, why) in table {
        let error = replay.turn(&turn).unwrap_err();
        assert!(matches!(error, ReplayError::Refused(_)), "{error}");
        assert!(error.to_string().contains(why), "{error}");
    }
    // An id that doesn't exist is a token that isn't drawn.
    let mut unknown = turn(&|_| {});
    unknown.output_ids = vec![72, u32::MAX];
    let fault = replay.turn(&unknown).unwrap().fault.unwrap();
    assert_eq!((fault.position, fault.claimed), (0, Some(72)));
    assert!(fault.to_string().starts_with("token 0: id 72 is claimed, id "), "{fault}");
    // Too long for this cache: that is no claim's fault, and the next turn is served.
    let tiny = EngineOptions { kv_memory_bytes: 32 << 10, ..options() };
    let mut replay = Replay::load(&path, tiny).unwrap();
    let long = ClaimedTurn { output_ids: vec![9; 110], ..turn(&|r| r.max_tokens = 120) };
    let error = replay.turn(&long).unwrap_err();
    assert!(matches!(error, ReplayError::Refused(StartError::KvBudget { .. })), "{error}");
    replay.turn(&turn(&|_| {})).unwrap();
}

#[test]
fn the_real_models_turns_are_derived_and_its_cheats_found() {
    let load = |options| Engine::load(&model_path(), options).unwrap();
    let options = EngineOptions { kv_memory_bytes: 64 << 20, ..options() };
    let engine = load(EngineOptions { prefill_chunk: 16, ..options.clone() });
    let mut replay = Replay::load(&model_path(), options).unwrap();
    let mut dice = Dice::new(21);
    let mut history = engine.encode_chat(&[user("Name three rivers.")]).unwrap();
    for round in 0..6 {
        let mut sampling = dice.sampling(engine.info().vocab_size);
        sampling.temperature = 0.4 + 0.1 * round as f32;
        let stop = if round % 2 == 0 { vec![] } else { vec![".".into(), "\n\n".into()] };
        let base = crate::kit::request(history.clone(), 40);
        let request = SequenceRequest { sampling, stop, owner: Some([1; 32]), ..base };
        let truth = answer(&engine, request.clone());
        let honest = claim(&request, &truth);
        assert_honest(&replay.turn(&honest).unwrap(), &truth, &format!("round {round}"));
        for (kind, name) in CHEATS.iter().enumerate() {
            if truth.ids.is_empty() {
                break;
            }
            let claimed = cheat(kind, &honest, engine.info().vocab_size, &mut dice);
            let found = replay.turn(&claimed).unwrap();
            assert_found(&engine, &claimed, &found, &format!("{round} {name}"));
        }
        history.extend(&truth.ids);
        history.extend(engine.encode_continuation("And three lakes?").unwrap());
    }
}
