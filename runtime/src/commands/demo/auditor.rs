//! The demo's own client of the broker: counts the events that arrive, and asks the pool about
//! answers that stayed local.
//!
//! It has a connection and a node id of its own, so the agent does not count what it does.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use firmware_config::agent::AgentConfig;
use futures_util::StreamExt;
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::children::Sidecar;
use super::config::{NODE, POOL};
use super::summary::Pair;
use crate::environment::Environment;
use crate::mqtt::{Incoming, LinkOptions, Qos};
use crate::observe::LocalAnswer;
use crate::pool::mqtt::reply_topic;
use crate::pool::{PoolQuestion, Pools, Spent};

/// Questions to the pool at one time, after the replay.
const ASKED_AT_ONCE: usize = 4;
/// Timeout of the question that finds out whether the worker is there.
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// A second client beside the agent's.
#[derive(Debug)]
pub(super) struct Auditor {
    pools: Pools,
    environment: Environment,
    received: watch::Receiver<u64>,
    /// Dropped with the auditor, which ends its connection.
    _stop: oneshot::Sender<()>,
}

/// The part of an event that tells it from others.
#[derive(Deserialize)]
struct EventKey {
    epoch: String,
    seq: u64,
}

impl Auditor {
    /// Connects to the demo's broker and subscribes to its events.
    pub(super) fn start(config: &AgentConfig, environment: Environment) -> anyhow::Result<Auditor> {
        let mqtt = config
            .mqtt
            .clone()
            .context("the demo's configuration names a broker")?;
        let node = format!("{NODE}-auditor");
        let events = format!("egret/{NODE}/cam/+/event");
        let replies = reply_topic(&node);
        let options = LinkOptions {
            subscriptions: vec![(events, Qos::AtLeastOnce), (replies, Qos::AtLeastOnce)],
            session_expiry: Duration::ZERO,
            ..LinkOptions::new(mqtt, format!("egret-{node}"))
        };
        let (link, task, deliveries) = environment.open_link(options);
        let (stop, stopped) = oneshot::channel::<()>();
        tokio::spawn(task.run(async {
            let _ = stopped.await;
        }));
        let pools = environment.connect_pools(&config.pools, Some(link), &node)?;
        let (count, received) = watch::channel(0);
        tokio::spawn(listen(deliveries, pools.clone(), count));
        Ok(Auditor {
            pools,
            environment,
            received,
            _stop: stop,
        })
    }

    /// Waits until the worker answers a question, so that the replay does not start before the pool
    /// is there.
    pub(super) async fn wait_for_pool(
        &self,
        worker: &mut Sidecar,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let clock = &self.environment.clock;
        let deadline = clock.now() + limit;
        loop {
            worker.check()?;
            let question = PoolQuestion {
                id: self.environment.uuid().into_bytes(),
                question: "are you there?".into(),
                answers: vec!["yes".into(), "no".into()],
                jpeg: None,
                max_tokens: 1,
            };
            match timeout(
                ASK_TIMEOUT,
                self.pools.ask(POOL, &question, &mut Spent::default()),
            )
            .await
            {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) if clock.now() > deadline => return Err(error.into()),
                Err(_) if clock.now() > deadline => {
                    anyhow::bail!("pool {POOL}: no answer within {limit:?}")
                }
                Ok(Err(_)) => tokio::time::sleep(Duration::from_millis(100)).await,
                Err(_) => {}
            }
        }
    }

    /// Waits until `published` distinct events have arrived, for at most `limit`.
    pub(super) async fn wait_for_events(&self, published: u64, limit: Duration) {
        let mut received = self.received.clone();
        // The summary shows the difference.
        let _ = timeout(limit, received.wait_for(|count| *count >= published)).await;
    }

    /// Distinct (epoch, seq) seen.
    pub(super) fn events_received(&self) -> u64 {
        *self.received.borrow()
    }

    /// Asks the pool about every labelled pair that it was not asked about in the replay, over the
    /// same transport.
    pub(super) async fn ask_about(&self, pairs: &mut [(Pair, LocalAnswer)]) {
        let open = pairs
            .iter_mut()
            .filter(|(pair, _)| pair.label.is_some() && pair.escalated.is_none());
        stream::iter(open)
            .for_each_concurrent(ASKED_AT_ONCE, |(pair, asked)| async move {
                let question = PoolQuestion {
                    id: self.environment.uuid().into_bytes(),
                    question: asked.question.clone(),
                    answers: asked.answers.clone(),
                    jpeg: Some(asked.jpeg.clone()),
                    max_tokens: 64,
                };
                // Without an answer the comparison is incomplete, and the summary shows none.
                pair.pool_afterwards = self
                    .pools
                    .ask(POOL, &question, &mut Spent::default())
                    .await
                    .ok()
                    .map(|answer| answer.text);
            })
            .await;
    }
}

/// Counts events and hands replies over, until the connection's task ends.
async fn listen(mut deliveries: Incoming, pools: Pools, count: watch::Sender<u64>) {
    let mut seen = BTreeSet::new();
    while let Some(delivery) = deliveries.recv().await {
        if delivery.publication.topic == pools.reply_topic() {
            pools.on_reply(delivery.publication);
        } else if let Ok(EventKey { epoch, seq }) =
            serde_json::from_slice(&delivery.publication.payload)
        {
            seen.insert((epoch, seq));
            count.send_replace(seen.len() as u64);
        }
    }
}
