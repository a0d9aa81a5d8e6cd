//! Bigger models that can be asked: one question in, one outcome out, over HTTPS or MQTT.
//!
//! ```text
//! PoolQuestion ──question::body──▶ attempt ─▶ attempt ─▶ … (breaker, backoff, one deadline over all) ──question::said──▶ PoolReply
//!                                  https | mqtt             retry: which failures, and when
//! ```

pub mod breaker;
mod https;
pub mod mqtt;
pub mod question;
pub mod reading;
pub mod retry;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use firmware_config::agent::{Pool, PoolTransport};
use uuid::Uuid;

use crate::decide::router::Reason;
use crate::deliver::event::{By, Place, Settled};
use crate::deliver::mqtt::{Link, Publication};
use crate::environment::backoff::Backoff;
use crate::serve::openai::Completion;
use crate::serve::openai::error::ErrorBody;
use breaker::{Breaker, Limits};
use retry::{Class, Failure};

/// Correlation Data and idempotency key: a UUIDv7.
pub type QuestionId = [u8; 16];

/// The largest reply that is read, in bytes.
pub const REPLY_BYTES_MAX: usize = 1 << 20;

/// What is put to a pool. Both transports carry it as the same OpenAI chat-completion request.
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

/// What came of asking.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolReply {
    /// The answer, one of the question's when it has any.
    pub answer: String,
    /// Who answered: the reply's `model`.
    pub model: String,
    /// Probability of the answer when the reply carries one, 0..=1.
    pub confidence: Option<f64>,
    /// From the first attempt to the reply.
    pub latency: Duration,
    /// Attempts made, 1 or more.
    pub attempts: u32,
    /// Request bytes sent, all attempts together.
    pub bytes_up: u64,
    /// `usage.completion_tokens` of the reply, if given.
    pub tokens_out: Option<u64>,
}

/// Why a pool gave no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PoolError {
    /// No broker session.
    #[error("pool {pool}: link down: {detail}")]
    LinkDown {
        /// The pool.
        pool: String,
        /// What failed.
        detail: String,
    },
    /// Too many failures in a row; asked again after a while.
    #[error("pool {pool}: breaker open, next try in {retry_in:?}")]
    BreakerOpen {
        /// The pool.
        pool: String,
        /// Until a trial call is let through.
        retry_in: Duration,
    },
    /// No answer in time.
    #[error("pool {pool}: no answer within {deadline:?}")]
    Deadline {
        /// The pool.
        pool: String,
        /// The configured limit.
        deadline: Duration,
        /// Attempts made.
        attempts: u32,
    },
    /// A reply that is none of the answers, or no chat completion.
    #[error("pool {pool}: {detail}")]
    InvalidFormat {
        /// The pool.
        pool: String,
        /// What was found and what was expected.
        detail: String,
        /// Attempts made.
        attempts: u32,
    },
    /// Refused, or failed after retries.
    #[error("pool {pool}: {detail} (attempts made: {attempts})")]
    Failed {
        /// The pool.
        pool: String,
        /// The last failure.
        detail: String,
        /// Attempts made.
        attempts: u32,
    },
}

impl From<&PoolError> for Reason {
    fn from(error: &PoolError) -> Self {
        match error {
            PoolError::LinkDown { .. } => Reason::LinkDown,
            PoolError::BreakerOpen { .. } => Reason::BreakerOpen,
            PoolError::Deadline { .. } => Reason::Deadline,
            PoolError::InvalidFormat { .. } => Reason::InvalidFormat,
            PoolError::Failed { .. } => Reason::Fallback,
        }
    }
}

/// What a question has cost so far. The asker's, so that it is known also when the question is
/// given up in the middle of an attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Spent {
    /// Attempts made.
    pub attempts: u32,
    /// Those that the pool may charge for: not the ones that never reached it or came back with an
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
}

/// One pool with what is known of its health.
#[derive(Debug)]
struct Member {
    config: Pool,
    transport: Transport,
    breaker: Mutex<Breaker>,
}

#[derive(Debug)]
enum Transport {
    Https(https::Https),
    Mqtt(mqtt::Mqtt),
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
    pub fn new(pools: &[Pool], link: Option<Link>, node_id: &str) -> Result<Self, PoolsError> {
        let client = https::client()?;
        let replies = Arc::new(mqtt::Replies::new(node_id));
        let member = |config: &Pool| {
            let transport = match (&config.transport, &link) {
                (PoolTransport::Https { url, api_key_file }, _) => {
                    Transport::Https(https::Https::new(client.clone(), url, api_key_file.clone()))
                }
                (PoolTransport::Mqtt, Some(link)) => Transport::Mqtt(mqtt::Mqtt::new(
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
                breaker: Mutex::new(Breaker::new(Limits::default())),
            })
        };
        Ok(Pools {
            pools: pools.iter().map(member).collect::<Result<_, _>>()?,
            replies: Arc::clone(&replies),
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

    /// The pool that is asked where none is named: the first that takes the request, with pictures
    /// or without.
    pub fn capable(&self, pictures: bool) -> Option<&Pool> {
        self.iter().find(|pool| pool.images || !pictures)
    }

    /// What is in the way of asking the pool right now: no broker session on the way to it, or too
    /// many failures in a row.
    pub fn obstacle(&self, id: &str) -> Option<Reason> {
        let member = self.member(id)?;
        match &member.transport {
            Transport::Mqtt(mqtt) if !mqtt.is_up() => Some(Reason::LinkDown),
            _ => member
                .breaker()
                .is_open(Instant::now())
                .then_some(Reason::BreakerOpen),
        }
    }

    /// Where replies of MQTT pools come in.
    pub fn reply_topic(&self) -> &str {
        &self.replies.topic
    }

    /// Hands over what arrived on [`mqtt::reply_topic`]. False when nobody waits for it: wrong,
    /// late, or repeated; counted.
    pub fn on_reply(&self, publication: Publication) -> bool {
        self.replies.deliver(publication)
    }

    /// Replies that nobody waited for, since the start.
    pub fn unmatched_replies(&self) -> u64 {
        self.replies.unmatched()
    }

    /// Puts a question to a pool. Dropping the future takes it back.
    ///
    /// # Errors
    /// When the pool gives no answer, or none of the question's answers, before its deadline.
    pub async fn ask(&self, id: &str, question: &PoolQuestion) -> Result<PoolReply, PoolError> {
        let mut spent = Spent::default();
        let started = Instant::now();
        let Some(pool) = self.get(id) else {
            return Err(spent.failed(id, "is not configured".to_owned()));
        };
        let body = question::body(question, pool);
        let completion = self.complete(id, question.id, body, &mut spent).await?;
        PoolReply::read(id, &completion, &question.answers, started.elapsed(), spent)
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
    ) -> Result<Completion, PoolError> {
        let Some(member) = self.member(id) else {
            return Err(spent.failed(id, "is not configured".to_owned()));
        };
        let deadline = member.config.deadline;
        let reply = match tokio::time::timeout(
            deadline,
            member.attempts(question, &body, Instant::now(), spent),
        )
        .await
        {
            Ok(reply) => reply?,
            Err(_) => {
                member.breaker().failed(Instant::now());
                return Err(PoolError::Deadline {
                    pool: id.to_owned(),
                    deadline,
                    attempts: spent.attempts,
                });
            }
        };
        parse(&reply).map_err(|detail| spent.invalid(id, detail))
    }

    fn member(&self, id: &str) -> Option<&Member> {
        self.pools.iter().find(|member| member.config.id == id)
    }
}

impl Settled {
    /// A pool's answer, as it is published.
    pub fn from_pool(pool: &str, reply: &PoolReply) -> Settled {
        Settled {
            text: reply.answer.clone(),
            confidence: reply.confidence,
            confidence_kind: if reply.confidence.is_some() {
                "pool"
            } else {
                "none"
            },
            by: By {
                place: Place::Pool,
                pool: Some(pool.to_owned()),
                model: reply.model.clone(),
                model_sha256: None,
                backend: None,
                ep: "remote".into(),
                total: reply.latency,
                prefill: None,
                decode: None,
                tokens_out: reply.tokens_out,
            },
        }
    }
}

impl PoolReply {
    /// Reads the completion that came of asking `pool`.
    ///
    /// # Errors
    /// When it gives none of `answers`.
    pub fn read(
        pool: &str,
        completion: &Completion,
        answers: &[String],
        latency: Duration,
        spent: Spent,
    ) -> Result<Self, PoolError> {
        let said =
            question::said(completion, answers).map_err(|detail| spent.invalid(pool, detail))?;
        Ok(PoolReply {
            answer: said.answer,
            model: if said.model.is_empty() {
                pool.to_owned()
            } else {
                said.model
            },
            confidence: said.confidence,
            latency,
            attempts: spent.attempts,
            bytes_up: spent.bytes_up,
            tokens_out: said.tokens_out,
        })
    }
}

impl Spent {
    fn sent(&mut self, body: &Bytes) {
        self.attempts += 1;
        self.charged += 1;
        self.bytes_up += body.len() as u64;
    }

    fn failed(&self, pool: &str, detail: String) -> PoolError {
        PoolError::Failed {
            pool: pool.to_owned(),
            detail,
            attempts: self.attempts,
        }
    }

    fn invalid(&self, pool: &str, detail: String) -> PoolError {
        PoolError::InvalidFormat {
            pool: pool.to_owned(),
            detail,
            attempts: self.attempts,
        }
    }
}

impl Member {
    /// Attempts until one brings a reply, the failure is final, or no attempt is left. The deadline
    /// is the caller's.
    async fn attempts(
        &self,
        question: QuestionId,
        body: &Bytes,
        started: Instant,
        spent: &mut Spent,
    ) -> Result<Bytes, PoolError> {
        let pool = &self.config.id;
        let mut backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(4));
        let mut last: Option<Failure> = None;
        loop {
            if let Err(retry_in) = self.breaker().admit(Instant::now()) {
                return Err(match last {
                    None => PoolError::BreakerOpen {
                        pool: pool.clone(),
                        retry_in,
                    },
                    Some(failure) => spent.failed(pool, failure.detail),
                });
            }
            let charged_before = spent.charged;
            spent.sent(body);
            let remaining = |now: Instant| self.config.deadline.saturating_sub(now - started);
            let outcome = match &self.transport {
                Transport::Https(https) => {
                    https
                        .attempt(Uuid::from_bytes(question), body.clone())
                        .await
                }
                Transport::Mqtt(mqtt) => {
                    let again = (spent.attempts < self.config.attempts).then_some(&mut *spent);
                    mqtt.attempt(question, body.clone(), remaining(Instant::now()), again)
                        .await
                }
            };
            let failure = match outcome {
                Ok(reply) => {
                    self.breaker().succeeded();
                    return Ok(reply);
                }
                Err(failure) => failure,
            };
            if !failure.charged {
                spent.charged = charged_before;
            }
            match failure.class {
                Class::LinkDown => {
                    return Err(PoolError::LinkDown {
                        pool: pool.clone(),
                        detail: failure.detail,
                    });
                }
                // The pool said so, and is well; or it was never asked, which says nothing about
                // it.
                Class::Refused if failure.reached => self.breaker().succeeded(),
                Class::Refused => {}
                Class::Unwell { .. } => self.breaker().failed(Instant::now()),
            }
            let wait = backoff.next_wait(rand::random());
            match retry::next_wait(
                failure.class,
                spent.attempts,
                self.config.attempts,
                remaining(Instant::now()),
                wait,
            ) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(spent.failed(pool, failure.detail)),
            }
            last = Some(failure);
        }
    }

    fn breaker(&self) -> MutexGuard<'_, Breaker> {
        // Never held across an await or a panic; its state is plain data.
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
