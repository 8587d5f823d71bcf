//! The engine through its public handle, on a real model.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use tally_engine::*;

fn model_path() -> PathBuf {
    std::env::var_os("TALLY_TEST_MODEL")
        .expect("TALLY_TEST_MODEL must name SmolLM2-135M-Instruct.Q4_1.gguf")
        .into()
}

struct Channel(SyncSender<Event>);

impl EventSink for Channel {
    fn is_ready(&self) -> bool {
        true
    }
    fn is_closed(&self) -> bool {
        false
    }
    fn emit(&mut self, event: Event) {
        if let Err(TrySendError::Full(_)) = self.0.try_send(event) {
            panic!("a test's channel is too small");
        }
    }
}

fn channel() -> (Box<dyn EventSink>, Receiver<Event>) {
    let (sender, receiver) = sync_channel(100_000);
    (Box::new(Channel(sender)), receiver)
}

fn user(content: &str) -> ChatTurn {
    ChatTurn { role: "user".into(), content: content.into() }
}

#[test]
fn a_prompt_is_answered_greedily() {
    let engine = Engine::load(&model_path(), EngineOptions::default()).unwrap();
    println!("{:?}", engine.info());
    let prompt_ids = engine.encode_chat(&[user("What is the capital of France?")]).unwrap();
    println!("{prompt_ids:?}");
    println!("{:?}", engine.decode(&prompt_ids));
    let (sink, events) = channel();
    let request =
        SequenceRequest { prompt_ids, max_tokens: 64, sampling: Sampling::greedy(), stop: vec![] };
    let _handle = engine.start(request, sink).unwrap();
    let mut text = String::new();
    for event in events {
        match event {
            Event::Token { text: more, .. } => text.push_str(&more),
            Event::Finished { reason, .. } => {
                println!("{text:?} {reason:?}");
                break;
            }
            Event::Prefilled { .. } => {}
        }
    }
    assert!(!text.is_empty());
}
