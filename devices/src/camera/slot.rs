//! Room for one decoded picture between the thread that reads the decoder's pipe and the caller of
//! `next_frame`.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use crate::ppm::{PpmError, RgbImage};

/// What happens to a picture nobody has taken when the next one comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WhenFull {
    /// The next one waits, and through the pipe the decoder too: lossless.
    Wait,
    /// The next one takes its place: never late.
    Supersede,
}

/// A picture and when it came out of the pipe.
pub(super) struct Arrived {
    pub(super) picture: RgbImage,
    pub(super) at: SystemTime,
}

/// Room for one picture.
pub(super) struct Slot {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    arrived: Option<Arrived>,
    /// When the last picture came, or the slot was made.
    last: Instant,
    superseded: u64,
    /// Set when no more will come.
    ended: Option<Result<(), PpmError>>,
    /// Nobody will take any more.
    closed: bool,
}

impl Slot {
    pub(super) fn new() -> Self {
        let state = State {
            arrived: None,
            last: Instant::now(),
            superseded: 0,
            ended: None,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Puts a picture in; false when nobody will take it.
    pub(super) fn put(&self, picture: RgbImage, when_full: WhenFull) -> bool {
        let mut state = self.lock();
        if when_full == WhenFull::Wait {
            state = self
                .changed
                .wait_while(state, |state| state.arrived.is_some() && !state.closed)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        let arrived = Arrived {
            picture,
            at: SystemTime::now(),
        };
        state.superseded += u64::from(state.arrived.replace(arrived).is_some());
        state.last = Instant::now();
        self.changed.notify_all();
        true
    }

    /// No more pictures will come.
    pub(super) fn end(&self, how: Result<(), PpmError>) {
        self.lock().ended = Some(how);
        self.changed.notify_all();
    }

    /// Nobody will take any more: a waiting `put` returns.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// The picture that is there, if any.
    pub(super) fn take(&self) -> Option<Arrived> {
        let arrived = self.lock().arrived.take();
        self.changed.notify_all();
        arrived
    }

    /// How the stream ended, once; `None` while it goes on or a picture is still to be taken.
    pub(super) fn take_end(&self) -> Option<Result<(), PpmError>> {
        let mut state = self.lock();
        if state.arrived.is_some() {
            None
        } else {
            state.ended.take()
        }
    }

    /// Sleeps until something changes, at most for `timeout`.
    pub(super) fn wait(&self, timeout: Duration) {
        let state = self.lock();
        if state.arrived.is_none() && state.ended.is_none() {
            drop(self.changed.wait_timeout(state, timeout));
        }
    }

    /// Time since the last picture came, or the slot was made.
    pub(super) fn silent(&self) -> Duration {
        self.lock().last.elapsed()
    }

    /// RgbImages that were superseded before anyone took them.
    pub(super) fn superseded(&self) -> u64 {
        self.lock().superseded
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width: u32) -> RgbImage {
        RgbImage {
            width,
            height: 1,
            data: vec![0; 3 * width as usize],
        }
    }

    #[test]
    fn a_live_slot_keeps_the_newest_and_counts_the_rest() {
        let slot = Slot::new();
        for width in 1..=3 {
            assert!(slot.put(picture(width), WhenFull::Supersede));
        }
        slot.end(Ok(()));
        assert!(slot.take_end().is_none(), "a picture is still there");
        assert_eq!(slot.take().expect("the newest").picture.width, 3);
        assert_eq!(slot.superseded(), 2);
        assert!(matches!(slot.take_end(), Some(Ok(()))));
    }

    #[test]
    fn a_lossless_slot_waits_until_it_is_empty_or_closed() {
        let slot = Slot::new();
        std::thread::scope(|threads| {
            let putting = threads.spawn(|| {
                (1..=3)
                    .map(|width| slot.put(picture(width), WhenFull::Wait))
                    .collect::<Vec<_>>()
            });
            let mut taken = Vec::new();
            while taken.len() < 2 {
                slot.wait(Duration::from_secs(3600));
                taken.extend(slot.take().map(|arrived| arrived.picture.width));
            }
            slot.close();
            let put = putting.join().expect("it does not panic");
            assert_eq!((taken, &put[..2]), (vec![1, 2], &[true, true][..]));
        });
        assert!(!slot.put(picture(4), WhenFull::Wait));
        assert_eq!(slot.superseded(), 0);
    }
}
