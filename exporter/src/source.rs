//! What SOURCE names: a folder, or a model of the hub.

use std::path::{Path, PathBuf};

use crate::ExportError;
use crate::hub::{self, HubId};

/// The folder of a checkpoint: `source` itself if it is one, else the model of that id, fetched.
///
/// # Errors
/// When it is neither, or cannot be fetched.
pub fn folder(source: &Path, revision: Option<&str>) -> Result<PathBuf, ExportError> {
    if source.is_dir() {
        return match revision {
            None => Ok(source.to_owned()),
            Some(_) => Err(ExportError::Source(format!(
                "--revision is for hub ids, and {} is a folder; leave it out",
                source.display()
            ))),
        };
    }
    match source.to_str().and_then(HubId::parse).filter(|_| !source.exists()) {
        Some(id) => hub::fetch(&id, revision.unwrap_or("main")),
        None => Err(ExportError::NoFolder {
            path: source.to_owned(),
            expected: "expected a folder with config.json, tokenizer.json and model.safetensors, or a hub id such as \
                       HuggingFaceTB/SmolVLM2-256M-Video-Instruct"
                .into(),
        }),
    }
}
