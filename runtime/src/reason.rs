//! Why an answer was settled where it was: the closed list of codes that events, metrics and the
//! gateway's replies share. Pure.

use serde::Serialize;

/// Why an answer is settled where it is. The codes are published, and a closed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Reason {
    /// The kill switch is on.
    KillSwitch,
    /// The rule or the request pins the answer to the local model or to a pool.
    Pin,
    /// The rule accepts the answer of a pool only.
    MustEscalate,
    /// The local answer is below the threshold.
    LowConfidence,
    /// The local answer is at or above the threshold.
    Confident,
    /// No broker session, or no route to the pool.
    LinkDown,
    /// No pool, or none that accepts images.
    NoCapableModel,
    /// The pool's circuit breaker is open after repeated failures.
    BreakerOpen,
    /// Too many pool calls in flight.
    Busy,
    /// The budget of pool calls per minute is exhausted.
    BudgetCalls,
    /// The budget of bytes per minute is exhausted.
    BudgetBytes,
    /// The budget of US dollars per day is exhausted.
    BudgetUsd,
    /// The pool did not answer before the deadline, or before the agent stopped.
    Deadline,
    /// The pool's reply is none of the answers.
    InvalidFormat,
    /// The pool failed, or an earlier model of the request did.
    Fallback,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Reason; 15] = [
        Reason::KillSwitch,
        Reason::Pin,
        Reason::MustEscalate,
        Reason::LowConfidence,
        Reason::Confident,
        Reason::LinkDown,
        Reason::NoCapableModel,
        Reason::BreakerOpen,
        Reason::Busy,
        Reason::BudgetCalls,
        Reason::BudgetBytes,
        Reason::BudgetUsd,
        Reason::Deadline,
        Reason::InvalidFormat,
        Reason::Fallback,
    ];

    /// The published code.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::KillSwitch => "KILL_SWITCH",
            Reason::Pin => "PIN",
            Reason::MustEscalate => "MUST_ESCALATE",
            Reason::LowConfidence => "LOW_CONFIDENCE",
            Reason::Confident => "CONFIDENT",
            Reason::LinkDown => "LINK_DOWN",
            Reason::NoCapableModel => "NO_CAPABLE_MODEL",
            Reason::BreakerOpen => "BREAKER_OPEN",
            Reason::Busy => "BUSY",
            Reason::BudgetCalls => "BUDGET_CALLS",
            Reason::BudgetBytes => "BUDGET_BYTES",
            Reason::BudgetUsd => "BUDGET_USD",
            Reason::Deadline => "DEADLINE",
            Reason::InvalidFormat => "INVALID_FORMAT",
            Reason::Fallback => "FALLBACK",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_equal_the_json_names() {
        for reason in Reason::ALL {
            let json = serde_json::to_value(reason).expect("a reason serializes");
            assert_eq!(json, reason.as_str());
        }
    }
}
