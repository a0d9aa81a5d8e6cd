//! How sure a model is of its answer, from its own probabilities. Uncalibrated.

use crate::answer::{Confidence, ConfidenceSource};

/// The share of tokens that may be less likely than the confidence: one unlikely token in a long
/// answer does not lower it, several do.
const QUANTILE: f64 = 0.1;

/// The confidence of a choice among candidates: the winner's probability.
pub(crate) fn of_candidates(probabilities: impl IntoIterator<Item = f64>) -> Confidence {
    Confidence {
        p: probabilities.into_iter().fold(0.0, f64::max),
        source: ConfidenceSource::Candidates,
    }
}

/// The confidence of free text: exp of the 10 % quantile of its tokens' log-probabilities (natural
/// logs, 0 or less).
///
/// The quantile lies at rank `0.1 · (n - 1)` of the sorted values, interpolated linearly between
/// its two neighbours (numpy's default). An empty answer has confidence 0.
pub(crate) fn of_tokens(logprobs: impl IntoIterator<Item = f32>) -> Confidence {
    let mut sorted: Vec<f64> = logprobs.into_iter().map(f64::from).collect();
    sorted.sort_by(f64::total_cmp);
    let p = quantile(&sorted, QUANTILE).map_or(0.0, |logprob| logprob.exp().clamp(0.0, 1.0));
    Confidence {
        p,
        source: ConfidenceSource::Tokens,
    }
}

/// The `q` quantile (0..=1) of ascending values; `None` when there are none.
fn quantile(sorted: &[f64], q: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = q * last as f64;
    let below = sorted[rank.floor() as usize];
    let above = sorted[rank.ceil() as usize];
    // Also for two infinite neighbours, of which the line below would make NaN.
    if below == above {
        return Some(below);
    }
    Some(below + (above - below) * rank.fract())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantile_interpolates_between_ranks() {
        let cases: [(&[f64], Option<f64>); 5] = [
            (&[], None),
            (&[-2.0], Some(-2.0)),
            (&[-3.0, -1.0], Some(-2.8)),
            (
                &[
                    -10.0, -9.0, -8.0, -7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0, 0.0,
                ],
                Some(-9.0),
            ),
            (
                &[f64::NEG_INFINITY, f64::NEG_INFINITY],
                Some(f64::NEG_INFINITY),
            ),
        ];
        for (sorted, expected) in cases {
            let got = quantile(sorted, 0.1);
            assert!(
                got == expected || (got.unwrap_or(0.0) - expected.unwrap_or(0.0)).abs() < 1e-12,
                "{sorted:?}: {got:?} != {expected:?}"
            );
        }
    }

    #[test]
    fn an_empty_answer_has_no_confidence() {
        assert_eq!(of_tokens([]).p, 0.0);
        assert_eq!(of_candidates([]).p, 0.0);
    }

    proptest! {
        #[test]
        fn lies_between_the_worst_and_the_best_token(logprobs in prop::collection::vec(-30f32..=0.0, 1..100)) {
            let p = of_tokens(logprobs.iter().copied()).p;
            let worst = f64::from(logprobs.iter().copied().fold(0.0, f32::min)).exp();
            let best = f64::from(logprobs.iter().copied().fold(f32::NEG_INFINITY, f32::max)).exp();
            prop_assert!((worst - 1e-12..=best + 1e-12).contains(&p), "{worst} {p} {best}");
        }

        #[test]
        fn does_not_depend_on_the_order(mut logprobs in prop::collection::vec(-30f32..=0.0, 1..100)) {
            let p = of_tokens(logprobs.iter().copied()).p;
            logprobs.reverse();
            prop_assert_eq!(of_tokens(logprobs).p, p);
        }

        #[test]
        fn a_likelier_token_never_lowers_it(logprobs in prop::collection::vec(-30f32..=0.0, 1..100), which in 0usize..100, by in 0f32..10.0) {
            let before = of_tokens(logprobs.iter().copied()).p;
            let mut raised = logprobs;
            let index = which % raised.len();
            raised[index] = (raised[index] + by).min(0.0);
            prop_assert!(of_tokens(raised).p >= before - 1e-12);
        }
    }
}
