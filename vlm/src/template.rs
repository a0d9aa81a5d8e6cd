//! The checkpoint's own chat template, rendered without what was said in it.
//!
//! A template sees a placeholder for each text from outside, so nothing a person writes can take part in the markup: the result
//! is the template's own words with those texts between them, still apart. Pictures are the template's `<image>`. A clip is a
//! text to the template, because the released templates know none.

use std::io;

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};

use crate::request::{Content, Role, Turn};
use crate::video::Clip;

/// The family's template, for checkpoints that carry none: `User:` or `User: `, what is shown and said, `<end_of_utterance>`.
pub const DEFAULT: &str = "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}\
{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}\
{% for item in message['content'] %}{{ '<image>' if item['type'] == 'image' else item['text'] }}{% endfor %}\
<end_of_utterance>{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}";

/// What the engine calls the template in its errors.
const NAME: &str = "chat_template.jinja";
/// The longest template that is read, in bytes; the released one has 430.
pub const SOURCE_BYTES_MAX: usize = 64 << 10;
/// The longest rendering without the outside texts, in bytes.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Template instructions run before giving up; one message takes about fifty.
const FUEL: u64 = 1_000_000;

/// Around the number of an outside text: characters for private use, which no template is allowed to hold.
const OPEN: char = '\u{F0000}';
const CLOSE: char = '\u{F0001}';

/// A chat template that compiles.
#[derive(Debug, Clone)]
pub struct Template {
    source: String,
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
    /// When it is larger than [`SOURCE_BYTES_MAX`], holds a character kept for placeholders, or does not compile.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > SOURCE_BYTES_MAX {
            return Err(TemplateError::Size { bytes: source.len() });
        }
        if source.contains([OPEN, CLOSE]) {
            return Err(TemplateError::Reserved);
        }
        environment().template_from_named_str(NAME, source).map_err(TemplateError::new)?;
        Ok(Template { source: source.to_owned() })
    }

    /// The conversation, ready for the model's answer.
    ///
    /// # Errors
    /// When the template fails, refuses the conversation, or its output or run time passes its limit.
    pub fn render<'a>(&self, turns: &'a [Turn]) -> Result<Vec<Piece<'a>>, TemplateError> {
        let mut outside = Vec::new();
        let messages: Vec<Value> = turns.iter().map(|turn| message(turn, &mut outside)).collect();
        let mut output = Bounded::default();
        environment()
            .template_from_named_str(NAME, &self.source)
            .and_then(|template| template.render_captured_to(context! { messages, add_generation_prompt => true }, &mut output).map(drop))
            .map_err(TemplateError::new)?;
        pieces(&output.text()?, &outside)
    }
}

/// As transformers runs templates.
fn environment<'source>() -> Environment<'source> {
    let mut environment = Environment::new();
    environment
        .set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().expect("the usual delimiters do not clash"));
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", |message: String| -> Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    environment
}

/// One message as the template sees it; its texts and clips go to `outside`.
fn message<'a>(turn: &'a Turn, outside: &mut Vec<&'a Content>) -> Value {
    let role = match turn.role {
        Role::System => "system",
        Role::User => "user",
        Role::Assistant => "assistant",
    };
    let item = |content: &'a Content| match content {
        Content::Picture(_) => context! { type => "image" },
        Content::Text(_) | Content::Clip(_) => {
            outside.push(content);
            context! { type => "text", text => format!("{OPEN}{}{CLOSE}", outside.len() - 1) }
        }
    };
    let content: Vec<Value> = turn.content.iter().map(item).collect();
    context! { role, content }
}

/// Puts the outside texts back in place of their placeholders.
fn pieces<'a>(rendered: &str, outside: &[&'a Content]) -> Result<Vec<Piece<'a>>, TemplateError> {
    let mut parts = rendered.split(OPEN);
    let mut pieces = Vec::new();
    let own = |text: &str| match text {
        "" => Ok(None),
        text if text.contains(CLOSE) => Err(TemplateError::Placeholder),
        text => Ok(Some(Piece::Own(text.to_owned()))),
    };
    pieces.extend(own(parts.next().unwrap_or_default())?);
    for part in parts {
        let (number, rest) = part.split_once(CLOSE).ok_or(TemplateError::Placeholder)?;
        let content = number.parse().ok().and_then(|number: usize| outside.get(number)).ok_or(TemplateError::Placeholder)?;
        match content {
            Content::Text(text) => pieces.push(Piece::Said(text)),
            Content::Clip(clip) => pieces.push(Piece::Shown(clip)),
            Content::Picture(_) => return Err(TemplateError::Placeholder),
        }
        pieces.extend(own(rest)?);
    }
    Ok(pieces)
}

/// A buffer that refuses to grow without end.
#[derive(Default)]
struct Bounded {
    bytes: Vec<u8>,
}

impl Bounded {
    fn text(self) -> Result<String, TemplateError> {
        String::from_utf8(self.bytes).map_err(|error| TemplateError::Render { message: error.to_string() })
    }
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > OUTPUT_BYTES_MAX {
            return Err(io::Error::other(format!("output is above {OUTPUT_BYTES_MAX} bytes")));
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
    #[error("chat template has {bytes} bytes: expected at most {SOURCE_BYTES_MAX}; take the released one")]
    Size {
        /// Its length.
        bytes: usize,
    },
    /// It holds a character that stands for outside text.
    #[error("chat template holds U+F0000 or U+F0001, which mark outside text while it renders: take them out")]
    Reserved,
    /// It does not compile, fails, or is stopped at a limit.
    #[error("chat template: {message}; put the conversation as it asks, or export the bundle with the released template")]
    Render {
        /// The template engine's own words, or the template's.
        message: String,
    },
    /// It took a placeholder apart instead of printing it.
    #[error("chat template changes a message's text: expected it printed as it is; take the filter out of it, or take the released one")]
    Placeholder,
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
            Turn { role: Role::System, content: vec![Content::Text("Be brief.".into())] },
            Turn { role: Role::User, content: vec![Content::Picture(picture), Content::Text("<image>{{ 7 * 7 }}".into())] },
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
        assert_eq!(render(spread).expect("renders"), render(DEFAULT).expect("renders"));
    }

    #[test]
    fn errors_say_what_the_template_did() {
        let cases = [
            "{{ raise_exception('roles must alternate') }}",
            "{% for m in messages %}",
            "{{ messages[1]['content'][1]['text'][1:] }}",
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
            "{% for a in range(40000) %}a template without an end, thirty-odd bytes{% endfor %}",
            "\u{F0000}0\u{F0001}",
            &" ".repeat(SOURCE_BYTES_MAX + 1),
        ];
        let messages = cases.map(|source| render(source).expect_err("fails").to_string()).join("\n");
        insta::assert_snapshot!(messages, @r"
        chat template: invalid operation: roles must alternate (in chat_template.jinja:1); put the conversation as it asks, or export the bundle with the released template
        chat template: syntax error: unexpected end of input, expected end of block (in chat_template.jinja:1); put the conversation as it asks, or export the bundle with the released template
        chat template changes a message's text: expected it printed as it is; take the filter out of it, or take the released one
        chat template: engine ran out of fuel (in chat_template.jinja:1); put the conversation as it asks, or export the bundle with the released template
        chat template: failed to write output: I/O error during rendering: output is above 1048576 bytes; put the conversation as it asks, or export the bundle with the released template
        chat template holds U+F0000 or U+F0001, which mark outside text while it renders: take them out
        chat template has 65537 bytes: expected at most 65536; take the released one
        ");
    }
}
