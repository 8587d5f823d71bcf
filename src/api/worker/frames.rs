//! Frames of a job's stream: an `event:` line, and data whose `type` says the same.
//!
//! Never more than one terminal, since the job tells one end. Pinned byte by byte in
//! `tests/it/worker/golden.rs`.

use serde::Serialize;

use crate::jobs::{JobEvent, JobFault, JobStop};
use crate::units::Millis;

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Data<'a> {
    Started {
        job_id: &'a str,
        model: &'a str,
        /// Unix milliseconds as a string.
        started_at: String,
    },
    Token {
        t: &'a str,
        i: u32,
    },
    End {
        tokens_out: u32,
        decode_time_ms: u64,
        stop_reason: &'static str,
        stop_sequence_matched: Option<&'a str>,
    },
    Error {
        code: &'static str,
        message: String,
        retriable: bool,
    },
}

/// The frame that tells of an event of this job.
pub(super) fn frame(event: &JobEvent, (job_id, model): (&str, &str)) -> String {
    let data = match event {
        JobEvent::Started { at } => {
            Data::Started { job_id, model, started_at: at.get().to_string() }
        }
        JobEvent::Token { text, index } => Data::Token { t: text, i: *index },
        JobEvent::Ended { tokens, decode_time, stop } => end(*tokens, *decode_time, stop),
        JobEvent::Failed(fault) => {
            let (code, retriable) = fault_code(fault);
            Data::Error { code, message: fault.to_string(), retriable }
        }
    };
    // Strings and numbers can always be written.
    let json = serde_json::to_string(&data).unwrap_or_default();
    format!("event: {}\ndata: {json}\n\n", name(event))
}

fn name(event: &JobEvent) -> &'static str {
    match event {
        JobEvent::Started { .. } => "started",
        JobEvent::Token { .. } => "token",
        JobEvent::Ended { .. } => "end",
        JobEvent::Failed(_) => "error",
    }
}

fn end(tokens_out: u32, decode_time: Millis, stop: &JobStop) -> Data<'_> {
    let (stop_reason, stop_sequence_matched) = match stop {
        JobStop::MaxTokens => ("MAX_TOKENS", None),
        JobStop::Eos => ("EOS", None),
        JobStop::Sequence(text) => ("STOP_SEQUENCE", Some(text.as_str())),
    };
    let decode_time_ms = decode_time.get();
    Data::End { tokens_out, decode_time_ms, stop_reason, stop_sequence_matched }
}

/// The code on the wire, and whether the same job may succeed when it is sent again.
pub(super) fn fault_code(fault: &JobFault) -> (&'static str, bool) {
    match fault {
        JobFault::Cancelled => ("CANCELLED", false),
        JobFault::Cut => ("CANCELLED", true),
        JobFault::Deadline => ("TIMEOUT", true),
        JobFault::Invalid(_) => ("INVALID_REQUEST", false),
        JobFault::Memory(_) => ("OUT_OF_MEMORY", false),
        JobFault::Failed => ("INFERENCE_FAILED", true),
    }
}
