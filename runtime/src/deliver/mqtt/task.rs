//! The task behind a [`Link`](super::Link): one connection after another, each with a fresh client.
//!
//! The library would keep unacknowledged publications over a reconnect and send them again, or
//! forget them when the broker lost the session, and tell nobody which. So its state lives for one
//! connection only: when that ends, every publication it still held fails with [`LinkError::Down`],
//! and whoever must not lose one sends it again. The *session* is the broker's and is kept: what is
//! sent to our subscriptions while we are away waits there.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rumqttc::Outgoing;
use rumqttc::v5::mqttbytes::v5::{
    ConnAck, ConnectReturnCode, DisconnectReasonCode, Packet, PubAck, PubAckReason, Publish,
    SubAck, SubscribeReasonCode,
};
use rumqttc::v5::mqttbytes::{Error as MqttError, QoS};
use rumqttc::v5::{AsyncClient, ConnectionError, Event, StateError};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, error, info, warn};

use super::wire::{self, CONNECT_TIMEOUT, KEEP_ALIVE};
use super::{Ack, Command, Delivery, LinkError, LinkOptions, LinkState, LinkStatus, Qos, WINDOW};
use crate::environment::backoff::Backoff;

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
/// Longest wait for the last bytes at a clean stop.
const DISCONNECT_TIMEOUT: Duration = Duration::from_millis(500);

type Reply = oneshot::Sender<Result<(), LinkError>>;

/// Runs one connection; see [`Link::open`](super::Link::open).
#[derive(Debug)]
pub struct LinkTask {
    options: LinkOptions,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<LinkStatus>,
    deliveries: mpsc::Sender<Delivery>,
    acks_tx: mpsc::Sender<(u64, u16)>,
    acks: mpsc::Receiver<(u64, u16)>,
    dropped: Arc<AtomicU64>,
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

impl LinkTask {
    pub(super) fn new(
        options: LinkOptions,
        commands: mpsc::Receiver<Command>,
        status: watch::Sender<LinkStatus>,
        deliveries: mpsc::Sender<Delivery>,
        acks_tx: mpsc::Sender<(u64, u16)>,
        acks: mpsc::Receiver<(u64, u16)>,
        dropped: Arc<AtomicU64>,
    ) -> Self {
        LinkTask {
            options,
            commands,
            status,
            deliveries,
            acks_tx,
            acks,
            dropped,
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
            let connections = self.status.borrow().connections;
            let started = Instant::now();
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
                    if self.status.borrow().connections > connections {
                        let steady = started.elapsed() >= STEADY_AFTER;
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
                    let wait = backoff.next_wait(rand::random());
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
                    Some(command) = self.commands.recv() => refuse(command, &why),
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
        let mut connection = Connection {
            client,
            packet_bytes_max: usize::MAX,
            unsent: VecDeque::new(),
            unacked: VecDeque::new(),
            accepted: false,
            up: false,
        };
        let opened = Instant::now();
        let mut patience = CONNECT_TIMEOUT * 2;
        // When the last bytes must be out, once we are told to stop.
        let mut goodbye: Option<Instant> = None;
        loop {
            // The library's poll must not be dropped half-way: a packet on its way out would be
            // lost. So it stays pinned while commands come in, and time is the only thing that ends
            // it early, and the connection with it.
            let mut poll = pin!(timeout(patience, events.poll()));
            let event = loop {
                tokio::select! {
                    event = &mut poll => break event,
                    Some(command) = self.commands.recv(), if connection.has_room() => connection.send(command),
                    Some((came_on, pkid)) = self.acks.recv() => if came_on == self.tried { connection.ack(pkid) },
                    () = shutdown.as_mut(), if goodbye.is_none() => {
                        if !connection.up { return Ended::Stopped; }
                        goodbye = Some(Instant::now() + DISCONNECT_TIMEOUT);
                        // Behind every publication already handed over.
                        let _ = connection.client.try_disconnect();
                    }
                    () = sleep_until(goodbye.unwrap_or(opened)), if goodbye.is_some() => return Ended::Stopped,
                }
            };
            match event {
                // Told to stop, it makes no difference how.
                Err(_) | Ok(Err(_)) if goodbye.is_some() => return Ended::Stopped,
                Err(_) => return Ended::Failed(format!("silent for {patience:.0?}")),
                Ok(Err(ConnectionError::MqttState(StateError::ServerDisconnect {
                    reason_code: DisconnectReasonCode::SessionTakenOver,
                    ..
                }))) => return Ended::TakenOver,
                Ok(Err(ConnectionError::MqttState(StateError::Deserialization(
                    MqttError::InvalidConnectReturnCode(reason),
                )))) if connection.up => {
                    connection.refused(reason);
                    return Ended::Refused(format!(
                        "it refused a publication with reason {reason:#04x}"
                    ));
                }
                Ok(Err(error)) => return Ended::Failed(why(&error, connection.accepted)),
                Ok(Ok(Event::Incoming(Packet::ConnAck(connack)))) => {
                    // A broker that wants none at all says 0.
                    let keep_alive = connack
                        .properties
                        .as_ref()
                        .and_then(|p| p.server_keep_alive)
                        .filter(|secs| *secs > 0);
                    let keep_alive = keep_alive.map(|secs| Duration::from_secs(secs.into()));
                    // Pings make an event every keep-alive at the latest: a poll without any is a
                    // stuck connection.
                    patience = keep_alive.unwrap_or(KEEP_ALIVE) * 2;
                    self.connected(&mut connection, &connack);
                }
                Ok(Ok(Event::Incoming(Packet::SubAck(suback)))) => {
                    self.subscribed(&mut connection, &suback)
                }
                Ok(Ok(Event::Incoming(Packet::Publish(publish)))) => self.deliver(publish),
                Ok(Ok(Event::Incoming(Packet::PubAck(puback)))) => connection.acknowledged(&puback),
                Ok(Ok(Event::Outgoing(Outgoing::Publish(pkid)))) => connection.sent(pkid),
                Ok(Ok(Event::Outgoing(Outgoing::Disconnect))) if goodbye.is_some() => {
                    return Ended::Stopped;
                }
                Ok(Ok(event)) => debug!("{event:?}"),
            }
            if !connection.up && opened.elapsed() > CONNECT_TIMEOUT * 2 {
                return Ended::Failed("the broker did not confirm our subscriptions".into());
            }
        }
    }

    fn connected(&mut self, connection: &mut Connection, connack: &ConnAck) {
        connection.accepted = true;
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
        connection.up = true;
        info!(
            "connected to {}:{}",
            self.options.mqtt.url.host, self.options.mqtt.url.port
        );
        self.status.send_modify(|status| {
            status.state = LinkState::Up;
            status.connections += 1;
        });
    }

    fn deliver(&self, publish: Publish) {
        let waits_for_ack = self.options.manual_acks && publish.qos != QoS::AtMostOnce;
        let ack = waits_for_ack.then(|| Ack {
            pkid: publish.pkid,
            connection: self.tried,
            queue: self.acks_tx.clone(),
        });
        // Never wait here: a slow reader would stop the pings, and with them the connection.
        if let Err(error) = self.deliveries.try_send(Delivery {
            publication: wire::received(publish),
            ack,
        }) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            warn!("dropped a delivery: {error}");
        }
    }

    fn set_state(&self, state: LinkState) {
        self.status.send_modify(|status| status.state = state);
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
    /// The broker's CONNACK was there.
    accepted: bool,
    up: bool,
}

impl Connection {
    fn has_room(&self) -> bool {
        !self.up || self.unsent.len() + self.unacked.len() < WINDOW
    }

    fn send(&mut self, Command { publication, reply }: Command) {
        if !self.up {
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
