//! Why an escalation brought no answer.

use crate::reason::Reason;

/// An escalation without an answer: a code for programs, and words for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct EscalationError {
    /// The published code.
    pub reason: Reason,
    /// What happened, with the pool's id where there is a pool.
    pub detail: String,
}

impl EscalationError {
    /// `reason`, and what happened.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        EscalationError {
            reason,
            detail: detail.into(),
        }
    }

    /// `reason`, and what happened to `pool`.
    pub(crate) fn of_pool(pool: &str, reason: Reason, detail: impl std::fmt::Display) -> Self {
        EscalationError::new(reason, format!("pool {pool}: {detail}"))
    }
}
