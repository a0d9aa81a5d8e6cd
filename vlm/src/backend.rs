//! The choice of the inference engine: ONNX Runtime when its library is found, else tract, which is
//! always built in.

mod ort;
mod tract;

pub use tract::LOG_FILTER;

use std::path::{Path, PathBuf};
use std::slice::ChunksExact;

use firmware_config::manifest::{Manifest, Part, Precision};
use firmware_config::tensors;

use crate::bundle::Bundle;
use crate::model::{Model, ModelError};

/// Which inference engine runs a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// ONNX Runtime when its library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime, or an error.
    Ort,
    /// tract, always built in.
    Tract,
}

/// How a bundle is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which inference engine runs it.
    pub backend: BackendChoice,
    /// Inference threads; `None` leaves the choice to the engine: one for each core.
    pub threads: Option<usize>,
    /// Path of ONNX Runtime's shared library; `ORT_DYLIB_PATH` takes precedence, and `None` looks
    /// beside the binary.
    pub ort_library: Option<PathBuf>,
    /// Opening fails unless this execution provider really runs (`cpu`, `cuda`, `tensorrt`,
    /// `tract`).
    pub require_execution_provider: Option<String>,
}

/// Loads the bundle's graphs with the engine that `options` choose.
pub(crate) fn load(bundle: &Bundle, options: &Options) -> Result<Box<dyn Model>, BackendError> {
    let model = match options.backend {
        BackendChoice::Tract => load_tract(bundle, options)?,
        BackendChoice::Ort => load_ort(bundle, options)?,
        // A required provider of tract's decides the choice.
        BackendChoice::Auto if options.require_execution_provider.as_deref() == Some("tract") => {
            load_tract(bundle, options)?
        }
        BackendChoice::Auto => load_ort(bundle, options).or_else(|reason| {
            // A missing library is normal; one that is present and does not load is not.
            match reason {
                BackendError::NoLibrary => tracing::info!("running on tract: {reason}"),
                _ => tracing::warn!("running on tract: {reason}"),
            }
            load_tract(bundle, options)
        })?,
    };
    let got = model.provider().execution_provider;
    match &options.require_execution_provider {
        Some(required) if *required != got => Err(BackendError::ExecutionProvider {
            required: required.clone(),
            got,
        }),
        _ => Ok(model),
    }
}

fn load_tract(bundle: &Bundle, options: &Options) -> Result<Box<dyn Model>, BackendError> {
    if bundle.manifest().precision == Precision::Int8 {
        tracing::warn!(
            "tract runs int8 activations 10 to 20 times slower than ONNX Runtime; use an fp32 or fp16 bundle"
        );
    }
    Ok(Box::new(tract::TractModel::load(bundle, options.threads)?))
}

fn load_ort(bundle: &Bundle, options: &Options) -> Result<Box<dyn Model>, BackendError> {
    let library = find_library(
        std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from),
        options.ort_library.as_deref(),
        beside_binary,
    )?;
    Ok(Box::new(ort::OrtModel::load(
        bundle,
        &library,
        options.threads,
    )?))
}

/// Finds ONNX Runtime's shared library. The first source that names one decides: a wrong path there
/// is an error, not a reason to look further and load a library that was not asked for.
fn find_library(
    environment: Option<PathBuf>,
    configured: Option<&Path>,
    beside_binary: impl FnOnce() -> Option<PathBuf>,
) -> Result<PathBuf, BackendError> {
    let (source, path) = match (
        environment.filter(|path| !path.as_os_str().is_empty()),
        configured,
    ) {
        (Some(path), _) => ("ORT_DYLIB_PATH", path),
        (None, Some(path)) => ("the configuration", path.to_owned()),
        (None, None) => (
            "the binary's folder",
            beside_binary().ok_or(BackendError::NoLibrary)?,
        ),
    };
    // ort resolves a relative path against the binary's folder, and aborts the process when the
    // file is missing.
    match path.canonicalize() {
        Ok(path) if path.is_file() => Ok(path),
        _ => Err(BackendError::LibraryMissing {
            named_by: source,
            path,
        }),
    }
}

/// `libonnxruntime.so`, with or without a version, in the folder of the running program; the last
/// by name where there are several.
fn beside_binary() -> Option<PathBuf> {
    let dir = std::env::current_exe().ok()?.parent()?.to_owned();
    let name = format!(
        "{}onnxruntime{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    let entries = std::fs::read_dir(dir).ok()?;
    entries
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|file| file.to_string_lossy().starts_with(&name))
        })
        .max()
}

/// Checks a tensor's shape against the manifest's.
fn expect_shape(
    graph: &'static str,
    tensor: &'static str,
    expected: &[usize],
    got: &[usize],
) -> Result<(), ModelError> {
    if expected == got {
        Ok(())
    } else {
        Err(ModelError::Shape {
            graph,
            tensor,
            expected: expected.to_vec(),
            got: got.to_vec(),
        })
    }
}

/// The dimensions both engines need, from the manifest.
#[derive(Debug, Clone, Copy)]
struct Dimensions {
    /// Side of a tile in pixels, T.
    tile: usize,
    /// Image tokens for one tile, S.
    tokens_per_tile: usize,
    /// Width of the residual stream, H.
    hidden: usize,
    /// Decoder blocks; each has a key and a value in the cache.
    layers: usize,
    /// Key and value heads.
    kv_heads: usize,
    /// Width of one head.
    head_dim: usize,
    /// Rows of the embedding and the head.
    vocab: usize,
}

impl Dimensions {
    fn new(manifest: &Manifest) -> Self {
        let text = &manifest.geometry.text;
        Dimensions {
            tile: manifest.image.tile_size,
            tokens_per_tile: manifest.image.tokens_per_tile,
            hidden: text.hidden_size,
            layers: text.layers,
            kv_heads: text.kv_heads,
            head_dim: text.head_dim,
            vocab: text.vocab_size,
        }
    }

    /// The frames of `pixel_values`, each `[3, T, T]`, after a check of their number.
    fn frames<'a>(
        &self,
        pixel_values: &'a [f32],
        frames: usize,
    ) -> Result<ChunksExact<'a, f32>, ModelError> {
        let values = 3 * self.tile * self.tile;
        expect_shape(
            Part::VisionEncoder.as_str(),
            tensors::PIXEL_VALUES,
            &[frames * values],
            &[pixel_values.len()],
        )?;
        Ok(pixel_values.chunks_exact(values))
    }

    /// The number of tokens of `inputs_embeds`, `[N, H]` with N at least 1.
    fn tokens(&self, inputs_embeds: &[f32]) -> Result<usize, ModelError> {
        let n = inputs_embeds.len() / self.hidden;
        expect_shape(
            Part::DecoderModelMerged.as_str(),
            tensors::INPUTS_EMBEDS,
            &[n.max(1), self.hidden],
            &[n, inputs_embeds.len().checked_div(n).unwrap_or(0)],
        )?;
        Ok(n)
    }

    /// Checks ids before they reach an engine: engines differ in what a Gather does with an id
    /// outside its table.
    fn token_ids(&self, input_ids: &[u32]) -> Result<Vec<i64>, ModelError> {
        match input_ids.iter().find(|&&id| id as usize >= self.vocab) {
            Some(&id) => Err(ModelError::TokenId {
                id,
                vocab_size: self.vocab,
            }),
            None => Ok(input_ids.iter().map(|&id| i64::from(id)).collect()),
        }
    }
}

/// Why no engine can run the bundle.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// No source names ONNX Runtime's library.
    #[error(
        "no ONNX Runtime library found: set ORT_DYLIB_PATH to libonnxruntime.so, name it in the configuration, or put it beside the binary"
    )]
    NoLibrary,
    /// The named library does not exist.
    #[error("ONNX Runtime: no library found at {path}, which {named_by} names; correct the path", path = .path.display())]
    LibraryMissing {
        /// Where the path is from.
        named_by: &'static str,
        /// The library's path.
        path: PathBuf,
    },
    /// The library does not load.
    #[error("ONNX Runtime at {path}: {message}", path = .path.display())]
    Library {
        /// The library's path.
        path: PathBuf,
        /// The loader's own message.
        message: String,
    },
    /// A graph does not load.
    #[error("{backend} cannot load {path}: {message}", path = .path.display())]
    Graph {
        /// `ort` or `tract`.
        backend: &'static str,
        /// The graph's path.
        path: PathBuf,
        /// The engine's own message.
        message: String,
    },
    /// The execution provider that runs is not the required one.
    #[error(
        "execution provider {required} is required, but {got} runs; drop require-execution-provider, or install a library that offers {required}"
    )]
    ExecutionProvider {
        /// From the options.
        required: String,
        /// The one that runs.
        got: String,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_first_source_that_names_a_library_decides() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            path.canonicalize().unwrap()
        };
        let (a, b, c) = (touch("a.so"), touch("b.so"), touch("c.so"));
        let beside = || Some(c.clone());
        assert_eq!(find_library(Some(a.clone()), Some(&b), beside).unwrap(), a);
        assert_eq!(find_library(None, Some(&b), beside).unwrap(), b);
        assert_eq!(find_library(Some(PathBuf::new()), None, beside).unwrap(), c);
        assert!(matches!(
            find_library(None, None, || None),
            Err(BackendError::NoLibrary)
        ));
    }

    #[test]
    fn a_wrong_path_is_an_error() {
        let error = find_library(Some("/nowhere/libonnxruntime.so".into()), None, || {
            Some("/bin/sh".into())
        })
        .unwrap_err();
        insta::assert_snapshot!(error, @"ONNX Runtime: no library found at /nowhere/libonnxruntime.so, which ORT_DYLIB_PATH names; correct the path");
    }

    #[test]
    fn a_file_that_is_not_a_library_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("libonnxruntime.so");
        std::fs::write(&path, "not ELF").unwrap();
        assert!(matches!(
            ort::environment(&path),
            Err(BackendError::Library { .. })
        ));
    }
}
