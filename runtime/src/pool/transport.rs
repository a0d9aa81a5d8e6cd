//! The seam between a pool and the network: one attempt to get a reply.

use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use super::retry::AttemptFailure;
use super::{PoolsError, QuestionId, Spent};

/// A way to one pool.
pub trait Transport: Debug + Send + Sync {
    /// Whether there is a way to the pool at the moment; false only where that is known without
    /// trying.
    fn is_up(&self) -> bool {
        true
    }

    /// Sends a request once and returns the body of its reply. Dropping the future takes the
    /// request back.
    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>>;
}

/// One attempt.
#[derive(Debug)]
pub struct Attempt<'a> {
    /// Correlation Data, or the idempotency key.
    pub question: QuestionId,
    /// The chat-completion request.
    pub body: &'a Bytes,
    /// Time left until the deadline of the whole call.
    pub remaining: Duration,
    /// Where a second copy of the request is counted; `None` if no second copy may be sent.
    pub resend: Option<&'a mut Spent>,
}

/// Makes transports to pools behind a URL.
pub trait Connector: Debug + Send + Sync {
    /// A transport to the pool at `url`, which ends in `/v1`; its API key is read from a file at
    /// every attempt.
    ///
    /// # Errors
    /// When the client cannot be made.
    fn connect(
        &self,
        url: &str,
        api_key_file: Option<&Path>,
    ) -> Result<Box<dyn Transport>, PoolsError>;
}
