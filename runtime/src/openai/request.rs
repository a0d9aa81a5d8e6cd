//! What a client sends to `/v1/chat/completions`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::ApiError;

/// A chat-completion request.
///
/// `temperature` and `top_p` are checked and otherwise without effect: decoding is greedy, so the
/// same request always gets the same answer.
#[derive(Debug, Clone, Default)]
pub struct ChatRequest {
    /// `auto`, `local`, a bundle's name, or a pool's id.
    pub model: Option<String>,
    /// Ordered fallback: they are asked in turn until one answers.
    pub models: Option<Vec<String>>,
    /// The conversation, oldest first.
    pub messages: Vec<Message>,
    /// Longest answer in tokens; the older name of `max_completion_tokens`.
    pub max_tokens: Option<u64>,
    /// Longest answer in tokens.
    pub max_completion_tokens: Option<u64>,
    /// Whether the reply is a stream of chunks.
    pub stream: Option<bool>,
    /// Options of the stream.
    pub stream_options: Option<StreamOptions>,
    /// Whether the tokens' log-probabilities are wanted.
    pub logprobs: Option<bool>,
    /// How many alternatives to each token, 0..=20.
    pub top_logprobs: Option<u64>,
    /// The form of the answer.
    pub response_format: Option<ResponseFormat>,
    /// 0..=2, without effect.
    pub temperature: Option<f64>,
    /// 0..=1, without effect.
    pub top_p: Option<f64>,
    /// Number of choices; only 1 is supported.
    pub n: Option<u64>,
    /// Every other field, so that unsupported ones can be refused by name and the rest ignored.
    pub rest: Map<String, Value>,
}

/// Characters of a wrong value that an error repeats.
const VALUE_CHARS_MAX: usize = 40;

impl ChatRequest {
    /// Reads a request's body, field by field, so that an error names the field. `null` is the
    /// same as absent.
    ///
    /// # Errors
    /// When the body is not a JSON object, or a field has another type.
    pub fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let mut fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            ApiError::refused(400, format!("the body is not a JSON object: {error}"))
        })?;
        Ok(ChatRequest {
            model: take(&mut fields, "model", "a model's id")?,
            models: take(&mut fields, "models", "a list of models' ids")?,
            messages: take(
                &mut fields,
                "messages",
                "a list of objects with role and content",
            )?
            .unwrap_or_default(),
            max_tokens: take(&mut fields, "max_tokens", "a whole number, 1 or more")?,
            max_completion_tokens: take(
                &mut fields,
                "max_completion_tokens",
                "a whole number, 1 or more",
            )?,
            stream: take(&mut fields, "stream", "true or false")?,
            stream_options: take(&mut fields, "stream_options", "an object")?,
            logprobs: take(&mut fields, "logprobs", "true or false")?,
            top_logprobs: take(&mut fields, "top_logprobs", "a whole number from 0 to 20")?,
            response_format: take(&mut fields, "response_format", "an object with type")?,
            temperature: take(&mut fields, "temperature", "a number from 0 to 2")?,
            top_p: take(&mut fields, "top_p", "a number from 0 to 1")?,
            n: take(&mut fields, "n", "1")?,
            rest: fields,
        })
    }
}

fn take<T: DeserializeOwned>(
    fields: &mut Map<String, Value>,
    name: &str,
    expected: &str,
) -> Result<Option<T>, ApiError> {
    match fields.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => T::deserialize(&value).map(Some).map_err(|error| {
            let found = match &value {
                // The value itself may be an image of megabytes; its deserializer says what is
                // wrong inside it.
                Value::Array(_) | Value::Object(_) => error.to_string(),
                value => value.to_string().chars().take(VALUE_CHARS_MAX).collect(),
            };
            ApiError::bad_request(name, format!("{name}: found {found}, expected {expected}"))
        }),
    }
}

/// One message of the conversation.
#[derive(Debug, Clone, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user` or `assistant`.
    pub role: String,
    /// Text and images.
    #[serde(default)]
    pub content: MessageContent,
}

/// A string, or parts.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(untagged)]
pub enum MessageContent {
    /// Text alone.
    Text(String),
    /// Text and images, in order.
    Parts(Vec<Part>),
    /// `null` or absent, as in an assistant's turn that only called a tool.
    #[default]
    Nothing,
}

/// One part of a message. Fields are optional because the type decides which one is needed.
#[derive(Debug, Clone, Deserialize)]
pub struct Part {
    /// `text` or `image_url`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The text of a `text` part.
    pub text: Option<String>,
    /// The image of an `image_url` part.
    pub image_url: Option<ImageUrl>,
}

/// An image.
#[derive(Debug, Clone, Deserialize)]
pub struct ImageUrl {
    /// `data:image/…;base64,…`.
    pub url: String,
    /// `high` splits the image into tiles for small text; `low` and `auto` do not.
    pub detail: Option<String>,
}

/// Options of a stream.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub struct StreamOptions {
    /// Whether a last chunk has the token counts.
    #[serde(default)]
    pub include_usage: Option<bool>,
}

/// The form of an answer.
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
