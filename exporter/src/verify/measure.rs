//! How far two tensors are apart.

use crate::report::Distance;

/// The sums that a [`Distance`] is made of.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sums {
    values: usize,
    error_max: f64,
    error_sum: f64,
    reference_max: f64,
    dot: f64,
    reference_square: f64,
    bundle_square: f64,
    is_finite: bool,
}

impl Sums {
    pub(super) fn new() -> Self {
        Sums {
            is_finite: true,
            ..Sums::default()
        }
    }

    /// Takes one more pair of tensors, of equal length.
    pub(super) fn add(&mut self, reference: &[f32], bundle: &[f32]) {
        debug_assert_eq!(reference.len(), bundle.len());
        self.values += reference.len();
        for (reference, bundle) in reference
            .iter()
            .zip(bundle)
            .map(|(&r, &b)| (f64::from(r), f64::from(b)))
        {
            let error = (reference - bundle).abs();
            self.error_max = self.error_max.max(error);
            self.error_sum += error;
            self.reference_max = self.reference_max.max(reference.abs());
            self.dot += reference * bundle;
            self.reference_square += reference * reference;
            self.bundle_square += bundle * bundle;
            // `max` drops NaN, and a bundle that gives NaN must not look close.
            self.is_finite &= bundle.is_finite();
        }
    }

    pub(super) fn distance(self) -> Distance {
        let or_far = |value: f64| if self.is_finite { value } else { f64::MAX };
        let lengths = (self.reference_square * self.bundle_square).sqrt();
        let cosine = if lengths > 0.0 {
            self.dot / lengths
        } else {
            f64::from(self.error_max == 0.0)
        };
        Distance {
            values: self.values,
            error_max: or_far(self.error_max),
            error_mean: or_far(self.error_sum / self.values.max(1) as f64),
            error_relative: or_far(self.error_max / self.reference_max.max(f64::MIN_POSITIVE)),
            cosine: if self.is_finite { cosine.min(1.0) } else { 0.0 },
        }
    }
}

/// Kullback-Leibler divergence of the bundle's next-token distribution from the reference's, in
/// nats.
pub(super) fn divergence(reference: &[f32], bundle: &[f32]) -> f64 {
    let normaliser = |logits: &[f32]| {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        max + logits
            .iter()
            .map(|&logit| (f64::from(logit) - max).exp())
            .sum::<f64>()
            .ln()
    };
    let (reference_sum, bundle_sum) = (normaliser(reference), normaliser(bundle));
    let nats = |(&r, &b): (&f32, &f32)| {
        let logprob = f64::from(r) - reference_sum;
        logprob.exp() * (logprob - (f64::from(b) - bundle_sum))
    };
    let sum: f64 = reference.iter().zip(bundle).map(nats).sum();
    // Rounding can leave a value slightly below zero; NaN counts as far.
    if sum.is_nan() { f64::MAX } else { sum.max(0.0) }
}

/// The id of the largest logit, the lowest id among equals.
pub(super) fn top(logits: &[f32]) -> u32 {
    let best = logits
        .iter()
        .enumerate()
        .fold((0, f32::NEG_INFINITY), |best, (id, &logit)| {
            if logit > best.1 { (id, logit) } else { best }
        });
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn distance(reference: &[f32], bundle: &[f32]) -> Distance {
        let mut sums = Sums::new();
        sums.add(reference, bundle);
        sums.distance()
    }

    #[test]
    fn equal_tensors_have_no_distance() {
        let same = distance(&[1.0, -2.0], &[1.0, -2.0]);
        assert_eq!((same.error_max, same.error_mean), (0.0, 0.0));
        assert!((same.cosine - 1.0).abs() < 1e-12);
        assert_eq!(distance(&[0.0], &[0.0]).cosine, 1.0);
    }

    #[test]
    fn errors_are_measured_against_the_largest_reference_value() {
        let apart = distance(&[4.0, 0.0], &[4.0, 1.0]);
        assert_eq!(
            (
                apart.values,
                apart.error_max,
                apart.error_mean,
                apart.error_relative
            ),
            (2, 1.0, 0.5, 0.25)
        );
    }

    #[test]
    fn a_bundle_that_gives_nan_is_as_far_as_can_be() {
        let apart = distance(&[1.0], &[f32::NAN]);
        assert_eq!((apart.error_max, apart.cosine), (f64::MAX, 0.0));
        assert_eq!(divergence(&[0.0, 0.0], &[f32::NAN, 0.0]), f64::MAX);
    }

    #[test]
    fn divergence_is_zero_for_shifted_logits_and_ln_2_for_half_the_mass() {
        assert!(divergence(&[1.0, 2.0], &[11.0, 12.0]) < 1e-9);
        assert!((divergence(&[0.0, -1e4], &[0.0, 0.0]) - 2f64.ln()).abs() < 1e-9);
    }

    #[test]
    fn of_equal_logits_the_lowest_id_is_on_top() {
        assert_eq!(top(&[1.0, 3.0, 3.0]), 1);
    }
}
