//! What comes out of a sequence: text, stop strings, ends, limits.

use tally_engine::{ChatFormat, FinishReason, Sampling, SequenceRequest};

use crate::kit::{answer, request, shared, user};

fn capital() -> SequenceRequest {
    let prompt = shared().encode_raw("The capital of France is").unwrap();
    request(prompt, 12)
}

#[test]
fn greedy_text_is_what_llama_cpp_writes() {
    // llama.cpp (xllamacpp 2026.10.11549), temperature 0, the same file and prompt.
    let text = answer(&shared(), capital()).text();
    assert!(text.starts_with(" Paris.\n\nThe United States"), "{text:?}");
}

#[test]
fn the_parts_are_the_text_of_the_ids() {
    let engine = shared();
    let prompt = engine.encode_chat(&[user("Write 😀 and 中文 and é many times: 😀😀😀 中文 é")]);
    let sampling = Sampling { temperature: 1.2, seed: [9; 32], ..Sampling::greedy() };
    let answer = answer(&engine, SequenceRequest { sampling, ..request(prompt.unwrap(), 200) });
    let whole = engine.decode(&answer.ids);
    let text = answer.text();
    assert!(whole.starts_with(&text));
    // What is missing at the end can only be a character that never became whole.
    assert!(whole[text.len()..].chars().all(|c| c == char::REPLACEMENT_CHARACTER));
}

#[test]
fn max_tokens_are_given_and_no_more() {
    for max_tokens in [1, 2, 7] {
        let answer = answer(&shared(), SequenceRequest { max_tokens, ..capital() });
        assert_eq!((answer.counted, answer.reason), (max_tokens, FinishReason::Length));
    }
}

#[test]
fn the_models_end_is_neither_emitted_nor_counted() {
    let engine = shared();
    let prompt = engine.encode_chat(&[user("Say hello.")]).unwrap();
    let answer = answer(&engine, request(prompt, 400));
    assert_eq!(answer.reason, FinishReason::Stop, "{}", answer.text());
    assert!(answer.ids.iter().all(|id| !engine.info().eos_ids.contains(id)));
    assert_eq!(engine.info().chat_format, ChatFormat::Own);
    assert!(!answer.text().is_empty() && !answer.text().contains("<|"), "{}", answer.text());
}

#[test]
fn an_end_that_is_ignored_is_never_drawn_and_nothing_before_it_changes() {
    let engine = shared();
    let prompt = engine.encode_chat(&[user("Say hello.")]).unwrap();
    let free = answer(&engine, request(prompt.clone(), 400));
    assert_eq!(free.reason, FinishReason::Stop, "the model would end here");
    let max_tokens = free.counted + 20;
    // A penalty on ids of the prompt, which the end token is one of, changes its logit too.
    for repetition_penalty in [1.0, 1.3] {
        let sampling = Sampling { repetition_penalty, ..Sampling::greedy() };
        let plain = request(prompt.clone(), max_tokens);
        let endless = answer(&engine, SequenceRequest { sampling, ignore_eos: true, ..plain });
        assert_eq!((endless.counted, &endless.reason), (max_tokens, &FinishReason::Length));
        assert!(endless.ids.iter().all(|id| !engine.info().eos_ids.contains(id)));
        if repetition_penalty == 1.0 {
            assert_eq!(endless.ids[..free.ids.len()], free.ids);
        }
    }
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let engine = shared();
    let free = answer(&engine, capital());
    // Inside a token, across tokens, at the very beginning.
    for stop in ["aris", "Paris.\n\nThe Uni", " Paris", "ed States"] {
        let text = free.text();
        let at = text.find(stop).unwrap();
        let stopped =
            answer(&engine, SequenceRequest { stop: vec!["§".into(), stop.into()], ..capital() });
        assert_eq!(stopped.reason, FinishReason::StopString(stop.into()));
        assert_eq!(stopped.text(), text[..at], "{stop:?}");
        assert_eq!(stopped.ids, free.ids[..stopped.ids.len()], "{stop:?}");
        // The counted tokens lie wholly before the stop string, and one more would not.
        assert!(engine.decode(&stopped.ids).len() <= at);
        assert!(engine.decode(&free.ids[..=stopped.ids.len()]).len() > at);
    }
}

#[test]
fn a_stop_string_that_does_not_come_changes_nothing() {
    let free = answer(&shared(), capital());
    let stop = vec!["Paris?".into(), "States of Z".into()];
    assert_eq!(answer(&shared(), SequenceRequest { stop, ..capital() }), free);
}

#[test]
fn a_penalty_and_a_seed_change_the_text_and_replay() {
    let engine = shared();
    let with = |sampling: Sampling| {
        answer(&engine, SequenceRequest { sampling, max_tokens: 40, ..capital() }).ids
    };
    let seeded = |seed: u8| Sampling {
        temperature: 0.8,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.02,
        seed: [seed; 32],
        ..Sampling::greedy()
    };
    assert_eq!(with(seeded(1)), with(seeded(1)));
    assert_ne!(with(seeded(1)), with(seeded(2)));
    let penalised = Sampling { repetition_penalty: 1.3, ..Sampling::greedy() };
    assert_eq!(with(penalised.clone()), with(penalised.clone()));
    assert_ne!(with(penalised), with(Sampling::greedy()));
}

#[test]
fn penalties_of_the_completion_and_biases_reach_the_sampler() {
    let engine = shared();
    let with = |sampling: Sampling| {
        answer(&engine, SequenceRequest { sampling, max_tokens: 60, ..capital() }).ids
    };
    let free = with(Sampling::greedy());
    let most = |ids: &[u32]| {
        ids.iter().map(|id| ids.iter().filter(|one| *one == id).count()).max().unwrap()
    };
    let frequent = with(Sampling { frequency_penalty: 2.0, ..Sampling::greedy() });
    assert!(most(&frequent) < most(&free), "{frequent:?}");
    let present = with(Sampling { presence_penalty: 2.0, ..Sampling::greedy() });
    assert!(most(&present) < most(&free), "{present:?}");
    let bias = [(free[0], -100.0)].into();
    let banned = with(Sampling { logit_bias: bias, ..Sampling::greedy() });
    assert!(!banned.contains(&free[0]));
}

#[test]
fn logprobs_are_told_with_each_token_also_where_a_stop_string_holds_it_back() {
    let engine = shared();
    let free = answer(&engine, capital());
    assert!(free.logprobs.iter().all(Option::is_none), "nobody asked");
    let sampling = Sampling { logprobs: Some(3), ..Sampling::greedy() };
    // Held back token by token until it turns out that it doesn't come.
    let stop = vec![free.text()[..20].to_string() + "§"];
    let told = answer(&engine, SequenceRequest { sampling, stop, ..capital() });
    assert_eq!((&told.ids, told.text()), (&free.ids, free.text()));
    let mut previous = f64::NEG_INFINITY;
    for (id, logprobs) in told.ids.iter().zip(&told.logprobs) {
        let logprobs = logprobs.as_ref().unwrap();
        // Greedy: the drawn token is the first of the most likely ones.
        assert_eq!((logprobs.chosen.id, logprobs.top.len()), (*id, 3));
        assert_eq!(logprobs.top[0], logprobs.chosen);
        assert!(logprobs.top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        let mass: f64 = logprobs.top.iter().map(|one| one.logprob.exp()).sum();
        assert!(mass <= 1.0 + 1e-9 && logprobs.chosen.logprob <= 0.0);
        assert_eq!(String::from_utf8_lossy(&logprobs.chosen.bytes), engine.decode(&[*id]));
        assert_ne!(logprobs.chosen.logprob, previous, "each token has its own");
        previous = logprobs.chosen.logprob;
    }
}
