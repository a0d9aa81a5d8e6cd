//! A client's request as a request to a pool, and the pool's reply as a reply to the client. Pure.

use bytes::Bytes;
use firmware_config::agent::{ClosedForm, Pool};
use serde_json::{Map, Value, json};

use crate::openai::Completion;
use crate::pool::{question, reading};
use crate::serve::chat::schema::EnumObject;

/// Fields that this gateway handles, and does not pass on.
const GATEWAY_FIELDS: [&str; 4] = ["models", "stream", "stream_options", "routing"];

/// The body that puts a client's request to `pool`. Everything but the name of the model is passed
/// on as the client wrote it; where the pool takes no schemas, its enum travels as text.
pub(super) fn request(client: &[u8], form: Option<&EnumObject>, pool: &Pool) -> Bytes {
    // The body was read by `chat` before, so it is an object; an empty one would be refused by the
    // pool.
    let mut fields: Map<String, Value> = serde_json::from_slice(client).unwrap_or_default();
    for field in GATEWAY_FIELDS {
        fields.remove(field);
    }
    fields.insert("model".into(), json!(pool.model));
    if let (ClosedForm::Text, Some(form)) = (pool.closed, form) {
        fields.remove("response_format");
        let content = fields
            .get_mut("messages")
            .and_then(Value::as_array_mut)
            .and_then(|all| all.last_mut())
            .map(|last| &mut last["content"]);
        let choice = question::choice(&form.answers);
        match content {
            Some(Value::String(text)) => {
                text.push(' ');
                text.push_str(&choice);
            }
            Some(Value::Array(parts)) => parts.push(json!({"type": "text", "text": choice})),
            _ => {}
        }
    }
    Bytes::from(Value::Object(fields).to_string())
}

/// A pool's reply as it goes to the client: one choice, in the form that the request asks for. Its
/// `model` is the reply's own, else `model`.
///
/// # Errors
/// A message, when it has no content or none of the form's answers.
pub(super) fn reply(
    mut completion: Completion,
    form: Option<&EnumObject>,
    model: &str,
) -> Result<Completion, String> {
    let content = question::content(&completion)?;
    if let Some(form) = form {
        let answer = reading::read_property(content, &form.property, &form.answers);
        let answer = answer.ok_or_else(|| {
            format!(
                "expected one of {}, got {:?}",
                form.answers.join(", "),
                question::start_of(content)
            )
        })?;
        let object = form.content(answer);
        completion.choices[0].message.content = Some(object);
    }
    if completion.model.is_empty() {
        completion.model = model.to_owned();
    }
    completion.choices.truncate(1);
    completion.object = "chat.completion".into();
    completion.choices[0].message.role = "assistant".into();
    Ok(completion)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::pool::question::tests::pool;

    fn form() -> EnumObject {
        EnumObject {
            property: "verdict".into(),
            answers: vec!["yes".into(), "no".into()],
        }
    }

    #[test]
    fn the_request_is_passed_on_under_the_pools_model() {
        let client = json!({"model": "auto", "stream": true, "seed": 3, "response_format": {"type": "text"}, "messages": [{"role": "user", "content": "hi"}]});
        let relayed = request(
            client.to_string().as_bytes(),
            None,
            &pool(ClosedForm::Schema),
        );
        insta::assert_snapshot!(std::str::from_utf8(&relayed).unwrap(), @r#"{"model":"some-vlm","messages":[{"role":"user","content":"hi"}],"seed":3,"response_format":{"type":"text"}}"#);
    }

    #[test]
    fn an_enum_becomes_text_for_a_pool_without_schemas() {
        for (content, relayed_content) in [
            (
                json!("Is it?"),
                json!("Is it? Answer with one of: yes, no."),
            ),
            (
                json!([{"type": "text", "text": "Is it?"}]),
                json!([{"type": "text", "text": "Is it?"}, {"type": "text", "text": "Answer with one of: yes, no."}]),
            ),
        ] {
            let client =
                json!({"response_format": {}, "messages": [{"role": "user", "content": content}]});
            let relayed: Value = serde_json::from_slice(&request(
                client.to_string().as_bytes(),
                Some(&form()),
                &pool(ClosedForm::Text),
            ))
            .unwrap();
            assert_eq!(
                relayed,
                json!({"model": "some-vlm", "messages": [{"role": "user", "content": relayed_content}]})
            );
        }
    }

    #[test]
    fn a_reply_comes_back_in_the_form_asked_for() {
        let completion = |content: &str| {
            serde_json::from_value(json!({"choices": [{"message": {"content": content}}]})).unwrap()
        };
        let form = form();
        let content = |content: &str, form: Option<&EnumObject>| {
            reply(completion(content), form, "some-vlm")
                .map(|reply| reply.choices[0].message.content.clone().unwrap())
        };
        assert_eq!(
            content("Yes, it is.", Some(&form)),
            Ok(r#"{"verdict":"yes"}"#.to_owned())
        );
        assert_eq!(
            content(r#"{"verdict": "no", "why": "yes"}"#, Some(&form)),
            Ok(r#"{"verdict":"no"}"#.to_owned())
        );
        assert_eq!(
            content("perhaps", Some(&form)),
            Err(r#"expected one of yes, no, got "perhaps""#.to_owned())
        );
        assert_eq!(content("a dog", None), Ok("a dog".to_owned()));
        assert_eq!(
            reply(completion("a dog"), None, "some-vlm").unwrap().model,
            "some-vlm"
        );
    }
}
