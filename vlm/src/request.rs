//! A request to a model: the conversation, and how to answer it.

use crate::picture::Picture;
use crate::video::Clip;

/// One question, with the conversation before it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The conversation, oldest turn first; the last one is the user's.
    pub turns: Vec<Turn>,
    /// The answers to choose from, at most [`CANDIDATES_MAX`](crate::CANDIDATES_MAX); empty for
    /// free text.
    pub candidates: Vec<String>,
    /// Whether images are split into tiles.
    pub split: Split,
    /// Longest free-text answer in tokens, 1 or more; not used with candidates.
    pub max_new_tokens: usize,
    /// Likeliest tokens listed beside each of the answer's.
    pub top_logprobs: usize,
    /// Whether the answer carries its trace.
    pub trace: bool,
}

/// One message of the conversation.
#[derive(Debug, Clone)]
pub struct Turn {
    /// The speaker.
    pub role: Role,
    /// Its texts, images and clips, in order.
    pub content: Vec<Content>,
}

/// The speaker of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions for the whole conversation.
    System,
    /// The person who asks.
    User,
    /// The model's earlier answers.
    Assistant,
}

/// One item of a message.
#[derive(Debug, Clone)]
pub enum Content {
    /// Untrusted text: special tokens in it stay text.
    Text(String),
    /// A still image.
    Picture(Picture),
    /// Frames of a clip with their times.
    Clip(Clip),
}

/// Whether images are split into tiles, for small text in them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// As [`Split::Off`].
    #[default]
    Auto,
    /// A grid of tiles (4 to 16 with the released models), then the whole image as one more.
    On,
    /// One tile, the whole image.
    Off,
}

impl Request {
    /// Default length limit of a free-text answer, in tokens.
    pub const MAX_NEW_TOKENS: usize = 128;

    /// A question about an image, answered in free text.
    pub fn question(picture: Picture, question: &str) -> Self {
        let content = vec![
            Content::Picture(picture),
            Content::Text(question.to_owned()),
        ];
        Request {
            turns: vec![Turn {
                role: Role::User,
                content,
            }],
            max_new_tokens: Self::MAX_NEW_TOKENS,
            ..Request::default()
        }
    }
}
