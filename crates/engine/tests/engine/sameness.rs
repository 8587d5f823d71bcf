//! The same bits whatever the instruction set, threads, chunks and neighbours.

use tally_engine::config::ModelConfig;
use tally_engine::kv::{KvCache, KvPool, KvType};
use tally_engine::model::{Batch, Logits, Model, Outputs, Segment};
use tally_engine::{Engine, EngineOptions, Isa, Sampling, SequenceRequest};

use crate::golden::{
    GOLDEN_ANSWER_STATES, GOLDEN_IDS, GOLDEN_LOGITS, GOLDEN_LOGITS_F32, GOLDEN_STATES, TEXT, digest,
};
use crate::kit::{Answer, Tap, answer, collect, load, model_path, options, request, shared};

/// Digest of the hidden states that the answers' tokens were drawn from.
fn digest_of_states<'a>(answers: impl IntoIterator<Item = &'a Answer>) -> String {
    let states = answers.into_iter().flat_map(|answer| &answer.states);
    let words = states.flat_map(|state| {
        let (words, _) = state.as_ref().expect("a canonical engine").as_chunks::<4>();
        words.iter().map(|word| u32::from_le_bytes(*word))
    });
    digest(words)
}

/// Bits of states and logits, row by row.
#[derive(Default)]
struct Bits {
    states: Vec<u32>,
    logits: Vec<u32>,
}

impl Bits {
    /// Adds the first `rows` rows.
    fn add(&mut self, out: &Outputs<'_>, rows: usize, config: &ModelConfig) {
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        self.states.extend(bits(&out.states[..rows * config.width]));
        self.logits.extend(bits(&out.logits[..rows * config.vocab_size]));
    }

    fn check(self, way: &str) {
        assert_eq!(digest(self.states), GOLDEN_STATES, "{way}");
        assert_eq!(digest(self.logits), GOLDEN_LOGITS, "{way}");
    }
}

/// States and logits of every row of `ids`, read in chunks of `chunk`.
fn cold(model: &mut Model, kv_type: KvType, ids: &[u32], chunk: usize) -> Bits {
    let config = model.config().clone();
    let mut kv = KvPool::of_type(&config, kv_type, 16 << 20);
    // Blocks in another order than usual: the table must not matter.
    let spacer = kv.allocate(chunk).unwrap();
    let table = kv.allocate(ids.len()).unwrap();
    kv.release(spacer);
    let mut bits = Bits::default();
    for (i, tokens) in ids.chunks(chunk).enumerate() {
        let start = i * chunk;
        let segment = Segment { tokens, start, table: &table, logits: Logits::All };
        let batch = Batch { segments: vec![segment] };
        bits.add(&model.forward(&batch, &mut kv).unwrap(), tokens.len(), &config);
    }
    bits
}

/// The same where the first `known` ids are in the cache already, left there by a sequence
/// that went another way after them.
fn warm(model: &mut Model, ids: &[u32], chunk: usize, known: usize) -> Bits {
    let config = model.config().clone();
    let mut cache = KvCache::new(KvPool::new(model.config(), 16 << 20));
    let mut other = ids[..known].to_vec();
    other.extend([2000; 20]);
    let mut bits = Bits::default();
    for (ids, found, wanted) in [(other.as_slice(), 0, known), (ids, known, usize::MAX)] {
        let (table, cached) = cache.begin(Some([1; 32]), ids, ids.len()).unwrap();
        assert_eq!(cached, found);
        let mut start = cached;
        for tokens in ids[cached..].chunks(chunk) {
            let segment = Segment { tokens, start, table: &table, logits: Logits::All };
            let batch = Batch { segments: vec![segment] };
            let out = model.forward(&batch, &mut cache.pool).unwrap();
            bits.add(&out, wanted.saturating_sub(start).min(tokens.len()), &config);
            start += tokens.len();
        }
        cache.end(table, ids);
    }
    bits
}

#[test]
fn states_and_logits_are_the_same_bits_on_every_path() {
    let ids = shared().encode_raw(TEXT).unwrap();
    let ids = &ids[..36];
    for isa in Isa::ALL {
        if !isa.is_available() {
            println!("NOT RUN here: this processor has no {isa:?}");
            continue;
        }
        let threads: &[usize] = if isa == Isa::Scalar { &[2] } else { &[1, 2, 3] };
        for threads in threads {
            let mut model = Model::load(&model_path(), *threads, Some(isa)).unwrap();
            let chunks: &[usize] = if isa == Isa::Scalar { &[7] } else { &[1, 7, 64] };
            for chunk in chunks {
                let way = format!("{isa:?}, {threads} threads, chunks of {chunk}");
                cold(&mut model, KvType::F16, ids, *chunk).check(&way);
            }
            let logits = cold(&mut model, KvType::F32, ids, 7).logits;
            assert_eq!(digest(logits), GOLDEN_LOGITS_F32, "{isa:?}, {threads} threads, in f32");
            // Whole blocks, parts of one, and all but the last.
            let warm_tokens: &[usize] =
                if isa == Isa::Scalar || *threads != 2 { &[25] } else { &[1, 16, 35] };
            for known in warm_tokens {
                let way = format!("{isa:?}, {threads} threads, {known} cached");
                warm(&mut model, ids, 7, *known).check(&way);
            }
        }
    }
}

/// The four seeded sequences of [`GOLDEN_IDS`].
fn four(engine: &Engine) -> Vec<SequenceRequest> {
    let seeded = |i: u8| {
        let prompt = engine.encode_raw(&TEXT[usize::from(i) * 7..]).unwrap();
        let sampling = Sampling { temperature: 0.7, seed: [i; 32], ..Sampling::greedy() };
        SequenceRequest { sampling, ..request(prompt, 30) }
    };
    (0..4).map(seeded).collect()
}

#[test]
fn a_sequence_is_the_same_cold_and_warm() {
    for threads in [1, 2, 3] {
        let engine = load(EngineOptions { threads, ..options() });
        for is_warm in [false, true] {
            let owner = Some([1; 32]);
            let requests = four(&engine).into_iter().map(|r| SequenceRequest { owner, ..r });
            let mut answers = Vec::new();
            for request in requests {
                let found = if is_warm { request.prompt_ids.len() - 1 } else { 0 };
                let answer = answer(&engine, request);
                assert!(answer.cached as usize >= found, "{answer:?}");
                answers.push(answer);
            }
            let ids = answers.iter().flat_map(|answer| answer.ids.clone());
            assert_eq!(digest(ids), GOLDEN_IDS, "{threads} threads, warm: {is_warm}");
            assert_eq!(digest_of_states(&answers), GOLDEN_ANSWER_STATES);
        }
    }
}

#[test]
fn a_sequence_is_the_same_alone_and_among_others() {
    let engine = shared();
    let requests = four(&engine);
    let alone: Vec<_> = requests.iter().map(|r| answer(&engine, r.clone())).collect();
    assert_eq!(digest(alone.iter().flat_map(|answer| answer.ids.clone())), GOLDEN_IDS);
    assert_eq!(digest_of_states(&alone), GOLDEN_ANSWER_STATES);
    let crowd = load(EngineOptions { prefill_chunk: 16, threads: 3, ..options() });
    let started: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let (tap, events) = Tap::new(usize::MAX / 2);
            (crowd.start(request, Box::new(tap)).unwrap(), events)
        })
        .collect();
    for ((_handle, events), alone) in started.iter().zip(alone) {
        assert_eq!(collect(events), alone);
    }
}
