//! Checkpoints 1 to 12 (docs/spec/gpt2-checkpoints.md) on a small random GPT-2.
//!
//! Up to checkpoint 7 a stage is given HuggingFace's own input, so that what differs is its own.

use super::harness::{
    Checkpoint, Tensors, bits_that_differ, cpu, difference, ids, pool, run, step, unchanged,
};
use super::negatives::{erf_gelu, layer_norm};
use super::small::{DIM, HEADS, Small, WHOLE, saved};
use crate::batch::{Batch, Logits, Segment};
use crate::gpt2;
use crate::kernels::attention::tests::{Looked, looked, value_at};
use crate::kernels::attention::{RowPlace, attend_rows};
use crate::kernels::threads::Threads;
use crate::kernels::vocabulary::{Scale, add_masses};
use crate::kv::{BlockTable, KvPool, KvType, Memory};
use crate::model::Model;
use crate::probe::Stage;
use crate::sampler::{Sampler, Sampling};

fn cells(kv: &KvPool) -> &[f32] {
    match &kv.memory {
        Memory::F32(cells) => cells,
        Memory::F16(_) => panic!("single precision is needed"),
    }
}

/// The largest difference of one stage over the layers that the fixture has.
fn of_stage(small: &Small, seen: &super::harness::Seen, stage: Stage) -> f64 {
    let layers = seen.iter().filter(|((kind, _), _)| *kind == stage);
    let each = layers
        .filter_map(|((_, layer), ours)| Some(difference(ours, &small.stage(stage, *layer)?)));
    each.fold(f64::NEG_INFINITY, f64::max)
}

#[test]
fn checkpoint_00_a_folder_as_huggingface_saves_it() {
    let (folder, ids, logits) = saved();
    let mut model = Model::load(&folder, 1, None).unwrap();
    let seen = run(&mut model, &ids, &mut unchanged).0;
    let found = difference(&seen[&(Stage::Logits, 2)], &logits.concat());
    let mut saved = Checkpoint::new("0 a folder that HuggingFace saved", 1e-3);
    saved.part("logits", found);
    saved.finish();
}

#[test]
fn checkpoint_01_layer_norm() {
    let small = Small::new();
    let stages = [Stage::AttentionNorm, Stage::FeedForwardNorm, Stage::State];
    let measure = |mut model: Model| {
        let force = &mut small.forced(&[Stage::Embedded, Stage::Middle, Stage::Out]);
        let seen = run(&mut model, &small.ids, force).0;
        stages.map(|stage| of_stage(&small, &seen, stage))
    };
    let mut checkpoint = Checkpoint::new("1 layer norm", 1e-5);
    let [first, second, last] = measure(small.weights.model(&small.config));
    checkpoint.part("ln_1", first);
    checkpoint.part("ln_2", second);
    checkpoint.part("ln_f", last);
    let worst = |found: [f64; 3]| found.into_iter().fold(0.0, f64::max);
    let eps = small.with("layer_norm_epsilon", 1e-3);
    checkpoint.negative("eps 1e-3", worst(measure(small.weights.model(&eps))));
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut weights = small.weights.clone();
        change(&mut weights);
        worst(measure(weights.model(&small.config)))
    };
    let swap = |weights: &mut Tensors| {
        for norm in ["ln_1", "ln_2", "ln_f"] {
            weights.swap(&format!("{norm}.weight"), &format!("{norm}.bias"));
        }
    };
    checkpoint.negative("weight and bias swapped", changed(&swap));
    let scale = |weights: &mut Tensors| {
        for norm in ["ln_1", "ln_2", "ln_f"] {
            let end = format!("{norm}.weight");
            weights.change(&end, |values| values.iter_mut().for_each(|x| *x *= 1.01));
        }
    };
    checkpoint.negative("weights × 1.01", changed(&scale));
    checkpoint.finish();
}

#[test]
fn checkpoint_02_queries_keys_and_values() {
    let small = Small::new();
    // Value `d` of head `h` of each part, as the model's own heads split the row.
    let split = |row: &[f32], heads: usize, (part, h, d): (usize, usize, usize)| {
        let width = row.len() / 3;
        row[part * width + h * (width / heads) + d]
    };
    let measure = |mut model: Model| {
        let heads = model.config().query_heads;
        let seen = run(&mut model, &small.ids, &mut small.forced(&[Stage::AttentionNorm])).0;
        let mut found = [0f64; 3];
        for layer in WHOLE {
            let theirs = small.qkv(layer);
            let rows = seen[&(Stage::Qkv, layer)].chunks_exact(3 * HEADS * DIM);
            for (ours, theirs) in rows.zip(theirs.chunks_exact(3 * HEADS * DIM)) {
                for (part, found) in found.iter_mut().enumerate() {
                    for at in (0..HEADS).flat_map(|h| (0..DIM / 2).map(move |d| (part, h, d))) {
                        let d = difference(&[split(ours, heads, at)], &[split(theirs, HEADS, at)]);
                        *found = found.max(d);
                    }
                    // The second half of each head, where the heads have one.
                    if heads == HEADS {
                        let part = part * HEADS * DIM..(part + 1) * HEADS * DIM;
                        *found = found.max(difference(&ours[part.clone()], &theirs[part]));
                    }
                }
            }
        }
        found
    };
    let mut checkpoint = Checkpoint::new("2 queries, keys and values", 1e-4);
    let found = measure(small.weights.model(&small.config));
    for (part, found) in ["q", "k", "v"].iter().zip(found) {
        checkpoint.part(part, found);
    }
    let worst = |found: [f64; 3]| found.into_iter().fold(0.0, f64::max);
    let eight = small.with("n_head", 8);
    checkpoint.negative("8 heads", worst(measure(small.weights.model(&eight))));
    let mut unbiased = small.weights.clone();
    unbiased.change("c_attn.bias", |values| values.fill(0.0));
    checkpoint.negative("bias zeroed", worst(measure(unbiased.model(&small.config))));
    let mut turned = small.weights.clone();
    turned.transpose("c_attn.weight");
    checkpoint.negative("W transposed", worst(measure(turned.model(&small.config))));
    checkpoint.finish();
    // A transposed matrix that says so is not loaded at all.
    let mut wrong = small.weights.clone();
    let name = "transformer.h.2.attn.c_attn.weight".to_owned();
    let turned = wrong.0[&name].t().unwrap().contiguous().unwrap();
    wrong.0.insert(name.clone(), turned);
    let why = wrong.refusal(&small.config);
    assert!(why.contains(&name) && why.contains("[256, 768] is needed"), "{why}");
}

/// Keys and values of positions `0..count` of a layer, `[count][heads · 64]` each, as the loops
/// of attention read them.
fn read_back(
    model: &Model,
    (kv, table): (&KvPool, &BlockTable),
    layer: usize,
    count: usize,
) -> [Vec<f32>; 2] {
    let config = model.config();
    let (heads, dim) = (config.query_heads, config.head_dim);
    // Row d asks with the d-th unit vector in every head, so that its scores are the keys' d-th
    // values over √64, a power of two.
    let places = vec![RowPlace { position: count - 1, sequence: 0 }; dim];
    let mut queries = vec![0.0; dim * 3 * heads * dim];
    for (d, row) in queries.chunks_exact_mut(3 * heads * dim).enumerate() {
        (0..heads).for_each(|h| row[h * dim + d] = 1.0);
    }
    let tables = [&table.blocks[..]];
    let rows = gpt2::rows(config, (&places, &tables), kv.layer_at(layer));
    let mut keys = vec![0.0; count * heads * dim];
    for Looked { row: d, head, scores, .. } in looked(cpu(), &rows, (&queries, cells(kv))) {
        for (key, score) in scores.iter().enumerate() {
            keys[(key * heads + head) * dim + d] = score * 8.0;
        }
    }
    let of = (&queries[..], cells(kv));
    let values = (0..count).flat_map(|key| value_at(cpu(), &rows, of, (0, key)));
    [keys, values.collect()]
}

/// Keys and values that a forward pass was seen to make, as [`read_back`] has them.
fn written(small: &Small, seen: &[&[f32]]) -> [Vec<f32>; 2] {
    let width = HEADS * DIM;
    let rows = seen.iter().flat_map(|rows| rows.chunks_exact(3 * width));
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for row in rows {
        keys.extend(&row[width..2 * width]);
        values.extend(&row[2 * width..]);
    }
    assert_eq!(keys.len(), small.rows() * width);
    [keys, values]
}

#[test]
fn checkpoint_03_the_kv_cache_gives_back_what_it_was_given() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let (whole, kv, table) = run(&mut model, &small.ids, &mut unchanged);
    let mut checkpoint = Checkpoint::new("3 KV cache, values that are not the bits", 0.0);
    let all = small.rows();
    let mut in_all: Vec<[Vec<f32>; 2]> = Vec::new();
    for layer in 0..4 {
        let [keys, values] = read_back(&model, (&kv, &table), layer, all);
        let [k, v] = written(&small, &[&whole[&(Stage::Qkv, layer)]]);
        checkpoint.part("keys", bits_that_differ(&keys, &k));
        checkpoint.part("values", bits_that_differ(&values, &v));
        in_all.push([keys, values]);
    }
    // Read on after 8 tokens, as it must be, then from one place too late and one too early.
    for (start, name) in [(8, "in two parts"), (9, "start one late"), (7, "end one early")] {
        let (mut kv, table) = pool(&model, KvType::F32, all + 1);
        step(&mut model, (&mut kv, &table), (&small.ids[..8], 0), &mut unchanged);
        step(&mut model, (&mut kv, &table), (&small.ids[8..], start), &mut unchanged);
        let mut differ = 0.0;
        for (layer, [k, v]) in in_all.iter().enumerate() {
            let [keys, values] = read_back(&model, (&kv, &table), layer, all);
            differ += bits_that_differ(&keys, k) + bits_that_differ(&values, v);
        }
        match start {
            8 => checkpoint.part(name, differ),
            _ => checkpoint.negative(name, differ),
        }
    }
    let shifted = HEADS * DIM;
    let [keys, _] = &in_all[0];
    let [k, _] = written(&small, &[&whole[&(Stage::Qkv, 0)]]);
    let moved = bits_that_differ(&keys[shifted..], &k[..k.len() - shifted]);
    checkpoint.negative("read one place on", moved);
    checkpoint.finish();
}

/// Scores and weights of ours from HuggingFace's queries and keys, by what each row sees.
fn looked_from(
    (small, model): (&Small, &mut Model),
    layer: usize,
    (sees, scale): (fn(usize, usize) -> usize, f32),
) -> Vec<Looked> {
    let force = &mut small.forced(&[Stage::Qkv]);
    let (_, kv, table) = run(model, &small.ids, force);
    let mut qkv = small.qkv(layer);
    for row in qkv.chunks_exact_mut(3 * HEADS * DIM) {
        row[..HEADS * DIM].iter_mut().for_each(|q| *q *= scale);
    }
    let places: Vec<RowPlace> = (0..small.rows())
        .map(|row| RowPlace { position: sees(row, small.rows()), sequence: 0 })
        .collect();
    let tables = [&table.blocks[..]];
    let rows = gpt2::rows(model.config(), (&places, &tables), kv.layer_at(layer));
    looked(cpu(), &rows, (&qkv, cells(&kv)))
}

/// The largest difference to what the hooks saw; infinite where a row sees other keys.
fn compared(small: &Small, layer: usize, ours: &[Looked], part: &str) -> f64 {
    let (theirs, all) = (small.theirs.get(&format!("h.{layer}.{part}")), small.rows());
    let mut worst = 0f64;
    for Looked { row, head, scores, weights } in ours {
        let theirs = &theirs[(head * all + row) * all..][..all];
        let seen: Vec<f32> = match part {
            // HuggingFace gives keys out of sight the lowest score there is.
            "scores" => theirs.iter().copied().filter(|score| *score > -1e30).collect(),
            _ => theirs.to_vec(),
        };
        let mut own = if part == "scores" { scores.clone() } else { weights.clone() };
        if part == "weights" {
            own.resize(all, 0.0);
        }
        worst = worst.max(difference(&own, &seen));
    }
    worst
}

fn own(row: usize, _: usize) -> usize {
    row
}

fn last(_: usize, rows: usize) -> usize {
    rows - 1
}

#[test]
fn checkpoint_04_scores_are_scaled_and_masked() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let mut measure = |sees: fn(usize, usize) -> usize, scale: f32, part: &str| {
        let each = WHOLE.map(|layer| {
            let looked = looked_from((&small, &mut model), layer, (sees, scale));
            compared(&small, layer, &looked, part)
        });
        f64::max(each[0], each[1])
    };
    let mut checkpoint = Checkpoint::new("4 attention scores", 1e-4);
    checkpoint.part("q·k/√64 of keys in sight", measure(own, 1.0, "scores"));
    // √64 = 8 and 64: an eighth of the queries.
    checkpoint.negative("divided by 64", measure(own, 0.125, "scores"));
    // The scores of other keys are there then; by the weights it can be told by how much.
    checkpoint.negative("no mask, keys in sight", measure(last, 1.0, "scores"));
    checkpoint.negative("no mask, by the weights", measure(last, 1.0, "weights"));
    checkpoint.finish();
}

#[test]
fn checkpoint_05_attention_output() {
    let small = Small::new();
    let measure = |mut model: Model, change: &mut dyn FnMut(Stage, usize, &mut [f32])| {
        let mut force = small.forced(&[Stage::Qkv]);
        let mut both = |stage: Stage, layer: usize, values: &mut [f32]| {
            force(stage, layer, values);
            change(stage, layer, values);
        };
        run(&mut model, &small.ids, &mut both).0
    };
    let mut checkpoint = Checkpoint::new("5 attention output", 1e-4);
    let mut model = small.weights.model(&small.config);
    for layer in WHOLE {
        let looked = looked_from((&small, &mut model), layer, (own, 1.0));
        checkpoint.part("softmax", compared(&small, layer, &looked, "weights"));
    }
    let seen = measure(model, &mut unchanged);
    checkpoint.part("weighted values, heads merged", of_stage(&small, &seen, Stage::Mixed));
    checkpoint.part("c_proj", of_stage(&small, &seen, Stage::Attention));
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut weights = small.weights.clone();
        change(&mut weights);
        let seen = measure(weights.model(&small.config), &mut unchanged);
        of_stage(&small, &seen, Stage::Attention)
    };
    let zero = |weights: &mut Tensors| {
        weights.change("attn.c_proj.weight", |values| values.fill(0.0));
    };
    checkpoint.negative("c_proj zeroed", changed(&zero));
    // A square matrix has the right shape either way.
    checkpoint.negative("c_proj transposed", changed(&|w| w.transpose("attn.c_proj.weight")));
    let mut model = small.weights.model(&small.config);
    let blind = WHOLE.map(|layer| without_mask(&small, &mut model, layer));
    let mut change = |stage: Stage, layer: usize, values: &mut [f32]| {
        if let (Stage::Mixed, Some(at)) = (stage, WHOLE.iter().position(|whole| *whole == layer)) {
            values.copy_from_slice(&blind[at]);
        }
    };
    let seen = measure(model, &mut change);
    checkpoint.negative("no mask", of_stage(&small, &seen, Stage::Attention));
    checkpoint.finish();
}

/// Attention of every row to every key.
fn without_mask(small: &Small, model: &mut Model, layer: usize) -> Vec<f32> {
    let (_, kv, table) = run(model, &small.ids, &mut small.forced(&[Stage::Qkv]));
    let places = vec![RowPlace { position: small.rows() - 1, sequence: 0 }; small.rows()];
    let tables = [&table.blocks[..]];
    let rows = gpt2::rows(model.config(), (&places, &tables), kv.layer_at(layer));
    let mut out = vec![0.0; small.rows() * HEADS * DIM];
    let threads = Threads::new(1).unwrap();
    let of = (&small.qkv(layer)[..], cells(&kv));
    attend_rows((cpu(), &threads), &rows, of, &mut Vec::new(), &mut out);
    out
}

#[test]
fn checkpoint_06_feed_forward() {
    let small = Small::new();
    let measure = |change: &mut dyn FnMut(Stage, usize, &mut [f32])| {
        let mut force = small.forced(&[Stage::Middle]);
        let mut both = |stage: Stage, layer: usize, values: &mut [f32]| {
            force(stage, layer, values);
            change(stage, layer, values);
        };
        run(&mut small.weights.model(&small.config), &small.ids, &mut both).0
    };
    let seen = measure(&mut unchanged);
    let mut checkpoint = Checkpoint::new("6 feed-forward", 1e-4);
    checkpoint.part("c_fc", of_stage(&small, &seen, Stage::Hidden));
    checkpoint.part("gelu_new", of_stage(&small, &seen, Stage::Active));
    checkpoint.part("c_proj", of_stage(&small, &seen, Stage::FeedForward));
    let mut hidden = Vec::new();
    let mut exact = |stage: Stage, _: usize, values: &mut [f32]| match stage {
        Stage::Hidden => hidden = values.to_vec(),
        Stage::Active => {
            values.iter_mut().zip(&hidden).for_each(|(out, x)| *out = erf_gelu(*x));
        }
        _ => (),
    };
    let found = of_stage(&small, &measure(&mut exact), Stage::FeedForward);
    checkpoint.negative("exact GELU (erf)", found);
    let mut stream = Vec::new();
    let mut raw = |stage: Stage, _: usize, values: &mut [f32]| match stage {
        Stage::Middle => stream = values.to_vec(),
        Stage::FeedForwardNorm => values.copy_from_slice(&stream),
        _ => (),
    };
    let found = of_stage(&small, &measure(&mut raw), Stage::FeedForward);
    checkpoint.negative("input not normalised", found);
    checkpoint.finish();
}

/// What is wrong with a block.
#[derive(Clone, Copy, PartialEq)]
enum Wrong {
    Nothing,
    PostNorm,
    NoFirstResidual,
    NoSecondResidual,
}

/// Makes it so: what comes in is HuggingFace's, what follows is changed.
fn wrong_block(small: &Small, wrong: Wrong) -> impl FnMut(Stage, usize, &mut [f32]) + '_ {
    let mut force = small.forced(&[Stage::Embedded, Stage::Out]);
    let (mut before, mut middle) = (Vec::new(), Vec::new());
    move |stage, layer, values| {
        let norm = |part: &str, x: &[f32]| {
            let of =
                |kind: &str| small.weights.get(&format!("transformer.h.{layer}.{part}.{kind}"));
            layer_norm(x, &of("weight"), &of("bias"))
        };
        let minus = |values: &mut [f32], of: &[f32]| {
            values.iter_mut().zip(of).for_each(|(x, y)| *x -= y);
        };
        match (stage, wrong) {
            (Stage::AttentionNorm, Wrong::PostNorm) => values.copy_from_slice(&before),
            (Stage::FeedForwardNorm, Wrong::PostNorm) => values.copy_from_slice(&middle),
            (Stage::Middle, Wrong::PostNorm) => {
                let normed = norm("ln_1", values);
                values.copy_from_slice(&normed);
            }
            (Stage::Middle, Wrong::NoFirstResidual) => minus(values, &before),
            _ => (),
        }
        match stage {
            Stage::Middle => middle = values.to_vec(),
            Stage::Embedded | Stage::Out => {
                force(stage, layer, values);
                before = values.to_vec();
            }
            _ => (),
        }
    }
}

#[test]
fn checkpoint_07_block() {
    let small = Small::new();
    let measure = |wrong: Wrong| {
        let mut model = small.weights.model(&small.config);
        let seen = run(&mut model, &small.ids, &mut wrong_block(&small, wrong)).0;
        if wrong == Wrong::NoSecondResidual || wrong == Wrong::PostNorm {
            // The block's end itself is what is wrong: from what was seen it can be told.
            let each = WHOLE.map(|layer| {
                let (out, theirs) = (&seen[&(Stage::Out, layer)], small.stage(Stage::Out, layer));
                let mut out = out.clone();
                if wrong == Wrong::NoSecondResidual {
                    out.clone_from(&seen[&(Stage::FeedForward, layer)]);
                } else {
                    let of = |kind: &str| {
                        small.weights.get(&format!("transformer.h.{layer}.ln_2.{kind}"))
                    };
                    out = layer_norm(&out, &of("weight"), &of("bias"));
                }
                difference(&out, &theirs.unwrap())
            });
            return [0.0, f64::max(each[0], each[1])];
        }
        [of_stage(&small, &seen, Stage::Middle), of_stage(&small, &seen, Stage::Out)]
    };
    let mut checkpoint = Checkpoint::new("7 block", 1e-4);
    let [middle, out] = measure(Wrong::Nothing);
    checkpoint.part("after attention", middle);
    checkpoint.part("after feed-forward, all 4 layers", out);
    checkpoint.negative("post-norm", measure(Wrong::PostNorm)[1]);
    checkpoint.negative("no residual of attention", measure(Wrong::NoFirstResidual)[1]);
    checkpoint.negative("no residual of feed-forward", measure(Wrong::NoSecondResidual)[1]);
    checkpoint.finish();
}

#[test]
fn checkpoint_08_logits_of_the_whole_model() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let seen = run(&mut model, &small.ids, &mut unchanged).0;
    let mut checkpoint = Checkpoint::new("8 logits", 1e-3);
    checkpoint.part("blocks", of_stage(&small, &seen, Stage::Out));
    checkpoint.part("ln_f", of_stage(&small, &seen, Stage::State));
    checkpoint.part("logits of 20 rows", of_stage(&small, &seen, Stage::Logits));
    let (mut kv, table) = pool(&model, KvType::F16, small.rows());
    let halves = step(&mut model, (&mut kv, &table), (&small.ids, 0), &mut unchanged);
    let mut rounded = Checkpoint::new("8 logits, KV cache in half precision", 2e-2);
    rounded.part("logits of 20 rows", of_stage(&small, &halves, Stage::Logits));
    rounded.finish();

    let mut untied = small.weights.clone();
    let own = super::small::draw("lm_head.weight", &[869, 256]);
    untied.0.insert("lm_head.weight".into(), own);
    // Tied, a second one that is stored changes nothing.
    let stored = run(&mut untied.model(&small.config), &small.ids, &mut unchanged).0;
    assert_eq!(stored[&(Stage::Logits, 4)], seen[&(Stage::Logits, 4)]);
    let config = small.with("tie_word_embeddings", false);
    let wrong = run(&mut untied.model(&config), &small.ids, &mut unchanged).0;
    checkpoint.negative("untied head", of_stage(&small, &wrong, Stage::Logits));
    let mut stream = Vec::new();
    let mut skip = |stage: Stage, layer: usize, values: &mut [f32]| match stage {
        Stage::Out if layer == 3 => stream = values.to_vec(),
        Stage::State => values.copy_from_slice(&stream),
        _ => (),
    };
    let wrong = run(&mut model, &small.ids, &mut skip).0;
    checkpoint.negative("ln_f skipped", of_stage(&small, &wrong, Stage::Logits));
    checkpoint.finish();
}

#[test]
fn checkpoint_09_logits_of_the_last_position_alone() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let all = run(&mut model, &small.ids, &mut unchanged).0;
    let rows: Vec<&[f32]> = all[&(Stage::Logits, 4)].chunks_exact(869).collect();
    let (mut kv, table) = pool(&model, KvType::F32, small.rows());
    let segment = Segment { tokens: &small.ids, start: 0, table: &table, logits: Logits::Last };
    let out = model.forward(&Batch { segments: vec![segment] }, &mut kv).unwrap();
    assert_eq!((out.logits.len(), out.states.len()), (869, 256));
    let mut checkpoint = Checkpoint::new("9 last position, logits that are not the bits", 0.0);
    checkpoint.part("row 19", bits_that_differ(out.logits, rows[19]));
    let others = rows[..19].iter().map(|row| bits_that_differ(out.logits, row));
    checkpoint.negative("any other position, at least", others.fold(f64::INFINITY, f64::min));
    checkpoint.finish();
    let theirs = small.theirs.get("logits");
    let found = difference(out.logits, &theirs[19 * 869..]);
    assert!(found <= 1e-3, "HuggingFace's last row differs by {found}");
}

fn choose(temperature: f32, logits: &[f32], position: u32) -> u32 {
    let sampling = Sampling { temperature, ..Sampling::greedy() };
    let mut sampler = Sampler::new(sampling, &[], logits.len(), cpu());
    sampler.sample(&mut logits.to_vec(), position).unwrap().id
}

#[test]
fn checkpoint_10_argmax() {
    let small = Small::new();
    let mut model = small.weights.model(&small.config);
    let seen = run(&mut model, &small.ids, &mut unchanged).0;
    let theirs = ids(&small.fixture["argmax"]);
    let rows: Vec<&[f32]> = seen[&(Stage::Logits, 4)].chunks_exact(869).collect();
    let wrong = |temperature: f32| {
        let chosen = (0..).zip(&rows).map(|(at, row)| choose(temperature, row, at));
        chosen.zip(&theirs).filter(|(a, b)| a != *b).count() as f64
    };
    let mut checkpoint = Checkpoint::new("10 argmax, rows with another id", 0.0);
    checkpoint.part("T = 0", wrong(0.0));
    checkpoint.part("T = 0.99e-6", wrong(0.99e-6));
    // Two ids share the largest logit, in one block of the search and in two; 0 and −0 too.
    let tie = |ids: &[usize], values: [f32; 2]| {
        let mut row = vec![-3.0; 869];
        ids.iter().zip(values).for_each(|(id, value)| row[*id] = value);
        f64::from(u8::from(choose(0.0, &row, 0) as usize != ids[0]))
    };
    let ties = [([5, 9], 2.0), ([63, 64], 2.0), ([5, 868], 2.0)];
    let found = ties.iter().map(|(ids, value)| tie(ids, [*value; 2])).sum::<f64>();
    checkpoint.part("ties", found + tie(&[7, 300], [-0.0, 0.0]));
    checkpoint.negative("T = 1", wrong(1.0));
    checkpoint.finish();
}

/// Probabilities of a row by the sampler's own masses (docs/spec/numerics.md, rule 6).
fn probabilities(logits: &[f32], temperature: f32) -> Vec<f64> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = Scale { best, inverse: 1.0 / f64::from(temperature) };
    let mass = |of: &[f32]| {
        let mut sum = 0;
        add_masses(cpu(), of, scale, &mut sum);
        sum as f64
    };
    let all = mass(logits);
    logits.chunks(1).map(|logit| mass(logit) / all).collect()
}

#[test]
fn checkpoint_11_probabilities() {
    let small = Small::new();
    let logits = small.theirs.get("logits").split_off(19 * 869);
    let mut checkpoint = Checkpoint::new("11 probabilities", 1e-6);
    for case in small.fixture["softmax"].as_array().unwrap() {
        let temperature = case["temperature"].as_f64().unwrap() as f32;
        let theirs: Vec<f32> = serde_json::from_value(case["probabilities"].clone()).unwrap();
        let ours = probabilities(&logits, temperature);
        let apart = |ours: &[f64]| {
            let each = ours.iter().zip(&theirs).map(|(a, b)| (a - f64::from(*b)).abs());
            each.fold(0.0, f64::max)
        };
        checkpoint.part(&format!("T = {temperature}"), apart(&ours));
        checkpoint.part("sum − 1", (ours.iter().sum::<f64>() - 1.0).abs());
        let mut order: Vec<u32> = (0..869).collect();
        order.sort_by(|a, b| ours[*b as usize].total_cmp(&ours[*a as usize]).then(a.cmp(b)));
        assert_eq!(order[..5], ids(&case["top"]), "the five most likely, in order");
        if temperature != 1.0 {
            let wrong = apart(&probabilities(&logits, 1.0));
            checkpoint.negative(&format!("T = {temperature} left out"), wrong);
        }
    }
    // What clients are told is the same distribution at T = 1.
    let sampling = Sampling { logprobs: Some(5), ..Sampling::greedy() };
    let mut sampler = Sampler::new(sampling, &[], 869, cpu());
    let told = sampler.sample(&mut logits.clone(), 0).unwrap().logprobs.unwrap();
    let theirs: Vec<f64> =
        serde_json::from_value(small.fixture["softmax"][1]["probabilities"].clone()).unwrap();
    for (id, logprob) in told.top {
        let told = crate::math::exp(logprob);
        checkpoint.part("told to clients", (told - theirs[id as usize]).abs());
    }
    checkpoint.finish();
}
