//! Formats that are written to a device and read back: the agent's `egret.toml` ([`agent`]) and a
//! bundle's `manifest.json` ([`manifest`]).
//!
//! The image limits that the crates above must agree on are in [`limits`].
//!
//! This crate is data and its rules: no I/O, no async, no model. A value of [`agent::AgentConfig`]
//! or [`manifest::Manifest`] is valid by construction; a text that is not valid gives every
//! diagnostic at once, with its line and column.
#![forbid(unsafe_code)]

pub mod agent;
pub mod limits;
pub mod manifest;
mod redact;

pub use redact::redact;
