//! What time it is, and whether to believe it. The only reader of clocks for events.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;

use crate::deliver::event::Moment;

/// Earlier than this program: a box without a battery clock that has not heard from a time server
/// yet.
const FLOOR_UNIX_SECS: i64 = 1_767_225_600; // 2026-01-01T00:00:00Z
/// The wall clock moved against the monotonic one by more than this: it was set.
const JUMP: Duration = Duration::from_secs(2);
/// How long events carry the mark of a jump.
const JUMP_SHOWN: Duration = Duration::from_secs(60);

/// Wall clock, monotonic clock, and the name of this boot.
#[derive(Debug)]
pub struct Clock {
    boot_id: String,
    started: Instant,
    /// Since boot, when `started` was read.
    uptime: Duration,
    trust: Mutex<Trust>,
}

impl Clock {
    /// Reads the box's clocks; without `/proc` the monotonic time counts from now.
    pub fn start() -> Self {
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let uptime = fs::read_to_string("/proc/uptime")
            .ok()
            .and_then(|text| text.split(' ').next()?.parse().ok());
        Clock {
            boot_id: boot_id.trim().chars().take(8).collect(),
            started: Instant::now(),
            uptime: Duration::from_secs_f64(uptime.unwrap_or(0.0)),
            trust: Mutex::new(Trust::default()),
        }
    }

    /// Since the clock was started; never runs backwards.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Now, by every clock there is.
    pub fn moment(&self) -> Moment {
        let time = Timestamp::now();
        let mono = self.uptime + self.elapsed();
        let clock = self
            .trust
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .judge(time.as_millisecond(), mono);
        Moment {
            time,
            mono,
            boot_id: self.boot_id.clone(),
            clock,
        }
    }
}

/// Whether the wall clock can be believed. Pure.
#[derive(Debug, Default)]
struct Trust {
    /// Wall clock minus monotonic clock, in milliseconds.
    offset_ms: Option<i64>,
    jumped_at: Option<Duration>,
}

impl Trust {
    fn judge(&mut self, wall_ms: i64, mono: Duration) -> &'static str {
        let offset_ms = wall_ms.saturating_sub(i64::try_from(mono.as_millis()).unwrap_or(i64::MAX));
        if self
            .offset_ms
            .is_some_and(|before| u128::from(before.abs_diff(offset_ms)) > JUMP.as_millis())
        {
            self.jumped_at = Some(mono);
        }
        self.offset_ms = Some(offset_ms);
        if wall_ms / 1000 < FLOOR_UNIX_SECS {
            "unsynced"
        } else if self
            .jumped_at
            .is_some_and(|at| mono.saturating_sub(at) < JUMP_SHOWN)
        {
            "jumped"
        } else {
            "synced"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_marked_for_a_minute() {
        let mut trust = Trust::default();
        let day = FLOOR_UNIX_SECS * 1000 + 86_400_000;
        let at = Duration::from_secs;
        assert_eq!(trust.judge(0, at(1)), "unsynced");
        assert_eq!(trust.judge(day, at(2)), "jumped");
        assert_eq!(trust.judge(day + 59_000, at(61)), "jumped");
        assert_eq!(trust.judge(day + 60_000, at(62)), "synced");
        assert_eq!(trust.judge(day + 91_000, at(93)), "synced");
        assert_eq!(trust.judge(day + 191_000, at(94)), "jumped");
    }
}
