//! The special tokens that a chat template may use by name (`bos_token`, `eos_token`, …), as
//! transformers passes them.
//!
//! They are in `tokenizer_config.json`. Older checkpoints have them in `special_tokens_map.json` as
//! well, which then takes precedence.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// File name of the tokenizer's configuration, which names them.
pub const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
/// File name of the map of older tokenizers, which names them too.
pub const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";

/// From the name in a template to the token's content.
pub type SpecialTokens = BTreeMap<String, String>;

/// Reads names and contents from the two files, each `None` where it does not exist.
///
/// # Errors
/// When one is not a JSON object.
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

/// Whether a `special_tokens_map.json` beside this `tokenizer_config.json` is read: a config that
/// lists its added tokens is complete without it.
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

/// Every `…_token` of a file, and the model's own under other names.
fn named(file: &Map<String, Value>) -> SpecialTokens {
    let own = ["extra_special_tokens", "model_specific_special_tokens"];
    let own = own
        .iter()
        .filter_map(|key| file.get(*key)?.as_object())
        .flatten();
    let standard = file.iter().filter(|(name, _)| name.ends_with("_token"));
    standard
        .chain(own)
        .filter_map(|(name, token)| Some((name.clone(), content(token)?)))
        .collect()
}

/// A token's content: the value itself, or its field `content`.
fn content(token: &Value) -> Option<String> {
    token
        .as_str()
        .or_else(|| token.get("content")?.as_str())
        .map(str::to_owned)
}

/// Why the special tokens cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{file} cannot be read: {error}; expected a JSON object as save_pretrained writes it")]
pub struct SpecialTokensError {
    /// The file's name.
    file: &'static str,
    /// The parser's own error.
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
    fn tokens_are_read_in_every_form() {
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
    fn the_older_map_takes_precedence_where_the_config_does_not_list_its_tokens() {
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
    fn a_file_without_an_object_is_refused_by_name() {
        let error = read(Some(b"[]"), None).expect_err("a list").to_string();
        assert!(
            error.starts_with("tokenizer_config.json cannot be read: "),
            "{error}"
        );
    }
}
