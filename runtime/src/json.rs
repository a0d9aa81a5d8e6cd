//! How durations and times are written in JSON. Pure.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serializer;

pub(crate) fn millis<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

pub(crate) fn some_millis<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => millis(duration, serializer),
        None => serializer.serialize_none(),
    }
}

pub(crate) fn rfc3339<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    // Always three decimals, so that texts sort as times do.
    serializer.collect_str(&format_args!("{time:.3}"))
}

pub(crate) fn rfc3339_ref<S: Serializer>(
    time: &&Timestamp,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    rfc3339(time, serializer)
}
