//! The task behind a [`Link`](super::Link): one connection after another, each with a fresh client.
//!
//! The library would keep unacknowledged publications over a reconnect and send them again, or
//! forget them when the broker lost the session, without reporting which. So its state lives for
//! one connection only: when that ends, every publication it still held fails with
//! [`LinkError::Down`], and a caller that must not lose one sends it again. The broker keeps the
//! *session*: what is published to our subscriptions while we are away waits there.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, DisconnectReasonCode, Packet, PubAck, PubAckReason, Publish,
    SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as MqttError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, StateError};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tracing::{debug, error, info, warn};

use super::wire::{self, CONNECT_TIMEOUT, KEEP_ALIVE};
use super::{
    Ack, FarSide, LinkError, LinkOptions, LinkState, PublishRequest, Qos, Received, WINDOW,
};
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::random::Random;

/// First and longest wait before a reconnect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Wait after another client took our session over: two boxes with the same client id must not keep
/// disconnecting each other.
const TAKEN_OVER_WAIT: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a success: the next failure starts with a short wait
/// again.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// After this many short-lived connections in a row, a client with the same id is the likely cause.
const SHORT_LIVED_MAX: u32 = 2;
/// MQTT's reason code for a packet above a limit that the broker did not announce, such as
/// mosquitto's `message_size_limit`.
const PACKET_TOO_LARGE: u8 = 0x95;
/// Longest time from connecting to the broker's confirmation of our subscriptions.
const OPENING_MAX: Duration = Duration::from_secs(2 * CONNECT_TIMEOUT.as_secs());
/// Longest wait for the last packets to be sent at a clean stop.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(500);

type Reply = oneshot::Sender<Result<(), LinkError>>;

/// Runs one connection; see [`Link::open`](super::Link::open).
#[derive(Debug)]
pub struct LinkTask {
    options: LinkOptions,
    far_side: FarSide,
    clock: Clock,
    random: Random,
    /// Whether the broker's session is known to hold our subscriptions.
    subscribed: bool,
    /// Connection attempts so far; identifies the current one in acknowledgements.
    attempts: u64,
}

/// How one connection ended.
enum ConnectionEnd {
    Stopped,
    TakenOver,
    /// The broker refused a publication in a way that ends the connection; it is not sent again.
    Refused(String),
    Failed(String),
}

/// State of one connection.
#[derive(Debug, Clone, Copy)]
enum ConnectionPhase {
    /// Until the broker's CONNACK.
    Connecting,
    /// Until the broker confirmed our subscriptions.
    Subscribing { silence_max: Duration },
    /// Publications flow. Pings cause an event at least every keep-alive interval: a longer silence
    /// is a stuck connection.
    Up { silence_max: Duration },
    /// The agent stops: the last packets have to be sent until then.
    Leaving { until: Duration },
}

impl ConnectionPhase {
    /// Whether the broker accepted the connection.
    fn is_accepted(self) -> bool {
        !matches!(self, Self::Connecting)
    }

    /// Whether publications can be sent.
    fn is_up(self) -> bool {
        matches!(self, Self::Up { .. } | Self::Leaving { .. })
    }

    fn leaving_until(self) -> Option<Duration> {
        match self {
            Self::Leaving { until } => Some(until),
            Self::Connecting | Self::Subscribing { .. } | Self::Up { .. } => None,
        }
    }

    /// The longest time without any event before the connection counts as stuck.
    fn silence_max(self) -> Duration {
        match self {
            Self::Subscribing { silence_max } | Self::Up { silence_max } => silence_max,
            Self::Connecting | Self::Leaving { .. } => OPENING_MAX,
        }
    }
}

impl LinkTask {
    pub(super) fn new(
        options: LinkOptions,
        far_side: FarSide,
        clock: Clock,
        random: Random,
    ) -> Self {
        LinkTask {
            options,
            far_side,
            clock,
            random,
            subscribed: false,
            attempts: 0,
        }
    }

    /// Connects, and reconnects, until `shutdown`; then disconnects cleanly, so that the broker
    /// does not publish the last will.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let url = format!(
            "{}:{}",
            self.options.mqtt.url.host, self.options.mqtt.url.port
        );
        // Consecutive connections that came up and soon went down.
        let mut short_lived = 0;
        loop {
            let connections = self.far_side.status.borrow().connections;
            let started = self.clock.now();
            let (why, wait) = match self.run_once(shutdown.as_mut()).await {
                ConnectionEnd::Stopped => return self.set_state(LinkState::Down("stopped".into())),
                ConnectionEnd::TakenOver => {
                    error!(
                        client_id = self.options.client_id,
                        "another client connected to {url} with our client id; give each box its own [node] id"
                    );
                    (
                        "another client connected with our client id".into(),
                        TAKEN_OVER_WAIT,
                    )
                }
                ConnectionEnd::Refused(why) => {
                    warn!("broker {url}: {why}; reconnecting");
                    (why, RECONNECT.0)
                }
                ConnectionEnd::Failed(mut why) => {
                    if self.far_side.status.borrow().connections > connections {
                        let steady = self.clock.now() - started >= STEADY_AFTER;
                        short_lived = if steady { 0 } else { short_lived + 1 };
                        if steady {
                            backoff.reset();
                        }
                    }
                    // Not every broker reports that another client took over the session.
                    if short_lived >= SHORT_LIVED_MAX {
                        why = format!(
                            "{why}, {short_lived} times in a row; check whether another client connects as {}",
                            self.options.client_id
                        );
                    }
                    let wait = backoff.next_wait(self.random.unit());
                    warn!("broker {url}: {why}; next attempt in {wait:.1?}");
                    (why, wait)
                }
            };
            self.set_state(LinkState::Down(why.clone()));
            let mut wait = pin!(sleep(wait));
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    () = shutdown.as_mut() => return,
                    Some(request) = self.far_side.requests.recv() => refuse(request, &why),
                }
            }
        }
    }

    /// Runs one connection, from the connection attempt to its end.
    async fn run_once(
        &mut self,
        mut shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> ConnectionEnd {
        let options = match wire::connect_options(&self.options) {
            Ok(options) => options,
            Err(error) => return ConnectionEnd::Failed(error.to_string()),
        };
        self.attempts += 1;
        let room = WINDOW + usize::from(self.options.receive_max) + 8;
        let (client, mut events) = AsyncClient::new(options, room);
        let mut connection = Connection::new(client);
        let clock = self.clock.clone();
        let opened = clock.now();
        loop {
            let silence_max = connection.phase.silence_max();
            // Dropping the library's poll half-way would lose a packet that is being written. So
            // it stays pinned while requests come in; only the timeout ends it early, and the
            // connection with it.
            let mut poll = pin!(timeout(silence_max, events.poll()));
            let event = loop {
                let leaving = connection.phase.leaving_until();
                tokio::select! {
                    event = &mut poll => break event,
                    Some(request) = self.far_side.requests.recv(), if connection.has_room() => {
                        connection.send(request);
                    }
                    Some((attempt, pkid)) = self.far_side.acks.recv() => {
                        if attempt == self.attempts { connection.ack(pkid) }
                    }
                    () = shutdown.as_mut(), if leaving.is_none() => {
                        if !connection.phase.is_up() { return ConnectionEnd::Stopped; }
                        connection.leave(clock.now() + DISCONNECT_TIMEOUT);
                    }
                    () = clock.sleep_until(leaving.unwrap_or_default()), if leaving.is_some() => {
                        return ConnectionEnd::Stopped;
                    }
                }
            };
            let leaving = connection.phase.leaving_until().is_some();
            match event {
                // While leaving, it makes no difference how the connection ends.
                Err(_) | Ok(Err(_)) if leaving => return ConnectionEnd::Stopped,
                Err(_) => {
                    return ConnectionEnd::Failed(format!(
                        "no packet from the broker for {silence_max:.0?}"
                    ));
                }
                Ok(Err(error)) => return connection.failed(&error),
                Ok(Ok(Event::Incoming(Packet::ConnAck(connack)))) => {
                    self.connected(&mut connection, &connack);
                }
                Ok(Ok(Event::Incoming(Packet::SubAck(suback)))) => {
                    self.subscribed(&mut connection, &suback);
                }
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => self.deliver(publish),
                Ok(Ok(Event::Incoming(Packet::PubAck(puback)))) => {
                    connection.acknowledged(&puback);
                }
                Ok(Ok(Event::Outgoing(Outgoing::Publish(pkid)))) => connection.sent(pkid),
                Ok(Ok(Event::Outgoing(Outgoing::Disconnect))) if leaving => {
                    return ConnectionEnd::Stopped;
                }
                Ok(Ok(event)) => debug!("{event:?}"),
            }
            if !connection.phase.is_up() && clock.now() - opened > OPENING_MAX {
                return ConnectionEnd::Failed(format!(
                    "the broker did not confirm our subscriptions within {OPENING_MAX:.0?}"
                ));
            }
        }
    }

    fn connected(&mut self, connection: &mut Connection, connack: &ConnAck) {
        // 0 from the broker turns keep-alive off; we keep ours.
        let keep_alive = connack
            .properties
            .as_ref()
            .and_then(|properties| properties.server_keep_alive)
            .filter(|secs| *secs > 0)
            .map_or(KEEP_ALIVE, |secs| Duration::from_secs(secs.into()));
        connection.phase = ConnectionPhase::Subscribing {
            silence_max: keep_alive * 2,
        };
        if let Some(limit) = connack.properties.as_ref().and_then(|p| p.max_packet_size) {
            connection.packet_bytes_max = limit as usize;
        }
        self.subscribed &= connack.session_present;
        if self.subscribed || self.options.subscriptions.is_empty() {
            return self.up(connection);
        }
        let filters = self
            .options
            .subscriptions
            .iter()
            .map(|(path, qos)| wire::filter(path, *qos));
        if connection.client.try_subscribe_many(filters).is_err() {
            // The filters are our own, so one that the library refuses is a bug of ours.
            error!(
                "subscriptions not made: {:?} contain an invalid topic filter",
                self.options.subscriptions
            );
            self.up(connection);
        }
    }

    fn subscribed(&mut self, connection: &mut Connection, suback: &SubAck) {
        let refused = |code: &SubscribeReasonCode| !matches!(code, SubscribeReasonCode::Success(_));
        for ((path, _), code) in self
            .options
            .subscriptions
            .iter()
            .zip(&suback.return_codes)
            .filter(|(_, code)| refused(code))
        {
            error!(
                "the broker refused our subscription to {path}: {code:?}; check the broker's access rules"
            );
        }
        // A refused subscription is requested again on the next connection: the access rules may
        // have been corrected by then.
        self.subscribed = !suback.return_codes.iter().any(refused);
        self.up(connection);
    }

    fn up(&mut self, connection: &mut Connection) {
        connection.phase = ConnectionPhase::Up {
            silence_max: connection.phase.silence_max(),
        };
        info!(
            "connected to {}:{}",
            self.options.mqtt.url.host, self.options.mqtt.url.port
        );
        self.far_side.status.send_modify(|status| {
            status.state = LinkState::Up;
            status.connections += 1;
        });
    }

    fn deliver(&self, publish: Publish) {
        let waits_for_ack = self.options.manual_acks && publish.qos != QoS::AtMostOnce;
        let ack = waits_for_ack.then(|| Ack {
            pkid: publish.pkid,
            connection: self.attempts,
            queue: self.far_side.acks_sender.clone(),
        });
        // Never wait here: a slow reader would stop the pings, and the broker would disconnect us.
        if let Err(error) = self.far_side.deliveries.try_send(Received {
            publication: wire::received(publish),
            ack,
        }) {
            self.far_side.dropped.fetch_add(1, Ordering::Relaxed);
            warn!("dropped a delivery, which the reader did not take in time: {error}");
        }
    }

    fn set_state(&self, state: LinkState) {
        self.far_side
            .status
            .send_modify(|status| status.state = state);
    }
}

/// What ended a connection, with help where the cause is known.
fn why(error: &ConnectionError, accepted: bool) -> String {
    let help = match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => "; check username-file and password-file against the broker's accounts",
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::UnsupportedProtocolVersion
            | ConnectReturnCode::RefusedProtocolVersion,
        ) => "; configure a broker that supports MQTT 5",
        // Brokers without MQTT 5 do this, and so does another kind of server on a wrong port.
        ConnectionError::MqttState(_) if !accepted => {
            " before the connection was accepted; check that it is a broker that supports MQTT 5"
        }
        _ => "",
    };
    format!("{error}{help}")
}

fn refuse(request: PublishRequest, why: &str) {
    // The receiver is gone where the caller gave up.
    let _ = request.reply.send(Err(LinkError::Down(why.to_owned())));
}

/// State of one connection. Dropping it fails every publication that still waits for its outcome.
struct Connection {
    client: AsyncClient,
    packet_bytes_max: usize,
    /// Handed to the client, which writes them in the same order.
    unsent: VecDeque<(Qos, String, Reply)>,
    /// Written with QoS 1, with their packet ids. A broker acknowledges them in the same order.
    unacked: VecDeque<(u16, String, Reply)>,
    phase: ConnectionPhase,
}

impl Connection {
    fn new(client: AsyncClient) -> Self {
        Connection {
            client,
            packet_bytes_max: usize::MAX,
            unsent: VecDeque::new(),
            unacked: VecDeque::new(),
            phase: ConnectionPhase::Connecting,
        }
    }

    /// Disconnects after every publication already handed over, so that the broker does not publish
    /// the last will.
    fn leave(&mut self, until: Duration) {
        self.phase = ConnectionPhase::Leaving { until };
        // If the client's queue is full, the time limit ends the connection.
        let _ = self.client.try_disconnect();
    }

    /// Why the library ended the connection.
    fn failed(&mut self, error: &ConnectionError) -> ConnectionEnd {
        match error {
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            }) => ConnectionEnd::TakenOver,
            ConnectionError::MqttState(StateError::Deserialization(
                MqttError::InvalidConnectReturnCode(reason),
            )) if self.phase.is_up() => {
                self.refused(*reason);
                ConnectionEnd::Refused(format!(
                    "the broker refused a publication with reason code {reason:#04x}"
                ))
            }
            error => ConnectionEnd::Failed(why(error, self.phase.is_accepted())),
        }
    }

    fn has_room(&self) -> bool {
        !self.phase.is_up() || self.unsent.len() + self.unacked.len() < WINDOW
    }

    fn send(&mut self, PublishRequest { publication, reply }: PublishRequest) {
        if !self.phase.is_up() {
            return refuse(PublishRequest { publication, reply }, "not connected yet");
        }
        let bytes = wire::packet_bytes(&publication);
        if bytes > self.packet_bytes_max {
            let _ = reply.send(Err(LinkError::TooLarge {
                topic: publication.topic,
                bytes,
                limit: self.packet_bytes_max,
            }));
            return;
        }
        let properties = wire::properties(&publication);
        let topic = publication.topic.clone();
        let queued = topic.len() <= usize::from(u16::MAX)
            && !topic.is_empty()
            && self
                .client
                .try_publish_with_properties(
                    publication.topic,
                    wire::qos(publication.qos),
                    publication.retain,
                    publication.payload,
                    properties,
                )
                .is_ok();
        if queued {
            self.unsent.push_back((publication.qos, topic, reply));
        } else {
            // The client has room for a whole window, so it refused the topic.
            let _ = reply.send(Err(LinkError::Topic { topic }));
        }
    }

    fn sent(&mut self, pkid: u16) {
        match self.unsent.pop_front() {
            Some((Qos::AtMostOnce, _, reply)) => _ = reply.send(Ok(())),
            Some((Qos::AtLeastOnce, topic, reply)) => self.unacked.push_back((pkid, topic, reply)),
            None => warn!("the MQTT client wrote publication {pkid}, which was not handed to it"),
        }
    }

    fn acknowledged(&mut self, puback: &PubAck) {
        let index = self
            .unacked
            .iter()
            .position(|(pkid, ..)| *pkid == puback.pkid);
        let Some((_, topic, reply)) = index.and_then(|index| self.unacked.remove(index)) else {
            return warn!("PUBACK {} matches no publication in flight", puback.pkid);
        };
        let outcome = match puback.reason {
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => Err(LinkError::Refused {
                topic,
                reason: format!("{reason:?}"),
            }),
        };
        let _ = reply.send(outcome);
    }

    /// Handles a PUBACK with a reason code that the library does not know, and for which it ends
    /// the connection. The PUBACK is for the oldest publication: sent again, that one would end the
    /// next connection too, and block everything behind it.
    fn refused(&mut self, reason: u8) {
        if let Some((_, topic, reply)) = self.unacked.pop_front() {
            let reason = if reason == PACKET_TOO_LARGE {
                "PacketTooLarge".into()
            } else {
                format!("reason code {reason:#04x}")
            };
            let _ = reply.send(Err(LinkError::Refused { topic, reason }));
        }
    }

    fn ack(&self, pkid: u16) {
        let publish = Publish {
            pkid,
            qos: QoS::AtLeastOnce,
            ..Publish::default()
        };
        if self.client.try_ack(&publish).is_err() {
            warn!(
                "delivery {pkid} not acknowledged, the client's queue is full; the broker will deliver it again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_errors_come_with_help() {
        let refused = |code| why(&ConnectionError::ConnectionRefused(code), false);
        let closed = |accepted| {
            why(
                &ConnectionError::MqttState(StateError::ConnectionAborted),
                accepted,
            )
        };
        let errors = [
            refused(ConnectReturnCode::NotAuthorized),
            refused(ConnectReturnCode::UnsupportedProtocolVersion),
            closed(false),
            closed(true),
        ];
        insta::assert_snapshot!(errors.join("\n"), @"
        Connection refused, return code: `NotAuthorized`; check username-file and password-file against the broker's accounts
        Connection refused, return code: `UnsupportedProtocolVersion`; configure a broker that supports MQTT 5
        Mqtt state: Connection closed by peer abruptly before the connection was accepted; check that it is a broker that supports MQTT 5
        Mqtt state: Connection closed by peer abruptly
        ");
    }
}
