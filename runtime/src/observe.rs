//! What happens in the pipeline, told to whoever watches it live: the demo, a test.

use bytes::Bytes;
use tracing::info;

use crate::capture::gate::Decision;
use crate::decide::router::{Reason, Route};
use crate::deliver::event::{By, Draft, Settled};

/// Told of everything, in order for each camera. Called from the pipeline's tasks and threads: it
/// must not block.
pub trait Watcher: Send + Sync {
    /// Something happened.
    fn see(&self, record: Record);
}

/// Writes each step of an event into the log.
#[derive(Debug, Clone, Copy, Default)]
pub struct Log;

impl Watcher for Log {
    fn see(&self, record: Record) {
        if let Record::Event { cam, draft, .. } = record {
            let By { place, model, .. } = &draft.settled.by;
            info!(
                cam,
                rule = draft.rule,
                "{:?}: {} ({}), {place:?} {model}",
                draft.step,
                draft.settled.text,
                draft.state.as_str()
            );
        }
    }
}

/// One thing that happened.
#[derive(Debug, Clone)]
pub enum Record {
    /// The gate decided about a frame.
    Frame {
        /// The camera.
        cam: String,
        /// Its number, from 1, within the camera.
        frame: u64,
        /// The file it came from, for sources that have one.
        name: Option<String>,
        /// Admit or skip.
        decision: Decision,
    },
    /// The local model answered a rule, and the router decided.
    Answer(Box<LocalAnswer>),
    /// A pool was asked.
    Outcome {
        /// The camera.
        cam: String,
        /// The frame's number.
        frame: u64,
        /// The rule.
        rule: String,
        /// The pool's answer, or the reason why there is none.
        result: Result<Box<Settled>, Reason>,
        /// Attempts made.
        attempts: u32,
        /// Request bytes sent.
        bytes_up: u64,
    },
    /// An event was given its place in the outbox.
    Event {
        /// The camera.
        cam: String,
        /// Its place.
        seq: u64,
        /// The step told.
        draft: Box<Draft>,
    },
    /// A camera's state changed.
    Camera {
        /// The camera.
        cam: String,
        /// `online`, `stalled`, `offline` or `ended`.
        state: &'static str,
        /// Why, in words.
        reason: String,
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
