//! One place between a thread that produces and a thread that consumes.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::Stop;

/// A [`Stop`] cannot wake who waits here, so it is looked at this often.
const STOP_LOOK: Duration = Duration::from_millis(100);

/// What a producer does while its last item has not been taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WhenFull {
    /// Waits: nothing is lost, and the producer is slowed down.
    Wait,
    /// Overwrites: the consumer gets the latest, and what it missed is counted.
    Overwrite,
}

/// What came of waiting for an item.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Taken<T> {
    Item(T),
    /// The producer is gone, and so are its items.
    Closed,
    TimedOut,
    Stopped,
}

/// A queue of one.
#[derive(Debug)]
pub(crate) struct Handoff<T> {
    when_full: WhenFull,
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    item: Option<T>,
    overwritten: u64,
    closed: bool,
}

impl<T> Handoff<T> {
    pub(crate) fn new(when_full: WhenFull) -> Self {
        Self { when_full, state: Mutex::new(State { item: None, overwritten: 0, closed: false }), changed: Condvar::new() }
    }

    /// Hands `item` over; false when the other side has closed, and the item is lost.
    pub(crate) fn put(&self, item: T) -> bool {
        let mut state = self.lock();
        if self.when_full == WhenFull::Wait {
            let full = |state: &mut State<T>| state.item.is_some() && !state.closed;
            state = self.changed.wait_while(state, full).unwrap_or_else(PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        if state.item.replace(item).is_some() {
            state.overwritten += 1;
        }
        drop(state);
        self.changed.notify_all();
        true
    }

    /// Waits for an item for `patience` at most; an item already there is given however short that is.
    pub(crate) fn take(&self, patience: Duration, stop: &Stop) -> Taken<T> {
        let begun = Instant::now();
        let mut state = self.lock();
        loop {
            if stop.is_set() {
                return Taken::Stopped;
            }
            if let Some(item) = state.item.take() {
                drop(state);
                self.changed.notify_all();
                return Taken::Item(item);
            }
            if state.closed {
                return Taken::Closed;
            }
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return Taken::TimedOut;
            }
            state = self.changed.wait_timeout(state, left.min(STOP_LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Ends it, from either side: no item is accepted any more, one that is there can still be taken.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Items that were overwritten before they were taken.
    pub(crate) fn overwritten(&self) -> u64 {
        self.lock().overwritten
    }

    /// Every change is made whole under the lock and cannot panic half way, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const AGES: Duration = Duration::from_secs(600);

    #[test]
    fn a_waiting_producer_loses_nothing() {
        let handoff = Arc::new(Handoff::new(WhenFull::Wait));
        let producer = std::thread::spawn({
            let handoff = handoff.clone();
            move || {
                (0..100).for_each(|item| assert!(handoff.put(item)));
                handoff.close();
            }
        });
        let stop = Stop::new();
        for item in 0..100 {
            assert_eq!(handoff.take(AGES, &stop), Taken::Item(item));
        }
        assert_eq!(handoff.take(AGES, &stop), Taken::Closed);
        assert_eq!(handoff.overwritten(), 0);
        producer.join().expect("the producer does not panic");
    }

    #[test]
    fn an_overwriting_producer_leaves_the_latest_and_counts_the_rest() {
        let handoff = Handoff::new(WhenFull::Overwrite);
        (0..5).for_each(|item| assert!(handoff.put(item)));
        handoff.close();
        assert!(!handoff.put(5), "closed");
        assert_eq!(handoff.take(Duration::ZERO, &Stop::new()), Taken::Item(4));
        assert_eq!(handoff.take(Duration::ZERO, &Stop::new()), Taken::Closed);
        assert_eq!(handoff.overwritten(), 4);
    }

    #[test]
    fn closing_frees_a_producer_that_waits() {
        let handoff = Arc::new(Handoff::new(WhenFull::Wait));
        assert!(handoff.put(0));
        let producer = std::thread::spawn({
            let handoff = handoff.clone();
            move || handoff.put(1)
        });
        handoff.close();
        assert!(!producer.join().expect("the producer does not panic"));
    }

    #[test]
    fn a_stop_comes_before_an_item_and_patience_ends() {
        let handoff = Handoff::new(WhenFull::Wait);
        let stop = Stop::new();
        assert_eq!(handoff.take(Duration::ZERO, &stop), Taken::TimedOut);
        assert!(handoff.put(0));
        stop.set();
        assert_eq!(handoff.take(AGES, &stop), Taken::Stopped);
    }
}
