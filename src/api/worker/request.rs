//! `/execute` and `/cancel` bodies: read by type, then by rule, every broken rule at once.
//!
//! Never repeats a prompt or a stop string in a message. Bounds are inclusive and unknown fields
//! are ignored; source of bounds, names and order: docs/spec/worker-protocol.md.

use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::error::Category;

use super::error::{FieldError, WireError};
use crate::jobs::{JobRequest, JobSampling};
use crate::units::Millis;

const PROMPT_MAX: usize = 32_768;
const TOKENS_MAX: u32 = 2048;
const STOPS_MAX: usize = 4;
const STOP_MAX: usize = 100;
/// Stop strings that are looked at: a body holds a million empty ones, and each would be told.
const STOPS_TOLD_MAX: usize = 64;

/// A body of `/execute` whose fields have the right types.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Execute {
    job_id: String,
    prompt: String,
    max_tokens: u32,
    #[serde(default = "one")]
    temperature: f64,
    #[serde(default = "seed")]
    seed: u64,
    #[serde(default = "one")]
    top_p: f64,
    #[serde(default)]
    top_k: u32,
    #[serde(default = "one")]
    repetition_penalty: f64,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default)]
    min_p: f64,
}

/// A body of `/cancel`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Cancel {
    pub job_id: String,
}

const fn one() -> f64 {
    1.0
}

const fn seed() -> u64 {
    42
}

/// A body by its types.
///
/// # Errors
/// [`WireError::Malformed`] where it is no JSON, [`WireError::Mistyped`] where a field is missing
/// or of another type.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        WireError::Malformed(format!("no UTF-8 from byte {}", error.valid_up_to()))
    })?;
    // The whole of it, before any type is looked at: what is no JSON is told as such.
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        WireError::Malformed(format!("malformed JSON at line {line}, column {column}"))
    })?;
    if !text.trim_ascii_start().starts_with('{') {
        // serde would take a list for an object's values in order.
        return Err(WireError::Mistyped("a JSON object is wanted".to_owned()));
    }
    let mut fields = serde_json::Deserializer::from_str(text);
    serde_path_to_error::deserialize(&mut fields).map_err(|error| {
        // Of fields that a type has, so never a client's own word; `.` and `?` name none.
        let path = error.path().to_string();
        let field = (!matches!(path.as_str(), "." | "?")).then_some(path);
        WireError::Mistyped(data_words(field, error.inner()))
    })
}

/// What is wrong with a type. serde's words repeat a wrong string, which may be a prompt: only
/// those without one are shown.
fn data_words(field: Option<String>, error: &serde_json::Error) -> String {
    let words = error.to_string();
    let (line, column) = (error.line(), error.column());
    if words.starts_with("missing field `") || words.starts_with("duplicate field `") {
        return words;
    }
    let field = field.map(|field| format!("{field}: ")).unwrap_or_default();
    if error.classify() != Category::Data {
        // Half a surrogate pair, or a number beyond all that a field can hold.
        return format!("{field}a value that no field can hold at line {line}, column {column}");
    }
    let wanted = words.rsplit_once("expected ").map_or("", |(_, wanted)| wanted);
    let wanted = wanted.split(" at line").next().unwrap_or_default();
    format!("{field}a value of the wrong type at line {line}, column {column}: wanted {wanted}")
}

impl Execute {
    /// The job, where every rule holds.
    ///
    /// # Errors
    /// All broken rules, in the protocol's order.
    pub fn into_job(self, deadline: Option<Millis>) -> Result<JobRequest, WireError> {
        let errors = self.errors();
        if !errors.is_empty() {
            return Err(WireError::Fields(errors));
        }
        Ok(JobRequest {
            id: self.job_id,
            prompt: self.prompt,
            max_tokens: self.max_tokens,
            sampling: JobSampling {
                temperature: self.temperature,
                seed: self.seed,
                top_p: self.top_p,
                top_k: self.top_k,
                repetition_penalty: self.repetition_penalty,
                min_p: self.min_p,
            },
            stop: self.stop,
            deadline,
        })
    }

    fn errors(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        errors.extend(check_job_id(&self.job_id));
        errors.extend(self.check_prompt());
        errors.extend(self.check_max_tokens());
        let (zero_to_two, zero_to_one) = ((0.0..=2.0, TO_TWO), (0.0..=1.0, TO_ONE));
        errors.extend(check_number(("temperature", self.temperature), &zero_to_two));
        errors.extend(check_number(("top_p", self.top_p), &zero_to_one));
        let penalty = ("repetition_penalty", self.repetition_penalty);
        errors.extend(check_number(penalty, &zero_to_two));
        errors.extend(self.check_stop());
        errors.extend(check_number(("min_p", self.min_p), &zero_to_one));
        errors
    }

    fn check_prompt(&self) -> Option<FieldError> {
        if self.prompt.is_empty() {
            return Some(broken("prompt", "non_empty", "prompt must not be empty".to_owned()));
        }
        let length = self.prompt.chars().count();
        (length > PROMPT_MAX).then(|| {
            let message = format!("prompt must be at most {PROMPT_MAX} characters (got {length})");
            broken("prompt", "length(1..=32768)", message)
        })
    }

    fn check_max_tokens(&self) -> Option<FieldError> {
        let found = self.max_tokens;
        let message = match found {
            0 => "max_tokens must be at least 1".to_owned(),
            1..=TOKENS_MAX => return None,
            _ => format!("max_tokens must be at most {TOKENS_MAX} (got {found})"),
        };
        let error = broken("max_tokens", "range(1..=2048)", message);
        Some(FieldError { value: Some(found.to_string()), ..error })
    }

    /// Too many strings, then each that is too short or too long.
    fn check_stop(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        let count = self.stop.len();
        if count > STOPS_MAX {
            let message = format!("stop must have at most {STOPS_MAX} sequences (got {count})");
            let error = broken("stop", "max_count(4)", message);
            errors.push(FieldError { value: Some(count.to_string()), ..error });
        }
        for (index, stop) in self.stop.iter().enumerate().take(STOPS_TOLD_MAX) {
            let length = stop.chars().count();
            if length == 0 {
                let message = format!("stop[{index}] must not be empty");
                errors.push(broken("stop", "non_empty", message));
            } else if length > STOP_MAX {
                let message =
                    format!("stop[{index}] must be at most {STOP_MAX} characters (got {length})");
                errors.push(broken("stop", "max_length(100)", message));
            }
        }
        errors
    }
}

/// The rule of a job's name, for both paths.
pub(super) fn check_job_id(id: &str) -> Option<FieldError> {
    let error = broken("job_id", "non_empty", "job_id must not be empty".to_owned());
    id.is_empty().then(|| FieldError { value: Some(String::new()), ..error })
}

const TO_TWO: &str = "range(0.0..=2.0)";
const TO_ONE: &str = "range(0.0..=1.0)";

fn check_number(
    (field, found): (&'static str, f64),
    (range, constraint): &(RangeInclusive<f64>, &'static str),
) -> Option<FieldError> {
    let message = if range.contains(&found) {
        return None;
    } else if found > *range.end() {
        format!("{field} must be at most {:?} (got {found})", range.end())
    } else {
        format!("{field} must be at least {:?} (got {found})", range.start())
    };
    let error = broken(field, constraint, message);
    Some(FieldError { value: Some(found.to_string()), ..error })
}

fn broken(field: &'static str, constraint: &'static str, message: String) -> FieldError {
    FieldError { field, constraint, message, value: None }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
