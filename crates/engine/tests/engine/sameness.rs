//! The same bits whatever the instruction set, threads, chunks and neighbours.

use sha3::{Digest, Keccak256};
use tally_engine::kv::{KvCache, KvPool};
use tally_engine::model::{Batch, Logits, Model, Segment};
use tally_engine::{Engine, EngineOptions, Isa, Sampling, SequenceRequest};

use crate::kit::{Tap, answer, collect, load, model_path, options, request, shared};

const TEXT: &str = "Tally counts every token that it delivers, records it, and claims it on \
    chain once a hundred are there. 1234567890 is a number; 中文 and é are text.";

/// Keccak-256 of the logits' bits of [`TEXT`]'s first 36 ids, row by row, little-endian. Any other
/// value is another engine: raise `ENGINE_SPEC_VERSION` and say why.
const GOLDEN_LOGITS: &str = "fca65fbd15ca550e8c8cc43d939486393e8ba93ab5b1d9360b517ab6ccca4cb8";

/// Keccak-256 of the ids that four seeded sequences are answered with, little-endian.
const GOLDEN_IDS: &str = "87eca12418bc86b1af4aeaeb3fe32396cb258ab772619c20ff0f21a8f5dad4e4";

fn digest(values: impl IntoIterator<Item = u32>) -> String {
    let mut hash = Keccak256::new();
    values.into_iter().for_each(|value| hash.update(value.to_le_bytes()));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Digest of the logits of every row of `ids`, read in chunks of `chunk`.
fn logits(model: &mut Model, ids: &[u32], chunk: usize) -> String {
    let mut kv = KvPool::new(model.config(), 16 << 20);
    // Blocks in another order than usual: the table must not matter.
    let spacer = kv.allocate(chunk).unwrap();
    let table = kv.allocate(ids.len()).unwrap();
    kv.release(spacer);
    let mut rows = Vec::new();
    for (i, tokens) in ids.chunks(chunk).enumerate() {
        let start = i * chunk;
        let segment = Segment { tokens, start, table: &table, logits: Logits::All };
        let batch = Batch { segments: vec![segment] };
        rows.extend(model.forward(&batch, &mut kv).unwrap().iter().map(|x| x.to_bits()));
    }
    digest(rows)
}

/// The same digest where the first `known` ids are in the cache already, left there by a sequence
/// that went another way after them.
fn warm_logits(model: &mut Model, ids: &[u32], chunk: usize, known: usize) -> String {
    let mut cache = KvCache::new(KvPool::new(model.config(), 16 << 20));
    let vocab = model.config().vocab_size;
    let mut other = ids[..known].to_vec();
    other.extend([2000; 20]);
    let mut rows = Vec::new();
    for (ids, found, wanted) in [(other.as_slice(), 0, known), (ids, known, usize::MAX)] {
        let (table, cached) = cache.begin(Some([1; 32]), ids, ids.len()).unwrap();
        assert_eq!(cached, found);
        let mut start = cached;
        for tokens in ids[cached..].chunks(chunk) {
            let segment = Segment { tokens, start, table: &table, logits: Logits::All };
            let batch = Batch { segments: vec![segment] };
            let out = model.forward(&batch, &mut cache.pool).unwrap();
            let rows_wanted = wanted.saturating_sub(start).min(tokens.len());
            rows.extend(out[..rows_wanted * vocab].iter().map(|x| x.to_bits()));
            start += tokens.len();
        }
        cache.end(table, ids);
    }
    digest(rows)
}

#[test]
fn logits_are_the_same_bits_on_every_path() {
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
                let found = logits(&mut model, ids, *chunk);
                assert_eq!(found, GOLDEN_LOGITS, "{isa:?}, {threads} threads, chunks of {chunk}");
            }
            // Whole blocks, parts of one, and all but the last.
            let warm: &[usize] =
                if isa == Isa::Scalar || *threads != 2 { &[25] } else { &[1, 16, 35] };
            for known in warm {
                let found = warm_logits(&mut model, ids, 7, *known);
                assert_eq!(found, GOLDEN_LOGITS, "{isa:?}, {threads} threads, {known} cached");
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
            let mut ids = Vec::new();
            for request in requests {
                let found = if is_warm { request.prompt_ids.len() - 1 } else { 0 };
                let answer = answer(&engine, request);
                assert!(answer.cached as usize >= found, "{answer:?}");
                ids.extend(answer.ids);
            }
            assert_eq!(digest(ids), GOLDEN_IDS, "{threads} threads, warm: {is_warm}");
        }
    }
}

#[test]
fn a_sequence_is_the_same_alone_and_among_others() {
    let engine = shared();
    let requests = four(&engine);
    let alone: Vec<_> = requests.iter().map(|r| answer(&engine, r.clone())).collect();
    assert_eq!(digest(alone.iter().flat_map(|answer| answer.ids.clone())), GOLDEN_IDS);
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
