//! One vision-language model, answering.
//!
//! ```text
//! bundle folder ──Bundle::open──▶ files, every one hashed
//! Request ─▶ picture ─▶ tiles ─▶ pixel_values ─▶ Model::encode ─▶ image features ─┐
//!        └─▶ template ─▶ prompt ─▶ input_ids ──▶ Model::embed ──▶ inputs_embeds ◀─┘
//!                                                    │ prefill (prefix kept: the next question on the frame starts here)
//!                                                    ▼
//!                                  candidates? score (probability of each) : generate ─▶ confidence ─▶ Answer
//! ```
//!
//! No async, no network, no policy: a [`Vlm`] is owned by one thread and asked one [`Request`] at a
//! time.

pub mod answer;
pub mod backend;
pub mod bundle;
mod confidence;
#[cfg(test)]
mod fake;
mod generate;
pub mod hash;
pub mod logits;
pub mod mapped;
pub mod model;
pub mod picture;
mod prefix;
pub mod prompt;
#[cfg(test)]
mod reference;
pub mod request;
pub mod resample;
pub mod score;
mod sink;
pub mod special_tokens;
pub mod template;
pub mod tiles;
pub mod tokenizer;
pub mod video;
mod vlm;

pub use answer::Answer;
pub use backend::{BackendChoice, Options};
pub use picture::Picture;
pub use request::{Content, Request, Role, Split, Turn};
pub use sink::Sink;
pub use vlm::{Identity, Vlm, VlmError};
