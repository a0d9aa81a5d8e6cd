//! One MQTT v5 connection kept alive: connects, subscribes, sends, receives, reconnects with
//! backoff.
//!
//! The only folder that names `rumqttc`. A [`Link`] makes one promise: [`Link::publish`] resolves
//! with our own matched PUBACK, or with [`LinkError::Down`] when the connection ended before it. It
//! stores nothing: whoever must not lose a publication keeps it until then (see `outbox`).

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

use crate::environment::Environment;
pub use task::LinkTask;

/// Publications handed to the connection and not acknowledged yet, at most; the next one waits in
/// [`Link::publish`].
pub(crate) const WINDOW: usize = 64;

/// Deliveries that may wait to be taken, at least.
const DELIVERIES_MIN: usize = 64;

/// How one connection is made and kept.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// The broker; user, password and CA files are read at every connect, so they may be rotated.
    pub mqtt: Mqtt,
    /// Names the session at the broker; two connections with one id end each other.
    pub client_id: String,
    /// How long the broker keeps session and subscriptions while we are away.
    pub session_expiry: Duration,
    /// Topic filters to receive.
    pub subscriptions: Vec<(String, Qos)>,
    /// What the broker publishes for us when we vanish.
    pub last_will: Option<LastWill>,
    /// QoS 1 deliveries that may wait for our acknowledgement.
    pub receive_max: u16,
    /// Largest packet taken from the broker, in bytes.
    pub packet_bytes_max: u32,
    /// Deliveries are acknowledged by [`Ack::send`] instead of on arrival.
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

/// What the broker publishes for a client that vanished.
#[derive(Debug, Clone)]
pub struct LastWill {
    /// Sent in our name.
    pub publication: Publication,
    /// How long the broker waits for us to come back first, so that a short outage does not flap.
    pub delay: Duration,
}

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
    /// The broker answered, and did not take it.
    #[error("the broker refused a publication to {topic}: {reason}; check its access rules")]
    Refused {
        /// Its topic.
        topic: String,
        /// The PUBACK's reason code.
        reason: String,
    },
    /// A topic nobody can publish to: empty, with wildcards, or too long.
    #[error("{topic:?} is no topic to publish to: expected 1 to 65535 bytes without + or #")]
    Topic {
        /// As given.
        topic: String,
    },
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

/// Why a connection cannot even be tried.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file named by the configuration.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// What a watcher of the link sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkStatus {
    /// Now.
    pub state: LinkState,
    /// How often it came up since the start. A change tells of a reconnect even to a watcher that
    /// missed the time between.
    pub connections: u64,
}

/// A handle on one connection; cheap to clone.
#[derive(Debug, Clone)]
pub struct Link {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<LinkStatus>,
}

/// A publication on its way to the connection.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) publication: Publication,
    pub(crate) reply: oneshot::Sender<Result<(), LinkError>>,
}

/// Connects to brokers.
pub trait Brokers: Send + Sync {
    /// Makes a connection that is not dialled yet.
    fn connect(&self, options: LinkOptions, environment: &Environment) -> Connection;
}

/// A connection that is made when [`Connection::run`] is called.
pub struct Connection {
    /// Sends publications.
    pub link: Link,
    /// What arrives.
    pub deliveries: Deliveries,
    /// Keeps the connection, until the future it is given resolves.
    pub run: Box<dyn FnOnce(BoxFuture<'static, ()>) -> BoxFuture<'static, ()> + Send>,
}

/// Connects over TCP, TLS and WebSocket.
#[derive(Debug, Clone, Copy, Default)]
pub struct MqttBrokers;

impl Brokers for MqttBrokers {
    fn connect(&self, options: LinkOptions, environment: &Environment) -> Connection {
        let (link, task, deliveries) = Link::open(options, environment);
        Connection {
            link,
            deliveries,
            run: Box::new(|shutdown| task.run(shutdown).boxed()),
        }
    }
}

/// The far side of a [`Link`]: whatever stands for the broker.
#[derive(Debug)]
pub(crate) struct FarSide {
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) status: watch::Sender<LinkStatus>,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    acks_sender: mpsc::Sender<(u64, u16)>,
    acks: mpsc::Receiver<(u64, u16)>,
    dropped: Arc<AtomicU64>,
}

impl Link {
    /// Makes a connection's three ends: the handle, the task that must be run, and what arrives.
    pub fn open(options: LinkOptions, environment: &Environment) -> (Link, LinkTask, Deliveries) {
        let (link, far_side, deliveries) = Link::ends(options.receive_max);
        let (clock, random) = (environment.clock.clone(), environment.random.clone());
        let task = LinkTask::new(options, far_side, clock, random);
        (link, task, deliveries)
    }

    pub(crate) fn ends(receive_max: u16) -> (Link, FarSide, Deliveries) {
        let (commands_sender, commands) = mpsc::channel(WINDOW);
        let (status, status_seen) = watch::channel(LinkStatus {
            state: LinkState::Down("not connected yet".into()),
            connections: 0,
        });
        // As many as the broker may send without an acknowledgement, and more, because not every
        // broker keeps to Receive Maximum: with manual acks a delivery dropped here would be
        // acknowledged out of order by those behind it.
        let room = usize::from(receive_max).max(DELIVERIES_MIN);
        let (deliveries, queue) = mpsc::channel(room);
        let (acks_sender, acks) = mpsc::channel(room);
        let dropped = Arc::new(AtomicU64::new(0));
        let link = Link {
            commands: commands_sender,
            status: status_seen,
        };
        let far_side = FarSide {
            commands,
            status,
            deliveries,
            acks_sender,
            acks,
            dropped: Arc::clone(&dropped),
        };
        (link, far_side, Deliveries { queue, dropped })
    }

    /// Sends one publication; resolves with its PUBACK (QoS 1) or when it is written (QoS 0).
    ///
    /// # Errors
    /// When there is no connection or it ends first, or when the broker does not take the
    /// publication.
    pub async fn publish(&self, publication: Publication) -> Result<(), LinkError> {
        self.send(publication).await?.await
    }

    /// Hands one publication to the connection, waiting for room; what it gives resolves as
    /// [`Link::publish`] does.
    ///
    /// Publications leave in the order in which this returns.
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
        self.commands
            .send(Command { publication, reply })
            .await
            .map_err(gone)?;
        Ok(async move { outcome.await.map_err(gone)? })
    }

    /// Whether there is a broker session now.
    pub fn state(&self) -> LinkState {
        self.status.borrow().state.clone()
    }

    /// Follows the state.
    pub fn status(&self) -> watch::Receiver<LinkStatus> {
        self.status.clone()
    }
}

/// What arrives on a connection's subscriptions.
#[derive(Debug)]
pub struct Deliveries {
    queue: mpsc::Receiver<Delivery>,
    dropped: Arc<AtomicU64>,
}

impl Deliveries {
    /// The next delivery; `None` after the task ended.
    pub async fn recv(&mut self) -> Option<Delivery> {
        self.queue.recv().await
    }

    /// Deliveries dropped because nobody took them in time.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// One message received.
#[derive(Debug)]
pub struct Delivery {
    /// What came. `retain` is set when the sender set it, and on what the broker had kept.
    pub publication: Publication,
    /// Acknowledges it; `None` where nothing waits for that.
    pub ack: Option<Ack>,
}

/// Acknowledges one delivery. Dropped unsent, the broker delivers again on the next connection.
#[derive(Debug)]
pub struct Ack {
    pkid: u16,
    /// Number of the connection it came on: packet ids mean nothing on another.
    connection: u64,
    queue: mpsc::Sender<(u64, u16)>,
}

impl Ack {
    /// Tells the broker that the delivery is done with.
    pub fn send(self) {
        // As many slots as deliveries can be outstanding; without a task there is nobody to tell.
        let _ = self.queue.try_send((self.connection, self.pkid));
    }
}
