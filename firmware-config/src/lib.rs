//! Formats that are written to a device and read back: the agent's `egret.toml` ([`agent`]) and a
//! bundle's `manifest.json` ([`manifest`]).
//!
//! What the crates above must agree on beside them: the image [`limits`], and the names of the
//! graphs' [`tensors`].
//!
//! This crate is data and its rules: no I/O, no async, no model. A value of [`agent::AgentConfig`]
//! or [`manifest::Manifest`] is valid by construction; a text that is not valid gives every
//! diagnostic at once, with its line and column.
#![forbid(unsafe_code)]

pub mod agent;
pub mod limits;
pub mod manifest;
mod redact;
pub mod tensors;

pub use redact::redact;
