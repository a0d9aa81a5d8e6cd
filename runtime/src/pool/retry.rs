//! Which failed attempts are retried, and when. Pure.

use std::time::Duration;

/// Why one attempt returned no usable reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptFailure {
    /// What the failure means for the pool.
    pub class: Class,
    /// What happened, for logs.
    pub detail: String,
    /// Whether the pool may charge for the attempt: it may have answered, and the answer was lost.
    pub charged: bool,
    /// Whether the request reached the pool.
    pub reached: bool,
}

/// Words in the error of a server that does not support schemas.
const SCHEMA_WORDS: [&str; 2] = ["response_format", "schema"];

/// What a failed attempt means for the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Our own connection to the broker is down, which says nothing about the pool.
    LinkDown,
    /// The pool is unreachable or overloaded, which may pass. Counts towards the circuit breaker.
    Unhealthy {
        /// The wait that the pool asked for in `Retry-After`.
        wait: Option<Duration>,
    },
    /// The pool is healthy, but does not accept this request: a retry would not help.
    Refused,
}

impl AttemptFailure {
    /// The request was not sent: the pool never received it.
    pub fn unreachable(class: Class, detail: impl Into<String>) -> Self {
        AttemptFailure {
            class,
            detail: detail.into(),
            charged: false,
            reached: false,
        }
    }

    /// The connection broke, or the reply was cut short.
    pub fn interrupted(detail: impl Into<String>) -> Self {
        AttemptFailure {
            class: Class::Unhealthy { wait: None },
            detail: detail.into(),
            charged: true,
            reached: true,
        }
    }

    /// The reply cannot be used, and a retry would not help.
    pub fn unusable(detail: impl Into<String>) -> Self {
        AttemptFailure {
            class: Class::Refused,
            detail: detail.into(),
            charged: true,
            reached: true,
        }
    }

    /// A reply with an error status: 408, 429 and 5xx are retried, everything else is not. For a
    /// server that refuses schemas with 400 or 422, the detail ends with help.
    pub fn status(status: u16, retry_after: Option<&str>, message: &str) -> Self {
        let class = match status {
            408 | 429 | 500..=599 => Class::Unhealthy {
                wait: retry_after.and_then(seconds),
            },
            _ => Class::Refused,
        };
        let mut detail = if message.is_empty() {
            format!("status {status}")
        } else {
            format!("status {status}: {message}")
        };
        if matches!(status, 400 | 422)
            && SCHEMA_WORDS
                .iter()
                .any(|word| message.to_ascii_lowercase().contains(word))
        {
            detail.push_str("; set closed = \"text\" on this pool");
        }
        AttemptFailure {
            class,
            detail,
            charged: false,
            reached: true,
        }
    }
}

/// `Retry-After` in seconds; for its other form, a date, the backoff is used instead.
fn seconds(retry_after: &str) -> Option<Duration> {
    retry_after.trim().parse().ok().map(Duration::from_secs)
}

/// The wait before the next attempt; `None` if there is no next attempt.
///
/// `made` attempts of `allowed` are done, `remaining` is left until the deadline, and `backoff` is
/// the wait if the pool asked for none. A wait that would not end before the deadline is not
/// started, so that the local answer is used sooner.
pub fn next_wait(
    class: Class,
    made: u32,
    allowed: u32,
    remaining: Duration,
    backoff: Duration,
) -> Option<Duration> {
    let Class::Unhealthy { wait } = class else {
        return None;
    };
    let wait = wait.unwrap_or(backoff);
    (made < allowed && wait < remaining).then_some(wait)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_status_has_a_class() {
        let retried = Class::Unhealthy { wait: None };
        for (status, retry_after, class) in [
            (400, None, Class::Refused),
            (401, None, Class::Refused),
            (403, None, Class::Refused),
            (404, None, Class::Refused),
            (408, None, retried),
            (413, None, Class::Refused),
            (422, Some("1"), Class::Refused),
            (429, None, retried),
            (
                429,
                Some("7"),
                Class::Unhealthy {
                    wait: Some(Duration::from_secs(7)),
                },
            ),
            (429, Some("Wed, 21 Oct 2015 07:28:00 GMT"), retried),
            (500, None, retried),
            (502, None, retried),
            (
                503,
                Some("0"),
                Class::Unhealthy {
                    wait: Some(Duration::ZERO),
                },
            ),
            (504, Some("-3"), retried),
            (307, None, Class::Refused),
        ] {
            assert_eq!(
                AttemptFailure::status(status, retry_after, "").class,
                class,
                "{status} {retry_after:?}"
            );
        }
    }

    #[test]
    fn an_error_about_schemas_comes_with_help() {
        for (status, message, detail) in [
            (400, "", "status 400"),
            (400, "messages is empty", "status 400: messages is empty"),
            (
                400,
                "unknown field `response_format`",
                "status 400: unknown field `response_format`; set closed = \"text\" on this pool",
            ),
            (
                422,
                "json_schema: not here",
                "status 422: json_schema: not here; set closed = \"text\" on this pool",
            ),
            (
                400,
                "Schema unsupported",
                "status 400: Schema unsupported; set closed = \"text\" on this pool",
            ),
            (
                500,
                "the schema broke us",
                "status 500: the schema broke us",
            ),
        ] {
            assert_eq!(AttemptFailure::status(status, None, message).detail, detail);
        }
    }

    proptest! {
        #[test]
        fn no_retry_after_the_deadline_or_beyond_the_allowed_attempts(
            wait in proptest::option::of(0_u64..100), made in 1_u32..6, allowed in 1_u32..6, remaining in 0_u64..100, backoff in 0_u64..100,
        ) {
            let seconds = Duration::from_secs;
            let class = Class::Unhealthy { wait: wait.map(seconds) };
            if let Some(wait) = next_wait(class, made, allowed, seconds(remaining), seconds(backoff)) {
                prop_assert!(wait < seconds(remaining) && made < allowed);
            }
            for final_class in [Class::Refused, Class::LinkDown] {
                prop_assert_eq!(next_wait(final_class, made, allowed, seconds(remaining), seconds(backoff)), None);
            }
        }
    }
}
