//! When the next frame of a paced source is due. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Due times one period apart, the first at once. Lateness does not add up: a frame handed out late
/// does not delay those after it.
#[derive(Debug)]
pub(super) struct Schedule {
    period: Duration,
    due: Option<Instant>,
}

impl Schedule {
    pub(super) fn new(period: Duration) -> Self {
        Self { period, due: None }
    }

    /// Time until the next frame is due; zero when it is.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        self.due
            .map_or(Duration::ZERO, |due| due.saturating_duration_since(now))
    }

    /// Notes that a frame was handed out. More than a period late, the schedule starts again from
    /// `now`: a caller that was delayed gets no burst of frames afterwards.
    pub(super) fn advance(&mut self, now: Instant) {
        let next = self.due.unwrap_or(now) + self.period;
        self.due = Some(if next < now { now } else { next });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_does_not_add_up_and_a_delayed_caller_gets_no_burst() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut schedule = Schedule::new(Duration::from_millis(100));
        assert_eq!(schedule.wait(start), Duration::ZERO);
        // Handed out at, and then how long to wait.
        for (handed_out, wait) in [
            (0, 100),
            (130, 70),
            (200, 100),
            (1000, 0),
            (1001, 99),
            (1100, 100),
        ] {
            schedule.advance(at(handed_out));
            assert_eq!(
                schedule.wait(at(handed_out)),
                Duration::from_millis(wait),
                "{handed_out}"
            );
        }
    }
}
