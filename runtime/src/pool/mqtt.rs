//! One attempt over MQTT: a request with Response Topic, Correlation Data and Message Expiry. The
//! Correlation Data matches the reply to its request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tracing::debug;

use super::https::message;
use super::retry::{AttemptFailure, Class};
use super::transport::{Attempt, Transport};
use super::{QuestionId, REPLY_BYTES_MAX};
use crate::mqtt::{Link, LinkError, LinkState, Publication, Qos};

/// The topic of requests to a pool.
pub fn request_topic(pool: &str) -> String {
    format!("egret/pool/{pool}/req")
}

/// The shared subscription of a pool's workers: the broker delivers each request to one of them.
pub fn shared_subscription(pool: &str) -> String {
    format!("$share/workers/{}", request_topic(pool))
}

/// The topic of replies to a node.
pub fn reply_topic(node_id: &str) -> String {
    format!("egret/{node_id}/esc/res")
}

/// The User Property that holds the HTTP status of an error.
pub const STATUS: &str = "status";

/// A pool behind a broker.
#[derive(Debug)]
pub(super) struct Mqtt {
    link: Link,
    pool: String,
    replies: Arc<Replies>,
}

impl Transport for Mqtt {
    fn is_up(&self) -> bool {
        self.link.state() == LinkState::Up
    }

    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>> {
        self.request(attempt).boxed()
    }
}

impl Mqtt {
    pub(super) fn new(link: Link, pool: String, replies: Arc<Replies>) -> Self {
        Mqtt {
            link,
            pool,
            replies,
        }
    }

    /// Publishes the request and waits for its reply; the request expires at the deadline.
    ///
    /// If a second copy may be sent, a request without a reply after half of the remaining time is
    /// published again: its worker may have died, and not every broker redelivers unacknowledged
    /// requests to another. The first reply to either copy is returned.
    async fn request(&self, attempt: Attempt<'_>) -> Result<Bytes, AttemptFailure> {
        let Attempt {
            question: id,
            body,
            remaining,
            resend,
        } = attempt;
        // Before publishing: the reply may arrive before the PUBACK.
        let mut waiter = self.replies.expect(id);
        self.publish(id, body.clone(), remaining).await?;
        let reply = match resend {
            None => waiter.reply().await,
            Some(spent) => match timeout(remaining / 2, waiter.reply()).await {
                Ok(reply) => reply,
                Err(_) => {
                    // The broker has the first copy, so a reply may come even if this one fails.
                    match self.publish(id, body.clone(), remaining / 2).await {
                        Ok(()) => spent.sent(body),
                        Err(failure) => {
                            debug!(
                                pool = self.pool,
                                "cannot publish the request again: {}", failure.detail
                            );
                        }
                    }
                    waiter.reply().await
                }
            },
        };
        let reply = reply.ok_or_else(|| {
            AttemptFailure::unusable("a later request with the same id replaced it")
        })?;
        if reply.payload.len() > REPLY_BYTES_MAX {
            return Err(AttemptFailure::unusable(format!(
                "the reply is over {REPLY_BYTES_MAX} bytes"
            )));
        }
        match status(&reply) {
            None | Some(200..=299) => Ok(reply.payload),
            Some(status) => Err(AttemptFailure::status(
                status,
                property(&reply, "retry-after"),
                &message(&reply.payload),
            )),
        }
    }

    async fn publish(
        &self,
        id: QuestionId,
        body: Bytes,
        expiry: Duration,
    ) -> Result<(), AttemptFailure> {
        let request = Publication {
            topic: request_topic(&self.pool),
            payload: body,
            qos: Qos::AtLeastOnce,
            expiry: Some(expiry),
            response_topic: Some(self.replies.topic.clone()),
            correlation: Some(Bytes::copy_from_slice(&id)),
            content_type: Some("application/json".into()),
            ..Publication::default()
        };
        self.link
            .publish(request)
            .await
            .map_err(|error| match error {
                LinkError::Down(_) => {
                    AttemptFailure::unreachable(Class::LinkDown, error.to_string())
                }
                _ => AttemptFailure::unreachable(Class::Refused, error.to_string()),
            })
    }
}

fn status(reply: &Publication) -> Option<u16> {
    // An unreadable status counts as an error.
    property(reply, STATUS).map(|status| status.parse().unwrap_or(500))
}

fn property<'a>(reply: &'a Publication, name: &str) -> Option<&'a str> {
    reply
        .user_properties
        .iter()
        .find(|(key, _)| key == name)
        .map(|(_, value)| value.as_str())
}

/// The requests that wait for a reply.
#[derive(Debug)]
pub(super) struct Replies {
    pub(super) topic: String,
    waiting: Mutex<HashMap<QuestionId, (u64, oneshot::Sender<Publication>)>>,
    tickets: AtomicU64,
    unmatched: AtomicU64,
}

impl Replies {
    pub(super) fn new(node_id: &str) -> Self {
        Replies {
            topic: reply_topic(node_id),
            waiting: Mutex::default(),
            tickets: AtomicU64::new(0),
            unmatched: AtomicU64::new(0),
        }
    }

    /// Registers a waiter, which is removed when dropped.
    fn expect(self: &Arc<Self>, id: QuestionId) -> Waiter {
        let (sender, receiver) = oneshot::channel();
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        self.waiting().insert(id, (ticket, sender));
        Waiter {
            replies: Arc::clone(self),
            id,
            ticket,
            receiver,
        }
    }

    /// Hands a reply to its waiter, and returns whether there was one. Unknown, late, repeated and
    /// retained replies are dropped and counted.
    pub(super) fn deliver(&self, reply: Publication) -> bool {
        let id = reply
            .correlation
            .as_deref()
            .and_then(|data| QuestionId::try_from(data).ok());
        let waiter = id
            .filter(|_| !reply.retain)
            .and_then(|id| self.waiting().remove(&id));
        let delivered = waiter.is_some_and(|(_, sender)| sender.send(reply).is_ok());
        if !delivered {
            self.unmatched.fetch_add(1, Ordering::Relaxed);
        }
        delivered
    }

    pub(super) fn unmatched(&self) -> u64 {
        self.unmatched.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<QuestionId, (u64, oneshot::Sender<Publication>)>> {
        // The map is consistent between any two operations, so a panic elsewhere leaves it usable.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One expected reply.
#[derive(Debug)]
struct Waiter {
    replies: Arc<Replies>,
    id: QuestionId,
    ticket: u64,
    receiver: oneshot::Receiver<Publication>,
}

impl Waiter {
    /// The reply; `None` when a later waiter for the same id replaced this one.
    async fn reply(&mut self) -> Option<Publication> {
        (&mut self.receiver).await.ok()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut waiting = self.replies.waiting();
        if waiting
            .get(&self.id)
            .is_some_and(|(ticket, _)| *ticket == self.ticket)
        {
            waiting.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(correlation: &[u8]) -> Publication {
        Publication {
            correlation: Some(Bytes::copy_from_slice(correlation)),
            ..Publication::default()
        }
    }

    #[tokio::test]
    async fn a_reply_finds_its_waiter_and_no_other() {
        let replies = Arc::new(Replies::new("gate-01"));
        let (one, mut two) = (replies.expect([1; 16]), replies.expect([2; 16]));
        assert!(!replies.deliver(reply(&[3; 16])), "unknown");
        assert!(!replies.deliver(reply(&[1; 15])), "too short");
        assert!(
            !replies.deliver(Publication::default()),
            "without correlation"
        );
        assert!(
            !replies.deliver(Publication {
                retain: true,
                ..reply(&[1; 16])
            }),
            "retained"
        );
        assert!(replies.deliver(reply(&[2; 16])));
        assert!(!replies.deliver(reply(&[2; 16])), "repeated");
        assert_eq!(two.reply().await, Some(reply(&[2; 16])));
        drop(one);
        assert!(!replies.deliver(reply(&[1; 16])), "late");
        assert_eq!(replies.unmatched(), 6);
        assert!(replies.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_second_waiter_for_the_same_id_replaces_the_first() {
        let replies = Arc::new(Replies::new("gate-01"));
        let (mut first, mut second) = (replies.expect([1; 16]), replies.expect([1; 16]));
        assert_eq!(
            first.reply().await,
            None,
            "the first is replaced, and leaves the second registered"
        );
        assert!(replies.deliver(reply(&[1; 16])));
        assert!(second.reply().await.is_some());
    }

    #[test]
    fn an_unreadable_status_counts_as_an_error() {
        let with = |value: &str| {
            status(&Publication {
                user_properties: vec![(STATUS.into(), value.into())],
                ..Publication::default()
            })
        };
        assert_eq!(with("503"), Some(503));
        assert_eq!(with("bad"), Some(500));
        assert_eq!(status(&Publication::default()), None);
    }
}
