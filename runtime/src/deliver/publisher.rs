//! Drains the outbox and the retained states through the link.
//!
//! Two lanes: *events*, each of which must arrive (see `outbox`), and *standing* publications, of
//! which only the latest per topic matters: states, attributes, status, snapshots. Standing ones
//! are told again on every connection, since a broker that lost its store has forgotten them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, interval, sleep_until};
use tracing::{error, info, warn};

use crate::deliver::event::{Draft, Origin, Step, epoch_hex};
use crate::deliver::mqtt::{Link, LinkError, LinkState, LinkStatus, Publication, Qos};
use crate::deliver::outbox::{Gap, Next, Outbox};
use crate::deliver::topics::Topics;
use crate::environment::clock::Clock;
use crate::metrics::Metrics;
use crate::observe::{Record, Watcher};

/// Publications on their way at one time.
const IN_FLIGHT_MAX: usize = 32;
/// How often `health` is told.
const HEALTH_PERIOD: Duration = Duration::from_secs(30);
/// After this an event nobody fetched is forgotten by the broker.
const EVENT_EXPIRY: Duration = Duration::from_secs(7 * 24 * 3600);
const GAP_EXPIRY: Duration = Duration::from_secs(30 * 24 * 3600);
const SNAPSHOT_EXPIRY: Duration = Duration::from_secs(3600);
const HEALTH_EXPIRY: Duration = Duration::from_secs(120);
const JSON: &str = "application/json";

/// What the rest of the agent hands over for publishing.
#[derive(Debug)]
pub enum Post {
    /// One step of an event.
    Event {
        /// Its camera.
        cam: String,
        /// The step.
        draft: Box<Draft>,
    },
    /// A retained publication, told again on every connection.
    Standing {
        /// Its topic.
        topic: String,
        /// Its content.
        payload: Bytes,
        /// What the content is.
        kind: Kind,
    },
}

/// What a standing publication is, and so how it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One word: `ON`.
    Word,
    /// An object.
    Json,
    /// An object that is soon old.
    Health,
    /// A JPEG, told once: nobody needs last hour's picture told again.
    Snapshot,
}

/// The publishing side of the agent.
pub struct Publisher {
    node: String,
    topics: Topics,
    clock: Arc<Clock>,
    metrics: Arc<Metrics>,
    watcher: Arc<dyn Watcher>,
    outbox: Outbox,
    standing: Standing,
    link: Link,
    in_flight: FuturesUnordered<BoxFuture<'static, (Sent, Result<(), LinkError>)>>,
    /// The connection that `in_flight` is on; 0 for none.
    connection: u64,
    /// No more posts will come.
    draining: bool,
}

/// What was sent, to know what an acknowledgement means.
#[derive(Debug)]
enum Sent {
    Event(u64),
    Gap(u64),
    Standing(String),
}

impl Publisher {
    /// A publisher over `link`, with its outbox empty.
    pub fn new(
        node: &str,
        outbox: Outbox,
        link: Link,
        clock: Arc<Clock>,
        metrics: Arc<Metrics>,
        watcher: Arc<dyn Watcher>,
    ) -> Self {
        Publisher {
            node: node.to_owned(),
            topics: Topics::new(node),
            clock,
            metrics,
            watcher,
            outbox,
            standing: Standing::default(),
            link,
            in_flight: FuturesUnordered::new(),
            connection: 0,
            draining: false,
        }
    }

    /// Publishes until every sender of `posts` is gone; then says `stopped` and waits for what is
    /// left, up to what `patience` then says.
    pub async fn run(
        mut self,
        mut posts: mpsc::Receiver<Post>,
        patience: watch::Receiver<Duration>,
    ) {
        let mut status = self.link.status();
        let mut health = interval(HEALTH_PERIOD);
        self.standing
            .set(self.topics.status(), self.status("online"), Kind::Json);
        let mut give_up: Option<Instant> = None;
        loop {
            self.follow(&mut status);
            self.send_ready().await;
            if give_up.is_some()
                && self.outbox.is_empty()
                && self.standing.is_clean()
                && self.in_flight.is_empty()
            {
                break;
            }
            tokio::select! {
                post = posts.recv(), if give_up.is_none() => match post {
                    Some(post) => self.take(post),
                    None => {
                        give_up = Some(Instant::now() + *patience.borrow());
                        self.draining = true;
                        self.standing.set(self.topics.status(), self.status("stopped"), Kind::Json);
                    }
                },
                Some((sent, outcome)) = self.in_flight.next() => self.done(sent, outcome),
                changed = status.changed() => if changed.is_err() { break },
                _ = health.tick() => self.tell_health(),
                () = sleep_until(give_up.unwrap_or_else(Instant::now)), if give_up.is_some() => break,
            }
        }
        let left = self.outbox.queued();
        if left > 0 {
            warn!("stopped with {left} events that the broker did not acknowledge");
        }
    }

    /// Notices a lost or a new connection, even one that was lost and made again unseen.
    fn follow(&mut self, status: &mut watch::Receiver<LinkStatus>) {
        let LinkStatus { state, connections } = status.borrow_and_update().clone();
        if self.connection != 0 && (connections != self.connection || state != LinkState::Up) {
            self.in_flight = FuturesUnordered::new();
            self.outbox.disconnected();
            self.standing.disconnected();
            self.connection = 0;
        }
        if self.connection == 0 && state == LinkState::Up {
            self.connection = connections;
            let waiting = self.outbox.queued();
            if waiting > 0 {
                info!("sending {waiting} events that waited for the broker");
            }
        }
    }

    async fn send_ready(&mut self) {
        while self.connection != 0 && self.in_flight.len() < IN_FLIGHT_MAX {
            let Some((sent, publication)) = self.next() else {
                return;
            };
            // Handing over in this order is what keeps the order on the wire; the acknowledgements
            // may then come as they like.
            match self.link.send(publication).await {
                Ok(acknowledged) => self
                    .in_flight
                    .push(acknowledged.map(|outcome| (sent, outcome)).boxed()),
                Err(error) => {
                    self.done(sent, Err(error));
                    return;
                }
            }
        }
    }

    fn next(&mut self) -> Option<(Sent, Publication)> {
        // States before events, so that a long queue does not hold them up; but `stopped` is the
        // last word.
        if self.draining
            && let Some(event) = self.next_event()
        {
            return Some(event);
        }
        match self.standing.next() {
            Some((topic, publication)) => Some((Sent::Standing(topic), publication)),
            None => self.next_event(),
        }
    }

    fn next_event(&mut self) -> Option<(Sent, Publication)> {
        let json = |topic, payload, expiry, schema: &str| Publication {
            topic,
            payload,
            expiry: Some(expiry),
            content_type: Some(JSON.into()),
            // The content type once more: not every bridge passes on a property that MQTT 3 had no
            // place for.
            user_properties: vec![("ct".into(), JSON.into()), ("schema".into(), schema.into())],
            ..Publication::default()
        };
        match self.outbox.next_to_send()? {
            Next::Event(entry) => Some((
                Sent::Event(entry.seq),
                json(entry.topic, entry.payload, EVENT_EXPIRY, "event/1"),
            )),
            Next::Gap(id, gap) => {
                let Gap {
                    from_seq, to_seq, ..
                } = gap;
                warn!("events {from_seq}..={to_seq} were dropped; declaring the gap");
                let payload = gap.to_json(self.outbox.epoch()).into();
                Some((
                    Sent::Gap(id),
                    json(self.topics.gap(), payload, GAP_EXPIRY, "gap/1"),
                ))
            }
        }
    }

    fn done(&mut self, sent: Sent, outcome: Result<(), LinkError>) {
        let now = self.clock.elapsed();
        match (sent, outcome) {
            (Sent::Event(seq), Ok(())) => self.outbox.acked(seq, now),
            (Sent::Gap(id), Ok(())) => self.outbox.gap_acked(id, now),
            (Sent::Standing(topic), Ok(())) => self.standing.sent(&topic),
            // Sent again on the next connection, which `follow` waits for.
            (_, Err(LinkError::Down(_))) => {}
            (Sent::Event(seq), Err(error)) => {
                error!("event {seq} is given up: {error}");
                self.outbox.refused(seq);
            }
            (Sent::Gap(id), Err(error)) => {
                error!("{error}");
                self.outbox.gap_acked(id, now);
            }
            (Sent::Standing(topic), Err(error)) => {
                warn!("{error}");
                self.metrics.publications_refused.count();
                self.standing.sent(&topic);
            }
        }
        self.count();
    }

    fn take(&mut self, post: Post) {
        match post {
            Post::Event { cam, draft } => self.take_event(cam, draft),
            Post::Standing {
                topic,
                payload,
                kind,
            } => self.standing.set(topic, payload, kind),
        }
    }

    fn take_event(&mut self, cam: String, draft: Box<Draft>) {
        let moment = self.clock.moment();
        let origin = Origin {
            node: &self.node,
            cam: &cam,
        };
        let seq = self.outbox.push(
            self.topics.event(&cam),
            self.clock.elapsed(),
            |epoch, seq| draft.to_json(origin, &moment, epoch, seq).into(),
        );
        // A late update corrects an event that is over; the rule's state is about the present.
        if draft.step != Step::End && !draft.late {
            self.standing.set(
                self.topics.rule_state(&cam, &draft.rule),
                draft.state.as_str().into(),
                Kind::Word,
            );
            self.standing.set(
                self.topics.rule_attributes(&cam, &draft.rule),
                draft.attributes_json(&moment).into(),
                Kind::Json,
            );
        }
        self.count();
        self.watcher.see(Record::Event { cam, seq, draft });
    }

    /// Carries the outbox's own counts over to the metrics.
    fn count(&self) {
        let counts = self.outbox.counts();
        let metrics = &self.metrics;
        for (counter, total) in [
            (&metrics.events_produced, counts.produced),
            (&metrics.events_published, counts.published),
            (&metrics.events_dropped, counts.dropped),
            (&metrics.events_repeated, counts.repeated),
        ] {
            counter.raise_to(total);
        }
    }

    fn tell_health(&mut self) {
        let moment = self.clock.moment();
        let health = serde_json::json!({
            "time": format!("{:.3}", moment.time),
            "clock": moment.clock,
            "outbox": {
                "count": self.outbox.queued(),
                "bytes": self.outbox.queued_bytes(),
                "oldest_age_ms": self.outbox.oldest_age(self.clock.elapsed()).map(|age| age.as_millis() as u64),
            },
            "counters": self.metrics.totals(),
        });
        self.standing.set(
            self.topics.health(),
            health.to_string().into(),
            Kind::Health,
        );
    }

    fn status(&self, state: &str) -> Bytes {
        status_json(state, self.outbox.epoch(), &self.clock)
    }
}

/// The content of a box's status topic; also its last will.
pub fn status_json(state: &str, epoch: u64, clock: &Clock) -> Bytes {
    let time = format!("{:.3}", clock.moment().time);
    serde_json::json!({ "state": state, "epoch": epoch_hex(epoch), "pid": std::process::id(), "time": time }).to_string().into()
}

/// The latest publication of each topic. Its size is bounded by the configuration: a few topics for
/// each rule and camera.
#[derive(Debug, Default)]
struct Standing {
    topics: BTreeMap<String, Held>,
}

#[derive(Debug)]
struct Held {
    payload: Bytes,
    kind: Kind,
    unsent: bool,
    in_flight: bool,
}

impl Standing {
    fn set(&mut self, topic: String, payload: Bytes, kind: Kind) {
        let in_flight = self.topics.get(&topic).is_some_and(|held| held.in_flight);
        self.topics.insert(
            topic,
            Held {
                payload,
                kind,
                unsent: true,
                in_flight,
            },
        );
    }

    /// The next one to send. One at a time for each topic, so that an older value never ends up on
    /// top.
    fn next(&mut self) -> Option<(String, Publication)> {
        let (topic, held) = self
            .topics
            .iter_mut()
            .find(|(_, held)| held.unsent && !held.in_flight)?;
        (held.unsent, held.in_flight) = (false, true);
        let (qos, expiry, content_type) = match held.kind {
            Kind::Word => (Qos::AtLeastOnce, None, "text/plain"),
            Kind::Json => (Qos::AtLeastOnce, None, JSON),
            Kind::Health => (Qos::AtMostOnce, Some(HEALTH_EXPIRY), JSON),
            Kind::Snapshot => (Qos::AtMostOnce, Some(SNAPSHOT_EXPIRY), "image/jpeg"),
        };
        let publication = Publication {
            topic: topic.clone(),
            payload: held.payload.clone(),
            qos,
            retain: true,
            expiry,
            content_type: Some(content_type.into()),
            ..Publication::default()
        };
        Some((topic.clone(), publication))
    }

    fn sent(&mut self, topic: &str) {
        if let Some(held) = self.topics.get_mut(topic) {
            held.in_flight = false;
            if held.kind == Kind::Snapshot && !held.unsent {
                self.topics.remove(topic);
            }
        }
    }

    fn disconnected(&mut self) {
        for held in self.topics.values_mut() {
            (held.unsent, held.in_flight) = (true, false);
        }
    }

    fn is_clean(&self) -> bool {
        self.topics
            .values()
            .all(|held| !held.unsent && !held.in_flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(standing: &mut Standing) -> Option<Bytes> {
        standing.next().map(|(_, publication)| publication.payload)
    }

    #[test]
    fn the_latest_wins_and_is_told_again_on_each_connection() {
        let mut standing = Standing::default();
        standing.set("a".into(), "1".into(), Kind::Word);
        assert_eq!(payload(&mut standing), Some("1".into()));
        standing.set("a".into(), "2".into(), Kind::Word);
        assert_eq!(
            payload(&mut standing),
            None,
            "the first is still on its way"
        );
        standing.sent("a");
        assert_eq!(payload(&mut standing), Some("2".into()));
        standing.sent("a");
        assert!(standing.is_clean());
        standing.disconnected();
        assert_eq!(payload(&mut standing), Some("2".into()));
    }

    #[test]
    fn a_snapshot_is_told_once() {
        let mut standing = Standing::default();
        standing.set("s".into(), "jpeg".into(), Kind::Snapshot);
        let (_, publication) = standing.next().expect("unsent");
        assert_eq!(
            (publication.qos, publication.retain),
            (Qos::AtMostOnce, true)
        );
        standing.sent("s");
        standing.disconnected();
        assert_eq!(standing.next(), None);
    }
}
