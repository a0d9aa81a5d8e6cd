//! The rig: synthetic checkpoints, real brokers, scripted cameras and pools, for the integration tests and the benches.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]
