//! Video files and RTSP, decoded by an `ffmpeg` child process that writes PPM images to a pipe.
//!
//! If the agent itself is killed the pipe breaks, and the child ends at its next image, or at its
//! own network timeout. It runs in a process group of its own, so Ctrl-C reaches the agent alone.

mod arguments;

use std::io::{self, Read};
use std::process::ChildStdout;
use std::time::Duration;

use firmware_config::agent::Source;

use super::CaptureError;
use super::live::{Delivery, ImageReader, LiveSource, Producer, connect_timeout};
use crate::child::Child;
use crate::file::readable;
use crate::ppm::{PpmError, PpmReader, RgbImage};
use crate::{FrameImage, Stop};

/// A live stream is decoded at least this often, so that a stall shows long before a slow rate
/// would ask for a frame.
const LIVE_PERIOD_MAX: Duration = Duration::from_secs(1);

/// Starts `program` on a video file or an RTSP stream.
///
/// # Errors
/// When the file cannot be read, or `program` cannot be started.
pub(super) fn open(
    program: &str,
    source: &Source,
    period: Duration,
    stall_after: Duration,
    stop: &Stop,
) -> Result<LiveSource<Decoder>, CaptureError> {
    let camera = source.to_string();
    if let Source::File(path) = source {
        // ffmpeg would report it too, but only after it was started.
        readable(path).map_err(|error| CaptureError::CannotOpen {
            camera: camera.clone(),
            error,
        })?;
    }
    let is_live = !source.is_finite();
    let decoded_period = if is_live {
        period.min(LIVE_PERIOD_MAX)
    } else {
        period
    };
    let arguments = arguments::arguments(source, decoded_period, connect_timeout(stall_after));
    let (child, stdout) =
        Child::start(program, &arguments).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => CaptureError::NoFfmpeg {
                camera: camera.clone(),
                program: program.to_owned(),
            },
            _ => CaptureError::Start {
                camera: camera.clone(),
                error,
            },
        })?;
    tracing::debug!(camera, pid = child.id(), "ffmpeg started");
    // A live stream that ffmpeg paces needs no second clock, which would only beat against the
    // first.
    let pace = if is_live && period <= LIVE_PERIOD_MAX {
        Duration::ZERO
    } else {
        period
    };
    let decoder = Decoder {
        camera: camera.clone(),
        is_live,
        secret: user_information(source),
        child,
    };
    let delivery = if is_live {
        Delivery::Newest { stall_after }
    } else {
        Delivery::Lossless
    };
    let reader = PpmReader::new(stdout);
    Ok(LiveSource::start(
        camera, decoder, reader, delivery, pace, stop,
    ))
}

/// The running child.
pub(super) struct Decoder {
    /// The source without user and password, for errors.
    camera: String,
    is_live: bool,
    /// User information of the source's URL, hidden wherever ffmpeg repeats it.
    secret: Option<String>,
    child: Child,
}

impl Decoder {
    /// The end of the child's stderr, once it has exited.
    fn stderr(&self) -> String {
        match (self.child.stderr(), &self.secret) {
            ("", _) => "it wrote nothing".to_owned(),
            (stderr, Some(secret)) => stderr.replace(secret.as_str(), "***"),
            (stderr, None) => stderr.to_owned(),
        }
    }
}

impl Producer for Decoder {
    type Reader = PpmReader<ChildStdout>;

    fn kill(&mut self) {
        self.child.kill();
    }

    fn finish(&mut self, read: Result<(), PpmError>, delivered: bool) -> Result<(), CaptureError> {
        let camera = self.camera.clone();
        let cut = match read {
            Ok(()) => None,
            // The cause of a cut image is whatever ended the child.
            Err(error @ (PpmError::Cut { .. } | PpmError::Io(_))) => Some(error),
            // The child would now end by its broken pipe, which is no cause.
            Err(error) => {
                self.child.kill();
                return Err(CaptureError::Stream { camera, error });
            }
        };
        let status = self
            .child
            .wait()
            .map_err(|error| CaptureError::StatusUnknown {
                camera: camera.clone(),
                error,
            })?;
        let stderr = self.stderr();
        match cut {
            _ if self.is_live || !status.success() => Err(CaptureError::Exited {
                camera,
                status,
                stderr,
            }),
            Some(error) => Err(CaptureError::Stream { camera, error }),
            None if !delivered => Err(CaptureError::NoImage { camera, stderr }),
            None => {
                if !self.child.stderr().is_empty() {
                    tracing::warn!(camera, stderr, "read to its end, but ffmpeg found errors");
                }
                Ok(())
            }
        }
    }
}

impl<R: Read + Send + 'static> ImageReader for PpmReader<R> {
    type Error = PpmError;

    fn next_image(&mut self) -> Result<Option<FrameImage>, PpmError> {
        let image = PpmReader::next_image(self)?;
        Ok(image.map(
            |RgbImage {
                 width,
                 height,
                 data,
             }| FrameImage::Rgb {
                width,
                height,
                data: data.into(),
            },
        ))
    }
}

/// `user:password` of an RTSP URL.
fn user_information(source: &Source) -> Option<String> {
    let Source::Rtsp(url) = source else {
        return None;
    };
    let (_, rest) = url.split_once("://")?;
    rest.rsplit_once('@')
        .map(|(user, _)| user.to_owned())
        .filter(|user| !user.is_empty())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::sync::Mutex;

    use super::*;
    use crate::Camera;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn a_missing_ffmpeg_is_reported_with_how_to_install_it() {
        let source = Source::Rtsp("rtsp://me:secret@192.0.2.7/s".into());
        let opened = open(
            "ffmpeg-that-is-not-there",
            &source,
            LIVE_PERIOD_MAX,
            LONG,
            &Stop::new(),
        );
        let error = opened.err().expect("there is no such program").to_string();
        assert!(
            error.contains("apt install ffmpeg")
                && error.contains("rtsp://***@192.0.2.7/s")
                && !error.contains("secret"),
            "{error}"
        );
    }

    /// Writing a program and starting one exclude each other: a child of another test, forked but
    /// not yet itself, would hold the file open for writing, and Linux refuses to start such a
    /// file.
    static PROGRAMS: Mutex<()> = Mutex::new(());

    /// A decoder written in shell, which ignores ffmpeg's arguments.
    struct Scripted {
        folder: tempfile::TempDir,
        program: String,
    }

    impl Scripted {
        fn new(script: &str) -> Self {
            let _alone = PROGRAMS.lock();
            let folder = tempfile::tempdir().expect("a folder");
            let program = folder.path().join("decoder");
            fs::write(&program, format!("#!/bin/sh\n{script}\n")).expect("a script");
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a program");
            let program = program.to_str().expect("UTF-8").to_owned();
            Self { folder, program }
        }

        fn open(&self, source: &Source) -> LiveSource<Decoder> {
            let _alone = PROGRAMS.lock();
            open(&self.program, source, Duration::ZERO, LONG, &Stop::new())
                .expect("a shell is there")
        }

        /// A word for each frame, then how it ended.
        fn outcome(&self, source: &Source) -> String {
            let (mut camera, mut frames) = (self.open(source), String::new());
            loop {
                match camera.next_frame() {
                    Ok(Some(_)) => frames += "frame, ",
                    Ok(None) => {
                        assert!(matches!(camera.next_frame(), Ok(None)), "an end stays one");
                        return frames + "end";
                    }
                    Err(error) => {
                        return (frames + &error.to_string())
                            .replace(self.folder.path().to_str().expect("UTF-8"), "");
                    }
                }
            }
        }
    }

    const PIXEL: &str = r"printf 'P6\n1 1\n255\nrgb'";

    #[test]
    fn a_decoder_is_judged_by_its_images_then_by_its_status() {
        for (script, expected) in [
            ("PIXEL; PIXEL", "frame, frame, end"),
            ("PIXEL; echo 'a frame was corrupt' >&2", "frame, end"),
            (
                "PIXEL; exit 3",
                "frame, file:///decoder: ffmpeg ended with exit status: 3: it wrote nothing",
            ),
            (
                "PIXEL; printf P6; echo lost >&2; exit 1",
                "frame, file:///decoder: ffmpeg ended with exit status: 1: lost",
            ),
            (
                "PIXEL; printf P6",
                "frame, file:///decoder: ffmpeg's output: ended inside an image, after 0 of 0 bytes of pixels",
            ),
            (
                "PIXEL; echo text; exec sleep 3600",
                "frame, file:///decoder: ffmpeg's output: no PPM header (P6, width, height, 255)",
            ),
            (
                "echo silence >&2",
                "file:///decoder: no image in it: silence; is it a video?",
            ),
        ] {
            let decoder = Scripted::new(&script.replace("PIXEL", PIXEL));
            assert_eq!(
                decoder.outcome(&Source::File(decoder.program.clone().into())),
                expected,
                "{script}"
            );
        }
    }

    #[test]
    fn a_live_source_has_no_end() {
        let source = Source::Rtsp("rtsp://me:it's@192.0.2.7/s".into());
        let outcome = Scripted::new("echo \"me:it's sent a TEARDOWN\" >&2").outcome(&source);
        assert_eq!(
            outcome,
            "rtsp://***@192.0.2.7/s: ffmpeg ended with exit status: 0: *** sent a TEARDOWN"
        );
        // One that closes its output and goes on is killed.
        let outcome = Scripted::new("exec sleep 3600 >&-").outcome(&source);
        assert_eq!(
            outcome,
            "rtsp://***@192.0.2.7/s: ffmpeg ended with signal: 9 (SIGKILL): it wrote nothing"
        );
    }

    #[test]
    fn a_decoder_that_blocks_on_its_pipe_is_killed_and_reaped() {
        let decoder = Scripted::new(&format!("echo $$ >\"$0.pid\"; while :; do {PIXEL}; done"));
        let mut camera = decoder.open(&Source::File(decoder.program.clone().into()));
        assert!(matches!(camera.next_frame(), Ok(Some(_))));
        let pid = fs::read_to_string(format!("{}.pid", decoder.program)).expect("it was written");
        let process = Path::new("/proc").join(pid.trim());
        assert!(process.exists());
        drop(camera);
        assert!(!process.exists(), "neither running nor a zombie");
    }
}
