//! Bigger models that can be asked: one question in, one outcome out, over HTTPS or MQTT.

use std::time::Duration;

use bytes::Bytes;

/// What is put to a pool. Both transports carry it as the same OpenAI chat-completion request.
#[derive(Debug, Clone)]
pub struct PoolQuestion {
    /// Correlation Data and idempotency key: a UUIDv7.
    pub id: [u8; 16],
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
    /// No broker session, or no route to the server.
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
        /// Request bytes sent.
        bytes_up: u64,
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
        /// Request bytes sent.
        bytes_up: u64,
    },
    /// Refused, or failed after retries.
    #[error("pool {pool}: {detail} after {attempts} attempts")]
    Failed {
        /// The pool.
        pool: String,
        /// The last failure.
        detail: String,
        /// Attempts made.
        attempts: u32,
        /// Request bytes sent.
        bytes_up: u64,
    },
}
