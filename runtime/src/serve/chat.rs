//! An OpenAI chat request as a question to the model, and the model's answer as a completion.
//! Shared by gateway and worker.
//!
//! ```text
//! ChatRequest ──question::read──▶ ChatQuestion { vlm::Request, form of the answer } ──model──▶ Answer ──completion──▶ Completion | Chunk…
//! ```
//!
//! No network and no model here: bytes in, values out, and every refusal is an
//! [`ApiError`] that names the request's field.

pub mod completion;
pub mod data_uri;
pub mod question;
pub mod reader;
pub mod schema;

use vlm::VlmError;

use crate::infer::AskError;
use crate::openai::ApiError;
pub use question::{BODY_BYTES_MAX, ChatQuestion, read};
pub use reader::Reader;

/// A failure of the local model, as a client sees it.
pub(crate) fn local_error(error: &AskError) -> ApiError {
    match error {
        AskError::Busy => ApiError::busy(error.to_string(), 1),
        AskError::Stopped => ApiError::server(503, "stopping", error.to_string()),
        AskError::Model(model) if model.is_bad_request() => {
            let field = if matches!(model, VlmError::Candidates(_)) {
                "response_format"
            } else {
                "messages"
            };
            ApiError::bad_request(field, error.to_string())
        }
        AskError::Model(_) => ApiError::server(500, "model_failed", error.to_string()),
    }
}
