//! What a client sends to `/v1/chat/completions`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// A chat-completion request.
///
/// `temperature`, `top_p` and `seed` are checked and otherwise without effect: decoding is greedy, so every answer is the most likely
/// one and the same request always gets the same answer.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ChatRequest {
    /// `auto`, `local`, a bundle's name, or a pool's id.
    pub model: Option<String>,
    /// Ordered fallback: the first of these that answers.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// The conversation, oldest first.
    #[serde(default)]
    pub messages: Vec<Message>,
    /// Longest answer in tokens; the older name of `max_completion_tokens`.
    pub max_tokens: Option<u64>,
    /// Longest answer in tokens.
    pub max_completion_tokens: Option<u64>,
    /// Whether the reply is a stream of chunks.
    pub stream: Option<bool>,
    /// What the stream carries beyond the answer.
    pub stream_options: Option<StreamOptions>,
    /// Whether the tokens' log-probabilities are wanted.
    pub logprobs: Option<bool>,
    /// How many alternatives to each token, 0..=20.
    pub top_logprobs: Option<u64>,
    /// What form the answer has to take.
    pub response_format: Option<ResponseFormat>,
    /// 0..=2, without effect.
    pub temperature: Option<f64>,
    /// 0..=1, without effect.
    pub top_p: Option<f64>,
    /// How many answers; only 1.
    pub n: Option<u64>,
    /// Every other field, so that unsupported ones can be refused by name and the rest ignored.
    #[serde(flatten)]
    pub rest: BTreeMap<String, Value>,
}

/// One message of the conversation.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user` or `assistant`.
    pub role: String,
    /// What is said and shown.
    #[serde(default)]
    pub content: MessageContent,
}

/// A string, or parts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
pub enum MessageContent {
    /// Text alone.
    Text(String),
    /// Text and pictures, in order.
    Parts(Vec<Part>),
    /// `null` or absent, as in an assistant's turn that only called a tool.
    #[default]
    Nothing,
}

/// One part of a message. Fields are optional here because the type decides which one is needed.
#[derive(Debug, Clone, Deserialize)]
pub struct Part {
    /// `text` or `image_url`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    pub text: Option<String>,
    /// The picture of an `image_url` part.
    pub image_url: Option<ImageUrl>,
}

/// A picture.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageUrl {
    /// `data:image/…;base64,…`.
    pub url: String,
    /// `high` splits the picture into tiles for small text; `low` and `auto` do not.
    pub detail: Option<String>,
}

/// What a stream carries beyond the answer.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether a last chunk tells how many tokens were used.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// What form the answer has to take.
#[derive(Debug, Clone, Deserialize)]
pub struct ResponseFormat {
    /// `text` or `json_schema`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The schema of `json_schema`.
    pub json_schema: Option<JsonSchema>,
}

/// A named schema.
#[derive(Debug, Clone, Deserialize)]
pub struct JsonSchema {
    /// The JSON Schema itself.
    pub schema: Option<Value>,
}
