//! What `generation_config.json` says about answers: where they end, and which settings would make
//! decoding other than greedy.

use std::path::Path;

use serde_json::{Map, Value};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::GENERATION_CONFIG;
use crate::checkpoint::json::read_json;

/// No number is neutral.
const NONE: f64 = f64::NAN;

/// Settings that change which token is chosen, each with its neutral number.
const CHANGES: [(&str, f64); 16] = [
    ("do_sample", NONE),
    ("num_beams", 1.0),
    ("repetition_penalty", 1.0),
    ("encoder_repetition_penalty", 1.0),
    ("no_repeat_ngram_size", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("guidance_scale", 1.0),
    ("diversity_penalty", 0.0),
    ("bad_words_ids", NONE),
    ("suppress_tokens", NONE),
    ("begin_suppress_tokens", NONE),
    ("sequence_bias", NONE),
    ("forced_bos_token_id", NONE),
    ("forced_eos_token_id", NONE),
];

/// A checkpoint's generation settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation {
    /// Ids that end an answer; empty where the file names none.
    pub(crate) eos: Vec<u32>,
    /// Settings under which transformers would not decode greedily, as `name = value`.
    pub(crate) changes: Vec<String>,
}

impl Generation {
    /// Reads the file of a checkpoint folder; the default if it is missing.
    pub(crate) fn read(source: &Path) -> Result<Self, CheckpointError> {
        let path = source.join(GENERATION_CONFIG);
        if !path.exists() {
            return Ok(Generation::default());
        }
        Generation::parse(&read_json(&path)?)
            .map_err(|diagnostic| CheckpointError::Json { path, diagnostic })
    }

    fn parse(file: &Map<String, Value>) -> Result<Self, String> {
        let changes = CHANGES.iter().filter_map(|(name, neutral)| {
            let value = file.get(*name)?;
            (!is_neutral(value, *neutral)).then(|| format!("{name} = {value}"))
        });
        Ok(Generation {
            eos: ids(file.get("eos_token_id"))?,
            changes: changes.collect(),
        })
    }
}

/// One id or a list of them.
fn ids(found: Option<&Value>) -> Result<Vec<u32>, String> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = match found {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(ids)) => ids.iter().map(id).collect(),
        Some(value) => id(value).map(|id| vec![id]),
    };
    ids.ok_or_else(|| {
        format!(
            "eos_token_id is {}, expected a token id or a list of them",
            found.unwrap_or(&Value::Null)
        )
    })
}

fn is_neutral(value: &Value, neutral: f64) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(value) => value.as_f64() == Some(neutral),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(json: Value) -> Result<Generation, String> {
        Generation::parse(json.as_object().unwrap())
    }

    #[test]
    fn ends_are_one_id_or_several_or_none() {
        for (json, eos) in [
            (json!({}), vec![]),
            (json!({"eos_token_id": null}), vec![]),
            (json!({"eos_token_id": []}), vec![]),
            (json!({"eos_token_id": 7}), vec![7]),
            (json!({"eos_token_id": [7, 2]}), vec![7, 2]),
        ] {
            assert_eq!(parse(json.clone()).unwrap().eos, eos, "{json}");
        }
        for json in [
            json!(-1),
            json!("</s>"),
            json!([7, null]),
            json!(1u64 << 40),
        ] {
            let error = parse(json!({ "eos_token_id": json })).unwrap_err();
            assert_eq!(
                error,
                format!("eos_token_id is {json}, expected a token id or a list of them")
            );
        }
    }

    #[test]
    fn settings_other_than_greedy_are_reported() {
        let greedy = json!({"do_sample": false, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "temperature": 0.6, "num_beams": 1});
        assert!(parse(greedy).unwrap().changes.is_empty());
        let other = json!({"do_sample": true, "repetition_penalty": 1.2, "bad_words_ids": [[5]], "forced_eos_token_id": null});
        assert_eq!(
            parse(other).unwrap().changes,
            [
                "do_sample = true",
                "repetition_penalty = 1.2",
                "bad_words_ids = [[5]]"
            ]
        );
    }
}
