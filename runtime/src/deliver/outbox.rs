//! Events between being made and being acknowledged. Pure: the order, the limit, and what is sent
//! again; time is an argument.
//!
//! Each event gets a place, (epoch, seq): seq counts from 1 within an epoch, and a new outbox is a
//! new epoch. An event leaves only when the broker acknowledged it. When the queue is full the
//! oldest is dropped, counted, and declared in a [`Gap`], so a subscriber can prove from what it
//! received that nothing is missing: received + declared = 1..=last.
//!
//! A broker acknowledges before it saves. So after a lost connection the last events acknowledged,
//! those of the seconds before the newest acknowledgement, are sent once more: a broker killed in
//! between would otherwise leave a hole. Subscribers tell a repeat by its (epoch, seq).
//!
//! Memory only: a box that loses power loses what its broker had not yet. A store on disk takes
//! this module's place in the queue.

mod gap;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

pub use gap::Gap;

/// How far behind its acknowledgements a broker may be with saving. Mosquitto saves every second
/// when told to.
const SAVED_AFTER: Duration = Duration::from_secs(5);
/// Acknowledged events kept in case the connection is lost.
const RECENT_MAX: usize = 256;
/// Events not acknowledged have at most so many bytes together, however few they are.
const BYTES_MAX: usize = 64 << 20;
/// Stretches of dropped events; past it the last one grows.
const GAPS_MAX: usize = 64;

/// One event in the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its place.
    pub seq: u64,
    /// Where it is published.
    pub topic: String,
    /// Its JSON.
    pub payload: Bytes,
    /// When it was made.
    pub since: Duration,
}

/// What is to be sent next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// An event.
    Event(Entry),
    /// A stretch of dropped events, by a number that names it.
    Gap(u64, Gap),
}

/// Where events went, over the life of the outbox. `produced = published + dropped + queued`,
/// always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Given a place.
    pub produced: u64,
    /// Acknowledged; each once, however often it was sent.
    pub published: u64,
    /// Declared as gaps.
    pub dropped: u64,
    /// Sent again although acknowledged, in case the broker lost them.
    pub repeated: u64,
}

/// The queue.
#[derive(Debug)]
pub struct Outbox {
    epoch: u64,
    capacity: usize,
    counts: Counts,
    /// Not acknowledged, oldest first.
    queue: VecDeque<Slot<Entry>>,
    /// Payloads of `queue`, together.
    queued_bytes: usize,
    /// Acknowledged and still kept, oldest first.
    recent: VecDeque<(Duration, Entry)>,
    /// Taken from `recent` to be sent again; oldest first, and older than all of `queue`.
    again: VecDeque<Slot<Entry>>,
    /// Not acknowledged, oldest first.
    gaps: VecDeque<Slot<(u64, Gap)>>,
    recent_gaps: VecDeque<(Duration, (u64, Gap))>,
    gap_ids: u64,
}

#[derive(Debug)]
struct Slot<T> {
    item: T,
    in_flight: bool,
}

impl<T> Slot<T> {
    fn waiting(item: T) -> Self {
        Slot {
            item,
            in_flight: false,
        }
    }
}

impl Outbox {
    /// An empty queue of at most `capacity` events (1 or more), in a new `epoch`.
    pub fn new(epoch: u64, capacity: usize) -> Self {
        Outbox {
            epoch,
            capacity: capacity.max(1),
            counts: Counts::default(),
            queue: VecDeque::new(),
            queued_bytes: 0,
            recent: VecDeque::new(),
            again: VecDeque::new(),
            gaps: VecDeque::new(),
            recent_gaps: VecDeque::new(),
            gap_ids: 0,
        }
    }

    /// Names this life of the outbox.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Events not acknowledged yet.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Size of the events not acknowledged yet.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// How old the oldest event not acknowledged yet is at `now`.
    pub fn oldest_age(&self, now: Duration) -> Option<Duration> {
        self.queue
            .front()
            .map(|slot| now.saturating_sub(slot.item.since))
    }

    /// Where events went.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether everything was acknowledged, repeats and gaps included.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.again.is_empty() && self.gaps.is_empty()
    }

    /// Puts an event made at `now` at the end, in the place that `payload` is told; drops the
    /// oldest when full.
    pub fn push(
        &mut self,
        topic: String,
        now: Duration,
        payload: impl FnOnce(u64, u64) -> Bytes,
    ) -> u64 {
        let seq = self.counts.produced + 1;
        let payload = payload(self.epoch, seq);
        while self.queue.len() == self.capacity
            || (!self.queue.is_empty() && self.queued_bytes + payload.len() > BYTES_MAX)
        {
            self.drop_oldest();
        }
        self.counts.produced = seq;
        self.queued_bytes += payload.len();
        self.queue.push_back(Slot::waiting(Entry {
            seq,
            topic,
            payload,
            since: now,
        }));
        seq
    }

    fn drop_oldest(&mut self) {
        // One on its way may already be with the broker: better to drop the oldest that is not.
        let place = self
            .queue
            .iter()
            .position(|slot| !slot.in_flight)
            .unwrap_or(0);
        if let Some(entry) = self.take(place) {
            self.declare(entry.seq, "size");
        }
    }

    fn take(&mut self, place: usize) -> Option<Entry> {
        let entry = self.queue.remove(place)?.item;
        self.queued_bytes -= entry.payload.len();
        Some(entry)
    }

    /// Gives an event up that the broker will never take.
    pub fn refused(&mut self, seq: u64) {
        if let Some(place) = self.queue.iter().position(|slot| slot.item.seq == seq) {
            self.take(place);
            self.declare(seq, "refused");
        }
        self.again.retain(|slot| slot.item.seq != seq);
    }

    fn declare(&mut self, seq: u64, reason: &'static str) {
        self.counts.dropped += 1;
        let full = self.gaps.len() >= GAPS_MAX;
        if let Some(Slot {
            item: (_, gap),
            in_flight: false,
        }) = self.gaps.back_mut()
            && (full || (gap.to_seq + 1 == seq && gap.reason == reason))
        {
            gap.to_seq = gap.to_seq.max(seq);
            gap.from_seq = gap.from_seq.min(seq);
            gap.count += 1;
            return;
        }
        self.gap_ids += 1;
        self.gaps.push_back(Slot::waiting((
            self.gap_ids,
            Gap {
                from_seq: seq,
                to_seq: seq,
                count: 1,
                reason,
            },
        )));
    }

    /// The next one to send, marked as on its way; `None` when everything is.
    pub fn next_to_send(&mut self) -> Option<Next> {
        if let Some(slot) = self.gaps.iter_mut().find(|slot| !slot.in_flight) {
            slot.in_flight = true;
            return Some(Next::Gap(slot.item.0, slot.item.1.clone()));
        }
        let slot = self
            .again
            .iter_mut()
            .chain(&mut self.queue)
            .find(|slot| !slot.in_flight)?;
        slot.in_flight = true;
        Some(Next::Event(slot.item.clone()))
    }

    /// The broker acknowledged event `seq` at `now`.
    pub fn acked(&mut self, seq: u64, now: Duration) {
        if let Some(place) = self.again.iter().position(|slot| slot.item.seq == seq) {
            let repeated = self.again.remove(place).map(|slot| slot.item);
            self.recent.extend(repeated.map(|entry| (now, entry)));
        } else if let Some(place) = self.queue.iter().position(|slot| slot.item.seq == seq) {
            self.counts.published += 1;
            let published = self.take(place);
            self.recent.extend(published.map(|entry| (now, entry)));
        }
        forget_saved(&mut self.recent, now);
    }

    /// The broker acknowledged gap number `id` at `now`.
    pub fn gap_acked(&mut self, id: u64, now: Duration) {
        if let Some(place) = self.gaps.iter().position(|slot| slot.item.0 == id) {
            let declared = self.gaps.remove(place).map(|slot| slot.item);
            self.recent_gaps.extend(declared.map(|gap| (now, gap)));
        }
        forget_saved(&mut self.recent_gaps, now);
    }

    /// The connection was lost: whatever was on its way is sent again, and what was acknowledged
    /// just before.
    pub fn disconnected(&mut self) {
        for slot in self.again.iter_mut().chain(&mut self.queue) {
            slot.in_flight = false;
        }
        self.counts.repeated += self.recent.len() as u64;
        // Acknowledgements come in the order of sending, but a repeat may have been acknowledged
        // after a younger event.
        self.again
            .extend(self.recent.drain(..).map(|(_, entry)| Slot::waiting(entry)));
        self.again
            .make_contiguous()
            .sort_by_key(|slot| slot.item.seq);
        for slot in &mut self.gaps {
            slot.in_flight = false;
        }
        for (_, gap) in self.recent_gaps.drain(..).rev() {
            self.gaps.push_front(Slot::waiting(gap));
        }
    }
}

/// Forgets what a broker has saved by now: everything acknowledged well before the newest
/// acknowledgement.
///
/// Measured from there and not from the loss of the connection, which may be noticed long after the
/// broker died.
fn forget_saved<T>(recent: &mut VecDeque<(Duration, T)>, newest: Duration) {
    while recent.len() > RECENT_MAX
        || recent
            .front()
            .is_some_and(|(at, _)| newest.saturating_sub(*at) > SAVED_AFTER)
    {
        recent.pop_front();
    }
}

#[cfg(test)]
mod tests;
