//! Builds the request body for a question, and turns the chat completion into an answer. Pure; both
//! transports share it.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use firmware_config::agent::{ClosedForm, Pool};
use serde_json::{Value, json};

use super::{EscalationError, PoolQuestion, reading};
use crate::openai::Completion;
use crate::reason::Reason;
use crate::settled::{AnswerSource, By, ConfidenceKind, Settled};

/// The chat-completion request that asks `pool` the `question`: the image first, then the text.
pub fn body(question: &PoolQuestion, pool: &Pool) -> Bytes {
    let text = match pool.closed {
        ClosedForm::Text if !question.answers.is_empty() => {
            format!("{} {}", question.question, choice(&question.answers))
        }
        _ => question.question.clone(),
    };
    let mut content = Vec::new();
    if let Some(jpeg) = &question.jpeg {
        let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg));
        content.push(json!({"type": "image_url", "image_url": {"url": url}}));
    }
    content.push(json!({"type": "text", "text": text}));
    let mut request = json!({
        "model": pool.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": question.max_tokens,
        "temperature": 0,
    });
    if pool.closed == ClosedForm::Schema && !question.answers.is_empty() {
        request["response_format"] = schema(&question.answers);
    }
    Bytes::from(request.to_string())
}

/// The `response_format` of a question with answers: an object with the required string property
/// `answer`.
fn schema(answers: &[String]) -> Value {
    json!({
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "strict": true,
            "schema": {
                "type": "object",
                "properties": {"answer": {"type": "string", "enum": answers}},
                "required": ["answer"],
                "additionalProperties": false,
            },
        },
    })
}

/// What asks for one of `answers` in words, where a pool does not take a schema.
pub(crate) fn choice(answers: &[String]) -> String {
    format!("Answer with one of: {}.", answers.join(", "))
}

/// Longest name of a model in a pool's reply, in characters; the rest is cut off.
const MODEL_CHARS_MAX: usize = 200;
/// Longest free-text answer accepted from a pool, in bytes: every step of its event contains it.
const ANSWER_BYTES_MAX: usize = 16 << 10;

/// The answer of `pool` in `completion`, received `latency` after the question was sent.
///
/// # Errors
/// When the completion has no content or names none of `answers`, or when free text is too long.
pub fn settle(
    pool: &str,
    completion: &Completion,
    answers: &[String],
    latency: Duration,
) -> Result<Settled, EscalationError> {
    let answer = answer(completion, answers)
        .map_err(|detail| EscalationError::of_pool(pool, Reason::InvalidFormat, detail))?;
    let confidence = confidence(completion);
    let model = match completion.model.as_str() {
        "" => pool.to_owned(),
        model => model.chars().take(MODEL_CHARS_MAX).collect(),
    };
    Ok(Settled {
        text: answer.to_owned(),
        confidence,
        confidence_kind: confidence.map_or(ConfidenceKind::None, |_| ConfidenceKind::Pool),
        by: By {
            source: AnswerSource::Pool,
            pool: Some(pool.to_owned()),
            model,
            model_sha256: None,
            backend: None,
            ep: "remote".into(),
            total: latency,
            prefill: None,
            decode: None,
            tokens_out: completion.usage.map(|usage| usage.completion_tokens),
        },
    })
}

/// The answer in a completion: one of `answers`, or free text if there are none.
///
/// # Errors
/// A message, when the completion has no content or names none of the answers, or when free text is
/// too long.
pub fn answer<'a>(completion: &'a Completion, answers: &'a [String]) -> Result<&'a str, String> {
    let content = content(completion)?;
    if answers.is_empty() && content.len() > ANSWER_BYTES_MAX {
        return Err(format!(
            "the answer has {} bytes, expected at most {ANSWER_BYTES_MAX}",
            content.len()
        ));
    }
    reading::read(content, answers).ok_or_else(|| match answers {
        [] => "the reply's content is empty".to_owned(),
        answers => format!(
            "expected one of {}, got {:?}",
            answers.join(", "),
            start_of(content)
        ),
    })
}

/// The text of the first choice.
///
/// # Errors
/// A message, when there is none.
pub fn content(completion: &Completion) -> Result<&str, String> {
    let Some(choice) = completion.choices.first() else {
        return Err("the reply has no choices".to_owned());
    };
    match (&choice.message.content, &choice.message.refusal) {
        (Some(content), _) => Ok(content),
        (None, Some(refusal)) => Err(format!("the model refused: {:?}", start_of(refusal))),
        (None, None) => Err("the reply's message has no content".to_owned()),
    }
}

/// `routing.confidence.p`, which Egret's own workers and gateways add. Log-probabilities of other
/// servers are not used: they are of JSON text, not of answers. If a gateway asked a pool of its
/// own, the confidence is not used either: it is that of the local answer that the pool's replaced.
fn confidence(completion: &Completion) -> Option<f64> {
    let routing = completion
        .routing
        .as_ref()
        .filter(|routing| routing["where"] == "local")?;
    let p = routing.pointer("/confidence/p")?.as_f64()?;
    (0.0..=1.0).contains(&p).then_some(p)
}

/// The beginning of a text from outside, long enough to recognise it in a log.
pub(crate) fn start_of(text: &str) -> String {
    const CHARS: usize = 120;
    match text.char_indices().nth(CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use firmware_config::agent::PoolTransport;

    use super::*;

    fn question(answers: &[&str]) -> PoolQuestion {
        PoolQuestion {
            id: [7; 16],
            question: "Is there a person?".into(),
            answers: answers.iter().map(|&answer| answer.to_owned()).collect(),
            jpeg: Some(Bytes::from_static(b"\xff\xd8\xff")),
            max_tokens: 16,
        }
    }

    /// A pool behind a broker, which accepts images.
    pub(crate) fn pool(closed: ClosedForm) -> Pool {
        Pool {
            id: "big".into(),
            transport: PoolTransport::Mqtt,
            model: "some-vlm".into(),
            deadline: Duration::from_secs(8),
            closed,
            images: true,
            attempts: 3,
            usd_per_call: None,
        }
    }

    fn reply(value: Value) -> Completion {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_question_with_answers_is_sent_with_a_schema() {
        let body = body(&question(&["yes", "no"]), &pool(ClosedForm::Schema));
        insta::assert_snapshot!(std::str::from_utf8(&body).unwrap(), @r#"{"model":"some-vlm","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/jpeg;base64,/9j/"}},{"type":"text","text":"Is there a person?"}]}],"max_tokens":16,"temperature":0,"response_format":{"type":"json_schema","json_schema":{"name":"answer","strict":true,"schema":{"type":"object","properties":{"answer":{"type":"string","enum":["yes","no"]}},"required":["answer"],"additionalProperties":false}}}}"#);
    }

    #[test]
    fn a_question_with_answers_is_sent_as_text_to_a_pool_without_schemas() {
        let body = body(
            &PoolQuestion {
                jpeg: None,
                ..question(&["yes", "no"])
            },
            &pool(ClosedForm::Text),
        );
        insta::assert_snapshot!(std::str::from_utf8(&body).unwrap(), @r#"{"model":"some-vlm","messages":[{"role":"user","content":[{"type":"text","text":"Is there a person? Answer with one of: yes, no."}]}],"max_tokens":16,"temperature":0}"#);
    }

    #[test]
    fn replies_without_optional_fields_are_read() {
        let sparse = reply(json!({"choices": [{"message": {"content": "Yes."}}]}));
        let answers = question(&["yes", "no"]).answers;
        let settled = settle("big", &sparse, &answers, Duration::from_millis(7)).unwrap();
        assert_eq!(
            (settled.text.as_str(), settled.by.model.as_str()),
            ("yes", "big"),
            "without a model name in the reply, the pool's id is used"
        );
        assert_eq!((settled.confidence, settled.by.tokens_out), (None, None));
        let parts = reply(
            json!({"choices": [{"message": {"content": [{"type": "text", "text": "{\"answer\":"}, {"text": "\"no\"}"}]}}]}),
        );
        assert_eq!(answer(&parts, &answers), Ok("no"));
    }

    #[test]
    fn errors_about_replies_without_an_answer_name_what_was_found() {
        let answers = question(&["yes", "no"]).answers;
        let errors: Vec<_> = [
            json!({"choices": []}),
            json!({"choices": [{"message": {"content": null}}]}),
            json!({"choices": [{"message": {"content": null, "refusal": "I will not"}}]}),
            json!({"choices": [{"message": {"content": "perhaps"}}]}),
        ]
        .map(|value| answer(&reply(value), &answers).unwrap_err())
        .into();
        insta::assert_snapshot!(errors.join("\n"), @r#"
        the reply has no choices
        the reply's message has no content
        the model refused: "I will not"
        expected one of yes, no, got "perhaps"
        "#);
    }

    #[test]
    fn free_text_over_the_limit_is_refused() {
        let free_text =
            |bytes: usize| reply(json!({"choices": [{"message": {"content": "x".repeat(bytes)}}]}));
        assert!(answer(&free_text(ANSWER_BYTES_MAX), &[]).is_ok());
        assert_eq!(
            answer(&free_text(ANSWER_BYTES_MAX + 1), &[]),
            Err("the answer has 16385 bytes, expected at most 16384".to_owned())
        );
    }

    #[test]
    fn only_a_probability_is_used_as_confidence() {
        let with = |p: Value| {
            confidence(&reply(
                json!({"choices": [], "routing": {"where": "local", "confidence": {"p": p}}}),
            ))
        };
        assert_eq!(with(json!(0.75)), Some(0.75));
        assert_eq!(with(json!(1.5)), None);
        assert_eq!(with(json!("high")), None);
    }
}
