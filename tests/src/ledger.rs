//! A subscriber that keeps books: which events came, which were declared lost, and what is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime::deliver::mqtt::{Link, LinkOptions, LinkState, Publication, Qos};
use runtime::environment::Environment;
use serde_json::Value;

use crate::config::mqtt;

/// What a test waits for comes within this time, or never.
const PATIENCE: Duration = Duration::from_secs(180);

/// A subscriber with a session of its own, away only while its broker is.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    books: Arc<Mutex<Books>>,
}

#[derive(Debug, Default)]
struct Books {
    /// By epoch.
    seqs: BTreeMap<String, BTreeSet<u64>>,
    events: Vec<Value>,
    repeats: u64,
    /// Any other topic: its last payload.
    states: BTreeMap<String, String>,
}

impl Ledger {
    /// Subscribes to everything below `egret/` at the broker of `url`, and returns when the broker
    /// has confirmed it.
    ///
    /// # Panics
    /// When there is no broker.
    pub async fn keep(url: &str) -> Ledger {
        let subscriptions = [
            "egret/+/cam/#",
            "egret/+/gap",
            "egret/+/status",
            "egret/+/kill-switch/state",
        ];
        let options = LinkOptions {
            subscriptions: subscriptions
                .map(|filter| (filter.to_owned(), Qos::AtLeastOnce))
                .to_vec(),
            // An event counts as received when it is in the books, not when the library has read
            // it.
            manual_acks: true,
            ..LinkOptions::new(mqtt(url), "ledger")
        };
        let (link, task, mut deliveries) = Link::open(options, &Environment::system());
        tokio::spawn(task.run(std::future::pending()));
        link.status()
            .wait_for(|status| status.state == LinkState::Up)
            .await
            .unwrap();
        let ledger = Ledger::default();
        let keeper = ledger.clone();
        tokio::spawn(async move {
            let _link = link;
            while let Some(delivery) = deliveries.recv().await {
                keeper.enter(&delivery.publication.topic, &delivery.publication.payload);
                if let Some(ack) = delivery.ack {
                    ack.send();
                }
            }
        });
        ledger
    }

    fn enter(&self, topic: &str, payload: &[u8]) {
        let mut books = self.books.lock().unwrap();
        if topic.ends_with("/event") {
            let event: Value = serde_json::from_slice(payload).unwrap();
            let epoch = event["epoch"].as_str().unwrap().to_owned();
            if books
                .seqs
                .entry(epoch)
                .or_default()
                .insert(event["seq"].as_u64().unwrap())
            {
                books.events.push(event);
            } else {
                books.repeats += 1;
            }
        } else if topic.ends_with("/gap") {
            let gap: Value = serde_json::from_slice(payload).unwrap();
            let declared = gap["from_seq"].as_u64().unwrap()..=gap["to_seq"].as_u64().unwrap();
            books
                .seqs
                .entry(gap["epoch"].as_str().unwrap().to_owned())
                .or_default()
                .extend(declared);
        } else if !topic.ends_with("/snapshot") {
            books.states.insert(
                topic.to_owned(),
                String::from_utf8(payload.to_vec()).unwrap(),
            );
        }
    }

    /// Returns when all that the broker got before this call is in the books.
    ///
    /// # Panics
    /// When there is no broker.
    pub async fn mark(&self, url: &str) {
        let (link, task, _deliveries) = Link::open(
            LinkOptions::new(mqtt(url), "marker"),
            &Environment::system(),
        );
        tokio::spawn(task.run(std::future::pending()));
        link.status()
            .wait_for(|status| status.state == LinkState::Up)
            .await
            .unwrap();
        let topic = "egret/marker/status".to_owned();
        link.publish(Publication {
            topic: topic.clone(),
            ..Publication::default()
        })
        .await
        .unwrap();
        self.wait_until(|ledger| ledger.state(&topic).is_some())
            .await;
    }

    /// Waits until `enough` of the ledger.
    ///
    /// # Panics
    /// When that takes longer than any machine could.
    pub async fn wait_until(&self, mut enough: impl FnMut(&Ledger) -> bool) {
        let started = Instant::now();
        while !enough(self) {
            assert!(
                started.elapsed() < PATIENCE,
                "in vain: (whole, all) per epoch {:?}, {:?}",
                self.epochs(),
                self.books
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Distinct events received, in the order of their first arrival.
    pub fn events(&self) -> Vec<Value> {
        self.books.lock().unwrap().events.clone()
    }

    /// How many distinct events were received.
    pub fn received(&self) -> usize {
        self.books.lock().unwrap().events.len()
    }

    /// The last payload of a topic that is no event's.
    pub fn state(&self, topic: &str) -> Option<String> {
        self.books.lock().unwrap().states.get(topic).cloned()
    }

    /// Per epoch, how many events came or were declared before the first hole, and how many in all:
    /// equal where nothing is missing.
    pub fn epochs(&self) -> Vec<(u64, u64)> {
        let books = self.books.lock().unwrap();
        let whole = |seqs: &BTreeSet<u64>| {
            (1..)
                .zip(seqs)
                .take_while(|(expected, seq)| expected == *seq)
                .count() as u64
        };
        books
            .seqs
            .values()
            .map(|seqs| (whole(seqs), seqs.len() as u64))
            .collect()
    }
}
