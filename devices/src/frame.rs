//! One image of a camera, and its time.

use std::time::SystemTime;

use bytes::Bytes;

/// One image of a camera, and its time. Cheap to clone: pixels are shared.
#[derive(Debug, Clone)]
pub struct Frame {
    /// When it was captured: for a replayed source, when it was handed out.
    pub captured_at: SystemTime,
    /// File name inside a folder source, such as `035000.jpg`.
    pub name: Option<String>,
    /// The pixels.
    pub image: FrameImage,
}

/// The pixels of a frame, as the source delivers them.
#[derive(Clone)]
pub enum FrameImage {
    /// An image file as it came: JPEG, PNG, WebP, BMP or GIF.
    Encoded(Bytes),
    /// Decoded pixels.
    Rgb {
        /// Columns, at least 1.
        width: u32,
        /// Rows, at least 1.
        height: u32,
        /// `height` · `width` · 3 bytes: rows from the top, red first.
        data: Bytes,
    },
}

impl std::fmt::Debug for FrameImage {
    /// Sizes only, not the pixels.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FrameImage::Encoded(bytes) => write!(f, "Encoded({} bytes)", bytes.len()),
            FrameImage::Rgb { width, height, .. } => write!(f, "Rgb({width} x {height})"),
        }
    }
}
