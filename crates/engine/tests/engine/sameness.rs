//! The same bits whatever the instruction set, threads, chunks and neighbours.

use tally_engine::kv::KvPool;
use tally_engine::model::{Batch, Logits, Model, Segment};
use tally_engine::{EngineOptions, Isa, Sampling, SequenceRequest};

use crate::kit::{Tap, answer, collect, load, model_path, options, request, shared};

const TEXT: &str = "Tally counts every token that it delivers, records it, and claims it on \
    chain once a hundred are there. 1234567890 is a number; 中文 and é are text.";

/// Logits of every row of `ids`, read in chunks of `chunk`.
fn logits(model: &Model, ids: &[u32], chunk: usize) -> Vec<Vec<u32>> {
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
        let out = model.forward(&batch, &mut kv).unwrap().unwrap().to_vec2::<f32>().unwrap();
        rows.extend(out.into_iter().map(|row| row.into_iter().map(f32::to_bits).collect()));
    }
    rows
}

#[test]
fn logits_are_the_same_bits_on_every_path() {
    let ids = shared().encode_raw(TEXT).unwrap();
    let ids = &ids[..36];
    let first = logits(&Model::load(&model_path(), 1, None).unwrap(), ids, ids.len());
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let threads: &[usize] = if isa == Isa::Scalar { &[2] } else { &[1, 2, 3] };
        for threads in threads {
            let model = Model::load(&model_path(), *threads, Some(isa)).unwrap();
            let chunks: &[usize] = if isa == Isa::Scalar { &[36] } else { &[1, 7, 64] };
            for chunk in chunks {
                let found = logits(&model, ids, *chunk);
                assert!(found == first, "{isa:?}, {threads} threads, chunks of {chunk}");
            }
        }
    }
}

#[test]
fn a_sequence_is_the_same_alone_and_among_others() {
    let engine = shared();
    let requests: Vec<SequenceRequest> = (0..4u8)
        .map(|i| {
            let prompt = engine.encode_raw(&TEXT[usize::from(i) * 7..]).unwrap();
            let sampling = Sampling { temperature: 0.7, seed: [i; 32], ..Sampling::greedy() };
            SequenceRequest { sampling, ..request(prompt, 30) }
        })
        .collect();
    let alone: Vec<_> = requests.iter().map(|r| answer(&engine, r.clone())).collect();
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
