//! What happens in the agent, shown to observers: the log, the metrics, the demo's summary, a test.

mod counting;

use std::sync::Arc;

use bytes::Bytes;
use tracing::{info, warn};

use crate::capture::record::CaptureRecord;
use crate::capture::status::CameraState;
use crate::decide::call::Called;
use crate::decide::router::Route;
use crate::deliver::event::Draft;
use crate::settled::{By, Settled};

/// Is shown everything that happens, in order for each camera. Called from the agent's tasks and
/// threads: it must not block.
pub trait Observer: Send + Sync {
    /// Something happened.
    fn observe(&self, record: &Record);
}

/// Shows each record to several observers, in their order.
pub struct FanOut(pub Vec<Arc<dyn Observer>>);

impl Observer for FanOut {
    fn observe(&self, record: &Record) {
        for observer in &self.0 {
            observer.observe(record);
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Record {
    /// Something happened in a camera's capture.
    Capture {
        /// The camera.
        cam: String,
        /// What.
        record: CaptureRecord,
    },
    /// An admitted frame reached its rules.
    Asked {
        /// The camera.
        cam: String,
        /// The frame's number.
        frame: u64,
    },
    /// The local model answered a rule, and the router decided.
    Answer(Box<LocalAnswer>),
    /// The local model did not answer a rule.
    AnswerFailed {
        /// The camera.
        cam: String,
        /// The frame's number.
        frame: u64,
        /// The rule.
        rule: String,
        /// Why.
        error: String,
    },
    /// A pool call ended.
    Outcome {
        /// The camera.
        cam: String,
        /// The frame's number.
        frame: u64,
        /// The rule.
        rule: String,
        /// The pool's answer, or why there is none.
        called: Box<Called<Settled>>,
    },
    /// An event was put into the outbox.
    Event {
        /// The camera.
        cam: String,
        /// Its sequence number.
        seq: u64,
        /// The step.
        draft: Box<Draft>,
    },
    /// A camera's state changed.
    Camera {
        /// The camera.
        cam: String,
        /// Its state.
        state: CameraState,
        /// Why, in words.
        reason: String,
    },
    /// A camera's scene takes no more frames: the agent stops.
    Stopping {
        /// The camera.
        cam: String,
    },
    /// A camera's scene did not finish before the deadline of a stop.
    TimedOut {
        /// The camera.
        cam: String,
    },
}

/// One local answer.
#[derive(Debug, Clone)]
pub struct LocalAnswer {
    /// The camera.
    pub cam: String,
    /// The frame's number.
    pub frame: u64,
    /// The file it came from, for sources that have one.
    pub name: Option<String>,
    /// The frame.
    pub jpeg: Bytes,
    /// The rule.
    pub rule: String,
    /// The question.
    pub question: String,
    /// The answers to choose from.
    pub answers: Vec<String>,
    /// The local answer.
    pub answer: Settled,
    /// Where it is settled, and why.
    pub route: Route,
    /// The event it belongs to.
    pub event: String,
}

/// Logs what goes wrong, and the state of each camera.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

impl Observer for Log {
    fn observe(&self, record: &Record) {
        match record {
            Record::Capture { cam, record } => log_capture(cam, record),
            Record::Camera { cam, state, reason } => info!(cam, "{} {reason}", state.as_str()),
            Record::AnswerFailed {
                cam, rule, error, ..
            } => warn!(cam, rule, "no local answer: {error}"),
            Record::Outcome {
                cam, rule, called, ..
            } => {
                if let Err(error) = &called.result {
                    info!(cam, rule, "the local answer is kept: {error}");
                }
            }
            Record::TimedOut { cam } => {
                warn!(cam, "the time to stop ran out; work under way is given up")
            }
            Record::Asked { .. }
            | Record::Stopping { .. }
            | Record::Answer(_)
            | Record::Event { .. } => {}
        }
    }
}

fn log_capture(cam: &str, record: &CaptureRecord) {
    match record {
        CaptureRecord::FrameBad { name, error, .. } => match name {
            Some(name) => warn!(cam, "frame not usable: {name}: {error}"),
            None => warn!(cam, "frame not usable: {error}"),
        },
        CaptureRecord::Failed { error, reopen_in } => match reopen_in {
            Some(wait) => warn!(cam, "{error}; opening it again in {wait:.1?}"),
            None => warn!(cam, "{error}; giving it up"),
        },
        CaptureRecord::Frame { .. } | CaptureRecord::FramesSuperseded { .. } => {}
    }
}

/// Logs each step of an event.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventLog;

impl Observer for EventLog {
    fn observe(&self, record: &Record) {
        if let Record::Event { cam, draft, .. } = record {
            let By { source, model, .. } = &draft.settled.by;
            let (step, text, state) = (draft.step, &draft.settled.text, draft.state.as_str());
            info!(
                cam,
                rule = draft.rule,
                "{step:?}: {text} ({state}), {source:?} {model}"
            );
        }
    }
}
