//! When the next frame of a replay is due.

use std::time::{Duration, Instant};

/// A schedule with one frame each period, kept against the clock so that it does not drift.
///
/// A caller that comes late by up to a period is caught up with; one that is later shifts the schedule, so it is never met by a
/// burst of more than one frame.
#[derive(Debug)]
pub(crate) struct Pace {
    period: Duration,
    due: Option<Instant>,
}

impl Pace {
    /// A schedule whose first frame is due when it is first asked for.
    pub(crate) fn new(period: Duration) -> Self {
        Self { period, due: None }
    }

    /// How long to wait from `now` until the next frame is due; each call takes one place in the schedule.
    pub(crate) fn wait(&mut self, now: Instant) -> Duration {
        let due = self.due.unwrap_or(now);
        let shown = due.max(now);
        self.due = Some((due + self.period).max(shown));
        due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The moments, in milliseconds, at which frames of a 100 ms schedule are shown to a caller who takes `busy` ms over each.
    fn shown(busy: &[u64]) -> Vec<u128> {
        let start = Instant::now();
        let mut pace = Pace::new(Duration::from_millis(100));
        let mut now = start;
        let mut shown = Vec::new();
        for busy in busy {
            now += pace.wait(now);
            shown.push((now - start).as_millis());
            now += Duration::from_millis(*busy);
        }
        shown
    }

    #[test]
    fn a_quick_caller_sees_the_schedule() {
        assert_eq!(shown(&[0, 30, 99, 1, 0]), [0, 100, 200, 300, 400]);
    }

    #[test]
    fn a_caller_late_by_less_than_a_period_is_caught_up_with() {
        assert_eq!(shown(&[150, 0, 0, 0]), [0, 150, 200, 300]);
    }

    #[test]
    fn a_long_absence_brings_one_frame_at_once_and_no_more() {
        assert_eq!(shown(&[1000, 0, 0, 0, 0]), [0, 1000, 1000, 1100, 1200]);
    }

    #[test]
    fn a_slow_caller_sets_the_pace() {
        assert_eq!(shown(&[250, 250, 250, 250]), [0, 250, 500, 750]);
    }

    #[test]
    fn no_period_is_no_wait() {
        let mut pace = Pace::new(Duration::ZERO);
        let now = Instant::now();
        assert_eq!([pace.wait(now), pace.wait(now)], [Duration::ZERO; 2]);
    }
}
