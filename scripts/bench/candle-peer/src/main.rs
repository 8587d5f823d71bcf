//! candle's own quantised Llama on a GGUF: prefill and decode in tokens per second, one JSON line.
//!
//! `candle-peer MODEL.gguf [prefill=512] [decode=128] [reps=3]`, with CANDLE_NUM_THREADS and
//! RAYON_NUM_THREADS set. A peer to compare with: it uses candle as its authors ship it.
use candle_core::{quantized::gguf_file, Device, IndexOp, Tensor, D};
use candle_transformers::models::quantized_llama::ModelWeights;
use std::time::Instant;
fn med(v: &mut Vec<f64>) -> f64 {
    v.sort_by(|a, b| a.partial_cmp(b).unwrap());
    v[v.len() / 2]
}
fn rss() -> String {
    std::fs::read_to_string("/proc/self/status")
        .unwrap()
        .lines()
        .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM"))
        .map(|s| s.replace(char::is_whitespace, ""))
        .collect::<Vec<_>>()
        .join(" ")
}
fn main() -> anyhow::Result<()> {
    let a: Vec<String> = std::env::args().collect();
    let (np, nd, reps) = (
        a.get(2).map_or(512, |s| s.parse().unwrap()),
        a.get(3).map_or(128, |s| s.parse().unwrap()),
        a.get(4).map_or(3, |s| s.parse().unwrap()),
    );
    let dev = Device::Cpu;
    let t = Instant::now();
    let mut f = std::io::BufReader::new(std::fs::File::open(&a[1])?);
    let ct = gguf_file::Content::read(&mut f)?;
    let mut m = ModelWeights::from_gguf(ct, &mut f, &dev)?;
    let load = t.elapsed().as_secs_f64();
    let toks: Vec<u32> = (0..np as u32).map(|i| 1000 + (i * 7919) % 40000).collect();
    let t = Instant::now();
    m.forward(&Tensor::new(&toks[..4], &dev)?.unsqueeze(0)?, 0)?;
    let first = t.elapsed().as_secs_f64();
    let (mut pp, mut tg) = (vec![], vec![]);
    for _ in 0..reps {
        m.clear_kv_cache();
        let t = Instant::now();
        m.forward(&Tensor::new(&toks[..], &dev)?.unsqueeze(0)?, 0)?;
        pp.push(np as f64 / t.elapsed().as_secs_f64());
        m.clear_kv_cache();
        let mut tok = 1u32; // like llama-bench tg: decode from an empty context
        let t = Instant::now();
        for i in 0..nd {
            let l = m.forward(&Tensor::new(&[tok], &dev)?.unsqueeze(0)?, i)?;
            tok = l.i(0)?.argmax(D::Minus1)?.to_scalar::<u32>()?;
        }
        tg.push(nd as f64 / t.elapsed().as_secs_f64());
    }
    let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_default();
    let (pp, tg, rss) = (med(&mut pp), med(&mut tg), rss());
    println!(
        "{{\"threads\":{threads:?},\"load_s\":{load:.3},\"first4_s\":{first:.3},\
         \"pp\":{pp:.1},\"tg\":{tg:.1},\"rss\":{rss:?}}}"
    );
    Ok(())
}
