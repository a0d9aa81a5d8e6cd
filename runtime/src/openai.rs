//! The part of OpenAI's chat-completion wire format that Egret uses. Serde only:
//! `serve::chat` interprets the fields.
//!
//! The gateway and the worker read requests and write replies, a pool client does the opposite; all
//! three share these types. Unknown fields of a request are ignored, as OpenAI's servers do. Fields
//! that would change the answer and are not supported are kept as raw JSON, so that
//! `serve::chat` can refuse them by name.

pub mod error;
pub mod reply;
pub mod request;

pub use error::ApiError;
pub use reply::{Chunk, Completion, ModelEntry, ModelList};
pub use request::ChatRequest;
