//! Where fetched files are: `models--OWNER--MODEL/snapshots/COMMIT/` in the hub's cache.
//!
//! Python's library may keep one copy of a file for several commits and link to it; links are read,
//! plain files are written.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::create;
use super::error::HubError;
use super::id::HubId;
use crate::checkpoint::name::SNAPSHOTS;

/// One model's part of the cache.
pub(super) struct Cache {
    root: PathBuf,
    name: String,
    model: PathBuf,
}

impl Cache {
    pub(super) fn new(root: PathBuf, id: &HubId) -> Self {
        let name = format!("models--{}--{}", id.owner, id.model);
        Cache {
            model: root.join(&name),
            root,
            name,
        }
    }

    /// The model's folder.
    pub(super) fn model(&self) -> &Path {
        &self.model
    }

    /// Waits until no other process fetches this model; the lock is released with the file.
    pub(super) fn lock(&self) -> Result<File, HubError> {
        // Python's library keeps its own locks here, apart from the models it lists.
        let folder = self.root.join(".locks").join(&self.name);
        let path = folder.join("egret-export.lock");
        let io = |source| HubError::Io {
            path: path.clone(),
            source,
        };
        fs::create_dir_all(&folder).map_err(io)?;
        let file = create(&path)?;
        if file.try_lock().is_err() {
            tracing::info!("waiting for another process that fetches {}", self.name);
            file.lock().map_err(io)?;
        }
        Ok(file)
    }

    /// The folder of a commit, created if it is missing.
    pub(super) fn snapshot(&self, commit: &str) -> Result<PathBuf, HubError> {
        let path = self.model.join(SNAPSHOTS).join(commit);
        fs::create_dir_all(&path).map_err(|source| HubError::Io {
            path: path.clone(),
            source,
        })?;
        Ok(path)
    }
}
