//! What a box is connected to: its cameras.
//!
//! ```text
//! dir://   image files ──────────────────────────────────────┐
//! file://  ffmpeg child ── PPM pipe ── LiveSource, lossless ─┼──▶ Camera::next_frame ──▶ Frame
//! rtsp://  ffmpeg child ── PPM pipe ── LiveSource, newest ───┘
//! ```
//!
//! A replayed source, a folder or a file, is lossless: every frame is handed out, and a slow caller
//! slows the source. A live one hands out its newest frame; those that are superseded before they
//! are taken are counted. Nothing here reconnects: the caller drops a camera that is over and opens
//! it again. Frames are not decoded further than the source needs.
//!
//! A new kind of live camera is one file below `camera`: an `ImageReader` and a `Producer` for
//! `LiveSource` (`camera/live.rs`), which has the thread, the pace and the stall detection. The
//! frames of a video file that a model is shown at once are read by [`clip`].
//!
//! Boards (power modes, fans, device-tree overlays as plan, apply, verify, rollback) will live
//! beside `camera`, in `board`.
#![forbid(unsafe_code)]

pub mod camera;
mod child;
pub mod clip;
pub mod file;
mod frame;
pub mod ppm;
mod stop;

pub use camera::{Camera, CaptureError, open};
pub use frame::{Frame, FrameImage};
pub use stop::Stop;
