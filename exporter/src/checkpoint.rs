//! A checkpoint folder: `config.json` and the weights, in one safetensors file or several shards.
//!
//! The files come from anywhere, so nothing in them is believed before it is checked: headers when
//! the folder is opened, values when a tensor is read. Weights stay mapped; one tensor at a time
//! becomes f32.

pub mod config;
mod header;
pub(crate) mod shards;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use sha2::{Digest, Sha256};
use vlm::{MappedFile, hex};

pub use config::Config;
use header::HeaderError;

use crate::hub::model_of;

/// A checkpoint whose config and headers have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    name: String,
    /// What `config.json` says, defaults filled in.
    pub config: Config,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, Place>,
}

/// One mapped weight file.
#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    map: MappedFile,
}

/// Where a tensor lies.
#[derive(Debug)]
struct Place {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Byte range in the file; checked against its length.
    bytes: std::ops::Range<usize>,
}

/// A tensor's values, widened to f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Row-major dimensions.
    pub shape: Vec<usize>,
    /// As many values as the dimensions multiply to, all finite.
    pub values: Vec<f32>,
}

/// Why a checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file cannot be read.
    #[error("{path}: cannot be read")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// A file the checkpoint needs is not there.
    #[error(
        "{path}: no such file; a checkpoint folder has config.json, tokenizer.json and safetensors, as save_pretrained writes them"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A JSON file is not what its name says.
    #[error("{path}: {problem}")]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, and the cure.
        problem: String,
    },
    /// The folder holds no weights.
    #[error(
        "{dir}: no model.safetensors and no model.safetensors.index.json; save the model with safe_serialization=True"
    )]
    NoWeights {
        /// The checkpoint folder.
        dir: PathBuf,
    },
    /// A weight file's header is not to be believed.
    #[error("{path}: {problem}; the file is damaged or cut off: download or save it again")]
    Header {
        /// The weight file.
        path: PathBuf,
        /// What is wrong with it.
        problem: HeaderError,
    },
    /// The index names a file that is not in the folder.
    #[error(
        "{index}: shard {shard:?} is outside the checkpoint folder; shards lie beside their index"
    )]
    ShardOutside {
        /// The index file.
        index: PathBuf,
        /// The name it gives.
        shard: String,
    },
    /// The index promises a tensor that its shard does not hold.
    #[error(
        "{index}: tensor {tensor:?} should be in {shard:?} but is not; the shards are of different downloads"
    )]
    NotInShard {
        /// The index file.
        index: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shard it should be in.
        shard: String,
    },
    /// A tensor the architecture needs is not there.
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
    /// A tensor has a type that weights do not have here.
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
    /// A tensor holds a value that is no number.
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
    /// A file that could not be read; one that is not there has its own words.
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

impl Checkpoint {
    /// Opens a checkpoint folder: reads its config, maps its weights and checks their headers.
    ///
    /// # Errors
    /// When a file is missing or says what cannot be true.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let config = Config::read(&dir.join("config.json"))?;
        let found = shards::find(dir)?;
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (file, path) in found.paths.iter().enumerate() {
            let map = MappedFile::open(path).map_err(|source| CheckpointError::io(path, source))?;
            let header =
                header::read(map.as_bytes()).map_err(|problem| CheckpointError::Header {
                    path: path.clone(),
                    problem,
                })?;
            for (tensor, entry) in header {
                tensors.insert(
                    tensor,
                    Place {
                        file,
                        dtype: entry.dtype,
                        shape: entry.shape,
                        bytes: entry.bytes,
                    },
                );
            }
            files.push(WeightFile {
                path: path.clone(),
                map,
            });
        }
        found.check(|tensor, file| tensors.get(tensor).is_some_and(|place| place.file == file))?;
        let name = folder_name(dir)?;
        Ok(Checkpoint {
            dir: dir.to_owned(),
            name,
            config,
            files,
            tensors,
        })
    }

    /// The folder it was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The folder's last path component.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn tensor_count(&self) -> usize {
        self.tensors.len()
    }

    /// Values in all tensors together.
    pub fn parameter_count(&self) -> usize {
        self.tensors
            .values()
            .map(|place| place.shape.iter().product::<usize>())
            .sum()
    }

    /// Bytes of all weight files together.
    pub fn bytes(&self) -> u64 {
        self.files
            .iter()
            .map(|file| file.map.as_bytes().len() as u64)
            .sum()
    }

    /// The types weights are stored in, each once, sorted.
    pub fn dtypes(&self) -> Vec<String> {
        let mut dtypes: Vec<String> = self
            .tensors
            .values()
            .map(|place| place.dtype.to_string())
            .collect();
        dtypes.sort();
        dtypes.dedup();
        dtypes
    }

    /// A tensor's dimensions, if it is there.
    pub fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.tensors.get(tensor).map(|place| place.shape.as_slice())
    }

    /// Reads a tensor as f32, row-major.
    ///
    /// # Errors
    /// When it is missing, of another type than F32, F16, BF16 or F64, or holds NaN or an infinity.
    pub fn tensor(&self, tensor: &str) -> Result<Tensor, CheckpointError> {
        let place = self
            .tensors
            .get(tensor)
            .ok_or_else(|| self.missing(tensor))?;
        let file = &self.files[place.file];
        let bytes = &file.map.as_bytes()[place.bytes.clone()];
        let values: Vec<f32> = match place.dtype {
            // What training did in f64 is rounded as loading into an f32 model rounds it.
            Dtype::F64 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f64::from_le_bytes(b) as f32)
                .collect(),
            Dtype::F32 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| f32::from_le_bytes(b))
                .collect(),
            Dtype::F16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
            Dtype::BF16 => bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
            other => {
                return Err(CheckpointError::Dtype {
                    path: file.path.clone(),
                    tensor: tensor.into(),
                    dtype: other.to_string(),
                });
            }
        };
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(CheckpointError::NotFinite {
                path: file.path.clone(),
                tensor: tensor.into(),
                index,
                value: values[index],
            });
        }
        Ok(Tensor {
            shape: place.shape.clone(),
            values,
        })
    }

    /// Lower-case hex sha256 over the weight files, in shard order.
    pub fn sha256(&self) -> String {
        let mut hash = Sha256::new();
        for file in &self.files {
            hash.update(file.map.as_bytes());
        }
        hex(&hash.finalize())
    }

    /// The error for a tensor that should be there.
    pub(crate) fn missing(&self, tensor: &str) -> CheckpointError {
        CheckpointError::MissingTensor {
            dir: self.dir.clone(),
            tensor: tensor.into(),
            present: self.tensors.len(),
        }
    }
}

/// The last path component, also of `.` and of paths that end in a slash; a snapshot of the hub's
/// cache is called after its model.
fn folder_name(dir: &Path) -> Result<String, CheckpointError> {
    let absolute = dir
        .canonicalize()
        .map_err(|source| CheckpointError::io(dir, source))?;
    if let Some(model) = model_of(&absolute) {
        return Ok(model.to_owned());
    }
    Ok(absolute.file_name().map_or_else(
        || "model".into(),
        |name| name.to_string_lossy().into_owned(),
    ))
}
