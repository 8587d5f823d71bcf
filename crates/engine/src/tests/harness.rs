//! Fixtures, models that are made wrong on purpose, and the line that each checkpoint prints.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::kernels::{Cpu, Isa};
use crate::kv::{BlockTable, KvPool, KvType, Memory};
use crate::model::{Batch, Logits, Model, Segment};
use crate::probe::{Probe, Stage};

/// A fixture's file.
pub fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

pub fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(fixture(name)).unwrap()).unwrap()
}

pub fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

pub fn cpu() -> Cpu {
    Cpu::new(Isa::best()).unwrap()
}

/// Tensors by name: weights, or what hooks took.
#[derive(Clone)]
pub struct Tensors(pub BTreeMap<String, Tensor>);

impl Tensors {
    /// Those of a fixture, as f32.
    pub fn of(name: &str) -> Tensors {
        let all = candle_core::safetensors::load(fixture(name), &Device::Cpu).unwrap();
        let f32s = all.into_iter().map(|(name, t)| (name, t.to_dtype(DType::F32).unwrap()));
        Tensors(f32s.collect())
    }

    pub fn get(&self, name: &str) -> Vec<f32> {
        let tensor = self.0.get(name).unwrap_or_else(|| panic!("the fixture has no {name}"));
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    /// Changes the values of all tensors whose name ends with `end`; there is one at least.
    pub fn change(&mut self, end: &str, change: impl Fn(&mut Vec<f32>)) {
        let mut count = 0;
        for (_, tensor) in self.0.iter_mut().filter(|(name, _)| name.ends_with(end)) {
            let mut values = tensor.flatten_all().unwrap().to_vec1().unwrap();
            change(&mut values);
            *tensor = Tensor::from_vec(values, tensor.dims(), &Device::Cpu).unwrap();
            count += 1;
        }
        assert!(count > 0, "no tensor ends with {end}");
    }

    /// Swaps each tensor whose name ends with `a` with its neighbour that ends with `b`.
    pub fn swap(&mut self, a: &str, b: &str) {
        let names: Vec<String> = self.0.keys().filter(|name| name.ends_with(a)).cloned().collect();
        assert!(!names.is_empty(), "no tensor ends with {a}");
        for name in names {
            let other = format!("{}{b}", name.strip_suffix(a).unwrap());
            let (one, two) = (self.0[&name].clone(), self.0[&other].clone());
            self.0.insert(name, two);
            self.0.insert(other, one);
        }
    }

    /// Replaces the values of matrices whose name ends with `end` by those of their transpose,
    /// under the shape that they had.
    pub fn transpose(&mut self, end: &str) {
        let mut count = 0;
        for (_, tensor) in self.0.iter_mut().filter(|(name, _)| name.ends_with(end)) {
            let turned = tensor.t().unwrap().contiguous().unwrap();
            *tensor = turned.reshape(tensor.dims()).unwrap();
            count += 1;
        }
        assert!(count > 0, "no tensor ends with {end}");
    }

    /// Lays a model's folder out as HuggingFace does.
    pub fn lay_out(&self, config: &Value) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let tensors = self.0.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let path = folder.path().join("model.safetensors");
        candle_core::safetensors::save(&tensors, path).unwrap();
        folder
    }

    /// The model of these weights, on two threads.
    pub fn model(&self, config: &Value) -> Model {
        let folder = self.lay_out(config);
        Model::load(folder.path(), 2, None).unwrap()
    }

    /// Why there is no such model.
    pub fn refusal(&self, config: &Value) -> String {
        let folder = self.lay_out(config);
        Model::load(folder.path(), 2, None).map(|_| ()).unwrap_err().to_string()
    }
}

/// What was seen of one forward pass.
pub type Seen = BTreeMap<(Stage, usize), Vec<f32>>;

/// Sees everything, and lets somebody change it.
struct Watch<'a> {
    seen: Seen,
    change: &'a mut dyn FnMut(Stage, usize, &mut [f32]),
}

impl Probe for Watch<'_> {
    fn see(&mut self, stage: Stage, layer: usize, values: &mut [f32]) {
        self.seen.insert((stage, layer), values.to_vec());
        (self.change)(stage, layer, values);
    }
}

/// A pool of single precision with a table for `tokens`, its blocks in another order than usual.
pub fn pool(model: &Model, kv_type: KvType, tokens: usize) -> (KvPool, BlockTable) {
    let bytes = KvPool::block_bytes(model.config(), kv_type) * 16;
    let mut kv = KvPool::of_type(model.config(), kv_type, bytes);
    let spacer = kv.allocate(17).unwrap();
    let table = kv.allocate(tokens).unwrap();
    kv.release(spacer);
    (kv, table)
}

/// One forward pass over `ids`, from `start` on.
pub fn step(
    model: &mut Model,
    (kv, table): (&mut KvPool, &BlockTable),
    (ids, start): (&[u32], usize),
    change: &mut dyn FnMut(Stage, usize, &mut [f32]),
) -> Seen {
    let segment = Segment { tokens: ids, start, table, logits: Logits::All };
    let mut watch = Watch { seen: Seen::new(), change };
    let batch = Batch { segments: vec![segment] };
    model.forward_seen(&batch, kv, &mut watch).unwrap();
    watch.seen
}

/// All of `ids` at once, keys and values in single precision.
pub fn run(
    model: &mut Model,
    ids: &[u32],
    change: &mut dyn FnMut(Stage, usize, &mut [f32]),
) -> (Seen, KvPool, BlockTable) {
    let (mut kv, table) = pool(model, KvType::F32, ids.len());
    let seen = step(model, (&mut kv, &table), (ids, 0), change);
    (seen, kv, table)
}

/// The cells of a pool in single precision.
pub fn cells(kv: &KvPool) -> &[f32] {
    match &kv.memory {
        Memory::F32(cells) => cells,
        Memory::F16(_) => panic!("single precision is needed"),
    }
}

/// The first id with the largest logit.
pub fn argmax(logits: &[f32]) -> u32 {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, better) as u32
}

/// Writes the two files that GPT-2's tokenizer was published as, for what a `tokenizer.json`
/// says.
pub fn write_vocabulary(folder: &Path, described: &Value) {
    let merges = described["model"]["merges"].as_array().unwrap().iter().map(|merge| match merge {
        Value::String(merge) => merge.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    });
    let merges = merges.collect::<Vec<_>>().join("\n");
    std::fs::write(folder.join("merges.txt"), format!("#version: 0.2\n{merges}\n")).unwrap();
    let vocabulary = described["model"]["vocab"].to_string();
    std::fs::write(folder.join("vocab.json"), vocabulary).unwrap();
}

/// Changes nothing.
pub fn unchanged(_: Stage, _: usize, _: &mut [f32]) {}

/// The largest difference; infinite where the numbers are not as many, or not numbers.
pub fn difference(ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::INFINITY;
    }
    let each = ours.iter().zip(theirs).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    each.fold(0.0, |max, d| if d.is_nan() { f64::INFINITY } else { f64::max(max, d) })
}

/// How many of two lists differ in their bits.
pub fn bits_that_differ(ours: &[f32], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).filter(|(a, b)| a.to_bits() != b.to_bits()).count() as f64
}

/// What a checkpoint has found.
pub struct Checkpoint {
    name: &'static str,
    allowed: f64,
    found: f64,
    parts: Vec<(String, f64)>,
    negatives: Vec<(String, f64)>,
}

impl Checkpoint {
    /// One that allows a difference of `allowed`; of 0 where bits or ids must be equal, and
    /// differences are then their number.
    pub fn new(name: &'static str, allowed: f64) -> Checkpoint {
        Checkpoint { name, allowed, found: 0.0, parts: Vec::new(), negatives: Vec::new() }
    }

    /// A stage, or a part of one, and by how much it differs.
    pub fn part(&mut self, name: &str, difference: f64) {
        assert!(difference >= 0.0, "{}, {name}: nothing was compared ({difference})", self.name);
        self.found = self.found.max(difference);
        match self.parts.iter_mut().find(|(known, _)| known == name) {
            Some((_, known)) => *known = known.max(difference),
            None => self.parts.push((name.into(), difference)),
        }
    }

    /// Something wrong on purpose, and by how much it differs. Infinity is no difference: it
    /// says that the two sides could not be compared.
    pub fn negative(&mut self, name: &str, difference: f64) {
        let what = format!("{}, {name}: nothing was compared ({difference})", self.name);
        assert!(difference >= 0.0 && difference.is_finite(), "{what}");
        self.negatives.push((name.into(), difference));
    }

    /// Prints the line, whether or not the harness captures what tests print, and judges.
    pub fn finish(self) {
        let is_whole = !self.parts.is_empty() && !self.negatives.is_empty();
        assert!(is_whole, "{}: a part and a negative are needed", self.name);
        let list = |of: &[(String, f64)]| {
            let each = of.iter().map(|(name, d)| format!("{name} {d:.2e}"));
            each.collect::<Vec<_>>().join(", ")
        };
        // Where something exact is wrong, one difference is enough.
        let needed = if self.allowed == 0.0 { 1.0 } else { 10.0 * self.allowed };
        let is_right = self.found <= self.allowed;
        let weak: Vec<_> = self.negatives.iter().filter(|(_, d)| *d < needed).collect();
        let line = format!(
            "checkpoint {}: difference {:.2e}, allowed {:.0e}: {} ({}); wrong on purpose: {}{}\n",
            self.name,
            self.found,
            self.allowed,
            if is_right { "ok" } else { "TOO LARGE" },
            list(&self.parts),
            if weak.is_empty() { "" } else { "TOO CLOSE " },
            list(&self.negatives),
        );
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        assert!(is_right, "{line}");
        assert!(weak.is_empty(), "{weak:?} must be {needed:.1e} at least");
    }
}
