//! The special tokens that a chat template knows by name (`bos_token`, `eos_token`, …), as
//! transformers hands them to it.
//!
//! They stand in `tokenizer_config.json`; older files have them in `special_tokens_map.json` as
//! well, which then counts.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// The file that names them.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// The file of older tokenizers that names them too.
pub const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// Name in a template to content.
pub type SpecialTokens = BTreeMap<String, String>;

/// Reads the names and contents from the two files, where they are there.
///
/// # Errors
/// When one is no JSON object.
pub fn read(
    tokenizer_config: Option<&[u8]>,
    special_tokens_map: Option<&[u8]>,
) -> Result<SpecialTokens, SpecialTokensError> {
    let config = object(TOKENIZER_CONFIG, tokenizer_config)?;
    let mut tokens = named(&config);
    if takes_map(&config) {
        tokens.extend(named(&object(SPECIAL_TOKENS_MAP, special_tokens_map)?));
    }
    Ok(tokens)
}

/// Whether a `special_tokens_map.json` beside this `tokenizer_config.json` is read at all: a config
/// that lists its added tokens says everything itself.
pub fn takes_map(tokenizer_config: &Map<String, Value>) -> bool {
    !tokenizer_config.contains_key("added_tokens_decoder")
}

fn object(
    file: &'static str,
    json: Option<&[u8]>,
) -> Result<Map<String, Value>, SpecialTokensError> {
    json.map_or_else(
        || Ok(Map::new()),
        |json| serde_json::from_slice(json).map_err(|error| SpecialTokensError { file, error }),
    )
}

/// Every `…_token` of a file, and those of other names that a model has for itself.
fn named(file: &Map<String, Value>) -> SpecialTokens {
    let own = ["extra_special_tokens", "model_specific_special_tokens"];
    let own = own
        .iter()
        .filter_map(|key| file.get(*key)?.as_object())
        .flatten();
    let standing = file.iter().filter(|(name, _)| name.ends_with("_token"));
    standing
        .chain(own)
        .filter_map(|(name, token)| Some((name.clone(), content(token)?)))
        .collect()
}

/// A token is written as its content, or as an object that has it.
fn content(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token.get("content")?.as_str())
        .map(str::to_owned)
}

/// Why the names cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{file} cannot be read: {error}; expected a JSON object as save_pretrained writes it")]
pub struct SpecialTokensError {
    /// Which file.
    file: &'static str,
    /// The parser's own words.
    error: serde_json::Error,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(config: &str, map: &str) -> Vec<(String, String)> {
        read(Some(config.as_bytes()), Some(map.as_bytes()))
            .expect("objects")
            .into_iter()
            .collect()
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(name, content)| (name.to_string(), content.to_string()))
            .collect()
    }

    #[test]
    fn names_are_read_in_every_spelling() {
        let config = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "special": true}, "pad_token": null, "add_bos_token": false,
            "tokenizer_class": "GPT2Tokenizer", "extra_special_tokens": {"image_token": "<image>"}}"#;
        assert_eq!(
            tokens(config, "{}"),
            pairs(&[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("image_token", "<image>")
            ])
        );
    }

    #[test]
    fn the_older_map_counts_where_the_config_does_not_list_its_tokens() {
        let map = r#"{"bos_token": "<map>", "additional_special_tokens": ["<image>"]}"#;
        assert_eq!(
            tokens(r#"{"bos_token": "<config>"}"#, map),
            pairs(&[("bos_token", "<map>")])
        );
        assert_eq!(
            tokens(
                r#"{"bos_token": "<config>", "added_tokens_decoder": {}}"#,
                map
            ),
            pairs(&[("bos_token", "<config>")])
        );
        assert!(read(None, None).expect("nothing to read").is_empty());
    }

    #[test]
    fn what_is_no_object_is_refused_by_name() {
        let error = read(Some(b"[]"), None).expect_err("a list").to_string();
        assert!(
            error.starts_with("tokenizer_config.json cannot be read: "),
            "{error}"
        );
    }
}
