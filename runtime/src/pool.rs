//! Bigger models that can be asked: one question in, one settled answer out, over HTTPS or MQTT.
//!
//! ```text
//! PoolQuestion ─question::body─▶ attempt ─▶ attempt ─▶ … ─▶ Completion ─question::settle─▶ Settled
//!                                breaker, backoff, one deadline over all      or EscalationError
//! ```

pub mod breaker;
pub mod error;
pub mod https;
pub mod mqtt;
pub mod question;
pub mod reading;
pub mod retry;
pub mod transport;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::{self, Pool, PoolTransport};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::mqtt::{Link, Publication};
use crate::openai::Completion;
use crate::openai::error::ErrorBody;
use crate::random::Random;
use crate::reason::Reason;
use crate::settled::Settled;
use breaker::{Breaker, Thresholds};
pub use error::EscalationError;
use retry::{AttemptFailure, Class};
use transport::{Attempt, Connector, Transport};

/// Correlation Data and idempotency key: a UUIDv7.
pub type QuestionId = [u8; 16];

/// The largest reply that is read, in bytes.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

/// First and longest wait between two attempts.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

/// A question to a pool. Both transports carry it as the same OpenAI chat-completion request.
#[derive(Debug, Clone)]
pub struct PoolQuestion {
    /// Correlation Data and idempotency key: a UUIDv7.
    pub id: QuestionId,
    /// The question.
    pub question: String,
    /// The answers to choose from; empty for free text.
    pub answers: Vec<String>,
    /// The picture as JPEG; `None` for text alone.
    pub jpeg: Option<Bytes>,
    /// Longest free-text answer in tokens.
    pub max_tokens: usize,
}

/// What a call has used so far. It belongs to the caller, so that it is known also when the call is
/// given up in the middle of an attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Attempts made.
    pub attempts: u32,
    /// Attempts that the pool may charge for: not those that never reached it or came back with an
    /// error status.
    pub charged: u32,
    /// Request bytes sent, all attempts together.
    pub bytes_up: u64,
}

/// Every configured pool; cheap to clone.
#[derive(Debug, Clone)]
pub struct Pools {
    pools: Arc<[Member]>,
    replies: Arc<mqtt::Replies>,
    clock: Clock,
    random: Random,
}

/// One pool and what is known of its health.
#[derive(Debug)]
struct Member {
    config: Pool,
    transport: Box<dyn Transport>,
    breaker: Mutex<Breaker>,
}

/// Why the pools cannot be used as configured.
#[derive(Debug, thiserror::Error)]
pub enum PoolsError {
    /// An MQTT pool without a broker.
    #[error(
        "pool {pool} has mqtt = true, but there is no broker; add an [mqtt] table with its url"
    )]
    NoBroker {
        /// The pool.
        pool: String,
    },
    /// The HTTPS client does not start: no certificate authorities on this system, for one.
    #[error(
        "the HTTPS client does not start: {message}; see that the package ca-certificates is installed"
    )]
    Https {
        /// In the client's own words.
        message: String,
    },
}

impl Pools {
    /// The pools of a configuration. `link` has to be subscribed to [`mqtt::reply_topic`], and its
    /// deliveries there handed to [`Pools::on_reply`].
    ///
    /// # Errors
    /// When a pool wants MQTT and there is no `link`, or the HTTPS client does not start.
    pub fn new(
        pools: &[Pool],
        link: Option<Link>,
        node_id: &str,
        connector: &dyn Connector,
        clock: Clock,
        random: Random,
    ) -> Result<Self, PoolsError> {
        let replies = Arc::new(mqtt::Replies::new(node_id));
        let member = |config: &Pool| {
            let transport: Box<dyn Transport> = match (&config.transport, &link) {
                (PoolTransport::Https { url, api_key_file }, _) => {
                    connector.connect(url, api_key_file.as_deref())?
                }
                (PoolTransport::Mqtt, Some(link)) => Box::new(mqtt::Mqtt::new(
                    link.clone(),
                    config.id.clone(),
                    Arc::clone(&replies),
                )),
                (PoolTransport::Mqtt, None) => {
                    return Err(PoolsError::NoBroker {
                        pool: config.id.clone(),
                    });
                }
            };
            Ok(Member {
                config: config.clone(),
                transport,
                breaker: Mutex::new(Breaker::new(Thresholds::default())),
            })
        };
        Ok(Pools {
            pools: pools.iter().map(member).collect::<Result<_, _>>()?,
            replies: Arc::clone(&replies),
            clock,
            random,
        })
    }

    /// A pool's configuration.
    pub fn get(&self, id: &str) -> Option<&Pool> {
        self.member(id).map(|member| &member.config)
    }

    /// Every pool's configuration, in the order of the file.
    pub fn iter(&self) -> impl Iterator<Item = &Pool> {
        self.pools.iter().map(|member| &member.config)
    }

    /// The pool that is asked where none is named: the first that takes the request, with images
    /// or without.
    pub fn capable(&self, images: bool) -> Option<&Pool> {
        agent::default_pool(self.iter(), images)
    }

    /// What is in the way of asking the pool right now: no broker session on the way to it, or an
    /// open breaker.
    pub fn obstacle(&self, id: &str) -> Option<Reason> {
        let member = self.member(id)?;
        if !member.transport.is_up() {
            return Some(Reason::LinkDown);
        }
        let open = member.breaker().is_open(self.clock.now());
        open.then_some(Reason::BreakerOpen)
    }

    /// Where replies of MQTT pools come in.
    pub fn reply_topic(&self) -> &str {
        &self.replies.topic
    }

    /// Hands over what arrived on [`mqtt::reply_topic`]. False when no call waits for it: it is
    /// wrong, late, or a repeat; that is counted.
    pub fn on_reply(&self, publication: Publication) -> bool {
        self.replies.deliver(publication)
    }

    /// Replies that no call waited for, since the start.
    pub fn unmatched_replies(&self) -> u64 {
        self.replies.unmatched()
    }

    /// Asks a pool a question. Dropping the future takes it back.
    ///
    /// # Errors
    /// When the pool gives no answer, or none of the question's answers, before its deadline.
    pub async fn ask(
        &self,
        id: &str,
        question: &PoolQuestion,
        spent: &mut Spent,
    ) -> Result<Settled, EscalationError> {
        let started = self.clock.now();
        let Some(pool) = self.get(id) else {
            return Err(not_configured(id));
        };
        let body = question::body(question, pool);
        let completion = self.complete(id, question.id, body, spent).await?;
        let latency = self.clock.now() - started;
        question::settle(id, &completion, &question.answers, latency)
    }

    /// Sends a ready request body to a pool, and returns its chat completion. Dropping the future
    /// takes it back.
    ///
    /// # Errors
    /// When the pool gives no chat completion before its deadline.
    pub async fn complete(
        &self,
        id: &str,
        question: QuestionId,
        body: Bytes,
        spent: &mut Spent,
    ) -> Result<Completion, EscalationError> {
        let Some(member) = self.member(id) else {
            return Err(not_configured(id));
        };
        let deadline = member.config.deadline;
        let attempts = self.attempts(member, question, &body, spent);
        let Ok(reply) = tokio::time::timeout(deadline, attempts).await else {
            member.breaker().failed(self.clock.now());
            let detail = format!("no answer within {deadline:?}");
            return Err(EscalationError::of_pool(id, Reason::Deadline, detail));
        };
        parse(&reply?).map_err(|detail| EscalationError::of_pool(id, Reason::InvalidFormat, detail))
    }

    fn member(&self, id: &str) -> Option<&Member> {
        self.pools.iter().find(|member| member.config.id == id)
    }

    /// Makes attempts until one brings a reply, a failure is final, or no attempt is left. The
    /// deadline is the caller's.
    async fn attempts(
        &self,
        member: &Member,
        question: QuestionId,
        body: &Bytes,
        spent: &mut Spent,
    ) -> Result<Bytes, EscalationError> {
        let Pool {
            id,
            attempts,
            deadline,
            ..
        } = &member.config;
        let started = self.clock.now();
        let remaining = || deadline.saturating_sub(self.clock.now() - started);
        let mut backoff = Backoff::new(RETRY.0, RETRY.1);
        let mut last: Option<AttemptFailure> = None;
        loop {
            if let Err(retry_in) = member.breaker().admit(self.clock.now()) {
                return Err(match last {
                    None => {
                        let detail = format!("breaker open, next try in {retry_in:?}");
                        EscalationError::of_pool(id, Reason::BreakerOpen, detail)
                    }
                    Some(failure) => gave_up(id, &failure, spent),
                });
            }
            let charged_before = spent.charged;
            spent.sent(body);
            let more = spent.attempts < *attempts;
            let attempt = Attempt {
                question,
                body,
                remaining: remaining(),
                resend: more.then_some(&mut *spent),
            };
            let failure = match member.transport.attempt(attempt).await {
                Ok(reply) => {
                    member.breaker().succeeded();
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            if !failure.charged {
                spent.charged = charged_before;
            }
            match failure.class {
                Class::LinkDown => {
                    let detail = format!("link down: {}", failure.detail);
                    return Err(EscalationError::of_pool(id, Reason::LinkDown, detail));
                }
                // The pool refused, so it is well.
                Class::Refused if failure.reached => member.breaker().succeeded(),
                // It never saw the request, which says nothing about it.
                Class::Refused => {}
                Class::Unhealthy { .. } => member.breaker().failed(self.clock.now()),
            }
            let backoff = backoff.next_wait(self.random.unit());
            let made = spent.attempts;
            match retry::next_wait(failure.class, made, *attempts, remaining(), backoff) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(gave_up(id, &failure, spent)),
            }
            last = Some(failure);
        }
    }
}

impl Spent {
    /// Counts one copy of a request.
    pub(crate) fn sent(&mut self, body: &Bytes) {
        self.attempts += 1;
        self.charged += 1;
        self.bytes_up += body.len() as u64;
    }
}

impl Member {
    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Never held across an await or a panic; its state is plain data.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn not_configured(pool: &str) -> EscalationError {
    EscalationError::of_pool(pool, Reason::NoCapableModel, "is not configured")
}

fn gave_up(pool: &str, last: &AttemptFailure, spent: &Spent) -> EscalationError {
    let detail = format!("{} (attempts made: {})", last.detail, spent.attempts);
    EscalationError::of_pool(pool, Reason::Fallback, detail)
}

/// A reply's body as a chat completion.
fn parse(reply: &[u8]) -> Result<Completion, String> {
    serde_json::from_slice(reply).map_err(|error| {
        match serde_json::from_slice::<ErrorBody>(reply) {
            Ok(body) => format!(
                "an error with a status of success: {}",
                question::start_of(&body.error.message)
            ),
            Err(_) => format!(
                "expected a chat completion, got {:?} ({error})",
                question::start_of(&String::from_utf8_lossy(reply))
            ),
        }
    })
}

#[cfg(test)]
mod tests;
