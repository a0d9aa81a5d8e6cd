//! Free text, decoded greedily: prefill in chunks, then one token a step until an end token, a
//! limit, or the caller ends it.

use std::ops::ControlFlow;

use crate::answer::FinishReason;
use crate::logits::{LogitsRow, TokenLogprobs};
use crate::model::{Decoded, KvCache, Logits, Model, ModelError};

/// Tokens run through the decoder at once while prefilling. The published graphs return logits for
/// every position, so this bounds them: 256 · 49,280 · 4 bytes = 50 MB.
const PREFILL_CHUNK: usize = 256;

/// Runs `inputs_embeds` ([n, hidden_size], n ≥ 1) after `past` and returns the last position's
/// logits and the grown cache.
pub(crate) fn prefill(
    model: &mut dyn Model,
    inputs_embeds: &[f32],
    hidden_size: usize,
    past: &KvCache,
) -> Result<Decoded, ModelError> {
    let mut decoded = Decoded {
        logits: Vec::new(),
        cache: past.clone(),
    };
    for chunk in inputs_embeds.chunks(PREFILL_CHUNK * hidden_size) {
        decoded = model.decode(chunk, &decoded.cache, Logits::Last)?;
    }
    Ok(decoded)
}

/// How free text is decoded, and when it ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GenerateOptions<'a> {
    /// Ids that end an answer; not part of it.
    pub(crate) stop: &'a [u32],
    /// Most tokens of the answer.
    pub(crate) max_new_tokens: usize,
    /// Longest sequence the model was made for, prompt and answer together.
    pub(crate) context_length: usize,
    /// Likeliest tokens listed beside each of the answer's.
    pub(crate) top_logprobs: usize,
}

/// Decodes greedily after a prefilled prompt. `on_token` gets each token as soon as it is known,
/// and may end the answer there.
pub(crate) fn generate(
    model: &mut dyn Model,
    prompt: Decoded,
    options: GenerateOptions<'_>,
    on_token: &mut dyn FnMut(TokenLogprobs) -> ControlFlow<()>,
) -> Result<FinishReason, ModelError> {
    let mut decoded = prompt;
    for _ in 0..options.max_new_tokens {
        let row = LogitsRow::new(&decoded.logits)?;
        let id = row.top();
        if options.stop.contains(&id) {
            return Ok(FinishReason::Stop);
        }
        if on_token(row.token(id, options.top_logprobs)?).is_break() {
            return Ok(FinishReason::Stop);
        }
        if decoded.cache.tokens >= options.context_length {
            return Ok(FinishReason::Length);
        }
        let inputs_embeds = model.embed(&[id])?;
        decoded = model.decode(&inputs_embeds, &decoded.cache, Logits::Last)?;
    }
    Ok(FinishReason::Length)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::fake::{FakeModel, HIDDEN};

    const PROMPT: [u32; 3] = [1, 2, 3];
    const OPTIONS: GenerateOptions<'_> = GenerateOptions {
        stop: &[9, 8],
        max_new_tokens: 10,
        context_length: 100,
        top_logprobs: 0,
    };

    fn run(
        model: &mut FakeModel,
        options: GenerateOptions<'_>,
        mut stop_at: usize,
    ) -> (Vec<u32>, Vec<f64>, Result<FinishReason, ModelError>) {
        let prompt = prefill(
            model,
            &FakeModel::embedded(&PROMPT),
            HIDDEN,
            &KvCache::empty(),
        )
        .unwrap();
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        let finish = generate(model, prompt, options, &mut |token| {
            ids.push(token.id);
            logprobs.push(token.logprob);
            stop_at -= 1;
            if stop_at == 0 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        });
        (ids, logprobs, finish)
    }

    #[test]
    fn ends_at_an_end_token_a_limit_or_the_caller() {
        struct Case {
            name: &'static str,
            script: &'static [u32],
            options: GenerateOptions<'static>,
            stop_at: usize,
            ids: &'static [u32],
            finish: FinishReason,
        }
        let cases = [
            Case {
                name: "first end token",
                script: &[5, 6, 9],
                options: OPTIONS,
                stop_at: 99,
                ids: &[5, 6],
                finish: FinishReason::Stop,
            },
            Case {
                name: "other end token",
                script: &[5, 8, 6],
                options: OPTIONS,
                stop_at: 99,
                ids: &[5],
                finish: FinishReason::Stop,
            },
            Case {
                name: "end token at once",
                script: &[9],
                options: OPTIONS,
                stop_at: 99,
                ids: &[],
                finish: FinishReason::Stop,
            },
            Case {
                name: "token limit",
                script: &[5, 6, 7, 9],
                options: GenerateOptions {
                    max_new_tokens: 2,
                    ..OPTIONS
                },
                stop_at: 99,
                ids: &[5, 6],
                finish: FinishReason::Length,
            },
            Case {
                // Three tokens of prompt and two fed fill the context; the third is still predicted
                // at its last position.
                name: "context end",
                script: &[5, 6, 7, 7],
                options: GenerateOptions {
                    context_length: 5,
                    ..OPTIONS
                },
                stop_at: 99,
                ids: &[5, 6, 7],
                finish: FinishReason::Length,
            },
            Case {
                name: "caller",
                script: &[5, 6, 7, 9],
                options: OPTIONS,
                stop_at: 2,
                ids: &[5, 6],
                finish: FinishReason::Stop,
            },
        ];
        for case in cases {
            let mut model = FakeModel::scripted(10, PROMPT.len(), case.script);
            let (ids, logprobs, finish) = run(&mut model, case.options, case.stop_at);
            assert_eq!(ids, case.ids, "{}", case.name);
            assert_eq!(finish.unwrap(), case.finish, "{}", case.name);
            assert!(
                logprobs
                    .iter()
                    .all(|logprob| (logprob - 0.5f64.ln()).abs() < 1e-6),
                "{}: {logprobs:?}",
                case.name
            );
        }
    }

    #[test]
    fn overflow_is_an_error_not_a_token() {
        let mut model = FakeModel::scripted(10, PROMPT.len(), &[5]);
        model.logits = Box::new(|seen| {
            vec![
                if seen.len() > PROMPT.len() * HIDDEN {
                    f32::NAN
                } else {
                    0.0
                };
                10
            ]
        });
        let (ids, _, finish) = run(&mut model, OPTIONS, 99);
        assert_eq!(ids, [0], "the token before the overflow is kept");
        assert!(matches!(finish, Err(ModelError::Logits { index: 0, .. })));
    }

    #[test]
    fn prefill_in_chunks_sees_every_token_once() {
        let ids: Vec<u32> = (0..600).map(|i| i % 10).collect();
        let mut model = FakeModel::hashing(10, 1);
        let prompt = prefill(
            &mut model,
            &FakeModel::embedded(&ids),
            HIDDEN,
            &KvCache::empty(),
        )
        .unwrap();
        assert_eq!(prompt.cache.tokens, 600);
        assert_eq!(prompt.logits, (model.logits)(&FakeModel::embedded(&ids)));
        assert_eq!(model.runs.decode.load(Ordering::Relaxed), 3);
    }
}
