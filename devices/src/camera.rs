//! Capture sources, one `match` over the configured kinds.

mod ffmpeg;
mod folder;
mod live;
mod schedule;
mod slot;

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use firmware_config::agent::Source;

use crate::ppm::PpmError;
use crate::{Frame, Stop};

/// A source of frames.
pub trait Camera: Send {
    /// Blocks until the next frame; `None` when the source has ended, which a live one never does.
    ///
    /// # Errors
    /// When there is no frame, or [`Stop`] was set. An error that [costs one
    /// frame](CaptureError::costs_one_frame) costs one frame, and the next call returns the frame
    /// after it; after any other, drop the camera and open it again.
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError>;

    /// Frames superseded by newer ones before they were taken, since it was opened. Always 0 for a
    /// folder or a file.
    fn superseded(&self) -> u64 {
        0
    }
}

/// Opens a source, paced to one frame per `period`; zero is no pace, and every frame. Does not wait
/// for the first frame.
///
/// A live source that delivers nothing for `stall_after` fails; its first frame has 10 seconds at
/// least.
///
/// # Errors
/// When the source cannot be opened, or `ffmpeg` cannot be started.
pub fn open(
    source: &Source,
    period: Duration,
    stall_after: Duration,
    stop: &Stop,
) -> Result<Box<dyn Camera>, CaptureError> {
    Ok(match source {
        Source::Folder(path) => Box::new(folder::Folder::open(path, period, stop)?),
        Source::File(_) | Source::Rtsp(_) => {
            Box::new(ffmpeg::open("ffmpeg", source, period, stall_after, stop)?)
        }
    })
}

/// Why there is no frame. Sources are named without user and password.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// [`Stop`] was set.
    #[error("stopped")]
    Stopped,
    /// A folder or file that cannot be opened.
    #[error("{camera}: {error}; check the path, and that this user may read it")]
    CannotOpen {
        /// The source.
        camera: String,
        /// Why.
        error: io::Error,
    },
    /// A folder without image files.
    #[error(
        "{camera}: no image file in it; put .jpg, .jpeg, .png, .webp, .bmp or .gif files there"
    )]
    EmptyFolder {
        /// The source.
        camera: String,
    },
    /// A folder with more image files than are listed.
    #[error("{camera}: more than {max} image files; split the folder")]
    FolderTooLarge {
        /// The source.
        camera: String,
        /// Most files in a folder.
        max: usize,
    },
    /// One image file that cannot be read; the next frame is the file after it.
    #[error("{path}: {error}; this frame is skipped", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// One image file that is too large; the next frame is the file after it.
    #[error("{path}: {bytes} bytes, at most {max} are read; this frame is skipped", path = .path.display())]
    FrameTooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Most bytes of an image file.
        max: u64,
    },
    /// No `ffmpeg` on this box.
    #[error(
        "{camera}: no program {program:?} in PATH, and it decodes video and RTSP; install it: apt install ffmpeg"
    )]
    NoFfmpeg {
        /// The source.
        camera: String,
        /// The program that was looked for.
        program: String,
    },
    /// `ffmpeg` is there but does not start.
    #[error(
        "{camera}: ffmpeg does not start: {error}; check that this user may run it, and may start more processes"
    )]
    Start {
        /// The source.
        camera: String,
        /// Why.
        error: io::Error,
    },
    /// `ffmpeg` was started, and its exit status is not known.
    #[error(
        "{camera}: the exit status of ffmpeg is unknown: {error}; start egret without SIGCHLD ignored, which discards it"
    )]
    StatusUnknown {
        /// The source.
        camera: String,
        /// Why.
        error: io::Error,
    },
    /// A live camera that delivers nothing.
    #[error(
        "{camera}: no frame for {silent:.1?}, expected one within {limit:?}; check the camera and the network to it"
    )]
    Stalled {
        /// The source.
        camera: String,
        /// Time since its last frame, or since it was opened.
        silent: Duration,
        /// `stall-after`; for the first frame 10 seconds at least.
        limit: Duration,
    },
    /// The decoder failed, or it ended, which that of a live camera never should.
    #[error("{camera}: ffmpeg ended with {status}: {stderr}")]
    Exited {
        /// The source.
        camera: String,
        /// How.
        status: ExitStatus,
        /// The end of what it wrote to stderr, at most 2 KiB, without user and password.
        stderr: String,
    },
    /// The decoder ended well, but wrote no image.
    #[error("{camera}: no image in it: {stderr}; is it a video?")]
    NoImage {
        /// The source.
        camera: String,
        /// The end of what ffmpeg wrote to stderr.
        stderr: String,
    },
    /// The decoder's output is not the images that it was asked for.
    #[error("{camera}: ffmpeg's output: {error}")]
    Stream {
        /// The source.
        camera: String,
        /// What is wrong with it.
        error: PpmError,
    },
}

impl CaptureError {
    /// Whether only this one frame is lost.
    #[must_use]
    pub fn costs_one_frame(&self) -> bool {
        matches!(
            self,
            CaptureError::Unreadable { .. } | CaptureError::FrameTooLarge { .. }
        )
    }
}
