//! One MQTT v5 connection kept alive: connects, subscribes, sends, receives, reconnects with backoff.
//!
//! The only folder that names `rumqttc`. A [`Link`] makes one promise: [`Link::publish`] resolves with our own matched PUBACK, or
//! with [`LinkError::Down`] when the connection ended before it. It stores nothing: whoever must not lose a publication keeps it
//! until then (see `outbox`).

use std::time::Duration;

use bytes::Bytes;

/// One message, in or out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// Topic name, without wildcards.
    pub topic: String,
    /// Content.
    pub payload: Bytes,
    /// At least once (QoS 1) or at most once (QoS 0).
    pub qos: Qos,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// Message Expiry Interval; whole seconds on the wire, rounded up.
    pub expiry: Option<Duration>,
    /// Response Topic of a request.
    pub response_topic: Option<String>,
    /// Correlation Data of a request or reply.
    pub correlation: Option<Bytes>,
    /// Content Type.
    pub content_type: Option<String>,
    /// User Properties, in order.
    pub user_properties: Vec<(String, String)>,
}

/// Quality of service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Qos {
    /// QoS 0.
    AtMostOnce,
    /// QoS 1.
    #[default]
    AtLeastOnce,
}

/// Whether a broker session is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkState {
    /// Not connected; why, in words.
    Down(String),
    /// Connected and subscribed.
    Up,
}

/// Why a publication was not acknowledged.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum LinkError {
    /// No connection, or it ended before the PUBACK.
    #[error("the broker connection went down before the publication was acknowledged: {0}")]
    Down(String),
    /// Larger than the broker takes.
    #[error("publication of {bytes} bytes to {topic} is over the broker's limit of {limit} bytes")]
    TooLarge {
        /// Its topic.
        topic: String,
        /// Its size.
        bytes: usize,
        /// The broker's maximum packet size.
        limit: usize,
    },
}
