//! Drains the outbox and the retained publications through the link.
//!
//! Two lanes: *events*, each of which must arrive (see [`outbox`](super::outbox)), and *retained*
//! publications, of which only the latest per topic matters: states, attributes, status, snapshots.
//! The latter are sent again on every connection, since a broker that lost its store has forgotten
//! them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;
use tracing::{error, info, warn};

use super::event::{Draft, Origin, Step};
use super::outbox::{Gap, Next, Outbox};
use super::payload::{HealthPayload, NodeState, OutboxPayload, StatusPayload};
use super::post::{Kind, Post, Posted};
use super::retained::Retained;
use super::topics::{PublishOptions, Topics};
use crate::clock::Clock;
use crate::metrics::Metrics;
use crate::mqtt::{Link, LinkError, LinkState, LinkStatus, Publication};
#[cfg(test)]
use crate::mutants::{self, Mutant};

/// Publications in flight at one time.
const IN_FLIGHT_MAX: usize = 32;
/// How often `health` is published.
const HEALTH_PERIOD: Duration = Duration::from_secs(30);

/// The publishing side of the agent.
pub struct Publisher {
    node: String,
    topics: Topics,
    clock: Clock,
    metrics: Arc<Metrics>,
    outbox: Outbox,
    retained: Retained,
    link: Link,
    in_flight: FuturesUnordered<BoxFuture<'static, (Sent, Result<(), LinkError>)>>,
    /// The connection that `in_flight` is on; 0 for none.
    connection: u64,
    phase: PublisherPhase,
}

/// How far a publisher is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PublisherPhase {
    /// Posts may come.
    Publishing,
    /// No more posts will come; what is left is waited for until then.
    Draining { give_up_at: Duration },
}

/// What was sent, to know what an acknowledgement means.
#[derive(Debug)]
enum Sent {
    Event(u64),
    Gap(u64),
    Retained(String),
}

impl Publisher {
    /// A publisher over `link`, which drains `outbox`.
    pub fn new(
        node: &str,
        outbox: Outbox,
        link: Link,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Publisher {
            node: node.to_owned(),
            topics: Topics::new(node),
            clock,
            metrics,
            outbox,
            retained: Retained::default(),
            link,
            in_flight: FuturesUnordered::new(),
            connection: 0,
            phase: PublisherPhase::Publishing,
        }
    }

    /// Publishes until every sender of `posts` is gone; then publishes `stopped` and waits for what
    /// is left, for as long as `grace` then says.
    pub async fn run(
        mut self,
        mut posts: mpsc::Receiver<Posted>,
        grace: watch::Receiver<Duration>,
    ) {
        let mut status = self.link.status();
        let mut health = interval(HEALTH_PERIOD);
        self.set_status(NodeState::Online);
        let clock = self.clock.clone();
        loop {
            self.follow(&mut status);
            self.send_ready().await;
            let give_up_at = match self.phase {
                PublisherPhase::Publishing => None,
                PublisherPhase::Draining { .. } if self.is_drained() => break,
                PublisherPhase::Draining { give_up_at } => Some(give_up_at),
            };
            tokio::select! {
                biased;
                () = clock.sleep_until(give_up_at.unwrap_or_default()), if give_up_at.is_some() => {
                    break;
                }
                changed = status.changed() => if changed.is_err() { break },
                Some((sent, outcome)) = self.in_flight.next() => self.done(sent, outcome),
                _ = health.tick() => self.set_health(),
                post = posts.recv(), if self.phase == PublisherPhase::Publishing => match post {
                    Some(posted) => self.take(posted),
                    None => self.drain(*grace.borrow()),
                },
            }
        }
        let left = self.outbox.queued();
        if left > 0 {
            warn!("stopped with {left} events that the broker did not acknowledge");
        }
    }

    fn drain(&mut self, grace: Duration) {
        self.phase = PublisherPhase::Draining {
            give_up_at: self.clock.now() + grace,
        };
        self.set_status(NodeState::Stopped);
    }

    fn is_drained(&self) -> bool {
        self.outbox.is_empty() && self.retained.is_clean() && self.in_flight.is_empty()
    }

    /// Notices a lost or a new connection, even one that was lost and made again in between.
    fn follow(&mut self, status: &mut watch::Receiver<LinkStatus>) {
        let status = status.borrow_and_update().clone();
        self.metrics.routing.link(&status);
        let LinkStatus { state, connections } = status;
        if self.connection != 0 && (connections != self.connection || state != LinkState::Up) {
            // What was refused or acknowledged before the end of the connection stays so.
            while let Some(Some((sent, outcome))) = self.in_flight.next().now_or_never() {
                self.done(sent, outcome);
            }
            self.in_flight = FuturesUnordered::new();
            self.outbox.disconnected();
            self.retained.disconnected();
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

    /// Hands publications to the link until it has enough of them.
    async fn send_ready(&mut self) {
        while self.connection != 0 && self.in_flight.len() < IN_FLIGHT_MAX {
            let Some((sent, publication)) = self.next() else {
                return;
            };
            // Handing over in this order keeps the order on the wire; the acknowledgements may then
            // come in any order.
            match self.link.send(publication).await {
                Ok(acknowledged) => {
                    let acknowledged = acknowledged.map(|outcome| (sent, outcome));
                    self.in_flight.push(acknowledged.boxed());
                }
                Err(error) => {
                    self.done(sent, Err(error));
                    return;
                }
            }
        }
    }

    fn next(&mut self) -> Option<(Sent, Publication)> {
        match self.phase {
            // States come before events, so that a long queue does not hold them up.
            PublisherPhase::Publishing => self.next_retained().or_else(|| self.next_event()),
            // `stopped` comes after the last event.
            PublisherPhase::Draining { .. } => self.next_event().or_else(|| self.next_retained()),
        }
    }

    fn next_retained(&mut self) -> Option<(Sent, Publication)> {
        let (topic, publication) = self.retained.next()?;
        Some((Sent::Retained(topic), publication))
    }

    fn next_event(&mut self) -> Option<(Sent, Publication)> {
        match self.outbox.next_to_send()? {
            Next::Event(entry) => {
                let event = PublishOptions::EVENT.publication(entry.topic, entry.payload);
                Some((Sent::Event(entry.seq), event))
            }
            Next::Gap(id, gap) => {
                let Gap {
                    from_seq,
                    to_seq,
                    count,
                    ..
                } = gap;
                warn!("{count} events from {from_seq} to {to_seq} were given up; declaring them");
                let payload = gap.to_json(self.outbox.epoch()).into();
                let gap = PublishOptions::GAP.publication(self.topics.gap(), payload);
                Some((Sent::Gap(id), gap))
            }
        }
    }

    /// Takes the broker's answer to what was sent.
    fn done(&mut self, sent: Sent, outcome: Result<(), LinkError>) {
        let now = self.clock.now();
        match (sent, outcome) {
            (Sent::Event(seq), Ok(())) => self.outbox.acked(seq, now),
            (Sent::Gap(id), Ok(())) => self.outbox.gap_acked(id, now),
            (Sent::Retained(topic), Ok(())) => self.retained.finished(&topic),
            // Sent again on the next connection, which `follow` waits for.
            (_, Err(LinkError::Down(_))) => {}
            (Sent::Event(seq), Err(error)) => {
                error!("event {seq} is given up: {error}");
                self.outbox.refused(seq);
            }
            (Sent::Gap(id), Err(error)) => {
                error!("a gap cannot be declared: {error}");
                self.metrics.publications_refused.count();
                self.outbox.gap_refused(id);
            }
            (Sent::Retained(topic), Err(error)) => {
                warn!("{error}");
                self.metrics.publications_refused.count();
                self.retained.finished(&topic);
            }
        }
        self.count();
    }

    fn take(&mut self, Posted { post, stored }: Posted) {
        match post {
            Post::Event { cam, draft } => {
                let seq = self.take_event(&cam, &draft);
                // A scene that is gone does not wait for it.
                let _ = stored.send(seq);
            }
            Post::Retained {
                topic,
                payload,
                kind,
            } => self.retained.set(topic, payload, kind),
        }
    }

    fn take_event(&mut self, cam: &str, draft: &Draft) -> u64 {
        let moment = self.clock.moment();
        let origin = Origin {
            node: &self.node,
            cam,
        };
        let payload = |epoch, seq| draft.to_json(origin, &moment, epoch, seq).into();
        let seq = self
            .outbox
            .push(self.topics.event(cam), self.clock.now(), payload);
        #[cfg(test)]
        if mutants::is_active(Mutant::StaleState) {
            return seq;
        }
        // A late update corrects an event that is over; the rule's state is about the present.
        if draft.step != Step::End && !draft.late {
            let topic = self.topics.rule_state(cam, &draft.rule);
            self.retained
                .set(topic, draft.state.as_str().into(), Kind::Word);
            let topic = self.topics.rule_attributes(cam, &draft.rule);
            self.retained
                .set(topic, draft.attributes_json(&moment).into(), Kind::Json);
        }
        self.count();
        seq
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
        let (events, bytes) = (self.outbox.queued(), self.outbox.queued_bytes());
        metrics.agent.outbox(events, bytes);
    }

    fn set_health(&mut self) {
        let moment = self.clock.moment();
        let oldest_age = self.outbox.oldest_age(self.clock.now());
        let health = HealthPayload {
            time: moment.time,
            clock: moment.clock,
            outbox: OutboxPayload {
                count: self.outbox.queued(),
                bytes: self.outbox.queued_bytes(),
                oldest_age_ms: oldest_age.map(|age| age.as_millis() as u64),
            },
            counters: self.metrics.totals(),
        };
        let health = health.to_json().into();
        self.retained
            .set(self.topics.health(), health, Kind::Health);
    }

    fn set_status(&mut self, state: NodeState) {
        let status = status(state, self.outbox.epoch(), &self.clock);
        self.retained.set(self.topics.status(), status, Kind::Json);
    }
}

/// The content of a node's status topic; also its last will.
pub fn status(state: NodeState, epoch: u64, clock: &Clock) -> Bytes {
    let status = StatusPayload {
        state,
        epoch,
        pid: std::process::id(),
        time: clock.moment().time,
    };
    status.to_json().into()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::super::event::tests::draft;
    use super::super::outbox::store::MemoryStore;
    use super::*;
    use crate::mqtt::PublishRequest;

    /// Some brokers refuse a publication that is too large by ending the connection.
    #[tokio::test]
    async fn a_refusal_that_ends_the_connection_is_final() {
        let (link, mut far_side, _incoming) = Link::ends(16);
        let set_state = |state, connections| {
            _ = far_side.status.send(LinkStatus { state, connections });
        };
        set_state(LinkState::Up, 1);
        let outbox = Outbox::new(7, 10, Box::new(MemoryStore::default()));
        let metrics = Arc::new(Metrics::for_agent());
        let publisher = Publisher::new("n", outbox, link, Clock::system(), metrics);
        let (posts, posted) = mpsc::channel(8);
        let (stored, _seq) = oneshot::channel();
        let (cam, draft) = ("c".into(), Box::new(draft()));
        let post = Post::Event { cam, draft };
        posts.send(Posted { post, stored }).await.expect("room");
        let (_grace, grace) = watch::channel(Duration::ZERO);
        tokio::spawn(publisher.run(posted, grace));

        let mut topics = Vec::new();
        while !topics.contains(&"egret/n/gap".to_owned()) {
            let PublishRequest { publication, reply } =
                far_side.requests.recv().await.expect("a publisher");
            let topic = publication.topic;
            if topic.ends_with("/event") {
                assert!(!topics.contains(&topic), "sent again");
                let reason = "PacketTooLarge".into();
                let topic = topic.clone();
                _ = reply.send(Err(LinkError::Refused { topic, reason }));
                set_state(LinkState::Down("refused".into()), 1);
                tokio::task::yield_now().await;
                set_state(LinkState::Up, 2);
            } else {
                _ = reply.send(Ok(()));
            }
            topics.push(topic);
        }
    }
}
