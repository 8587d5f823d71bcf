//! The logits against candle-transformers' quantised Llama on the same file.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use tally_engine::Isa;
use tally_engine::kv::KvPool;
use tally_engine::model::{Batch, Logits, Model, Segment};

fn model_path() -> PathBuf {
    std::env::var_os("TALLY_TEST_MODEL")
        .expect("TALLY_TEST_MODEL must name SmolLM2-135M-Instruct.Q4_1.gguf")
        .into()
}

#[test]
fn smoke() {
    let model = Model::load(&model_path(), 2, None).unwrap();
    let mut kv = KvPool::new(model.config(), 64 << 20);
    let table = kv.allocate(64).unwrap();
    let ids: Vec<u32> =
        vec![1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519];
    let mut reference = {
        let mut file = std::fs::File::open(model_path()).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap()
    };
    for n in 0..ids.len() {
        let segment =
            Segment { tokens: &ids[n..n + 1], start: n, table: &table, logits: Logits::Last };
        let batch = Batch { segments: vec![segment] };
        let ours = model.forward(&batch, &mut kv).unwrap().unwrap();
        let ours = ours.to_vec2::<f32>().unwrap().remove(0);
        let x = Tensor::new(&ids[n..n + 1], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = reference.forward(&x, n).unwrap().to_vec2::<f32>().unwrap().remove(0);
        let top = |v: &[f32]| (0..v.len()).max_by(|a, b| v[*a].total_cmp(&v[*b])).unwrap();
        let max = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        println!(
            "{n}: ours {} theirs {} max err {max} logit {}",
            top(&ours),
            top(&theirs),
            theirs[top(&theirs)]
        );
    }
    let t = std::time::Instant::now();
    for n in 0..50 {
        let segment =
            Segment { tokens: &ids[0..1], start: 13 + n, table: &table, logits: Logits::Last };
        model.forward(&Batch { segments: vec![segment] }, &mut kv).unwrap().unwrap();
    }
    println!("decode {:?} a token", t.elapsed() / 50);
}

#[test]
fn debug_prefill() {
    let ids: Vec<u32> = vec![
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411,
        407, 19712, 8182, 2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1,
        520, 9531, 198,
    ];
    let mut reference = {
        let mut file = std::fs::File::open(model_path()).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap()
    };
    let top = |v: &[f32]| (0..v.len()).max_by(|a, b| v[*a].total_cmp(&v[*b])).unwrap();
    let mut logits = vec![];
    for n in 0..ids.len() {
        let x = Tensor::new(&ids[n..n + 1], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        logits = reference.forward(&x, n).unwrap().to_vec2::<f32>().unwrap().remove(0);
    }
    let mut out = vec![];
    for n in 0..20 {
        let id = top(&logits) as u32;
        out.push(id);
        let x = Tensor::new(&[id], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        logits = reference.forward(&x, ids.len() + n).unwrap().to_vec2::<f32>().unwrap().remove(0);
    }
    println!("candle {out:?}");
    for isa in [Isa::Avx512Vnni, Isa::Avx2, Isa::Scalar] {
        let model = Model::load(&model_path(), 2, Some(isa)).unwrap();
        for chunk in [1, 7, 8, 64] {
            let mut kv = KvPool::new(model.config(), 64 << 20);
            let table = kv.allocate(64).unwrap();
            let mut all: Vec<u32> = ids.clone();
            let mut start = 0;
            let mut last = vec![];
            while all.len() < ids.len() + 20 {
                let end = (start + chunk).min(all.len());
                let segment = Segment {
                    tokens: &all[start..end],
                    start,
                    table: &table,
                    logits: Logits::Last,
                };
                last = model
                    .forward(&Batch { segments: vec![segment] }, &mut kv)
                    .unwrap()
                    .unwrap()
                    .to_vec2::<f32>()
                    .unwrap()
                    .remove(0);
                start = end;
                if end == all.len() {
                    all.push(top(&last) as u32);
                }
            }
            let sum =
                last.iter().fold(0u64, |h, x| h.wrapping_mul(31).wrapping_add(x.to_bits() as u64));
            println!("{isa:?} {chunk} {sum:x} {:?}", &all[ids.len()..]);
        }
    }
}
