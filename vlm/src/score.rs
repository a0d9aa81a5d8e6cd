//! Scoring of candidates: how likely the model is to continue the prompt with each of them.
//!
//! The prompt is run once. A candidate of one token is scored at its last position; a longer one
//! costs one decoder run of its tokens after the shared cache.

use crate::logits::{LogitsRow, TokenLogprobs};
use crate::model::{Decoded, Logits, Model, ModelError};
use crate::sink::Sink;
use crate::tokenizer::TokenizerError;

/// Most candidates of one question.
pub const CANDIDATES_MAX: usize = 64;

/// Most tokens of one candidate, end token included.
const CANDIDATE_TOKENS_MAX: usize = 64;

/// Why candidates cannot be scored.
#[derive(Debug, thiserror::Error)]
pub enum CandidateError {
    /// More than [`CANDIDATES_MAX`].
    #[error(
        "{count} candidates: expected at most {CANDIDATES_MAX}; use free text for open questions"
    )]
    TooMany {
        /// How many were given.
        count: usize,
    },
    /// No text after trimming, or none the vocabulary has tokens for.
    #[error("candidate {position} is empty: expected text; remove it")]
    Empty {
        /// Counted from 1.
        position: usize,
    },
    /// Two with the same tokens.
    #[error("candidates {first:?} and {second:?} are the same to the model; keep one")]
    Duplicate {
        /// The earlier one.
        first: String,
        /// The later one.
        second: String,
    },
    /// 64 tokens or more, so that none is left for an end token.
    #[error(
        "candidate {begin:?}… is {tokens} tokens: expected at most {CANDIDATE_TOKENS_MAX}; use free text for long answers"
    )]
    TooLong {
        /// Its first 32 characters.
        begin: String,
        /// Its length in tokens.
        tokens: usize,
    },
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// The token sequences to score, one per candidate, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sequences {
    /// Each candidate's tokens, end token included where it was added.
    pub(crate) tokens: Vec<Vec<u32>>,
    /// Whether the end token was added to all.
    pub(crate) ended: bool,
}

/// Checks candidates and turns each into the tokens the model would continue with: a space, then
/// the trimmed text.
///
/// When one candidate's tokens are a prefix of another's, the shorter could never lose, so the end
/// token is added to all.
pub(crate) fn sequences(
    candidates: &[String],
    tokenize: impl Fn(&str) -> Result<Vec<u32>, TokenizerError>,
    end: u32,
) -> Result<Sequences, CandidateError> {
    if candidates.len() > CANDIDATES_MAX {
        return Err(CandidateError::TooMany {
            count: candidates.len(),
        });
    }
    let mut tokens: Vec<Vec<u32>> = Vec::with_capacity(candidates.len());
    for (index, text) in candidates.iter().enumerate() {
        let ids = tokenize(&format!(" {}", text.trim()))?;
        if text.trim().is_empty() || ids.is_empty() {
            return Err(CandidateError::Empty {
                position: index + 1,
            });
        }
        if ids.len() >= CANDIDATE_TOKENS_MAX {
            return Err(CandidateError::TooLong {
                begin: text.trim().chars().take(32).collect(),
                tokens: ids.len(),
            });
        }
        if let Some(first) = tokens.iter().position(|other| *other == ids) {
            return Err(CandidateError::Duplicate {
                first: candidates[first].clone(),
                second: text.clone(),
            });
        }
        tokens.push(ids);
    }
    let ended = tokens.iter().enumerate().any(|(i, one)| {
        tokens
            .iter()
            .enumerate()
            .any(|(j, other)| i != j && other.starts_with(one))
    });
    if ended {
        tokens.iter_mut().for_each(|ids| ids.push(end));
    }
    Ok(Sequences { tokens, ended })
}

/// The log-probability of each token of each sequence, given the prompt and the tokens before it,
/// with the `top` likeliest beside it. `None` when `sink`, which is asked before each sequence,
/// cancels.
pub(crate) fn logprobs(
    model: &mut dyn Model,
    prompt: &Decoded,
    sequences: &[Vec<u32>],
    top: usize,
    sink: &dyn Sink,
) -> Result<Option<Vec<Vec<TokenLogprobs>>>, ModelError> {
    let first = LogitsRow::new(&prompt.logits)?;
    let vocab_size = prompt.logits.len();
    let mut scored = Vec::with_capacity(sequences.len());
    for ids in sequences {
        if sink.is_cancelled() {
            return Ok(None);
        }
        let mut tokens = vec![first.token(ids[0], top)?];
        // The last token is only predicted, never fed.
        let fed = &ids[..ids.len() - 1];
        if !fed.is_empty() {
            let inputs_embeds = model.embed(fed)?;
            let decoded = model.decode(&inputs_embeds, &prompt.cache, Logits::All)?;
            for (row, &id) in decoded.logits.chunks_exact(vocab_size).zip(&ids[1..]) {
                tokens.push(LogitsRow::new(row)?.token(id, top)?);
            }
        }
        scored.push(tokens);
    }
    Ok(Some(scored))
}

/// Each candidate's score: the sum of its tokens' log-probabilities, natural log.
pub(crate) fn scores(logprobs: &[Vec<TokenLogprobs>]) -> Vec<f64> {
    logprobs
        .iter()
        .map(|tokens| tokens.iter().map(|token| token.logprob).sum())
        .collect()
}

/// Softmax of the scores, in their order; equal shares when every score is -inf.
pub(crate) fn probabilities(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        // All are impossible to the model: it has no preference.
        return vec![1.0 / scores.len() as f64; scores.len()];
    }
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / sum).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::answer::Piece;
    use crate::fake::{FakeModel, HIDDEN};
    use crate::generate::prefill;
    use crate::model::KvCache;

    /// One token per byte, so that prefixes of texts are prefixes of tokens.
    fn bytes(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    fn tokenized(candidates: &[String]) -> Result<Sequences, CandidateError> {
        sequences(candidates, |text| Ok(bytes(text)), 999)
    }

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_candidate_follows_a_space() {
        let found = tokenized(&strings(&["yes", " no "])).unwrap();
        assert_eq!(
            found,
            Sequences {
                tokens: vec![bytes(" yes"), bytes(" no")],
                ended: false
            }
        );
    }

    #[test]
    fn the_end_token_is_added_to_all_where_one_is_a_prefix_of_another() {
        let found = tokenized(&strings(&["1", "10", "2"])).unwrap();
        assert!(found.ended);
        assert_eq!(
            found.tokens,
            [
                [bytes(" 1"), vec![999]].concat(),
                [bytes(" 10"), vec![999]].concat(),
                [bytes(" 2"), vec![999]].concat()
            ]
        );
    }

    #[test]
    fn bad_candidates_are_named() {
        let refuse = |texts: &[&str]| tokenized(&strings(texts)).unwrap_err().to_string();
        insta::assert_snapshot!(refuse(&["yes", " "]), @"candidate 2 is empty: expected text; remove it");
        insta::assert_snapshot!(refuse(&["yes", "no", " yes "]), @r#"candidates "yes" and " yes " are the same to the model; keep one"#);
        insta::assert_snapshot!(refuse(&["a"; 65]), @"65 candidates: expected at most 64; use free text for open questions");
        let long = "x".repeat(80);
        assert!(matches!(
            tokenized(&[long]),
            Err(CandidateError::TooLong { tokens: 81, .. })
        ));
    }

    #[test]
    fn scores_equal_those_of_a_run_over_everything() {
        let prompt_ids = [1u32, 2, 3];
        let mut model = FakeModel::hashing(20, 1);
        let prompt = prefill(
            &mut model,
            &FakeModel::embedded(&prompt_ids),
            HIDDEN,
            &KvCache::empty(),
        )
        .unwrap();
        let sequences = [vec![4], vec![5, 6, 7], vec![5, 8]];
        let scored = logprobs(&mut model, &prompt, &sequences, 1, &|_: &Piece| {})
            .unwrap()
            .unwrap();
        for (ids, scored) in sequences.iter().zip(&scored) {
            for (at, (&id, scored)) in ids.iter().zip(scored).enumerate() {
                let seen = [&prompt_ids, &ids[..at]].concat();
                let row = (model.logits)(&FakeModel::embedded(&seen));
                assert_eq!(
                    scored,
                    &LogitsRow::new(&row).unwrap().token(id, 1).unwrap(),
                    "token {at} of {ids:?}"
                );
            }
        }
        // The prompt once, then one run for each candidate of more than one token; the last token
        // is never fed.
        assert_eq!(model.runs.decode.load(Ordering::Relaxed), 3);
        assert_eq!(model.runs.decoded_tokens.load(Ordering::Relaxed), 3 + 2 + 1);
    }

    #[test]
    fn impossible_candidates_share_the_probability() {
        assert_eq!(probabilities(&[f64::NEG_INFINITY; 2]), [0.5, 0.5]);
        assert_eq!(probabilities(&[f64::NEG_INFINITY, -700.0]), [0.0, 1.0]);
    }

    proptest! {
        #[test]
        fn probabilities_are_a_distribution_in_the_order_of_the_scores(scores in prop::collection::vec(-500f64..0.0, 1..64)) {
            let found = probabilities(&scores);
            prop_assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            for (i, j) in (0..scores.len()).zip(1..scores.len()) {
                prop_assert!((scores[i] < scores[j]) <= (found[i] <= found[j]));
            }
        }
    }
}
