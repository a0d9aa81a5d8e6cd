//! One vision-language model, answering.
//!
//! ```text
//! bundle folder ──Bundle::open──▶ files, every one hashed
//! Request ─▶ images ──▶ tiles ─▶ pixel_values ─▶ Model::encode ─▶ image features ─┐
//!        └─▶ template ─▶ prompt ─▶ input_ids ──▶ Model::embed ──▶ inputs_embeds ◀─┘
//!                                                    │ prefill (prefix kept: the next question on the frame starts here)
//!                                                    ▼
//!                                  candidates? score (probability of each) : generate ─▶ confidence ─▶ Answer
//! ```
//!
//! No async, no network, no policy: a [`Vlm`] is owned by one thread and asked one [`Request`] at a
//! time.
//!
//! `examples/ask.rs`, which the integration tests run:
//!
//! ```no_run
#![doc = include_str!("../examples/ask.rs")]
//! ```

pub mod answer;
mod backend;
mod bundle;
mod confidence;
#[cfg(test)]
mod fake;
mod generate;
mod hash;
mod logits;
mod mapped;
pub mod model;
mod picture;
mod prefix;
mod prompt;
#[cfg(test)]
mod reference;
mod request;
mod resample;
mod score;
mod sink;
pub mod special_tokens;
pub mod template;
pub mod tiles;
mod tokenizer;
pub mod video;
mod vlm;

pub use answer::Answer;
pub use backend::{BackendChoice, BackendError, LOG_FILTER, Options};
pub use bundle::{Bundle, BundleError, MANIFEST};
pub use hash::hex;
pub use logits::LogitsRow;
pub use mapped::MappedFile;
pub use picture::{PIXELS_MAX, Picture, PictureError};
pub use prompt::PromptError;
pub use request::{Content, Request, Role, Split, Turn};
pub use score::{CANDIDATES_MAX, CandidateError};
pub use sink::Sink;
pub use tokenizer::{Tokenizer, TokenizerError};
pub use vlm::{Identity, Vlm, VlmError};
