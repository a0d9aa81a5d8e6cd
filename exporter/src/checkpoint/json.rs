//! JSON as checkpoints have it: read up to a length, written for people.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::error::CheckpointError;

/// Longest JSON file that is read; the largest real one is an index of some hundred kilobytes.
const JSON_BYTES_MAX: u64 = 64 << 20;

/// Reads a JSON file of bounded length.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, CheckpointError> {
    let io = |source| CheckpointError::io(path, source);
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > JSON_BYTES_MAX {
        return Err(CheckpointError::json(
            path,
            format!("{bytes} bytes long, expected at most {JSON_BYTES_MAX}"),
        ));
    }
    let text = std::fs::read(path).map_err(io)?;
    serde_json::from_slice(&text).map_err(|error| CheckpointError::json(path, error.to_string()))
}

/// JSON as people read it, ending in a newline.
pub(crate) fn pretty(value: &serde_json::Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
