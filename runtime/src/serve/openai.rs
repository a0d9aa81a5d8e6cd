//! The OpenAI chat-completion wire format, as far as Egret speaks it. Serde only: what the fields
//! mean is `chat`'s business.
//!
//! The gateway reads requests and writes replies, a pool client does the opposite, a worker is a
//! gateway without HTTP; all three share these types. Unknown fields of a request are ignored, as
//! OpenAI's servers do. Fields that would change the answer and are not supported are kept as raw
//! JSON, so that `chat` can refuse them by name.

pub mod error;
pub mod reply;
pub mod request;

pub use error::ApiError;
pub use reply::{Chunk, Completion, ModelEntry, ModelList};
pub use request::ChatRequest;
