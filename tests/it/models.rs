//! Several models in one node: their names, their memory, and that each answers as if it were
//! alone. Needs a model file (TALLY_TEST_MODEL).

use std::collections::BTreeMap;

use tally::engine::{Engine, EngineEvent, GenerationSpec, Prompt, Sampling, StartError};
use tally::node::models;
use tally::node::settings::{Inputs, Settings};
use tally::node::wiring::WiringError;
use tally::units::Hash32;

pub fn model() -> String {
    std::env::var("TALLY_TEST_MODEL")
        .expect("this test needs a model: set TALLY_TEST_MODEL to SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Two models, both of them the test's file.
pub fn settings(more: &[(&str, &str)]) -> Settings {
    let second = format!("second={}", model());
    let two = [("TALLY_MODEL_NAME", "first"), ("TALLY_MODEL_MORE", second.as_str())];
    settings_of(&model(), &[&two, more].concat())
}

/// The model of this file or folder, and further settings.
pub fn settings_of(path: &str, more: &[(&str, &str)]) -> Settings {
    let base = [
        ("HOME", "/nonexistent"),
        ("TALLY_FREE", "true"),
        ("TALLY_MODEL_PATH", path),
        ("TALLY_ENGINE_KV_MEMORY_BYTES", "64MiB"),
        ("TALLY_ENGINE_THREADS", "2"),
    ];
    let all = base.iter().chain(more);
    let env: BTreeMap<_, _> =
        all.map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
    Settings::load(&Inputs { env, dir: "/nonexistent".into(), ..Inputs::default() }).unwrap()
}

fn refused(more: &[(&str, &str)]) -> WiringError {
    models::load(&settings(more)).err().unwrap()
}

/// The text that a model makes of a prompt.
async fn say(engine: &dyn Engine, model: &str, prompt: &str) -> String {
    let spec = GenerationSpec {
        model: model.into(),
        prompt_ids: engine.render(model, &Prompt::Raw(prompt.into())).unwrap(),
        max_tokens: 12,
        sampling: Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            logprobs: None,
            seed: Hash32::ZERO,
        },
        stop: Vec::new(),
        ignore_eos: false,
        owner: Hash32::ZERO,
    };
    let mut generation = engine.start(spec).unwrap();
    let mut text = String::new();
    while let Some(event) = generation.next().await {
        if let EngineEvent::Token { text: piece, .. } = event {
            text += &piece;
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn models_answer_side_by_side_what_they_answer_alone() {
    let engine = tokio::task::spawn_blocking(|| models::load(&settings(&[]))).await;
    let engine = engine.unwrap().unwrap();
    let cards = engine.catalog();
    let names: Vec<_> = cards.iter().map(|card| card.name.as_str()).collect();
    assert_eq!(names, ["first", "second"]);
    assert_eq!(cards[0].weights_sha256, cards[1].weights_sha256);
    assert_ne!(cards[0].weights_sha256, Hash32::ZERO);
    assert_eq!(engine.render("third", &Prompt::Raw("a".into())), Err(StartError::UnknownModel));

    let prompts = ["The capital of France is", "Once upon a time"];
    let alone = [say(&engine, "first", prompts[0]).await, say(&engine, "first", prompts[1]).await];
    let (a, b, c, d) = tokio::join!(
        say(&engine, "first", prompts[0]),
        say(&engine, "second", prompts[0]),
        say(&engine, "second", prompts[1]),
        say(&engine, "first", prompts[1]),
    );
    assert_eq!([&a, &d], [&alone[0], &alone[1]]);
    assert_eq!([&b, &c], [&alone[0], &alone[1]]);
    assert!(a.len() > 10 && a != d, "{a:?} {d:?}");

    let before = engine.load();
    let paragraph = "The keeper of the lighthouse climbed the hundred and twelve steps every \
                     evening, lit the lamp, and wrote the weather into a blue book.\n\n";
    say(&engine, "second", &format!("{paragraph}{paragraph}The keeper of")).await;
    let load = engine.load();
    let guessed = load.guessed_tokens - before.guessed_tokens;
    let right = load.guessed_right - before.guessed_right;
    assert!(0 < right && right <= guessed, "{right} of {guessed}");

    engine.shutdown();
    assert!(!engine.is_healthy());
}

#[test]
fn a_model_that_does_not_fit_stops_the_start_by_its_name() {
    // The cache takes 64 MiB and one model 96 MB: the second one finds too little.
    let (second, all) = match refused(&[("TALLY_ENGINE_MEMORY_BYTES", "200MiB")]) {
        WiringError::Memory { model, all, .. } => (model, all),
        other => panic!("{other}"),
    };
    assert_eq!((second.as_str(), all), ("second", 200 << 20));
    let first = refused(&[("TALLY_ENGINE_MEMORY_BYTES", "100MiB")]).to_string();
    assert!(first.contains("model first") && first.contains("engine.memory_bytes"), "{first}");
}

#[test]
fn two_models_of_one_name_are_refused() {
    let doubled = refused(&[("TALLY_MODEL_NAME", "second")]);
    assert!(matches!(&doubled, WiringError::ModelName(name) if name == "second"), "{doubled}");
}
