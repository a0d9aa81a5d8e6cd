//! A model's answer, its confidence and its timings.

use std::time::Duration;

use serde::ser::{Serialize, SerializeStruct, Serializer};

/// The outcome of one [`Request`](crate::request::Request).
#[derive(Debug, Clone)]
pub struct Answer {
    /// The winning candidate, or the generated text without the space that separates it from its
    /// prompt.
    pub text: String,
    /// Why the answer ended.
    pub finish_reason: FinishReason,
    /// The answer's tokens (with candidates, the winner's), end token excluded.
    pub tokens: Vec<Token>,
    /// Every candidate with its probability, in the order asked; empty for free text.
    pub candidates: Vec<Candidate>,
    /// How sure the model is.
    pub confidence: Confidence,
    /// Length of the prompt in tokens, image tokens included.
    pub prompt_tokens: usize,
    /// Where the time went.
    pub timings: Timings,
    /// The model's inputs and outputs, where [`Request::trace`](crate::Request::trace) asked for
    /// them.
    pub trace: Option<Trace>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// At an end token, at the end of a candidate, or where the sink cancelled.
    Stop,
    /// At `max_new_tokens`, or at the end of the context.
    Length,
}

impl FinishReason {
    /// `stop` or `length`, as in OpenAI's `finish_reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// A part of an answer, given to the sink as soon as it is known; all of them together are
/// [`Answer::text`].
#[derive(Debug, Clone, PartialEq)]
pub struct Piece {
    /// The text that is added; empty while a character is incomplete.
    pub text: String,
    /// Its tokens: one of free text, all of a winning candidate; none where the text ends within a
    /// character.
    pub tokens: Vec<Token>,
}

/// One token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id in the tokenizer.
    pub id: u32,
    /// Its text; a character that spans tokens belongs to the token that completes it.
    pub text: String,
    /// Natural log of its probability given all before it.
    pub logprob: f32,
    /// The likeliest tokens in its place, as many as were asked for, likeliest first.
    pub top: Vec<TopToken>,
}

/// A token that was possible there.
#[derive(Debug, Clone, PartialEq)]
pub struct TopToken {
    /// Its id in the tokenizer.
    pub id: u32,
    /// Its text alone; bytes that are part of a character become U+FFFD.
    pub text: String,
    /// Natural log of its probability.
    pub logprob: f32,
}

/// One of the answers to choose from.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// As in the request.
    pub text: String,
    /// Sum of its tokens' log-probabilities, natural log.
    pub score: f64,
    /// Softmax of the scores over the candidates, 0..=1.
    pub probability: f64,
}

/// How sure the model is of its answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Confidence {
    /// 0..=1.
    pub p: f64,
    /// What it was computed from.
    pub source: ConfidenceSource,
}

impl Serialize for Confidence {
    /// `{p, source, state}`: the state of a confidence that is not calibrated is `uncertified`.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Confidence", 3)?;
        object.serialize_field("p", &self.p)?;
        object.serialize_field("source", self.source.as_str())?;
        object.serialize_field("state", "uncertified")?;
        object.end()
    }
}

/// What a confidence was computed from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConfidenceSource {
    /// The top candidate's probability.
    Candidates,
    /// exp of the 10 % quantile of the tokens' log-probabilities.
    Tokens,
}

impl ConfidenceSource {
    /// `candidates` or `tokens`.
    pub fn as_str(self) -> &'static str {
        match self {
            ConfidenceSource::Candidates => "candidates",
            ConfidenceSource::Tokens => "tokens",
        }
    }
}

/// Where the time of one answer went. A reused prefix costs neither vision nor its prefill.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    /// Images to pixel values and prompt to ids.
    pub preprocess: Duration,
    /// Vision encoder.
    pub vision: Duration,
    /// Prompt through the decoder.
    pub prefill: Duration,
    /// From the request to the first token of the answer.
    pub first_token: Duration,
    /// Everything after the prompt: decode steps, or candidate scoring.
    pub decode: Duration,
    /// The whole request.
    pub total: Duration,
}

/// The model's inputs and outputs for one request.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The rendered prompt before image expansion, with one `<image>` for each image.
    pub prompt: String,
    /// The prompt's token ids after expansion.
    pub input_ids: Vec<u32>,
    /// Shape [1, frames, 3, T, T]; `None` without images.
    pub pixel_shape: Option<[usize; 5]>,
    /// Hex sha256 of the u8 pixels as [frames, T, T, RGB], tiles row-major, global frame last.
    pub pixel_sha256: Option<String>,
    /// The vision encoder's output, [frames · S, H] row-major; `None` without images.
    pub image_features: Option<Vec<f32>>,
    /// Logits of the last prompt position, one per vocabulary entry.
    pub logits: Vec<f32>,
}
