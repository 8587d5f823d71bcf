//! Checkpoint 3: what attention reads of the KV cache is what was written.

use std::ops::Range;

use super::harness::{Checkpoint, bits_that_differ, cells, cpu, pool, run, step, unchanged};
use super::small::{DIM, HEADS, Small};
use crate::gpt2;
use crate::kernels::attention::RowPlace;
use crate::kernels::attention::tests::{Looked, looked, value_at};
use crate::kv::{KvPool, KvType};
use crate::model::Model;
use crate::probe::Stage;

/// Keys and values of some positions of a layer, `[positions][heads · dim]` each, as the loops
/// of attention read them. Bit for bit where a head's size is a power of four.
pub fn read_back(
    model: &Model,
    (kv, blocks): (&KvPool, &[u32]),
    layer: usize,
    positions: Range<usize>,
) -> [Vec<f32>; 2] {
    let config = model.config();
    let (heads, dim) = (config.query_heads, config.head_dim);
    // Row d asks with the d-th unit vector in every head, so that its scores are the keys' d-th
    // values over √dim.
    let places = vec![RowPlace { position: positions.end - 1, sequence: 0 }; dim];
    let mut queries = vec![0.0; dim * 3 * heads * dim];
    for (d, row) in queries.chunks_exact_mut(3 * heads * dim).enumerate() {
        (0..heads).for_each(|h| row[h * dim + d] = 1.0);
    }
    let tables = [blocks];
    let rows = gpt2::rows(config, (&places, &tables), kv.layer_at(layer));
    let mut keys = vec![0.0; positions.len() * heads * dim];
    for Looked { row: d, head, scores, .. } in looked(cpu(), &rows, (&queries, cells(kv))) {
        for (at, score) in scores[positions.clone()].iter().enumerate() {
            keys[(at * heads + head) * dim + d] = score * (dim as f32).sqrt();
        }
    }
    let of = (&queries[..], cells(kv));
    let values = positions.flat_map(|key| value_at(cpu(), &rows, of, (0, key)));
    [keys, values.collect()]
}

/// Keys and values of rows `[query | key | value]` of a width, as [`read_back`] has them.
pub fn written(qkv: &[f32], width: usize) -> [Vec<f32>; 2] {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    for row in qkv.chunks_exact(3 * width) {
        keys.extend(&row[width..2 * width]);
        values.extend(&row[2 * width..]);
    }
    [keys, values]
}

fn both_differ(ours: &[Vec<f32>; 2], theirs: &[Vec<f32>; 2]) -> f64 {
    bits_that_differ(&ours[0], &theirs[0]) + bits_that_differ(&ours[1], &theirs[1])
}

#[test]
fn checkpoint_03_the_kv_cache_gives_back_what_it_was_given() {
    let small = Small::new();
    let (all, width) = (small.rows(), HEADS * DIM);
    let mut model = small.weights.model(&small.config);
    let (whole, kv, table) = run(&mut model, &small.ids, &mut unchanged);
    let mut checkpoint = Checkpoint::new("3 KV cache, values that are not the bits", 0.0);
    let given = [0, 1, 2, 3].map(|layer| written(&whole[&(Stage::Qkv, layer)], width));
    for (layer, given) in given.iter().enumerate() {
        let [keys, values] = read_back(&model, (&kv, &table.blocks), layer, 0..all);
        checkpoint.part("keys", bits_that_differ(&keys, &given[0]));
        checkpoint.part("values", bits_that_differ(&values, &given[1]));
    }
    // Read on after 8 tokens, as it must be, then from one place too late and one too early. The
    // second part's queries, keys and values are always the right ones: learned positions would
    // change them with the place, and what is written is not the question.
    for (start, name) in [(8, "in two parts"), (9, "start one late"), (7, "end one early")] {
        let (mut kv, table) = pool(&model, KvType::F32, all + 1);
        step(&mut model, (&mut kv, &table), (&small.ids[..8], 0), &mut unchanged);
        let mut right = |stage: Stage, layer: usize, values: &mut [f32]| {
            if stage == Stage::Qkv {
                values.copy_from_slice(&whole[&(stage, layer)][8 * 3 * width..]);
            }
        };
        let change: &mut dyn FnMut(Stage, usize, &mut [f32]) =
            if start == 8 { &mut unchanged } else { &mut right };
        step(&mut model, (&mut kv, &table), (&small.ids[8..], start), change);
        let differ = given.iter().enumerate().map(|(layer, given)| {
            both_differ(&read_back(&model, (&kv, &table.blocks), layer, 0..all), given)
        });
        match start {
            8 => checkpoint.part(name, differ.sum()),
            _ => checkpoint.negative(name, differ.sum()),
        }
    }
    // A read that begins one place on, and one that takes the two blocks the other way round.
    let [keys, values] = read_back(&model, (&kv, &table.blocks), 0, 1..all);
    let without_last = given[0].each_ref().map(|of| of[..of.len() - width].to_vec());
    checkpoint.negative("read one place on", both_differ(&[keys, values], &without_last));
    let exchanged: Vec<u32> = table.blocks.iter().rev().copied().collect();
    assert_eq!(exchanged.len(), 2);
    let read = read_back(&model, (&kv, &exchanged), 0, 0..all);
    checkpoint.negative("blocks exchanged", both_differ(&read, &given[0]));
    checkpoint.finish();
}
