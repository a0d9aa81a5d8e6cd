//! An OpenAI chat request as a question to the model, and the model's answer as a completion.
//! Shared by gateway and worker.
//!
//! ```text
//! ChatRequest ──asked::read──▶ Asked { vlm::Request, form of the answer } ──model──▶ Answer ──completion──▶ Completion | Chunk…
//! ```
//!
//! No network and no model here: bytes in, values out, and every refusal is an
//! [`ApiError`](crate::serve::openai::ApiError) that names the request's field.

pub mod asked;
pub mod completion;
pub mod data_uri;
pub mod reader;
pub mod schema;

pub use asked::{Asked, BODY_BYTES_MAX, read};
pub use reader::Reader;
