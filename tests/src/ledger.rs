//! A subscriber that records which events arrived, which were declared lost, and which are missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use runtime::clock::Clock;
use runtime::mqtt::{Link, LinkOptions, LinkState, Publication, Qos};
use runtime::random::Random;
use serde_json::Value;

use crate::config::mqtt;

/// Timeout of [`Ledger::wait_until`].
const TIMEOUT: Duration = Duration::from_secs(180);

/// A subscriber with a persistent session, disconnected only while its broker is down.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    records: Arc<Mutex<Records>>,
}

#[derive(Debug, Default)]
struct Records {
    /// Sequence numbers received or declared lost, by epoch.
    seqs: BTreeMap<String, BTreeSet<u64>>,
    events: Vec<Value>,
    repeats: u64,
    /// Last payload of every other topic.
    states: BTreeMap<String, String>,
}

impl Ledger {
    /// Subscribes to everything below `egret/` at the broker of `url`, and returns when the broker
    /// has confirmed it.
    ///
    /// # Panics
    /// When the broker cannot be reached.
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
            // An event counts as received when it is recorded, not when the library has read it.
            manual_acks: true,
            ..LinkOptions::new(mqtt(url), "ledger")
        };
        let (link, task, mut deliveries) =
            Link::open(options, Clock::system(), Random::from_system());
        tokio::spawn(task.run(std::future::pending()));
        link.status()
            .wait_for(|status| status.state == LinkState::Up)
            .await
            .unwrap();
        let ledger = Ledger::default();
        let recorder = ledger.clone();
        tokio::spawn(async move {
            let _link = link;
            while let Some(delivery) = deliveries.recv().await {
                recorder.record(&delivery.publication.topic, &delivery.publication.payload);
                if let Some(ack) = delivery.ack {
                    ack.send();
                }
            }
        });
        ledger
    }

    fn record(&self, topic: &str, payload: &[u8]) {
        let mut records = self.records.lock().unwrap();
        if topic.ends_with("/event") {
            let event: Value = serde_json::from_slice(payload).unwrap();
            let epoch = event["epoch"].as_str().unwrap().to_owned();
            if records
                .seqs
                .entry(epoch)
                .or_default()
                .insert(event["seq"].as_u64().unwrap())
            {
                records.events.push(event);
            } else {
                records.repeats += 1;
            }
        } else if topic.ends_with("/gap") {
            let gap: Value = serde_json::from_slice(payload).unwrap();
            let declared = gap["from_seq"].as_u64().unwrap()..=gap["to_seq"].as_u64().unwrap();
            records
                .seqs
                .entry(gap["epoch"].as_str().unwrap().to_owned())
                .or_default()
                .extend(declared);
        } else if !topic.ends_with("/snapshot") {
            records.states.insert(
                topic.to_owned(),
                String::from_utf8(payload.to_vec()).unwrap(),
            );
        }
    }

    /// Waits until everything that the broker received before this call is recorded.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    pub async fn mark(&self, url: &str) {
        let (link, task, _deliveries) = Link::open(
            LinkOptions::new(mqtt(url), "marker"),
            Clock::system(),
            Random::from_system(),
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

    /// Waits until `condition` holds.
    ///
    /// # Panics
    /// When it does not hold in time.
    pub async fn wait_until(&self, mut condition: impl FnMut(&Ledger) -> bool) {
        let started = Instant::now();
        while !condition(self) {
            assert!(
                started.elapsed() < TIMEOUT,
                "timed out: (contiguous, all) per epoch {:?}, {:?}",
                self.epochs(),
                self.records
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Distinct events received, in the order of their first arrival.
    pub fn events(&self) -> Vec<Value> {
        self.records.lock().unwrap().events.clone()
    }

    /// How many distinct events were received.
    pub fn received(&self) -> usize {
        self.records.lock().unwrap().events.len()
    }

    /// The last payload of a topic that carries no events.
    pub fn state(&self, topic: &str) -> Option<String> {
        self.records.lock().unwrap().states.get(topic).cloned()
    }

    /// Per epoch, how many events arrived or were declared lost before the first missing one, and
    /// how many in all: equal if none is missing.
    pub fn epochs(&self) -> Vec<(u64, u64)> {
        let records = self.records.lock().unwrap();
        let contiguous = |seqs: &BTreeSet<u64>| {
            (1..)
                .zip(seqs)
                .take_while(|(expected, seq)| expected == *seq)
                .count() as u64
        };
        records
            .seqs
            .values()
            .map(|seqs| (contiguous(seqs), seqs.len() as u64))
            .collect()
    }
}
