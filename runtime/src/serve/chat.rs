//! An OpenAI chat request as a question to the model, and the model's answer as a completion.
//! Shared by gateway and worker.
//!
//! ```text
//! ChatRequest ──question::read──▶ ChatQuestion { vlm::Request, form of the answer } ──model──▶ Answer ──completion──▶ Completion | Chunk…
//! ```
//!
//! No network and no model here: bytes in, values out, and every refusal is an
//! [`ApiError`](crate::openai::ApiError) that names the request's field.

pub mod completion;
pub mod data_uri;
pub mod question;
pub mod reader;
pub mod schema;

pub use question::{BODY_BYTES_MAX, ChatQuestion, read};
pub use reader::Reader;
