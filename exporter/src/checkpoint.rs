//! A checkpoint folder: `config.json` and the weights, in one safetensors file or several shards.
//!
//! The files are untrusted input: headers are checked when the folder is opened, values when a
//! tensor is read. Weights stay mapped; one tensor at a time becomes f32.

pub mod config;
mod error;
pub(crate) mod files;
mod header;
pub(crate) mod json;
pub(crate) mod name;
pub(crate) mod shards;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use sha2::{Digest, Sha256};
use vlm::{MappedFile, hex};

pub use config::Config;
pub use error::CheckpointError;
pub use header::HeaderError;

/// A checkpoint whose config and headers have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    name: String,
    /// What `config.json` says, defaults filled in.
    pub config: Config,
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, StoredTensor>,
}

/// One mapped weight file.
#[derive(Debug)]
struct WeightFile {
    path: PathBuf,
    map: MappedFile,
}

/// Where a tensor is stored.
#[derive(Debug)]
struct StoredTensor {
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

impl Checkpoint {
    /// Opens a checkpoint folder: reads its config, maps its weights and checks their headers.
    ///
    /// # Errors
    /// When a file is missing or contradicts itself.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let config = Config::read(&dir.join(files::CONFIG))?;
        let found = shards::find(dir)?;
        let mut files = Vec::new();
        let mut tensors = BTreeMap::new();
        for (file, path) in found.paths.iter().enumerate() {
            let map = MappedFile::open(path).map_err(|source| CheckpointError::io(path, source))?;
            let header =
                header::read(map.as_bytes()).map_err(|diagnostic| CheckpointError::Header {
                    path: path.clone(),
                    diagnostic,
                })?;
            for (tensor, entry) in header {
                tensors.insert(
                    tensor,
                    StoredTensor {
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
        found.check(|tensor, file| {
            tensors
                .get(tensor)
                .is_some_and(|stored| stored.file == file)
        })?;
        let name = name::of_folder(dir)?;
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
            .map(|stored| stored.shape.iter().product::<usize>())
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
            .map(|stored| stored.dtype.to_string())
            .collect();
        dtypes.sort();
        dtypes.dedup();
        dtypes
    }

    /// A tensor's dimensions, if it is there.
    pub fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.tensors
            .get(tensor)
            .map(|stored| stored.shape.as_slice())
    }

    /// Reads a tensor as f32, row-major.
    ///
    /// # Errors
    /// When it is missing, of another type than F32, F16, BF16 or F64, or holds NaN or an infinity.
    pub fn tensor(&self, tensor: &str) -> Result<Tensor, CheckpointError> {
        let stored = self
            .tensors
            .get(tensor)
            .ok_or_else(|| self.missing(tensor))?;
        let file = &self.files[stored.file];
        let bytes = &file.map.as_bytes()[stored.bytes.clone()];
        let values: Vec<f32> = match stored.dtype {
            // Rounded as loading into an f32 model rounds.
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
            shape: stored.shape.clone(),
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
