//! The checkpoint's own chat template, rendered without what was said in it.
//!
//! A template sees a placeholder for each text from outside, so nothing a person writes can take
//! part in the markup: the result is the template's own words with those texts between them, still
//! apart. Blanks around a text may be cut, as many templates do; whatever else a template does to
//! one would be lost on the placeholder, so each conversation is rendered once more with the texts
//! themselves, and another result is an error. Pictures are the template's `<image>`. A clip is a
//! text to the template, because the released templates know none.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::request::{Content, Role, Turn};
use crate::special_tokens::SpecialTokens;
use crate::video::Clip;

/// The family's template, for checkpoints that carry none: `User:` or `User: `, what is shown and
/// said, `<end_of_utterance>`.
pub const DEFAULT: &str = "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}\
{% for item in message['content'] %}{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}\
<end_of_utterance>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// What the engine calls the template in its errors; the file it came from is the caller's to name.
const NAME: &str = "chat_template";
/// The longest template that is read, in bytes; the released one has 430.
pub const SOURCE_BYTES_MAX: usize = 64 << 10;
/// The longest rendering without the outside texts, in bytes.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Template instructions run before giving up; one message takes about fifty.
const FUEL: u64 = 1_000_000;

/// Around the number of an outside text: characters for private use, which no template is allowed
/// to hold.
const OPEN: char = '\u{F0000}';
const CLOSE: char = '\u{F0001}';
/// Before and behind a placeholder: blanks that are gone when a template cuts those around a text,
/// and that none writes itself.
const BEFORE: char = '\u{205F}';
const BEHIND: char = '\u{1680}';

/// A chat template that compiles.
#[derive(Debug, Clone)]
pub struct Template {
    source: String,
    special_tokens: SpecialTokens,
}

/// A part of a rendered conversation.
#[derive(Debug, Clone)]
pub enum Piece<'a> {
    /// The template's own words: the only place where special tokens are special.
    Own(String),
    /// What a person or an earlier answer said.
    Said(&'a str),
    /// A clip that was shown.
    Shown(&'a Clip),
}

impl Template {
    /// Compiles a Jinja chat template.
    ///
    /// # Errors
    /// When it is larger than [`SOURCE_BYTES_MAX`], holds a character kept for placeholders, or
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
        let source = as_jinja2_reads(source);
        environment()
            .template_from_named_str(NAME, &source)
            .map_err(TemplateError::new)?;
        Ok(Template {
            source,
            special_tokens: SpecialTokens::new(),
        })
    }

    /// The same template, which may call these special tokens by their names.
    ///
    /// # Errors
    /// When one holds a character kept for placeholders.
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

    /// The conversation, ready for the model's answer.
    ///
    /// # Errors
    /// When the template fails, refuses the conversation, changes what is said in it, or its output
    /// or run time passes its limit.
    pub fn render<'a>(&self, turns: &'a [Turn]) -> Result<Vec<Piece<'a>>, TemplateError> {
        let contents: Vec<&Content> = turns.iter().flat_map(|turn| &turn.content).collect();
        let mut output = Bounded::default();
        self.run(turns, Texts::Placeholders, &mut output)?;
        let pieces = pieces(&output.text()?, &contents)?;
        // What transformers would print must be what these pieces say together.
        let mut expected = Expected {
            text: &said(&pieces, &contents),
            at: 0,
            differs: false,
        };
        let outcome = self.run(turns, Texts::AsSaid, &mut expected);
        if expected.differs || outcome.is_ok() && expected.at != expected.text.len() {
            return Err(TemplateError::Changed);
        }
        outcome.map(|()| pieces)
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
        // As transformers calls a template: what is not given is none, not undefined.
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

/// The source as jinja2 has it: every line end is a line feed; and blocks that only mark a
/// trainer's tokens are blocks without effect.
fn as_jinja2_reads(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        text.push_str(before);
        // A tag's own blank control stays: `{%- generation -%}`.
        let word = tag.trim_start_matches(['-', '+']).trim_start();
        text.push_str(&tag[..tag.len() - word.len()]);
        rest = word;
        for (mark, block) in [("generation", "with"), ("endgeneration", "endwith")] {
            let closes = |behind: &str| {
                behind
                    .trim_start()
                    .trim_start_matches(['-', '+'])
                    .starts_with("%}")
            };
            if let Some(behind) = word.strip_prefix(mark).filter(|behind| closes(behind)) {
                text.push_str(block);
                rest = behind;
            }
        }
    }
    text + rest
}

/// As transformers runs templates.
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

/// What a template is shown for a text.
#[derive(Clone, Copy)]
enum Texts {
    /// Its number among all contents.
    Placeholders,
    /// Itself.
    AsSaid,
}

/// One message as the template sees it. A clip is its placeholder, whatever the texts are; no text
/// is none, so that a template can tell. `number` counts the contents.
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
                    context! { type => "text", text => format!("{BEFORE}{OPEN}{at}{CLOSE}{BEHIND}") }
                }
                _ => context! { type => "text", text },
            },
            Content::Clip(_) => context! { type => "text", text => format!("{OPEN}{at}{CLOSE}") },
        }
    };
    let content: Vec<Value> = turn.content.iter().map(item).collect();
    context! { role, content }
}

/// Puts the outside texts back in place of their placeholders, without their outer blanks where the
/// template cut those.
fn pieces<'a>(rendered: &str, contents: &[&'a Content]) -> Result<Vec<Piece<'a>>, TemplateError> {
    let mut pieces = Vec::new();
    let mut parts = rendered.split(OPEN);
    let mut own = parts.next().unwrap_or_default();
    for part in parts {
        let (number, mut behind) = part.split_once(CLOSE).ok_or(TemplateError::Changed)?;
        let content = number
            .parse()
            .ok()
            .and_then(|number: usize| contents.get(number))
            .ok_or(TemplateError::Changed)?;
        let piece = match content {
            Content::Text(text) => {
                let mut text = text.as_str();
                match own.strip_suffix(BEFORE) {
                    Some(kept) => own = kept,
                    None => text = text.trim_start(),
                }
                match behind.strip_prefix(BEHIND) {
                    Some(kept) => behind = kept,
                    None => text = text.trim_end(),
                }
                Piece::Said(text)
            }
            Content::Clip(clip) => Piece::Shown(clip),
            Content::Picture(_) => return Err(TemplateError::Changed),
        };
        pieces.extend(own_words(own)?);
        pieces.push(piece);
        own = behind;
    }
    pieces.extend(own_words(own)?);
    Ok(pieces)
}

fn own_words<'a>(text: &str) -> Result<Option<Piece<'a>>, TemplateError> {
    match text {
        "" => Ok(None),
        text if text.contains(CLOSE) => Err(TemplateError::Changed),
        text => Ok(Some(Piece::Own(text.to_owned()))),
    }
}

/// The rendering that `pieces` are the parts of, a clip's placeholder in its place.
fn said(pieces: &[Piece<'_>], contents: &[&Content]) -> String {
    let clip = |shown: &Clip| {
        let same = |content: &&Content| matches!(content, Content::Clip(clip) if std::ptr::eq(clip, shown));
        contents
            .iter()
            .position(same)
            .map(|number| format!("{OPEN}{number}{CLOSE}"))
            .unwrap_or_default()
    };
    let text = |piece: &Piece<'_>| match piece {
        Piece::Own(text) => text.clone(),
        Piece::Said(text) => (*text).to_owned(),
        Piece::Shown(shown) => clip(shown),
    };
    pieces.iter().map(text).collect()
}

/// What is written here is held to what is expected, byte by byte; nothing is kept.
struct Expected<'a> {
    text: &'a str,
    /// Bytes that were as expected.
    at: usize,
    differs: bool,
}

impl io::Write for Expected<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.text.as_bytes()[self.at..].starts_with(bytes) {
            self.differs = true;
            return Err(io::Error::other("another text than expected"));
        }
        self.at += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A buffer that refuses to grow without end.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
}

impl Bounded {
    fn text(self) -> Result<String, TemplateError> {
        String::from_utf8(self.bytes).map_err(|error| TemplateError::Render {
            message: error.to_string(),
        })
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!(
                "output is above {OUTPUT_BYTES_MAX} bytes"
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
        "chat template has {bytes} bytes: expected at most {SOURCE_BYTES_MAX}; take the released one"
    )]
    Size {
        /// Its length.
        bytes: usize,
    },
    /// It holds a character that stands for outside text.
    #[error(
        "chat template holds U+F0000 or U+F0001, which mark outside text while it renders: take them out"
    )]
    Reserved,
    /// It does not compile, fails, or is stopped at a limit.
    #[error(
        "chat template: {message}; put the conversation as it asks, or export the bundle with the released template"
    )]
    Render {
        /// The template engine's own words, or the template's.
        message: String,
    },
    /// It prints a text otherwise than it was said, or looks into it to decide what to print.
    #[error(
        "chat template changes a message's text: expected it printed as it is, or without the blanks around it; take the filter out of it, or take the released one"
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
        let pieces = Template::new(source)?.render(&turns)?;
        Ok(pieces
            .iter()
            .map(|piece| match piece {
                Piece::Own(text) => text.clone(),
                Piece::Said(text) => format!("[{text}]"),
                Piece::Shown(_) => "[clip]".to_owned(),
            })
            .collect())
    }

    #[test]
    fn what_is_said_stays_apart_from_the_markup() {
        insta::assert_snapshot!(render(DEFAULT).expect("renders"), @r"
        <|im_start|>System: [Be brief.]<end_of_utterance>
        User:<image>[<image>{{ 7 * 7 }}]<end_of_utterance>
        Assistant:
        ");
    }

    /// transformers drops the line end after a block tag and the blanks before it.
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
    fn errors_say_what_the_template_did() {
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
        chat template: invalid operation: roles must alternate (in chat_template:1); put the conversation as it asks, or export the bundle with the released template
        chat template: syntax error: unexpected end of input, expected end of block (in chat_template:1); put the conversation as it asks, or export the bundle with the released template
        chat template changes a message's text: expected it printed as it is, or without the blanks around it; take the filter out of it, or take the released one
        chat template: engine ran out of fuel (in chat_template:1); put the conversation as it asks, or export the bundle with the released template
        chat template: failed to write output: I/O error during rendering: output is above 1048576 bytes; put the conversation as it asks, or export the bundle with the released template
        chat template holds U+F0000 or U+F0001, which mark outside text while it renders: take them out
        chat template has 65537 bytes: expected at most 65536; take the released one
        ");
    }

    /// A template of one user's text, and what it makes of that text.
    fn of_text(source: &str, text: &str) -> Result<String, TemplateError> {
        let turns = [Turn {
            role: Role::User,
            content: vec![Content::Text(text.into())],
        }];
        let special_tokens = SpecialTokens::from([("bos_token".into(), "<s>".into())]);
        let template = Template::new(source)?.with_special_tokens(special_tokens)?;
        let pieces = template.render(&turns)?;
        Ok(said(&pieces, &[]))
    }

    #[test]
    fn blanks_around_a_text_may_be_cut() {
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

    /// On a placeholder none of these has an effect; transformers gives them the text.
    #[test]
    fn whatever_else_is_done_to_a_text_is_refused_not_lost() {
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
        // The same templates are right about other texts.
        let looks = "{% set text = messages[0]['content'][0]['text'] %}{{ text.split('</think>')[-1] }}{% if '<image>' in text %}!{% endif %}";
        assert_eq!(
            of_text(looks, "Is it open?").expect("nothing to split"),
            "Is it open?"
        );
    }

    #[test]
    fn special_tokens_have_their_names() {
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

    /// The dialect of transformers: Python's methods, loop controls, a trainer's marks, and
    /// jinja2's line ends.
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
