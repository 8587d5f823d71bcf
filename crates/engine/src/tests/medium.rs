//! A random model of gpt2-medium's full shape: 24 layers of 1024, 16 heads, 50 257 tokens.
//!
//! Its weights are drawn anew, as the script draws them, and rounded to half precision; what the
//! script stored is the last row of HuggingFace's stages in the first and the last layer.

use std::sync::{Mutex, MutexGuard, OnceLock};

use serde_json::Value;

use super::answers::{greedy, wrong};
use super::cache::{read_back, written};
use super::gpt2::least;
use super::harness::{
    Checkpoint, Seen, Tensors, argmax, bits_that_differ, cells, cpu, difference, ids, json, pool,
    run, unchanged,
};
use super::negatives::erf_gelu;
use super::sampling::probabilities;
use super::small::{drawn, part_of, shapes};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::files::{Order, turned};
use crate::gpt2;
use crate::kernels::attention::RowPlace;
use crate::kernels::attention::tests::{Looked, looked};
use crate::kernels::blocks::Format;
use crate::kernels::memory::Arena;
use crate::kernels::pack::PackedMatrix;
use crate::kernels::threads::Crew;
use crate::kv::{KvPool, KvType};
use crate::model::{Batch, Logits, Model, Segment};
use crate::probe::Stage;
use crate::weights::{Naming, Source};

const WIDTH: usize = 1024;
const HEADS: usize = 16;
const VOCAB: usize = 50257;
const LAYERS: usize = 24;
/// Layers whose stages the fixture has.
const ENDS: [usize; 2] = [0, LAYERS - 1];

/// Weights that are made as they are asked for: 355 million of them fit no repository.
struct Drawn {
    names: Vec<(String, Vec<usize>)>,
    arena: Arena,
}

impl Drawn {
    /// The halves of a tensor, as a file of this shape would hold them.
    fn halves(&self, name: &str, shape: &[usize]) -> Vec<u8> {
        let is_there = self.names.iter().any(|(known, found)| known == name && found == shape);
        assert!(is_there, "{name} is no {shape:?}");
        let mut bytes = Vec::with_capacity(shape.iter().product::<usize>() * 2);
        for value in drawn(name, shape) {
            bytes.extend_from_slice(&half::f16::from_f32(value).to_le_bytes());
        }
        bytes
    }
}

fn singles(halves: &[u8]) -> Vec<f32> {
    let halves = halves.as_chunks::<2>().0.iter();
    halves.map(|bytes| half::f16::from_le_bytes(*bytes).to_f32()).collect()
}

impl Source for Drawn {
    fn naming(&self) -> Naming {
        Naming::HuggingFace
    }
    fn names(&self) -> Vec<String> {
        self.names.iter().map(|(name, _)| name.clone()).collect()
    }
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|(known, _)| known == name)
    }
    fn matrix(
        &self,
        name: &str,
        (rows, cols): (usize, usize),
        order: Order,
    ) -> Result<PackedMatrix, LoadError> {
        let raw = match order {
            Order::RowsFirst => self.halves(name, &[rows, cols]),
            Order::ColsFirst => turned(&self.halves(name, &[cols, rows]), (rows, cols), 2),
        };
        Ok(PackedMatrix::pack(Format::F16, (rows, cols), &raw, &self.arena).unwrap())
    }
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, LoadError> {
        Ok(singles(&self.halves(name, &[len])))
    }
}

/// The model, what HuggingFace's computed, and the positions' rows.
struct Medium {
    model: Model,
    theirs: Theirs,
    positions: Vec<f32>,
}

struct Theirs {
    fixture: Value,
    ids: Vec<u32>,
    tensors: Tensors,
}

/// The one model of all tests here, which take turns: it has 710 MB.
fn medium() -> MutexGuard<'static, Medium> {
    static MEDIUM: OnceLock<Mutex<Medium>> = OnceLock::new();
    let made = MEDIUM.get_or_init(|| {
        let fixture = json("checkpoints/medium.json");
        let names = shapes(&fixture["config"]);
        let count = names.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>();
        assert_eq!(count, 354_823_168, "gpt2-medium's parameters");
        let source = Drawn { names, arena: Arena::default() };
        let config = ModelConfig::from_hf(&fixture["config"]).unwrap();
        assert_eq!((config.layers, config.width, config.query_heads), (LAYERS, WIDTH, HEADS));
        assert_eq!((config.head_dim, config.ff_width), (64, 4096));
        assert_eq!((config.vocab_size, config.context_length), (VOCAB, 1024));
        let crew = Crew { count: 2, is_pinned: false };
        let model = Model::own(&source, config, (cpu(), crew)).unwrap();
        let positions = singles(&source.halves("transformer.wpe.weight", &[1024, WIDTH]));
        let tensors = Tensors::of("checkpoints/medium.safetensors");
        let theirs = Theirs { ids: ids(&fixture["ids"]), fixture, tensors };
        Mutex::new(Medium { model, theirs, positions })
    });
    // A test that failed has said so itself.
    made.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Theirs {
    /// The last row of a stage.
    fn last(&self, stage: Stage, layer: usize) -> Vec<f32> {
        let get = |part: &str| self.tensors.get(&format!("h.{layer}.{part}"));
        match (stage, part_of(stage)) {
            (Stage::State, _) => self.tensors.get("ln_f"),
            (Stage::Qkv, _) => ["query", "key", "value"].map(get).concat(),
            (_, Some(part)) => get(part),
            (other, None) => panic!("{other:?} is not stored"),
        }
    }

    /// Everything that goes into the last layer.
    fn last_input(&self) -> Vec<f32> {
        self.tensors.get(&format!("h.{}.out", LAYERS - 2))
    }

    /// Runs the model from HuggingFace's own values: its stream in all rows of the last layer,
    /// and in both layers its last row of every stage, after which `change` comes.
    fn forced(
        &self,
        model: &mut Model,
        change: &mut dyn FnMut(Stage, usize, &mut [f32]),
    ) -> (Seen, KvPool, crate::kv::BlockTable) {
        let mut both = |stage: Stage, layer: usize, values: &mut [f32]| {
            let is_stored = stage == Stage::Qkv || part_of(stage).is_some();
            if stage == Stage::Out && layer == LAYERS - 2 {
                values.copy_from_slice(&self.last_input());
            } else if ENDS.contains(&layer) && is_stored {
                let last = self.last(stage, layer);
                let at = values.len() - last.len();
                values[at..].copy_from_slice(&last);
            }
            change(stage, layer, values);
        };
        run(model, &self.ids, &mut both)
    }

    /// By how much the last row of a stage differs.
    fn of_layer(&self, seen: &Seen, stage: Stage, layer: usize) -> f64 {
        let (ours, theirs) = (&seen[&(stage, layer)], self.last(stage, layer));
        difference(&ours[ours.len() - theirs.len()..], &theirs)
    }

    fn apart(&self, seen: &Seen, stage: Stage) -> [f64; 2] {
        ENDS.map(|layer| self.of_layer(seen, stage, layer))
    }

    /// Scores and weights of the last row, from HuggingFace's query.
    fn attended(&self, model: &Model, (kv, blocks): (&KvPool, &[u32]), layer: usize) -> [f64; 2] {
        let (rows, qkv) = (self.ids.len(), self.last(Stage::Qkv, layer));
        let (places, tables) = ([RowPlace { position: rows - 1, sequence: 0 }], [blocks]);
        let asked = gpt2::rows(model.config(), (&places, &tables), kv.layer_at(layer));
        let theirs = ["scores", "weights"];
        let theirs = theirs.map(|part| self.tensors.get(&format!("h.{layer}.{part}")));
        let mut found = [0f64; 2];
        for Looked { head, scores, weights, .. } in looked(cpu(), &asked, (&qkv, cells(kv))) {
            for ((found, ours), theirs) in found.iter_mut().zip([scores, weights]).zip(&theirs) {
                *found = found.max(difference(&ours, &theirs[head * rows..][..rows]));
            }
        }
        found
    }
}

#[test]
fn checkpoint_medium_layer_norms() {
    let Medium { model, theirs, .. } = &mut *medium();
    let stages = [Stage::AttentionNorm, Stage::FeedForwardNorm];
    let mut checkpoint = Checkpoint::new("medium 1 layer norm", 1e-5);
    let seen = theirs.forced(model, &mut unchanged).0;
    for (stage, name) in stages.into_iter().zip(["ln_1", "ln_2"]) {
        theirs.apart(&seen, stage).into_iter().for_each(|found| checkpoint.part(name, found));
    }
    checkpoint.part("ln_f", theirs.of_layer(&seen, Stage::State, LAYERS));
    let eps = std::mem::replace(&mut model.config_mut().norm_eps, 1.0);
    let seen = theirs.forced(model, &mut unchanged).0;
    model.config_mut().norm_eps = eps;
    let found = stages.map(|stage| theirs.apart(&seen, stage)).concat();
    let last = theirs.of_layer(&seen, Stage::State, LAYERS);
    checkpoint.negative("eps 1, each at least", least(found.into_iter().chain([last])));
    checkpoint.finish();
}

#[test]
fn checkpoint_medium_stages_of_a_block() {
    let Medium { model, theirs, .. } = &mut *medium();
    let mut checkpoint = Checkpoint::new("medium 2, 4 to 7", 1e-4);
    let (seen, kv, table) = theirs.forced(model, &mut unchanged);
    let stages = [
        (Stage::Qkv, "q, k, v"),
        (Stage::Mixed, "weighted values, heads merged"),
        (Stage::Attention, "attention's c_proj"),
        (Stage::Middle, "after attention"),
        (Stage::Hidden, "c_fc"),
        (Stage::Active, "gelu_new"),
        (Stage::FeedForward, "c_proj"),
        (Stage::Out, "after feed-forward"),
    ];
    for layer in ENDS {
        let [scores, weights] = theirs.attended(model, (&kv, &table.blocks), layer);
        checkpoint.part("scores", scores);
        checkpoint.part("softmax", weights);
        for (stage, name) in stages {
            checkpoint.part(name, theirs.of_layer(&seen, stage, layer));
        }
    }
    let (mut hidden, mut stream) = (Vec::new(), Vec::new());
    let mut exact = |stage: Stage, _: usize, values: &mut [f32]| match stage {
        Stage::Hidden => hidden = values.to_vec(),
        Stage::Active => {
            let last = values.len() - 4096;
            let inner = values[last..].iter_mut().zip(&hidden[last..]);
            inner.for_each(|(out, x)| *out = erf_gelu(*x));
        }
        _ => (),
    };
    let seen = theirs.forced(model, &mut exact).0;
    let found = theirs.apart(&seen, Stage::FeedForward);
    checkpoint.negative("exact GELU (erf)", least(found));
    let mut raw = |stage: Stage, _: usize, values: &mut [f32]| match stage {
        Stage::Middle | Stage::Embedded | Stage::Out => stream = values.to_vec(),
        Stage::FeedForwardNorm => values.copy_from_slice(&stream),
        // Without its residual attention's result alone is the stream.
        Stage::Attention => values.iter_mut().zip(&stream).for_each(|(x, before)| *x -= before),
        _ => (),
    };
    let seen = theirs.forced(model, &mut raw).0;
    checkpoint.negative("input not normalised", least(theirs.apart(&seen, Stage::Hidden)));
    checkpoint.negative("no residual of attention", least(theirs.apart(&seen, Stage::Middle)));
    let right = model.config().clone();
    let config = model.config_mut();
    (config.query_heads, config.kv_heads, config.head_dim) = (8, 8, 128);
    let seen = theirs.forced(model, &mut unchanged).0;
    *model.config_mut() = right;
    checkpoint.negative("8 heads of 128", least(theirs.apart(&seen, Stage::Mixed)));
    checkpoint.finish();
}

#[test]
fn checkpoint_medium_kv_cache() {
    let Medium { model, theirs, .. } = &mut *medium();
    let (seen, kv, table) = run(model, &theirs.ids, &mut unchanged);
    let mut checkpoint = Checkpoint::new("medium 3 KV cache, values that are not the bits", 0.0);
    for layer in ENDS {
        let given = written(&seen[&(Stage::Qkv, layer)], WIDTH);
        let read = read_back(model, (&kv, &table.blocks), layer, 0..theirs.ids.len());
        checkpoint.part("keys", bits_that_differ(&read[0], &given[0]));
        checkpoint.part("values", bits_that_differ(&read[1], &given[1]));
    }
    let given = written(&seen[&(Stage::Qkv, LAYERS - 1)], WIDTH);
    let below = read_back(model, (&kv, &table.blocks), LAYERS - 2, 0..theirs.ids.len());
    checkpoint.negative("keys of the layer below", bits_that_differ(&below[0], &given[0]));
    checkpoint.finish();
}

#[test]
fn checkpoint_medium_logits() {
    let Medium { model, theirs, .. } = &mut *medium();
    let stored = |seen: &Seen| -> Vec<f32> {
        let row = &seen[&(Stage::Logits, LAYERS)][19 * VOCAB..];
        row.iter().step_by(8).copied().collect()
    };
    let logits = theirs.tensors.get("logits");
    let seen = run(model, &theirs.ids, &mut unchanged).0;
    let mut checkpoint = Checkpoint::new("medium 8 logits", 1e-3);
    let ours = &seen[&(Stage::Out, LAYERS - 2)];
    checkpoint.part("23 blocks, 20 rows", difference(ours, &theirs.last_input()));
    checkpoint.part("24 blocks", theirs.of_layer(&seen, Stage::Out, LAYERS - 1));
    checkpoint.part("ln_f", theirs.of_layer(&seen, Stage::State, LAYERS));
    checkpoint.part("every eighth logit", difference(&stored(&seen), &logits));
    let mut stream = Vec::new();
    let mut skip = |stage: Stage, layer: usize, values: &mut [f32]| match stage {
        Stage::Out if layer == LAYERS - 1 => stream = values.to_vec(),
        Stage::State => values.copy_from_slice(&stream),
        _ => (),
    };
    let skipped = run(model, &theirs.ids, &mut skip).0;
    checkpoint.negative("ln_f skipped", difference(&stored(&skipped), &logits));
    checkpoint.finish();

    let row = &seen[&(Stage::Logits, LAYERS)][19 * VOCAB..];
    let mut checkpoint = Checkpoint::new("medium 11 probabilities of the five likeliest", 1e-3);
    for case in theirs.fixture["softmax"].as_array().unwrap() {
        let temperature = case["temperature"].as_f64().unwrap() as f32;
        let probable: Vec<f32> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let top = ids(&case["top"]);
        let of =
            |all: Vec<f64>| -> Vec<f32> { top.iter().map(|id| all[*id as usize] as f32).collect() };
        let ours = probabilities(row, temperature);
        let mut order: Vec<u32> = (0..VOCAB as u32).collect();
        order.sort_by(|a, b| ours[*b as usize].total_cmp(&ours[*a as usize]).then(a.cmp(b)));
        assert_eq!(order[..5], top, "the five most likely, in order");
        checkpoint.part(&format!("T = {temperature}"), difference(&of(ours), &probable));
        if temperature != 1.0 {
            let wrong = difference(&of(probabilities(row, 1.0)), &probable);
            checkpoint.negative(&format!("T = {temperature} left out"), wrong);
        }
    }
    checkpoint.finish();
}

#[test]
fn checkpoint_medium_ten_greedy_tokens() {
    let Medium { model, theirs, positions } = &mut *medium();
    let mut checkpoint = Checkpoint::new("medium 9, 10, 12 bits or ids that differ", 0.0);
    let known = ids(&theirs.fixture["chosen"]);
    let straight = |_: usize, place: usize| place;
    let (chosen, rows) = greedy((&*positions, &mut *model), &theirs.ids, true, &straight);
    checkpoint.part("greedy", wrong(&chosen, &known));
    let (mut kv, table) = pool(model, KvType::F32, theirs.ids.len());
    let logits = Logits::Last;
    let segment = Segment { tokens: &theirs.ids, start: 0, table: &table, logits };
    let alone = last_rows(model, &mut kv, vec![segment]);
    checkpoint.part("last position alone", bits_that_differ(&alone, &rows[..VOCAB]));
    let next = bits_that_differ(&alone, &rows[VOCAB..2 * VOCAB]);
    checkpoint.negative("the next position", next);
    let first = vec![theirs.fixture["argmax"].as_u64().unwrap() as u32];
    checkpoint.part("argmax", wrong(&[argmax(&rows[..VOCAB])], &first));
    let from_zero = |i: usize, _: usize| i;
    let counted = greedy((&*positions, &mut *model), &theirs.ids, true, &from_zero).0;
    checkpoint.negative("positions from the generated index", wrong(&counted, &known));
    checkpoint.finish();
}

/// Logits of the last row of each of some segments that are computed together.
fn last_rows(model: &mut Model, kv: &mut KvPool, segments: Vec<Segment<'_>>) -> Vec<f32> {
    model.forward(&Batch { segments }, kv).unwrap().logits.to_vec()
}

/// Ten greedy tokens after `prompt`, read in chunks of `chunk`, and all their logits.
fn ten(model: &mut Model, kv: &mut KvPool, prompt: &[u32], chunk: usize) -> (Vec<u32>, Vec<f32>) {
    let table = kv.allocate(prompt.len() + 10).unwrap();
    let (mut all, mut rows) = (prompt.to_vec(), Vec::new());
    let mut from = 0;
    while all.len() < prompt.len() + 10 {
        let end = all.len().min(from + chunk);
        let segment =
            Segment { tokens: &all[from..end], start: from, table: &table, logits: Logits::Last };
        let row = last_rows(model, kv, vec![segment]);
        from = end;
        if end == all.len() {
            all.push(argmax(&row));
            rows.extend(row);
        }
    }
    kv.release(table);
    (all.split_off(prompt.len()), rows)
}

#[test]
fn checkpoint_medium_has_the_same_bits_on_every_path() {
    let Medium { model, .. } = &mut *medium();
    let mut kv = KvPool::of_type(model.config(), KvType::F16, 256 << 20);
    let prompt: Vec<u32> = (0..12).map(|i| (i * i * 4421 + 15496) % 50257).collect();
    let mut checkpoint = Checkpoint::new("medium's paths, logits that are not the bits", 0.0);

    let (chosen, rows) = ten(model, &mut kv, &prompt, 64);
    assert!(rows.iter().all(|x| x.is_finite()));
    for _ in 0..2 {
        let again = ten(model, &mut kv, &prompt, 64);
        assert_eq!(again.0, chosen, "three runs give one text");
        checkpoint.part("three runs", bits_that_differ(&again.1, &rows));
    }
    let chunked = ten(model, &mut kv, &prompt, 5).1;
    checkpoint.part("chunks of 5", bits_that_differ(&chunked, &rows));

    // Without a cache: everything up to the last token anew, and another sequence beside it.
    let all: Vec<u32> = prompt.iter().chain(&chosen).copied().collect();
    let last = &rows[9 * 50257..];
    let tables = [kv.allocate(21).unwrap(), kv.allocate(7).unwrap()];
    let segment = |tokens, table| Segment { tokens, start: 0, table, logits: Logits::Last };
    let alone = last_rows(model, &mut kv, vec![segment(&all[..21], &tables[0])]);
    checkpoint.part("recomputed", bits_that_differ(&alone, last));
    let both = vec![segment(&all[3..10], &tables[1]), segment(&all[..21], &tables[0])];
    let both = last_rows(model, &mut kv, both);
    checkpoint.part("in a batch", bits_that_differ(&both[50257..], last));
    checkpoint.negative("the neighbour in the batch", bits_that_differ(&both[..50257], last));
    let moved = vec![segment(&all[1..21], &tables[0])];
    let moved = last_rows(model, &mut kv, moved);
    checkpoint.negative("one token less before it", bits_that_differ(&moved, last));

    // The last position there is, and the first one that there isn't.
    let table = kv.allocate(1040).unwrap();
    let mut at = |start| {
        let segment = Segment { tokens: &[7], start, table: &table, logits: Logits::Last };
        model.forward(&Batch { segments: vec![segment] }, &mut kv).map(|_| ())
    };
    assert!(at(1023).is_ok());
    let refused = at(1024).unwrap_err().to_string();
    assert!(refused.contains("1024 positions"), "{refused}");
    checkpoint.finish();
}
