//! Why a checkpoint cannot be read.

use std::io;
use std::path::{Path, PathBuf};

use super::header::HeaderError;

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("{path}: cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file the checkpoint needs is not there.
    #[error(
        "{path}: no such file; expected a checkpoint folder with config.json, tokenizer.json and safetensors, as save_pretrained writes it"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file cannot be used.
    #[error("{path}: {diagnostic}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the help.
        diagnostic: String,
    },
    /// The folder holds no weights.
    #[error(
        "{dir}: no model.safetensors and no model.safetensors.index.json; save the model with safe_serialization=True"
    )]
    NoWeights {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// A weight file's header is invalid.
    #[error("{path}: {diagnostic}; the file is damaged or truncated: download or save it again")]
    Header {
        /// The weight file.
        path: PathBuf,
        /// What is wrong with it.
        diagnostic: HeaderError,
    },
    /// The index names a file that is not in the folder.
    #[error(
        "{index}: shard {shard:?} is outside the checkpoint folder; expected a file beside the index"
    )]
    ShardOutside {
        /// The index file.
        index: PathBuf,
        /// The name it gives.
        shard: String,
    },
    /// The index lists a tensor for a shard that does not hold it.
    #[error(
        "{index}: tensor {tensor:?} is not in {shard:?}, where the index lists it; the shards are of different downloads: download them again"
    )]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard it should be in.
        shard: String,
    },
    /// A tensor that the architecture needs is missing.
    #[error(
        "{dir}: tensor {tensor:?} is missing, {present} others are present; the checkpoint is incomplete or of another architecture"
    )]
    MissingTensor {
        /// The checkpoint folder.
        dir: PathBuf,
        /// The tensor.
        tensor: String,
        /// How many there are.
        present: usize,
    },
    /// A tensor has an unsupported type.
    #[error(
        "{path}: tensor {tensor:?} is {dtype}, expected F32, F16, BF16 or F64; save the model in one of these"
    )]
    Dtype {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its type.
        dtype: String,
    },
    /// A tensor holds NaN or an infinity.
    #[error(
        "{path}: tensor {tensor:?} holds {value} at index {index}; the training run diverged or the file is damaged"
    )]
    NotFinite {
        /// The weight file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Flat row-major index of the first such value.
        index: usize,
        /// NaN or an infinity.
        value: f32,
    },
}

impl CheckpointError {
    /// An error about the content of a JSON file.
    pub(crate) fn json(path: &Path, diagnostic: String) -> Self {
        CheckpointError::Json {
            path: path.to_owned(),
            diagnostic,
        }
    }

    /// Whether a file could not be read, rather than holding what cannot be used.
    pub(crate) fn is_io(&self) -> bool {
        matches!(self, CheckpointError::Io { .. })
    }

    /// A file that could not be read; a missing one has a variant of its own.
    pub(crate) fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::NotFound => CheckpointError::Missing {
                path: path.to_owned(),
            },
            _ => CheckpointError::Io {
                path: path.to_owned(),
                source,
            },
        }
    }
}
