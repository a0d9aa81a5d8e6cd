//! What is asked of a model.

use crate::picture::Picture;
use crate::video::Clip;

/// One question, with everything the model sees before it.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The conversation, oldest turn first; the last one is the user's.
    pub turns: Vec<Turn>,
    /// The answers to choose from; empty for free text.
    pub candidates: Vec<String>,
    /// Whether pictures are split into tiles.
    pub split: Split,
    /// Longest free-text answer in tokens, 1 or more.
    pub max_new_tokens: usize,
    /// Likeliest tokens told beside each of the answer's.
    pub top_logprobs: usize,
    /// Whether the answer carries its trace.
    pub trace: bool,
}

/// One message of the conversation.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub content: Vec<Content>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Standing instructions.
    System,
    /// The person asking.
    User,
    /// The model's earlier answers.
    Assistant,
}

/// One item of a message.
#[derive(Debug, Clone)]
pub enum Content {
    /// Outside text: special tokens in it stay text.
    Text(String),
    /// A still picture.
    Picture(Picture),
    /// Frames of a clip with their times.
    Clip(Clip),
}

/// Whether pictures are split into tiles for small text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// Off: one tile, the whole picture.
    #[default]
    Auto,
    /// 13-17 tiles and the whole picture.
    On,
    /// One tile, the whole picture.
    Off,
}

impl Request {
    /// Longest free-text answer where nobody says otherwise, in tokens.
    pub const MAX_NEW_TOKENS: usize = 128;

    /// A question about a picture, answered in free text.
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
