//! The checkpoint's own chat template: where it is, and whether it can be used.
//!
//! Looked for in transformers' own order: `processor_config.json`, `chat_template.json`,
//! `chat_template.jinja`, and the tokenizer's config, where it once was.

use std::path::{Path, PathBuf};

use serde_json::Value;
use vlm::special_tokens::{SpecialTokens, TOKENIZER_CONFIG};
use vlm::template::{Part, Template, TemplateError};
use vlm::{Content, Picture, Role, Turn};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::{CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, PROCESSOR, read};
use crate::checkpoint::json::read_json;

/// The text that a template is tried with, to see that it is left as it is: blanks, letters of both
/// cases, quotes and markup.
const SAMPLE: &str = "  Is the \"Main\" gate open?\n\tIt's <b>5</b> & {{ 7 }} \\o/ \n";

/// A template and where it was found.
#[derive(Debug, Clone)]
pub(crate) struct ChatTemplate {
    pub(crate) text: Vec<u8>,
    /// The file; `None` for the family's default.
    pub(crate) path: Option<PathBuf>,
}

impl ChatTemplate {
    /// Finds the template of a checkpoint folder; the family's default if it has none.
    pub(crate) fn find(source: &Path) -> Result<Self, CheckpointError> {
        for name in [
            PROCESSOR,
            CHAT_TEMPLATE_JSON,
            CHAT_TEMPLATE,
            TOKENIZER_CONFIG,
        ] {
            let path = source.join(name);
            if !path.exists() {
                continue;
            }
            let text = if name == CHAT_TEMPLATE {
                Some(read(&path)?)
            } else {
                read_json::<Value>(&path)?
                    .get("chat_template")
                    .and_then(default_template)
                    .map(Into::into)
            };
            if let Some(text) = text {
                return Ok(ChatTemplate {
                    text,
                    path: Some(path),
                });
            }
        }
        Ok(ChatTemplate {
            text: vlm::template::DEFAULT.into(),
            path: None,
        })
    }

    /// Its file's name, for people.
    pub(crate) fn origin(&self) -> String {
        let name = self.path.as_ref().and_then(|path| path.file_name());
        name.map_or_else(
            || "the default of the model family".into(),
            |name| name.to_string_lossy().into_owned(),
        )
    }

    /// Checks that it compiles, renders a question about an image, and leaves texts as they are.
    pub(crate) fn check(&self, special_tokens: SpecialTokens) -> Result<(), CheckpointError> {
        let refused = |diagnostic: String| CheckpointError::Json {
            path: self.path.clone().unwrap_or_default(),
            diagnostic,
        };
        let unusable = |error: TemplateError| match error {
            TemplateError::Render { message } => refused(format!(
                "chat template: {message}; fix it there, or remove it to export with the default of the model family"
            )),
            error => refused(error.to_string()),
        };
        let text = str::from_utf8(&self.text).map_err(|error| {
            refused(format!(
                "the chat template is not UTF-8: {error}; save it as UTF-8"
            ))
        })?;
        let template = Template::new(text)
            .and_then(|template| template.with_special_tokens(special_tokens))
            .map_err(unusable)?;
        let [question, others @ ..] = conversations();
        let pieces = template.render(&question).map_err(unusable)?;
        let placeholders: usize = pieces
            .iter()
            .map(|piece| {
                if let Part::Markup(own) = piece {
                    own.matches("<image>").count()
                } else {
                    0
                }
            })
            .sum();
        if placeholders != 1 {
            return Err(refused(format!(
                "the chat template prints <image> {placeholders} times for one image, expected once; fix it there"
            )));
        }
        for conversation in &others {
            // A template may refuse a conversation (some do so with a system turn), but must not
            // change its text.
            if let Err(error @ TemplateError::Changed) = template.render(conversation) {
                return Err(unusable(error));
            }
        }
        Ok(())
    }
}

/// The conversations a template is tried with: a question about an image, and two with other turns.
fn conversations() -> [Vec<Turn>; 3] {
    let text = || Content::Text(SAMPLE.into());
    let picture = || Content::Picture(Picture::from_rgb(1, 1, vec![0; 3]).expect("one pixel"));
    let turn = |role, content| Turn { role, content };
    [
        vec![turn(Role::User, vec![picture(), text()])],
        vec![
            turn(Role::User, vec![text()]),
            turn(Role::Assistant, vec![text()]),
            turn(Role::User, vec![picture(), picture(), text()]),
        ],
        vec![
            turn(Role::System, vec![text()]),
            turn(Role::User, vec![picture(), text()]),
        ],
    ]
}

/// The template itself or, of several, the one named `default`.
fn default_template(chat_template: &Value) -> Option<&str> {
    match chat_template {
        Value::String(template) => Some(template),
        Value::Array(named) => {
            named.iter().find(|entry| entry["name"] == "default")?["template"].as_str()
        }
        Value::Object(named) => named.get("default")?.as_str(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_template_is_found_among_several() {
        for (value, template) in [
            (json!("one"), Some("one")),
            (
                json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]),
                Some("b"),
            ),
            (json!([{"name": "tool_use", "template": "a"}]), None),
            (json!({"default": "a", "tool_use": "b"}), Some("a")),
            (json!({"template": "a"}), None),
            (json!(["a"]), None),
        ] {
            assert_eq!(default_template(&value), template, "{value}");
        }
    }

    #[test]
    fn files_are_searched_in_transformers_order() {
        let dir = tempfile::tempdir().unwrap();
        let found = || {
            let found = ChatTemplate::find(dir.path()).unwrap();
            (
                String::from_utf8(found.text.clone()).unwrap(),
                found.origin(),
            )
        };
        assert_eq!(
            found(),
            (
                vlm::template::DEFAULT.into(),
                "the default of the model family".into()
            )
        );
        // From the last to the first, each before those that are there already.
        for (name, content) in [
            (
                "tokenizer_config.json",
                r#"{"chat_template": "tokenizer_config.json"}"#,
            ),
            ("chat_template.jinja", "chat_template.jinja"),
            (
                "chat_template.json",
                r#"{"chat_template": "chat_template.json"}"#,
            ),
            (
                "processor_config.json",
                r#"{"chat_template": "processor_config.json"}"#,
            ),
        ] {
            fs::write(dir.path().join(name), content).unwrap();
            assert_eq!(found(), (name.into(), name.into()));
        }
        fs::write(
            dir.path().join("processor_config.json"),
            r#"{"chat_template": null}"#,
        )
        .unwrap();
        assert_eq!(found().1, "chat_template.json");
    }

    fn check(text: &str) -> Result<(), String> {
        let found = ChatTemplate {
            text: text.into(),
            path: Some("chat_template.jinja".into()),
        };
        found
            .check(SpecialTokens::new())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn only_usable_templates_pass() {
        let default = vlm::template::DEFAULT;
        check(default).unwrap();
        check(&default.replace("item['text']", "item['text'] | trim")).unwrap();
        check(
            &default.replace("{% for message", "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}{% for message"),
        )
        .unwrap();
        let refusal = |text: &str| check(text).unwrap_err();
        insta::assert_snapshot!(refusal("{% for m in messages %}"), @"chat_template.jinja: chat template: syntax error: unexpected end of input, expected end of block (in chat_template:1); fix it there, or remove it to export with the default of the model family");
        insta::assert_snapshot!(refusal(&default.replace("item['text']", "item['text'] | upper")), @"chat_template.jinja: chat template changes a message's text: expected it unchanged but for whitespace around it; remove the filter, or use the released template");
        insta::assert_snapshot!(refusal("{{ messages[0]['content'][1]['text'] }}"), @"chat_template.jinja: the chat template prints <image> 0 times for one image, expected once; fix it there");
        insta::assert_snapshot!(refusal("{{ messages | frobnicate }}"), @"chat_template.jinja: chat template: unknown filter: filter frobnicate is unknown (in chat_template:1); fix it there, or remove it to export with the default of the model family");
    }
}
