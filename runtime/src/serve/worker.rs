//! A pool's worker: answers requests from a broker's shared subscription, one at a time.
//!
//! A request is acknowledged after its reply was, and the session ends with the connection: a
//! broker that redelivers gives the request of a worker that died to another one; for other brokers
//! the node sends the request once more (see `pool::mqtt`). The reply is an OpenAI chat completion,
//! or an error object with User Property `status`.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::Mqtt;
use serde::Serialize;
use serde_json::json;
use tracing::{info, warn};

use crate::environment::Environment;
use crate::infer::Handle;
use crate::metrics::{RequestOutcome, WorkerMetrics};
use crate::mqtt::{Incoming, Link, LinkError, LinkOptions, Publication, Qos, Received};
use crate::openai::{ApiError, Completion};
use crate::pool::mqtt::{STATUS, shared_subscription};
use crate::serve::chat::completion::{self, Head};
use crate::serve::chat::{BODY_BYTES_MAX, Reader, local_error};

/// Request topics and properties, on top of the body.
const PACKET_OVERHEAD: u32 = 64 << 10;
/// Bytes of requests that wait: two of the largest. Each counts as having the largest of topics and
/// properties.
const WAITING_BYTES_MAX: usize = 2 * (BODY_BYTES_MAX + PACKET_OVERHEAD as usize);
/// How long a request without Message Expiry is worked on.
const EXPIRY_DEFAULT: Duration = Duration::from_secs(3600);

/// The connection of a worker for `pool`.
pub fn link_options(mqtt: Mqtt, pool: &str, environment: &Environment) -> LinkOptions {
    LinkOptions {
        // With the session go its unacknowledged requests, which the broker then gives to other
        // workers.
        session_expiry: Duration::ZERO,
        subscriptions: vec![(shared_subscription(pool), Qos::AtLeastOnce)],
        // The model answers one at a time; a second request would wait here while another worker
        // has nothing to do.
        receive_max: 1,
        packet_bytes_max: BODY_BYTES_MAX as u32 + PACKET_OVERHEAD,
        manual_acks: true,
        ..LinkOptions::new(
            mqtt,
            format!("egret-worker-{}", environment.uuid().simple()),
        )
    }
}

/// A model that answers what arrives on a link.
#[derive(Debug)]
pub struct Worker<'a> {
    /// Made with [`link_options`].
    pub link: &'a Link,
    /// The model.
    pub model: &'a Handle,
    /// Where requests are counted.
    pub metrics: &'a WorkerMetrics,
    /// Time, and ids.
    pub environment: &'a Environment,
}

impl Worker<'_> {
    /// Answers one request after another, until the connection is closed for good.
    pub async fn run(&self, mut deliveries: Incoming) {
        let reader = Reader::default();
        let clock = &self.environment.clock;
        let arrived = |delivery| Arrived {
            delivery,
            at: clock.now(),
        };
        let mut waiting = Waiting::default();
        loop {
            let next = match waiting.take() {
                Some(next) => Some(next),
                None => deliveries.recv().await.map(arrived),
            };
            let Some(Arrived {
                delivery: Received { publication, ack },
                at,
            }) = next
            else {
                return;
            };
            let mut serving = pin!(self.serve_one(publication, at, &reader));
            let outcome = loop {
                tokio::select! {
                    outcome = &mut serving => break outcome,
                    // Receive Maximum 1 is what was subscribed with, but that holds for QoS 1
                    // alone, and not with every broker.
                    Some(delivery) = deliveries.recv() => {
                        if !waiting.put(arrived(delivery)) {
                            self.metrics.request(RequestOutcome::Dropped);
                        }
                    }
                }
            };
            self.metrics.request(outcome);
            // Without an acknowledgement the broker gives the request to another worker.
            if let (true, Some(ack)) = (outcome != RequestOutcome::Returned, ack) {
                ack.send();
            }
        }
    }

    /// Answers one request that arrived `at`.
    async fn serve_one(
        &self,
        request: Publication,
        at: Duration,
        reader: &Reader,
    ) -> RequestOutcome {
        let Some(topic) = request.response_topic.filter(|_| !request.retain) else {
            warn!(
                topic = request.topic,
                "ignored a request that has no Response Topic, or is retained"
            );
            return RequestOutcome::Ignored;
        };
        let clock = &self.environment.clock;
        let began = clock.now();
        // The asker stops waiting at the expiry, so the model is stopped then, too.
        let expires = at + request.expiry.unwrap_or(EXPIRY_DEFAULT);
        let answering = self.answer(request.payload, reader);
        let left = expires.saturating_sub(began);
        let Ok(answered) = tokio::time::timeout(left, answering).await else {
            info!(after = ?clock.now() - began, "a request expired");
            return RequestOutcome::Expired;
        };
        let took = clock.now() - began;
        self.metrics.answered_in(took);
        let result = answered
            .as_ref()
            .map_or_else(|error| error.message.as_str(), |_| "answered");
        info!(?took, result, "request");
        let publication = Publication {
            topic,
            qos: Qos::AtLeastOnce,
            correlation: request.correlation,
            content_type: Some("application/json".into()),
            expiry: Some(expires.saturating_sub(clock.now())),
            ..reply(&answered)
        };
        match (self.link.publish(publication).await, answered) {
            (Ok(()), Ok(_)) => RequestOutcome::Answered,
            (Ok(()), Err(_)) => RequestOutcome::Refused,
            (Err(error @ LinkError::Down(_)), _) => {
                warn!(%error, "the reply was not delivered; the request goes to another worker");
                RequestOutcome::Returned
            }
            (Err(error), _) => {
                warn!(%error, "the reply cannot be delivered");
                RequestOutcome::Undelivered
            }
        }
    }

    async fn answer(&self, body: Bytes, reader: &Reader) -> Result<Completion, ApiError> {
        let question = reader.read(body).await?;
        let answer = self
            .model
            .ask(question.request.clone())
            .await
            .map_err(|error| local_error(&error))?;
        // The model that answered, whatever the request names: its `model` is between the node and
        // the pool.
        let head = Head {
            id: format!("chatcmpl-{}", self.environment.uuid()),
            created: self.environment.clock.unix_secs(),
            model: self.model.identity().name.clone(),
        };
        let routing = json!({"where": "local", "confidence": completion::confidence(&answer)});
        Ok(completion::completion(head, &question, &answer, routing))
    }
}

/// A request, and when it arrived: its expiry counts from then.
struct Arrived {
    delivery: Received,
    at: Duration,
}

impl Arrived {
    fn bytes(&self) -> usize {
        self.delivery.publication.payload.len() + PACKET_OVERHEAD as usize
    }
}

/// Requests that came while another was answered, in their order.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<Arrived>,
    bytes: usize,
}

impl Waiting {
    /// Keeps a request if there is room for it. One that is dropped has to be sent again by its
    /// node; false then.
    fn put(&mut self, request: Arrived) -> bool {
        let bytes = self.bytes + request.bytes();
        if bytes > WAITING_BYTES_MAX {
            warn!(
                "dropped a request: {} bytes wait, and there is room for {WAITING_BYTES_MAX}",
                self.bytes
            );
            // Acknowledged all the same: otherwise it would count against Receive Maximum for as
            // long as the session lasts.
            if let Some(ack) = request.delivery.ack {
                ack.send();
            }
            return false;
        }
        self.bytes = bytes;
        self.queue.push_back(request);
        true
    }

    fn take(&mut self) -> Option<Arrived> {
        let request = self.queue.pop_front()?;
        self.bytes -= request.bytes();
        Some(request)
    }
}

/// The payload of a reply, and its status when it is an error.
fn reply(answered: &Result<Completion, ApiError>) -> Publication {
    match answered {
        Ok(completion) => Publication {
            payload: json_bytes(completion),
            ..Publication::default()
        },
        Err(error) => {
            let mut user_properties = vec![(STATUS.to_owned(), error.status.to_string())];
            user_properties.extend(
                error
                    .retry_after
                    .map(|seconds| ("retry-after".to_owned(), seconds.to_string())),
            );
            Publication {
                payload: json_bytes(&error.body()),
                user_properties,
                ..Publication::default()
            }
        }
    }
}

fn json_bytes(value: &impl Serialize) -> Bytes {
    // Plain structs of strings and numbers always serialize; an empty payload would be read as a
    // broken reply.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_travel_with_their_status() {
        let refused = reply(&Err(ApiError::bad_request("n", "n is not supported")));
        assert_eq!(
            refused.user_properties,
            [("status".to_owned(), "400".to_owned())]
        );
        insta::assert_snapshot!(String::from_utf8_lossy(&refused.payload), @r#"{"error":{"message":"n is not supported","type":"invalid_request_error","param":"n","code":null}}"#);
        let busy = reply(&Err(ApiError::busy("later", 2)));
        assert_eq!(
            busy.user_properties[1],
            ("retry-after".to_owned(), "2".to_owned())
        );
    }

    #[test]
    fn requests_wait_in_order_and_within_a_limit() {
        let request = |name: u8, bytes: usize| Arrived {
            delivery: Received {
                publication: Publication {
                    topic: name.to_string(),
                    payload: vec![name; bytes].into(),
                    ..Publication::default()
                },
                ack: None,
            },
            at: Duration::ZERO,
        };
        let mut waiting = Waiting::default();
        let taken = [(1, BODY_BYTES_MAX), (2, 3), (3, BODY_BYTES_MAX), (4, 5)]
            .map(|(name, bytes)| waiting.put(request(name, bytes)));
        assert_eq!(taken, [true, true, false, true]);
        let kept: Vec<_> = std::iter::from_fn(|| waiting.take())
            .map(|request| request.delivery.publication.topic)
            .collect();
        assert_eq!(kept, ["1", "2", "4"]);
        for _ in 0..2000 {
            waiting.put(request(5, 0));
        }
        assert!(
            (1000..1100).contains(&waiting.queue.len()),
            "{} empty requests fit after the room was given back",
            waiting.queue.len()
        );
    }
}
