//! What a box is connected to: its cameras.
//!
//! ```text
//! dir://   picture files   ──────────────────────────────┐
//! file://  ffmpeg child ── PPM pipe ── reader ── slot ───┼──▶ Camera::next_frame ──▶ Frame
//! rtsp://  ffmpeg child ── PPM pipe ── reader ── latest ─┘
//! ```
//!
//! A replayed source, a folder or a file, is lossless: every frame is handed out, and a slow reader
//! slows the source. A live one hands out its newest frame; those overwritten before anyone asked
//! are counted. Nothing here reconnects: a camera that is over is dropped and opened again by
//! whoever knows how long to wait. Frames are not decoded further than the source needs.
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
