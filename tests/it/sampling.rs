//! How tokens are chosen, and what is told of it, over every front-end: the same settings, the same
//! refusals by name, the same probabilities. The second half runs the real model
//! (TALLY_TEST_MODEL).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tally::engine::Sampling;
use tally::node::models;
use tally::units::Address;

use crate::models::settings;
use crate::support::http::{Answer, post};
use crate::support::node::{Setup, TestNode, job, prompt};
use crate::support::ws::Socket;

const CHAT: &str = "/v1/chat/completions";
const INFERENCE: &str = "/v1/inference";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Face {
    Rest,
    RestStream,
    SocketInference,
    SocketPrompt,
    SocketWhole,
    Chat,
    ChatStream,
}

const FACES: [Face; 7] = [
    Face::Rest,
    Face::RestStream,
    Face::SocketInference,
    Face::SocketPrompt,
    Face::SocketWhole,
    Face::Chat,
    Face::ChatStream,
];

/// What a client learned: the text and the probabilities of its tokens, or the refused field.
#[derive(Debug, Clone, PartialEq)]
enum Told {
    Answer { text: String, logprobs: Vec<Value> },
    Refused { code: String, field: String },
}

impl Face {
    const fn is_chat(self) -> bool {
        matches!(self, Self::Chat | Self::ChatStream)
    }

    /// Sends `fields` beside a prompt of this face.
    async fn ask(self, node: &TestNode, fields: &Value) -> Told {
        let mut all = prompt(json!({}));
        let is_streamed = !matches!(self, Self::Rest | Self::SocketWhole | Self::Chat);
        all["stream"] = is_streamed.into();
        if self.is_chat() {
            let content = all.as_object_mut().unwrap().remove("prompt");
            all["messages"] = json!([{"role": "user", "content": content}]);
        }
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        match self {
            Self::Rest | Self::RestStream => told(&post(node.addr, INFERENCE, &all).await),
            Self::Chat | Self::ChatStream => told(&post(node.addr, CHAT, &all).await),
            Self::SocketInference | Self::SocketPrompt | Self::SocketWhole => {
                let is_first = self == Self::SocketInference;
                let kind = if is_first { "inference" } else { "prompt" };
                let mut socket = Socket::connect(node.addr).await;
                socket.send(json!({"type": kind, "request": all, "id": 1})).await;
                let messages = socket.recv_until(&["stream_end", "response", "error"]).await;
                let last = messages.last().unwrap();
                match last["type"].as_str() {
                    Some("error") => refusal(&last["error_type"], &last["details"]["field"]),
                    _ => pieces(&messages),
                }
            }
        }
    }
}

fn refusal(code: &Value, field: &Value) -> Told {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Told::Refused { code: text(code), field: text(field) }
}

/// The answer that pieces of it make; each has the probabilities of its own tokens.
fn pieces(pieces: &[Value]) -> Told {
    let (mut text, mut logprobs) = (String::new(), Vec::new());
    for piece in pieces {
        let choice = &piece["choices"][0];
        let spoken =
            [&piece["content"], &choice["delta"]["content"], &choice["message"]["content"]];
        text.extend(spoken.iter().filter_map(|words| words.as_str()));
        for content in [&piece["logprobs"]["content"], &choice["logprobs"]["content"]] {
            let told = content.as_array().cloned().unwrap_or_default();
            if let (Some(tokens), false) = (piece["tokens"].as_u64(), told.is_empty()) {
                assert_eq!(told.len() as u64, tokens, "one for each token of the piece");
            }
            logprobs.extend(told);
        }
    }
    Told::Answer { text, logprobs }
}

fn told(answer: &Answer) -> Told {
    if answer.status != 200 {
        let body = answer.json();
        return match body.get("error") {
            Some(error) => refusal(&error["code"], &error["param"]),
            None => refusal(&body["error_type"], &body["details"]["field"]),
        };
    }
    if answer.header("content-type") == Some("application/json") {
        return pieces(&[answer.json()]);
    }
    let events = answer.events();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let values = events.iter().map(|event| serde_json::from_str(event).unwrap());
    pieces(&values.collect::<Vec<Value>>())
}

#[tokio::test]
async fn every_setting_reaches_the_engine_over_every_face() {
    let fields = json!({"temperature": 0.5, "top_k": 4, "top_p": 0.75, "min_p": 0.25,
        "repetition_penalty": 1.5, "frequency_penalty": -0.5, "presence_penalty": 2,
        "logit_bias": {"7": -100, "12": 0.5}, "logprobs": true, "top_logprobs": 5, "seed": 4,
        "stop": "five", "ignore_eos": true});
    for face in FACES {
        let node = TestNode::plain().await;
        let answer = face.ask(&node, &fields).await;
        assert!(matches!(answer, Told::Answer { .. }), "{face:?}: {answer:?}");
        let started = &node.engine.starts()[0];
        let seed = started.sampling.seed;
        let expected = Sampling {
            temperature: 0.5,
            top_k: 4,
            top_p: 0.75,
            min_p: 0.25,
            repetition_penalty: 1.5,
            frequency_penalty: -0.5,
            presence_penalty: 2.0,
            logit_bias: BTreeMap::from([(7, -100.0), (12, 0.5)]),
            logprobs: Some(5),
            seed,
        };
        assert_eq!(started.sampling, expected, "{face:?}");
        assert_eq!(seed.bytes()[31], 4, "{face:?}");
        assert_eq!((&started.stop[..], started.ignore_eos), (&["five".to_owned()][..], true));
    }
}

#[tokio::test]
async fn what_is_out_of_range_or_of_a_wrong_type_is_refused_by_its_name_over_every_face() {
    let many: Map<String, Value> = (0..301).map(|id| (id.to_string(), json!(1))).collect();
    let cases = [
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_k", json!(-1)),
        ("top_p", json!(1.1)),
        ("min_p", json!(-0.1)),
        ("min_p", json!("a little")),
        ("repetition_penalty", json!(0)),
        ("repetition_penalty", json!(0.009)),
        ("repetition_penalty", json!(2.1)),
        ("frequency_penalty", json!(2.1)),
        ("frequency_penalty", json!([1])),
        ("presence_penalty", json!(-2.1)),
        ("logit_bias", json!({"7": 100.1})),
        ("logit_bias", json!({"Paris": 1})),
        ("logit_bias", Value::Object(many)),
        ("logprobs", json!(5)),
        ("top_logprobs", json!(1)),
        ("seed", json!(1.5)),
        ("stop", json!(["a", "b", "c", "d", "e"])),
        ("stop", json!("")),
        ("ignore_eos", json!("yes")),
    ];
    let node = TestNode::plain().await;
    for face in FACES {
        for (field, value) in &cases {
            let fields = json!({ *field: value });
            let refused = refusal(&json!("validation_error"), &json!(field));
            assert_eq!(face.ask(&node, &fields).await, refused, "{face:?}: {fields}");
        }
        let fields = json!({"logprobs": true, "top_logprobs": 21});
        let refused = refusal(&json!("validation_error"), &json!("top_logprobs"));
        assert_eq!(face.ask(&node, &fields).await, refused, "{face:?}");
    }
    assert_eq!(node.engine.starts().len(), 0);
}

#[tokio::test]
async fn an_unknown_field_is_ignored_by_the_marketplaces_faces_and_refused_by_openais() {
    let node = TestNode::plain().await;
    for face in FACES {
        let answer = face.ask(&node, &json!({"mirostat": 2})).await;
        let refused = refusal(&json!("validation_error"), &json!("mirostat"));
        assert_eq!(answer == refused, face.is_chat(), "{face:?}: {answer:?}");
    }
}

#[tokio::test]
async fn each_token_has_its_probabilities_where_they_are_asked_for_over_every_face() {
    for face in FACES {
        let node = TestNode::plain().await;
        let answer = face.ask(&node, &json!({"logprobs": true, "top_logprobs": 1})).await;
        let Told::Answer { text, logprobs } = answer else { panic!("{face:?}: {answer:?}") };
        let tokens: Vec<&str> =
            logprobs.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
        assert_eq!(tokens, ["one ", "two ", "three ", "four ", "five"], "{face:?}");
        assert_eq!(tokens.concat(), text);
        let one = json!({"token": "one ", "logprob": 0.0, "bytes": b"one ".to_vec()});
        let mut first = one.clone();
        first["top_logprobs"] = json!([one]);
        assert_eq!(logprobs[0], first, "{face:?}");
    }
}

#[tokio::test]
async fn what_nobody_asked_for_changes_no_byte_of_a_frame() {
    let node = TestNode::plain().await;
    let fields = json!({"stream": true, "max_tokens": 1, "request_id": "r-1"});
    let answer = post(node.addr, INFERENCE, &prompt(fields)).await;
    let usage = "\"usage\":{\"completion_tokens\":1,\"context_window_size\":64,\
                 \"prompt_tokens\":4,\"total_tokens\":5}";
    let expected = [
        format!(
            "{{\"content\":\"one \",\"finish_reason\":null,\"model\":\"scripted\",\
             \"request_id\":\"r-1\",\"tokens\":1,{usage}}}"
        ),
        format!(
            "{{\"chain_id\":31337,\"content\":\"\",\"finish_reason\":\"length\",\"job_id\":139,\
             \"model\":\"scripted\",\"request_id\":\"r-1\",\"tokens_used\":1,{usage}}}"
        ),
        "[DONE]".to_owned(),
    ];
    assert_eq!(answer.events(), expected);
    let mut socket = Socket::connect(node.addr).await;
    let request = prompt(json!({"max_tokens": 1}));
    socket.send(json!({"type": "inference", "request": request, "id": 1})).await;
    let messages = socket.recv_until(&["stream_end"]).await;
    let chunk = messages.iter().find(|message| message["type"] == "stream_chunk").unwrap();
    let keys: Vec<&str> = chunk.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["content", "id", "session_id", "tokens", "type", "usage"]);
}

/// A node on the real model; job 150 is another depositor's.
async fn real() -> TestNode {
    let loading = || models::load(&settings(&[("TALLY_MODEL_MORE", "")]));
    let engine = tokio::task::spawn_blocking(loading).await.unwrap().unwrap();
    let node = TestNode::start_real(Setup::default(), Arc::new(engine)).await;
    node.chain.open(job(150), 1000);
    node.chain.change(job(150), |job| job.depositor = Address::new([0xde; 20]));
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_model_tells_the_same_probabilities_over_every_face_and_the_same_text_without() {
    let node = real().await;
    let mut first: Option<Told> = None;
    for face in FACES {
        let mut fields = json!({"model": "first", "temperature": 0, "max_tokens": 6,
            "frequency_penalty": 0.5, "logprobs": true, "top_logprobs": 3});
        let answer = face.ask(&node, &fields).await;
        let Told::Answer { text, logprobs } = &answer else { panic!("{face:?}: {answer:?}") };
        assert_eq!(logprobs.len(), 6, "{face:?}");
        let bytes =
            |entry: &Value| -> Vec<u8> { serde_json::from_value(entry["bytes"].clone()).unwrap() };
        let said: Vec<u8> = logprobs.iter().flat_map(bytes).collect();
        assert_eq!(String::from_utf8_lossy(&said), *text, "{face:?}");
        for entry in logprobs {
            let top = entry["top_logprobs"].as_array().unwrap();
            let values: Vec<f64> = top.iter().map(|one| one["logprob"].as_f64().unwrap()).collect();
            assert!(values.len() == 3 && values.is_sorted_by(|a, b| a >= b), "{entry}");
            assert!(values.iter().map(|value| value.exp()).sum::<f64>() < 1.000_001, "{entry}");
            assert!(entry["logprob"].as_f64().unwrap() <= values[0], "{entry}");
        }
        fields["logprobs"] = Value::Null;
        fields["top_logprobs"] = Value::Null;
        let silent = Told::Answer { text: text.clone(), logprobs: Vec::new() };
        assert_eq!(face.ask(&node, &fields).await, silent, "{face:?}");
        assert_eq!(*first.get_or_insert_with(|| answer.clone()), answer, "{face:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_model_obeys_a_bias_and_names_one_for_an_id_that_it_has_not() {
    let node = real().await;
    for face in FACES {
        let fields = |bias: Value| {
            json!({"model": "first", "temperature": 0, "max_tokens": 3, "logit_bias": bias,
                "ignore_eos": true, "logprobs": true})
        };
        let answer = face.ask(&node, &fields(json!({"28": 100}))).await;
        let Told::Answer { text, logprobs } = &answer else { panic!("{face:?}: {answer:?}") };
        assert!(!text.is_empty() && logprobs.len() == 3, "{face:?}: {text:?}");
        assert!(logprobs.iter().all(|entry| entry["token"] == logprobs[0]["token"]), "{face:?}");
        let refused = refusal(&json!("validation_error"), &json!("logit_bias"));
        let stranger = face.ask(&node, &fields(json!({"49152": 1}))).await;
        assert_eq!(stranger, refused, "{face:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn openais_usage_tells_cached_tokens_of_ones_own_prompts_only() {
    let node = real().await;
    let words = "Once upon a time there was a small harbour town. ".repeat(8);
    let ask = async |of: u64, content: String, is_streamed: bool| {
        let mut fields = json!({"model": "first", "job_id": of, "max_tokens": 2, "temperature": 0,
            "messages": [{"role": "user", "content": content}]});
        if is_streamed {
            fields["stream"] = true.into();
            fields["stream_options"] = json!({"include_usage": true});
        }
        let answer = post(node.addr, CHAT, &fields).await;
        let usage = match is_streamed {
            false => answer.json()["usage"].clone(),
            true => {
                let events = answer.events();
                let last: Value = serde_json::from_str(&events[events.len() - 2]).unwrap();
                last["usage"].clone()
            }
        };
        let count = |value: &Value| value.as_u64().unwrap();
        (count(&usage["prompt_tokens"]), count(&usage["prompt_tokens_details"]["cached_tokens"]))
    };
    let (prompt_tokens, cold) = ask(139, words.clone(), false).await;
    assert!(prompt_tokens > 80 && cold == 0, "{prompt_tokens} {cold}");
    for is_streamed in [false, true] {
        let (longer, cached) = ask(139, format!("{words}And then"), is_streamed).await;
        assert!(longer > prompt_tokens, "{longer}");
        assert!((64..longer).contains(&cached), "{cached} of {longer}");
        let (_, of_another) = ask(150, format!("{words}{is_streamed}"), is_streamed).await;
        // Its own first request taught it the beginning; nobody else's did.
        assert_eq!(of_another == 0, !is_streamed, "{of_another}");
    }
}
