//! Cameras that go away, stall, and send what is no image; as tasks instead of threads.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use devices::camera::CaptureError;
use devices::{Frame, FrameImage};
use tokio::sync::watch;
use tokio::time::sleep;

use super::chance::Chance;
use crate::capture::{AfterFailure, Cameras, Capture, Join};

const SIDE: u32 = 16;

/// Drives each capture from a task.
pub(super) struct CameraDoubles {
    chance: Arc<Chance>,
    stopping: watch::Receiver<bool>,
}

impl CameraDoubles {
    pub(super) fn new(chance: Chance, stopping: watch::Receiver<bool>) -> Self {
        CameraDoubles {
            chance: Arc::new(chance),
            stopping,
        }
    }
}

impl Cameras for CameraDoubles {
    fn start(&self, capture: Capture) -> std::io::Result<Join> {
        let (chance, mut stopping) = (Arc::clone(&self.chance), self.stopping.clone());
        tokio::spawn(async move {
            let mut camera = CameraDouble {
                chance,
                capture,
                grey: 40,
            };
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => {}
                () = camera.run() => {}
            }
            camera.last_frames().await;
            camera.capture.ended("stopped");
        });
        Ok(Box::new(|| Ok(())))
    }
}

struct CameraDouble {
    chance: Arc<Chance>,
    capture: Capture,
    grey: u8,
}

impl CameraDouble {
    /// Opens, delivers, fails, and is opened again.
    async fn run(&mut self) {
        loop {
            let error = self.run_once().await;
            match self.capture.failed(&error) {
                AfterFailure::Reopen(wait) => sleep(wait).await,
                AfterFailure::GiveUp => return,
            }
        }
    }

    async fn run_once(&mut self) -> CaptureError {
        let (period, stall_after) = {
            let camera = self.capture.camera();
            (camera.period, camera.stall_after)
        };
        if self.chance.fails(0.3) {
            return refused();
        }
        loop {
            sleep(period + self.chance.between(0.0, 0.05)).await;
            if self.chance.fails(0.001) {
                sleep(stall_after).await;
                return CaptureError::Stalled {
                    camera: "double".into(),
                    silent: stall_after,
                    limit: stall_after,
                };
            }
            if self.chance.fails(0.001) {
                return refused();
            }
            let frame = self.frame();
            if self.capture.frame(frame).is_break() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What a camera still delivers until it notices the stop.
    async fn last_frames(&mut self) {
        loop {
            for _ in 0..3 {
                sleep(Duration::from_millis(100)).await;
                let frame = self.frame();
                // A scene that is gone takes no more.
                let _ = self.capture.frame(frame);
            }
            if self.capture.stop().is_stopped() {
                return;
            }
        }
    }

    fn frame(&mut self) -> Frame {
        if self.chance.is(0.3) {
            self.grey = if self.grey == 40 { 200 } else { 40 };
        }
        let image = if self.chance.fails(0.002) {
            FrameImage::Encoded(Bytes::from_static(b"\xff\xd8 cut short"))
        } else {
            FrameImage::Rgb {
                width: SIDE,
                height: SIDE,
                data: vec![self.grey; (SIDE * SIDE * 3) as usize].into(),
            }
        };
        Frame {
            captured_at: self.chance.wall(),
            name: None,
            image,
        }
    }
}

fn refused() -> CaptureError {
    CaptureError::CannotOpen {
        camera: "double".into(),
        error: std::io::ErrorKind::ConnectionRefused.into(),
    }
}
