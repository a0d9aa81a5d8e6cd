//! What SOURCE names: a folder, or a model of the hub.

use std::path::{Path, PathBuf};

use crate::hub::{self, HubError, HubId};

/// Why SOURCE is not a checkpoint folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// Neither a folder nor a hub id.
    #[error(
        "{path}: no such folder; expected a folder with config.json, tokenizer.json and model.safetensors, or a hub id such as \
         HuggingFaceTB/SmolVLM2-256M-Video-Instruct",
        path = .path.display()
    )]
    NotFound {
        /// As given.
        path: PathBuf,
    },
    /// A revision was given for a folder.
    #[error("--revision is for hub ids, and {path} is a folder; leave it out", path = .path.display())]
    RevisionOfFolder {
        /// The folder.
        path: PathBuf,
    },
    /// The model cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
}

/// The folder of a checkpoint: `source` itself if it is one, else the model of that id, fetched.
///
/// # Errors
/// When it is neither, or cannot be fetched.
pub fn folder(source: &Path, revision: Option<&str>) -> Result<PathBuf, SourceError> {
    let path = source.to_owned();
    if source.is_dir() {
        return match revision {
            None => Ok(path),
            Some(_) => Err(SourceError::RevisionOfFolder { path }),
        };
    }
    let id = source.to_str().and_then(HubId::parse);
    match id.filter(|_| !source.exists()) {
        Some(id) => Ok(hub::fetch(&id, revision.unwrap_or("main"))?),
        None => Err(SourceError::NotFound { path }),
    }
}
