//! The reference: SmolVLM2's forward pass in plain f32, straight from a checkpoint's tensors.
//!
//! ```text
//! pixel_values ─▶ patches ─▶ + positions ─▶ blocks ─▶ norm ─▶ pixel shuffle ─▶ projection ─▶ image_features ─┐
//! input_ids ──▶ embedding rows ──────────────────────── rows of <image> are overwritten ◀────────────────────┘
//!                                                              │
//!                                         blocks, each token attending to itself and all before ─▶ norm ─▶ head ─▶ logits
//! ```
//!
//! Exports are compared with it, so it shares nothing with the graph builder except the
//! checkpoint's reader: no graph, no fusing, no folding, written as the architecture is described.
//! It is itself compared with transformers (`tests/data/reference.json`).

mod math;
mod text;
mod vision;

use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};

use math::Matrix;
pub use text::Past;
use text::TextDecoder;
use vision::VisionEncoder;

/// The forward pass of a checkpoint, with all weights in memory.
#[derive(Debug)]
pub struct Reference {
    vision: VisionEncoder,
    text: TextDecoder,
    embedding: Matrix,
    /// `None` where the embedding is the head as well.
    head: Option<Matrix>,
}

impl Reference {
    /// Reads every tensor the forward pass uses.
    ///
    /// # Errors
    /// When one is missing, not finite, or its shape does not fit the others or the config.
    pub fn open(checkpoint: &Checkpoint) -> Result<Self, ReferenceError> {
        let weights = CheckpointTensors(checkpoint);
        let embedding = weights.matrix("model.text_model.embed_tokens.weight")?;
        let head = match checkpoint.config.tie_word_embeddings
            && checkpoint.shape("lm_head.weight").is_none()
        {
            true => None,
            false => Some(weights.sized("lm_head.weight", embedding.rows, embedding.columns)?),
        };
        let vision = VisionEncoder::open(checkpoint, embedding.columns)?;
        let text = TextDecoder::open(checkpoint, embedding.columns)?;
        Ok(Reference {
            vision,
            text,
            embedding,
            head,
        })
    }

    /// Width of the text decoder's residual stream, H.
    pub fn hidden_size(&self) -> usize {
        self.embedding.columns
    }

    /// Rows of the embedding and the head.
    pub fn vocab_size(&self) -> usize {
        self.embedding.rows
    }

    /// Side of a frame in pixels, T.
    pub fn image_size(&self) -> usize {
        self.vision.image_size
    }

    /// Rows of image features for one frame, S.
    pub fn tokens_per_frame(&self) -> usize {
        self.vision.tokens()
    }

    /// The vision encoder over frames of [frames, 3, T, T], normalised. Returns image features,
    /// [frames · S, H].
    ///
    /// # Panics
    /// When `pixel_values` is not `frames` whole frames.
    pub fn encode(&self, pixel_values: &[f32], frames: usize) -> Vec<f32> {
        assert_eq!(
            pixel_values.len() % frames.max(1),
            0,
            "pixel_values hold whole frames"
        );
        pixel_values
            .chunks_exact(pixel_values.len() / frames.max(1))
            .flat_map(|frame| self.vision.encode(frame))
            .collect()
    }

    /// Embedding rows, [ids, H].
    ///
    /// # Panics
    /// When an id is outside the vocabulary.
    pub fn embed(&self, input_ids: &[u32]) -> Vec<f32> {
        input_ids
            .iter()
            .flat_map(|&id| self.embedding.row(id as usize))
            .copied()
            .collect()
    }

    /// The decoder over `inputs_embeds` ([n, H]) after `past`, which grows by n. Returns the final
    /// hidden states, [n, H]: what the head reads.
    pub fn hidden(&self, inputs_embeds: &[f32], past: &mut Past) -> Vec<f32> {
        self.text.run(inputs_embeds, past)
    }

    /// The head over hidden states, [n, H] to logits, [n, vocabulary].
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        self.head.as_ref().unwrap_or(&self.embedding).apply(hidden)
    }

    /// A prompt's embeddings with the rows of `image_token` overwritten by image features, in
    /// order.
    ///
    /// # Panics
    /// When there is not exactly one feature row for each.
    pub fn prompt(&self, input_ids: &[u32], image_token: u32, image_features: &[f32]) -> Vec<f32> {
        let mut inputs_embeds = self.embed(input_ids);
        let mut features = image_features.chunks_exact(self.hidden_size());
        for (row, _) in inputs_embeds
            .chunks_exact_mut(self.hidden_size())
            .zip(input_ids)
            .filter(|(_, id)| **id == image_token)
        {
            row.copy_from_slice(
                features
                    .next()
                    .expect("one feature row for each image token"),
            );
        }
        assert!(
            features.next().is_none(),
            "one image token for each feature row"
        );
        inputs_embeds
    }
}

/// A checkpoint's tensors, by name and with the shape that the forward pass needs.
struct CheckpointTensors<'a>(&'a Checkpoint);

impl CheckpointTensors<'_> {
    /// A matrix of any size, [out, in].
    fn matrix(&self, name: &str) -> Result<Matrix, ReferenceError> {
        let Tensor { shape, values } = self.0.tensor(name)?;
        match shape[..] {
            [rows, columns] => Ok(Matrix {
                rows,
                columns,
                values,
            }),
            _ => Err(ReferenceError::Rank {
                tensor: name.into(),
                expected: 2,
                got: shape,
            }),
        }
    }

    /// A matrix of [rows, columns].
    fn sized(&self, name: &str, rows: usize, columns: usize) -> Result<Matrix, ReferenceError> {
        let values = self.values(name, &[rows, columns])?;
        Ok(Matrix {
            rows,
            columns,
            values,
        })
    }

    fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, ReferenceError> {
        self.values(name, &[length])
    }

    fn values(&self, name: &str, expected: &[usize]) -> Result<Vec<f32>, ReferenceError> {
        let Tensor { shape, values } = self.0.tensor(name)?;
        if shape != expected {
            return Err(ReferenceError::Shape {
                tensor: name.into(),
                expected: expected.into(),
                got: shape,
            });
        }
        Ok(values)
    }

    /// How many of `{prefix}0.{suffix}`, `{prefix}1.{suffix}`, … there are.
    fn layers(&self, prefix: &str, suffix: &str) -> usize {
        (0..)
            .take_while(|layer| self.0.shape(&format!("{prefix}{layer}.{suffix}")).is_some())
            .count()
    }
}

/// Why the forward pass of a checkpoint cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// It cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A tensor's shape does not fit the others and the config.
    #[error(
        "tensor {tensor:?}: expected shape {expected:?}, got {got:?}; config.json and weights are of different models"
    )]
    Shape {
        /// The tensor's name.
        tensor: String,
        /// From the config and from tensors read before it.
        expected: Vec<usize>,
        /// As stored.
        got: Vec<usize>,
    },
    /// A tensor has another number of dimensions than the architecture.
    #[error(
        "tensor {tensor:?}: expected {expected} dimensions as the architecture has them, got shape {got:?}; the checkpoint is of another architecture"
    )]
    Rank {
        /// The tensor's name.
        tensor: String,
        /// Dimensions of the architecture.
        expected: usize,
        /// As stored.
        got: Vec<usize>,
    },
    /// A size of the config does not divide another.
    #[error(
        "{what} {whole} is not a multiple of {part_name} {part}; config.json and weights are of different models"
    )]
    Indivisible {
        /// What is divided.
        what: &'static str,
        /// Its size.
        whole: usize,
        /// What it is divided by.
        part_name: &'static str,
        /// Its size.
        part: usize,
    },
}

/// `whole / part`, which must leave no remainder.
fn divide(
    what: &'static str,
    whole: usize,
    part_name: &'static str,
    part: usize,
) -> Result<usize, ReferenceError> {
    match whole.checked_rem(part) {
        Some(0) => Ok(whole / part),
        _ => Err(ReferenceError::Indivisible {
            what,
            whole,
            part_name,
            part,
        }),
    }
}
