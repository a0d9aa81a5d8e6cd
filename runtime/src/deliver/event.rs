//! What is published: the event's JSON, and the small retained states beside it. Pure.
//!
//! An event is one rule's local answer over time, told in steps of one id: `new`, any number of
//! `update`, `end` (see `span`).

use std::time::Duration;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::decide::router::Reason;
use crate::deliver::topics::Topics;

/// Version of the event's JSON: raised when a field changes its meaning, not when one is added.
const VERSION: u32 = 1;

/// Which step of an event is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The first answer, or another than before.
    New,
    /// What a pool said, or that it will not.
    Update,
    /// No longer so, or no longer watched.
    End,
}

/// The short state of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum State {
    /// The answer is one of the rule's `alert` answers.
    #[serde(rename = "ON")]
    On,
    /// The answer is none of them.
    #[serde(rename = "OFF")]
    Off,
    /// Not settled, or the rule has no `alert` answers.
    #[serde(rename = "unknown")]
    Unknown,
}

impl State {
    /// What `answer` means under a rule's `alert` answers.
    pub fn of(answer: &str, alert: &[String]) -> State {
        match alert {
            [] => State::Unknown,
            _ if alert.iter().any(|on| on == answer) => State::On,
            _ => State::Off,
        }
    }

    /// `ON`, `OFF` or `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            State::On => "ON",
            State::Off => "OFF",
            State::Unknown => "unknown",
        }
    }
}

/// Who gave an answer, and what it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct By {
    /// `local` or `pool`.
    #[serde(rename = "where")]
    pub place: Place,
    /// The pool; absent for the local model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// The model's name.
    pub model: String,
    /// The bundle's identity; absent for a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// `ort` or `tract`; absent for a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The execution provider that really ran, or `remote`.
    pub ep: String,
    /// From the question to the answer.
    #[serde(rename = "total_ms", serialize_with = "millis")]
    pub total: Duration,
    /// Prompt through the decoder; absent for a pool.
    #[serde(
        rename = "prefill_ms",
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_millis"
    )]
    pub prefill: Option<Duration>,
    /// After the prompt; absent for a pool.
    #[serde(
        rename = "decode_ms",
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_millis"
    )]
    pub decode: Option<Duration>,
    /// Length of the answer, if known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
}

/// On the box, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// The model on the box.
    Local,
    /// A pool.
    Pool,
}

/// One answer: what, how sure, by whom.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// The answer.
    pub text: String,
    /// Probability that it is right, 0..=1, if the model gave one.
    pub confidence: Option<f64>,
    /// What the confidence was read from: `candidates`, `tokens`, `pool` or `none`.
    pub confidence_kind: &'static str,
    /// Who gave it.
    pub by: By,
}

/// How an escalation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Nobody was to be asked.
    None,
    /// A pool is asked.
    Pending,
    /// A pool answered.
    Answered,
    /// No pool answered in time.
    Expired,
    /// Not asked, or asked in vain: the first reason says why.
    Denied,
}

/// What the event says about its escalation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Escalation {
    /// How it stands.
    pub outcome: Outcome,
    /// In order; the first one decided.
    pub reasons: Vec<Reason>,
    /// The rule's threshold, 0..=1.
    pub threshold: f64,
    /// Attempts made.
    pub attempts: u32,
    /// Request bytes sent, all attempts together.
    pub bytes_up: u64,
    /// What the attempts cost; absent where the pool has no price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// The pool's deadline; absent where no pool is configured.
    #[serde(
        rename = "deadline_ms",
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_millis"
    )]
    pub deadline: Option<Duration>,
}

/// The frame that was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FrameInfo {
    /// When it was captured.
    #[serde(serialize_with = "rfc3339")]
    pub time: Timestamp,
    /// Pixels from left to right.
    pub w: u32,
    /// Pixels from top to bottom.
    pub h: u32,
    /// Hex sha256 of its JPEG.
    pub sha256: String,
    /// The JPEG's size.
    #[serde(skip)]
    pub jpeg_bytes: usize,
}

/// One step of an event, before it has its place in the queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    /// Which step.
    pub step: Step,
    /// The event's id, the same in all its steps.
    pub id: String,
    /// The rule.
    pub rule: String,
    /// The question asked.
    pub question: String,
    /// The frame that opened the event: the picture on the snapshot topic, until another event
    /// opens.
    pub opened_on: FrameInfo,
    /// The frame that the answer in force is about.
    pub frame: FrameInfo,
    /// The short state.
    pub state: State,
    /// The answer in force.
    pub settled: Settled,
    /// The local answer about the same frame, once a pool's is in force.
    pub first: Option<Settled>,
    /// How the escalation stands.
    pub escalation: Escalation,
    /// A local answer that stands in for a pool's.
    pub provisional: bool,
    /// Told after the event's end.
    pub late: bool,
}

/// When an event was made, by every clock there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// Wall clock.
    pub time: Timestamp,
    /// Since the box started; never jumps.
    pub mono: Duration,
    /// Names the box's start.
    pub boot_id: String,
    /// Whether the wall clock can be believed.
    pub clock: &'static str,
}

/// Where on the box an event was made.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// `[node] id`.
    pub node: &'a str,
    /// The camera.
    pub cam: &'a str,
}

#[derive(Serialize)]
struct Wire<'a> {
    v: u32,
    r#type: Step,
    /// Home Assistant's event platform wants this name for the same thing.
    event_type: Step,
    id: &'a str,
    epoch: String,
    seq: u64,
    node: &'a str,
    cam: &'a str,
    rule: &'a str,
    #[serde(serialize_with = "rfc3339_ref")]
    time: &'a Timestamp,
    #[serde(rename = "mono_ms", serialize_with = "millis")]
    mono: Duration,
    boot_id: &'a str,
    clock: &'a str,
    frame: &'a FrameInfo,
    question: &'a str,
    answer: &'a str,
    state: State,
    #[serde(skip_serializing_if = "is_false")]
    provisional: bool,
    #[serde(skip_serializing_if = "is_false")]
    late: bool,
    confidence: Option<f64>,
    confidence_kind: &'a str,
    by: &'a By,
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<First<'a>>,
    reasons: &'a [Reason],
    escalation: &'a Escalation,
    image: Image<'a>,
}

#[derive(Serialize)]
struct First<'a> {
    answer: &'a str,
    confidence: Option<f64>,
    confidence_kind: &'a str,
    #[serde(flatten)]
    by: &'a By,
}

#[derive(Serialize)]
struct Image<'a> {
    topic: String,
    bytes: usize,
    sha256: &'a str,
}

impl Draft {
    /// The event's JSON, with its place in the queue.
    pub fn to_json(&self, origin: Origin<'_>, moment: &Moment, epoch: u64, seq: u64) -> Vec<u8> {
        let wire = Wire {
            v: VERSION,
            r#type: self.step,
            event_type: self.step,
            id: &self.id,
            epoch: epoch_hex(epoch),
            seq,
            node: origin.node,
            cam: origin.cam,
            rule: &self.rule,
            time: &moment.time,
            mono: moment.mono,
            boot_id: &moment.boot_id,
            clock: moment.clock,
            frame: &self.frame,
            question: &self.question,
            answer: &self.settled.text,
            state: self.state,
            provisional: self.provisional,
            late: self.late,
            confidence: self.settled.confidence,
            confidence_kind: self.settled.confidence_kind,
            by: &self.settled.by,
            first: self.first.as_ref().map(|first| First {
                answer: &first.text,
                confidence: first.confidence,
                confidence_kind: first.confidence_kind,
                by: &first.by,
            }),
            reasons: &self.escalation.reasons,
            escalation: &self.escalation,
            image: Image {
                topic: Topics::new(origin.node).snapshot(origin.cam),
                bytes: self.opened_on.jpeg_bytes,
                sha256: &self.opened_on.sha256,
            },
        };
        serde_json::to_vec(&wire).expect("strings, numbers and lists always serialise")
    }

    /// What stands retained beside the rule's state: the answer in full, and who gave it.
    pub fn attributes_json(&self, moment: &Moment) -> Vec<u8> {
        #[derive(Serialize)]
        struct Attributes<'a> {
            id: &'a str,
            #[serde(serialize_with = "rfc3339_ref")]
            time: &'a Timestamp,
            question: &'a str,
            answer: &'a str,
            #[serde(skip_serializing_if = "is_false")]
            provisional: bool,
            confidence: Option<f64>,
            confidence_kind: &'a str,
            by: &'a By,
            reasons: &'a [Reason],
            outcome: Outcome,
        }
        let attributes = Attributes {
            id: &self.id,
            time: &moment.time,
            question: &self.question,
            answer: &self.settled.text,
            provisional: self.provisional,
            confidence: self.settled.confidence,
            confidence_kind: self.settled.confidence_kind,
            by: &self.settled.by,
            reasons: &self.escalation.reasons,
            outcome: self.escalation.outcome,
        };
        serde_json::to_vec(&attributes).expect("strings, numbers and lists always serialise")
    }
}

/// An epoch as it is published: 16 hex digits, since JSON readers lose integers above 2^53.
pub fn epoch_hex(epoch: u64) -> String {
    format!("{epoch:016x}")
}

fn is_false(value: &bool) -> bool {
    !value
}

fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

fn some_millis<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => millis(duration, serializer),
        None => serializer.serialize_none(),
    }
}

fn rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    // Always three decimals, so that texts sort as times do.
    serializer.collect_str(&format_args!("{time:.3}"))
}

fn rfc3339_ref<S: Serializer>(time: &&Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    rfc3339(time, serializer)
}

#[cfg(test)]
pub(crate) mod tests;
