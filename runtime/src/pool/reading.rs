//! Parses a reply's text into one of the question's answers. Pure.
//!
//! The contract: the JSON property `answer`, else the single answer found in the text as whole
//! words regardless of case, else no answer. Never by similarity: a reply that is not clearly one
//! of the answers is worth less than the local answer it would replace.

use std::cmp::Reverse;

use serde_json::Value;

/// The one of `answers` that `content` names; without `answers`, the text itself.
///
/// `None` when the text is empty, names no answer, or names more than one.
pub fn read<'a>(content: &'a str, answers: &'a [String]) -> Option<&'a str> {
    read_property(content, "answer", answers)
}

/// As [`read`], but for another JSON property than `answer`.
pub fn read_property<'a>(
    content: &'a str,
    property: &str,
    answers: &'a [String],
) -> Option<&'a str> {
    let content = unfenced(without_thinking(content.trim()));
    if answers.is_empty() {
        return (!content.is_empty()).then_some(content);
    }
    match json_property(content, property) {
        // Other properties, such as a reason, may name other answers.
        Some(value) => match_answer(&value, answers),
        None => match_answer(content, answers),
    }
}

fn match_answer<'a>(text: &str, answers: &'a [String]) -> Option<&'a str> {
    let folded = text.trim().to_lowercase();
    let mut equal = answers
        .iter()
        .filter(|answer| answer.trim().to_lowercase() == folded);
    match (equal.next(), equal.next()) {
        (Some(only), None) => return Some(only),
        // Answers that differ only in case have to match exactly.
        (Some(_), Some(_)) => {
            return answers
                .iter()
                .find(|answer| answer.trim() == text.trim())
                .map(String::as_str);
        }
        (None, _) => {}
    }
    single_answer_in(&words(&folded), answers)
}

/// The only answer that occurs in `text` as consecutive words. A match inside a longer one does not
/// count: "not visible" does not contain the answer "visible".
fn single_answer_in<'a>(text: &[&str], answers: &'a [String]) -> Option<&'a str> {
    let mut matches: Vec<(usize, usize, &String)> = Vec::new();
    for answer in answers {
        let folded = answer.to_lowercase();
        let wanted = words(&folded);
        if wanted.is_empty() {
            continue; // an answer without letters and digits has to be the whole reply
        }
        matches.extend(
            text.windows(wanted.len())
                .enumerate()
                .filter(|(_, run)| *run == wanted)
                .map(|(start, _)| (start, start + wanted.len(), answer)),
        );
    }
    // A match that contains another starts no later and ends no earlier, so it comes first.
    matches.sort_by_key(|&(start, end, _)| (start, Reverse(end)));
    let (mut found, mut furthest) = (None, (0, 0));
    for (start, end, answer) in matches {
        if end < furthest.1 || (end == furthest.1 && start > furthest.0) {
            continue;
        }
        furthest = (start, end);
        if found.is_some_and(|found| found != answer) {
            return None;
        }
        found = Some(answer);
    }
    found.map(String::as_str)
}

/// Runs of letters and digits. A dot, comma or apostrophe between two of them is part of the word:
/// "1.5" is not a "1".
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut start = None;
    let mut previous = None;
    let mut chars = text.char_indices().peekable();
    while let Some((index, c)) = chars.next() {
        let next = chars.peek().map(|&(_, c)| c);
        let joins = matches!(c, '.' | ',' | '\'' | '’')
            && previous.is_some_and(char::is_alphanumeric)
            && next.is_some_and(char::is_alphanumeric)
            && (matches!(c, '\'' | '’')
                || (previous.is_some_and(char::is_numeric) && next.is_some_and(char::is_numeric)));
        if c.is_alphanumeric() || joins {
            start.get_or_insert(index);
        } else if let Some(from) = start.take() {
            words.push(&text[from..index]);
        }
        previous = Some(c);
    }
    words.extend(start.map(|from| &text[from..]));
    words
}

/// A property of a JSON object as text; numbers and booleans as written in JSON.
fn json_property(content: &str, property: &str) -> Option<String> {
    if !content.starts_with('{') {
        return None;
    }
    match serde_json::from_str::<Value>(content).ok()?.get(property)? {
        Value::String(text) => Some(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

/// The text after a model's thinking block, for servers that do not remove it; empty if the block
/// was cut off.
fn without_thinking(content: &str) -> &str {
    match content.rsplit_once("</think>") {
        // A reply that starts as JSON has no thinking block.
        Some((thinking, _)) if thinking.starts_with('{') => content,
        Some((_, answer)) => answer.trim(),
        None if content.starts_with("<think>") => "",
        None => content,
    }
}

/// The content of a reply that is a single Markdown code block, which models often write when they
/// are asked for JSON.
fn unfenced(content: &str) -> &str {
    let inside = content
        .strip_prefix("```")
        .and_then(|rest| rest.strip_suffix("```"));
    match inside.and_then(|inside| inside.split_once('\n')) {
        Some((language, block)) if !language.contains(char::is_whitespace) => block.trim(),
        _ => content,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::pool::REPLY_BYTES_MAX;

    fn answers(text: &str) -> Vec<String> {
        text.split('|')
            .filter(|answer| !answer.is_empty())
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn replies_are_parsed_by_the_contract() {
        struct Case {
            content: &'static str,
            answers: &'static str,
            read: Option<&'static str>,
        }
        let case = |content, answers, read| Case {
            content,
            answers,
            read,
        };
        for Case {
            content,
            answers: given,
            read: expected,
        } in [
            case(r#"{"answer":"yes"}"#, "yes|no", Some("yes")),
            case(
                r#" {"answer": " Yes. ", "reason": "no doubt"} "#,
                "yes|no",
                Some("yes"),
            ),
            case(r#"{"answer":"maybe","reason":"yes"}"#, "yes|no", None),
            case(r#"{"answer":3}"#, "1|2|3", Some("3")),
            case(r#"{"answer":true}"#, "true|false", Some("true")),
            case(r#"{"answer":["yes"]}"#, "yes|no", Some("yes")),
            case(r#"{"answer":"yes""#, "yes|no", Some("yes")),
            case("```json\n{\"answer\": \"no\"}\n```", "yes|no", Some("no")),
            case("Yes", "yes|no", Some("yes")),
            case(
                "<think>no, or yes</think>\n{\"answer\":\"yes\"}",
                "yes|no",
                Some("yes"),
            ),
            case("<think>it is not yes", "yes|no", None),
            case("<think>a dog?</think> a cat", "", Some("a cat")),
            case("Yes, there is a person.", "yes|no", Some("yes")),
            case("The answer is yes or no", "yes|no", None),
            case("I see nothing", "yes|no", None),
            case("nobody", "yes|no", None),
            case("", "yes|no", None),
            case(
                "the lamp is not visible",
                "visible|not visible",
                Some("not visible"),
            ),
            case(
                "visible here, not visible there",
                "visible|not visible",
                None,
            ),
            case("There are 10 cars", "1|10", Some("10")),
            case("about 1.5", "1|5", None),
            case("1.", "1|5", Some("1")),
            case("don't know", "t|know", Some("know")),
            case("+", "+|-", Some("+")),
            case("+", " + |-", Some(" + ")),
            case(r#"{"answer":"</think>"}"#, "</think>|no", Some("</think>")),
            case("A", "a|A", Some("A")),
            case("Ja, natürlich", "JA|NEIN", Some("JA")),
            case("STRASSE", "straße|weg", None),
            case("  a dog on a lawn ", "", Some("a dog on a lawn")),
            case("   ", "", None),
        ] {
            let given = answers(given);
            assert_eq!(read(content, &given), expected, "{content:?} of {given:?}");
        }
    }

    #[test]
    fn a_reply_of_a_megabyte_is_parsed_quickly() {
        let started = std::time::Instant::now();
        assert_eq!(
            read(&"yes ".repeat(REPLY_BYTES_MAX / 4), &answers("yes|no")),
            Some("yes")
        );
        assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    }

    proptest! {
        #[test]
        fn returns_one_of_the_answers_or_none(content in any::<String>(), given in proptest::collection::vec("[a-c ]{1,4}", 1..4)) {
            if let Some(answer) = read(&content, &given) {
                prop_assert!(given.iter().any(|candidate| candidate == answer));
            }
        }

        #[test]
        fn an_answer_in_json_is_always_found(index in 0_usize..3, noise in "[a-z ]{0,20}") {
            let given = answers("yes|no|cannot tell");
            let content = serde_json::json!({"answer": given[index], "reason": noise}).to_string();
            prop_assert_eq!(read(&content, &given), Some(given[index].as_str()));
        }

        #[test]
        fn words_around_an_answer_do_not_change_it(before in "[f-m ]{0,12}", after in "[f-m ]{0,12}") {
            let given = answers("yes|no");
            let content = format!("{before} YES {after}");
            prop_assert_eq!(read(&content, &given), Some("yes"));
        }
    }
}
