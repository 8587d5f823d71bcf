//! GGUF files.

use tally_engine::LoadError;

use crate::gguf_file::{LIST, Parts, TEXT, counted, list, text, typed, u32_value};
use crate::mutate::{Random, damage, seeds};
use crate::watched::{folder, load};

fn loaded(bytes: &[u8], what: &str) -> Result<(), LoadError> {
    let folder = folder();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    load(&path, what)
}

/// What a refusal names: its kind, and the key, tensor or file.
fn named(error: &LoadError) -> (&'static str, String) {
    match error {
        LoadError::Io { .. } => ("io", String::new()),
        LoadError::Format { reason, .. } => ("file", reason.clone()),
        LoadError::Metadata { key, .. } => ("key", key.clone()),
        LoadError::Tensor { tensor, .. } => ("tensor", tensor.clone()),
        LoadError::UnsupportedQuantisation { tensor, .. } => ("type", tensor.clone()),
        LoadError::UnsupportedArchitecture(what) => ("architecture", what.clone()),
        LoadError::Tokenizer(what) => ("tokenizer", what.clone()),
        LoadError::Options { option, .. } => ("option", option.to_string()),
    }
}

#[test]
fn the_sound_file_loads_and_runs() {
    loaded(&Parts::sound().write().bytes, "sound").unwrap();
    let second = Parts { version: 2, ..Parts::sound() };
    loaded(&second.write().bytes, "version 2").unwrap();
}

#[test]
fn every_spoiled_part_is_refused_by_its_name() {
    type Spoil = fn(&mut Parts);
    const HUGE: u64 = 1 << 62;
    const Q: &str = "blk.0.attn_q.weight";
    let cases: &[(&str, &str, Spoil)] = &[
        ("file", "GGUF", |p| p.magic = *b"GGML"),
        ("file", "version 1", |p| p.version = 1),
        ("file", "version 4", |p| p.version = 4),
        ("file", "big-endian", |p| p.version = 3u32.swap_bytes()),
        ("file", "tensors", |p| p.counts = Some((p.keys.len() as u64, u64::MAX))),
        ("file", "metadata keys", |p| p.counts = Some((1 << 40, 0))),
        ("file", "metadata key 0", |p| p.keys[0].0.clear()),
        ("file", "metadata key 1", |p| p.keys[1].0 = vec![b'k'; 70_000]),
        ("file", "metadata key 2", |p| p.keys[2].0 = vec![b'k', 0xff]),
        ("file", "tensor 0", |p| p.tensors[0].name = "t".repeat(65)),
        ("key", "x", |p| p.set("x", typed(13, &[0; 8]))),
        ("key", "x", |p| p.set("x", typed(7, &[2]))),
        ("key", "x", |p| p.set("x", typed(TEXT, &counted(&[0xc3, 0x28])))),
        ("key", "x", |p| p.set("x", typed(TEXT, &HUGE.to_le_bytes()))),
        ("key", "x", |p| p.set("x", list(LIST, 1, &list(4, 1, &[0; 4])[4..]))),
        ("key", "x", |p| p.set("x", list(13, 1, &[0; 8]))),
        ("key", "x", |p| p.set("x", list(10, HUGE, &[]))),
        ("key", "x", |p| p.set("x", list(10, 1 << 22, &[]))),
        ("key", "x", |p| p.set("x", list(TEXT, 1 << 22, &[0; 8]))),
        ("key", "general.architecture", |p| {
            p.keys.push((b"general.architecture".to_vec(), text("llama")));
        }),
        ("key", "general.alignment", |p| p.set("general.alignment", u32_value(0))),
        ("key", "general.alignment", |p| p.set("general.alignment", u32_value(24))),
        ("key", "general.alignment", |p| p.set("general.alignment", u32_value(1 << 31))),
        ("key", "general.alignment", |p| p.set("general.alignment", text("32"))),
        ("key", "split.count", |p| p.set("split.count", typed(2, &[3, 0]))),
        ("key", "llama.block_count", |p| p.set("llama.block_count", u32_value(0))),
        ("key", "llama.block_count", |p| p.set("llama.block_count", text("two"))),
        ("key", "tokenizer.ggml.tokens", |p| p.set("tokenizer.ggml.tokens", text("a"))),
        ("tensor", Q, |p| p.tensor(Q).kind = 4),
        ("tensor", Q, |p| p.tensor(Q).kind = 1000),
        ("type", Q, |p| p.tensor(Q).kind = 20),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![0, 64]),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![63, 64]),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![64, 32]),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![64, 64, 1, 1, 1]),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![1 << 32, 1 << 32]),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![64, HUGE]),
        ("tensor", Q, |p| p.tensor(Q).dims = vec![HUGE, 64]),
        ("tensor", Q, |p| p.tensor(Q).offset += 1),
        ("tensor", Q, |p| p.tensor(Q).offset = HUGE),
        ("tensor", Q, |p| p.tensor(Q).offset = u64::MAX - 31),
        ("tensor", "blk.0.attn_k.weight", |p| p.tensor("blk.0.attn_k.weight").offset -= 32),
        ("tensor", Q, |p| p.tensor("blk.0.attn_k.weight").name = Q.into()),
        ("tensor", Q, |p| p.tensors.retain(|tensor| tensor.name != Q)),
        ("tensor", "output_norm.weight", |p| p.tensor("output_norm.weight").offset += 32),
    ];
    for (nth, (kind, name, spoil)) in cases.iter().enumerate() {
        let mut parts = Parts::sound();
        spoil(&mut parts);
        let error = loaded(&parts.write().bytes, name).expect_err(&format!("case {nth}: {name}"));
        let found = named(&error);
        let is_it = found.0 == *kind
            && if *kind == "file" { found.1.contains(name) } else { found.1 == *name };
        assert!(is_it, "case {nth}: {kind} {name}, found {found:?}: {error}");
    }
}

#[test]
fn no_beginning_of_a_file_passes_for_the_whole() {
    let whole = Parts::sound().write().bytes;
    // All of the header, then the data in steps.
    let lengths = (0..8192).chain((8192..whole.len()).step_by(509));
    for length in lengths.filter(|length| *length < whole.len()) {
        let what = format!("the first {length} bytes");
        assert!(loaded(&whole[..length], &what).is_err(), "{what} load");
    }
}

#[test]
fn damaged_files_never_panic_and_never_make_a_large_allocation() {
    let sound = Parts::sound().write();
    let header = sound.marks.last().map_or(0, |mark| mark.at + mark.bytes);
    let (mut refused, mut accepted) = (0, 0);
    for seed in seeds(6000) {
        let mut random = Random(seed);
        let mut bytes = sound.bytes.clone();
        let done = damage(&mut bytes, header, &sound.marks, &mut random);
        match loaded(&bytes, &format!("seed {seed}: {done}")) {
            Ok(()) => accepted += 1,
            Err(error) => {
                let text = error.to_string();
                assert!(text.len() < 1000, "seed {seed}: {} bytes of error", text.len());
                refused += 1;
            }
        }
    }
    // Damage that only changes names that nobody reads is harmless; most is not.
    assert!(refused > 4000 && accepted > 100, "{refused} refused, {accepted} accepted");
}
