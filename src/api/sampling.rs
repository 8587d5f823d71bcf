//! The fields that say how tokens are chosen, read alike for every front-end.
//!
//! Never a range: those are checked in one place, by the session service
//! (`session::request::check`), and what only the model can know by the engine. Source:
//! docs/spec/marketplace-api.md section 2.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{flag, fraction, present, whole};
use crate::session::{Refusal, SamplingInput};

/// The settings of a request; `default` is the protocol's for those that are left out.
///
/// # Errors
/// [`Refusal::Invalid`] names the first field of a wrong type.
pub(super) fn parse(
    map: &Map<String, Value>,
    default: SamplingInput,
) -> Result<SamplingInput, Refusal> {
    Ok(SamplingInput {
        temperature: fraction(map, "temperature", default.temperature)?,
        top_k: whole(map, "top_k")?.unwrap_or(default.top_k),
        top_p: fraction(map, "top_p", default.top_p)?,
        min_p: fraction(map, "min_p", default.min_p)?,
        repetition_penalty: fraction(map, "repetition_penalty", default.repetition_penalty)?,
        frequency_penalty: fraction(map, "frequency_penalty", default.frequency_penalty)?,
        presence_penalty: fraction(map, "presence_penalty", default.presence_penalty)?,
        logit_bias: logit_bias(map)?,
        logprobs: logprobs(map)?,
        seed: whole(map, "seed")?,
        stop: stop(map)?,
        ignore_eos: flag(map, "ignore_eos")?.unwrap_or(default.ignore_eos),
    })
}

/// The strings that end the text: one, or a list.
fn stop(map: &Map<String, Value>) -> Result<Vec<String>, Refusal> {
    let wrong = || Refusal::invalid("stop", "stop must be a string or a list of strings");
    match present(map, "stop") {
        None => Ok(Vec::new()),
        Some(Value::String(text)) => Ok(vec![text.clone()]),
        Some(Value::Array(list)) => {
            let texts = list.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(wrong)
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::Object(_) | Value::Null) => Err(wrong()),
    }
}

fn logit_bias(map: &Map<String, Value>) -> Result<BTreeMap<u32, f64>, Refusal> {
    let wrong = || {
        let message = "logit_bias must be an object of token ids and numbers";
        Refusal::invalid("logit_bias", message)
    };
    let Some(value) = present(map, "logit_bias") else { return Ok(BTreeMap::new()) };
    let pairs = value.as_object().ok_or_else(wrong)?.iter();
    let pairs = pairs.map(|(id, bias)| Some((id.parse().ok()?, bias.as_f64()?)));
    pairs.collect::<Option<_>>().ok_or_else(wrong)
}

/// How many rivals are told with each token; `None` where no probabilities are wanted.
fn logprobs(map: &Map<String, Value>) -> Result<Option<u32>, Refusal> {
    let is_wanted = flag(map, "logprobs")?.unwrap_or(false);
    let top = whole(map, "top_logprobs")?.unwrap_or(0);
    if top > 0 && !is_wanted {
        return Err(Refusal::invalid("top_logprobs", "top_logprobs needs logprobs: true"));
    }
    Ok(is_wanted.then(|| u32::try_from(top).unwrap_or(u32::MAX)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(fields: Value) -> Result<SamplingInput, Refusal> {
        parse(fields.as_object().unwrap(), SamplingInput::default())
    }

    #[test]
    fn every_setting_of_the_engine_is_read_and_null_leaves_it_out() {
        let fields = json!({"temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1,
            "repetition_penalty": 1.2, "frequency_penalty": -0.5, "presence_penalty": 2,
            "logit_bias": {"7": -100, "12": 0.5}, "logprobs": true, "top_logprobs": 5, "seed": 4,
            "stop": ["a", "b"], "ignore_eos": true});
        let expected = SamplingInput {
            temperature: 0.5,
            top_k: 4,
            top_p: 0.9,
            min_p: 0.1,
            repetition_penalty: 1.2,
            frequency_penalty: -0.5,
            presence_penalty: 2.0,
            logit_bias: BTreeMap::from([(7, -100.0), (12, 0.5)]),
            logprobs: Some(5),
            seed: Some(4),
            stop: vec!["a".to_owned(), "b".to_owned()],
            ignore_eos: true,
        };
        assert_eq!(read(fields.clone()).unwrap(), expected);
        let names = fields.as_object().unwrap().keys();
        let nulls: Map<String, Value> = names.map(|name| (name.clone(), Value::Null)).collect();
        assert_eq!(read(nulls.into()).unwrap(), SamplingInput::default());
        assert_eq!(read(json!({"logprobs": false, "top_logprobs": 0})).unwrap().logprobs, None);
        assert_eq!(read(json!({"logprobs": true})).unwrap().logprobs, Some(0));
    }

    #[test]
    fn a_wrong_type_is_refused_by_the_fields_name() {
        for (field, value) in [
            ("temperature", json!("hot")),
            ("top_k", json!(-1)),
            ("top_k", json!(1.5)),
            ("top_p", json!([1])),
            ("min_p", json!("0.1")),
            ("repetition_penalty", json!(true)),
            ("frequency_penalty", json!("much")),
            ("presence_penalty", json!({})),
            ("logit_bias", json!([7])),
            ("logit_bias", json!({"Paris": -100})),
            ("logit_bias", json!({"-7": 1})),
            ("logit_bias", json!({"7": "much"})),
            ("logit_bias", json!({"7": null})),
            ("logprobs", json!(2)),
            ("top_logprobs", json!(1)),
            ("top_logprobs", json!("1")),
            ("seed", json!(-1)),
            ("stop", json!(7)),
            ("stop", json!(["a", 1])),
            ("ignore_eos", json!(1)),
        ] {
            match read(json!({ field: value })) {
                Err(Refusal::Invalid { field: found, .. }) => assert_eq!(found, field, "{value}"),
                other => panic!("{field}: {value}: {other:?}"),
            }
        }
    }
}
