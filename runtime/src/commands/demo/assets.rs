//! The folder of the demo's bundles, frames and labels.

use std::path::{Path, PathBuf};

/// The folder that holds `bundles/`, `frames/` and `labels.jsonl`.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    folder: PathBuf,
}

/// No demo folder was found.
#[derive(Debug, thiserror::Error)]
#[error(
    "no demo folder found in {}; run from a clone of the repository, or set EGRET_DEMO_DIR to a copy of its `demo` folder",
    searched.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub(crate) struct AssetsMissing {
    searched: Vec<PathBuf>,
}

impl Assets {
    /// Looks in `EGRET_DEMO_DIR`, beside the program, and in the source tree the program was built
    /// from.
    pub(crate) fn find() -> Result<Assets, AssetsMissing> {
        let mut folders = Vec::new();
        if let Some(folder) = std::env::var_os("EGRET_DEMO_DIR") {
            folders.push(PathBuf::from(folder));
        }
        if let Some(beside) = std::env::current_exe()
            .ok()
            .as_deref()
            .and_then(Path::parent)
        {
            folders.push(beside.join("demo"));
            folders.push(beside.join("../share/egret/demo"));
        }
        folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo"));
        match folders
            .iter()
            .find(|folder| folder.join("labels.jsonl").is_file())
        {
            // Absolute and without `..`, because it is printed and written into the configuration.
            Some(folder) => Ok(Assets {
                folder: folder.canonicalize().unwrap_or_else(|_| folder.clone()),
            }),
            None => Err(AssetsMissing { searched: folders }),
        }
    }

    /// The small model's bundle.
    pub(crate) fn edge_bundle(&self) -> PathBuf {
        self.folder.join("bundles/nano-edge")
    }

    /// The bigger model's bundle.
    pub(crate) fn pool_bundle(&self) -> PathBuf {
        self.folder.join("bundles/nano-pool")
    }

    /// The frames of one camera, named by their milliseconds into the clip.
    pub(crate) fn frames(&self, camera: &str) -> PathBuf {
        self.folder.join("frames").join(camera)
    }

    /// The right answers about the frames.
    pub(crate) fn labels(&self) -> PathBuf {
        self.folder.join("labels.jsonl")
    }
}
