//! A broker that goes away, is killed before it saved what it acknowledged, and has a worker that
//! answers requests, late, twice or not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde::Deserialize;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::chance::Chance;
use super::pools::reply;
use crate::clock::Clock;
use crate::mqtt::{
    BrokerConnection, Brokers, FarSide, Link, LinkError, LinkOptions, LinkState, Publication,
    PublishRequest, Received,
};
use crate::random::Random;

/// Acknowledgements a killed broker had not saved, at most; see `SAVED_AFTER` of the outbox.
const UNSAVED: Duration = Duration::from_secs(4);

/// Longer than any run.
const FOREVER: Duration = Duration::from_secs(7 * 24 * 3600);

/// What a subscriber of a broker that forgets nothing it saved would have.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// Places of events: epoch and seq.
    pub(super) events: BTreeSet<(String, u64)>,
    /// Declared gaps: epoch, first, last, and how many of them.
    pub(super) gaps: BTreeSet<(String, u64, u64, u64)>,
    /// The last retained publication of each topic.
    pub(super) retained: BTreeMap<String, String>,
}

/// What every event and gap has.
#[derive(Debug, Deserialize)]
struct EventKey {
    epoch: String,
    seq: Option<u64>,
    from_seq: Option<u64>,
    to_seq: Option<u64>,
    count: Option<u64>,
}

/// One broker; clones share it.
#[derive(Clone)]
pub(super) struct BrokerDouble {
    chance: Arc<Chance>,
    saved: Arc<Mutex<Seen>>,
}

impl BrokerDouble {
    pub(super) fn new(chance: Chance) -> Self {
        BrokerDouble {
            chance: Arc::new(chance),
            saved: Arc::default(),
        }
    }

    pub(super) fn seen(&self) -> Seen {
        self.saved.lock().expect("not poisoned").clone()
    }
}

impl Brokers for BrokerDouble {
    fn connect(&self, options: LinkOptions, clock: Clock, _: Random) -> BrokerConnection {
        let (link, far_side, deliveries) = Link::ends(options.receive_max);
        let session = Session {
            broker: self.clone(),
            far_side,
            clock,
            unsaved: VecDeque::new(),
            replies: FuturesUnordered::new(),
        };
        BrokerConnection {
            link,
            deliveries,
            run: Box::new(|shutdown| session.run(shutdown).boxed()),
        }
    }
}

struct Session {
    broker: BrokerDouble,
    far_side: FarSide,
    clock: Clock,
    /// Acknowledged and not saved, oldest first.
    unsaved: VecDeque<(Duration, Publication)>,
    /// Replies of workers that are on their way.
    replies: FuturesUnordered<BoxFuture<'static, Publication>>,
}

/// Acknowledgements in the order of the publications.
type Acks =
    FuturesUnordered<BoxFuture<'static, (Publication, oneshot::Sender<Result<(), LinkError>>)>>;

impl Session {
    async fn run(mut self, shutdown: BoxFuture<'static, ()>) {
        let mut shutdown = shutdown;
        loop {
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = self.connection() => {}
            }
            // Killed: what it had not saved is gone, and so are the workers' replies.
            self.save(self.clock.now().saturating_sub(UNSAVED));
            self.unsaved.clear();
            self.replies = FuturesUnordered::new();
            self.set_state(LinkState::Down("killed".into()));
            let away = self.broker.chance.exponential(120.0);
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                () = self.away(away) => {}
            }
        }
        self.save(Duration::MAX);
        self.set_state(LinkState::Down("stopped".into()));
    }

    /// One connection; ends when the broker is killed.
    async fn connection(&mut self) {
        let chance = Arc::clone(&self.broker.chance);
        let mut acks = Acks::new();
        sleep(chance.between(0.1, 1.0)).await;
        self.set_state(LinkState::Up);
        let life = sleep(match chance.is_calm() {
            true => FOREVER,
            false => chance.exponential(3_600.0),
        });
        let mut life = std::pin::pin!(life);
        let mut commands = std::pin::pin!(sleep(chance.exponential(1_800.0)));
        loop {
            tokio::select! {
                biased;
                () = &mut life => if !chance.is_calm() { return },
                Some((publication, acked)) = acks.next() => {
                    if chance.fails(0.001) {
                        let topic = publication.topic;
                        let reason = "QuotaExceeded".into();
                        let _ = acked.send(Err(LinkError::Refused { topic, reason }));
                    } else {
                        self.take(publication);
                        let _ = acked.send(Ok(()));
                    }
                }
                Some(reply) = self.replies.next() => self.deliver(reply),
                Some(PublishRequest { publication, reply }) = self.far_side.requests.recv() => {
                    let wait = chance.between(0.001, 0.2);
                    acks.push(async move { sleep(wait).await; (publication, reply) }.boxed());
                }
                () = &mut commands => {
                    self.deliver(self.kill_switch());
                    commands.set(sleep(chance.exponential(1_800.0)));
                }
            }
            if life.is_elapsed() {
                // The calm came before the end of this life.
                life.set(sleep(FOREVER));
            }
            self.save(self.clock.now().saturating_sub(UNSAVED));
        }
    }

    /// No broker: whatever is handed over fails.
    async fn away(&mut self, length: Duration) {
        let mut end = std::pin::pin!(sleep(length));
        loop {
            tokio::select! {
                biased;
                () = &mut end => return,
                Some(request) = self.far_side.requests.recv() => {
                    let _ = request.reply.send(Err(LinkError::Down("killed".into())));
                }
            }
        }
    }

    /// The broker has acknowledged a publication.
    fn take(&mut self, publication: Publication) {
        if publication.topic.starts_with("egret/pool/") {
            self.work(&publication);
        }
        self.unsaved.push_back((self.clock.now(), publication));
    }

    /// A worker answers, or does not.
    fn work(&mut self, request: &Publication) {
        let chance = &self.broker.chance;
        let Some(topic) = request.response_topic.clone() else {
            return;
        };
        let copies = match () {
            () if chance.fails(0.05) => 0,
            () if chance.fails(0.05) => 2,
            () => 1,
        };
        for _ in 0..copies {
            let reply = Publication {
                topic: topic.clone(),
                payload: reply(chance),
                correlation: request.correlation.clone(),
                ..Publication::default()
            };
            let wait = chance.exponential(1.0);
            self.replies.push(
                async move {
                    sleep(wait).await;
                    reply
                }
                .boxed(),
            );
        }
    }

    fn deliver(&self, publication: Publication) {
        let delivery = Received {
            publication,
            ack: None,
        };
        // As the real link: a queue that is full loses the delivery.
        let _ = self.far_side.deliveries.try_send(delivery);
    }

    fn kill_switch(&self) -> Publication {
        let chance = &self.broker.chance;
        let word = match () {
            () if chance.is_calm() || chance.is(0.5) => "off",
            () if chance.is(0.4) => "local-only",
            () if chance.is(0.5) => "pool-only",
            () => "nonsense",
        };
        Publication {
            topic: "egret/sim/kill-switch/set".into(),
            payload: word.into(),
            retain: chance.fails(0.2),
            ..Publication::default()
        }
    }

    /// Saves what was acknowledged until `then`.
    fn save(&mut self, then: Duration) {
        let mut saved = self.broker.saved.lock().expect("not poisoned");
        while self.unsaved.front().is_some_and(|(at, _)| *at <= then) {
            let Some((_, publication)) = self.unsaved.pop_front() else {
                return;
            };
            let place = || serde_json::from_slice::<EventKey>(&publication.payload).expect("JSON");
            if publication.topic.ends_with("/event") {
                let EventKey { epoch, seq, .. } = place();
                saved.events.insert((epoch, seq.expect("a seq")));
            } else if publication.topic.ends_with("/gap") {
                let key = place();
                let gap = (key.from_seq, key.to_seq, key.count);
                let (Some(from), Some(to), Some(count)) = gap else {
                    panic!("an incomplete gap: {key:?}");
                };
                saved.gaps.insert((key.epoch, from, to, count));
            } else if publication.retain {
                let text = String::from_utf8_lossy(&publication.payload).into_owned();
                saved.retained.insert(publication.topic, text);
            }
        }
    }

    fn set_state(&self, state: LinkState) {
        self.far_side.status.send_modify(|status| {
            status.connections += u64::from(state == LinkState::Up);
            status.state = state;
        });
    }
}
