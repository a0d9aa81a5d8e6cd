//! The error object, and the HTTP status it travels under.

use serde::{Deserialize, Serialize};

/// Longest message about a request, in characters.
const MESSAGE_CHARS_MAX: usize = 600;

/// An error as OpenAI clients read it. Over MQTT `status` travels as a User Property.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// HTTP status, 400..=599.
    pub status: u16,
    /// `invalid_request_error`, `server_error` and the like.
    pub kind: &'static str,
    /// A code for programs, such as `model_not_found`.
    pub code: Option<String>,
    /// The request's field at fault: `messages[0].content[1].image_url.url`.
    pub param: Option<String>,
    /// What is wrong, what was expected, and the help.
    pub message: String,
    /// When to try again, in whole seconds: the `Retry-After` header.
    pub retry_after: Option<u64>,
}

impl ApiError {
    /// 400: the request's field `param` is wrong or not supported.
    pub fn bad_request(param: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError {
            status: 400,
            kind: "invalid_request_error",
            code: None,
            param: Some(param.into()),
            message: cut(message.into()),
            retry_after: None,
        }
    }

    /// 4xx: the request is refused as a whole, with `status`.
    pub fn refused(status: u16, message: impl Into<String>) -> Self {
        ApiError {
            status,
            param: None,
            ..ApiError::bad_request("", message)
        }
    }

    /// 404: no model here has that name.
    pub fn model_not_found(model: &str, known: &[String]) -> Self {
        ApiError {
            status: 404,
            kind: "invalid_request_error",
            code: Some("model_not_found".into()),
            param: Some("model".into()),
            message: cut(format!(
                "the model `{model}` does not exist here; expected one of: {}",
                known.join(", ")
            )),
            retry_after: None,
        }
    }

    /// 503: all capacity is in use; `retry_after` is in seconds.
    pub fn busy(message: impl Into<String>, retry_after: u64) -> Self {
        ApiError {
            retry_after: Some(retry_after),
            ..ApiError::server(503, "busy", message)
        }
    }

    /// 5xx: the request is not at fault.
    pub fn server(status: u16, code: &str, message: impl Into<String>) -> Self {
        ApiError {
            status,
            kind: "server_error",
            code: Some(code.into()),
            param: None,
            message: message.into(),
            retry_after: None,
        }
    }

    /// The body of the reply: `{"error": {…}}`.
    pub fn body(&self) -> ErrorBody {
        ErrorBody {
            error: ErrorObject {
                message: self.message.clone(),
                kind: Some(self.kind.to_owned()),
                param: self.param.clone(),
                code: self.code.clone().map(serde_json::Value::String),
            },
        }
    }
}

/// Limits a message that repeats a value of the request, which may be megabytes.
fn cut(mut message: String) -> String {
    if let Some((end, _)) = message.char_indices().nth(MESSAGE_CHARS_MAX) {
        message.truncate(end);
        message.push('…');
    }
    message
}

/// `{"error": {…}}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The error.
    pub error: ErrorObject,
}

/// An error. Servers differ in all but `message`, so a pool client reads the rest leniently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// Text for people.
    pub message: String,
    /// Its class.
    #[serde(rename = "type", default)]
    pub kind: Option<String>,
    /// The field at fault.
    #[serde(default)]
    pub param: Option<String>,
    /// A code for programs; some servers send a number.
    #[serde(default)]
    pub code: Option<serde_json::Value>,
}
