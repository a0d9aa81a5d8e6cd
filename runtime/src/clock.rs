//! What time it is, and whether to believe it. The only reader of clocks.
#![expect(
    clippy::disallowed_methods,
    reason = "this is where everything else gets its time"
)]

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::time::Instant;

/// A wall clock before this is not set: a box without a battery clock has not heard from a time
/// server yet.
const FLOOR_UNIX_SECS: i64 = 1_767_225_600; // 2026-01-01T00:00:00Z
/// The wall clock moved against the monotonic one by more than this: it was set.
const JUMP: Duration = Duration::from_secs(2);
/// How long events carry the mark of a jump.
const JUMP_SHOWN: Duration = Duration::from_secs(60);

/// Monotonic clock, wall clock, and the name of this boot; cheap to clone.
///
/// Points in time are durations since the clock was started: they can be compared, written down and
/// made up by a test. The monotonic clock is tokio's, so that on a paused runtime it stands still
/// together with every timer.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    boot_id: String,
    started: Instant,
    /// Time since boot when the clock was started.
    uptime: Duration,
    wall: Wall,
    trust: Mutex<Trust>,
}

/// Where the wall clock's time comes from.
#[derive(Debug)]
enum Wall {
    System,
    /// It showed this when the clock was started, and runs with the monotonic clock.
    Started(Timestamp),
}

impl Clock {
    /// The clocks of this box; without `/proc` the time since boot counts from now.
    pub fn system() -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let uptime = fs::read_to_string("/proc/uptime")
            .ok()
            .and_then(|text| text.split(' ').next()?.parse().ok());
        Clock::new(
            boot_id.trim().chars().take(8).collect(),
            Duration::from_secs_f64(uptime.unwrap_or(0.0)),
            Wall::System,
        )
    }

    /// A clock of a box that started at `wall`, for simulations and tests.
    pub fn simulated(wall: Timestamp) -> Self {
        Clock::new("00000000".into(), Duration::ZERO, Wall::Started(wall))
    }

    fn new(boot_id: String, uptime: Duration, wall: Wall) -> Self {
        Clock(Arc::new(Shared {
            boot_id,
            started: Instant::now(),
            uptime,
            wall,
            trust: Mutex::default(),
        }))
    }

    /// Time since the clock was started; never runs backwards.
    pub fn now(&self) -> Duration {
        self.0.started.elapsed()
    }

    /// The wall clock's time.
    pub fn wall(&self) -> Timestamp {
        match self.0.wall {
            Wall::System => Timestamp::now(),
            Wall::Started(at) => at.saturating_add(self.now()).unwrap_or(Timestamp::MAX),
        }
    }

    /// Seconds since 1970, as OpenAI's `created` has them.
    pub fn unix_secs(&self) -> u64 {
        u64::try_from(self.wall().as_second()).unwrap_or(0)
    }

    /// The time now, by every clock there is.
    pub fn moment(&self) -> Moment {
        let time = self.wall();
        let mono = self.0.uptime + self.now();
        let mut trust = self.0.trust.lock().unwrap_or_else(PoisonError::into_inner);
        let clock = trust.judge(time.as_millisecond(), mono);
        Moment {
            time,
            mono,
            boot_id: self.0.boot_id.clone(),
            clock,
        }
    }

    /// Resolves when [`Clock::now`] has reached `at`.
    pub async fn sleep_until(&self, at: Duration) {
        tokio::time::sleep_until(self.0.started + at).await;
    }
}

/// When an event was made, by the wall clock and the monotonic clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Wall clock.
    pub time: Timestamp,
    /// Since the node was booted; never jumps.
    pub mono: Duration,
    /// Names the boot that `mono` counts from.
    pub boot_id: String,
    /// Whether `time` can be trusted.
    pub clock: ClockTrust,
}

/// Whether the wall clock can be trusted. As published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ClockTrust {
    /// Nothing speaks against it.
    Synced,
    /// It is before 2026: it was never set.
    Unsynced,
    /// It was set within the last minute.
    Jumped,
}

/// Whether the wall clock can be believed. Pure.
#[derive(Debug, Default)]
struct Trust {
    /// Wall clock minus monotonic clock, in milliseconds.
    offset_ms: Option<i64>,
    jumped_at: Option<Duration>,
}

impl Trust {
    fn judge(&mut self, wall_ms: i64, mono: Duration) -> ClockTrust {
        let offset_ms = wall_ms.saturating_sub(i64::try_from(mono.as_millis()).unwrap_or(i64::MAX));
        if self
            .offset_ms
            .is_some_and(|before| u128::from(before.abs_diff(offset_ms)) > JUMP.as_millis())
        {
            self.jumped_at = Some(mono);
        }
        self.offset_ms = Some(offset_ms);
        if wall_ms / 1000 < FLOOR_UNIX_SECS {
            ClockTrust::Unsynced
        } else if self
            .jumped_at
            .is_some_and(|at| mono.saturating_sub(at) < JUMP_SHOWN)
        {
            ClockTrust::Jumped
        } else {
            ClockTrust::Synced
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_simulated_clock_runs_with_the_timers() {
        let clock = Clock::simulated("2027-01-01T00:00:00Z".parse().expect("a time"));
        clock.sleep_until(Duration::from_secs(3600)).await;
        assert_eq!(clock.now(), Duration::from_secs(3600));
        assert_eq!(clock.wall().to_string(), "2027-01-01T01:00:00Z");
        assert_eq!(clock.moment().clock, ClockTrust::Synced);
    }

    #[test]
    fn a_clock_that_is_set_is_marked_for_a_minute() {
        let mut trust = Trust::default();
        let day = FLOOR_UNIX_SECS * 1000 + 86_400_000;
        let at = Duration::from_secs;
        assert_eq!(trust.judge(0, at(1)), ClockTrust::Unsynced);
        assert_eq!(trust.judge(day, at(2)), ClockTrust::Jumped);
        assert_eq!(trust.judge(day + 59_000, at(61)), ClockTrust::Jumped);
        assert_eq!(trust.judge(day + 60_000, at(62)), ClockTrust::Synced);
        assert_eq!(trust.judge(day + 91_000, at(93)), ClockTrust::Synced);
        assert_eq!(trust.judge(day + 191_000, at(94)), ClockTrust::Jumped);
    }
}
