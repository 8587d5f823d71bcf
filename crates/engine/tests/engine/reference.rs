//! The logits against independent implementations on the same file.

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use tally_engine::kv::KvPool;
use tally_engine::model::{Batch, Logits, Model, Segment};

use crate::kit::{model_path, shared};

const TEXT: &str = "The history of computing begins long before the first electronic machine. \
    Clerks kept ledgers by hand, and a mistake in one column could ruin a merchant. In 1642 \
    Blaise Pascal built a calculator for his father, a tax officer, that added numbers with \
    geared wheels. Two centuries later Charles Babbage designed an engine that could be told \
    what to do by punched cards, and Ada Lovelace saw that it might work on more than numbers.";

#[test]
fn logits_agree_with_candle_transformers() {
    let ids = shared().encode_raw(TEXT).unwrap();
    let ours = {
        let model = Model::load(&model_path(), 2, None).unwrap();
        let mut kv = KvPool::new(model.config(), 16 << 20);
        let table = kv.allocate(ids.len()).unwrap();
        let segment = Segment { tokens: &ids, start: 0, table: &table, logits: Logits::All };
        let batch = Batch { segments: vec![segment] };
        model.forward(&batch, &mut kv).unwrap().unwrap().to_vec2::<f32>().unwrap()
    };
    let mut file = std::fs::File::open(model_path()).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    let mut reference = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
    let (mut same_top, mut max_error, mut sum_error, mut nll) = (0, 0f32, 0f64, [0f64; 2]);
    for (at, ours) in ours.iter().enumerate() {
        let x = Tensor::new(&ids[at..=at], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let theirs = reference.forward(&x, at).unwrap().squeeze(0).unwrap();
        let theirs = theirs.to_vec1::<f32>().unwrap();
        same_top += usize::from(top(ours) == top(&theirs));
        for (a, b) in ours.iter().zip(&theirs) {
            max_error = max_error.max((a - b).abs());
            sum_error += f64::from((a - b).abs());
        }
        if let Some(next) = ids.get(at + 1) {
            nll[0] += surprise(ours, *next);
            nll[1] += surprise(&theirs, *next);
        }
    }
    let mean_error = sum_error / (ours.len() * ours[0].len()) as f64;
    let top_rate = same_top as f64 / ours.len() as f64;
    let perplexity = nll.map(|nll| (nll / (ids.len() - 1) as f64).exp());
    println!(
        "{} tokens: top-1 {top_rate:.3}, error max {max_error:.2} mean {mean_error:.4}, \
         perplexity ours {:.3} candle {:.3}",
        ids.len(),
        perplexity[0],
        perplexity[1]
    );
}

fn top(logits: &[f32]) -> usize {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
}

/// −ln of the probability of `id`.
fn surprise(logits: &[f32], id: u32) -> f64 {
    let max = logits.iter().fold(f32::MIN, |m, x| m.max(*x));
    let total: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    total.ln() - f64::from(logits[id as usize] - max)
}
