//! What goes wrong between a camera and us.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use super::folder;

pub use super::ppm::PpmError as UnusableStream;

/// Why there is no frame. Texts hold no user name and no password.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The folder of a `dir://` source cannot be listed.
    #[error("cannot list the folder {path}: {error}; create it, or correct the camera's `source`", path = path.display())]
    FolderUnreadable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The folder of a `dir://` source holds nothing to show.
    #[error("no picture file ({}) in {path}; put frames there, or correct the camera's `source`", folder::EXTENSIONS.join(", "), path = path.display())]
    FolderEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// The folder of a `dir://` source holds more than is sorted in memory.
    #[error("more than {max} picture files in {path}; split them over several folders", max = folder::FILES_MAX, path = path.display())]
    FolderTooLarge {
        /// The folder.
        path: PathBuf,
    },
    /// One picture of a folder is unusable; the next call goes on behind it.
    #[error("{path}: {problem}", path = path.display())]
    Frame {
        /// The picture file.
        path: PathBuf,
        /// What is wrong with it.
        problem: FrameProblem,
    },
    /// The video of a `file://` source cannot be read.
    #[error("cannot read the video {path}: {error}; correct the camera's `source`, or the file's permissions", path = path.display())]
    FileUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The decoder is not installed.
    #[error("{camera}: `{program}` not found in PATH; it decodes videos and network cameras: apt install ffmpeg")]
    DecoderMissing {
        /// The source.
        camera: String,
        /// The program that was looked for.
        program: String,
    },
    /// The decoder cannot be started.
    #[error("{camera}: cannot start `{program}`: {error}")]
    DecoderUnstartable {
        /// The source.
        camera: String,
        /// The program.
        program: String,
        /// What the system says.
        error: std::io::Error,
    },
    /// The decoder's output is no sequence of pictures.
    #[error("{camera}: ffmpeg's output is unusable: {problem}")]
    Unusable {
        /// The source.
        camera: String,
        /// Where it departs from the format.
        problem: UnusableStream,
    },
    /// No frame came for too long.
    #[error("{camera}: no frame for {after:?}; look at the camera's power, network and `rate`, or raise `stall-after`")]
    Stalled {
        /// The source.
        camera: String,
        /// How long a frame was waited for.
        after: Duration,
    },
    /// The decoder ended although its source should not have.
    #[error("{camera}: ffmpeg ended ({status}){}", tail(stderr))]
    Exited {
        /// The source.
        camera: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it said, 2 KiB at most; may be empty.
        stderr: String,
    },
    /// [`Stop`](crate::Stop) was set.
    #[error("stopped")]
    Stopped,
}

impl CaptureError {
    /// Whether the camera goes on: true when only one frame was lost.
    #[must_use]
    pub fn spares_camera(&self) -> bool {
        matches!(self, CaptureError::Frame { .. })
    }
}

/// What is wrong with one picture file.
#[derive(Debug, thiserror::Error)]
pub enum FrameProblem {
    /// The system refuses it.
    #[error("cannot be read: {0}")]
    Unreadable(std::io::Error),
    /// A folder, pipe or device with a picture's name.
    #[error("is no regular file")]
    NotAFile,
    /// Larger than any picture.
    #[error("has more than {max} bytes; scale it down", max = folder::FILE_BYTES_MAX)]
    TooLarge,
}

/// What ffmpeg said, set off from what we say.
fn tail(stderr: &str) -> String {
    match stderr {
        "" => String::new(),
        said => format!(": {said}"),
    }
}
