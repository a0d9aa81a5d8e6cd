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

/// Types of JSON values that a Rust type alone does not name, for the generated documents.
#[cfg(test)]
pub(crate) mod schema {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    macro_rules! json_types {
        ($($name:ident: $json:literal, $format:literal;)*) => {$(
            pub(crate) enum $name {}

            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($name).into()
                }

                fn inline_schema() -> bool {
                    true
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!({ "type": $json, "format": $format })
                }
            }
        )*};
    }

    json_types! {
        Millis: "integer", "ms";
        ByteCount: "integer", "bytes";
        Pixels: "integer", "pixels";
        Probability: "number", "0 to 1";
        Usd: "number", "US dollars";
        Time: "string", "RFC 3339, UTC, milliseconds";
        EpochHex: "string", "16 hex digits";
        Sha256: "string", "64 hex digits";
    }
}
