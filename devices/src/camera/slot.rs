//! Room for one image between the thread that reads a source and the caller of `next_frame`.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::FrameImage;

/// What happens to an image that has not been taken when the next one comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The next one waits, and with it the reader: lossless.
    Wait,
    /// The next one takes its place: never late.
    Supersede,
}

/// An image and when it was read.
pub(super) struct Arrival {
    pub(super) image: FrameImage,
    pub(super) at: SystemTime,
}

/// Room for one image; `E` is why the reader failed.
pub(super) struct Slot<E> {
    state: Mutex<State<E>>,
    changed: Condvar,
}

struct State<E> {
    arrival: Option<Arrival>,
    /// When the last image came, or the slot was made.
    last_change: Instant,
    superseded: u64,
    /// Set when no more images will come.
    ended: Option<Result<(), E>>,
    /// No more images will be taken.
    closed: bool,
}

impl<E> Slot<E> {
    /// An empty slot, made at `now`.
    pub(super) fn new(now: Instant) -> Self {
        let state = State {
            arrival: None,
            last_change: now,
            superseded: 0,
            ended: None,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Puts in an image that was read at `now`; false when the slot is closed.
    pub(super) fn put(&self, arrival: Arrival, now: Instant, when_full: WhenFull) -> bool {
        let mut state = self.lock();
        if when_full == WhenFull::Wait {
            state = self
                .changed
                .wait_while(state, |state| state.arrival.is_some() && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.superseded += u64::from(state.arrival.replace(arrival).is_some());
        state.last_change = now;
        self.changed.notify_all();
        true
    }

    /// No more images will come: the stream has ended, or reading it failed.
    pub(super) fn end(&self, how: Result<(), E>) {
        self.lock().ended = Some(how);
        self.changed.notify_all();
    }

    /// No more images will be taken: a blocked `put` returns.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The image in it, if any.
    pub(super) fn take(&self) -> Option<Arrival> {
        let arrival = self.lock().arrival.take();
        self.changed.notify_all();
        arrival
    }

    /// How the stream ended, once; `None` while it goes on or an image is still to be taken.
    pub(super) fn take_end(&self) -> Option<Result<(), E>> {
        let mut state = self.lock();
        if state.arrival.is_some() {
            None
        } else {
            state.ended.take()
        }
    }

    /// Sleeps until something changes, at most for `timeout`.
    pub(super) fn wait(&self, timeout: Duration) {
        let state = self.lock();
        if state.arrival.is_none() && state.ended.is_none() {
            drop(self.changed.wait_timeout(state, timeout));
        }
    }

    /// Time from the last image, or the making of the slot, to `now`.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.lock().last_change)
    }

    /// Images that were superseded before they were taken.
    pub(super) fn superseded(&self) -> u64 {
        self.lock().superseded
    }

    fn lock(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn arrival(byte: u8) -> Arrival {
        Arrival {
            image: FrameImage::Encoded(vec![byte].into()),
            at: SystemTime::UNIX_EPOCH,
        }
    }

    fn byte(arrival: &Arrival) -> u8 {
        match &arrival.image {
            FrameImage::Encoded(bytes) => bytes[0],
            FrameImage::Rgb { .. } => panic!("none was put in"),
        }
    }

    #[test]
    fn a_live_slot_keeps_the_newest_image_and_counts_the_others() {
        let now = Instant::now();
        let slot = Slot::<Infallible>::new(now);
        for n in 1..=3 {
            assert!(slot.put(arrival(n), now, WhenFull::Supersede));
        }
        slot.end(Ok(()));
        assert!(slot.take_end().is_none(), "an image is still in it");
        assert_eq!(slot.take().as_ref().map(byte), Some(3));
        assert_eq!(slot.superseded(), 2);
        assert!(matches!(slot.take_end(), Some(Ok(()))));
    }

    #[test]
    fn a_lossless_slot_blocks_until_it_is_empty_or_closed() {
        let now = Instant::now();
        let slot = Slot::<Infallible>::new(now);
        std::thread::scope(|threads| {
            let putting = threads.spawn(|| {
                (1..=3)
                    .map(|n| slot.put(arrival(n), now, WhenFull::Wait))
                    .collect::<Vec<_>>()
            });
            let mut taken = Vec::new();
            while taken.len() < 2 {
                slot.wait(Duration::from_secs(3600));
                taken.extend(slot.take().as_ref().map(byte));
            }
            slot.close();
            let put = putting.join().expect("it does not panic");
            assert_eq!((taken, &put[..2]), (vec![1, 2], &[true, true][..]));
        });
        assert!(!slot.put(arrival(4), now, WhenFull::Wait));
        assert_eq!(slot.superseded(), 0);
    }

    #[test]
    fn silence_begins_with_the_slot_and_again_with_each_image() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let slot = Slot::<Infallible>::new(start);
        assert_eq!(slot.silence(at(7)), Duration::from_secs(7));
        slot.put(arrival(1), at(8), WhenFull::Supersede);
        slot.take();
        assert_eq!(slot.silence(at(9)), Duration::from_secs(1));
    }
}
