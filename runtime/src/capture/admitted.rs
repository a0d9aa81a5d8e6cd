//! What goes from a camera's thread to its scene.

use bytes::Bytes;
use jiff::Timestamp;
use vlm::Picture;

/// An admitted frame.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Its number, from 1, within the camera.
    pub number: u64,
    /// When it was captured.
    pub time: Timestamp,
    /// The file it came from, for sources that have one.
    pub name: Option<String>,
    /// What is seen.
    pub picture: Picture,
    /// The same, as it is published and sent to pools.
    pub jpeg: Bytes,
    /// Hex sha256 of `jpeg`.
    pub sha256: String,
}
