//! The rig: synthetic checkpoints, real brokers, scripted cameras and pools, for the integration tests and the benches.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

pub mod kept;
pub mod synth;

/// A file of `tests/data`.
pub fn data(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
}
