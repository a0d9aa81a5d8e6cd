//! The event's JSON, and the attributes published beside a rule's state. Pure.
//!
//! An event follows one local answer of one rule. Its steps share an id: `new`, any number of
//! `update`, `end` (see `span`). `docs/events.md` is made from the types and comments below.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::clock::{ClockTrust, Moment};
use crate::deliver::topics::Topics;
#[cfg(test)]
use crate::json::schema::{ByteCount, EpochHex, Millis, Pixels, Probability, Sha256, Time, Usd};
use crate::json::{millis, rfc3339, rfc3339_ref, some_millis};
use crate::reason::Reason;
use crate::settled::{By, ConfidenceKind, Settled};

/// Version of the event's JSON: raised when a field changes its meaning, not when one is added.
const VERSION: u32 = 1;

/// One step in the life of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// The rule has its first local answer, or another one than before.
    New,
    /// A pool answered, or will not answer.
    Update,
    /// The answer no longer holds, the camera is away, or the agent stops. The answer and all that
    /// belongs to it are repeated from the step before.
    End,
}

/// A rule's answer in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum RuleState {
    /// The answer is one of the rule's `alert` answers.
    #[serde(rename = "ON")]
    On,
    /// The answer is not one of the rule's `alert` answers.
    #[serde(rename = "OFF")]
    Off,
    /// The rule has no `alert` answers, only a pool may settle it and none has yet, or the camera
    /// is away.
    #[serde(rename = "unknown")]
    Unknown,
}

impl RuleState {
    /// What `answer` means under a rule's `alert` answers.
    pub fn of(answer: &str, alert: &[String]) -> RuleState {
        match alert {
            [] => RuleState::Unknown,
            _ if alert.iter().any(|on| on == answer) => RuleState::On,
            _ => RuleState::Off,
        }
    }

    /// `ON`, `OFF` or `unknown`.
    pub fn as_str(self) -> &'static str {
        match self {
            RuleState::On => "ON",
            RuleState::Off => "OFF",
            RuleState::Unknown => "unknown",
        }
    }
}

/// What became of an escalation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum EscalationOutcome {
    /// The router kept the local answer.
    None,
    /// A pool has been asked and has not answered yet; an `update` follows.
    Pending,
    /// A pool answered.
    Answered,
    /// No pool answered before the deadline.
    Expired,
    /// No pool was asked, or the attempt failed; the first reason says why.
    Denied,
}

/// The escalation of one answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Escalation {
    /// What became of it.
    pub outcome: EscalationOutcome,
    /// Reason codes, the deciding one first.
    pub reasons: Vec<Reason>,
    /// The rule's deferral threshold: a local answer is kept at or above it.
    #[cfg_attr(test, schemars(with = "Probability"))]
    pub threshold: f64,
    /// Attempts to ask the pool, those that did not reach it included.
    pub attempts: u32,
    /// Bytes of request bodies, all attempts together.
    #[cfg_attr(test, schemars(with = "ByteCount"))]
    pub bytes_up: u64,
    /// Cost of the attempts; absent before the call has ended and where the pool has no
    /// `usd-per-call`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<Usd>"))]
    pub cost_usd: Option<f64>,
    /// The pool's deadline, from the request on; absent where no pool is configured.
    #[serde(
        rename = "deadline_ms",
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_millis"
    )]
    #[cfg_attr(test, schemars(with = "Option<Millis>"))]
    pub deadline: Option<Duration>,
}

/// A frame that was asked about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FrameInfo {
    /// When it was captured.
    #[serde(serialize_with = "rfc3339")]
    #[cfg_attr(test, schemars(with = "Time"))]
    pub time: Timestamp,
    /// Width.
    #[cfg_attr(test, schemars(with = "Pixels"))]
    pub w: u32,
    /// Height.
    #[cfg_attr(test, schemars(with = "Pixels"))]
    pub h: u32,
    /// Hash of the frame's JPEG.
    #[cfg_attr(test, schemars(with = "Sha256"))]
    pub sha256: String,
    /// Size of its JPEG.
    #[serde(skip)]
    pub jpeg_bytes: usize,
}

/// One step of an event, before the outbox gives it a sequence number.
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
    /// The frame that opened the event: the image on the snapshot topic until the camera opens
    /// another event.
    pub opened_on: FrameInfo,
    /// The frame that the answer in force is about.
    pub frame: FrameInfo,
    /// The answer in one word.
    pub state: RuleState,
    /// The answer in force.
    pub settled: Settled,
    /// The local answer about the same frame, once a pool's is in force.
    pub first: Option<Settled>,
    /// The escalation of the answer in force.
    pub escalation: Escalation,
    /// The answer in force is local, and only a pool may settle this rule.
    pub provisional: bool,
    /// An update published after the event's `end`.
    pub late: bool,
}

/// The node and the camera that an event comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// `[node] id`.
    pub node: &'a str,
    /// `[[camera]] id`.
    pub cam: &'a str,
}

/// One step of an event. Published on the camera's event topic.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct EventPayload<'a> {
    /// Version of this format: raised when a field changes its meaning, not when one is added.
    v: u32,
    /// Which step of the event this is.
    r#type: Step,
    /// The same as `type`, under the name that Home Assistant's event platform reads.
    event_type: Step,
    /// Names the event: the same in all its steps. A UUIDv7.
    id: &'a str,
    /// Names the life of the outbox that numbered this event; another one after every restart.
    #[cfg_attr(test, schemars(with = "EpochHex"))]
    epoch: String,
    /// Place within the epoch, from 1, without holes over all cameras of the node.
    seq: u64,
    /// `[node] id`.
    node: &'a str,
    /// `[[camera]] id`.
    cam: &'a str,
    /// `[[camera.rule]] id`.
    rule: &'a str,
    /// When this step was made, by the node's wall clock.
    #[serde(serialize_with = "rfc3339_ref")]
    #[cfg_attr(test, schemars(with = "Time"))]
    time: &'a Timestamp,
    /// When this step was made, since the node was booted; never jumps.
    #[serde(rename = "mono_ms", serialize_with = "millis")]
    #[cfg_attr(test, schemars(with = "Millis"))]
    mono: Duration,
    /// Names the boot that `mono_ms` counts from: the first 8 characters of Linux's boot id.
    boot_id: &'a str,
    /// Whether `time` can be trusted.
    clock: ClockTrust,
    /// The frame that the answer in force is about.
    frame: &'a FrameInfo,
    /// The rule's question.
    question: &'a str,
    /// The answer in force: one of the rule's `answers`, or free text where it has none.
    answer: &'a str,
    /// The answer in one word.
    state: RuleState,
    /// `true` while a local answer stands in for a pool's under `route = "must-escalate"`; else
    /// absent.
    #[serde(skip_serializing_if = "is_false")]
    provisional: bool,
    /// `true` for an update that comes after the event's `end`; else absent.
    #[serde(skip_serializing_if = "is_false")]
    late: bool,
    /// Probability that the answer is right, as the model gives it, not calibrated; `null` where a
    /// pool gave none.
    #[cfg_attr(test, schemars(with = "Option<Probability>"))]
    confidence: Option<f64>,
    /// What the confidence is computed from.
    confidence_kind: ConfidenceKind,
    /// The model that gave the answer in force.
    by: &'a By,
    /// The local answer about the same frame; absent until a pool's answer is in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    first: Option<First<'a>>,
    /// Reason codes, the deciding one first: the same list as `escalation.reasons`.
    reasons: &'a [Reason],
    /// The escalation of the answer in force.
    escalation: &'a Escalation,
    /// The JPEG of the frame that opened the event.
    image: Image<'a>,
}

/// A local answer that a pool's has replaced.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct First<'a> {
    /// The local answer.
    answer: &'a str,
    /// As `confidence`, of the local answer.
    #[cfg_attr(test, schemars(with = "Option<Probability>"))]
    confidence: Option<f64>,
    /// As `confidence_kind`, of the local answer.
    confidence_kind: ConfidenceKind,
    #[serde(flatten)]
    by: &'a By,
}

/// A reference to the image on the snapshot topic.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Image<'a> {
    /// Where the JPEG is published, until the camera opens another event.
    topic: String,
    /// Size of the JPEG.
    #[cfg_attr(test, schemars(with = "ByteCount"))]
    bytes: usize,
    /// Hash of the JPEG: the snapshot belongs to this event if its hash is the same.
    #[cfg_attr(test, schemars(with = "Sha256"))]
    sha256: &'a str,
}

/// A rule's answer in full. Published beside its state.
#[derive(Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct AttributesPayload<'a> {
    /// The event that the answer belongs to.
    id: &'a str,
    /// When the event's step was made.
    #[serde(serialize_with = "rfc3339_ref")]
    #[cfg_attr(test, schemars(with = "Time"))]
    time: &'a Timestamp,
    /// The rule's question.
    question: &'a str,
    /// The answer in force.
    answer: &'a str,
    /// As in the event.
    #[serde(skip_serializing_if = "is_false")]
    provisional: bool,
    /// As in the event.
    #[cfg_attr(test, schemars(with = "Option<Probability>"))]
    confidence: Option<f64>,
    /// As in the event.
    confidence_kind: ConfidenceKind,
    /// The model that gave the answer in force.
    by: &'a By,
    /// Reason codes, the deciding one first.
    reasons: &'a [Reason],
    /// What became of the escalation.
    outcome: EscalationOutcome,
}

impl Draft {
    /// The event's JSON, with the sequence number that the outbox gave it.
    pub fn to_json(&self, origin: Origin<'_>, moment: &Moment, epoch: u64, seq: u64) -> Vec<u8> {
        let payload = EventPayload {
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
        to_vec(&payload)
    }

    /// The JSON of the rule's attributes: the answer in full, and the model that gave it.
    pub fn attributes_json(&self, moment: &Moment) -> Vec<u8> {
        let attributes = AttributesPayload {
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
        to_vec(&attributes)
    }
}

/// An epoch as it is published: 16 hex digits, since JSON readers lose integers above 2^53.
pub fn epoch_hex(epoch: u64) -> String {
    format!("{epoch:016x}")
}

/// The JSON of a payload.
pub(super) fn to_vec(payload: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(payload).expect("strings, numbers and lists always serialize")
}

fn is_false(value: &bool) -> bool {
    !value
}

#[cfg(test)]
pub(crate) mod tests;
