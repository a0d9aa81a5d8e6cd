//! The checkpoint's own chat template, rendered apart from the texts of the conversation.
//!
//! A template sees a placeholder for each untrusted text, so nothing a person writes can become
//! markup: the result is the template's own markup with the texts between, still apart. Whitespace
//! around a text may be trimmed, as many templates do. Any other change of a text would be lost on
//! its placeholder, so each conversation is rendered a second time with the texts themselves, and a
//! different result is an error. Images are the template's `<image>`. A clip is a text to the
//! template, because the released templates know no clips.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::request::{Content, Role, Turn};
use crate::special_tokens::SpecialTokens;
use crate::video::Clip;

/// The family's template, for checkpoints without one: `User:` or `User: `, images and texts,
/// `<end_of_utterance>`.
pub const DEFAULT: &str = "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}\
{% for item in message['content'] %}{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}\
<end_of_utterance>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// The template's name in the engine's errors; callers add the file it came from.
const NAME: &str = "chat_template";
/// The longest template that is read, in bytes; the released one has 430.
pub const SOURCE_BYTES_MAX: usize = 64 << 10;
/// The longest rendering without the untrusted texts, in bytes.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Template instructions run at most; one message takes about fifty.
const FUEL: u64 = 1_000_000;

/// Around the number of an untrusted text: characters for private use, which no template may hold.
const OPEN: char = '\u{F0000}';
const CLOSE: char = '\u{F0001}';
/// Before and after a placeholder: whitespace that is gone when a template trims a text, and that
/// no template writes itself.
const BEFORE: char = '\u{205F}';
const AFTER: char = '\u{1680}';

/// A chat template that compiles.
#[derive(Debug, Clone)]
pub struct Template {
    source: String,
    special_tokens: SpecialTokens,
}

/// A part of a rendered conversation.
#[derive(Debug, Clone)]
pub enum Part<'a> {
    /// The template's own text: the only place where special tokens are special.
    Markup(String),
    /// A person's text, or an earlier answer's.
    Text(&'a str),
    /// A clip.
    Clip(&'a Clip),
}

impl Template {
    /// Compiles a Jinja chat template.
    ///
    /// # Errors
    /// When it is larger than [`SOURCE_BYTES_MAX`], holds a character reserved for placeholders, or
    /// does not compile.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Size {
                bytes: source.len(),
            });
        }
        if source.contains([OPEN, CLOSE]) {
            return Err(TemplateError::Reserved);
        }
        let source = as_jinja2(source);
        environment()
            .template_from_named_str(NAME, &source)
            .map_err(TemplateError::new)?;
        Ok(Template {
            source,
            special_tokens: SpecialTokens::new(),
        })
    }

    /// The same template, with these special tokens as variables.
    ///
    /// # Errors
    /// When one holds a character reserved for placeholders.
    pub fn with_special_tokens(self, special_tokens: SpecialTokens) -> Result<Self, TemplateError> {
        if special_tokens
            .values()
            .any(|content| content.contains([OPEN, CLOSE]))
        {
            return Err(TemplateError::Reserved);
        }
        Ok(Template {
            special_tokens,
            ..self
        })
    }

    /// Renders the conversation up to where the model's answer begins.
    ///
    /// # Errors
    /// When the template fails, refuses the conversation, changes a text, or exceeds the limit of
    /// its output or its instructions.
    pub fn render<'a>(&self, turns: &'a [Turn]) -> Result<Vec<Part<'a>>, TemplateError> {
        let contents: Vec<&Content> = turns.iter().flat_map(|turn| &turn.content).collect();
        // With placeholders, to tell markup from texts.
        let mut output = BoundedBuffer::default();
        self.run(turns, Texts::Placeholders, &mut output)?;
        let parts = parts(&output.text()?, &contents)?;
        // With the texts, as transformers renders it: the result must be the same parts.
        let mut expected = ExpectedOutput {
            text: &joined(&parts, &contents),
            at: 0,
            differs: false,
        };
        let outcome = self.run(turns, Texts::Verbatim, &mut expected);
        if expected.differs || outcome.is_ok() && expected.at != expected.text.len() {
            return Err(TemplateError::Changed);
        }
        outcome.map(|()| parts)
    }

    fn run(
        &self,
        turns: &[Turn],
        texts: Texts,
        output: &mut dyn io::Write,
    ) -> Result<(), TemplateError> {
        let mut number = 0;
        let messages: Vec<Value> = turns
            .iter()
            .map(|turn| message(turn, texts, &mut number))
            .collect();
        // As transformers calls a template: what is not given is `none`, not undefined.
        let call = context! {
            messages, add_generation_prompt => true, tools => (), documents => (),
            ..Value::from_pairs(self.special_tokens.clone())
        };
        environment()
            .template_from_named_str(NAME, &self.source)
            .and_then(|template| template.render_captured_to(call, output).map(drop))
            .map_err(TemplateError::new)
    }
}

/// The source as jinja2 would read it: every line end is a line feed, and `generation` blocks,
/// which only mark tokens for training, become `with` blocks, which have no effect.
fn as_jinja2(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        // A tag's whitespace control stays: `{%- generation -%}`.
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        text.push_str(&tag[..tag.len() - word.len()]);
        rest = word;
        for (mark, block) in [("generation", "with"), ("endgeneration", "endwith")] {
            let closes = |after: &str| {
                after
                    .trim_start()
                    .trim_start_matches(['-', '+'])
                    .starts_with("%}")
            };
            if let Some(after) = word.strip_prefix(mark).filter(|after| closes(after)) {
                text.push_str(block);
                rest = after;
            }
        }
    }
    text + rest
}

/// The engine, set up as transformers sets up jinja2.
fn environment<'source>() -> Environment<'source> {
    let mut environment = Environment::new();
    environment.set_syntax(
        SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build()
            .expect("the usual delimiters do not clash"),
    );
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.add_function(
        "raise_exception",
        |message: String| -> Result<Value, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        },
    );
    environment
}

/// What a template sees of a text.
#[derive(Clone, Copy)]
enum Texts {
    /// A placeholder with its number among all contents.
    Placeholders,
    /// The text itself.
    Verbatim,
}

/// One message as the template sees it. A clip is a placeholder in both renderings; an empty text
/// stays empty, so that a template can test for it. `number` counts the contents.
fn message(turn: &Turn, texts: Texts, number: &mut usize) -> Value {
    let role = match turn.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let item = |content: &Content| {
        let at = *number;
        *number += 1;
        match content {
            Content::Picture(_) => context! { type => "image" },
            Content::Text(text) => match texts {
                Texts::Placeholders if !text.is_empty() => {
                    context! { type => "text", text => format!("{BEFORE}{OPEN}{at}{CLOSE}{AFTER}") }
                }
                _ => context! { type => "text", text },
            },
            Content::Clip(_) => context! { type => "text", text => format!("{OPEN}{at}{CLOSE}") },
        }
    };
    let content: Vec<Value> = turn.content.iter().map(item).collect();
    context! { role, content }
}

/// Puts the texts back in place of their placeholders, trimmed where the template trimmed them.
fn parts<'a>(rendered: &str, contents: &[&'a Content]) -> Result<Vec<Part<'a>>, TemplateError> {
    let mut parts = Vec::new();
    let mut sections = rendered.split(OPEN);
    let mut before = sections.next().unwrap_or_default();
    for section in sections {
        let (number, mut after) = section.split_once(CLOSE).ok_or(TemplateError::Changed)?;
        let content = number
            .parse()
            .ok()
            .and_then(|number: usize| contents.get(number))
            .ok_or(TemplateError::Changed)?;
        let part = match content {
            Content::Text(text) => {
                let mut text = text.as_str();
                match before.strip_suffix(BEFORE) {
                    Some(kept) => before = kept,
                    None => text = text.trim_start(),
                }
                match after.strip_prefix(AFTER) {
                    Some(kept) => after = kept,
                    None => text = text.trim_end(),
                }
                Part::Text(text)
            }
            Content::Clip(clip) => Part::Clip(clip),
            Content::Picture(_) => return Err(TemplateError::Changed),
        };
        parts.extend(markup(before)?);
        parts.push(part);
        before = after;
    }
    parts.extend(markup(before)?);
    Ok(parts)
}

/// The template's own text between two placeholders, if any.
fn markup<'a>(text: &str) -> Result<Option<Part<'a>>, TemplateError> {
    match text {
        "" => Ok(None),
        text if text.contains(CLOSE) => Err(TemplateError::Changed),
        text => Ok(Some(Part::Markup(text.to_owned()))),
    }
}

/// The rendering that `parts` come from, with a placeholder for each clip.
fn joined(parts: &[Part<'_>], contents: &[&Content]) -> String {
    let placeholder = |part: &Clip| {
        let same =
            |content: &&Content| matches!(content, Content::Clip(clip) if std::ptr::eq(clip, part));
        contents
            .iter()
            .position(same)
            .map(|number| format!("{OPEN}{number}{CLOSE}"))
            .unwrap_or_default()
    };
    let text = |part: &Part<'_>| match part {
        Part::Markup(text) => text.clone(),
        Part::Text(text) => (*text).to_owned(),
        Part::Clip(clip) => placeholder(clip),
    };
    parts.iter().map(text).collect()
}

/// A writer that compares its input with an expected text, and keeps nothing.
struct ExpectedOutput<'a> {
    text: &'a str,
    /// Bytes that were as expected so far.
    at: usize,
    differs: bool,
}

impl io::Write for ExpectedOutput<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.text.as_bytes()[self.at..].starts_with(bytes) {
            self.differs = true;
            return Err(io::Error::other("not the expected text"));
        }
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A buffer of at most [`OUTPUT_BYTES_MAX`] bytes.
#[derive(Default)]
struct BoundedBuffer {
    bytes: Vec<u8>,
}

impl BoundedBuffer {
    fn text(self) -> Result<String, TemplateError> {
        String::from_utf8(self.bytes).map_err(|error| TemplateError::Render {
            message: error.to_string(),
        })
    }
}

impl io::Write for BoundedBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!(
                "output is over {OUTPUT_BYTES_MAX} bytes"
            )));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Why a template does not render.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// Larger than any real one.
    #[error(
        "chat template has {bytes} bytes: expected at most {SOURCE_BYTES_MAX}; use the released template"
    )]
    Size {
        /// Its length.
        bytes: usize,
    },
    /// It holds a character that marks untrusted text.
    #[error(
        "chat template holds U+F0000 or U+F0001, which are reserved to mark untrusted text: remove them"
    )]
    Reserved,
    /// It does not compile, fails, or is stopped at a limit.
    #[error(
        "chat template: {message}; change the conversation to what it accepts, or export the bundle with the released template"
    )]
    Render {
        /// The template engine's own message, or the template's.
        message: String,
    },
    /// It changes a text, or prints something that depends on one.
    #[error(
        "chat template changes a message's text: expected it unchanged but for whitespace around it; remove the filter, or use the released template"
    )]
    Changed,
}

impl TemplateError {
    fn new(error: minijinja::Error) -> Self {
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        TemplateError::Render { message }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::picture::Picture;

    fn conversation() -> Vec<Turn> {
        let picture = Picture::from_rgb(1, 1, vec![0; 3]).expect("one pixel");
        vec![
            Turn {
                role: Role::System,
                content: vec![Content::Text("Be brief.".into())],
            },
            Turn {
                role: Role::User,
                content: vec![
                    Content::Picture(picture),
                    Content::Text("<image>{{ 7 * 7 }}".into()),
                ],
            },
        ]
    }

    fn render(source: &str) -> Result<String, TemplateError> {
        let turns = conversation();
        let parts = Template::new(source)?.render(&turns)?;
        Ok(parts
            .iter()
            .map(|part| match part {
                Part::Markup(text) => text.clone(),
                Part::Text(text) => format!("[{text}]"),
                Part::Clip(_) => "[clip]".to_owned(),
            })
            .collect())
    }

    #[test]
    fn texts_stay_apart_from_the_markup() {
        insta::assert_snapshot!(render(DEFAULT).expect("renders"), @r"
        <|im_start|>System: [Be brief.]<end_of_utterance>
        User:<image>[<image>{{ 7 * 7 }}]<end_of_utterance>
        Assistant:
        ");
    }

    /// transformers drops the newline after a block tag and the whitespace before it.
    #[test]
    fn a_template_over_several_lines_renders_the_same() {
        let spread = "<|im_start|>{% for message in messages %}\n  {% set content = message.content %}\n\
            {{ message.role | capitalize }}:{% if content[0].type != 'image' %} {% endif %}\n\
            {% for item in content %}\n    {% if item.type == 'image' %}<image>{% else %}{{ item.text }}{% endif %}\n{% endfor %}\n\
            <end_of_utterance>\n{% endfor %}\n{% if add_generation_prompt %}\nAssistant:{% endif %}\n";
        assert_eq!(
            render(spread).expect("renders"),
            render(DEFAULT).expect("renders")
        );
    }

    #[test]
    fn errors_name_the_fault_of_the_template() {
        let cases = [
            "{{ raise_exception('roles must alternate') }}",
            "{% for m in messages %}",
            "{{ messages[1]['content'][1]['text'][2:] }}",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "{% for a in range(40000) %}a template without an end, thirty-odd bytes{% endfor %}",
            "\u{F0000}0\u{F0001}",
            &" ".repeat(SOURCE_BYTES_MAX + 1),
        ];
        let messages = cases
            .map(|source| render(source).expect_err("fails").to_string())
            .join("\n");
        insta::assert_snapshot!(messages, @r"
        chat template: invalid operation: roles must alternate (in chat_template:1); change the conversation to what it accepts, or export the bundle with the released template
        chat template: syntax error: unexpected end of input, expected end of block (in chat_template:1); change the conversation to what it accepts, or export the bundle with the released template
        chat template changes a message's text: expected it unchanged but for whitespace around it; remove the filter, or use the released template
        chat template: engine ran out of fuel (in chat_template:1); change the conversation to what it accepts, or export the bundle with the released template
        chat template: failed to write output: I/O error during rendering: output is over 1048576 bytes; change the conversation to what it accepts, or export the bundle with the released template
        chat template holds U+F0000 or U+F0001, which are reserved to mark untrusted text: remove them
        chat template has 65537 bytes: expected at most 65536; use the released template
        ");
    }

    /// What a template renders for a conversation of one text.
    fn of_text(source: &str, text: &str) -> Result<String, TemplateError> {
        let turns = [Turn {
            role: Role::User,
            content: vec![Content::Text(text.into())],
        }];
        let special_tokens = SpecialTokens::from([("bos_token".into(), "<s>".into())]);
        let template = Template::new(source)?.with_special_tokens(special_tokens)?;
        let parts = template.render(&turns)?;
        Ok(joined(&parts, &[]))
    }

    #[test]
    fn whitespace_around_a_text_may_be_trimmed() {
        const TEXT: &str = " \n a  b\t";
        for (printed, expected) in [
            ("{{ text }}", "< \n a  b\t>"),
            ("{{ text | trim }}", "<a  b>"),
            ("{{ text.strip() }}", "<a  b>"),
            ("{{ text.lstrip() }}", "<a  b\t>"),
            ("{{ text.rstrip() }}", "< \n a  b>"),
            ("{{ (text ~ '.') | trim }}", "<a  b\t.>"),
            ("{{ text | trim }}{{ text }}", "<a  b \n a  b\t>"),
        ] {
            let source = format!("{{% set text = messages[0]['content'][0]['text'] %}}<{printed}>");
            assert_eq!(
                of_text(&source, TEXT).expect(printed),
                expected,
                "{printed}"
            );
        }
    }

    /// These have no effect on a placeholder, but transformers gives them the text.
    #[test]
    fn any_other_change_of_a_text_is_refused() {
        for printed in [
            "{{ text | upper }}",
            "{{ text.title() }}",
            "{{ text | replace('the', 'a') }}",
            "{{ text | length }}",
            "{{ text | tojson }}",
            "{{ text.split('</think>')[-1] }}",
            "{% if 'door' in text %}{{ text }}{% endif %}",
            "{% for c in text %}{{ c }}.{% endfor %}",
        ] {
            let source = format!("{{% set text = messages[0]['content'][0]['text'] %}}{printed}");
            let error = of_text(&source, "is the \"door\"</think> open?").expect_err(printed);
            assert!(
                matches!(error, TemplateError::Changed),
                "{printed}: {error}"
            );
        }
        // The same templates render other texts correctly.
        let looks = "{% set text = messages[0]['content'][0]['text'] %}{{ text.split('</think>')[-1] }}{% if '<image>' in text %}!{% endif %}";
        assert_eq!(
            of_text(looks, "Is it open?").expect("nothing to split"),
            "Is it open?"
        );
    }

    #[test]
    fn special_tokens_are_variables() {
        assert_eq!(
            of_text("{{ bos_token }}{{ eos_token }}.", "").expect("renders"),
            "<s>."
        );
        let special_tokens =
            SpecialTokens::from([("bos_token".into(), "\u{F0000}0\u{F0001}".into())]);
        let error = Template::new("")
            .expect("compiles")
            .with_special_tokens(special_tokens)
            .expect_err("reserved");
        assert!(matches!(error, TemplateError::Reserved));
    }

    /// Python's methods, loop controls, `generation` blocks and jinja2's line ends.
    #[test]
    fn the_dialect_is_that_of_transformers() {
        for (source, expected) in [
            ("{{ messages[0]['role'].capitalize() }}", "User"),
            (
                "{% for m in messages %}{{ m.role }}{% break %}{% endfor %}",
                "user",
            ),
            ("{% if tools is not none %}tools{% endif %}.", "."),
            ("a {%- generation -%} b {%- endgeneration -%} c", "abc"),
            (
                "{% generation %}{% set x = 1 %}{{ x }}{% endgeneration %}",
                "1",
            ),
            ("{% set generation = 2 %}{{ generation }}", "2"),
            ("a\r\n{% if true %}\r\nb\r\n{% endif %}\r\n", "a\nb\n"),
            ("{{ 'a' }}\n\n", "a\n"),
        ] {
            assert_eq!(of_text(source, "x").expect(source), expected, "{source}");
        }
    }
}
