//! One MQTT v5 connection kept alive: connects, subscribes, sends, receives, reconnects with
//! backoff.
//!
//! Only this folder uses `rumqttc`. A [`Link`] guarantees one thing: [`Link::publish`] resolves
//! with the publication's own PUBACK, or with [`LinkError::Down`] when the connection ended before
//! it. It stores nothing: a caller that must not lose a publication keeps it until then (see
//! `deliver::outbox`).

mod task;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::Mqtt;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::random::Random;
pub use task::LinkTask;

/// Publications on the connection that are not acknowledged yet, at most. As many more wait in
/// the queue before it; the next one waits in [`Link::publish`].
pub(crate) const WINDOW: usize = 64;

/// Smallest queue of deliveries that wait to be read.
const DELIVERIES_MIN: usize = 64;

/// How one connection is made and kept.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The broker. User, password and CA files are read at every connect, so they may be rotated.
    pub mqtt: Mqtt,
    /// Client identifier of the session at the broker; two connections with the same id disconnect
    /// each other.
    pub client_id: String,
    /// How long the broker keeps the session and its subscriptions while we are disconnected.
    pub session_expiry: Duration,
    /// Topic filters to receive.
    pub subscriptions: Vec<(String, Qos)>,
    /// Published by the broker when the connection is lost.
    pub last_will: Option<LastWill>,
    /// Receive Maximum: QoS 1 deliveries that may wait for our acknowledgement.
    pub receive_max: u16,
    /// Largest packet accepted from the broker, in bytes.
    pub packet_bytes_max: u32,
    /// Whether deliveries are acknowledged by [`Ack::send`] instead of on arrival.
    pub manual_acks: bool,
}

impl LinkOptions {
    /// A connection that only sends: no subscriptions, no last will, a session kept for a week,
    /// packets of up to 2 MiB.
    pub fn new(mqtt: Mqtt, client_id: impl Into<String>) -> Self {
        LinkOptions {
            mqtt,
            client_id: client_id.into(),
            session_expiry: Duration::from_secs(7 * 24 * 3600),
            subscriptions: Vec::new(),
            last_will: None,
            receive_max: 64,
            packet_bytes_max: 2 << 20,
            manual_acks: false,
        }
    }
}

/// What the broker publishes when a client's connection is lost.
#[derive(Debug, Clone)]
pub struct LastWill {
    /// The publication.
    pub publication: Publication,
    /// How long the broker waits for a reconnect first, so that a short outage is not published.
    pub delay: Duration,
}

/// One message, sent or received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Publication {
    /// Topic name, without wildcards.
    pub topic: String,
    /// Payload.
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
    /// Not connected, with the reason.
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
    /// The broker's PUBACK was an error.
    #[error(
        "the broker refused a publication to {topic}: {reason}; check the broker's access rules"
    )]
    Refused {
        /// Its topic.
        topic: String,
        /// The PUBACK's reason code.
        reason: String,
    },
    /// An invalid topic name: empty, with wildcards, or too long.
    #[error("invalid topic name {topic:?}: expected 1 to 65535 bytes without + or #")]
    Topic {
        /// The invalid topic name.
        topic: String,
    },
    /// Larger than the broker accepts.
    #[error(
        "a publication of {bytes} bytes to {topic} is over the broker's limit of {limit} bytes"
    )]
    TooLarge {
        /// Its topic.
        topic: String,
        /// Size of its packet, in bytes.
        bytes: usize,
        /// The broker's maximum packet size, in bytes.
        limit: usize,
    },
}

/// Why no connection attempt could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file named by the configuration cannot be used.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// State of the link, as its watchers receive it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// The current state.
    pub state: LinkState,
    /// How often the connection came up since the start: a change shows a reconnect even to a
    /// watcher that missed the states between.
    pub connections: u64,
}

/// A handle on one connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    requests: mpsc::Sender<PublishRequest>,
    status: watch::Receiver<LinkStatus>,
}

/// A publication handed to the connection, and where its outcome is sent.
#[derive(Debug)]
pub(crate) struct PublishRequest {
    pub(crate) publication: Publication,
    pub(crate) reply: oneshot::Sender<Result<(), LinkError>>,
}

/// Connects to brokers.
pub trait Brokers: Send + Sync {
    /// Creates a connection, which [`BrokerConnection::run`] dials.
    fn connect(&self, options: LinkOptions, clock: Clock, random: Random) -> BrokerConnection;
}

/// A connection that connects when [`BrokerConnection::run`] is called.
pub struct BrokerConnection {
    /// Sends publications.
    pub link: Link,
    /// What arrives.
    pub deliveries: Incoming,
    /// Keeps the connection until the future it is given resolves.
    pub run: Box<dyn FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send>,
}

/// Connects over TCP, TLS and WebSocket.
#[derive(Debug, Clone, Copy, Default)]
pub struct MqttBrokers;

impl Brokers for MqttBrokers {
    fn connect(&self, options: LinkOptions, clock: Clock, random: Random) -> BrokerConnection {
        let (link, task, deliveries) = Link::open(options, clock, random);
        BrokerConnection {
            link,
            deliveries,
            run: Box::new(|shutdown| task.run(shutdown).boxed()),
        }
    }
}

/// The other end of a [`Link`], held by its task or, in a test, by a simulated broker.
#[derive(Debug)]
pub(crate) struct FarSide {
    pub(crate) requests: mpsc::Receiver<PublishRequest>,
    pub(crate) status: watch::Sender<LinkStatus>,
    pub(crate) deliveries: mpsc::Sender<Received>,
    acks_sender: mpsc::Sender<(u64, u16)>,
    acks: mpsc::Receiver<(u64, u16)>,
    dropped: Arc<AtomicU64>,
}

impl Link {
    /// Makes a connection: the handle, the task that must be run, and what arrives.
    pub fn open(options: LinkOptions, clock: Clock, random: Random) -> (Link, LinkTask, Incoming) {
        let (link, far_side, deliveries) = Link::ends(options.receive_max);
        let task = LinkTask::new(options, far_side, clock, random);
        (link, task, deliveries)
    }

    pub(crate) fn ends(receive_max: u16) -> (Link, FarSide, Incoming) {
        let (requests_sender, requests) = mpsc::channel(WINDOW);
        let (status, status_seen) = watch::channel(LinkStatus {
            state: LinkState::Down("not connected yet".into()),
            connections: 0,
        });
        // Room for every delivery that the broker may send without an acknowledgement, and more,
        // because not every broker respects Receive Maximum: with manual acknowledgements, dropping
        // a delivery here would put the acknowledgements of those behind it out of order.
        let room = usize::from(receive_max).max(DELIVERIES_MIN);
        let (deliveries, queue) = mpsc::channel(room);
        let (acks_sender, acks) = mpsc::channel(room);
        let dropped = Arc::new(AtomicU64::new(0));
        let link = Link {
            requests: requests_sender,
            status: status_seen,
        };
        let far_side = FarSide {
            requests,
            status,
            deliveries,
            acks_sender,
            acks,
            dropped: Arc::clone(&dropped),
        };
        (link, far_side, Incoming { queue, dropped })
    }

    /// Sends one publication; resolves with its PUBACK (QoS 1) or when it is written (QoS 0).
    ///
    /// # Errors
    /// When there is no connection or it ends first, or when the broker does not accept the
    /// publication.
    pub async fn publish(&self, publication: Publication) -> Result<(), LinkError> {
        self.send(publication).await?.await
    }

    /// Hands one publication to the connection, waiting for room. The returned future resolves as
    /// [`Link::publish`] does.
    ///
    /// Publications are sent in the order in which these calls return.
    ///
    /// # Errors
    /// When there is no connection.
    pub async fn send(
        &self,
        publication: Publication,
    ) -> Result<impl Future<Output = Result<(), LinkError>> + Send + use<>, LinkError> {
        if let LinkState::Down(why) = self.state() {
            return Err(LinkError::Down(why));
        }
        fn gone<E>(_: E) -> LinkError {
            LinkError::Down("the connection was closed".into())
        }
        let (reply, outcome) = oneshot::channel();
        self.requests
            .send(PublishRequest { publication, reply })
            .await
            .map_err(gone)?;
        Ok(async move { outcome.await.map_err(gone)? })
    }

    /// The current state of the broker session.
    pub fn state(&self) -> LinkState {
        self.status.borrow().state.clone()
    }

    /// A receiver of every change of the state.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }
}

/// What arrives on a connection's subscriptions.
#[derive(Debug)]
pub struct Incoming {
    queue: mpsc::Receiver<Received>,
    dropped: Arc<AtomicU64>,
}

impl Incoming {
    /// The next delivery; `None` after the task ended.
    pub async fn recv(&mut self) -> Option<Received> {
        self.queue.recv().await
    }

    /// Messages dropped because the queue was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// One message received.
#[derive(Debug)]
pub struct Received {
    /// The message. `retain` is set when the sender set it, and on a retained message that the
    /// broker had stored.
    pub publication: Publication,
    /// Acknowledges the delivery; `None` where it needs no acknowledgement.
    pub ack: Option<Ack>,
}

/// Acknowledges one delivery. If it is dropped unsent, the broker delivers again on the next
/// connection.
#[derive(Debug)]
pub struct Ack {
    pkid: u16,
    /// Number of the connection it came on: packet ids are not valid on another.
    connection: u64,
    queue: mpsc::Sender<(u64, u16)>,
}

impl Ack {
    /// Acknowledges the delivery to the broker.
    pub fn send(self) {
        // There is a slot for every outstanding delivery; after the task ended, it has no effect.
        let _ = self.queue.try_send((self.connection, self.pkid));
    }
}
