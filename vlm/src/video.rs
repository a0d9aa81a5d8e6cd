//! Clips: frames with their times.

use std::time::Duration;

use crate::picture::Picture;

/// Frames taken from a clip, oldest first.
#[derive(Debug, Clone)]
pub struct Clip {
    /// The frames, at least one, in order of time.
    pub frames: Vec<ClipFrame>,
    /// Length of the whole clip, not only from the first frame to the last.
    pub duration: Duration,
}

/// One frame of a clip.
#[derive(Debug, Clone)]
pub struct ClipFrame {
    /// The image.
    pub picture: Picture,
    /// Its time since the clip's start.
    pub at: Duration,
}
