//! Durations, sizes and rates, written as people write them: `"250ms"`, `"512MiB"`, `"1/5s"`.
//!
//! A number without its unit is refused everywhere: `30` could be seconds or milliseconds.

use std::time::Duration;

/// A text that should have been a number with its unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is not a {kind}; write a whole number and its unit, such as {example:?} ({units})"
)]
pub struct UnitError {
    /// What was written.
    pub found: String,
    /// `duration`, `size` or `rate`.
    pub kind: &'static str,
    /// A valid one.
    pub example: String,
    /// The units that are accepted.
    pub units: &'static str,
}

const DURATIONS: [(&str, u64); 6] = [
    ("d", 86_400_000),
    ("h", 3_600_000),
    ("m", 60_000),
    ("s", 1_000),
    ("ms", 1),
    ("min", 60_000),
];
const SIZES: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// `"250ms"`, `"30s"`, `"5m"` (or `"5min"`), `"1h"`, `"7d"`.
///
/// # Errors
/// When the text is not one whole number and one of these units, or does not fit.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    amount(text, &DURATIONS)
        .map(Duration::from_millis)
        .ok_or_else(|| UnitError {
            found: text.to_owned(),
            kind: "duration",
            example: example(text, "30", "s"),
            units: "ms, s, m, h, d",
        })
}

/// The shortest text that [`parse_duration`] reads back as `duration`, whose fraction of a
/// millisecond is dropped.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = DURATIONS[..4]
        .iter()
        .find(|(_, factor)| millis.is_multiple_of(*factor))
        .unwrap_or(&DURATIONS[4]);
    if millis == 0 {
        "0s".to_owned()
    } else {
        format!("{}{unit}", millis / factor)
    }
}

/// `"512MiB"`, `"64KiB"`, `"10MB"`, in bytes.
///
/// # Errors
/// When the text is not one whole number and one of the units, or does not fit.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    amount(text, &SIZES).ok_or_else(|| UnitError {
        found: text.to_owned(),
        kind: "size",
        example: if digits(text).is_some() {
            example(text, "512", "B")
        } else {
            example(text, "512", "MiB")
        },
        units: "B, KiB, MiB, GiB, kB, MB, GB",
    })
}

/// `"4/s"`, `"1/5s"`, `"30/min"`, as the period.
///
/// # Errors
/// When the text is not a whole number per time, or either is zero.
pub fn parse_rate(text: &str) -> Result<Duration, UnitError> {
    let period = || {
        let (times, per) = text.split_once('/')?;
        let times = digits(times).filter(|times| *times > 0)?;
        let per = if per.starts_with(|c: char| c.is_ascii_digit()) {
            amount(per, &DURATIONS)
        } else {
            unit(per, &DURATIONS)
        }?;
        let nanos = u128::from(per) * 1_000_000 / u128::from(times);
        u64::try_from(nanos)
            .ok()
            .filter(|nanos| *nanos > 0)
            .map(Duration::from_nanos)
    };
    period().ok_or_else(|| UnitError {
        found: text.to_owned(),
        kind: "rate",
        example: digits(text).map_or_else(|| "1/s".to_owned(), |times| format!("{times}/s")),
        units: "per ms, s, m, h, d, or several of them: 1/5s",
    })
}

/// The text of a rate with this period: a whole number per second or minute where that is exact,
/// else `1/<duration>`.
#[must_use]
pub fn format_rate(period: Duration) -> String {
    for (unit, span) in [("s", 1_000_000_000_u128), ("min", 60_000_000_000)] {
        let times = (span + period.as_nanos() / 2) / period.as_nanos().max(1);
        if times > 0 && span / times == period.as_nanos() {
            return format!("{times}/{unit}");
        }
    }
    let per = format_duration(period);
    // "1/h", not "1/1h"; "1/12h" stays.
    let per = per
        .strip_prefix('1')
        .filter(|unit| unit.starts_with(|c: char| c.is_alphabetic()))
        .unwrap_or(&per);
    format!("1/{per}")
}

/// `12s` in the smallest unit of the table.
fn amount(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    digits(&text[..unit_at])?.checked_mul(unit(&text[unit_at..], units)?)
}

fn unit(name: &str, units: &[(&str, u64)]) -> Option<u64> {
    units
        .iter()
        .find(|(unit, _)| *unit == name)
        .map(|(_, factor)| *factor)
}

/// `u64::from_str` without the sign it allows.
fn digits(text: &str) -> Option<u64> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// What was probably meant: the written number, or else `number`, with `unit`.
fn example(text: &str, number: &str, unit: &str) -> String {
    let written: String = text
        .trim()
        .chars()
        .take_while(char::is_ascii_digit)
        .take(9)
        .collect();
    format!(
        "{}{unit}",
        if written.is_empty() { number } else { &written }
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", 250),
            ("30s", 30_000),
            ("5m", 300_000),
            ("5min", 300_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "30",
            "s",
            "1.5s",
            "30 s",
            " 30s",
            "-1s",
            "+1s",
            "1m30s",
            "30S",
            "99999999999999999999s",
            "18446744073709551615d",
            "٣s",
        ] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(
            parse_duration("45").map_err(|error| error.to_string()),
            Err("\"45\" is not a duration; write a whole number and its unit, such as \"45s\" (ms, s, m, h, d)".to_owned())
        );
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("1B", 1),
            ("64KiB", 65_536),
            ("512MiB", 536_870_912),
            ("2GiB", 2_147_483_648),
            ("10kB", 10_000),
            ("1MB", 1_000_000),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "512", "512mib", "0.5GiB", "99999999999GiB"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, millis) in [
            ("1/s", 1_000),
            ("4/s", 250),
            ("1/5s", 5_000),
            ("30/min", 2_000),
            ("1/h", 3_600_000),
            ("2/500ms", 250),
        ] {
            assert_eq!(
                parse_rate(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "1",
            "1s",
            "/s",
            "1/",
            "0/s",
            "1/0s",
            "1/s/s",
            "-1/s",
            "1/5",
            "1.5/s",
            "18446744073709551615/ms",
        ] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
        for text in ["1/s", "4/s", "3/s", "60/s", "7/min", "1/5s", "1/h"] {
            let period = parse_rate(text).expect("a rate");
            assert_eq!(parse_rate(&format_rate(period)), Ok(period), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_duration_is_read_back_as_written(millis in 0..=u64::MAX) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_panics(text in any::<String>()) {
            let _ = (parse_duration(&text), parse_size(&text), parse_rate(&text));
        }
    }
}
