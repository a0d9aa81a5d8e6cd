//! A camera's thread: opens the source, reads frames, gates them, hands admitted ones over; opens it
//! again when it fails.
//!
//! [`Capture::run`] is the loop that blocks; what it does with a frame or a failure are steps of
//! their own, so that a simulation can take them without a thread. A source that fails or falls
//! silent costs its own frames only, since each camera has its thread.

pub mod admitted;
pub mod gate;
pub mod handoff;
pub mod record;
pub mod status;

use std::any::Any;
use std::io;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use devices::camera::{self, CaptureError};
use devices::{Camera, Frame, FrameImage, Stop};
use firmware_config::agent;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use vlm::{Picture, PictureError};

use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::random::Random;
use admitted::AdmittedFrame;
use gate::{Decision, Gate, Thumbnail, ThumbnailError};
use handoff::HandOver;
use record::{CaptureRecord, Report};
use status::{CameraState, CameraStatus};

/// First and longest wait before a camera is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The camera's own JPEG is passed on up to this size; above it the frame is encoded again.
const JPEG_BYTES_MAX: usize = 512 << 10;
/// Quality of JPEGs that we encode.
const JPEG_QUALITY: u8 = 90;

/// Opens a camera's source; see [`camera::open`].
pub type Opener = fn(&agent::Camera, &Stop) -> Result<Box<dyn Camera>, CaptureError>;

/// Runs captures.
pub trait Cameras: Send + Sync {
    /// Starts `capture`, which then runs until its source ends or it is stopped.
    ///
    /// # Errors
    /// When the system has no thread for it.
    fn start(&self, capture: Capture) -> io::Result<Join>;
}

/// Waits for a capture that has ended; its result is an error if it panicked.
pub type Join = Box<dyn FnOnce() -> thread::Result<()> + Send>;

/// A thread for each camera.
#[derive(Debug, Clone, Copy)]
pub struct CameraThreads;

impl Cameras for CameraThreads {
    fn start(&self, capture: Capture) -> io::Result<Join> {
        let thread = thread::Builder::new()
            .name(format!("cam {}", capture.camera.id))
            .spawn(move || capture.run(open))?;
        Ok(Box::new(move || thread.join()))
    }
}

/// Opens the sources that `devices` knows.
///
/// # Errors
/// As [`camera::open`].
pub fn open(config: &agent::Camera, stop: &Stop) -> Result<Box<dyn Camera>, CaptureError> {
    let agent::Camera {
        source,
        period,
        stall_after,
        ..
    } = config;
    camera::open(source, *period, *stall_after, stop)
}

/// One camera's capture.
pub struct Capture {
    camera: agent::Camera,
    frames: handoff::Sender<AdmittedFrame>,
    status: watch::Sender<CameraStatus>,
    stop: Stop,
    clock: Clock,
    random: Random,
    report: Report,
    decode: Decode,
    gate: Gate,
    backoff: Backoff,
    /// Frames seen so far.
    seen: u64,
    /// Of them, when the source was opened.
    seen_before: u64,
}

/// Decodes a frame's image; with it the camera's own JPEG, if the image is one.
type Decode = fn(FrameImage) -> Result<(Picture, Option<Bytes>), PictureError>;

/// What follows a failure of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// It is opened again after this.
    Reopen(Duration),
    /// A folder or file is given up: opened again it would start over, and show everything twice.
    GiveUp,
}

impl Capture {
    /// A capture that has not begun. It hands admitted frames to `frames`, shows its state in
    /// `status`, and reports what happens; setting `stop` ends it.
    pub fn new(
        camera: agent::Camera,
        frames: handoff::Sender<AdmittedFrame>,
        status: watch::Sender<CameraStatus>,
        stop: Stop,
        clock: Clock,
        random: Random,
        report: Report,
    ) -> Self {
        Capture {
            decode: decoded,
            gate: Gate::new(camera.gate),
            backoff: Backoff::new(REOPEN.0, REOPEN.1),
            camera,
            frames,
            status,
            stop,
            clock,
            random,
            report,
            seen: 0,
            seen_before: 0,
        }
    }

    /// The camera's configuration.
    pub fn camera(&self) -> &agent::Camera {
        &self.camera
    }

    /// The switch that ends it.
    pub fn stop(&self) -> &Stop {
        &self.stop
    }

    /// Captures until the source ends or the capture is stopped. Blocks.
    pub fn run(mut self, open: Opener) {
        loop {
            let error = match self.run_once(open) {
                Ok(()) => return self.ended("end of source"),
                Err(CaptureError::Stopped) => return self.ended("stopped"),
                Err(error) => error,
            };
            match self.failed(&error) {
                AfterFailure::GiveUp => return,
                AfterFailure::Reopen(wait) if self.stop.wait(wait) => return self.ended("stopped"),
                AfterFailure::Reopen(_) => {}
            }
        }
    }

    fn run_once(&mut self, open: Opener) -> Result<(), CaptureError> {
        let mut camera = open(&self.camera, &self.stop)?;
        let mut superseded = 0;
        loop {
            let frame = match camera.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) if error.costs_one_frame() => {
                    self.bad_frame(None, None, &error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.superseded(camera.superseded().saturating_sub(superseded));
            superseded = camera.superseded();
            if self.frame(frame).is_break() {
                return Err(CaptureError::Stopped);
            }
        }
    }

    /// Takes a frame: shows it to the gate, and an admitted one to the scene. `Break` when the
    /// scene is gone.
    pub fn frame(&mut self, frame: Frame) -> ControlFlow<()> {
        self.set_state(CameraState::Online, "");
        let name = frame.name.clone();
        self.admit(frame).unwrap_or_else(|error| {
            self.bad_frame(Some(self.seen), name, &error);
            ControlFlow::Continue(())
        })
    }

    /// Takes a failure of the source, and returns what to do about it.
    pub fn failed(&mut self, error: &CaptureError) -> AfterFailure {
        // Its events end now, so its next frame is admitted even if it shows the same.
        self.gate = Gate::new(self.camera.gate);
        let state = if matches!(error, CaptureError::Stalled { .. }) {
            CameraState::Stalled
        } else {
            CameraState::Offline
        };
        self.set_state(state, &error.to_string());
        if self.seen > self.seen_before {
            self.backoff.reset();
        }
        self.seen_before = self.seen;
        let reopen_in = if self.camera.source.is_finite() {
            None
        } else {
            let jitter = self.random.unit();
            Some(self.backoff.next_wait(jitter))
        };
        (self.report)(CaptureRecord::Failed {
            error: error.to_string(),
            reopen_in,
        });
        reopen_in.map_or(AfterFailure::GiveUp, AfterFailure::Reopen)
    }

    /// The source has ended, or the capture was stopped; why, in words.
    pub fn ended(self, reason: &str) {
        self.set_state(CameraState::Ended, reason);
    }

    fn admit(&mut self, frame: Frame) -> Result<ControlFlow<()>, FrameError> {
        self.seen += 1;
        let Frame {
            captured_at,
            name,
            image,
            ..
        } = frame;
        let (picture, own_jpeg) = catch_decoder_panic(self.decode, image)?;
        let thumbnail = Thumbnail::of_rgb(picture.width(), picture.height(), picture.pixels())?;
        let now = self.clock.now();
        let decision = self.gate.decide(&thumbnail, now);
        (self.report)(CaptureRecord::Frame {
            frame: self.seen,
            name: name.clone(),
            decision,
        });
        if let Decision::Skip(_) = decision {
            return Ok(ControlFlow::Continue(()));
        }
        let jpeg = own_or_encoded(&picture, own_jpeg)?;
        self.gate.admitted(thumbnail, now);
        let sha256 = vlm::hex(&Sha256::digest(&jpeg));
        // The events of a box whose clock is before 1970 or after 9999 say `unsynced`.
        let time = Timestamp::try_from(captured_at).unwrap_or(Timestamp::UNIX_EPOCH);
        let admitted = AdmittedFrame {
            number: self.seen,
            time,
            name,
            picture,
            jpeg,
            sha256,
        };
        match self.frames.hand_over(admitted) {
            HandOver::Accepted => {}
            HandOver::Replaced => self.superseded(1),
            HandOver::Closed => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn superseded(&self, count: u64) {
        if count > 0 {
            (self.report)(CaptureRecord::FramesSuperseded { count });
        }
    }

    fn bad_frame(&self, frame: Option<u64>, name: Option<String>, error: &dyn std::error::Error) {
        (self.report)(CaptureRecord::FrameBad {
            frame,
            name,
            error: error.to_string(),
        });
    }

    fn set_state(&self, state: CameraState, reason: &str) {
        let now = self.clock.wall();
        self.status
            .send_if_modified(|status| status.change(state, reason, now));
    }
}

/// Why a frame is not usable.
#[derive(Debug, thiserror::Error)]
enum FrameError {
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error(transparent)]
    Thumbnail(#[from] ThumbnailError),
    #[error("cannot be encoded as JPEG: {0}")]
    Jpeg(#[from] image::ImageError),
    #[error("the decoder panicked: {0}; please report it, with the image")]
    Panicked(String),
}

/// Decodes `image`. A decoder has to read whatever a camera sends: one that panics costs that frame
/// and nothing else.
fn catch_decoder_panic(
    decode: Decode,
    image: FrameImage,
) -> Result<(Picture, Option<Bytes>), FrameError> {
    let decoded = catch_unwind(AssertUnwindSafe(|| decode(image)));
    Ok(decoded.map_err(|panic| FrameError::Panicked(panic_message(&*panic)))??)
}

/// The pixels, and the camera's own JPEG if it is one.
fn decoded(image: FrameImage) -> Result<(Picture, Option<Bytes>), PictureError> {
    match image {
        FrameImage::Encoded(bytes) => {
            let picture = Picture::decode(&bytes)?;
            let jpeg = bytes.starts_with(&[0xff, 0xd8]).then_some(bytes);
            Ok((picture, jpeg))
        }
        FrameImage::Rgb {
            width,
            height,
            data,
        } => Ok((Picture::from_rgb(width, height, data)?, None)),
    }
}

/// The camera's own JPEG if it is small enough, else one of ours.
fn own_or_encoded(picture: &Picture, own: Option<Bytes>) -> Result<Bytes, image::ImageError> {
    match own {
        Some(jpeg) if jpeg.len() <= JPEG_BYTES_MAX => Ok(jpeg),
        _ => {
            let mut jpeg = Vec::new();
            JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY).write_image(
                picture.pixels(),
                picture.width(),
                picture.height(),
                ExtendedColorType::Rgb8,
            )?;
            Ok(jpeg.into())
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").to_owned()
}

#[cfg(test)]
mod tests;
