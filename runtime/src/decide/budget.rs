//! Budgets of escalations: hard limits over rolling windows. Pure; time is an argument.
//!
//! A call reserves its worst case before it is sent and returns what it did not use, so no limit is
//! ever exceeded.

use std::collections::VecDeque;
use std::time::Duration;

use firmware_config::agent::Policy;

use crate::reason::Reason;

/// Buckets per window. An amount counts for the length of the window and up to one bucket longer.
const BUCKETS: u64 = 60;

/// What one call uses of the budgets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Request bytes, retries included.
    pub bytes: u64,
    /// Price in millionths of a US dollar.
    pub micro_usd: u64,
}

/// A granted reservation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "settle it with what the call used"]
pub struct Reservation {
    at: Duration,
    cost: Cost,
}

/// The budgets of a `[policy]`.
#[derive(Debug)]
pub struct Ledger {
    calls: Option<Rolling>,
    bytes: Option<Rolling>,
    micro_usd: Option<Rolling>,
}

impl Ledger {
    /// The budgets of `policy`, unused.
    pub fn new(policy: &Policy) -> Self {
        let minute = Duration::from_secs(60);
        let day = Duration::from_secs(24 * 3600);
        Ledger {
            calls: policy
                .calls_per_minute
                .map(|limit| Rolling::new(limit.into(), minute)),
            bytes: policy
                .bytes_per_minute
                .map(|limit| Rolling::new(limit, minute)),
            micro_usd: policy
                .usd_per_day
                .map(|limit| Rolling::new(micro_usd(limit), day)),
        }
    }

    /// Takes one call of at most `cost` from every budget, or from none.
    ///
    /// `now` is monotonic time since any fixed moment.
    ///
    /// # Errors
    /// The budget that is used up.
    pub fn reserve(&mut self, now: Duration, cost: Cost) -> Result<Reservation, Reason> {
        let wanted = [
            (&mut self.calls, 1, Reason::BudgetCalls),
            (&mut self.bytes, cost.bytes, Reason::BudgetBytes),
            (&mut self.micro_usd, cost.micro_usd, Reason::BudgetUsd),
        ];
        for (budget, amount, reason) in &wanted {
            if budget
                .as_ref()
                .is_some_and(|budget| !budget.fits(now, *amount))
            {
                return Err(*reason);
            }
        }
        for (budget, amount, _) in wanted {
            if let Some(budget) = budget {
                budget.take(now, amount);
            }
        }
        Ok(Reservation { at: now, cost })
    }

    /// Returns to the budgets what a call did not use.
    pub fn settle(&mut self, reservation: Reservation, used: Cost) {
        let Reservation { at, cost } = reservation;
        if let Some(bytes) = &mut self.bytes {
            bytes.give_back(at, cost.bytes.saturating_sub(used.bytes));
        }
        if let Some(micro_usd) = &mut self.micro_usd {
            micro_usd.give_back(at, cost.micro_usd.saturating_sub(used.micro_usd));
        }
    }

    /// Returns to the budgets a call that was not made.
    pub fn cancel(&mut self, reservation: Reservation) {
        if let Some(calls) = &mut self.calls {
            calls.give_back(reservation.at, 1);
        }
        self.settle(
            reservation,
            Cost {
                bytes: 0,
                micro_usd: 0,
            },
        );
    }
}

/// Millionths of a dollar, rounded to the nearest.
pub fn micro_usd(usd: f64) -> u64 {
    // The cast saturates and turns NaN into 0: a limit of NaN allows nothing.
    (usd * 1e6).round() as u64
}

/// One amount over one rolling window.
#[derive(Debug)]
struct Rolling {
    limit: u64,
    bucket: Duration,
    /// (bucket number, amount), oldest first; at most `BUCKETS + 1` of them.
    buckets: VecDeque<(u64, u64)>,
}

impl Rolling {
    fn new(limit: u64, window: Duration) -> Self {
        Rolling {
            limit,
            bucket: window / BUCKETS as u32,
            buckets: VecDeque::new(),
        }
    }

    fn bucket_number(&self, at: Duration) -> u64 {
        (at.as_nanos() / self.bucket.as_nanos()) as u64
    }

    fn fits(&self, now: Duration, amount: u64) -> bool {
        let oldest = self.bucket_number(now).saturating_sub(BUCKETS);
        let used: u64 = self
            .buckets
            .iter()
            .filter(|(number, _)| *number >= oldest)
            .map(|(_, amount)| amount)
            .sum();
        used.saturating_add(amount) <= self.limit
    }

    fn take(&mut self, now: Duration, amount: u64) {
        let number = self.bucket_number(now);
        while self
            .buckets
            .front()
            .is_some_and(|(first, _)| *first < number.saturating_sub(BUCKETS))
        {
            self.buckets.pop_front();
        }
        match self.buckets.back_mut() {
            Some((last, sum)) if *last == number => *sum += amount,
            _ => self.buckets.push_back((number, amount)),
        }
    }

    fn give_back(&mut self, at: Duration, amount: u64) {
        let number = self.bucket_number(at);
        if let Some((_, sum)) = self
            .buckets
            .iter_mut()
            .find(|(bucket, _)| *bucket == number)
        {
            *sum = sum.saturating_sub(amount);
        }
    }
}

#[cfg(test)]
mod tests {
    use firmware_config::agent::KillSwitch;
    use proptest::prelude::*;

    use super::*;

    fn policy() -> Policy {
        Policy {
            kill_switch: KillSwitch::Off,
            calls_per_minute: Some(3),
            in_flight_max: 4,
            bytes_per_minute: Some(1000),
            usd_per_day: Some(0.01),
        }
    }

    fn cost(bytes: u64, micro_usd: u64) -> Cost {
        Cost { bytes, micro_usd }
    }

    #[test]
    fn reserving_reports_the_first_exhausted_budget() {
        let at = Duration::from_secs;
        let mut ledger = Ledger::new(&policy());
        assert_eq!(
            ledger.reserve(at(0), cost(1001, 0)),
            Err(Reason::BudgetBytes)
        );
        assert_eq!(
            ledger.reserve(at(0), cost(0, 10_001)),
            Err(Reason::BudgetUsd)
        );
        for _ in 0..3 {
            assert!(ledger.reserve(at(0), cost(10, 1)).is_ok());
        }
        assert_eq!(
            ledger.reserve(at(59), cost(10, 1)),
            Err(Reason::BudgetCalls)
        );
        assert!(ledger.reserve(at(61), cost(10, 1)).is_ok());
    }

    #[test]
    fn settling_returns_what_was_not_used() {
        let mut ledger = Ledger::new(&policy());
        let reservation = ledger
            .reserve(Duration::ZERO, cost(1000, 0))
            .expect("the budget is unused");
        assert_eq!(
            ledger.reserve(Duration::ZERO, cost(1, 0)),
            Err(Reason::BudgetBytes)
        );
        ledger.settle(reservation, cost(400, 0));
        assert!(ledger.reserve(Duration::ZERO, cost(600, 0)).is_ok());
    }

    #[test]
    fn a_policy_without_limits_never_refuses() {
        let unlimited = Policy {
            calls_per_minute: None,
            bytes_per_minute: None,
            usd_per_day: None,
            ..policy()
        };
        let mut ledger = Ledger::new(&unlimited);
        assert!((0..1000).all(|_| {
            ledger
                .reserve(Duration::ZERO, cost(u64::MAX, u64::MAX))
                .is_ok()
        }));
    }

    proptest! {
        /// Against a model that remembers the exact time of every call: no window of the configured
        /// length ever exceeds its limit.
        #[test]
        fn limits_are_never_exceeded(steps in prop::collection::vec((0_u64..20_000, 0_u64..700, 0_u64..=100), 1..120)) {
            let mut ledger = Ledger::new(&policy());
            let mut now = Duration::ZERO;
            let mut spent: Vec<(Duration, u64)> = Vec::new();
            for (wait_ms, bytes, used_percent) in steps {
                now += Duration::from_millis(wait_ms);
                if let Ok(reservation) = ledger.reserve(now, cost(bytes, 0)) {
                    let used = bytes * used_percent / 100;
                    ledger.settle(reservation, cost(used, 0));
                    spent.push((now, used));
                }
                let window: Vec<_> = spent.iter().filter(|(at, _)| now - *at < Duration::from_secs(60)).collect();
                prop_assert!(window.len() <= 3);
                prop_assert!(window.iter().map(|(_, bytes)| bytes).sum::<u64>() <= 1000);
            }
        }
    }
}
