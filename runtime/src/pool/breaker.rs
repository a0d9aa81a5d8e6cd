//! Circuit breaker: closed (traffic flows), open (nothing is sent), half-open (one trial). Pure;
//! time is an argument.

use std::time::Duration;

#[cfg(test)]
use crate::mutants::{self, Mutant};

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Consecutive failures that open it, at least 1.
    pub failures: u32,
    /// How long it stays open, and how long a trial may take before the next one is admitted.
    pub cooldown: Duration,
}

impl Default for Thresholds {
    /// Three failures, then one trial every 30 seconds: an outage of a minute causes four failed
    /// attempts.
    fn default() -> Self {
        Thresholds {
            failures: 3,
            cooldown: Duration::from_secs(30),
        }
    }
}

/// Stops requests to a pool that is down.
#[derive(Debug, Clone)]
pub struct Breaker {
    thresholds: Thresholds,
    state: BreakerState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BreakerState {
    Closed { failures: u32 },
    Open { until: Duration },
    // A trial without a result, because its caller gave up, must not keep the breaker open forever.
    HalfOpen { next_trial: Duration },
}

impl Breaker {
    /// A closed breaker.
    pub fn new(thresholds: Thresholds) -> Self {
        Breaker {
            thresholds,
            state: BreakerState::Closed { failures: 0 },
        }
    }

    /// Admits one attempt at `now`, which is monotonic time since any fixed moment.
    ///
    /// # Errors
    /// The time until the next attempt is admitted.
    pub fn admit(&mut self, now: Duration) -> Result<(), Duration> {
        match self.state {
            BreakerState::Closed { .. } => Ok(()),
            BreakerState::Open { until: at } | BreakerState::HalfOpen { next_trial: at }
                if now < at =>
            {
                Err(at - now)
            }
            BreakerState::Open { .. } | BreakerState::HalfOpen { .. } => {
                self.state = BreakerState::HalfOpen {
                    next_trial: now + self.thresholds.cooldown,
                };
                Ok(())
            }
        }
    }

    /// Whether an attempt would be refused at `now`.
    pub fn is_open(&self, now: Duration) -> bool {
        match self.state {
            BreakerState::Closed { .. } => false,
            BreakerState::Open { until: at } | BreakerState::HalfOpen { next_trial: at } => {
                now < at
            }
        }
    }

    /// Records that the pool answered an attempt, whatever the answer was.
    pub fn succeeded(&mut self) {
        self.state = BreakerState::Closed { failures: 0 };
    }

    /// Records an attempt that showed the pool unhealthy: no connection, no answer in time, 408,
    /// 429 or 5xx.
    pub fn failed(&mut self, now: Duration) {
        #[cfg(test)]
        if mutants::is_active(Mutant::ClosedBreaker) {
            return;
        }
        let open = BreakerState::Open {
            until: now + self.thresholds.cooldown,
        };
        self.state = match self.state {
            BreakerState::Closed { failures } if failures + 1 < self.thresholds.failures => {
                BreakerState::Closed {
                    failures: failures + 1,
                }
            }
            BreakerState::Closed { .. } | BreakerState::HalfOpen { .. } => open,
            // An attempt admitted before it opened does not extend the cooldown.
            BreakerState::Open { until } => BreakerState::Open { until },
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const THRESHOLDS: Thresholds = Thresholds {
        failures: 3,
        cooldown: Duration::from_secs(30),
    };

    #[test]
    fn opens_after_consecutive_failures_and_closes_after_a_successful_trial() {
        let start = Duration::from_secs(1_000);
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaker = Breaker::new(THRESHOLDS);
        breaker.failed(at(0));
        breaker.failed(at(0));
        breaker.succeeded();
        breaker.failed(at(1));
        breaker.failed(at(1));
        assert_eq!(breaker.admit(at(1)), Ok(()));
        breaker.failed(at(1));
        assert_eq!(breaker.admit(at(2)), Err(Duration::from_secs(29)));
        assert_eq!(breaker.admit(at(31)), Ok(()), "the trial");
        assert_eq!(
            breaker.admit(at(32)),
            Err(Duration::from_secs(29)),
            "one trial at a time"
        );
        breaker.failed(at(33));
        assert_eq!(breaker.admit(at(34)), Err(Duration::from_secs(29)));
        assert_eq!(breaker.admit(at(63)), Ok(()));
        breaker.succeeded();
        assert_eq!(breaker.admit(at(63)), Ok(()));
        assert_eq!(breaker.admit(at(63)), Ok(()));
    }

    #[test]
    fn a_trial_without_a_result_does_not_block_the_next() {
        let start = Duration::from_secs(1_000);
        let mut breaker = Breaker::new(Thresholds {
            failures: 1,
            ..THRESHOLDS
        });
        breaker.failed(start);
        assert_eq!(breaker.admit(start + THRESHOLDS.cooldown), Ok(()));
        assert!(breaker.is_open(start + THRESHOLDS.cooldown));
        assert_eq!(breaker.admit(start + 2 * THRESHOLDS.cooldown), Ok(()));
    }

    proptest! {
        /// However attempts are spread over an outage, no more are admitted than the first failures
        /// and one trial per cooldown.
        #[test]
        fn an_outage_causes_few_attempts(gaps in proptest::collection::vec(0_u64..5_000, 1..400)) {
            let start = Duration::from_secs(1_000);
            let mut now = start;
            let mut breaker = Breaker::new(THRESHOLDS);
            let mut attempts = 0;
            for gap in gaps {
                now += Duration::from_millis(gap);
                if breaker.admit(now).is_ok() {
                    attempts += 1;
                    breaker.failed(now);
                }
            }
            let trials = (now - start).as_secs() / THRESHOLDS.cooldown.as_secs();
            prop_assert!(attempts <= u64::from(THRESHOLDS.failures) + trials, "{} attempts", attempts);
        }

        #[test]
        fn refuses_exactly_when_it_reports_open(steps in proptest::collection::vec((0_u8..3, 0_u64..60), 0..100)) {
            let mut now = Duration::ZERO;
            let mut breaker = Breaker::new(THRESHOLDS);
            for (step, seconds) in steps {
                now += Duration::from_secs(seconds);
                let open = breaker.is_open(now);
                match step {
                    0 => prop_assert_eq!(breaker.admit(now).is_err(), open),
                    1 => breaker.failed(now),
                    _ => {
                        breaker.succeeded();
                        prop_assert!(!breaker.is_open(now));
                    }
                }
            }
        }
    }
}
