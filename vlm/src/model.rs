//! The interface between generation and an inference engine: three graphs, run by one backend.

use std::any::Any;
use std::sync::Arc;

/// A loaded model: vision encoder, embedding, text decoder. One implementation per backend.
pub trait Model: Send {
    /// Runs the vision encoder on each frame.
    ///
    /// `pixel_values`: [frames, 3, T, T] f32, row-major, normalised. Returns [frames · S, H] f32,
    /// row-major, where T is a tile's side, S its image tokens and H the hidden size.
    ///
    /// # Errors
    /// When the backend fails or returns another shape.
    fn encode(&mut self, pixel_values: &[f32], frames: usize) -> Result<Vec<f32>, ModelError>;

    /// Looks up embedding rows. Returns [ids, H] f32, row-major.
    ///
    /// # Errors
    /// When the backend fails, or an id is outside the vocabulary.
    fn embed(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, ModelError>;

    /// Runs the decoder over `inputs_embeds` ([n, H] f32, row-major) after `past`.
    ///
    /// Returns the logits of the requested positions and the cache grown by n. `past` is untouched,
    /// so several continuations may start from one prefix.
    ///
    /// # Errors
    /// When the backend fails, returns another shape, or `past` is another backend's.
    fn decode(
        &mut self,
        inputs_embeds: &[f32],
        past: &KvCache,
        logits: Logits,
    ) -> Result<Decoded, ModelError>;

    /// Which engine runs, and on what.
    fn provider(&self) -> Provider;
}

/// Which positions' logits a decoder run returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// The last position: [1, vocabulary].
    Last,
    /// Every position of the run: [n, vocabulary].
    All,
}

/// What a decoder run returns.
#[derive(Debug)]
pub struct Decoded {
    /// [1 or n, vocabulary] f32, row-major.
    pub logits: Vec<f32>,
    /// The tokens so far: the next run's `past`.
    pub cache: KvCache,
}

/// Keys and values of the tokens seen so far, in the backend's own form. Cheap to clone; never
/// changed in place.
#[derive(Clone)]
pub struct KvCache {
    /// Tokens held.
    pub tokens: usize,
    /// The backend's tensors; `None` before the first token.
    pub state: Option<Arc<dyn Any + Send + Sync>>,
}

impl KvCache {
    /// The cache before the first token.
    pub fn empty() -> Self {
        KvCache {
            tokens: 0,
            state: None,
        }
    }
}

impl std::fmt::Debug for KvCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvCache")
            .field("tokens", &self.tokens)
            .finish_non_exhaustive()
    }
}

/// Which engine runs a model, and on what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Provider {
    /// `ort` or `tract`.
    pub backend: String,
    /// The execution provider that really runs: `cpu`, `cuda`, `tensorrt`, or `tract`.
    pub execution_provider: String,
}

/// Why a graph did not run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The engine failed.
    #[error(
        "{backend} failed in {graph}: {message}; try the other backend; if both fail, export the bundle again"
    )]
    Backend {
        /// `ort` or `tract`.
        backend: &'static str,
        /// The graph it ran.
        graph: &'static str,
        /// The engine's own message.
        message: String,
    },
    /// A tensor's shape is not the manifest's.
    #[error(
        "{graph}: expected {tensor} of {expected:?}, got {got:?}; the manifest and the graph are of different models: export the bundle again"
    )]
    Shape {
        /// The graph it ran.
        graph: &'static str,
        /// The tensor's name.
        tensor: &'static str,
        /// From the manifest and the inputs.
        expected: Vec<usize>,
        /// From the engine.
        got: Vec<usize>,
    },
    /// The decoder's output is not a distribution.
    #[error(
        "logits are {value} at token id {index}: expected finite numbers; the model overflowed, or its weights are damaged: export the bundle again"
    )]
    Logits {
        /// The first offending token id.
        index: usize,
        /// Its logit.
        value: f32,
    },
    /// A token id outside the vocabulary.
    #[error(
        "token id {id} is outside the vocabulary of {vocab_size}; the tokenizer is that of another model: export the bundle again with its own"
    )]
    TokenId {
        /// The id.
        id: u32,
        /// Rows of the embedding.
        vocab_size: usize,
    },
}
