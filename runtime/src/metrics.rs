//! One registry of metrics for the agent, the gateway and the worker.
//!
//! | group | what it counts | exposed by |
//! |---|---|---|
//! | [`Metrics`] itself | the counters of `health`, as [`Totals`] | the agent |
//! | [`AgentMetrics`] | cameras, rules, outbox | the agent |
//! | [`RoutingMetrics`] | pool calls, the link, the kill switch | the agent, the gateway alone |
//! | [`GatewayMetrics`] | requests of OpenAI clients | the agent, the gateway alone |
//! | [`WorkerMetrics`] | requests of a broker; logged at the end, since a worker has no listener | |
//!
//! Names start with `egret_`, use base units, and are listed in `docs/metrics.md`. Label values are
//! ids of the configuration or words of a closed list, never text from outside, so the number of
//! series is bounded.

mod agent;
#[cfg(test)]
mod document;
mod gateway;
mod routing;
mod worker;

use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus_client::encoding::prometheus_text;
use prometheus_client::metrics::histogram;
use prometheus_client::registry::{Metric, Registry};
use serde::Serialize;

pub use agent::{AgentMetrics, GateDecision};
pub use gateway::GatewayMetrics;
pub use routing::RoutingMetrics;
pub use worker::{RequestOutcome, WorkerMetrics};

/// `Content-Type` of [`Metrics::text`].
pub const CONTENT_TYPE: &str = prometheus_text::CONTENT_TYPE;

/// Upper bounds of the buckets of every duration, in seconds: from one question on a GPU to a long
/// reply of a slow board.
const DURATION_BUCKETS: [f64; 11] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0];

/// A number that only grows.
#[derive(Debug, Clone, Default)]
pub struct Counter(prometheus_client::metrics::counter::Counter);

impl Counter {
    /// Adds one.
    pub fn count(&self) {
        self.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.inc_by(n);
    }

    /// Takes over the total of a part that keeps a count of its own; a smaller one changes nothing.
    pub fn raise_to(&self, total: u64) {
        self.0.inner().fetch_max(total, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn total(&self) -> u64 {
        self.0.get()
    }
}

/// A distribution of durations.
#[derive(Debug, Clone)]
struct Durations(histogram::Histogram);

impl Durations {
    fn new() -> Self {
        Durations(histogram::Histogram::new(DURATION_BUCKETS))
    }

    /// Adds one duration.
    fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

/// Metrics that are exposed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Section {
    Agent,
    Routing,
    Gateway,
    Worker,
}

/// Where metrics are registered. Those of sections that a program does not have exist, and are
/// never encoded.
struct Registries<'a> {
    sections: &'a [Section],
    exposed: Registry,
    hidden: Registry,
}

impl<'a> Registries<'a> {
    fn new(sections: &'a [Section]) -> Self {
        Registries {
            sections,
            exposed: Registry::with_prefix("egret"),
            hidden: Registry::default(),
        }
    }

    fn group(&mut self, section: Section) -> Group<'_> {
        Group(if self.sections.contains(&section) {
            &mut self.exposed
        } else {
            &mut self.hidden
        })
    }
}

/// Registers metrics while they are made, so that name, help and type stand in one place.
struct Group<'a>(&'a mut Registry);

impl Group<'_> {
    /// `help` is one sentence; its full stop is the registry's.
    fn add<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        let help = help.trim().trim_end_matches('.');
        self.0.register(name, help, metric.clone());
        metric
    }

    fn counter(&mut self, name: &str, help: &str) -> Counter {
        Counter(self.add(name, help, Default::default()))
    }

    fn durations(&mut self, name: &str, help: &str) -> Durations {
        Durations(self.add(name, help, Durations::new().0))
    }
}

macro_rules! counters {
    ($($(#[doc = $help:literal])+ $key:ident => $section:ident $name:literal,)*) => {
        /// Every metric; cheap to update, shared by all tasks and threads.
        #[derive(Debug)]
        pub struct Metrics {
            $($(#[doc = $help])+ pub $key: Counter,)*
            /// Cameras, rules and outbox.
            pub agent: AgentMetrics,
            /// Pool calls, the link and the kill switch.
            pub routing: RoutingMetrics,
            /// Requests of OpenAI clients.
            pub gateway: GatewayMetrics,
            /// Requests of a broker.
            pub worker: WorkerMetrics,
            exposed: Registry,
        }

        /// The counters at one moment. The keys are those of `health` and a contract.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub struct Totals { $($(#[doc = $help])+ pub $key: u64,)* }

        impl Metrics {
            /// The counters now.
            pub fn totals(&self) -> Totals {
                Totals { $($key: self.$key.total(),)* }
            }

            /// Metrics of which those of `sections` are exposed.
            fn new(sections: &[Section]) -> Self {
                let mut registries = Registries::new(sections);
                Metrics {
                    $($key: registries.group(Section::$section).counter($name, concat!($($help),+)),)*
                    agent: AgentMetrics::new(registries.group(Section::Agent)),
                    routing: RoutingMetrics::new(registries.group(Section::Routing)),
                    gateway: GatewayMetrics::new(registries.group(Section::Gateway)),
                    worker: WorkerMetrics::new(registries.group(Section::Worker)),
                    exposed: registries.exposed,
                }
            }
        }
    };
}

counters! {
    /// Frames that cameras delivered, those that could not be read included.
    frames => Agent "frames",
    /// Frames skipped by the gate.
    frames_skipped => Agent "frames_skipped",
    /// Frames admitted and asked about.
    frames_answered => Agent "frames_answered",
    /// Frames replaced by a newer one: in the decoder, before the gate, or admitted, before the
    /// model was free.
    frames_superseded => Agent "frames_superseded",
    /// Frames that could not be used: no image, no thumbnail, no JPEG.
    frames_bad => Agent "frames_bad",
    /// Times a camera failed or stalled and was opened again.
    camera_restarts => Agent "camera_restarts",
    /// Folders and video files given up before their end.
    sources_failed => Agent "sources_failed",
    /// Local answers.
    answers => Agent "answers",
    /// Questions the model did not answer.
    answers_failed => Agent "answers_failed",
    /// Answers settled on the box.
    answers_local => Agent "answers_local",
    /// Answers put to a pool.
    answers_escalated => Agent "answers_escalated",
    /// Escalated answers that the pool answered.
    pool_answered => Agent "pool_answered",
    /// Escalated answers that the pool did not answer.
    pool_failed => Agent "pool_failed",
    /// Bytes of requests sent to pools for cameras.
    bytes_up => Agent "pool_request_bytes",
    /// Events put into the outbox.
    events_produced => Agent "events_produced",
    /// Events acknowledged by the broker.
    events_published => Agent "events_published",
    /// Events dropped and declared as gaps.
    events_dropped => Agent "events_dropped",
    /// Acknowledged events queued to be sent again after a lost connection.
    events_repeated => Agent "events_repeated",
    /// Snapshots, states and gaps that the broker refused.
    publications_refused => Agent "publications_refused",
    /// Commands that were refused.
    commands_refused => Agent "commands_refused",
    /// Messages from the broker dropped because the queue was full.
    deliveries_dropped => Routing "deliveries_dropped",
    /// Replies of pools that match no open call: wrong, late, or sent twice.
    replies_unmatched => Routing "replies_unmatched",
}

impl Metrics {
    /// Those of `egret run`.
    pub fn for_agent() -> Self {
        Metrics::new(&[Section::Agent, Section::Routing, Section::Gateway])
    }

    /// Those of `egret serve`.
    pub fn for_gateway() -> Self {
        Metrics::new(&[Section::Routing, Section::Gateway])
    }

    /// Those of `egret worker`.
    pub fn for_worker() -> Self {
        Metrics::new(&[Section::Worker])
    }

    /// What is exposed, in Prometheus' text format.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut text, &self.exposed);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::for_agent()
    }
}

impl Totals {
    /// Events that the broker has not acknowledged yet.
    pub fn events_queued(&self) -> u64 {
        self.events_produced
            .saturating_sub(self.events_published + self.events_dropped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_never_goes_back() {
        let counter = Counter::default();
        counter.count();
        counter.add(2);
        counter.raise_to(2);
        assert_eq!(counter.total(), 3);
        counter.raise_to(7);
        assert_eq!(counter.total(), 7);
    }

    #[test]
    fn each_program_exposes_its_own_sections() {
        let exposes = |metrics: Metrics| {
            let text = metrics.text();
            [
                "egret_frames_total",
                "egret_link_up",
                "egret_gateway_prompt_tokens_total",
                "egret_worker_request_duration_seconds",
            ]
            .map(|name| text.contains(&format!("# TYPE {name} ")))
        };
        assert_eq!(exposes(Metrics::for_agent()), [true, true, true, false]);
        assert_eq!(exposes(Metrics::for_gateway()), [false, true, true, false]);
        assert_eq!(exposes(Metrics::for_worker()), [false, false, false, true]);
    }
}
