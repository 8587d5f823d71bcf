//! Single fields of a JSON object, read alike for every front-end.
//!
//! Never knows what a field means, or its range; null is the same as absent. Relies on messages
//! being objects that were parsed already.

use serde_json::{Map, Value};

use crate::session::Refusal;

/// A field that is there and not null.
pub(super) fn present<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    map.get(key).filter(|value| !value.is_null())
}

/// A text that must be there.
///
/// # Errors
/// [`Refusal::Invalid`], as for all readers below.
pub(super) fn required_text(
    map: &Map<String, Value>,
    key: &'static str,
) -> Result<String, Refusal> {
    match present(map, key) {
        None => Err(Refusal::invalid(key, format!("{key} is required"))),
        Some(Value::String(text)) if text.is_empty() => {
            Err(Refusal::invalid(key, format!("{key} must not be empty")))
        }
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(Refusal::invalid(key, format!("{key} must be a string"))),
    }
}

/// A whole number, where there is one.
pub(super) fn whole(map: &Map<String, Value>, key: &'static str) -> Result<Option<u64>, Refusal> {
    let Some(value) = present(map, key) else { return Ok(None) };
    let number = value.as_u64();
    number
        .map(Some)
        .ok_or_else(|| Refusal::invalid(key, format!("{key} must be a whole number, 0 or more")))
}

/// A number, or its default.
pub(super) fn fraction(
    map: &Map<String, Value>,
    key: &'static str,
    default: f64,
) -> Result<f64, Refusal> {
    let Some(value) = present(map, key) else { return Ok(default) };
    value.as_f64().ok_or_else(|| Refusal::invalid(key, format!("{key} must be a number")))
}

/// True or false, where the client says so.
pub(super) fn flag(map: &Map<String, Value>, key: &'static str) -> Result<Option<bool>, Refusal> {
    let Some(value) = present(map, key) else { return Ok(None) };
    let flag = value.as_bool();
    flag.map(Some).ok_or_else(|| Refusal::invalid(key, format!("{key} must be true or false")))
}
