//! The task behind a [`Link`](super::Link): one connection after another, each with a fresh client.
//!
//! The library would keep unacknowledged publications over a reconnect and send them again, or
//! forget them when the broker lost the session, and tell nobody which. So its state lives for one
//! connection only: when that ends, every publication it still held fails with [`LinkError::Down`],
//! and whoever must not lose one sends it again. The *session* is the broker's and is kept: what is
//! sent to our subscriptions while we are away waits there.

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
use super::{Ack, Command, Delivery, FarSide, LinkError, LinkOptions, LinkState, Qos, WINDOW};
use crate::environment::backoff::Backoff;
use crate::environment::clock::Clock;
use crate::environment::random::Random;

/// First and longest wait before a reconnect.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// Wait after another client took our session over: two boxes with one id must not chase each other
/// off the broker.
const TAKEN_OVER_WAIT: Duration = Duration::from_secs(60);
/// A connection that lasted this long was a success: the next failure starts with a short wait
/// again.
const STEADY_AFTER: Duration = Duration::from_secs(10);
/// From so many connections in a row that did not last, the reason is likely our own id.
const SHORT_LIVED_MAX: u32 = 2;
/// MQTT's reason for a packet above a limit that the broker did not announce: mosquitto's
/// `message_size_limit`, for one.
const PACKET_TOO_LARGE: u8 = 0x95;
/// Longest time from dialling to subscriptions that the broker confirmed.
const OPENING_MAX: Duration = Duration::from_secs(2 * CONNECT_TIMEOUT.as_secs());
/// Longest wait for the last bytes at a clean stop.
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
    /// Connections tried so far; numbers the current one in acknowledgements.
    tried: u64,
}

/// How one connection ended.
enum Ended {
    Stopped,
    TakenOver,
    /// A publication was refused in a way that ends the connection; it will not be sent again.
    Refused(String),
    Failed(String),
}

/// How far one connection is.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Until the broker's CONNACK.
    Connecting,
    /// Until the broker confirmed our subscriptions.
    Subscribing { silence_max: Duration },
    /// Publications flow. Pings make an event every keep-alive at the latest: more silence than
    /// that is a stuck connection.
    Up { silence_max: Duration },
    /// The agent stops: our last bytes have to be out by then.
    Leaving { until: Duration },
}

impl Phase {
    /// The broker accepted us.
    fn is_accepted(self) -> bool {
        !matches!(self, Phase::Connecting)
    }

    /// Publications can be sent.
    fn is_up(self) -> bool {
        matches!(self, Phase::Up { .. } | Phase::Leaving { .. })
    }

    fn leaving_until(self) -> Option<Duration> {
        match self {
            Phase::Leaving { until } => Some(until),
            Phase::Connecting | Phase::Subscribing { .. } | Phase::Up { .. } => None,
        }
    }

    /// How long the connection may be without any event.
    fn silence_max(self) -> Duration {
        match self {
            Phase::Subscribing { silence_max } | Phase::Up { silence_max } => silence_max,
            Phase::Connecting | Phase::Leaving { .. } => OPENING_MAX,
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
            tried: 0,
        }
    }

    /// Connects, and connects again, until `shutdown`; then says goodbye, so that the last will is
    /// not sent.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
        let url = format!(
            "{}:{}",
            self.options.mqtt.url.host, self.options.mqtt.url.port
        );
        // Connections in a row that came up and soon went down.
        let mut short_lived = 0;
        loop {
            let connections = self.far_side.status.borrow().connections;
            let started = self.clock.now();
            let (why, wait) = match self.run_once(shutdown.as_mut()).await {
                Ended::Stopped => return self.set_state(LinkState::Down("stopped".into())),
                Ended::TakenOver => {
                    error!(
                        client_id = self.options.client_id,
                        "another client connected to {url} with our id: give each box its own [node] id"
                    );
                    (
                        "another client connected with our id".into(),
                        TAKEN_OVER_WAIT,
                    )
                }
                Ended::Refused(why) => {
                    warn!("broker {url}: {why}; connecting again");
                    (why, RECONNECT.0)
                }
                Ended::Failed(mut why) => {
                    if self.far_side.status.borrow().connections > connections {
                        let steady = self.clock.now() - started >= STEADY_AFTER;
                        short_lived = if steady { 0 } else { short_lived + 1 };
                        if steady {
                            backoff.reset();
                        }
                    }
                    // Not every broker tells a client that another one took its place.
                    if short_lived >= SHORT_LIVED_MAX {
                        why = format!(
                            "{why}, {short_lived} times in a row; does another client connect as {}?",
                            self.options.client_id
                        );
                    }
                    let wait = backoff.next_wait(self.random.unit());
                    warn!("broker {url}: {why}; next try in {wait:.1?}");
                    (why, wait)
                }
            };
            self.set_state(LinkState::Down(why.clone()));
            let mut wait = pin!(sleep(wait));
            loop {
                tokio::select! {
                    () = &mut wait => break,
                    () = shutdown.as_mut() => return,
                    Some(command) = self.far_side.commands.recv() => refuse(command, &why),
                }
            }
        }
    }

    /// One connection, from dialling to its end.
    async fn run_once(&mut self, mut shutdown: Pin<&mut impl Future<Output = ()>>) -> Ended {
        let options = match wire::connect_options(&self.options) {
            Ok(options) => options,
            Err(error) => return Ended::Failed(error.to_string()),
        };
        self.tried += 1;
        let room = WINDOW + usize::from(self.options.receive_max) + 8;
        let (client, mut events) = AsyncClient::new(options, room);
        let mut connection = Connection::new(client);
        let clock = self.clock.clone();
        let opened = clock.now();
        loop {
            let silence_max = connection.phase.silence_max();
            // The library's poll must not be dropped half-way: a packet on its way out would be
            // lost. So it stays pinned while commands come in, and time is the only thing that
            // ends it early, and the connection with it.
            let mut poll = pin!(timeout(silence_max, events.poll()));
            let event = loop {
                let leaving = connection.phase.leaving_until();
                tokio::select! {
                    event = &mut poll => break event,
                    Some(command) = self.far_side.commands.recv(), if connection.has_room() => {
                        connection.send(command);
                    }
                    Some((came_on, pkid)) = self.far_side.acks.recv() => {
                        if came_on == self.tried { connection.ack(pkid) }
                    }
                    () = shutdown.as_mut(), if leaving.is_none() => {
                        if !connection.phase.is_up() { return Ended::Stopped; }
                        connection.leave(clock.now() + DISCONNECT_TIMEOUT);
                    }
                    () = clock.sleep_until(leaving.unwrap_or_default()), if leaving.is_some() => {
                        return Ended::Stopped;
                    }
                }
            };
            let leaving = connection.phase.leaving_until().is_some();
            match event {
                // When we leave, it makes no difference how the connection ends.
                Err(_) | Ok(Err(_)) if leaving => return Ended::Stopped,
                Err(_) => return Ended::Failed(format!("silent for {silence_max:.0?}")),
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
                Ok(Ok(Event::Outgoing(Outgoing::Disconnect))) if leaving => return Ended::Stopped,
                Ok(Ok(event)) => debug!("{event:?}"),
            }
            if !connection.phase.is_up() && clock.now() - opened > OPENING_MAX {
                return Ended::Failed("the broker did not confirm our subscriptions".into());
            }
        }
    }

    fn connected(&mut self, connection: &mut Connection, connack: &ConnAck) {
        // A broker that wants no keep-alive at all says 0.
        let keep_alive = connack
            .properties
            .as_ref()
            .and_then(|properties| properties.server_keep_alive)
            .filter(|secs| *secs > 0)
            .map_or(KEEP_ALIVE, |secs| Duration::from_secs(secs.into()));
        connection.phase = Phase::Subscribing {
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
            // Caught when opening would be nicer; a filter the library refuses is a bug of ours, so
            // say it loudly.
            error!(
                "subscriptions {:?} hold an invalid topic filter",
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
                "the broker refused our subscription to {path}: {code:?}; check its access rules"
            );
        }
        // What was refused is asked for again on the next connection: the rules may have been
        // mended by then.
        self.subscribed = !suback.return_codes.iter().any(refused);
        self.up(connection);
    }

    fn up(&mut self, connection: &mut Connection) {
        connection.phase = Phase::Up {
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
            connection: self.tried,
            queue: self.far_side.acks_sender.clone(),
        });
        // Never wait here: a slow reader would stop the pings, and with them the connection.
        if let Err(error) = self.far_side.deliveries.try_send(Delivery {
            publication: wire::received(publish),
            ack,
        }) {
            self.far_side.dropped.fetch_add(1, Ordering::Relaxed);
            warn!("dropped a delivery: {error}");
        }
    }

    fn set_state(&self, state: LinkState) {
        self.far_side
            .status
            .send_modify(|status| status.state = state);
    }
}

/// What ended a connection, with the cure where it is known.
fn why(error: &ConnectionError, accepted: bool) -> String {
    let cure = match error {
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized,
        ) => "; see username-file and password-file, and the broker's own accounts",
        ConnectionError::ConnectionRefused(
            ConnectReturnCode::UnsupportedProtocolVersion
            | ConnectReturnCode::RefusedProtocolVersion,
        ) => "; the broker has to speak MQTT 5",
        // So do brokers that know older versions alone, and whatever else listens on a wrong port.
        ConnectionError::MqttState(_) if !accepted => {
            " before it accepted us; is it a broker that speaks MQTT 5?"
        }
        _ => "",
    };
    format!("{error}{cure}")
}

fn refuse(command: Command, why: &str) {
    // A caller that gave up is not waiting for its reply.
    let _ = command.reply.send(Err(LinkError::Down(why.to_owned())));
}

/// What one connection holds; dropped with it, so that every reply still waiting fails.
struct Connection {
    client: AsyncClient,
    packet_bytes_max: usize,
    /// Handed to the client, in order; it writes them in the same order.
    unsent: VecDeque<(Qos, String, Reply)>,
    /// Written with QoS 1, in order, by packet id. A broker acknowledges in the same order.
    unacked: VecDeque<(u16, String, Reply)>,
    phase: Phase,
}

impl Connection {
    fn new(client: AsyncClient) -> Self {
        Connection {
            client,
            packet_bytes_max: usize::MAX,
            unsent: VecDeque::new(),
            unacked: VecDeque::new(),
            phase: Phase::Connecting,
        }
    }

    /// Says goodbye behind every publication already handed over, so that the last will is not
    /// sent.
    fn leave(&mut self, until: Duration) {
        self.phase = Phase::Leaving { until };
        // Without room for it the time limit ends the connection.
        let _ = self.client.try_disconnect();
    }

    /// The library ended the connection.
    fn failed(&mut self, error: &ConnectionError) -> Ended {
        match error {
            ConnectionError::MqttState(StateError::ServerDisconnect {
                reason_code: DisconnectReasonCode::SessionTakenOver,
                ..
            }) => Ended::TakenOver,
            ConnectionError::MqttState(StateError::Deserialization(
                MqttError::InvalidConnectReturnCode(reason),
            )) if self.phase.is_up() => {
                self.refused(*reason);
                Ended::Refused(format!(
                    "it refused a publication with reason {reason:#04x}"
                ))
            }
            error => Ended::Failed(why(error, self.phase.is_accepted())),
        }
    }

    fn has_room(&self) -> bool {
        !self.phase.is_up() || self.unsent.len() + self.unacked.len() < WINDOW
    }

    fn send(&mut self, Command { publication, reply }: Command) {
        if !self.phase.is_up() {
            return refuse(Command { publication, reply }, "not connected yet");
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
            // The window leaves the client room for each, so a refusal is about the topic.
            let _ = reply.send(Err(LinkError::Topic { topic }));
        }
    }

    fn sent(&mut self, pkid: u16) {
        match self.unsent.pop_front() {
            Some((Qos::AtMostOnce, _, reply)) => _ = reply.send(Ok(())),
            Some((Qos::AtLeastOnce, topic, reply)) => self.unacked.push_back((pkid, topic, reply)),
            None => warn!("the client wrote a publication {pkid} that was not handed to it"),
        }
    }

    fn acknowledged(&mut self, puback: &PubAck) {
        let place = self
            .unacked
            .iter()
            .position(|(pkid, ..)| *pkid == puback.pkid);
        let Some((_, topic, reply)) = place.and_then(|place| self.unacked.remove(place)) else {
            return warn!("PUBACK {} matches no publication", puback.pkid);
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

    /// A PUBACK whose reason the library does not know, for which it ends the connection. It is
    /// about the oldest publication: sent again, that one would end the next connection too, and
    /// nothing behind it would ever arrive.
    fn refused(&mut self, reason: u8) {
        if let Some((_, topic, reply)) = self.unacked.pop_front() {
            let reason = if reason == PACKET_TOO_LARGE {
                "PacketTooLarge".into()
            } else {
                format!("reason {reason:#04x}")
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
            warn!("no room to acknowledge delivery {pkid}; the broker will deliver it again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_connection_comes_with_its_cure() {
        let refused = |code| why(&ConnectionError::ConnectionRefused(code), false);
        let closed = |accepted| {
            why(
                &ConnectionError::MqttState(StateError::ConnectionAborted),
                accepted,
            )
        };
        let told = [
            refused(ConnectReturnCode::NotAuthorized),
            refused(ConnectReturnCode::UnsupportedProtocolVersion),
            closed(false),
            closed(true),
        ];
        insta::assert_snapshot!(told.join("\n"), @"
        Connection refused, return code: `NotAuthorized`; see username-file and password-file, and the broker's own accounts
        Connection refused, return code: `UnsupportedProtocolVersion`; the broker has to speak MQTT 5
        Mqtt state: Connection closed by peer abruptly before it accepted us; is it a broker that speaks MQTT 5?
        Mqtt state: Connection closed by peer abruptly
        ");
    }
}
