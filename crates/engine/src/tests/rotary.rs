//! Layers of the Llama family, stage by stage: RMS-norm, rotation either way, grouped queries,
//! SwiGLU, on a small random Llama and Qwen 3.

use serde_json::Value;

use super::harness::{
    Checkpoint, Seen, Tensors, cells, cpu, difference, ids, json, run, unchanged,
};
use crate::kernels::attention::tests::{Looked, looked};
use crate::kernels::attention::{RowPlace, Rows};
use crate::kernels::rows::rms_norm;
use crate::model::Model;
use crate::probe::Stage;
use crate::rope::Pairing;

const LAYERS: usize = 2;
const ROWS: usize = 20;

/// One of the two models and what hooks saw of it.
struct Rotary {
    name: &'static str,
    config: Value,
    ids: Vec<u32>,
    weights: Tensors,
    theirs: Tensors,
    heads: [usize; 2],
    dim: usize,
}

fn both() -> [Rotary; 2] {
    let cases = json("reference/families.json");
    [("llama", 16), ("qwen3", 32)].map(|(name, dim)| {
        let case = cases["cases"].as_array().unwrap().iter().find(|case| case["name"] == name);
        let case = case.unwrap();
        Rotary {
            name,
            config: case["config"].clone(),
            ids: ids(&case["ids"])[..ROWS].to_vec(),
            weights: Tensors::of(&format!("reference/{}", case["weights"].as_str().unwrap())),
            theirs: Tensors::of(&format!("checkpoints/{name}.safetensors")),
            heads: [4, 2],
            dim,
        }
    })
}

impl Rotary {
    fn model(&self) -> Model {
        self.weights.model(&self.config)
    }

    fn of(&self, layer: usize, part: &str) -> Vec<f32> {
        self.theirs.get(&format!("layers.{layer}.{part}"))
    }

    /// Three parts of each row side by side.
    fn joined(&self, layer: usize, parts: [&str; 3]) -> Vec<f32> {
        let parts = parts.map(|part| self.of(layer, part));
        let row = |row: usize| {
            let of = move |part: &Vec<f32>| {
                let width = part.len() / ROWS;
                part[row * width..(row + 1) * width].to_vec()
            };
            parts.each_ref().map(of).concat()
        };
        (0..ROWS).flat_map(row).collect()
    }

    fn stage(&self, stage: Stage, layer: usize) -> Vec<f32> {
        match stage {
            Stage::Embedded => self.of(0, "in"),
            Stage::Qkv => self.joined(layer, ["q_proj", "k_proj", "v_proj"]),
            Stage::Turned => self.joined(layer, ["turned_query", "turned_key", "v_proj"]),
            Stage::Mixed => self.of(layer, "mixed"),
            Stage::Middle => self.of(layer, "middle"),
            Stage::Active => self.of(layer, "gated"),
            Stage::Out => self.of(layer, "out"),
            Stage::State => self.theirs.get("norm"),
            Stage::Logits => self.theirs.get("logits"),
            other => panic!("{other:?} is GPT-2's alone"),
        }
    }

    fn forced(&self, stages: &[Stage]) -> impl FnMut(Stage, usize, &mut [f32]) + '_ {
        let stages = stages.to_vec();
        move |stage, layer, values| {
            if stages.contains(&stage) {
                values.copy_from_slice(&self.stage(stage, layer));
            }
        }
    }

    fn apart(&self, seen: &Seen, stage: Stage) -> f64 {
        let of_stage = seen.iter().filter(|((kind, _), _)| *kind == stage);
        let each = of_stage.map(|((_, layer), ours)| difference(ours, &self.stage(stage, *layer)));
        each.fold(f64::NEG_INFINITY, f64::max)
    }

    /// The difference of a stage where others are HuggingFace's.
    fn measure(&self, model: &mut Model, forced: &[Stage], stage: Stage) -> f64 {
        let seen = run(model, &self.ids, &mut self.forced(forced)).0;
        self.apart(&seen, stage)
    }

    fn changed(&self, change: impl Fn(&mut Tensors)) -> Model {
        let mut weights = self.weights.clone();
        change(&mut weights);
        weights.model(&self.config)
    }
}

#[test]
fn checkpoint_rms_norm() {
    for rotary in both() {
        let name = if rotary.name == "llama" { "llama RMS-norm" } else { "qwen3 RMS-norm" };
        let eps = rotary.config["rms_norm_eps"].as_f64().unwrap() as f32;
        let norm = |x: &[f32], weight: &[f32], eps: f32| {
            let mut out = vec![0.0; x.len()];
            let rows = x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len()));
            rows.for_each(|(x, out)| rms_norm(cpu(), x, weight, eps, out));
            out
        };
        let measure = |change: &dyn Fn(&mut Vec<f32>, &mut Vec<f32>), eps: f32| {
            let mut found = Vec::new();
            for layer in 0..LAYERS {
                let parts = [
                    ("in", "norm", "input_layernorm"),
                    ("middle", "middle_norm", "post_attention_layernorm"),
                ];
                for (from, to, weight) in parts {
                    let mut x = rotary.of(layer, from);
                    let weight = format!("model.layers.{layer}.{weight}.weight");
                    let mut weight = rotary.weights.get(&weight);
                    change(&mut x, &mut weight);
                    found.push(difference(&norm(&x, &weight, eps), &rotary.of(layer, to)));
                }
            }
            found.into_iter().fold(0.0, f64::max)
        };
        let mut checkpoint = Checkpoint::new(name, 1e-5);
        checkpoint.part("two norms of each layer", measure(&|_, _| (), eps));
        let last = rotary.measure(&mut rotary.model(), &[Stage::Out], Stage::State);
        checkpoint.part("last norm", last);
        checkpoint.negative("eps 1e-3", measure(&|_, _| (), 1e-3));
        let scale = |_: &mut Vec<f32>, weight: &mut Vec<f32>| {
            weight.iter_mut().for_each(|w| *w *= 1.01);
        };
        checkpoint.negative("weights × 1.01", measure(&scale, eps));
        let centre = |x: &mut Vec<f32>, weight: &mut Vec<f32>| {
            for row in x.chunks_exact_mut(weight.len()) {
                let mean = row.iter().sum::<f32>() / row.len() as f32;
                row.iter_mut().for_each(|x| *x -= mean);
            }
        };
        checkpoint.negative("mean taken off", measure(&centre, eps));
        checkpoint.finish();
    }
}

/// Heads of one row with pairs as neighbours that were halves, or back.
fn repaired(heads: &[f32], dim: usize, to_neighbours: bool) -> Vec<f32> {
    let mut out = heads.to_vec();
    for (from, out) in heads.chunks_exact(dim).zip(out.chunks_exact_mut(dim)) {
        for i in 0..dim / 2 {
            let (halves, neighbours) = ([i, i + dim / 2], [2 * i, 2 * i + 1]);
            let (from_at, to_at) =
                if to_neighbours { (halves, neighbours) } else { (neighbours, halves) };
            (out[to_at[0]], out[to_at[1]]) = (from[from_at[0]], from[from_at[1]]);
        }
    }
    out
}

#[test]
fn checkpoint_rotary_embedding() {
    for rotary in both() {
        let name = if rotary.name == "llama" { "llama rotation" } else { "qwen3 norms, rotation" };
        let mut checkpoint = Checkpoint::new(name, 1e-4);
        let mut model = rotary.model();
        let projected = rotary.measure(&mut model, &[Stage::Embedded, Stage::Out], Stage::Qkv);
        checkpoint.part("q, k, v", projected);
        let turned = rotary.measure(&mut model, &[Stage::Qkv], Stage::Turned);
        checkpoint.part("halves", turned);
        model.config_mut().pairing = Pairing::Neighbours;
        let wrong = rotary.measure(&mut model, &[Stage::Qkv], Stage::Turned);
        checkpoint.negative("neighbours", wrong);
        if rotary.name == "llama" {
            checkpoint.part("as neighbours", as_neighbours(&rotary, &mut model));
        } else {
            let plain = rotary.changed(|w| w.change("_norm.weight", |w| w.fill(1.0)));
            let wrong = rotary.measure(&mut { plain }, &[Stage::Qkv], Stage::Turned);
            checkpoint.negative("head norms without weights", wrong);
        }
        model.config_mut().pairing = Pairing::None;
        let wrong = rotary.measure(&mut model, &[Stage::Qkv], Stage::Turned);
        checkpoint.negative("not turned", wrong);
        checkpoint.finish();
    }
}

/// The same rotation with rows of q and k in the order of llama.cpp's files, and back.
fn as_neighbours(rotary: &Rotary, model: &mut Model) -> f64 {
    let turned = (rotary.heads[0] + rotary.heads[1]) * rotary.dim;
    let cols = turned + rotary.heads[1] * rotary.dim;
    let reorder = |values: &mut [f32], to_neighbours: bool| {
        for row in values.chunks_exact_mut(cols) {
            let other = repaired(&row[..turned], rotary.dim, to_neighbours);
            row[..turned].copy_from_slice(&other);
        }
    };
    let mut force = rotary.forced(&[Stage::Qkv]);
    let mut both = |stage: Stage, layer: usize, values: &mut [f32]| {
        force(stage, layer, values);
        if stage == Stage::Qkv {
            reorder(values, true);
        }
    };
    let mut seen = run(model, &rotary.ids, &mut both).0;
    for layer in 0..LAYERS {
        reorder(seen.get_mut(&(Stage::Turned, layer)).unwrap(), false);
    }
    // Attention doesn't care for the order within a head.
    f64::max(rotary.apart(&seen, Stage::Turned), rotary.apart(&seen, Stage::Mixed))
}

#[test]
fn checkpoint_grouped_queries() {
    for rotary in both() {
        let name = if rotary.name == "llama" { "llama attention" } else { "qwen3 attention" };
        let mut checkpoint = Checkpoint::new(name, 1e-4);
        let mut model = rotary.model();
        for layer in 0..LAYERS {
            let [scores, weights] = attended(&rotary, &mut model, layer, [0, 1, 2, 3]);
            checkpoint.part("scores", scores);
            checkpoint.part("softmax", weights);
        }
        let mixed = rotary.measure(&mut model, &[Stage::Qkv], Stage::Mixed);
        checkpoint.part("weighted values", mixed);
        let out = rotary.measure(&mut model, &[Stage::Embedded, Stage::Out], Stage::Middle);
        checkpoint.part("after attention", out);
        // Query heads 0, 1 share key head 0, and 2, 3 key head 1. Each second one would share
        // it if heads 1 and 2 changed places before attention, and back after it.
        let [scores, weights] = attended(&rotary, &mut model, 0, [0, 2, 1, 3]);
        checkpoint.negative("other groups, scores", scores);
        checkpoint.negative("other groups, softmax", weights);
        checkpoint.negative("other groups, values", mixed_in_other_groups(&rotary, &mut model));
        model.config_mut().window = Some(5);
        let windowed = rotary.measure(&mut model, &[Stage::Qkv], Stage::Mixed);
        checkpoint.negative("a window of 5", windowed);
        checkpoint.finish();
    }
}

/// Exchanges the query heads 1 and 2 of rows that begin with four.
fn exchange(rotary: &Rotary, rows: &mut [f32]) {
    let cols = rows.len() / ROWS;
    for row in rows.chunks_exact_mut(cols) {
        let (low, high) = row.split_at_mut(2 * rotary.dim);
        low[rotary.dim..].swap_with_slice(&mut high[..rotary.dim]);
    }
}

/// The difference of what attention gives where each second query head shares a key head.
fn mixed_in_other_groups(rotary: &Rotary, model: &mut Model) -> f64 {
    let mut exchanged = |stage: Stage, layer: usize, values: &mut [f32]| {
        if stage == Stage::Qkv {
            values.copy_from_slice(&rotary.stage(stage, layer));
            exchange(rotary, values);
        }
    };
    let mut seen = run(model, &rotary.ids, &mut exchanged).0;
    for layer in 0..LAYERS {
        exchange(rotary, seen.get_mut(&(Stage::Mixed, layer)).unwrap());
    }
    rotary.apart(&seen, Stage::Mixed)
}

/// Differences of scores and softmax. In the place of query head i the model is given
/// HuggingFace's head `order[i]`, whose results its own are compared with.
fn attended(rotary: &Rotary, model: &mut Model, layer: usize, order: [usize; 4]) -> [f64; 2] {
    let (_, kv, table) = run(model, &rotary.ids, &mut rotary.forced(&[Stage::Qkv]));
    let mut qkv = rotary.stage(Stage::Turned, layer);
    let cols = qkv.len() / ROWS;
    for row in qkv.chunks_exact_mut(cols) {
        let queries = row[..4 * rotary.dim].to_vec();
        for (head, other) in order.into_iter().enumerate() {
            let from = &queries[other * rotary.dim..(other + 1) * rotary.dim];
            row[head * rotary.dim..(head + 1) * rotary.dim].copy_from_slice(from);
        }
    }
    let places: Vec<RowPlace> =
        (0..ROWS).map(|position| RowPlace { position, sequence: 0 }).collect();
    let rows = Rows {
        heads: model.config().heads(),
        places: &places,
        tables: &[&table.blocks],
        layer_at: kv.layer_at(layer),
        window: None,
        bias: None,
        norms: None,
        pairing: Pairing::None,
        cos: &[],
        sin: &[],
    };
    let mut found = [0f64; 2];
    for Looked { row, head, scores, weights } in looked(cpu(), &rows, (&qkv, cells(&kv))) {
        for (found, (ours, part)) in
            found.iter_mut().zip([(scores, "scores"), (weights, "weights")])
        {
            let theirs = rotary.of(layer, part);
            let theirs = &theirs[(order[head] * ROWS + row) * ROWS..][..ROWS];
            *found = found.max(difference(&ours, &theirs[..=row]));
            let rest = theirs[row + 1..].iter();
            assert!(rest.clone().all(|x| *x < -1e30 || *x == 0.0), "the mask of HuggingFace's");
        }
    }
    found
}

#[test]
fn checkpoint_swiglu() {
    for rotary in both() {
        let name = if rotary.name == "llama" { "llama SwiGLU" } else { "qwen3 SwiGLU" };
        let mut checkpoint = Checkpoint::new(name, 1e-4);
        let mut model = rotary.model();
        checkpoint.part("gate", rotary.measure(&mut model, &[Stage::Middle], Stage::Active));
        checkpoint.part("block", rotary.measure(&mut model, &[Stage::Middle], Stage::Out));
        let mut swapped = rotary.changed(|w| w.swap("gate_proj.weight", "up_proj.weight"));
        let wrong = rotary.measure(&mut swapped, &[Stage::Middle], Stage::Active);
        checkpoint.negative("gate and up swapped", wrong);
        let mut zero = rotary.changed(|w| w.change("down_proj.weight", |w| w.fill(0.0)));
        let wrong = rotary.measure(&mut zero, &[Stage::Middle], Stage::Out);
        checkpoint.negative("down zeroed", wrong);
        checkpoint.finish();
    }
}

#[test]
fn checkpoint_logits_of_rotary_models() {
    for rotary in both() {
        let name = if rotary.name == "llama" { "llama logits" } else { "qwen3 logits" };
        let mut checkpoint = Checkpoint::new(name, 1e-3);
        let mut model = rotary.model();
        let seen = run(&mut model, &rotary.ids, &mut unchanged).0;
        checkpoint.part("blocks", rotary.apart(&seen, Stage::Out));
        checkpoint.part("logits", rotary.apart(&seen, Stage::Logits));
        model.config_mut().norm_eps = 1e-2;
        let seen = run(&mut model, &rotary.ids, &mut unchanged).0;
        checkpoint.negative("eps 1e-2", rotary.apart(&seen, Stage::Logits));
        checkpoint.finish();
    }
}
