//! A conversation to the prompt's token ids.
//!
//! template -> pieces -> stretches of text between special tokens, each tokenized whole -> ids.
//! Every picture becomes its image tokens, every clip a list of timed frames.

use std::time::Duration;

use firmware_config::manifest::{ImageRules, PromptTokens};

use crate::picture::Picture;
use crate::request::{Content, Role, Turn};
use crate::template::{Piece, Template, TemplateError};
use crate::tiles::{Layout, layout};
use crate::tokenizer::{Span, Tokenizer, TokenizerError};
use crate::video::Clip;

/// Most bytes that are said in one conversation: above this no context is long enough, and
/// tokenizing would only take time.
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
    /// How pictures are tiled.
    pub(crate) image: &'a ImageRules,
    /// Longest sequence in tokens.
    pub(crate) context_length: usize,
}

/// What the decoder is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    /// The conversation as rendered, `<image>` and `<video>` where pictures and clips stand.
    pub(crate) text: String,
    /// Its ids, every picture expanded to its image tokens.
    pub(crate) input_ids: Vec<u32>,
    /// Length of the part that does not depend on the question: up to and including the last image
    /// token, 0 without pictures.
    pub(crate) prefix_len: usize,
    /// Where the image tokens are, ascending: the rows of the image features, in their order, go
    /// there.
    pub(crate) image_positions: Vec<usize>,
}

impl PromptRules<'_> {
    /// The prompt of a conversation whose last turn is the user's.
    ///
    /// # Errors
    /// When nothing is asked, the prompt is longer than the context, the template fails or loses a
    /// picture, or `split` is asked of a model without tile tokens.
    pub(crate) fn prompt(&self, turns: &[Turn], split: bool) -> Result<Prompt, PromptError> {
        check_turns(turns)?;
        let pictures: Vec<&Picture> = turns
            .iter()
            .flat_map(|turn| &turn.content)
            .filter_map(picture)
            .collect();
        let mut unplaced = pictures.iter();
        let mut placed = 0;
        let mut draft = Draft {
            rules: self,
            text: String::new(),
            stretch: String::new(),
            input_ids: Vec::new(),
        };
        for piece in self.template.render(turns)? {
            match piece {
                Piece::Said(text) => draft.say(text),
                Piece::Shown(clip) => draft.clip(clip)?,
                Piece::Own(own) => {
                    draft.text.push_str(&own);
                    for span in self.tokenizer.split(&own) {
                        match span {
                            Span::Text(text) => draft.stretch.push_str(text),
                            Span::Special(id) if id == self.tokens.image => {
                                placed += 1;
                                if let Some(picture) = unplaced.next() {
                                    draft.tiles(layout(
                                        picture.width(),
                                        picture.height(),
                                        self.image,
                                        split,
                                    ))?;
                                }
                            }
                            Span::Special(id) => draft.special(id)?,
                        }
                    }
                }
            }
        }
        if placed != pictures.len() {
            return Err(PromptError::Pictures {
                given: pictures.len(),
                placed,
            });
        }
        draft.finish()
    }
}

fn picture(content: &Content) -> Option<&Picture> {
    match content {
        Content::Picture(picture) => Some(picture),
        Content::Text(_) | Content::Clip(_) => None,
    }
}

fn check_turns(turns: &[Turn]) -> Result<(), PromptError> {
    let said = |turn: &Turn| {
        turn.content
            .iter()
            .any(|content| matches!(content, Content::Text(text) if !text.trim().is_empty()))
    };
    if !turns
        .last()
        .is_some_and(|turn| turn.role == Role::User && said(turn))
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

/// A prompt in the making.
struct Draft<'a> {
    rules: &'a PromptRules<'a>,
    text: String,
    /// Text since the last special token: tokens may reach across its parts, so it is tokenized
    /// whole.
    stretch: String,
    input_ids: Vec<u32>,
}

impl Draft<'_> {
    fn say(&mut self, text: &str) {
        self.text.push_str(text);
        self.stretch.push_str(text);
    }

    fn special(&mut self, id: u32) -> Result<(), PromptError> {
        self.input_ids
            .extend(self.rules.tokenizer.encode(&self.stretch)?);
        self.stretch.clear();
        self.input_ids.push(id);
        Ok(())
    }

    /// One picture: its tiles row by row, a line end after each row, then the whole.
    fn tiles(&mut self, layout: Layout) -> Result<(), PromptError> {
        let tokens = self.rules.tokens;
        for row in 1..=layout.rows {
            for col in 1..=layout.cols {
                let name = format!("<row_{row}_col_{col}>");
                let Some(&place) = tokens.rows_cols.get(&name) else {
                    return Err(PromptError::NoTileToken { name });
                };
                self.frame(place)?;
            }
            self.stretch.push('\n');
        }
        if layout != Layout::WHOLE {
            self.stretch.push('\n');
        }
        self.frame(tokens.global_img)?;
        self.special(tokens.fake_token_around_image)
    }

    /// One tile's image tokens behind the token that tells its place.
    fn frame(&mut self, place: u32) -> Result<(), PromptError> {
        let tokens = self.rules.tokens;
        self.special(tokens.fake_token_around_image)?;
        self.special(place)?;
        self.input_ids.extend(std::iter::repeat_n(
            tokens.image,
            self.rules.image.tokens_per_tile,
        ));
        Ok(())
    }

    fn clip(&mut self, clip: &Clip) -> Result<(), PromptError> {
        self.text.push_str("<video>");
        let (count, length) = (words(clip.frames.len()), clock(clip.duration));
        // "[H:MM:SS]" is what the models were trained on, brackets and all.
        self.stretch.push_str(&format!("You are provided the following series of {count} frames from a {length} [H:MM:SS] video.\n"));
        for frame in &clip.frames {
            let seconds = frame.at.as_secs();
            self.stretch.push_str(&format!(
                "\nFrame from {:02}:{:02}:",
                seconds / 60,
                seconds % 60
            ));
            self.tiles(Layout::WHOLE)?;
        }
        self.stretch.push_str("\n\n");
        Ok(())
    }

    fn finish(mut self) -> Result<Prompt, PromptError> {
        self.input_ids
            .extend(self.rules.tokenizer.encode(&self.stretch)?);
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
            text: self.text,
            input_ids: self.input_ids,
            prefix_len,
            image_positions,
        })
    }
}

/// A length as Python prints it: `0:00:04`, `1 day, 2:03:04`.
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

/// A count in English words, as in training; digits from a thousand on, which no context holds.
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

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// No question.
    #[error("prompt is empty: expected a last turn of the user with text in it; ask something")]
    Empty,
    /// A clip that shows nothing.
    #[error("clip has no frames: expected at least one")]
    EmptyClip,
    /// More text than any context holds.
    #[error("prompt has {bytes} bytes of text: expected at most {TEXT_BYTES_MAX}; shorten it")]
    TextBytes {
        /// Of all turns.
        bytes: usize,
    },
    /// Longer than the context.
    #[error(
        "prompt has {tokens} tokens: the context holds {context}; shorten it, or show fewer or unsplit pictures"
    )]
    TooLong {
        /// Image tokens included.
        tokens: usize,
        /// The model's context length.
        context: usize,
    },
    /// The template and the conversation disagree.
    #[error(
        "chat template places {placed} pictures: expected {given}; the template must print <image> once for each"
    )]
    Pictures {
        /// In the conversation.
        given: usize,
        /// `<image>` in the template's output.
        placed: usize,
    },
    /// The model cannot be told where a tile lies.
    #[error("picture cannot be split: the tokenizer has no {name}; turn splitting off")]
    NoTileToken {
        /// The missing token.
        name: String,
    },
    /// The template fails.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

#[cfg(test)]
mod tests;
