//! A source whose images come when they come: over the network, from a device, out of a decoder.
//!
//! ```text
//! thread: ImageReader ──▶ Slot ──▶ LiveSource: is one due? has it stalled? ──▶ Frame
//! ```
//!
//! A new kind of camera is an [`ImageReader`] and a [`Producer`]: how an image is read, and how the
//! device, connection or process behind it is ended. Threads, pace, stalls and stopping are here.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use super::schedule::Schedule;
use super::slot::{Arrival, Slot, WhenFull};
use super::{Camera, CaptureError};
use crate::{Frame, FrameImage, Stop};

/// Longest time until a set [`Stop`] is noticed.
const STOP_POLL: Duration = Duration::from_millis(50);
/// Least time that a live source has for its first image: a connection, and the wait for a key
/// frame, come before it.
const CONNECT_TIMEOUT_MIN: Duration = Duration::from_secs(10);

/// Reads images, on a thread of its own.
pub(super) trait ImageReader: Send + 'static {
    /// Why it cannot go on.
    type Error: Send;

    /// Blocks until the next image; `None` when the stream has ended.
    fn next_image(&mut self) -> Result<Option<FrameImage>, Self::Error>;
}

/// What the images come from: a child process, a device, a connection.
pub(super) trait Producer: Send {
    /// Reads what it produces.
    type Reader: ImageReader;

    /// Ends it, so that a blocked [`ImageReader::next_image`] returns. May be called more than
    /// once.
    fn kill(&mut self);

    /// Called once, when the reader has ended: whether the source is properly over, given how
    /// reading ended and whether any image was `delivered`.
    fn finish(
        &mut self,
        read: Result<(), <Self::Reader as ImageReader>::Error>,
        delivered: bool,
    ) -> Result<(), CaptureError>;
}

/// Why the reader of a [`Producer`] failed.
pub(super) type ReadError<P> = <<P as Producer>::Reader as ImageReader>::Error;

/// Which images are handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// All of them; the reader waits for the caller.
    Lossless,
    /// The newest; the source has stalled when it delivers nothing for `stall_after`.
    Newest { stall_after: Duration },
}

/// How long a live source may take to its first image.
pub(super) fn connect_timeout(stall_after: Duration) -> Duration {
    stall_after.max(CONNECT_TIMEOUT_MIN)
}

/// A producer, the thread that reads it, and which image is handed out when.
pub(super) struct LiveSource<P: Producer> {
    /// The source without user and password, for errors.
    camera: String,
    delivery: Delivery,
    schedule: Schedule,
    /// An image was handed out.
    delivered: bool,
    /// The end, or an error, was returned.
    over: bool,
    stop: Stop,
    slot: Arc<Slot<ReadError<P>>>,
    producer: P,
    reader: Option<JoinHandle<()>>,
}

/// What there is to hand out at one moment.
#[derive(Debug)]
enum Poll {
    Ready(Frame),
    /// Nothing yet: the next frame is due in `early`, or is waited for when that is zero.
    Pending {
        early: Duration,
    },
    Ended,
}

impl<P: Producer> LiveSource<P> {
    /// Starts to read. One frame is handed out per `period`; zero is no pace.
    pub(super) fn start(
        camera: String,
        producer: P,
        mut reader: P::Reader,
        delivery: Delivery,
        period: Duration,
        stop: &Stop,
    ) -> Self {
        let slot = Arc::new(Slot::new(Instant::now()));
        let when_full = match delivery {
            Delivery::Lossless => WhenFull::Wait,
            Delivery::Newest { .. } => WhenFull::Supersede,
        };
        let thread = thread::spawn({
            let slot = slot.clone();
            move || slot.end(read_all(&mut reader, &slot, when_full))
        });
        Self {
            camera,
            delivery,
            schedule: Schedule::new(period),
            delivered: false,
            over: false,
            stop: stop.clone(),
            slot,
            producer,
            reader: Some(thread),
        }
    }

    /// What there is to hand out at `now`, which is `wall_time` by the wall clock. Does not block.
    fn poll(&mut self, now: Instant, wall_time: SystemTime) -> Result<Poll, CaptureError> {
        if self.over {
            return Ok(Poll::Ended);
        }
        // An image that is due comes first, even where the source has ended behind it.
        let early = self.schedule.wait(now);
        if early.is_zero()
            && let Some(Arrival { image, at }) = self.slot.take()
        {
            self.schedule.advance(now);
            self.delivered = true;
            let captured_at = match self.delivery {
                Delivery::Lossless => wall_time,
                Delivery::Newest { .. } => at,
            };
            return Ok(Poll::Ready(Frame {
                captured_at,
                name: None,
                image,
            }));
        }
        if let Some(read) = self.slot.take_end() {
            self.over = true;
            return self
                .producer
                .finish(read, self.delivered)
                .map(|()| Poll::Ended);
        }
        // A lossless source is not late: it waits for its caller, or needs its time.
        if let Delivery::Newest { stall_after } = self.delivery {
            let limit = if self.delivered {
                stall_after
            } else {
                connect_timeout(stall_after)
            };
            let silent = self.slot.silence(now);
            if silent >= limit {
                self.over = true;
                self.producer.kill();
                return Err(CaptureError::Stalled {
                    camera: self.camera.clone(),
                    silent,
                    limit,
                });
            }
        }
        Ok(Poll::Pending { early })
    }
}

impl<P: Producer> Camera for LiveSource<P> {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            if self.stop.is_stopped() {
                return Err(CaptureError::Stopped);
            }
            match self.poll(Instant::now(), SystemTime::now())? {
                Poll::Ready(frame) => return Ok(Some(frame)),
                Poll::Ended => return Ok(None),
                Poll::Pending { early } if early.is_zero() => self.slot.wait(STOP_POLL),
                Poll::Pending { early } => _ = self.stop.wait(early.min(STOP_POLL)),
            }
        }
    }

    fn superseded(&self) -> u64 {
        self.slot.superseded()
    }
}

impl<P: Producer> Drop for LiveSource<P> {
    fn drop(&mut self) {
        self.slot.close();
        self.producer.kill();
        // Neither the slot nor the producer blocks the thread any more.
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Moves images from the reader to the slot until either ends.
fn read_all<R: ImageReader>(
    reader: &mut R,
    slot: &Slot<R::Error>,
    when_full: WhenFull,
) -> Result<(), R::Error> {
    while let Some(image) = reader.next_image()? {
        let at = SystemTime::now();
        if !slot.put(Arrival { image, at }, Instant::now(), when_full) {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
