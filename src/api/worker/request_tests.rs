//! Every bound of `/execute`, at it and one beyond.

use serde_json::{Value, json};

use super::*;

fn fields(extra: &Value) -> Vec<u8> {
    let mut fields = json!({"job_id": "test-123", "prompt": "Hello", "max_tokens": 10});
    for (key, value) in extra.as_object().unwrap() {
        fields[key] = value.clone();
    }
    fields.to_string().into_bytes()
}

/// The broken rules of a request: field, constraint, message, value.
fn broken_rules(extra: Value) -> Vec<(String, String, String, Option<String>)> {
    let request: Execute = read(&fields(&extra)).unwrap();
    match request.into_job(None) {
        Ok(_) => Vec::new(),
        Err(WireError::Fields(errors)) => errors
            .into_iter()
            .map(|error| (error.field.into(), error.constraint.into(), error.message, error.value))
            .collect(),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn the_seeds_request_has_the_protocols_defaults() {
    let body = br#"{"job_id": "test-123", "prompt": "Hello", "max_tokens": 10,
        "temperature": 0.7, "unknown": {"a": 1}}"#;
    let job = read::<Execute>(body).unwrap().into_job(None).unwrap();
    assert_eq!((job.id.as_str(), job.prompt.as_str(), job.max_tokens), ("test-123", "Hello", 10));
    let expected = JobSampling {
        temperature: 0.7,
        seed: 42,
        top_p: 1.0,
        top_k: 0,
        repetition_penalty: 1.0,
        min_p: 0.0,
    };
    assert_eq!(job.sampling, expected);
    assert!(job.stop.is_empty());
    let plain: Execute = read(&fields(&json!({}))).unwrap();
    assert_eq!(plain.temperature.to_bits(), 1.0_f64.to_bits());
}

#[test]
fn every_bound_is_inclusive() {
    let long = "é".repeat(32_768);
    let stop = "é".repeat(100);
    for extra in [
        json!({"prompt": long}),
        json!({"max_tokens": 1}),
        json!({"max_tokens": 2048}),
        json!({"temperature": 0}),
        json!({"temperature": 2}),
        json!({"top_p": 0}),
        json!({"top_p": 1}),
        json!({"repetition_penalty": 0}),
        json!({"repetition_penalty": 2}),
        json!({"min_p": 0}),
        json!({"min_p": 1}),
        json!({"top_k": 0}),
        json!({"top_k": u32::MAX}),
        json!({"seed": 0}),
        json!({"seed": u64::MAX}),
        json!({"stop": ["a", "b", "c", stop]}),
    ] {
        assert_eq!(broken_rules(extra.clone()), [], "{extra}");
    }
}

#[test]
fn one_beyond_a_bound_is_told_by_field_rule_words_and_value() {
    let prompt = "é".repeat(32_769);
    let two = "range(0.0..=2.0)";
    let one = "range(0.0..=1.0)";
    let table = [
        (json!({"job_id": ""}), "job_id", "non_empty", "job_id must not be empty", Some("")),
        (json!({"prompt": ""}), "prompt", "non_empty", "prompt must not be empty", None),
        (
            json!({"prompt": prompt}),
            "prompt",
            "length(1..=32768)",
            "prompt must be at most 32768 characters (got 32769)",
            None,
        ),
        (
            json!({"max_tokens": 0}),
            "max_tokens",
            "range(1..=2048)",
            "max_tokens must be at least 1",
            Some("0"),
        ),
        (
            json!({"max_tokens": 2049}),
            "max_tokens",
            "range(1..=2048)",
            "max_tokens must be at most 2048 (got 2049)",
            Some("2049"),
        ),
        (
            json!({"temperature": 2.1}),
            "temperature",
            two,
            "temperature must be at most 2.0 (got 2.1)",
            Some("2.1"),
        ),
        (
            json!({"temperature": -0.1}),
            "temperature",
            two,
            "temperature must be at least 0.0 (got -0.1)",
            Some("-0.1"),
        ),
        (json!({"top_p": 1.5}), "top_p", one, "top_p must be at most 1.0 (got 1.5)", Some("1.5")),
        (
            json!({"repetition_penalty": 3}),
            "repetition_penalty",
            two,
            "repetition_penalty must be at most 2.0 (got 3)",
            Some("3"),
        ),
        (json!({"min_p": -1}), "min_p", one, "min_p must be at least 0.0 (got -1)", Some("-1")),
    ];
    hold_each(table);
}

#[test]
fn stop_strings_are_told_one_by_one_and_never_repeated() {
    let stop = "é".repeat(101);
    hold_each([
        (
            json!({"stop": ["a", "b", "c", "d", "e"]}),
            "stop",
            "max_count(4)",
            "stop must have at most 4 sequences (got 5)",
            Some("5"),
        ),
        (json!({"stop": ["a", ""]}), "stop", "non_empty", "stop[1] must not be empty", None),
        (
            json!({"stop": [stop]}),
            "stop",
            "max_length(100)",
            "stop[0] must be at most 100 characters (got 101)",
            None,
        ),
    ]);
}

/// Requests that break one rule each: field, rule, words, value.
fn hold_each<'a>(
    table: impl IntoIterator<Item = (Value, &'a str, &'a str, &'a str, Option<&'a str>)>,
) {
    for (extra, field, constraint, message, value) in table {
        let value = value.map(str::to_owned);
        let expected = (field.to_owned(), constraint.to_owned(), message.to_owned(), value);
        assert_eq!(broken_rules(extra), [expected]);
    }
}

#[test]
fn all_broken_rules_are_told_in_the_protocols_order() {
    let broken = broken_rules(json!({
        "min_p": 2, "stop": ["", "b", "c", "d", "e"], "repetition_penalty": 3, "top_p": 2,
        "temperature": 3, "max_tokens": 0, "prompt": "", "job_id": "",
    }));
    let found: Vec<_> = broken.iter().map(|(field, ..)| field.as_str()).collect();
    let expected = [
        "job_id",
        "prompt",
        "max_tokens",
        "temperature",
        "top_p",
        "repetition_penalty",
        "stop",
        "stop",
        "min_p",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_body_of_a_million_stop_strings_gets_a_short_answer() {
    let broken = broken_rules(json!({"stop": vec![""; 500_000]}));
    assert_eq!(broken.len(), 65);
}

#[test]
fn what_is_missing_or_mistyped_is_told_apart_from_what_is_no_json() {
    let mistyped = [
        json!({"prompt": "Hello", "max_tokens": 1}),
        json!({"job_id": "a", "max_tokens": 1}),
        json!({"job_id": "a", "prompt": "b"}),
        json!({"job_id": 1, "prompt": "b", "max_tokens": 1}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": "1"}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 1.5}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": -1}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 4_294_967_296_u64}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 1, "seed": -1}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 1, "top_k": 4_294_967_296_u64}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 1, "temperature": null}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 1, "stop": "x"}),
        json!({"job_id": "a", "prompt": "b", "max_tokens": 1, "stop": [1]}),
        json!(["a", "b", 1]),
        json!("a"),
        json!(null),
    ];
    for body in mistyped {
        let error = read::<Execute>(body.to_string().as_bytes()).unwrap_err();
        assert!(matches!(error, WireError::Mistyped(_)), "{body}: {error:?}");
    }
    let not_utf8 = b"{\"job_id\": \"a\", \"prompt\": \"b\", \"max_tokens\": 1, \"x\": \"\xff\"}";
    for body in
        [&b""[..], b"{", b"{\"job_id\": \xff}", b"nope", b"[1", b"{} x", b"{\"a\": 1e}", not_utf8]
    {
        let error = read::<Execute>(body).unwrap_err();
        assert!(matches!(error, WireError::Malformed(_)), "{body:?}: {error:?}");
    }
}

#[test]
fn json_that_no_field_can_hold_is_not_told_as_malformed() {
    for extra in [
        "\"temperature\": 1e400",
        "\"temperature\": -1e400",
        "\"job_id\": \"\\ud800\"",
        "\"stop\": [\"\\ud800x\"]",
        "\"prompt\": [[[[1]]]]",
    ] {
        let body = format!("{{{extra}, \"job_id\": \"a\", \"prompt\": \"b\", \"max_tokens\": 1}}");
        match read::<Execute>(body.as_bytes()).unwrap_err() {
            WireError::Mistyped(told) => assert!(told.contains("line 1"), "{told}"),
            other => panic!("{body}: {other:?}"),
        }
    }
}

#[test]
fn a_mistyped_field_is_named() {
    let good = json!({"job_id": "a", "prompt": "b", "max_tokens": 1});
    for (field, value, named) in [
        ("max_tokens", json!(1.5), "max_tokens: "),
        ("max_tokens", json!(1.0), "max_tokens: "),
        ("seed", json!("7"), "seed: "),
        ("stop", json!(["a", 1]), "stop[1]: "),
        ("prompt", json!({"zanzibarberry": 1}), "prompt: "),
    ] {
        let mut body = good.clone();
        body[field] = value;
        match read::<Execute>(body.to_string().as_bytes()).unwrap_err() {
            WireError::Mistyped(told) => assert!(told.starts_with(named), "{told}"),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn no_message_repeats_what_a_client_wrote() {
    let secret = "zanzibarberry";
    for body in [
        format!("{{\"job_id\": \"a\", \"prompt\": \"b\", \"max_tokens\": \"{secret}\"}}"),
        format!("{{\"job_id\": \"a\", \"prompt\": \"b\", \"seed\": \"expected {secret} at\"}}"),
        format!("{{\"prompt\": {secret}"),
        format!("{{\"{secret}\": 1, \"stop\": [\"a\", {{\"{secret}\": 1}}]}}"),
    ] {
        let told = match read::<Execute>(body.as_bytes()).unwrap_err() {
            WireError::Malformed(told) | WireError::Mistyped(told) => told,
            other => panic!("{other:?}"),
        };
        assert!(!told.contains(secret), "{told}");
    }
}
