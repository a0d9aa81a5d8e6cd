//! What happens in a capture, for those who observe it.

use std::time::Duration;

use super::gate::Decision;

/// One thing that happened to a camera's capture.
#[derive(Debug, Clone)]
pub enum CaptureRecord {
    /// The gate decided about a frame.
    Frame {
        /// Its number, from 1, within the camera.
        frame: u64,
        /// The file it came from, for sources that have one.
        name: Option<String>,
        /// Admit or skip.
        decision: Decision,
    },
    /// A frame could not be used.
    FrameBad {
        /// Its number, from 1; `None` for one that could not even be read.
        frame: Option<u64>,
        /// The file it came from, for sources that have one.
        name: Option<String>,
        /// What is wrong with it.
        error: String,
    },
    /// Frames were replaced by newer ones before they were asked about.
    FramesSuperseded {
        /// How many.
        count: u64,
    },
    /// The source failed or stalled.
    Failed {
        /// What happened.
        error: String,
        /// When it is opened again; `None` when it is given up.
        reopen_in: Option<Duration>,
    },
}

/// Takes a capture's records, in order, on its thread: it must not block.
pub type Report = Box<dyn Fn(CaptureRecord) + Send>;
