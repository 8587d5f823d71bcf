//! The same bits whatever the instruction set, threads, chunks and neighbours.

use sha3::{Digest, Keccak256};
use tally_engine::kv::KvPool;
use tally_engine::model::{Batch, Logits, Model, Segment};
use tally_engine::{EngineOptions, Isa, Sampling, SequenceRequest};

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
