//! Cameras, rules and outbox.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::{Durations, Group};
use crate::capture::status::CameraState;
use crate::decide::router::{Route, Target};

type Counters<L> = Family<L, prometheus_client::metrics::counter::Counter>;

/// What became of a frame at the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GateDecision {
    /// The model is asked about it.
    Admit,
    /// The model is not asked about it.
    Skip,
    /// It could not be decoded, compared or encoded.
    Unusable,
}

impl GateDecision {
    fn as_str(self) -> &'static str {
        match self {
            GateDecision::Admit => "admit",
            GateDecision::Skip => "skip",
            GateDecision::Unusable => "unusable",
        }
    }
}

/// Cameras, rules and outbox.
#[derive(Debug)]
pub struct AgentMetrics {
    frames: Counters<FrameLabels>,
    answers: Counters<RuleLabels>,
    reasons: Counters<ReasonLabels>,
    local_answers: Durations,
    camera_states: Family<CameraLabels, Gauge>,
    outbox_events: Gauge,
    outbox_bytes: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FrameLabels {
    camera: String,
    decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RuleLabels {
    camera: String,
    rule: String,
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    route: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CameraLabels {
    camera: String,
    state: &'static str,
}

impl AgentMetrics {
    pub(super) fn new(mut group: Group<'_>) -> Self {
        AgentMetrics {
            frames: group.add(
                "camera_frames",
                "Frames, by the gate's decision.",
                Family::default(),
            ),
            answers: group.add(
                "rule_answers",
                "Local answers, by where they are settled.",
                Family::default(),
            ),
            reasons: group.add(
                "route_reasons",
                "Local answers, by where they are settled and the deciding reason.",
                Family::default(),
            ),
            local_answers: group.durations(
                "local_answer_duration_seconds",
                "Time the local model took for one answer.",
            ),
            camera_states: group.add(
                "camera_state",
                "1 for the state that the camera is in, else 0.",
                Family::default(),
            ),
            outbox_events: group.add(
                "outbox_events",
                "Events that the broker has not acknowledged yet.",
                Gauge::default(),
            ),
            outbox_bytes: group.add(
                "outbox_bytes",
                "Size of the events that the broker has not acknowledged yet.",
                Gauge::default(),
            ),
        }
    }

    /// Counts a frame of `camera`.
    pub fn frame(&self, camera: &str, decision: GateDecision) {
        let labels = FrameLabels {
            camera: camera.to_owned(),
            decision: decision.as_str(),
        };
        self.frames.get_or_create(&labels).inc();
    }

    /// Counts a local answer to `rule` of `camera`, which the model gave in `took` and the router
    /// sent on `route`.
    pub fn answer(&self, camera: &str, rule: &str, route: &Route, took: Duration) {
        let target = match route.target {
            Target::Local => "local",
            Target::Escalate => "escalate",
        };
        let labels = RuleLabels {
            camera: camera.to_owned(),
            rule: rule.to_owned(),
            route: target,
        };
        self.answers.get_or_create(&labels).inc();
        let labels = ReasonLabels {
            route: target,
            reason: route.decided_by().as_str(),
        };
        self.reasons.get_or_create(&labels).inc();
        self.local_answers.observe(took);
    }

    /// Shows the state that `camera` is in now.
    pub fn camera_state(&self, camera: &str, now: CameraState) {
        for state in CameraState::ALL {
            let labels = CameraLabels {
                camera: camera.to_owned(),
                state: state.as_str(),
            };
            let shown = i64::from(state == now);
            self.camera_states.get_or_create(&labels).set(shown);
        }
    }

    /// Shows what waits in the outbox now.
    pub fn outbox(&self, events: usize, bytes: usize) {
        self.outbox_events.set(gauged(events));
        self.outbox_bytes.set(gauged(bytes));
    }
}

fn gauged(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}
