//! One table of cases, run through every front-end: text, usage, finish reason and ledger must
//! not depend on the protocol.

use serde_json::{Value, json};
use tally::chain::JobStatus;
use tally::engine::scripted::Script;
use tally::units::{Address, TokenCount};

use crate::support::http::{Answer, Client, call, text};
use crate::support::ledger::Tallied;
use crate::support::node::{Setup, TestNode, eventually, job, prompt};
use crate::support::worker::{TestWorker, WorkerSetup, frames, said};
use crate::support::ws::{self, Socket};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Front {
    RestJson,
    RestSse,
    WsInference,
    WsPrompt,
    WsWhole,
    ChatJson,
    ChatSse,
}

const FRONTS: [Front; 7] = [
    Front::RestJson,
    Front::RestSse,
    Front::WsInference,
    Front::WsPrompt,
    Front::WsWhole,
    Front::ChatJson,
    Front::ChatSse,
];

/// What a client learned.
#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Answered { text: String, tokens: u64, finish: String, usage: Value },
    Refused { code: String },
}

fn refused(code: &str) -> Outcome {
    Outcome::Refused { code: code.to_owned() }
}

fn answered(text: &str, (prompt_tokens, tokens): (u64, u64), finish: &str) -> Outcome {
    let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": tokens,
        "total_tokens": prompt_tokens + tokens, "context_window_size": 64});
    Outcome::Answered { text: text.to_owned(), tokens, finish: finish.to_owned(), usage }
}

impl Front {
    /// Whether the protocol has words for what the case asks.
    fn can_say(self, case: &str) -> bool {
        // OpenAI's chat has no text that skips the template, and a bound of its own.
        let is_chat = matches!(self, Self::ChatJson | Self::ChatSse);
        !(is_chat && ["raw", "no max_tokens"].contains(&case))
    }

    async fn ask(self, node: &TestNode, fields: &Value) -> Outcome {
        let mut fields = fields.clone();
        if !fields.is_object() {
            return self.ask_raw(node, fields.as_str().unwrap()).await;
        }
        let is_streamed = !matches!(self, Self::RestJson | Self::WsWhole | Self::ChatJson);
        fields["stream"] = is_streamed.into();
        match self {
            Self::ChatJson | Self::ChatSse => self.ask_raw(node, &chat(&fields).to_string()).await,
            Self::RestJson | Self::RestSse => self.ask_raw(node, &fields.to_string()).await,
            Self::WsInference => {
                let message = json!({"type": "inference", "request": fields, "id": 1});
                self.ask_raw(node, &message.to_string()).await
            }
            Self::WsPrompt | Self::WsWhole => {
                let mut socket = Socket::connect(node.addr).await;
                let mut init = json!({"type": "session_init", "id": 0});
                for key in ["job_id", "session_id", "chain_id"] {
                    init[key] = fields[key].clone();
                }
                socket.send(init).await;
                let ack = socket.recv().await;
                if ack["type"] == "error" {
                    return socket_error(&ack);
                }
                let message = json!({"type": "prompt", "request": fields, "id": 1});
                socket.send(message).await;
                hear(&mut socket).await
            }
        }
    }

    async fn ask_raw(self, node: &TestNode, body: &str) -> Outcome {
        match self {
            Self::RestJson | Self::RestSse => {
                let answer = call(node.addr, ("POST", "/v1/inference"), &[], body).await;
                rest_outcome(&answer)
            }
            Self::ChatJson | Self::ChatSse => {
                chat_outcome(&call(node.addr, ("POST", CHAT), &[], body).await)
            }
            Self::WsInference | Self::WsPrompt | Self::WsWhole => {
                let mut socket = Socket::connect(node.addr).await;
                socket.send_text(body).await;
                hear(&mut socket).await
            }
        }
    }
}

async fn hear(socket: &mut Socket) -> Outcome {
    let messages = socket.recv_until(&["stream_end", "response", "error"]).await;
    let last = messages.last().unwrap();
    if last["type"] == "error" {
        return socket_error(last);
    }
    let text = match last["content"].as_str() {
        Some(content) => content.to_owned(),
        None => {
            assert_eq!(ws::tokens(&messages), last["tokens_used"], "{messages:?}");
            ws::text(&messages)
        }
    };
    summary(last, text)
}

fn socket_error(error: &Value) -> Outcome {
    match error["code"].as_str().unwrap() {
        "TOKEN_LIMIT_EXCEEDED" => refused("context_length"),
        code => refused(&code.to_ascii_lowercase()),
    }
}

fn rest_outcome(answer: &Answer) -> Outcome {
    if answer.status != 200 {
        return refused(answer.json()["error_type"].as_str().unwrap());
    }
    if answer.header("content-type") == Some("application/json") {
        let body = answer.json();
        return summary(&body, body["content"].as_str().unwrap().to_owned());
    }
    let events = answer.events();
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let values: Vec<Value> = events[..events.len() - 1]
        .iter()
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let text = values.iter().map(|value| value["content"].as_str().unwrap()).collect();
    let last = values.last().unwrap();
    let tokens: u64 = values.iter().filter_map(|value| value["tokens"].as_u64()).sum();
    assert_eq!(tokens, last["tokens_used"], "{values:?}");
    summary(last, text)
}

const CHAT: &str = "/v1/chat/completions";

/// The same request as OpenAI's clients send it.
fn chat(fields: &Value) -> Value {
    let mut fields = fields.as_object().unwrap().clone();
    let before = fields.remove("conversation_context").unwrap_or_else(|| json!([]));
    let before = before.as_array().unwrap().iter();
    let mut messages: Vec<Value> =
        before.map(|turn| json!({"role": turn["role"], "content": turn["content"]})).collect();
    messages.push(json!({"role": "user", "content": fields.remove("prompt")}));
    fields.insert("messages".to_owned(), messages.into());
    if fields["stream"] == true {
        fields.insert("stream_options".to_owned(), json!({"include_usage": true}));
    }
    fields.into()
}

fn chat_outcome(answer: &Answer) -> Outcome {
    if answer.status != 200 {
        return match answer.json()["error"]["code"].as_str().unwrap() {
            "context_length_exceeded" => refused("context_length"),
            code => refused(code),
        };
    }
    if answer.header("content-type") == Some("application/json") {
        let body = answer.json();
        let text = body["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        return chat_summary(&body, &body["usage"], text);
    }
    let events = answer.events();
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let values: Vec<Value> =
        events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let [said @ .., last, counts] = &values[..] else { panic!("{values:?}") };
    assert_eq!(said[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(counts["choices"], json!([]));
    chat_summary(last, &counts["usage"], chat_text(said))
}

fn chat_text(chunks: &[Value]) -> String {
    let text = |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned);
    chunks.iter().filter_map(text).collect()
}

/// OpenAI's clients know two reasons; the node's own words stand beside them.
fn chat_summary(last: &Value, usage: &Value, text: String) -> Outcome {
    let finish = last["tally"]["finish_reason"].as_str().unwrap().to_owned();
    let known = if finish == "stop" { "stop" } else { "length" };
    assert_eq!(last["choices"][0]["finish_reason"], known, "{last}");
    let tokens = last["tally"]["tokens_used"].as_u64().unwrap();
    assert_eq!(usage["completion_tokens"], tokens);
    // OpenAI's alone; held in `sampling.rs`.
    let mut usage = usage.clone();
    let details = usage.as_object_mut().unwrap().remove("prompt_tokens_details").unwrap();
    assert!(details["cached_tokens"].is_u64(), "{details}");
    Outcome::Answered { text, tokens, finish, usage }
}

fn summary(last: &Value, text: String) -> Outcome {
    Outcome::Answered {
        text,
        tokens: last["tokens_used"].as_u64().unwrap(),
        finish: last["finish_reason"].as_str().unwrap().to_owned(),
        usage: last["usage"].clone(),
    }
}

/// Jobs: 139 ours, 140 buys 3 tokens, 141 another host's, 142 completed, 143 spent.
async fn node(script: &Script) -> TestNode {
    let node = TestNode::start(Setup { script: script.clone(), ..Setup::default() }).await;
    for number in [141, 142, 143] {
        node.chain.open(job(number), 5);
    }
    node.chain.change(job(141), |job| job.host = Address::new([9; 20]));
    node.chain.change(job(142), |job| job.status = JobStatus::Completed);
    node.chain.change(job(143), |job| job.tokens_used = TokenCount::new(5));
    node
}

fn refusals() -> Vec<(&'static str, Value, Outcome)> {
    let invalid = || refused("validation_error");
    vec![
        ("unknown model", prompt(json!({"model": "gpt-9"})), refused("model_not_found")),
        ("unknown job", prompt(json!({"job_id": 999})), refused("session_not_found")),
        ("another host's job", prompt(json!({"job_id": 141})), refused("forbidden")),
        ("completed job", prompt(json!({"job_id": 142})), refused("session_closed")),
        ("spent deposit", prompt(json!({"job_id": 143})), refused("payment_required")),
        (
            "session id that is no number",
            prompt(json!({"job_id": null, "session_id": "my-chat"})),
            invalid(),
        ),
        ("no job at all", prompt(json!({"job_id": null})), invalid()),
        ("empty prompt", prompt(json!({"prompt": ""})), invalid()),
        ("over-long prompt", prompt(json!({"prompt": "w ".repeat(70)})), refused("context_length")),
        // Long enough to be rendered on another thread.
        ("longer", prompt(json!({"prompt": "w ".repeat(4000)})), refused("context_length")),
        ("max_tokens 0", prompt(json!({"max_tokens": 0})), invalid()),
        ("no max_tokens", prompt(json!({"max_tokens": null})), invalid()),
        ("temperature 3", prompt(json!({"temperature": 3})), invalid()),
        ("another chain", prompt(json!({"chain_id": 1})), invalid()),
        ("malformed JSON", json!("{\"prompt\":"), refused("invalid_request")),
    ]
}

#[tokio::test]
async fn what_is_refused_is_refused_alike_and_makes_no_token() {
    for (name, fields, expected) in refusals() {
        for front in FRONTS.into_iter().filter(|front| front.can_say(name)) {
            let node = node(&Script::words("never said")).await;
            assert_eq!(front.ask(&node, &fields).await, expected, "{name} over {front:?}");
            assert_eq!(node.engine.starts().len(), 0, "{name} over {front:?}");
            for number in [139, 140, 141, 142, 143, 999] {
                assert_eq!(node.ledger.recorded(job(number)), 0, "{name} over {front:?}");
            }
        }
    }
}

fn answers() -> Vec<(&'static str, Script, Value, Outcome)> {
    let five = || Script::words("one two three four five");
    let many = "né 👩‍👩‍👧 漢字 e\u{301}🏴󠁧󠁢󠁳󠁣󠁴󠁿!";
    let bytes = many.len() as u64;
    vec![
        ("normal", five(), prompt(json!({})), answered("one two three four five", (4, 5), "stop")),
        (
            "stop string",
            five(),
            prompt(json!({"stop": ["hree"]})),
            answered("one two t", (4, 2), "stop"),
        ),
        (
            "length",
            five(),
            prompt(json!({"max_tokens": 4})),
            answered("one two three four ", (4, 4), "length"),
        ),
        (
            "deposit runs out",
            five(),
            prompt(json!({"job_id": 140})),
            answered("one two three ", (4, 3), "deposit_exhausted"),
        ),
        (
            "alias",
            five(),
            prompt(json!({"model": "tiny-vicuna", "job_id": "139n"})),
            answered("one two three four five", (4, 5), "stop"),
        ),
        (
            "turns before it",
            five(),
            prompt(json!({"conversation_context": [
                {"role": "user", "content": "a b", "timestamp": 7},
                {"role": "assistant", "content": "c"},
            ]})),
            answered("one two three four five", (9, 5), "stop"),
        ),
        (
            "raw",
            five(),
            prompt(json!({"raw": true})),
            answered("one two three four five", (3, 5), "stop"),
        ),
        (
            "characters in pieces",
            Script::bytes(many, 1),
            prompt(json!({"max_tokens": 200})),
            answered(many, (4, bytes), "stop"),
        ),
    ]
}

#[tokio::test]
async fn what_is_answered_is_answered_alike_and_recorded_alike() {
    for (name, script, fields, expected) in answers() {
        for front in FRONTS.into_iter().filter(|front| front.can_say(name)) {
            let node = node(&script).await;
            assert_eq!(front.ask(&node, &fields).await, expected, "{name} over {front:?}");
            let Outcome::Answered { tokens, .. } = &expected else { panic!("{name}") };
            let payer = if fields["job_id"] == 140 { job(140) } else { job(139) };
            eventually(|| node.ledger.turns_ended(payer) == 1).await;
            let ids: Vec<u32> = script.tokens.iter().map(|(id, _)| *id).collect();
            let said = &ids[..usize::try_from(*tokens).unwrap()];
            assert_eq!(node.ledger.ids(payer), said, "{name} over {front:?}");
        }
    }
}

/// Whether the worker protocol, which has no sessions, models or turns, has words for a case.
fn worker_can_say(case: &str) -> bool {
    let cases = [
        "normal",
        "stop string",
        "length",
        "raw",
        "characters in pieces",
        "empty prompt",
        "over-long prompt",
        "longer",
        "max_tokens 0",
        "no max_tokens",
        "temperature 3",
        "malformed JSON",
    ];
    cases.contains(&case)
}

/// The same request to a worker: its text, tokens and end, or its refusal, in the table's words.
async fn ask_worker(script: &Script, fields: &Value) -> Result<(String, u64, String), String> {
    let worker =
        TestWorker::start(WorkerSetup { script: script.clone(), ..WorkerSetup::default() }).await;
    let body = match fields.as_str() {
        Some(text) => text.to_owned(),
        None => {
            let mut fields = fields.clone();
            fields["job_id"] = "worker-job".into();
            fields.to_string()
        }
    };
    let answer = worker.post("/execute", &[], &body).await;
    if answer.status == 200 {
        let all = frames(&answer.events());
        let last = all.last().unwrap();
        let finish = match last["stop_reason"].as_str().unwrap() {
            "MAX_TOKENS" => "length",
            "EOS" | "STOP_SEQUENCE" => "stop",
            other => panic!("{other}"),
        };
        return Ok((said(&all), last["tokens_out"].as_u64().unwrap(), finish.to_owned()));
    }
    assert_eq!(worker.engine.starts().len(), 0);
    let told = answer.json();
    Err(match (answer.status, told["errors"][0]["constraint"].as_str()) {
        (400, Some("context_length")) => "context_length",
        (400, Some(_)) | (422, None) => "validation_error",
        (400, None) => "invalid_request",
        other => panic!("{other:?}"),
    }
    .to_owned())
}

#[tokio::test]
async fn a_worker_tells_the_same_of_the_cases_that_it_has_words_for() {
    let mut held = 0;
    for (name, script, fields, expected) in answers() {
        let Outcome::Answered { text, tokens, finish, .. } = expected else { panic!("{name}") };
        if worker_can_say(name) {
            held += 1;
            // The token in which a stop string begins is not paid for; its text is a frame here.
            let tokens = tokens + u64::from(name == "stop string");
            assert_eq!(ask_worker(&script, &fields).await, Ok((text, tokens, finish)), "{name}");
        }
    }
    for (name, fields, expected) in refusals() {
        let Outcome::Refused { code } = expected else { panic!("{name}") };
        if worker_can_say(name) {
            held += 1;
            let script = Script::words("never said");
            assert_eq!(ask_worker(&script, &fields).await, Err(code), "{name}");
        }
    }
    assert_eq!(held, 12, "every case was found by its name");
}

#[tokio::test]
async fn a_deposit_is_spent_over_all_front_ends_together_and_never_passed() {
    for last in FRONTS {
        let node = node(&Script::words("one ")).await;
        for front in [Front::RestJson, Front::WsPrompt, Front::ChatSse] {
            let outcome = front.ask(&node, &prompt(json!({"job_id": 140, "max_tokens": 1}))).await;
            assert!(matches!(outcome, Outcome::Answered { tokens: 1, .. }), "{outcome:?}");
        }
        let outcome = last.ask(&node, &prompt(json!({"job_id": 140}))).await;
        assert_eq!(outcome, refused("payment_required"), "{last:?}");
        eventually(|| node.ledger.recorded(job(140)) == 3).await;
    }
}

#[tokio::test]
async fn whatever_way_a_client_leaves_it_pays_at_least_what_it_saw_and_at_most_what_was_said() {
    for front in [Front::RestSse, Front::ChatSse, Front::WsInference, Front::WsPrompt] {
        let node = node(&Script::words("one two three four five")).await;
        node.engine.hold();
        let fields = prompt(json!({"stream": true}));
        let seen = if matches!(front, Front::RestSse | Front::ChatSse) {
            let (path, fields) = match front {
                Front::ChatSse => (CHAT, chat(&fields)),
                _ => ("/v1/inference", fields),
            };
            let mut client = Client::connect(node.addr).await;
            client.send(&text("POST", path, &[], &fields.to_string())).await;
            node.engine.release(3);
            let mut seen = 0;
            while seen < 3 {
                assert!(client.read().await);
                seen = tokens_in(&client.events());
            }
            seen
        } else {
            let mut socket = Socket::connect(node.addr).await;
            let kind = if front == Front::WsPrompt { "prompt" } else { "inference" };
            socket.send(json!({"type": kind, "request": fields})).await;
            node.engine.release(3);
            let mut seen = 0;
            while seen < 3 {
                seen += ws::tokens(&[socket.recv().await]);
            }
            seen
        };
        eventually(|| node.ledger.turns_ended(job(139)) == 1).await;
        let recorded = node.ledger.recorded(job(139));
        assert!(seen <= recorded && recorded <= node.engine.said(), "{front:?}");
        assert_eq!(node.engine.cancelled(), 1, "{front:?}");
    }
}

fn tokens_in(events: &[String]) -> u64 {
    let values = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let values: Vec<Value> = values.collect();
    // A chunk of OpenAI's does not say how many tokens it holds; a word is one here.
    let words = u64::try_from(chat_text(&values).split_whitespace().count()).unwrap();
    words + values.iter().filter_map(|value| value["tokens"].as_u64()).sum::<u64>()
}
