//! A conversation to the prompt's token ids.
//!
//! template -> parts -> text between special tokens, tokenized as one -> ids. Every image becomes
//! its image tokens, every clip a list of timed frames.

use std::time::Duration;

use firmware_config::manifest::{ImageRules, PromptTokens};

use crate::picture::Picture;
use crate::request::{Content, Role, Turn};
use crate::template::{Part, Template, TemplateError};
use crate::tiles::{Layout, layout};
use crate::tokenizer::{Span, Tokenizer, TokenizerError};
use crate::video::Clip;

/// Most bytes of text in one conversation: no context is long enough for more, and tokenizing it
/// would only take time.
const TEXT_BYTES_MAX: usize = 1 << 20;

/// What turns conversations into prompts for one model.
#[derive(Clone, Copy)]
pub(crate) struct PromptRules<'a> {
    /// The checkpoint's chat template.
    pub(crate) template: &'a Template,
    /// The checkpoint's tokenizer.
    pub(crate) tokenizer: &'a Tokenizer,
    /// Ids of the image tokens.
    pub(crate) tokens: &'a PromptTokens,
    /// How images are tiled.
    pub(crate) image: &'a ImageRules,
    /// Longest sequence in tokens.
    pub(crate) context_length: usize,
}

/// The decoder's input for one conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// The conversation as rendered, `<image>` and `<video>` in place of images and clips.
    pub(crate) text: String,
    /// Its ids, every image expanded to its image tokens.
    pub(crate) input_ids: Vec<u32>,
    /// Length of the part that does not depend on the question: up to and including the last image
    /// token, 0 without images.
    pub(crate) prefix_len: usize,
    /// Positions of the image tokens, ascending: the rows of the image features go there, in their
    /// order.
    pub(crate) image_positions: Vec<usize>,
}

impl PromptRules<'_> {
    /// The prompt of a conversation whose last turn is the user's.
    ///
    /// # Errors
    /// When the last turn has no text, the prompt is longer than the context, the template fails or
    /// drops an image, or `split` is asked of a model without tile tokens.
    pub(crate) fn prompt(&self, turns: &[Turn], split: bool) -> Result<Prompt, PromptError> {
        check_turns(turns)?;
        let images: Vec<&Picture> = turns
            .iter()
            .flat_map(|turn| &turn.content)
            .filter_map(image)
            .collect();
        let mut unplaced = images.iter();
        let mut placed = 0;
        let mut prompt = PromptBuilder::new(self);
        for part in self.template.render(turns)? {
            match part {
                Part::Text(text) => prompt.text(text),
                Part::Clip(clip) => prompt.clip(clip)?,
                // Only the template's own markup may hold special tokens.
                Part::Markup(markup) => {
                    prompt.rendered.push_str(&markup);
                    for span in self.tokenizer.split(&markup) {
                        match span {
                            Span::Text(text) => prompt.pending.push_str(text),
                            Span::Special(id) if id == self.tokens.image => {
                                placed += 1;
                                if let Some(image) = unplaced.next() {
                                    let (width, height) = (image.width(), image.height());
                                    prompt.tiles(layout(width, height, self.image, split))?;
                                }
                            }
                            Span::Special(id) => prompt.special(id)?,
                        }
                    }
                }
            }
        }
        if placed != images.len() {
            return Err(PromptError::Images {
                given: images.len(),
                placed,
            });
        }
        prompt.finish()
    }
}

fn image(content: &Content) -> Option<&Picture> {
    match content {
        Content::Picture(picture) => Some(picture),
        Content::Text(_) | Content::Clip(_) => None,
    }
}

fn check_turns(turns: &[Turn]) -> Result<(), PromptError> {
    let has_text = |turn: &Turn| {
        turn.content
            .iter()
            .any(|content| matches!(content, Content::Text(text) if !text.trim().is_empty()))
    };
    if !turns
        .last()
        .is_some_and(|turn| turn.role == Role::User && has_text(turn))
    {
        return Err(PromptError::Empty);
    }
    let contents = || turns.iter().flat_map(|turn| &turn.content);
    if contents().any(|content| matches!(content, Content::Clip(clip) if clip.frames.is_empty())) {
        return Err(PromptError::EmptyClip);
    }
    let bytes: usize = contents()
        .map(|content| {
            if let Content::Text(text) = content {
                text.len()
            } else {
                0
            }
        })
        .sum();
    if bytes > TEXT_BYTES_MAX {
        Err(PromptError::TextBytes { bytes })
    } else {
        Ok(())
    }
}

/// A prompt while its parts are added.
struct PromptBuilder<'a> {
    rules: &'a PromptRules<'a>,
    rendered: String,
    /// Text since the last special token: tokens may reach across its parts, so it is tokenized as
    /// one.
    pending: String,
    input_ids: Vec<u32>,
}

impl<'a> PromptBuilder<'a> {
    fn new(rules: &'a PromptRules<'a>) -> Self {
        PromptBuilder {
            rules,
            rendered: String::new(),
            pending: String::new(),
            input_ids: Vec::new(),
        }
    }

    fn text(&mut self, text: &str) {
        self.rendered.push_str(text);
        self.pending.push_str(text);
    }

    /// The pending text's ids, then a special token.
    fn special(&mut self, id: u32) -> Result<(), PromptError> {
        self.input_ids
            .extend(self.rules.tokenizer.encode(&self.pending)?);
        self.pending.clear();
        self.input_ids.push(id);
        Ok(())
    }

    /// One image: its tiles row by row, a newline after each row, then the whole image.
    fn tiles(&mut self, layout: Layout) -> Result<(), PromptError> {
        let tokens = self.rules.tokens;
        for row in 1..=layout.rows {
            for col in 1..=layout.cols {
                let name = format!("<row_{row}_col_{col}>");
                let Some(&position) = tokens.rows_cols.get(&name) else {
                    return Err(PromptError::NoTileToken { name });
                };
                self.tile(position)?;
            }
            self.pending.push('\n');
        }
        if layout != Layout::WHOLE {
            self.pending.push('\n');
        }
        self.tile(tokens.global_img)?;
        self.special(tokens.fake_token_around_image)
    }

    /// One tile: the token of its position in the image, then its image tokens.
    fn tile(&mut self, position: u32) -> Result<(), PromptError> {
        let tokens = self.rules.tokens;
        self.special(tokens.fake_token_around_image)?;
        self.special(position)?;
        self.input_ids.extend(std::iter::repeat_n(
            tokens.image,
            self.rules.image.tokens_per_tile,
        ));
        Ok(())
    }

    /// One clip: a sentence about it, then its frames with their times, unsplit.
    fn clip(&mut self, clip: &Clip) -> Result<(), PromptError> {
        self.rendered.push_str("<video>");
        let (count, length) = (words(clip.frames.len()), clock(clip.duration));
        // "[H:MM:SS]" is what the models were trained on, brackets and all.
        self.pending.push_str(&format!("You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"));
        for frame in &clip.frames {
            let seconds = frame.at.as_secs();
            self.pending.push_str(&format!(
                "\nFrame from {:02}:{:02}:",
                seconds / 60,
                seconds % 60
            ));
            self.tiles(Layout::WHOLE)?;
        }
        self.pending.push_str("\n\n");
        Ok(())
    }

    fn finish(mut self) -> Result<Prompt, PromptError> {
        self.input_ids
            .extend(self.rules.tokenizer.encode(&self.pending)?);
        let (tokens, context) = (self.input_ids.len(), self.rules.context_length);
        if tokens > context {
            return Err(PromptError::TooLong { tokens, context });
        }
        let image = self.rules.tokens.image;
        let image_positions: Vec<usize> = (0..tokens)
            .filter(|&position| self.input_ids[position] == image)
            .collect();
        let prefix_len = image_positions.last().map_or(0, |last| last + 1);
        Ok(Prompt {
            text: self.rendered,
            input_ids: self.input_ids,
            prefix_len,
            image_positions,
        })
    }
}

/// A duration as Python prints it: `0:00:04`, `1 day, 2:03:04`.
fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let clock = format!(
        "{}:{:02}:{:02}",
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    );
    match seconds / 86_400 {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

/// A count in English words, as in training; digits from 1000, more frames than any context
/// holds.
fn words(count: usize) -> String {
    const SMALL: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 10] = [
        "", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
    ];
    match (count / 100, count % 100) {
        (0, small @ 0..20) => SMALL[small].to_owned(),
        (0, tens) if tens % 10 == 0 => TENS[tens / 10].to_owned(),
        (0, tens) => format!("{}-{}", TENS[tens / 10], SMALL[tens % 10]),
        (hundreds @ 1..10, 0) => format!("{} hundred", SMALL[hundreds]),
        (hundreds @ 1..10, rest) => format!("{} hundred and {}", SMALL[hundreds], words(rest)),
        _ => count.to_string(),
    }
}

/// Why a conversation has no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// The last turn is not a question.
    #[error("prompt has no question: expected a last turn by the user, with text; ask something")]
    Empty,
    /// A clip without frames.
    #[error("clip has no frames: expected at least one; sample it again")]
    EmptyClip,
    /// More text than any context holds.
    #[error("prompt has {bytes} bytes of text: expected at most {TEXT_BYTES_MAX}; shorten it")]
    TextBytes {
        /// In all turns.
        bytes: usize,
    },
    /// Longer than the context.
    #[error(
        "prompt has {tokens} tokens: expected at most the context's {context}; shorten it, or show fewer or unsplit images"
    )]
    TooLong {
        /// Image tokens included.
        tokens: usize,
        /// The model's context length.
        context: usize,
    },
    /// The template drops or repeats an image.
    #[error(
        "chat template places {placed} images: expected {given}; the template must print <image> once for each"
    )]
    Images {
        /// In the conversation.
        given: usize,
        /// `<image>` in the template's output.
        placed: usize,
    },
    /// The tokenizer has no token for a tile's position.
    #[error("image cannot be split: the tokenizer has no {name}; turn splitting off")]
    NoTileToken {
        /// The missing token.
        name: String,
    },
    /// The template fails, or changes a text.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

#[cfg(test)]
mod tests;
