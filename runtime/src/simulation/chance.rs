//! What fails, when, and for how long.

use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use crate::clock::Clock;
use crate::random::Random;

/// The random faults of one double.
#[derive(Debug)]
pub(super) struct Chance {
    random: Random,
    clock: Clock,
    /// From then on nothing fails.
    calm_from: Duration,
    outage: Mutex<Outage>,
}

/// When the next outage begins, or the present one ends.
#[derive(Debug, Clone, Copy)]
enum Outage {
    Unknown,
    NextAt(Duration),
    Until(Duration),
}

impl Chance {
    pub(super) fn new(seed: u64, clock: Clock, calm_from: Duration) -> Self {
        Chance {
            random: Random::seeded(seed),
            clock,
            calm_from,
            outage: Mutex::new(Outage::Unknown),
        }
    }

    /// The wall clock's time.
    pub(super) fn wall(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.clock.unix_secs())
    }

    /// Time since the simulation began.
    pub(super) fn now(&self) -> Duration {
        self.clock.now()
    }

    pub(super) fn is_calm(&self) -> bool {
        self.clock.now() >= self.calm_from
    }

    /// True with probability `p`; never in the calm.
    pub(super) fn fails(&self, p: f64) -> bool {
        self.random.unit() < p && !self.is_calm()
    }

    /// True with probability `p`.
    pub(super) fn is(&self, p: f64) -> bool {
        self.random.unit() < p
    }

    /// A duration between `from` and `to` seconds.
    pub(super) fn between(&self, from: f64, to: f64) -> Duration {
        Duration::from_secs_f64(from + (to - from) * self.random.unit())
    }

    /// A wait of `mean` seconds on average, memoryless and at most ten times as long.
    pub(super) fn exponential(&self, mean: f64) -> Duration {
        Duration::from_secs_f64(mean * (-(1.0 - self.random.unit()).ln()).min(10.0))
    }

    /// Whether there is an outage now: one begins `every` seconds on average, and takes `length`
    /// seconds on average.
    pub(super) fn outage(&self, every: f64, length: f64) -> bool {
        let now = self.clock.now();
        let mut outage = self.outage.lock().expect("not poisoned");
        loop {
            match *outage {
                _ if self.is_calm() => return false,
                Outage::Unknown => *outage = Outage::NextAt(now + self.exponential(every)),
                Outage::NextAt(at) if now < at => return false,
                Outage::NextAt(at) => *outage = Outage::Until(at + self.exponential(length)),
                Outage::Until(end) if now < end => return true,
                Outage::Until(end) => *outage = Outage::NextAt(end + self.exponential(every)),
            }
        }
    }

    /// `yes` or `no`.
    pub(super) fn answer(&self) -> &'static str {
        if self.is(0.5) { "yes" } else { "no" }
    }

    /// A confidence, half of the time above the default threshold.
    pub(super) fn confidence(&self) -> f64 {
        0.8 + 0.2 * self.random.unit()
    }
}
