//! Bodies that nobody would write: never a panic, always JSON or a stream.

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use tally::engine::scripted::Script;

use crate::support::worker::{TestWorker, WorkerSetup, frames, job};

/// Any JSON of some depth.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(|number| json!(number)),
        ".{0,20}".prop_map(Value::from),
        ".{95,110}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..7).prop_map(Value::from),
            prop::collection::btree_map(".{0,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

const FIELDS: [&str; 10] = [
    "job_id",
    "prompt",
    "max_tokens",
    "temperature",
    "seed",
    "top_p",
    "top_k",
    "repetition_penalty",
    "stop",
    "min_p",
];

/// A good body with some fields replaced, taken away or cut short; or mere bytes.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let changed = prop::collection::vec((0..FIELDS.len(), any_json()), 0..4);
    let changed = changed
        .prop_map(|changes| {
            let changes = changes.into_iter().map(|(at, value)| (FIELDS[at].to_owned(), value));
            job(Value::Object(changes.collect())).to_string().into_bytes()
        })
        .boxed();
    let cut = (changed.clone(), any::<prop::sample::Index>()).prop_map(|(mut body, at)| {
        let length = at.index(body.len());
        body.truncate(length);
        body
    });
    let flipped = (changed.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(
        |(mut body, at, byte)| {
            let at = at.index(body.len());
            body[at] = byte;
            body
        },
    );
    let other = any_json().prop_map(|value| value.to_string().into_bytes());
    prop_oneof![
        4 => changed,
        2 => cut,
        2 => flipped,
        1 => other,
        1 => prop::collection::vec(any::<u8>(), 0..200),
    ]
}

/// Cases of one run; TALLY_FUZZ_CASES asks for more.
fn cases() -> u32 {
    std::env::var("TALLY_FUZZ_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(500)
}

#[test]
fn whatever_is_posted_the_answer_is_json_or_a_stream_and_the_worker_lives() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let script = Script::words("a b");
    let worker =
        runtime.block_on(TestWorker::start(WorkerSetup { script, ..WorkerSetup::default() }));
    let config = ProptestConfig { cases: cases(), failure_persistence: None, ..Default::default() };
    let tried = TestRunner::new(config).run(&body(), |body| {
        runtime.block_on(hold(&worker, &body));
        Ok(())
    });
    tried.unwrap_or_else(|error| panic!("{error}"));
}

async fn hold(worker: &TestWorker, body: &[u8]) {
    let answer = crate::support::http::call_bytes(worker.addr, "/execute", body).await;
    match answer.status {
        200 => {
            let frames = frames(&answer.events());
            let terminals = ["end", "error"];
            let ends = frames
                .iter()
                .filter(|frame| terminals.iter().any(|terminal| frame["type"] == *terminal));
            assert_eq!(ends.count(), 1);
            assert!(terminals.iter().any(|end| frames.last().unwrap()["type"] == *end));
        }
        400 | 422 => {
            let told = answer.json();
            assert!(told["errors"].is_array() != told["error"]["code"].is_string(), "{told}");
        }
        other => panic!("{other}: {}", String::from_utf8_lossy(&answer.body)),
    }
    // A broken body may have ended the stream of a job only by its own end.
    assert_eq!(worker.jobs.load().slots_busy, 0);
}
