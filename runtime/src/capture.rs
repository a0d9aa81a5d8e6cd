//! A camera's thread: opens the source, reads frames, gates them, hands admitted ones over; opens
//! again when it fails.
//!
//! [`Capture::run`] is the retry policy and `run_once` the work. A source that fails or falls
//! silent costs its own frames only, since each camera has its thread.

pub mod admitted;
pub mod gate;
pub mod handoff;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use devices::camera::{self, CaptureError};
use devices::{Frame, FrameImage, Stop};
use firmware_config::agent;
use image::codecs::jpeg::JpegEncoder;
use image::{ExtendedColorType, ImageEncoder};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tracing::{info, warn};
use vlm::Picture;
use vlm::picture::PictureError;

use crate::capture::admitted::Sighting;
use crate::capture::gate::{Decision, Gate, Thumbnail, ThumbnailError};
use crate::capture::handoff::{self, Handed};
use crate::environment::backoff::Backoff;
use crate::environment::clock::Clock;
use crate::metrics::Metrics;
use crate::observe::{Record, Watcher};

/// First and longest wait before a camera is opened again.
const REOPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// The camera's own JPEG is passed on up to this size; above it the frame is encoded again.
const JPEG_BYTES_MAX: usize = 512 << 10;
/// Quality of JPEGs that we encode.
const JPEG_QUALITY: u8 = 90;

/// Whether a camera delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CameraState {
    /// Frames come.
    Online,
    /// No frame came for longer than `stall-after`; it is opened again.
    Stalled,
    /// Not open; it is tried again.
    Offline,
    /// A folder or file was read to its end, or the box stops.
    Ended,
}

impl CameraState {
    /// As published.
    pub fn as_str(self) -> &'static str {
        match self {
            CameraState::Online => "online",
            CameraState::Stalled => "stalled",
            CameraState::Offline => "offline",
            CameraState::Ended => "ended",
        }
    }
}

/// A camera's state, and since when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CameraStatus {
    /// Whether it delivers.
    pub state: CameraState,
    /// Why, in words.
    pub reason: String,
    /// Since when.
    pub since: Timestamp,
    /// How often it was online and went, so that an absence that nobody saw is still known.
    pub losses: u64,
}

impl CameraStatus {
    /// Before the first attempt.
    pub fn opening() -> Self {
        CameraStatus {
            state: CameraState::Offline,
            reason: "not open yet".into(),
            since: Timestamp::now(),
            losses: 0,
        }
    }
}

/// One camera's thread.
pub struct Capture {
    /// The camera.
    pub camera: agent::Camera,
    /// To its scene.
    pub frames: handoff::Sender<Sighting>,
    /// To its scene.
    pub status: watch::Sender<CameraStatus>,
    /// Ends the thread.
    pub stop: Stop,
    /// The time.
    pub clock: Arc<Clock>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who watches live.
    pub watcher: Arc<dyn Watcher>,
}

impl Capture {
    /// Captures until the source ends or `stop` is set. Blocks.
    pub fn run(self) {
        let mut backoff = Backoff::new(REOPEN.0, REOPEN.1);
        let mut view = View {
            gate: Gate::new(self.camera.gate),
            frames: 0,
        };
        loop {
            let before = view.frames;
            let error = match self.run_once(&mut view) {
                Ok(()) => return self.tell(CameraState::Ended, "end of source"),
                Err(CaptureError::Stopped) => return self.tell(CameraState::Ended, "stopped"),
                Err(error) => error,
            };
            // Its events end now, so the next frame is news even where it shows the same.
            view.gate = Gate::new(self.camera.gate);
            let state = if matches!(error, CaptureError::Stalled { .. }) {
                CameraState::Stalled
            } else {
                CameraState::Offline
            };
            self.tell(state, &error.to_string());
            if is_finite(&self.camera.source) {
                // Opened again it would start over, and show everything twice.
                self.metrics.sources_failed.count();
                return warn!(cam = self.camera.id, "{error}; giving it up");
            }
            if view.frames > before {
                backoff.reset();
            }
            let wait = backoff.next_wait(rand::random());
            warn!(
                cam = self.camera.id,
                "{error}; opening it again in {wait:.1?}"
            );
            self.metrics.camera_restarts.count();
            if self.stop.wait(wait) {
                return self.tell(CameraState::Ended, "stopped");
            }
        }
    }

    fn run_once(&self, view: &mut View) -> Result<(), CaptureError> {
        let agent::Camera {
            source,
            period,
            stall_after,
            ..
        } = &self.camera;
        let mut camera = camera::open(source, *period, *stall_after, &self.stop)?;
        let mut superseded = 0;
        loop {
            let frame = match camera.next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) if error.spares_camera() => {
                    self.unusable(&error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            self.metrics
                .frames_superseded
                .add(camera.superseded().saturating_sub(superseded));
            superseded = camera.superseded();
            self.tell(CameraState::Online, "");
            match self.offer(frame, view) {
                Ok(ControlFlow::Continue(())) => {}
                Ok(ControlFlow::Break(())) => return Err(CaptureError::Stopped),
                Err(error) => self.unusable(&error),
            }
        }
    }

    /// Shows one frame to the gate, and an admitted one to the scene.
    fn offer(&self, frame: Frame, view: &mut View) -> Result<ControlFlow<()>, FrameError> {
        view.frames += 1;
        self.metrics.frames.count();
        let (
            number,
            Frame {
                captured_at,
                name,
                image,
                ..
            },
        ) = (view.frames, frame);
        let (picture, own) = decoded(image)?;
        let thumbnail = Thumbnail::of_rgb(picture.width(), picture.height(), picture.pixels())?;
        let now = self.clock.elapsed();
        let decision = view.gate.decide(&thumbnail, now);
        self.watcher.see(Record::Frame {
            cam: self.camera.id.clone(),
            frame: number,
            name: name.clone(),
            decision,
        });
        if let Decision::Skip(_) = decision {
            self.metrics.frames_skipped.count();
            return Ok(ControlFlow::Continue(()));
        }
        let jpeg = own_or_encoded(&picture, own)?;
        view.gate.admitted(thumbnail, now);
        let sha256 = vlm::hash::hex(&Sha256::digest(&jpeg));
        // A box whose clock is before 1970 or after 9999 has other worries; its events say
        // `unsynced`.
        let time = Timestamp::try_from(captured_at).unwrap_or(Timestamp::UNIX_EPOCH);
        match self.frames.hand_over(Sighting {
            number,
            time,
            name,
            picture,
            jpeg,
            sha256,
        }) {
            Handed::Over => {}
            Handed::Superseding => self.metrics.frames_superseded.count(),
            Handed::Nowhere => return Ok(ControlFlow::Break(())),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn unusable(&self, error: &dyn std::error::Error) {
        self.metrics.frames_bad.count();
        warn!(cam = self.camera.id, "frame not usable: {error}");
    }

    /// Tells a change of state; the same again is no change.
    fn tell(&self, state: CameraState, reason: &str) {
        self.status.send_if_modified(|status| {
            let changed = status.state != state || status.reason != reason;
            if changed {
                info!(cam = self.camera.id, "{} {reason}", state.as_str());
                let lost = status.state == CameraState::Online
                    && matches!(state, CameraState::Stalled | CameraState::Offline);
                let losses = status.losses + u64::from(lost);
                *status = CameraStatus {
                    state,
                    reason: reason.to_owned(),
                    since: Timestamp::now(),
                    losses,
                };
            }
            changed
        });
    }
}

/// Whether a source comes to an end, and must not lose a frame before it.
pub fn is_finite(source: &agent::Source) -> bool {
    match source {
        agent::Source::Folder(_) | agent::Source::File(_) => true,
        agent::Source::Rtsp(_) => false,
    }
}

/// What outlives one opening of the source.
struct View {
    gate: Gate,
    /// Frames seen so far.
    frames: u64,
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
        } => Ok((Picture::from_rgb(width, height, data.to_vec())?, None)),
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
