//! Checkpoints 0 to 9 (docs/spec/gpt2-checkpoints.md) on a small random GPT-2.
//!
//! Up to checkpoint 7 a stage is given HuggingFace's own input, so that what differs is its own.

use super::cache::read_back;
use super::harness::{
    Checkpoint, Seen, Tensors, bits_that_differ, cells, cpu, difference, json, pool, run, step,
    unchanged,
};
use super::negatives::{erf_gelu, layer_norm};
use super::small::{DIM, HEADS, Small, WHOLE, saved};
use crate::batch::{Batch, Logits, Segment};
use crate::gpt2;
use crate::kernels::attention::tests::{Looked, looked};
use crate::kernels::attention::{RowPlace, attend_rows};
use crate::kernels::threads::Threads;
use crate::kv::KvType;
use crate::model::Model;
use crate::probe::Stage;

/// The largest difference of one stage over the layers that the fixture has.
fn of_stage(small: &Small, seen: &Seen, stage: Stage) -> f64 {
    let layers = seen.iter().filter(|((kind, _), _)| *kind == stage);
    let each = layers
        .filter_map(|((_, layer), ours)| Some(difference(ours, &small.stage(stage, *layer)?)));
    each.fold(f64::NEG_INFINITY, f64::max)
}

/// The least of some differences: each of them has to be large.
pub fn least(found: impl IntoIterator<Item = f64>) -> f64 {
    found.into_iter().fold(f64::INFINITY, f64::min)
}

#[test]
fn checkpoint_00_a_folder_as_huggingface_saves_it() {
    let (folder, ids, logits) = saved();
    let measure = |mut model: Model| {
        let seen = run(&mut model, &ids, &mut unchanged).0;
        difference(&seen[&(Stage::Logits, 2)], &logits.concat())
    };
    let mut saved = Checkpoint::new("0 a folder that HuggingFace saved", 1e-3);
    saved.part("logits", measure(Model::load(&folder, 1, None).unwrap()));
    // A square matrix has the right shape either way.
    let mut turned = Tensors::of("checkpoints/saved/model.safetensors");
    turned.transpose("attn.c_proj.weight");
    let turned = turned.model(&json("checkpoints/saved/config.json"));
    saved.negative("attention's c_proj transposed", measure(turned));
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
    let names = ["ln_1", "ln_2", "ln_f"];
    let right = measure(small.weights.model(&small.config));
    names.iter().zip(right).for_each(|(name, found)| checkpoint.part(name, found));
    let with_eps = |eps: f64| measure(small.weights.model(&small.with("layer_norm_epsilon", eps)));
    let [first, second, _] = with_eps(1e-3);
    checkpoint.negative("eps 1e-3, ln_1", first);
    checkpoint.negative("ln_2", second);
    // The stream has grown by then, and an eps counts beside its variance.
    checkpoint.negative("eps 0.1, ln_f", with_eps(0.1)[2]);
    let changed = |change: &dyn Fn(&mut Tensors)| {
        let mut weights = small.weights.clone();
        change(&mut weights);
        least(measure(weights.model(&small.config)))
    };
    let swap = |weights: &mut Tensors| {
        for norm in names {
            weights.swap(&format!("{norm}.weight"), &format!("{norm}.bias"));
        }
    };
    checkpoint.negative("weight and bias swapped, each at least", changed(&swap));
    let scale = |weights: &mut Tensors| {
        for norm in names {
            let end = format!("{norm}.weight");
            weights.change(&end, |values| values.iter_mut().for_each(|x| *x *= 1.01));
        }
    };
    checkpoint.negative("weights × 1.01, each at least", changed(&scale));
    checkpoint.finish();
}

/// The largest differences of queries, keys and values, as the product gives them.
fn projected(small: &Small, mut model: Model) -> [f64; 3] {
    let seen = run(&mut model, &small.ids, &mut small.forced(&[Stage::AttentionNorm])).0;
    let mut found = [0f64; 3];
    for layer in WHOLE {
        let (ours, theirs) = (&seen[&(Stage::Qkv, layer)], small.qkv(layer));
        assert_eq!(ours.len(), theirs.len());
        let parts = ours.chunks_exact(HEADS * DIM).zip(theirs.chunks_exact(HEADS * DIM));
        for (at, (ours, theirs)) in parts.enumerate() {
            found[at % 3] = found[at % 3].max(difference(ours, theirs));
        }
    }
    found
}

/// What the engine's heads make of HuggingFace's queries, keys and values, which are its rows:
/// keys and values as each head reads them, `[heads, rows, dim]`, and the heads' results.
fn by_head(small: &Small, mut model: Model) -> [f64; 3] {
    let (seen, kv, table) = run(&mut model, &small.ids, &mut small.forced(&[Stage::Qkv]));
    let (heads, dim) = (model.config().query_heads, model.config().head_dim);
    let mut found = [0.0, 0.0, of_stage(small, &seen, Stage::Mixed)];
    for layer in WHOLE {
        let read = read_back(&model, (&kv, &table.blocks), layer, 0..small.rows());
        for ((found, ours), part) in found.iter_mut().zip(&read).zip(["key", "value"]) {
            let of_head = |head: usize| {
                (0..small.rows()).flat_map(move |row| &ours[(row * heads + head) * dim..][..dim])
            };
            let ours: Vec<f32> = (0..heads).flat_map(of_head).copied().collect();
            let theirs = small.theirs.get(&format!("h.{layer}.{part}"));
            *found = f64::max(*found, difference(&ours, &theirs));
        }
    }
    found
}

#[test]
fn checkpoint_02_queries_keys_and_values() {
    let small = Small::new();
    let mut checkpoint = Checkpoint::new("2 queries, keys and values", 1e-4);
    let right = projected(&small, small.weights.model(&small.config));
    let names = ["q", "k", "v"];
    names.iter().zip(right).for_each(|(name, found)| checkpoint.part(name, found));
    let split = by_head(&small, small.weights.model(&small.config));
    let parts = ["keys by head", "values by head", "heads' results"];
    parts.iter().zip(split).for_each(|(name, found)| checkpoint.part(name, found));
    let eight = by_head(&small, small.weights.model(&small.with("n_head", 8)));
    checkpoint.negative("8 heads, each at least", least(eight));
    for (part, name) in names.iter().enumerate() {
        let mut unbiased = small.weights.clone();
        let width = HEADS * DIM;
        let part_of = part * width..(part + 1) * width;
        unbiased.change("c_attn.bias", |values| values[part_of.clone()].fill(0.0));
        let found = projected(&small, unbiased.model(&small.config));
        checkpoint.negative(&format!("bias of {name} zeroed"), found[part]);
    }
    let mut turned = small.weights.clone();
    turned.transpose("c_attn.weight");
    let found = projected(&small, turned.model(&small.config));
    checkpoint.negative("W transposed, each at least", least(found));
    checkpoint.finish();
    // A transposed matrix that says so is not loaded at all.
    let mut wrong = small.weights.clone();
    let name = "transformer.h.2.attn.c_attn.weight".to_owned();
    let turned = wrong.0[&name].t().unwrap().contiguous().unwrap();
    wrong.0.insert(name.clone(), turned);
    let why = wrong.refusal(&small.config);
    assert!(why.contains(&name) && why.contains("[256, 768] is needed"), "{why}");
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
    checkpoint.negative("no mask, by the weights", measure(last, 1.0, "weights"));
    checkpoint.finish();
    // Keys out of sight have no scores; without a mask they would.
    assert!(measure(last, 1.0, "scores").is_infinite(), "HuggingFace's mask is seen");
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
    let mut logits = |kv_type: KvType, change: &mut dyn FnMut(Stage, usize, &mut [f32])| {
        let (mut kv, table) = pool(&model, kv_type, small.rows());
        let seen = step(&mut model, (&mut kv, &table), (&small.ids, 0), change);
        of_stage(&small, &seen, Stage::Logits)
    };
    let mut stream = Vec::new();
    let mut skip = |stage: Stage, layer: usize, values: &mut [f32]| match stage {
        Stage::Out if layer == 3 => stream = values.to_vec(),
        Stage::State => values.copy_from_slice(&stream),
        _ => (),
    };
    let mut rounded = Checkpoint::new("8 logits, KV cache in half precision", 2e-2);
    rounded.part("logits of 20 rows", logits(KvType::F16, &mut unchanged));
    rounded.negative("ln_f skipped", logits(KvType::F16, &mut skip));
    rounded.finish();
    checkpoint.negative("ln_f skipped", logits(KvType::F32, &mut skip));

    let mut untied = small.weights.clone();
    let own = super::small::draw("lm_head.weight", &[869, 256]);
    untied.0.insert("lm_head.weight".into(), own);
    // Tied, a second one that is stored changes nothing.
    let stored = run(&mut untied.model(&small.config), &small.ids, &mut unchanged).0;
    assert_eq!(stored[&(Stage::Logits, 4)], seen[&(Stage::Logits, 4)]);
    let config = small.with("tie_word_embeddings", false);
    let wrong = run(&mut untied.model(&config), &small.ids, &mut unchanged).0;
    checkpoint.negative("untied head", of_stage(&small, &wrong, Stage::Logits));
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
