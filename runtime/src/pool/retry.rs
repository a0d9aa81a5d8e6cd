//! Which failures are worth another attempt, and when. Pure.

use std::time::Duration;

/// One attempt that brought no reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptFailure {
    /// What it says about the pool.
    pub class: Class,
    /// What happened, in words.
    pub detail: String,
    /// Whether the pool may charge for it all the same: it may have answered, and the answer was
    /// lost.
    pub charged: bool,
    /// Whether the request got as far as the pool.
    pub reached: bool,
}

/// What a server that takes no schemas calls them.
const NAMES_OF_SCHEMAS: [&str; 2] = ["response_format", "schema"];

/// What a failed attempt says about the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Our own way to it is gone: says nothing about the pool.
    LinkDown,
    /// The pool is not well, and may be later; `wait` is what it asked for. Counts towards the
    /// breaker.
    Unhealthy {
        /// `Retry-After`.
        wait: Option<Duration>,
    },
    /// The pool is well and will not take this request.
    Refused,
}

impl AttemptFailure {
    /// No connection: the pool never saw the request.
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

    /// A reply of no use, to a request that must not be sent again.
    pub fn unusable(detail: impl Into<String>) -> Self {
        AttemptFailure {
            class: Class::Refused,
            detail: detail.into(),
            charged: true,
            reached: true,
        }
    }

    /// A reply with an error status: 408, 429 and 5xx are worth another attempt, everything else is
    /// not. A server that takes no schemas says so with 400 or 422, and there is a cure.
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
            && NAMES_OF_SCHEMAS
                .iter()
                .any(|name| message.to_ascii_lowercase().contains(name))
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

/// `Retry-After` in its seconds form; a date, the other form, is left to the backoff.
fn seconds(retry_after: &str) -> Option<Duration> {
    retry_after.trim().parse().ok().map(Duration::from_secs)
}

/// How long to wait for the next attempt; `None` when there is to be none.
///
/// `made` attempts of `allowed` are done, `remaining` is left until the deadline, `backoff` is the
/// wait if the pool asked for none. A wait that does not end before the deadline is not begun: the
/// local answer stands that much sooner.
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
    fn statuses_fall_into_classes() {
        let again = Class::Unhealthy { wait: None };
        for (status, retry_after, class) in [
            (400, None, Class::Refused),
            (401, None, Class::Refused),
            (403, None, Class::Refused),
            (404, None, Class::Refused),
            (408, None, again),
            (413, None, Class::Refused),
            (422, Some("1"), Class::Refused),
            (429, None, again),
            (
                429,
                Some("7"),
                Class::Unhealthy {
                    wait: Some(Duration::from_secs(7)),
                },
            ),
            (429, Some("Wed, 21 Oct 2015 07:28:00 GMT"), again),
            (500, None, again),
            (502, None, again),
            (
                503,
                Some("0"),
                Class::Unhealthy {
                    wait: Some(Duration::ZERO),
                },
            ),
            (504, Some("-3"), again),
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
    fn a_pool_without_schemas_is_told_its_cure() {
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
        fn no_wait_outlasts_the_deadline_or_the_attempts(
            wait in proptest::option::of(0_u64..100), made in 1_u32..6, allowed in 1_u32..6, remaining in 0_u64..100, backoff in 0_u64..100,
        ) {
            let seconds = Duration::from_secs;
            let class = Class::Unhealthy { wait: wait.map(seconds) };
            if let Some(wait) = next_wait(class, made, allowed, seconds(remaining), seconds(backoff)) {
                prop_assert!(wait < seconds(remaining) && made < allowed);
            }
            for never in [Class::Refused, Class::LinkDown] {
                prop_assert_eq!(next_wait(never, made, allowed, seconds(remaining), seconds(backoff)), None);
            }
        }
    }
}
