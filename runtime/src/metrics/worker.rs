//! Requests that a worker takes from a broker.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;

use super::{Durations, Group};

/// How a request to a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestOutcome {
    /// With a completion.
    Answered,
    /// With an error object.
    Refused,
    /// Without a reply, because it expired first.
    Expired,
    /// Without a reply, because it has no Response Topic or is a retained one.
    Ignored,
    /// Without a reply, because those that waited took all the room.
    Dropped,
    /// Left to another worker, because the connection was lost before its reply was acknowledged.
    Returned,
    /// Without a reply, because the broker refused it.
    Undelivered,
}

impl RequestOutcome {
    const ALL: [RequestOutcome; 7] = [
        RequestOutcome::Answered,
        RequestOutcome::Refused,
        RequestOutcome::Expired,
        RequestOutcome::Ignored,
        RequestOutcome::Dropped,
        RequestOutcome::Returned,
        RequestOutcome::Undelivered,
    ];

    fn as_str(self) -> &'static str {
        match self {
            RequestOutcome::Answered => "answered",
            RequestOutcome::Refused => "refused",
            RequestOutcome::Expired => "expired",
            RequestOutcome::Ignored => "ignored",
            RequestOutcome::Dropped => "dropped",
            RequestOutcome::Returned => "returned",
            RequestOutcome::Undelivered => "undelivered",
        }
    }
}

/// Requests that a worker takes from a broker.
#[derive(Debug)]
pub struct WorkerMetrics {
    requests: Family<RequestLabels, counter::Counter>,
    durations: Durations,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    outcome: &'static str,
}

impl WorkerMetrics {
    pub(super) fn new(mut group: Group<'_>) -> Self {
        WorkerMetrics {
            requests: group.add(
                "worker_requests",
                "Requests of a broker, by how they ended.",
                Family::default(),
            ),
            durations: group.durations(
                "worker_request_duration_seconds",
                "Time from taking up a request to its completion or error object.",
            ),
        }
    }

    /// Counts a request.
    pub fn request(&self, outcome: RequestOutcome) {
        let outcome = outcome.as_str();
        self.requests
            .get_or_create(&RequestLabels { outcome })
            .inc();
    }

    /// Adds the time that a completion or an error object took.
    pub fn answered_in(&self, took: Duration) {
        self.durations.observe(took);
    }

    /// The requests by their outcome, for the log: `answered 12, expired 1`.
    pub fn summary(&self) -> String {
        let counted = RequestOutcome::ALL.iter().filter_map(|outcome| {
            let outcome = outcome.as_str();
            let counter = self.requests.get(&RequestLabels { outcome })?;
            Some(format!("{outcome} {}", counter.get()))
        });
        let counted: Vec<_> = counted.collect();
        if counted.is_empty() {
            return "none".to_owned();
        }
        counted.join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Metrics;
    use super::*;

    #[test]
    fn the_summary_lists_outcomes_that_happened() {
        let metrics = Metrics::for_worker().worker;
        assert_eq!(metrics.summary(), "none");
        metrics.request(RequestOutcome::Expired);
        metrics.request(RequestOutcome::Answered);
        metrics.request(RequestOutcome::Answered);
        assert_eq!(metrics.summary(), "answered 2, expired 1");
    }
}
