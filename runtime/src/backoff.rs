//! Exponential backoff with a cap, and with jitter so that a fleet does not reconnect at once.
//! Pure.

use std::time::Duration;

/// Waits that double from `first` to `max`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    max: Duration,
    failures: u32,
}

impl Backoff {
    /// Waits from `first` up to `max`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Backoff {
            first,
            max: max.max(first),
            failures: 0,
        }
    }

    /// The wait after one more failure: between half and all of the doubled wait, as `jitter`
    /// (0..1) says.
    pub fn next_wait(&mut self, jitter: f64) -> Duration {
        let doubled = self
            .first
            .saturating_mul(1_u32.checked_shl(self.failures).unwrap_or(u32::MAX));
        self.failures = (self.failures + 1).min(31);
        let ceiling = doubled.min(self.max);
        ceiling.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
    }

    /// After a success: the next failure waits `first` again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_to_the_cap_and_starts_over() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(10));
        let waits: Vec<u64> = (0..6).map(|_| backoff.next_wait(1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        backoff.reset();
        assert_eq!(backoff.next_wait(0.0), Duration::from_millis(500));
    }

    proptest! {
        #[test]
        fn stays_between_half_the_first_and_the_cap(first_ms in 1_u64..5_000, max_ms in 1_u64..600_000, jitters in prop::collection::vec(0.0_f64..1.0, 1..80)) {
            let (first, max) = (Duration::from_millis(first_ms), Duration::from_millis(max_ms.max(first_ms)));
            let mut backoff = Backoff::new(first, max);
            for jitter in jitters {
                let wait = backoff.next_wait(jitter);
                prop_assert!(wait >= first.mul_f64(0.5) && wait <= max, "{wait:?}");
            }
        }
    }
}
