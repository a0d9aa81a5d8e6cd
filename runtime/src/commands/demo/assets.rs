//! Where the demo's bundles, frames and labels lie.

use std::path::{Path, PathBuf};

/// The folder that holds `bundles/`, `frames/` and `labels.jsonl`.
#[derive(Debug, Clone)]
pub(crate) struct Assets {
    folder: PathBuf,
}

/// No demo folder in any of the places looked at.
#[derive(Debug, thiserror::Error)]
#[error(
    "the demo's models and frames were found in none of {}; run from a clone of the repository, or set EGRET_DEMO_DIR to a copy of its `demo` folder",
    looked.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub(crate) struct AssetsMissing {
    looked: Vec<PathBuf>,
}

impl Assets {
    /// Looks in `EGRET_DEMO_DIR`, beside the program, and in the source tree the program was built
    /// from.
    pub(crate) fn find() -> Result<Assets, AssetsMissing> {
        let mut places = Vec::new();
        if let Some(folder) = std::env::var_os("EGRET_DEMO_DIR") {
            places.push(PathBuf::from(folder));
        }
        if let Some(beside) = std::env::current_exe()
            .ok()
            .as_deref()
            .and_then(Path::parent)
        {
            places.push(beside.join("demo"));
            places.push(beside.join("../share/egret/demo"));
        }
        places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo"));
        match places
            .iter()
            .find(|folder| folder.join("labels.jsonl").is_file())
        {
            // Absolute and without `..`, because it is printed and written into the configuration.
            Some(folder) => Ok(Assets {
                folder: folder.canonicalize().unwrap_or_else(|_| folder.clone()),
            }),
            None => Err(AssetsMissing { looked: places }),
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

    /// What a person sees on the frames.
    pub(crate) fn labels(&self) -> PathBuf {
        self.folder.join("labels.jsonl")
    }
}
