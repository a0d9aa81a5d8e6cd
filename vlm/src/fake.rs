//! A model without weights for tests: it answers with a script, or with a hash of its inputs.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::model::{Decoded, KvCache, Logits, Model, ModelError, Provider};

/// Width of an embedding: the id, and a mark that tells text from image.
pub(crate) const HIDDEN: usize = 2;

/// How often each graph ran.
#[derive(Debug, Default)]
pub(crate) struct Runs {
    pub(crate) encode: AtomicUsize,
    pub(crate) decode: AtomicUsize,
    pub(crate) decoded_tokens: AtomicUsize,
}

/// From everything seen, [seen, HIDDEN], to the logits of the next token.
pub(crate) type NextLogits = Box<dyn Fn(&[f32]) -> Vec<f32> + Send>;

/// A model that keeps the embeddings it has seen as its cache.
pub(crate) struct FakeModel {
    pub(crate) vocab_size: usize,
    pub(crate) tokens_per_tile: usize,
    pub(crate) runs: Arc<Runs>,
    pub(crate) logits: NextLogits,
}

impl FakeModel {
    /// A model with logits that depend on every value it has seen.
    pub(crate) fn hashing(vocab_size: usize, tokens_per_tile: usize) -> Self {
        let logits = move |seen: &[f32]| {
            (0..vocab_size)
                .map(|id| {
                    let mut hasher = DefaultHasher::new();
                    (
                        id,
                        seen.iter().map(|value| value.to_bits()).collect::<Vec<_>>(),
                    )
                        .hash(&mut hasher);
                    (hasher.finish() % 1000) as f32 / 100.0
                })
                .collect()
        };
        FakeModel {
            vocab_size,
            tokens_per_tile,
            runs: Arc::default(),
            logits: Box::new(logits),
        }
    }

    /// A model that answers `script` after a prompt of `prompt_tokens`, each token with logit
    /// `ln(vocab_size - 1)`: probability one half.
    pub(crate) fn scripted(vocab_size: usize, prompt_tokens: usize, script: &[u32]) -> Self {
        let script = script.to_vec();
        let logits = move |seen: &[f32]| {
            let mut row = vec![0.0; vocab_size];
            // Positions within the prompt predict nothing in particular.
            let answered = (seen.len() / HIDDEN).checked_sub(prompt_tokens);
            if let Some(&id) = answered.and_then(|answered| script.get(answered)) {
                row[id as usize] = ((vocab_size - 1) as f32).ln();
            }
            row
        };
        FakeModel {
            vocab_size,
            tokens_per_tile: 1,
            runs: Arc::default(),
            logits: Box::new(logits),
        }
    }

    /// The embeddings of `ids`, as [`Model::embed`] returns them.
    pub(crate) fn embedded(ids: &[u32]) -> Vec<f32> {
        ids.iter().flat_map(|&id| [id as f32, 1.0]).collect()
    }
}

impl Model for FakeModel {
    fn encode(&mut self, pixel_values: &[f32], frames: usize) -> Result<Vec<f32>, ModelError> {
        self.runs.encode.fetch_add(1, Ordering::Relaxed);
        let frame = pixel_values.len() / frames;
        Ok(pixel_values
            .chunks(frame)
            .flat_map(|frame| vec![[frame.iter().sum::<f32>(), 0.0]; self.tokens_per_tile])
            .flatten()
            .collect())
    }

    fn embed(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        match input_ids.iter().find(|&&id| id as usize >= self.vocab_size) {
            Some(&id) => Err(ModelError::TokenId {
                id,
                vocab_size: self.vocab_size,
            }),
            None => Ok(Self::embedded(input_ids)),
        }
    }

    fn decode(
        &mut self,
        inputs_embeds: &[f32],
        past: &KvCache,
        logits: Logits,
    ) -> Result<Decoded, ModelError> {
        self.runs.decode.fetch_add(1, Ordering::Relaxed);
        self.runs
            .decoded_tokens
            .fetch_add(inputs_embeds.len() / HIDDEN, Ordering::Relaxed);
        let mut seen: Vec<f32> = past
            .state
            .as_ref()
            .and_then(|state| state.downcast_ref::<Vec<f32>>())
            .cloned()
            .unwrap_or_default();
        assert_eq!(
            seen.len(),
            past.tokens * HIDDEN,
            "a cache has as many embeddings as it counts"
        );
        let mut rows = Vec::new();
        for embedding in inputs_embeds.chunks(HIDDEN) {
            seen.extend_from_slice(embedding);
            if logits == Logits::Last {
                rows.clear();
            }
            rows.extend((self.logits)(&seen));
        }
        Ok(Decoded {
            logits: rows,
            cache: KvCache {
                tokens: seen.len() / HIDDEN,
                state: Some(Arc::new(seen)),
            },
        })
    }

    fn provider(&self) -> Provider {
        Provider {
            backend: "fake".into(),
            execution_provider: "fake".into(),
        }
    }
}
