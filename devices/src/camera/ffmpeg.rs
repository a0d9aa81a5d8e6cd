//! Video files and RTSP, decoded by an `ffmpeg` child process.
//!
//! The child writes pictures to a pipe; one thread reads them into a slot, another keeps the end of
//! its stderr. Dropping the camera kills and reaps the child and joins both. If the agent itself is
//! killed the pipe breaks, and the child ends at its next picture, or when its own network timeout
//! has passed. It runs in a process group of its own: Ctrl-C is for the agent to act on.

mod arguments;

use std::io::{self, Read};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use firmware_config::agent::Source;

use super::schedule::Schedule;
use super::slot::{Arrived, Slot, WhenFull};
use super::{Camera, CaptureError};
use crate::child::Child;
use crate::file::readable;
use crate::ppm::{PpmError, PpmReader, RgbImage};
use crate::{Frame, FrameImage, Stop};

/// Longest time until a thrown [`Stop`] is noticed.
const POLL: Duration = Duration::from_millis(50);
/// A live stream is decoded at least this often, so that a stall shows long before a slow rate
/// would ask.
const LIVE_PERIOD_MAX: Duration = Duration::from_secs(1);
/// The first frame of a live stream is given at least this long: a connection, and the wait for a
/// key frame, come before it.
const CONNECT: Duration = Duration::from_secs(10);

/// A decoder and what it has decoded.
pub(super) struct Ffmpeg {
    /// The source without user and password, for errors.
    camera: String,
    live: bool,
    stall_after: Duration,
    schedule: Schedule,
    /// A picture was handed out.
    begun: bool,
    /// User information of the source's URL, hidden wherever ffmpeg repeats it.
    secret: Option<String>,
    stop: Stop,
    slot: Arc<Slot>,
    child: Child,
    pictures: Option<JoinHandle<()>>,
    /// The end was told; there is nothing after it.
    over: bool,
}

impl Ffmpeg {
    /// Starts `program` on a video file or an RTSP stream.
    pub(super) fn open(
        program: &str,
        source: &Source,
        period: Duration,
        stall_after: Duration,
        stop: &Stop,
    ) -> Result<Self, CaptureError> {
        let camera = source.to_string();
        if let Source::File(path) = source {
            // ffmpeg would say so too, but only after it was started.
            readable(path).map_err(|error| CaptureError::NotThere {
                camera: camera.clone(),
                error,
            })?;
        }
        let live = matches!(source, Source::Rtsp(_));
        let decoded = if live {
            period.min(LIVE_PERIOD_MAX)
        } else {
            period
        };
        let arguments = arguments::arguments(source, decoded, stall_after.max(CONNECT));
        let (child, stdout) =
            Child::start(program, &arguments).map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CaptureError::NoFfmpeg {
                    camera: camera.clone(),
                    program: program.to_owned(),
                },
                _ => CaptureError::Spawn {
                    camera: camera.clone(),
                    error,
                },
            })?;
        tracing::debug!(camera, pid = child.id(), "ffmpeg started");
        let slot = Arc::new(Slot::new());
        let when_full = if live {
            WhenFull::Supersede
        } else {
            WhenFull::Wait
        };
        let pictures = thread::spawn({
            let slot = slot.clone();
            move || slot.end(read_pictures(PpmReader::new(stdout), &slot, when_full))
        });
        // A live stream that ffmpeg already paces needs no second clock, which would only beat
        // against the first.
        let pace = if live && period <= LIVE_PERIOD_MAX {
            Duration::ZERO
        } else {
            period
        };
        Ok(Self {
            camera,
            live,
            stall_after,
            schedule: Schedule::new(pace),
            begun: false,
            secret: user_information(source),
            stop: stop.clone(),
            slot,
            child,
            pictures: Some(pictures),
            over: false,
        })
    }

    /// The picture that is handed out now.
    fn frame(
        &mut self,
        Arrived {
            picture:
                RgbImage {
                    width,
                    height,
                    data,
                },
            at,
        }: Arrived,
    ) -> Frame {
        self.schedule.advance(Instant::now());
        self.begun = true;
        let captured_at = if self.live { at } else { SystemTime::now() };
        Frame {
            captured_at,
            name: None,
            image: FrameImage::Rgb {
                width,
                height,
                data: data.into(),
            },
        }
    }

    /// What the end of the stream means.
    fn ended(&mut self, how: Result<(), PpmError>) -> Result<Option<Frame>, CaptureError> {
        self.over = true;
        let camera = self.camera.clone();
        let cut = match how {
            Ok(()) => None,
            // The cause of a cut picture is whatever ended the child.
            Err(error @ (PpmError::Cut { .. } | PpmError::Io(_))) => Some(error),
            // Nobody reads on, so the child's own end would only tell of that.
            Err(error) => {
                self.child.kill();
                return Err(CaptureError::Stream { camera, error });
            }
        };
        let status = self.child.wait().map_err(|error| CaptureError::Lost {
            camera: camera.clone(),
            error,
        })?;
        let stderr = self.stderr();
        match cut {
            _ if self.live || !status.success() => Err(CaptureError::Exited {
                camera,
                status,
                stderr,
            }),
            Some(error) => Err(CaptureError::Stream { camera, error }),
            None if !self.begun => Err(CaptureError::NoPicture { camera, stderr }),
            None => {
                if !self.child.stderr().is_empty() {
                    tracing::warn!(camera, stderr, "shown to its end, but ffmpeg found errors");
                }
                Ok(None)
            }
        }
    }

    /// The end of the child's stderr, once it has exited.
    fn stderr(&self) -> String {
        match (self.child.stderr(), &self.secret) {
            ("", _) => "it wrote nothing".to_owned(),
            (said, Some(secret)) => said.replace(secret.as_str(), "***"),
            (said, None) => said.to_owned(),
        }
    }
}

impl Camera for Ffmpeg {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            if self.stop.is_stopped() {
                return Err(CaptureError::Stopped);
            }
            if self.over {
                return Ok(None);
            }
            let early = self.schedule.wait(Instant::now());
            if early.is_zero()
                && let Some(arrived) = self.slot.take()
            {
                return Ok(Some(self.frame(arrived)));
            }
            if let Some(how) = self.slot.take_end() {
                return self.ended(how);
            }
            // A file is not late: its decoder waits for us, or needs its time.
            let (silent, limit) = (
                self.slot.silent(),
                if self.begun {
                    self.stall_after
                } else {
                    self.stall_after.max(CONNECT)
                },
            );
            if self.live && silent >= limit {
                self.over = true;
                self.child.kill();
                return Err(CaptureError::Stalled {
                    camera: self.camera.clone(),
                    silent,
                    limit,
                });
            }
            if early.is_zero() {
                self.slot.wait(POLL);
            } else {
                let _ = self.stop.wait(early.min(POLL));
            }
        }
    }

    fn superseded(&self) -> u64 {
        self.slot.superseded()
    }
}

impl Drop for Ffmpeg {
    fn drop(&mut self) {
        self.slot.close();
        self.child.kill();
        // The pipe is closed by now, so its thread is about to end.
        if let Some(thread) = self.pictures.take() {
            let _ = thread.join();
        }
    }
}

/// Moves pictures from the pipe to the slot until either ends.
fn read_pictures(
    mut pictures: PpmReader<impl Read>,
    slot: &Slot,
    when_full: WhenFull,
) -> Result<(), PpmError> {
    while let Some(picture) = pictures.next_image()? {
        if !slot.put(picture, when_full) {
            break;
        }
    }
    Ok(())
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

    const AGES: Duration = Duration::from_secs(3600);

    #[test]
    fn a_box_without_ffmpeg_is_told_how_to_get_it() {
        let source = Source::Rtsp("rtsp://me:secret@192.0.2.7/s".into());
        let opened = Ffmpeg::open(
            "ffmpeg-that-is-not-there",
            &source,
            LIVE_PERIOD_MAX,
            AGES,
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

    /// A decoder written in shell, which heeds none of ffmpeg's arguments, on a video file.
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

        fn open(&self, source: &Source, stop: &Stop) -> Ffmpeg {
            let _alone = PROGRAMS.lock();
            Ffmpeg::open(&self.program, source, Duration::ZERO, AGES, stop)
                .expect("a shell is there")
        }

        /// A word for each frame, then how it ended.
        fn told(&self, source: &Source) -> String {
            let (mut camera, mut told) = (self.open(source, &Stop::new()), String::new());
            loop {
                match camera.next_frame() {
                    Ok(Some(_)) => told += "frame, ",
                    Ok(None) => {
                        assert!(matches!(camera.next_frame(), Ok(None)), "an end stays one");
                        return told + "end";
                    }
                    Err(error) => {
                        return (told + &error.to_string())
                            .replace(self.folder.path().to_str().expect("UTF-8"), "");
                    }
                }
            }
        }
    }

    const PIXEL: &str = r"printf 'P6\n1 1\n255\nrgb'";

    #[test]
    fn a_decoder_is_judged_by_its_pictures_then_by_its_status() {
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
                "file:///decoder: no picture in it: silence; is it a video?",
            ),
        ] {
            let decoder = Scripted::new(&script.replace("PIXEL", PIXEL));
            assert_eq!(
                decoder.told(&Source::File(decoder.program.clone().into())),
                expected,
                "{script}"
            );
        }
    }

    #[test]
    fn a_live_source_has_no_end() {
        let source = Source::Rtsp("rtsp://me:it's@192.0.2.7/s".into());
        let told = Scripted::new("echo \"me:it's sent a TEARDOWN\" >&2").told(&source);
        assert_eq!(
            told,
            "rtsp://***@192.0.2.7/s: ffmpeg ended with exit status: 0: *** sent a TEARDOWN"
        );
        // One that closes its output and stays is ended.
        let told = Scripted::new("exec sleep 3600 >&-").told(&source);
        assert_eq!(
            told,
            "rtsp://***@192.0.2.7/s: ffmpeg ended with signal: 9 (SIGKILL): it wrote nothing"
        );
    }

    #[test]
    fn a_decoder_that_waits_for_us_is_ended_and_reaped() {
        let decoder = Scripted::new(&format!("while :; do {PIXEL}; done"));
        let mut camera = decoder.open(&Source::File(decoder.program.clone().into()), &Stop::new());
        assert!(matches!(camera.next_frame(), Ok(Some(_))));
        let process = format!("/proc/{}", camera.child.id());
        assert!(Path::new(&process).exists());
        drop(camera);
        assert!(
            !Path::new(&process).exists(),
            "neither running nor a zombie"
        );
    }
}
