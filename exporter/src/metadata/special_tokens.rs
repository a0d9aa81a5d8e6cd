//! The special tokens that a chat template may use by name, and the two files that list them.

use std::path::Path;

use serde_json::{Value, json};
use vlm::special_tokens::{SPECIAL_TOKENS_MAP, SpecialTokens, TOKENIZER_CONFIG, takes_map};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::{read, read_or};
use crate::checkpoint::json::read_json;

/// The special tokens by name, as a bundle of this checkpoint has them.
pub(super) fn named(
    source: &Path,
    context_length: usize,
) -> Result<SpecialTokens, CheckpointError> {
    let (config, map) = (tokenizer_config(source, context_length)?, map(source)?);
    vlm::special_tokens::read(Some(&config), map.as_deref())
        .map_err(|error| CheckpointError::json(source, error.to_string()))
}

/// The bytes of `tokenizer_config.json`, the family's where the checkpoint has none.
pub(crate) fn tokenizer_config(
    source: &Path,
    context_length: usize,
) -> Result<Vec<u8>, CheckpointError> {
    read_or(&source.join(TOKENIZER_CONFIG), || {
        family_tokenizer(context_length)
    })
}

/// The bytes of `special_tokens_map.json`, which older tokenizers have, unless the newer
/// `tokenizer_config.json` replaces it.
pub(crate) fn map(source: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let (path, config) = (
        source.join(SPECIAL_TOKENS_MAP),
        source.join(TOKENIZER_CONFIG),
    );
    let is_read = path.exists() && (!config.exists() || takes_map(&read_json(&config)?));
    if is_read {
        read(&path).map(Some)
    } else {
        Ok(None)
    }
}

fn family_tokenizer(context_length: usize) -> Value {
    json!({
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": context_length,
        "truncation_side": "left",
    })
}
