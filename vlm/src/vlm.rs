//! The facade: a bundle, opened, that answers.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use firmware_config::agent::BackendChoice;

use crate::answer::{Answer, Token};
use crate::request::Request;

/// How a bundle is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Which inference engine runs it.
    pub backend: BackendChoice,
    /// Inference threads; `None` leaves the choice to the engine.
    pub threads: Option<usize>,
    /// ONNX Runtime's shared library, when it is neither in `ORT_DYLIB_PATH` nor beside the binary.
    pub ort_library: Option<PathBuf>,
    /// Opening fails unless this execution provider really runs (`cpu`, `cuda`, `tensorrt`, `tract`).
    pub require_execution_provider: Option<String>,
}

/// Which model answers, and on what.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The manifest's name.
    pub name: String,
    /// Hex sha256 of `manifest.json`: the bundle's identity.
    pub sha256: String,
    /// `fp32`, `fp16`, `int8` …
    pub precision: String,
    /// `ort` or `tract`.
    pub backend: String,
    /// The execution provider that really runs.
    pub execution_provider: String,
    /// What opening took, hashing included.
    pub load: Duration,
}

/// An open bundle. Owned by one thread, asked one request at a time.
pub struct Vlm {
    identity: Identity,
}

impl Vlm {
    /// Opens the bundle in `dir`: checks every file, chooses an engine, loads the graphs.
    ///
    /// # Errors
    /// When a file is missing or changed, no engine can be had, or a graph does not load.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, VlmError> {
        let _ = (dir, options);
        Err(VlmError::Internal("not yet".into()))
    }

    /// Which model answers, and on what.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When the request cannot be put to this model ([`VlmError::is_bad_request`]), or the model fails.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, VlmError> {
        self.ask_streaming(request, &mut |_| ControlFlow::Continue(()))
    }

    /// As [`Vlm::ask`], and hands over each token as soon as it is known; `Break` ends the answer there.
    ///
    /// # Errors
    /// As [`Vlm::ask`].
    pub fn ask_streaming(&mut self, request: &Request, on_token: &mut dyn FnMut(&Token) -> ControlFlow<()>) -> Result<Answer, VlmError> {
        let _ = (request, on_token);
        Err(VlmError::Internal("not yet".into()))
    }

    /// Length of a text in tokens; special tokens in it count as text.
    pub fn token_count(&self, text: &str) -> usize {
        text.len()
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum VlmError {
    /// The request cannot be put to this model.
    #[error("{0}")]
    BadRequest(String),
    /// Something failed.
    #[error("{0}")]
    Internal(String),
}

impl VlmError {
    /// Whether the request is at fault, and asking it again will not help.
    pub fn is_bad_request(&self) -> bool {
        matches!(self, VlmError::BadRequest(_))
    }
}
