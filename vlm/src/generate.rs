//! Free text, decoded greedily: prefill in chunks, then one token a step until an end token, a limit, or the caller stops it.

use std::ops::ControlFlow;

use crate::answer::FinishReason;
use crate::logits::LogitsRow;
use crate::model::{Decoded, KvCache, Logits, Model, ModelError};

/// Tokens run through the decoder at once while prefilling. The published graphs put out logits of every position, so this bounds
/// them: 256 · 49,280 · 4 bytes = 50 MB.
const PREFILL_CHUNK: usize = 256;

/// Runs `inputs_embeds` ([n, hidden_size], n ≥ 1) behind `past` and returns the last position's logits and the grown cache.
pub(crate) fn prefill(model: &mut dyn Model, inputs_embeds: &[f32], hidden_size: usize, past: &KvCache) -> Result<Decoded, ModelError> {
    let mut decoded = Decoded { logits: Vec::new(), cache: past.clone() };
    for chunk in inputs_embeds.chunks(PREFILL_CHUNK * hidden_size) {
        decoded = model.decode(chunk, &decoded.cache, Logits::Last)?;
    }
    Ok(decoded)
}

/// When to end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits<'a> {
    /// Ids that end an answer; not part of it.
    pub(crate) stop: &'a [u32],
    /// Most tokens of the answer.
    pub(crate) max_new_tokens: usize,
    /// Longest sequence the model was made for, prompt and answer together.
    pub(crate) context_length: usize,
}

/// Decodes greedily behind a prefilled prompt; `on_token` gets each id with its natural-log probability as soon as it is known.
pub(crate) fn generate(
    model: &mut dyn Model,
    prompt: Decoded,
    limits: Limits<'_>,
    on_token: &mut dyn FnMut(u32, f32) -> ControlFlow<()>,
) -> Result<FinishReason, ModelError> {
    let mut decoded = prompt;
    for _ in 0..limits.max_new_tokens {
        let row = LogitsRow::new(&decoded.logits)?;
        let id = row.top();
        if limits.stop.contains(&id) {
            return Ok(FinishReason::Stop);
        }
        if on_token(id, row.logprob(id)? as f32).is_break() {
            return Ok(FinishReason::Stop);
        }
        if decoded.cache.tokens >= limits.context_length {
            return Ok(FinishReason::Length);
        }
        let inputs_embeds = model.embed(&[id])?;
        decoded = model.decode(&inputs_embeds, &decoded.cache, Logits::Last)?;
    }
    Ok(FinishReason::Length)
}
