//! A reply's text to one of the question's answers. Pure.
//!
//! The contract: by its JSON (`answer`), else by the single candidate found in it as whole words,
//! case-folded, else no answer. Never by similarity: a reply that is not clearly one of the answers
//! is worth less than the local answer it would replace.

use std::cmp::Reverse;

use serde_json::Value;

/// The answer that `content` gives to a question with `answers`; with none, the text itself.
///
/// `None` when the text is empty, names no answer, or names more than one.
pub fn read<'a>(content: &'a str, answers: &'a [String]) -> Option<&'a str> {
    read_property(content, "answer", answers)
}

/// As [`read`], where the JSON's property has another name.
pub fn read_property<'a>(
    content: &'a str,
    property: &str,
    answers: &'a [String],
) -> Option<&'a str> {
    let content = unfenced(said_aloud(content.trim()));
    if answers.is_empty() {
        return (!content.is_empty()).then_some(content);
    }
    match field(content, property) {
        // What the reply calls its answer is all that counts; reasons beside it may name the other
        // answers.
        Some(named) => choose(&named, answers),
        None => choose(content, answers),
    }
}

fn choose<'a>(text: &str, answers: &'a [String]) -> Option<&'a str> {
    let folded = text.trim().to_lowercase();
    let mut same = answers
        .iter()
        .filter(|answer| answer.trim().to_lowercase() == folded);
    match (same.next(), same.next()) {
        (Some(only), None) => return Some(only),
        // Answers that differ in case alone are told apart by case.
        (Some(_), Some(_)) => {
            return answers
                .iter()
                .find(|answer| answer.trim() == text.trim())
                .map(String::as_str);
        }
        (None, _) => {}
    }
    single_found(&words(&folded), answers)
}

/// The one answer whose words stand in `text` in a row. "not visible" is not also a "visible": a
/// find inside a longer one is none.
fn single_found<'a>(text: &[&str], answers: &'a [String]) -> Option<&'a str> {
    let mut finds: Vec<(usize, usize, &String)> = Vec::new();
    for answer in answers {
        let folded = answer.to_lowercase();
        let wanted = words(&folded);
        if wanted.is_empty() {
            continue; // an answer of signs alone is only ever matched whole
        }
        finds.extend(
            text.windows(wanted.len())
                .enumerate()
                .filter(|(_, run)| *run == wanted)
                .map(|(at, _)| (at, at + wanted.len(), answer)),
        );
    }
    // A longer find around another begins no later, so it comes first.
    finds.sort_by_key(|&(from, to, _)| (from, Reverse(to)));
    let (mut found, mut furthest) = (None, (0, 0));
    for (from, to, answer) in finds {
        if to < furthest.1 || (to == furthest.1 && from > furthest.0) {
            continue;
        }
        furthest = (from, to);
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
    let mut before = None;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let after = chars.peek().map(|&(_, c)| c);
        let joins = matches!(c, '.' | ',' | '\'' | '’')
            && before.is_some_and(char::is_alphanumeric)
            && after.is_some_and(char::is_alphanumeric)
            && (matches!(c, '\'' | '’')
                || (before.is_some_and(char::is_numeric) && after.is_some_and(char::is_numeric)));
        if c.is_alphanumeric() || joins {
            start.get_or_insert(at);
        } else if let Some(from) = start.take() {
            words.push(&text[from..at]);
        }
        before = Some(c);
    }
    words.extend(start.map(|from| &text[from..]));
    words
}

/// A property of a JSON object; numbers and booleans as they are written.
fn field(content: &str, property: &str) -> Option<String> {
    if !content.starts_with('{') {
        return None;
    }
    match serde_json::from_str::<Value>(content).ok()?.get(property)? {
        Value::String(text) => Some(text.clone()),
        value @ (Value::Number(_) | Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    }
}

/// What stands behind a model's thoughts, for servers that leave them in the answer; nothing where
/// they were cut off.
fn said_aloud(content: &str) -> &str {
    match content.rsplit_once("</think>") {
        // JSON from its beginning has no thoughts before it.
        Some((thoughts, _)) if thoughts.starts_with('{') => content,
        Some((_, said)) => said.trim(),
        None if content.starts_with("<think>") => "",
        None => content,
    }
}

/// The inside of a reply that is one Markdown code block, as models that were asked for JSON like
/// to write.
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
    fn replies_are_read_as_the_contract_says() {
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
    fn a_megabyte_of_one_answer_is_read_at_once() {
        let begun = std::time::Instant::now();
        assert_eq!(
            read(&"yes ".repeat(REPLY_BYTES_MAX / 4), &answers("yes|no")),
            Some("yes")
        );
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }

    proptest! {
        #[test]
        fn reads_one_of_the_answers_or_nothing(content in any::<String>(), given in proptest::collection::vec("[a-c ]{1,4}", 1..4)) {
            if let Some(answer) = read(&content, &given) {
                prop_assert!(given.iter().any(|candidate| candidate == answer));
            }
        }

        #[test]
        fn an_answer_in_its_json_is_always_read(at in 0_usize..3, noise in "[a-z ]{0,20}") {
            let given = answers("yes|no|cannot tell");
            let content = serde_json::json!({"answer": given[at], "reason": noise}).to_string();
            prop_assert_eq!(read(&content, &given), Some(given[at].as_str()));
        }

        #[test]
        fn words_between_an_answers_words_do_not_change_it(before in "[f-m ]{0,12}", after in "[f-m ]{0,12}") {
            let given = answers("yes|no");
            let content = format!("{before} YES {after}");
            prop_assert_eq!(read(&content, &given), Some("yes"));
        }
    }
}
