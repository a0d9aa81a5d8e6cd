//! What a server sends back: completions, chunks of a stream, and the list of models.

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// A chat completion.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// `chatcmpl-…`.
    #[serde(default)]
    pub id: String,
    /// `chat.completion`.
    #[serde(default)]
    pub object: String,
    /// Seconds since 1970.
    #[serde(default)]
    pub created: u64,
    /// The model that answered.
    #[serde(default)]
    pub model: String,
    /// The answers: Egret writes one, and reads the first.
    pub choices: Vec<Choice>,
    /// Token counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// The route and its reasons; an extension of Egret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routing: Option<Value>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// Egret writes 0.
    #[serde(default)]
    pub index: u32,
    /// The answer.
    pub message: ReplyMessage,
    /// The tokens' log-probabilities, when asked for.
    #[serde(default)]
    pub logprobs: Option<Logprobs>,
    /// `stop` or `length`.
    #[serde(default)]
    pub finish_reason: Option<String>,
}

/// The answer's message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReplyMessage {
    /// `assistant`.
    #[serde(default)]
    pub role: String,
    /// The answer. Some servers send parts, as requests may have; their texts are joined.
    #[serde(default, deserialize_with = "text_or_parts")]
    pub content: Option<String>,
    /// Why the model refused to answer.
    #[serde(default)]
    pub refusal: Option<String>,
}

fn text_or_parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Content {
        Text(String),
        Parts(Vec<Part>),
    }
    #[derive(Deserialize)]
    struct Part {
        text: Option<String>,
    }
    Ok(
        Option::<Content>::deserialize(deserializer)?.map(|content| match content {
            Content::Text(text) => text,
            Content::Parts(parts) => parts.into_iter().filter_map(|part| part.text).collect(),
        }),
    )
}

/// Log-probabilities of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// One entry per token. For a scored answer: the tokens of the winning candidate, without those
    /// of the JSON around it.
    #[serde(default)]
    pub content: Option<Vec<TokenLogprob>>,
    /// Egret writes `null`.
    #[serde(default)]
    pub refusal: Option<Value>,
}

/// One token and its alternatives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprob {
    /// Its text.
    pub token: String,
    /// Natural log of its probability.
    pub logprob: f64,
    /// Its text as UTF-8.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
    /// Alternatives, most likely first; the token itself is one of them.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// One alternative to a token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TopLogprob {
    /// Its text.
    pub token: String,
    /// Natural log of its probability.
    pub logprob: f64,
    /// Its text as UTF-8.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
}

/// Token counts of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt, image tokens included.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the completion.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Both.
    #[serde(default)]
    pub total_tokens: u64,
}

/// One piece of a streamed completion.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Chunk {
    /// The same in every chunk.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: &'static str,
    /// Seconds since 1970, the same in every chunk.
    pub created: u64,
    /// The model that answers, the same in every chunk.
    pub model: String,
    /// One, or none in the chunk that carries the usage.
    pub choices: Vec<ChunkChoice>,
    /// In the last chunk, if `include_usage` was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// In the chunk with the finish reason.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing: Option<Value>,
}

/// The addition of a chunk.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChunkChoice {
    /// 0.
    pub index: u32,
    /// More of the message.
    pub delta: Delta,
    /// Log-probabilities of its tokens.
    pub logprobs: Option<Logprobs>,
    /// In the last chunk of the answer.
    pub finish_reason: Option<String>,
}

/// An addition to the message.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Delta {
    /// `assistant`, in the first chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
}

/// `/v1/models`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelList {
    /// `list`.
    pub object: &'static str,
    /// Every value of `model`.
    pub data: Vec<ModelEntry>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelEntry {
    /// Its value of `model`.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    /// `egret` for the local model, `pool` for a pool.
    pub owned_by: &'static str,
    /// Its inputs and outputs.
    pub architecture: Architecture,
    /// US dollars per call; `null` when unknown.
    pub usd_per_call: Option<f64>,
}

/// Inputs and outputs of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Architecture {
    /// `text`, `image`.
    pub input_modalities: Vec<&'static str>,
    /// `text`.
    pub output_modalities: Vec<&'static str>,
}
