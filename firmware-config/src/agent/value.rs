//! Checks of single values: each turns one TOML value into what the configuration holds, or says
//! what was expected instead. Pure; [`super::section`] adds positions and key paths.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use toml::de::DeValue;

use super::diagnostics::Mismatch;
use super::units::{self, format_duration, format_rate};
use crate::redact::redact;

/// Longest path, in bytes: Linux's limit.
const PATH_MAX: usize = 4096;
/// Longest id, in characters.
const ID_MAX: usize = 64;
/// Characters of a found value that are quoted in a diagnostic.
const QUOTE_MAX: usize = 60;

pub(super) type Checked<T> = Result<T, Mismatch>;

/// A text of 1 to `max` characters that is not blank, as written.
pub(super) fn text(max: usize) -> impl Fn(&DeValue<'_>) -> Checked<String> {
    move |value| match string(value, "text")? {
        text if text.trim().is_empty() => Err(Mismatch::new(
            found(value),
            "text",
            "write something between the quotes",
        )),
        text if text.chars().count() > max => {
            let length = format!("{} characters", text.chars().count());
            Err(Mismatch::new(
                length,
                format!("at most {max} characters"),
                "shorten it",
            ))
        }
        text => Ok(text.to_owned()),
    }
}

/// `[a-z0-9_-]{1,64}`.
pub(super) fn id(value: &DeValue<'_>) -> Checked<String> {
    let id = string(value, "an id")?;
    let allowed = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '-');
    if (1..=ID_MAX).contains(&id.len()) && id.chars().all(allowed) {
        return Ok(id.to_owned());
    }
    let near: String = id
        .trim()
        .to_lowercase()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .take(ID_MAX)
        .collect();
    let near = if near.is_empty() {
        "gate-01".to_owned()
    } else {
        near
    };
    Err(Mismatch::new(
        found(value),
        "1 to 64 of a-z, 0-9, _ and -: ids become MQTT topics",
        format!("write {near:?}"),
    ))
}

/// A path, as written: relative ones are not resolved here.
pub(super) fn path(value: &DeValue<'_>) -> Checked<PathBuf> {
    let path = string(value, "a path")?;
    if path.is_empty() || path.len() > PATH_MAX || path.contains('\0') {
        return Err(Mismatch::new(
            found(value),
            "a path of 1 to 4096 bytes",
            "write the path of a file or folder",
        ));
    }
    Ok(PathBuf::from(path))
}

/// Exactly one of the named choices.
pub(super) fn choice<T: Copy>(
    choices: &'static [(&'static str, T)],
) -> impl Fn(&DeValue<'_>) -> Checked<T> {
    move |value| {
        let names = || choices.iter().map(|(name, _)| *name);
        let expected = || format!("one of {}", names().collect::<Vec<_>>().join(", "));
        let written = value.as_str().unwrap_or_default();
        choices
            .iter()
            .find(|(name, _)| *name == written)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                // A wilder guess could turn a switch the wrong way.
                let first_word = || {
                    names()
                        .find(|name| !written.is_empty() && name.split('-').next() == Some(written))
                };
                let help = match nearest(written, names()).or_else(first_word) {
                    Some(near) => format!("write {near:?}"),
                    None => "choose one of them, in quotes".to_owned(),
                };
                Mismatch::new(found(value), expected(), help)
            })
    }
}

/// A whole number in `range`.
pub(super) fn whole(range: RangeInclusive<u32>) -> impl Fn(&DeValue<'_>) -> Checked<u32> {
    move |value| {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let number = value
            .as_integer()
            .and_then(|integer| i128::from_str_radix(integer.as_str(), integer.radix()).ok());
        match number.map(u32::try_from) {
            Some(Ok(number)) if range.contains(&number) => Ok(number),
            Some(_) => Err(Mismatch::new(
                found(value),
                expected,
                "choose a number within these limits",
            )),
            None => Err(Mismatch::new(
                found(value),
                expected,
                "write digits without quotes",
            )),
        }
    }
}

/// A number in `range`, with or without a fraction.
pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&DeValue<'_>) -> Checked<f64> {
    move |value| {
        let expected = format!("a number from {} to {}", range.start(), range.end());
        let number = match value {
            DeValue::Float(float) => float.as_str().parse::<f64>().ok(),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .map(|integer| integer as f64),
            _ => None,
        };
        match number {
            Some(number) if range.contains(&number) => Ok(number),
            Some(_) => Err(Mismatch::new(
                found(value),
                expected,
                "choose a number within these limits",
            )),
            None => Err(Mismatch::new(
                found(value),
                expected,
                "write the number without quotes",
            )),
        }
    }
}

/// `true` or `false`.
pub(super) fn flag(value: &DeValue<'_>) -> Checked<bool> {
    value.as_bool().ok_or_else(|| {
        Mismatch::new(
            found(value),
            "true or false",
            "write true or false, without quotes",
        )
    })
}

/// A duration in `range`.
pub(super) fn duration(
    range: RangeInclusive<Duration>,
) -> impl Fn(&DeValue<'_>) -> Checked<Duration> {
    move |value| {
        let expected = format!(
            "a duration from {} to {}",
            format_duration(*range.start()),
            format_duration(*range.end())
        );
        measured(value, expected, units::parse_duration, |duration| {
            range.contains(duration)
        })
    }
}

/// A rate whose period is in `range`.
pub(super) fn rate(range: RangeInclusive<Duration>) -> impl Fn(&DeValue<'_>) -> Checked<Duration> {
    move |value| {
        let expected = format!(
            "a rate from {} to {}",
            format_rate(*range.end()),
            format_rate(*range.start())
        );
        measured(value, expected, units::parse_rate, |period| {
            range.contains(period)
        })
    }
}

/// A size in bytes.
pub(super) fn size(value: &DeValue<'_>) -> Checked<u64> {
    measured(value, "a size".to_owned(), units::parse_size, |_| true)
}

fn measured<T>(
    value: &DeValue<'_>,
    expected: String,
    parse: impl Fn(&str) -> Result<T, units::UnitError>,
    within: impl Fn(&T) -> bool,
) -> Checked<T> {
    // A number without a unit is the usual mistake: its digits are used for the suggestion.
    let written = match value {
        DeValue::Integer(integer) => integer.as_str(),
        other => other.as_str().unwrap_or_default(),
    };
    match parse(written) {
        Ok(measure) if value.is_str() && within(&measure) => Ok(measure),
        Ok(_) => Err(Mismatch::new(
            found(value),
            expected,
            "choose one within these limits",
        )),
        Err(error) => Err(Mismatch::new(
            found(value),
            expected,
            format!(
                "write a unit, in quotes, such as {:?} ({})",
                error.example, error.units
            ),
        )),
    }
}

/// The text of a string value.
pub(super) fn string<'v>(value: &'v DeValue<'_>, expected: &str) -> Checked<&'v str> {
    value.as_str().ok_or_else(|| {
        Mismatch::new(
            found(value),
            format!("{expected} in quotes"),
            "write it as a string: \"…\"",
        )
    })
}

/// A found value as diagnostics show it: type and content, short, without passwords.
pub(super) fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => quote(text),
        DeValue::Integer(integer) => format!("integer {}", short(&integer.to_string())),
        DeValue::Float(float) => format!("float {}", short(float.as_str())),
        DeValue::Boolean(flag) => flag.to_string(),
        DeValue::Datetime(time) => format!("date {time}"),
        DeValue::Array(_) => "an array".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// `text` in quotes, escaped, short, without passwords.
pub(super) fn quote(text: &str) -> String {
    format!("{:?}", short(&redact(text)))
}

fn short(text: &str) -> String {
    if text.chars().count() <= QUOTE_MAX {
        text.to_owned()
    } else {
        text.chars().take(QUOTE_MAX).chain(['…']).collect()
    }
}

/// The name that was probably meant, if one is similar enough.
pub(super) fn nearest<'n>(written: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let written: Vec<char> = written
        .chars()
        .take(ID_MAX)
        .map(|c| {
            if c == '_' {
                '-'
            } else {
                c.to_ascii_lowercase()
            }
        })
        .collect();
    let near_max = (written.len() / 3).max(1);
    names
        .map(|name| (distance(&written, name), name))
        .filter(|(distance, _)| *distance <= near_max)
        .min()
        .map(|(_, name)| name)
}

/// Levenshtein distance: insertions, deletions and replacements between the two.
fn distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (i, from) in b.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_similar_name_is_suggested() {
        let names = ["threshold", "threads", "max-new-tokens"];
        for (written, expected) in [
            ("treshold", Some("threshold")),
            ("max_new_tokens", Some("max-new-tokens")),
            ("thread", Some("threads")),
            ("colour", None),
            ("", None),
        ] {
            assert_eq!(nearest(written, names.into_iter()), expected, "{written}");
        }
    }
}
