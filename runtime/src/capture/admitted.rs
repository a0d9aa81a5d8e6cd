//! What goes from a camera to its scene.

use bytes::Bytes;
use jiff::Timestamp;
use vlm::Picture;

/// A frame that the gate let through. Cheap to clone: image and JPEG are shared.
#[derive(Debug, Clone)]
pub struct AdmittedFrame {
    /// Its number, from 1, within the camera.
    pub number: u64,
    /// When it was captured.
    pub time: Timestamp,
    /// The file it came from, for sources that have one.
    pub name: Option<String>,
    /// The decoded image.
    pub picture: Picture,
    /// The same image, as it is published and sent to pools.
    pub jpeg: Bytes,
    /// Hex sha256 of `jpeg`.
    pub sha256: String,
}
