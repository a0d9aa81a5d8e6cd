//! Architectures: from a checkpoint's tensor names to the graphs of its parts. One file per model
//! family.

pub mod smolvlm;

use crate::checkpoint::CheckpointError;

impl ArchError {
    /// Whether a file could not be read, rather than holding another model.
    pub(crate) fn is_io(&self) -> bool {
        matches!(self, ArchError::Checkpoint(error) if error.is_io())
    }
}

/// Why a checkpoint is not a model of its architecture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchError {
    /// A tensor is missing or cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor's shape does not fit the rest of the model.
    #[error(
        "{dir}: tensor {tensor:?} is {found:?}, expected {expected}; config and weights are of different models"
    )]
    Shape {
        /// The checkpoint folder.
        dir: String,
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        found: Vec<usize>,
        /// What they should be, and why.
        expected: String,
    },
    /// No head is stored, and the embedding is not to be used as one.
    #[error(
        "{dir}: tensor \"lm_head.weight\" is missing and tie_word_embeddings is false; save the model with its head, or set \
         tie_word_embeddings to true if it was trained with the embedding as its head"
    )]
    NoHead {
        /// The checkpoint folder.
        dir: String,
    },
    /// Tensors that no graph uses.
    #[error(
        "{dir}: tensors that this architecture does not use: {tensors}; expected a SmolVLM2 checkpoint; merge an adapter first, \
         with merge_and_unload()"
    )]
    Unused {
        /// The checkpoint folder.
        dir: String,
        /// The first of them, and how many more there are.
        tensors: String,
    },
    /// The inner model was saved, without its head.
    #[error(
        "{dir}: tensor {tensor:?} has no \"model.\" before it: this is a SmolVLMModel, saved without its head; save the \
         SmolVLMForConditionalGeneration around it"
    )]
    Headless {
        /// The checkpoint folder.
        dir: String,
        /// A tensor without the prefix.
        tensor: String,
    },
    /// The config contradicts the tensors.
    #[error(
        "{dir}/config.json: {field} is {found}, but {tensors}; config and weights are of different models"
    )]
    Config {
        /// The checkpoint folder.
        dir: String,
        /// The field.
        field: &'static str,
        /// Its value.
        found: usize,
        /// What the tensors say.
        tensors: String,
    },
}
