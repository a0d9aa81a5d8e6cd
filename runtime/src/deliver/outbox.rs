//! Events between being made and being acknowledged.
//!
//! [`Delivery`] decides: sequence numbers, what is sent next, what is dropped when the queue is full, what is
//! sent again. A [`Store`] keeps the payloads. The outbox joins the two, and does no I/O of its
//! own; time is an argument.

pub mod delivery;
mod gap;
pub mod store;

use std::time::Duration;

use bytes::Bytes;

use delivery::{Counts, Delivery, Due};
pub use gap::{Gap, GapReason};
use store::{Entry, Store};

/// What is to be sent next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// An event.
    Event(Entry),
    /// A stretch of dropped events, by a number that names it.
    Gap(u64, Gap),
}

/// The queue of events.
pub struct Outbox {
    delivery: Delivery,
    store: Box<dyn Store>,
}

impl Outbox {
    /// An empty queue of at most `capacity` events (1 or more), in a new `epoch`, kept in `store`.
    pub fn new(epoch: u64, capacity: usize, store: Box<dyn Store>) -> Self {
        Outbox {
            delivery: Delivery::new(epoch, capacity),
            store,
        }
    }

    /// Names this life of the outbox.
    pub fn epoch(&self) -> u64 {
        self.delivery.epoch()
    }

    /// Events not acknowledged yet.
    pub fn queued(&self) -> usize {
        self.delivery.queued()
    }

    /// Size of the events not acknowledged yet, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.delivery.queued_bytes()
    }

    /// How old the oldest event not acknowledged yet is at `now`.
    pub fn oldest_age(&self, now: Duration) -> Option<Duration> {
        self.delivery.oldest_age(now)
    }

    /// Where events went.
    pub fn counts(&self) -> Counts {
        self.delivery.counts()
    }

    /// Whether everything was acknowledged, repeats and gaps included.
    pub fn is_empty(&self) -> bool {
        self.delivery.is_empty()
    }

    /// Puts an event made at `now` at the end; `payload` makes its JSON from (epoch, seq). When
    /// full, the oldest that is not in flight is dropped. Returns the event's seq.
    pub fn push(
        &mut self,
        topic: String,
        now: Duration,
        payload: impl FnOnce(u64, u64) -> Bytes,
    ) -> u64 {
        let seq = self.delivery.next_seq();
        let payload = payload(self.epoch(), seq);
        let dropped = self.delivery.push(payload.len(), now);
        let kept = self.store.put(Entry {
            seq,
            topic,
            payload,
        });
        if kept.is_err() {
            self.delivery.give_up(seq, GapReason::Lost);
        }
        for dropped in dropped {
            self.store.forget(dropped);
        }
        seq
    }

    /// Gives up an event that the broker refused for good.
    pub fn refused(&mut self, seq: u64) {
        self.delivery.give_up(seq, GapReason::Refused);
        self.store.forget(seq);
    }

    /// The next one to send, marked as in flight; `None` when everything is.
    pub fn next_to_send(&mut self) -> Option<Next> {
        loop {
            match self.delivery.next_to_send()? {
                Due::Gap(id, gap) => return Some(Next::Gap(id, gap)),
                Due::Event(seq) => match self.store.get(seq) {
                    Some(entry) => return Some(Next::Event(entry)),
                    None => self.delivery.give_up(seq, GapReason::Lost),
                },
            }
        }
    }

    /// The broker acknowledged event `seq` at `now`.
    pub fn acked(&mut self, seq: u64, now: Duration) {
        for saved in self.delivery.acked(seq, now) {
            self.store.forget(saved);
        }
    }

    /// The broker acknowledged gap number `id` at `now`.
    pub fn gap_acked(&mut self, id: u64, now: Duration) {
        self.delivery.gap_acked(id, now);
    }

    /// The broker refused gap number `id` for good.
    pub fn gap_refused(&mut self, id: u64) {
        self.delivery.gap_refused(id);
    }

    /// The connection was lost: what was in flight is sent again, and so is what was acknowledged
    /// just before.
    pub fn disconnected(&mut self) {
        self.delivery.disconnected();
    }
}

#[cfg(test)]
mod tests;
