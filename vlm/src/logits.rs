//! A row of logits as a distribution over the vocabulary: the likeliest token, and
//! log-probabilities.
//!
//! Sums over the vocabulary are done in f64: with tens of thousands of terms, f32 would lose the
//! digits that references compare.

use crate::model::ModelError;

/// The logits of one position: one finite number (or -inf) per vocabulary entry, at least one of
/// them finite.
#[derive(Debug, Clone, Copy)]
pub struct LogitsRow<'a> {
    logits: &'a [f32],
    logsumexp: f64,
}

/// A token's log-probability in its row, and the likeliest tokens there.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TokenLogprobs {
    /// The token.
    pub(crate) id: u32,
    /// Natural log of its probability.
    pub(crate) logprob: f64,
    /// The likeliest tokens in the row with theirs, likeliest first.
    pub(crate) top: Vec<(u32, f64)>,
}

impl<'a> LogitsRow<'a> {
    /// Checks a row and normalises it.
    ///
    /// # Errors
    /// When it holds NaN or +inf, or nothing but -inf: the model overflowed, and an arbitrary token
    /// would be no answer.
    pub fn new(logits: &'a [f32]) -> Result<Self, ModelError> {
        if let Some((index, &value)) = logits
            .iter()
            .enumerate()
            .find(|(_, value)| value.is_nan() || **value == f32::INFINITY)
        {
            return Err(ModelError::Logits { index, value });
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            return Err(ModelError::Logits {
                index: 0,
                value: max,
            });
        }
        let max = f64::from(max);
        let sum: f64 = logits
            .iter()
            .map(|&logit| (f64::from(logit) - max).exp())
            .sum();
        Ok(LogitsRow {
            logits,
            logsumexp: max + sum.ln(),
        })
    }

    /// The likeliest token; the lowest id among equals.
    pub fn top(&self) -> u32 {
        let best =
            self.logits
                .iter()
                .enumerate()
                .fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
                    if logit > best.1 { (id, logit) } else { best }
                });
        best.0 as u32
    }

    /// The `n` likeliest tokens with their logits, likeliest first; lower ids first among equals.
    pub fn top_n(&self, n: usize) -> Vec<(u32, f32)> {
        let mut ids: Vec<u32> = (0..self.logits.len() as u32).collect();
        let likelier = |a: &u32, b: &u32| {
            self.logits[*b as usize]
                .total_cmp(&self.logits[*a as usize])
                .then(a.cmp(b))
        };
        if (1..ids.len()).contains(&n) {
            ids.select_nth_unstable_by(n - 1, likelier);
        }
        ids.truncate(n);
        ids.sort_by(likelier);
        ids.into_iter()
            .map(|id| (id, self.logits[id as usize]))
            .collect()
    }

    /// Natural log of the token's probability.
    ///
    /// # Errors
    /// When the id is outside the vocabulary.
    pub fn logprob(&self, id: u32) -> Result<f64, ModelError> {
        let logit = self.logits.get(id as usize).ok_or(ModelError::TokenId {
            id,
            vocab_size: self.logits.len(),
        })?;
        Ok(f64::from(*logit) - self.logsumexp)
    }

    /// The log-probability of the token `id`, and those of the `top` likeliest.
    ///
    /// # Errors
    /// When the id is outside the vocabulary.
    pub(crate) fn token(&self, id: u32, top: usize) -> Result<TokenLogprobs, ModelError> {
        let top = self
            .top_n(top)
            .into_iter()
            .map(|(id, logit)| (id, f64::from(logit) - self.logsumexp))
            .collect();
        Ok(TokenLogprobs {
            id,
            logprob: self.logprob(id)?,
            top,
        })
    }

    /// Natural log of the sum of the row's exponentials.
    pub fn logsumexp(&self) -> f64 {
        self.logsumexp
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_lowest_id_wins_among_equals() {
        let row = LogitsRow::new(&[1.0, 3.0, 3.0, f32::NEG_INFINITY]).unwrap();
        assert_eq!(row.top(), 1);
        assert_eq!(row.top_n(2), [(1, 3.0), (2, 3.0)]);
        assert_eq!(row.top_n(9).len(), 4);
        assert_eq!(row.top_n(0), []);
    }

    #[test]
    fn probabilities_of_equal_logits_are_equal() {
        let row = LogitsRow::new(&[80.0; 4]).unwrap();
        assert!((row.logprob(2).unwrap() - 0.25f64.ln()).abs() < 1e-12);
        assert!(matches!(
            row.logprob(4),
            Err(ModelError::TokenId {
                id: 4,
                vocab_size: 4
            })
        ));
    }

    #[test]
    fn overflow_is_an_error_not_a_token() {
        for bad in [f32::NAN, f32::INFINITY] {
            let error = LogitsRow::new(&[0.0, bad]).unwrap_err();
            assert!(
                matches!(error, ModelError::Logits { index: 1, .. }),
                "{error}"
            );
        }
        assert!(LogitsRow::new(&[f32::NEG_INFINITY; 3]).is_err());
        assert!(LogitsRow::new(&[]).is_err());
    }

    proptest! {
        #[test]
        fn probabilities_sum_to_one(logits in prop::collection::vec(-100f32..100.0, 1..200)) {
            let row = LogitsRow::new(&logits).unwrap();
            let sum: f64 = (0..logits.len() as u32).map(|id| row.logprob(id).unwrap().exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-9, "{sum}");
            prop_assert!(row.top_n(1)[0].0 == row.top());
        }
    }
}
