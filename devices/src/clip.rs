//! Clips: the frames of a video file that a model is shown, through `ffprobe` and `ffmpeg`
//! children. Only the sampled frames are kept.

mod probe;
mod sample;

use std::ffi::OsString;
use std::io::{self, Read};
use std::path::Path;
use std::process::ChildStdout;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use firmware_config::manifest::VideoRules;
use tracing::warn;

use crate::child::Child;
use crate::file::readable;
use crate::ppm::{PpmError, PpmReader, RgbImage};
use probe::{Count, VideoStream};
use sample::sample;

/// Most bytes of decoded frames: 64 frames of 2560 x 1440 are 700 MB.
const FRAME_BYTES_MAX: usize = 1 << 30;

/// Most bytes of ffprobe's JSON, which has a few hundred.
const PROBE_BYTES_MAX: u64 = 1 << 20;

/// A child that is not done by then is killed: an hour of video takes a small box some ten minutes.
const CHILD_TIMEOUT: Duration = Duration::from_secs(15 * 60);

/// Frames taken from a video file.
#[derive(Debug)]
pub struct Clip {
    /// The frames, at least one, in order of time.
    pub frames: Vec<ClipFrame>,
    /// Length of the whole video, not only of what lies between the frames.
    pub duration: Duration,
}

/// One frame of a clip.
#[derive(Debug)]
pub struct ClipFrame {
    /// What is seen, upright as the file's rotation says.
    pub image: RgbImage,
    /// Its time since the start of the video.
    pub at: Duration,
}

/// Why a video file gives no clip.
#[derive(Debug, thiserror::Error)]
pub enum ClipError {
    /// The file cannot be opened.
    #[error("{0}; name a video file that can be read")]
    Unreadable(io::Error),
    /// ffprobe describes no video that frames can be sampled from.
    #[error("{0}")]
    Probe(String),
    /// It has a video stream without frames.
    #[error("no video frames in it")]
    NoFrames,
    /// Fewer frames were decoded than were counted.
    #[error("ffmpeg decoded {decoded} of {sampled} frames; convert it first")]
    Incomplete {
        /// Frames that came.
        decoded: usize,
        /// Frames that were asked for.
        sampled: usize,
    },
    /// The sampled frames need too much memory.
    #[error("its sampled frames are over {bytes_max} bytes; scale it down first")]
    TooLarge {
        /// Most bytes of all of them.
        bytes_max: usize,
    },
    /// ffmpeg or ffprobe cannot be started.
    #[error("cannot start {program}: {error}; install ffmpeg")]
    Start {
        /// What was started.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// The exit status of a child is not known.
    #[error(
        "the exit status of {program} is unknown: {error}; start egret without SIGCHLD ignored"
    )]
    Status {
        /// Which child.
        program: String,
        /// Why.
        error: io::Error,
    },
    /// A child refused the file.
    #[error("no video that {program} can read ({stderr}); convert it first")]
    Refused {
        /// Which child.
        program: String,
        /// The last line that it wrote to stderr.
        stderr: String,
    },
    /// ffprobe's output cannot be read.
    #[error("ffprobe's output: {0}")]
    ProbeOutput(io::Error),
    /// ffmpeg's output is not the images that it was asked for.
    #[error("ffmpeg's output: {0}")]
    Images(PpmError),
    /// As the error inside, with what the child wrote to stderr.
    #[error("{program}: {stderr}: {error}")]
    Explained {
        /// Which child.
        program: String,
        /// The last line that it wrote to stderr.
        stderr: String,
        /// What is wrong.
        error: Box<ClipError>,
    },
    /// A child took too long.
    #[error("{program} was not done after {limit:?}; cut the clip, or scale it down first")]
    Timeout {
        /// Which child.
        program: String,
        /// How long it may take.
        limit: Duration,
    },
    /// The thread that reads a child's output panicked.
    #[error("reading the output of {program} failed by a fault of Egret; please report it")]
    ReaderPanicked {
        /// Which child.
        program: String,
    },
}

impl ClipError {
    /// Whether a file or process failed, rather than the file being no usable video.
    #[must_use]
    pub fn is_io(&self) -> bool {
        match self {
            ClipError::Unreadable(_)
            | ClipError::Start { .. }
            | ClipError::Status { .. }
            | ClipError::ProbeOutput(_)
            | ClipError::Images(PpmError::Io(_)) => true,
            ClipError::Explained { error, .. } => error.is_io(),
            _ => false,
        }
    }
}

/// Reads the frames of a video file that `rules` sample.
///
/// # Errors
/// When the file cannot be read, is no video that ffmpeg decodes, or is too large or too long.
pub fn read(path: &Path, rules: &VideoRules) -> Result<Clip, ClipError> {
    readable(path).map_err(ClipError::Unreadable)?;
    let mut stream = probe(path, Count::Packets)?;
    let indices_of =
        |stream: &VideoStream| sample(stream.frames, stream.fps, stream.duration, rules);
    let mut indices = indices_of(&stream);
    if indices.is_empty() {
        return Err(ClipError::NoFrames);
    }
    let mut images = decode(path, &indices)?;
    if images.len() < indices.len() {
        // Not every packet shows a frame: an edit list cuts some off, and decoders drop damaged
        // ones. Counting frames takes decoding all.
        stream = probe(path, Count::Frames)?;
        indices = indices_of(&stream);
        images = decode(path, &indices)?;
    }
    if images.is_empty() || images.len() != indices.len() {
        return Err(ClipError::Incomplete {
            decoded: images.len(),
            sampled: indices.len(),
        });
    }
    let frames = images
        .into_iter()
        .zip(&indices)
        .map(|(image, &index)| ClipFrame {
            image,
            at: Duration::from_secs_f64(index as f64 / stream.fps),
        })
        .collect();
    Ok(Clip {
        frames,
        duration: stream.duration,
    })
}

fn probe(path: &Path, count: Count) -> Result<VideoStream, ClipError> {
    let arguments = arguments(path, &probe::arguments(count));
    let json = run("ffprobe", &arguments, path, CHILD_TIMEOUT, |stdout| {
        let mut json = Vec::new();
        stdout
            .take(PROBE_BYTES_MAX)
            .read_to_end(&mut json)
            .map_err(ClipError::ProbeOutput)?;
        Ok(json)
    })?;
    probe::parse(&json)
}

/// Decodes the frames at `indices`, upright as the file's rotation says.
fn decode(path: &Path, indices: &[usize]) -> Result<Vec<RgbImage>, ClipError> {
    let terms: Vec<String> = indices
        .iter()
        .map(|index| format!("eq(n\\,{index})"))
        .collect();
    let (select, count) = (format!("select={}", terms.join("+")), indices.len());
    let frames = count.to_string();
    let selection = [
        "-map",
        "0:v:0",
        "-vf",
        &select,
        "-fps_mode",
        "passthrough",
        "-frames:v",
        &frames,
    ];
    // PPM says its own size, so a rotated or changing image needs no guessing.
    let format = ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"];
    let arguments = arguments(path, &[&selection[..], &format].concat());
    run("ffmpeg", &arguments, path, CHILD_TIMEOUT, move |stdout| {
        read_images(stdout, count, FRAME_BYTES_MAX)
    })
}

/// The arguments of ffmpeg and ffprobe: the file, never as a flag, nor another protocol, not even
/// by a playlist with a video's name; then `rest`.
fn arguments(path: &Path, rest: &[&str]) -> Vec<OsString> {
    let mut file = OsString::from("file:");
    file.push(path);
    let before = ["-v", "error", "-protocol_whitelist", "file", "-i"].map(OsString::from);
    before
        .into_iter()
        .chain([file])
        .chain(rest.iter().map(OsString::from))
        .collect()
}

/// Starts `program` on the file at `path` and reads its output with `read`, on a thread: a read has
/// no timeout, but the child can be killed.
fn run<T: Send + 'static>(
    program: &str,
    arguments: &[OsString],
    path: &Path,
    limit: Duration,
    read: impl FnOnce(ChildStdout) -> Result<T, ClipError> + Send + 'static,
) -> Result<T, ClipError> {
    let named = || program.to_owned();
    let (mut child, stdout) =
        Child::start(program, arguments).map_err(|error| ClipError::Start {
            program: named(),
            error,
        })?;
    let (sender, output) = sync_channel(1);
    // The thread ends with the child. After a timeout there is no receiver any more.
    thread::spawn(move || sender.send(read(stdout)));
    match output.recv_timeout(limit) {
        Ok(Ok(read)) => {
            let status = child.wait().map_err(|error| ClipError::Status {
                program: named(),
                error,
            })?;
            let stderr = last_line(child.stderr(), path);
            if !status.success() {
                return Err(ClipError::Refused {
                    program: named(),
                    stderr: stderr.unwrap_or_else(|| "it wrote no reason".to_owned()),
                });
            }
            if let Some(stderr) = stderr {
                warn!(
                    "{} is damaged; what can be decoded is shown: {program}: {stderr}",
                    path.display()
                );
            }
            Ok(read)
        }
        Ok(Err(error)) => {
            // It would block for ever on a full pipe.
            child.kill();
            Err(match last_line(child.stderr(), path) {
                None => error,
                Some(stderr) => ClipError::Explained {
                    program: named(),
                    stderr,
                    error: Box::new(error),
                },
            })
        }
        Err(RecvTimeoutError::Disconnected) => Err(ClipError::ReaderPanicked { program: named() }),
        Err(RecvTimeoutError::Timeout) => Err(ClipError::Timeout {
            program: named(),
            limit,
        }),
    }
}

/// Reads at most `count` images, and `bytes_max` of pixels.
fn read_images(
    stream: impl Read,
    count: usize,
    bytes_max: usize,
) -> Result<Vec<RgbImage>, ClipError> {
    let mut reader = PpmReader::new(stream);
    let mut images = Vec::new();
    let mut bytes_left = bytes_max;
    while images.len() < count {
        let Some(image) = reader.next_image().map_err(ClipError::Images)? else {
            break;
        };
        bytes_left = bytes_left
            .checked_sub(image.data.len())
            .ok_or(ClipError::TooLarge { bytes_max })?;
        images.push(image);
    }
    Ok(images)
}

/// The last line of a child's stderr, without the name of the file, which the error has already;
/// `None` when it wrote nothing.
fn last_line(stderr: &str, path: &Path) -> Option<String> {
    let last = stderr.rsplit("; ").find(|line| !line.is_empty())?;
    let file = format!("file:{}: ", path.display());
    Some(last.trim_start_matches(&file).chars().take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_different_sizes_are_read_one_after_another() {
        let stream: &[u8] = b"P6\n1 2\n255\nabcdefP6\n1 1\n255\nxyz";
        let images = read_images(stream, 9, 99).expect("two images");
        assert_eq!(
            images
                .iter()
                .map(|image| (image.height, image.data.as_slice()))
                .collect::<Vec<_>>(),
            [(2, &b"abcdef"[..]), (1, b"xyz")]
        );
    }

    #[test]
    fn the_byte_limit_is_on_all_images_together() {
        let stream: &[u8] = b"P6\n1 2\n255\nabcdefP6\n1 1\n255\nxyz";
        let read = |count, bytes_max| read_images(stream, count, bytes_max);
        assert_eq!(read(9, 9).expect("two images").len(), 2);
        assert_eq!(read(1, 8).expect("one image").len(), 1);
        assert_eq!(
            read(9, 8).expect_err("nine bytes").to_string(),
            "its sampled frames are over 8 bytes; scale it down first"
        );
    }

    #[test]
    fn children_are_judged_by_output_and_status_and_killed_when_late() {
        let minute = Duration::from_secs(60);
        for (script, limit, expected) in [
            ("printf 'P6\n1 1\n255\nrgb'", minute, "1 images"),
            (
                "echo 'file:/a.mp4: no video' >&2; exit 3",
                minute,
                "no video that sh can read (no video); convert it first",
            ),
            (
                "exit 3",
                minute,
                "no video that sh can read (it wrote no reason); convert it first",
            ),
            (
                "printf 'P6\n1 1\n255\nr'; echo lost >&2",
                minute,
                "sh: lost: ffmpeg's output: ended inside an image, after 1 of 3 bytes of pixels",
            ),
            (
                "printf P5; exec sleep 3600",
                minute,
                "ffmpeg's output: no PPM header (P6, width, height, 255)",
            ),
            (
                "exec sleep 3600",
                Duration::from_millis(50),
                "sh was not done after 50ms; cut the clip, or scale it down first",
            ),
        ] {
            let arguments = ["-c", script].map(OsString::from);
            let read = run("sh", &arguments, Path::new("/a.mp4"), limit, |stdout| {
                Ok(read_images(stdout, 9, 99)?.len())
            });
            let found = match read {
                Ok(images) => format!("{images} images"),
                Err(error) => error.to_string(),
            };
            assert_eq!(found, expected, "{script}");
        }
    }

    #[test]
    fn a_named_pipe_is_refused_at_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("clip.mp4");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("mkfifo is installed").success());
        let rules = VideoRules {
            frames_per_second: 1.0,
            frames_max: 4,
        };
        let error = read(&pipe, &rules).expect_err("no regular file");
        assert!(error.is_io());
        assert_eq!(
            error.to_string(),
            "not a regular file; name a video file that can be read"
        );
    }
}
