//! The topic tree of one node, and how each topic is published. Pure.

use std::time::Duration;

use bytes::Bytes;

use crate::mqtt::{Publication, Qos};

const JSON: &str = "application/json";
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// How the publications of a topic are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublishOptions {
    /// Quality of service.
    pub qos: Qos,
    /// Whether the broker keeps the last publication for later subscribers.
    pub retain: bool,
    /// How long the broker keeps it at most (Message Expiry Interval); `None` for no limit.
    pub expiry: Option<Duration>,
    /// MIME type (Content Type).
    pub content_type: &'static str,
    /// Name and version of the payload's format (User Property `schema`).
    pub schema: Option<&'static str>,
}

impl PublishOptions {
    /// One word, such as a rule's state: retained.
    pub const WORD: PublishOptions = PublishOptions {
        qos: Qos::AtLeastOnce,
        retain: true,
        expiry: None,
        content_type: "text/plain",
        schema: None,
    };
    /// A state as a JSON object, such as a camera's status: retained.
    pub const OBJECT: PublishOptions = PublishOptions {
        content_type: JSON,
        ..PublishOptions::WORD
    };
    /// `health`: retained, and soon out of date.
    pub const HEALTH: PublishOptions = PublishOptions {
        qos: Qos::AtMostOnce,
        expiry: Some(Duration::from_secs(120)),
        ..PublishOptions::OBJECT
    };
    /// A snapshot: retained.
    pub const SNAPSHOT: PublishOptions = PublishOptions {
        qos: Qos::AtMostOnce,
        expiry: Some(HOUR),
        content_type: "image/jpeg",
        ..PublishOptions::WORD
    };
    /// A step of an event.
    pub const EVENT: PublishOptions = PublishOptions {
        retain: false,
        expiry: Some(DAY.saturating_mul(7)),
        schema: Some("event/1"),
        ..PublishOptions::OBJECT
    };
    /// A gap: kept longer than the events around it.
    pub const GAP: PublishOptions = PublishOptions {
        expiry: Some(DAY.saturating_mul(30)),
        schema: Some("gap/1"),
        ..PublishOptions::EVENT
    };
}

impl PublishOptions {
    /// What is published on `topic`.
    pub fn publication(self, topic: String, payload: Bytes) -> Publication {
        let content_type = ("ct".to_owned(), self.content_type.to_owned());
        let schema = |schema: &str| ("schema".to_owned(), schema.to_owned());
        Publication {
            topic,
            payload,
            qos: self.qos,
            retain: self.retain,
            expiry: self.expiry,
            content_type: Some(self.content_type.into()),
            // The content type once more: a bridge may drop a property that MQTT 3 has no place
            // for.
            user_properties: self
                .schema
                .map_or_else(Vec::new, |name| vec![content_type, schema(name)]),
            ..Publication::default()
        }
    }
}

/// The topic tree of one node: `egret/<node>/…`.
#[derive(Debug, Clone)]
pub struct Topics {
    root: String,
}

impl Topics {
    /// The tree of the node with this id.
    pub fn new(node: &str) -> Self {
        Topics {
            root: format!("egret/{node}"),
        }
    }

    /// Whether the agent runs.
    pub fn status(&self) -> String {
        format!("{}/status", self.root)
    }

    /// The agent's version, model, cameras and pools.
    pub fn info(&self) -> String {
        format!("{}/info", self.root)
    }

    /// The outbox and the counters.
    pub fn health(&self) -> String {
        format!("{}/health", self.root)
    }

    /// Events that will never be published.
    pub fn gap(&self) -> String {
        format!("{}/gap", self.root)
    }

    /// Commands that set the kill switch.
    pub fn kill_switch_set(&self) -> String {
        format!("{}/kill-switch/set", self.root)
    }

    /// The kill switch in force.
    pub fn kill_switch_state(&self) -> String {
        format!("{}/kill-switch/state", self.root)
    }

    /// Whether a camera delivers frames.
    pub fn camera_status(&self, cam: &str) -> String {
        format!("{}/cam/{cam}/status", self.root)
    }

    /// A camera's events.
    pub fn event(&self, cam: &str) -> String {
        format!("{}/cam/{cam}/event", self.root)
    }

    /// The frame that opened a camera's newest event.
    pub fn snapshot(&self, cam: &str) -> String {
        format!("{}/cam/{cam}/snapshot", self.root)
    }

    /// A rule's answer in one word.
    pub fn rule_state(&self, cam: &str, rule: &str) -> String {
        format!("{}/cam/{cam}/rule/{rule}/state", self.root)
    }

    /// A rule's answer in full.
    pub fn rule_attributes(&self, cam: &str, rule: &str) -> String {
        format!("{}/cam/{cam}/rule/{rule}/attributes", self.root)
    }
}
