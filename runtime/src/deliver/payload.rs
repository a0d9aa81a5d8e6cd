//! The JSON of the topics beside events: status, camera status, info, health, gap. Pure.
//!
//! `docs/events.md` is made from the types and comments below.

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use vlm::Identity;

use crate::clock::ClockTrust;
use crate::deliver::event::{epoch_hex, to_vec};
use crate::deliver::outbox::GapReason;
use crate::json::rfc3339;
#[cfg(test)]
use crate::json::schema::{ByteCount, EpochHex, Millis, Time};
use crate::metrics::Totals;

/// Whether the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// The agent runs.
    Online,
    /// The agent has ended, by itself or on request. Published after its last event.
    Stopped,
    /// The broker has not heard from the agent for 10 s after it lost the connection: its last
    /// will.
    Offline,
}

/// Whether the agent of a node runs. Published on the node's status topic, and its last will.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StatusPayload {
    /// Whether the agent runs.
    pub state: NodeState,
    /// The epoch of the events that this agent publishes.
    #[serde(serialize_with = "hex")]
    #[cfg_attr(test, schemars(with = "EpochHex"))]
    pub epoch: u64,
    /// Process id of the agent.
    pub pid: u32,
    /// When this was written. For `offline`: when the agent started.
    #[serde(serialize_with = "rfc3339")]
    #[cfg_attr(test, schemars(with = "Time"))]
    pub time: Timestamp,
}

/// Whether a camera delivers frames. Published on the camera's status topic; it holds only while
/// the node's status is `online`.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CameraStatusPayload<'a> {
    /// `online`, frames arrive; `stalled`, no frame for longer than the camera's `stall-after`, and
    /// it is opened again; `offline`, not open, and opening is tried again; `ended`, the folder or
    /// file was read to its end, or the agent stops.
    pub state: &'a str,
    /// Why, for people; empty while the camera is `online`.
    pub reason: &'a str,
    /// When the camera entered this state.
    #[serde(serialize_with = "rfc3339")]
    #[cfg_attr(test, schemars(with = "Time"))]
    pub since: Timestamp,
}

/// What runs on a node. Published on the node's info topic when the agent starts.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct InfoPayload<'a> {
    /// Version of Egret.
    pub version: &'a str,
    /// `[node] id`.
    pub node: &'a str,
    /// The local model.
    #[cfg_attr(test, schemars(with = "ModelPayload"))]
    pub model: &'a Identity,
    /// Ids of the cameras, in the order of the configuration.
    pub cameras: Vec<&'a str>,
    /// Ids of the pools, in the order of the configuration.
    pub pools: Vec<&'a str>,
}

/// The local model, as it was loaded: the JSON of an [`Identity`], as `docs/events.md` has it.
#[cfg(test)]
#[derive(Debug, Serialize, schemars::JsonSchema)]
struct ModelPayload {
    /// Name of the bundle.
    name: String,
    /// Identity of the bundle.
    sha256: String,
    /// `fp32`, `fp16` or `int8`.
    precision: String,
    /// `ort` (ONNX Runtime) or `tract`.
    backend: String,
    /// The execution provider that runs.
    execution_provider: String,
}

/// How the agent does. Published on the node's health topic every 30 s.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HealthPayload {
    /// When this was written.
    #[serde(serialize_with = "rfc3339")]
    #[cfg_attr(test, schemars(with = "Time"))]
    pub time: Timestamp,
    /// Whether `time` can be trusted: as in the event.
    pub clock: ClockTrust,
    /// Events that the broker has not acknowledged yet.
    pub outbox: OutboxPayload,
    /// Totals since the agent started.
    pub counters: Totals,
}

/// Events that the broker has not acknowledged yet.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct OutboxPayload {
    /// How many.
    pub count: usize,
    /// Size of their payloads.
    #[cfg_attr(test, schemars(with = "ByteCount"))]
    pub bytes: usize,
    /// Age of the oldest; `null` where there is none.
    #[cfg_attr(test, schemars(with = "Option<Millis>"))]
    pub oldest_age_ms: Option<u64>,
}

/// Events that will never be published. Published on the node's gap topic.
#[derive(Debug, Clone, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GapPayload {
    /// The epoch that the sequence numbers belong to.
    #[serde(serialize_with = "hex")]
    #[cfg_attr(test, schemars(with = "EpochHex"))]
    pub epoch: u64,
    /// The first sequence number given up.
    pub from_seq: u64,
    /// The last sequence number given up.
    pub to_seq: u64,
    /// Why; where several gaps were merged, why the first event was given up.
    pub reason: GapReason,
    /// How many events were given up. Fewer than `from_seq` to `to_seq` where several gaps were
    /// merged; the others of that range are published as usual.
    pub count: u64,
}

impl StatusPayload {
    /// The JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_vec(self)
    }
}

impl CameraStatusPayload<'_> {
    /// The JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_vec(self)
    }
}

impl InfoPayload<'_> {
    /// The JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_vec(self)
    }
}

impl HealthPayload {
    /// The JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_vec(self)
    }
}

impl GapPayload {
    /// The JSON.
    pub fn to_json(&self) -> Vec<u8> {
        to_vec(self)
    }
}

fn hex<S: Serializer>(epoch: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&epoch_hex(*epoch))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time() -> Timestamp {
        "2026-11-23T08:51:00.12Z".parse().expect("a time")
    }

    fn text(json: Vec<u8>) -> String {
        String::from_utf8(json).expect("JSON is UTF-8")
    }

    #[test]
    fn status() {
        let status = |state| {
            let status = StatusPayload {
                state,
                epoch: 255,
                pid: 7,
                time: time(),
            };
            text(status.to_json())
        };
        insta::assert_snapshot!(status(NodeState::Online), @r#"{"state":"online","epoch":"00000000000000ff","pid":7,"time":"2026-11-23T08:51:00.120Z"}"#);
        assert!(status(NodeState::Stopped).starts_with(r#"{"state":"stopped","#));
        assert!(status(NodeState::Offline).starts_with(r#"{"state":"offline","#));
    }

    #[test]
    fn camera_status() {
        let status = CameraStatusPayload {
            state: "stalled",
            reason: "no frame for 10 s",
            since: time(),
        };
        insta::assert_snapshot!(text(status.to_json()), @r#"{"state":"stalled","reason":"no frame for 10 s","since":"2026-11-23T08:51:00.120Z"}"#);
    }

    #[test]
    fn info() {
        let identity = Identity {
            name: "nano-edge".into(),
            sha256: "ab12".into(),
            precision: "fp16".into(),
            backend: "tract".into(),
            execution_provider: "tract".into(),
            load: std::time::Duration::ZERO,
        };
        let documented = ModelPayload {
            name: identity.name.clone(),
            sha256: identity.sha256.clone(),
            precision: identity.precision.clone(),
            backend: identity.backend.clone(),
            execution_provider: identity.execution_provider.clone(),
        };
        assert_eq!(to_vec(&identity), to_vec(&documented));
        let info = InfoPayload {
            version: "0.1.0",
            node: "gate-01",
            model: &identity,
            cameras: vec!["lobby", "yard"],
            pools: vec![],
        };
        insta::assert_snapshot!(text(info.to_json()), @r#"{"version":"0.1.0","node":"gate-01","model":{"name":"nano-edge","sha256":"ab12","precision":"fp16","backend":"tract","execution_provider":"tract"},"cameras":["lobby","yard"],"pools":[]}"#);
    }

    #[test]
    fn health() {
        let mut health = HealthPayload {
            time: time(),
            clock: ClockTrust::Synced,
            outbox: OutboxPayload {
                count: 2,
                bytes: 1801,
                oldest_age_ms: Some(1200),
            },
            counters: Totals {
                frames: 3,
                ..Totals::default()
            },
        };
        let json = text(health.to_json());
        assert!(
            json.starts_with(
                r#"{"time":"2026-11-23T08:51:00.120Z","clock":"synced","outbox":{"count":2,"bytes":1801,"oldest_age_ms":1200},"counters":{"frames":3,"frames_skipped":0,"#
            ),
            "{json}"
        );
        health.outbox.oldest_age_ms = None;
        let json = text(health.to_json());
        assert!(json.contains(r#""oldest_age_ms":null},"#), "{json}");
    }
}
