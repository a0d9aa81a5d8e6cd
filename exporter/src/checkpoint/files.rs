//! Names of the files in a checkpoint folder, as `save_pretrained` writes them.
//!
//! The tokenizer's own (`tokenizer_config.json`, `special_tokens_map.json`) are named in
//! [`vlm::special_tokens`], which reads them.

use std::fs;
use std::path::Path;

use super::error::CheckpointError;
use firmware_config::manifest::{CHAT_TEMPLATE_FILE, TOKENIZER_FILE};

use super::json::pretty;

/// The model's configuration.
pub(crate) const CONFIG: &str = "config.json";
/// The tokenizer.
pub(crate) const TOKENIZER: &str = TOKENIZER_FILE;
/// How answers are generated.
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
/// How images and clips are prepared, and more; newer transformers keep everything here.
pub(crate) const PROCESSOR: &str = "processor_config.json";
/// How images are prepared.
pub(crate) const PREPROCESSOR: &str = "preprocessor_config.json";
/// How clips are prepared; only some versions have this file.
pub(crate) const VIDEO_PREPROCESSOR: &str = "video_preprocessor_config.json";
/// The chat template, in newer checkpoints and in a bundle.
pub(crate) const CHAT_TEMPLATE: &str = CHAT_TEMPLATE_FILE;
/// The chat template in older checkpoints, under the key `chat_template`.
pub(crate) const CHAT_TEMPLATE_JSON: &str = "chat_template.json";
/// Weights in one file.
pub(crate) const WEIGHTS: &str = "model.safetensors";
/// Which shard has which tensor, where the weights are in several files.
pub(crate) const WEIGHTS_INDEX: &str = "model.safetensors.index.json";

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|source| CheckpointError::io(path, source))
}

/// The bytes of a file or, where it is missing, those of the JSON made in its place.
pub(crate) fn read_or(
    path: &Path,
    make: impl FnOnce() -> serde_json::Value,
) -> Result<Vec<u8>, CheckpointError> {
    if path.exists() {
        read(path)
    } else {
        Ok(pretty(&make()))
    }
}
