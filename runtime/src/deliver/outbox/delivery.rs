//! Sequence numbers, windows, and what is sent next. Pure: payloads are elsewhere, time is an argument.
//!
//! Each event is named by (epoch, seq): seq counts from 1 within an epoch. An event leaves the
//! queue when the broker acknowledges it, when the broker refuses it, when the store cannot keep
//! it, or when the queue is full and it is the oldest that is not in flight. All but the first are
//! counted and declared in a [`Gap`], so a subscriber can prove from what it received that nothing
//! is missing: received + declared = 1..=last.
//!
//! A broker acknowledges before it saves. So after a lost connection the last events acknowledged,
//! those of the seconds before the newest acknowledgement, are sent once more: a broker killed in
//! between would otherwise leave a hole. Subscribers recognise a repeat by its (epoch, seq).

use std::collections::VecDeque;
use std::time::Duration;

use super::gap::{Gap, GapReason};
#[cfg(test)]
use crate::mutants::{self, Mutant};

/// How far behind its acknowledgements a broker may be with saving. Mosquitto can be configured to
/// save every second.
const SAVED_AFTER: Duration = Duration::from_secs(5);
/// Acknowledged events kept in case the connection is lost.
const RECENT_MAX: usize = 256;
/// Limit on the size of all events not acknowledged, however few they are.
pub(super) const BYTES_MAX: usize = 64 << 20;
/// Stretches of dropped events; past it the last one grows.
const GAPS_MAX: usize = 64;

/// What is to be sent next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// The event of this seq.
    Event(u64),
    /// A stretch of dropped events, by a number that names it.
    Gap(u64, Gap),
}

/// Where events went, over one epoch. `produced = published + dropped + queued`, always.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Numbered.
    pub produced: u64,
    /// Acknowledged; each once, however often it was sent.
    pub published: u64,
    /// Declared as gaps.
    pub dropped: u64,
    /// Sent again although acknowledged, in case the broker lost them.
    pub repeated: u64,
}

/// The state of every event that is not known to be saved by the broker.
#[derive(Debug)]
pub struct Delivery {
    epoch: u64,
    capacity: usize,
    counts: Counts,
    /// Not acknowledged, oldest first.
    queue: VecDeque<Tracked<Queued>>,
    /// Payloads of `queue`, together.
    queued_bytes: usize,
    /// Acknowledged and not known to be saved, oldest acknowledgement first.
    recent: VecDeque<(Duration, u64)>,
    /// Taken from `recent` to be sent again; oldest first, and older than all of `queue`.
    again: VecDeque<Tracked<u64>>,
    /// Not acknowledged, oldest first.
    gaps: VecDeque<Tracked<(u64, Gap)>>,
    recent_gaps: VecDeque<(Duration, (u64, Gap))>,
    gap_ids: u64,
}

#[derive(Debug, Clone, Copy)]
struct Queued {
    seq: u64,
    bytes: usize,
    since: Duration,
}

#[derive(Debug)]
struct Tracked<T> {
    item: T,
    in_flight: bool,
}

impl<T> Tracked<T> {
    fn waiting(item: T) -> Self {
        Tracked {
            item,
            in_flight: false,
        }
    }
}

impl Delivery {
    /// An empty queue of at most `capacity` events (1 or more), in a new `epoch`.
    pub fn new(epoch: u64, capacity: usize) -> Self {
        Delivery {
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

    /// Size of the events not acknowledged yet, in bytes.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// How old the oldest event not acknowledged yet is at `now`.
    pub fn oldest_age(&self, now: Duration) -> Option<Duration> {
        let oldest = self.queue.front()?;
        Some(now.saturating_sub(oldest.item.since))
    }

    /// Where events went.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether everything was acknowledged, repeats and gaps included.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.again.is_empty() && self.gaps.is_empty()
    }

    /// The seq of the next event.
    pub fn next_seq(&self) -> u64 {
        self.counts.produced + 1
    }

    /// Takes an event of `bytes`, made at `now`, with the seq [`Delivery::next_seq`]. Returns the
    /// seqs of those dropped to make room.
    pub fn push(&mut self, bytes: usize, now: Duration) -> Vec<u64> {
        let seq = self.next_seq();
        let mut dropped = Vec::new();
        while self.queue.len() == self.capacity
            || (!self.queue.is_empty() && self.queued_bytes + bytes > BYTES_MAX)
        {
            // One in flight may already be with the broker: better to drop the oldest that is not.
            let index = self.queue.iter().position(|slot| !slot.in_flight);
            if let Some(queued) = self.take(index.unwrap_or(0)) {
                self.drop_and_declare(queued.seq, GapReason::Size);
                dropped.push(queued.seq);
            }
        }
        self.counts.produced = seq;
        self.queued_bytes += bytes;
        self.queue.push_back(Tracked::waiting(Queued {
            seq,
            bytes,
            since: now,
        }));
        dropped
    }

    /// Gives up an event that will never be published, for `reason`.
    ///
    /// A repeat is declared, too: the broker may have lost what it acknowledged before. It stays
    /// counted as published.
    pub fn give_up(&mut self, seq: u64, reason: GapReason) {
        if let Some(index) = self.queue.iter().position(|slot| slot.item.seq == seq) {
            self.take(index);
            self.drop_and_declare(seq, reason);
        } else if let Some(index) = self.again.iter().position(|slot| slot.item == seq) {
            self.again.remove(index);
            self.declare(seq, reason);
        }
    }

    /// The next one to send, marked as in flight; `None` when everything is.
    pub fn next_to_send(&mut self) -> Option<Due> {
        if let Some(slot) = self.gaps.iter_mut().find(|slot| !slot.in_flight) {
            slot.in_flight = true;
            return Some(Due::Gap(slot.item.0, slot.item.1.clone()));
        }
        if let Some(slot) = self.again.iter_mut().find(|slot| !slot.in_flight) {
            slot.in_flight = true;
            return Some(Due::Event(slot.item));
        }
        let slot = self.queue.iter_mut().find(|slot| !slot.in_flight)?;
        slot.in_flight = true;
        Some(Due::Event(slot.item.seq))
    }

    /// The broker acknowledged event `seq` at `now`. Returns the seqs of events that it has saved
    /// by now.
    pub fn acked(&mut self, seq: u64, now: Duration) -> Vec<u64> {
        if let Some(index) = self.again.iter().position(|slot| slot.item == seq) {
            self.again.remove(index);
            self.recent.push_back((now, seq));
        } else if let Some(index) = self.queue.iter().position(|slot| slot.item.seq == seq) {
            self.counts.published += 1;
            self.take(index);
            self.recent.push_back((now, seq));
        }
        take_saved(&mut self.recent, now)
    }

    /// The broker acknowledged gap number `id` at `now`.
    pub fn gap_acked(&mut self, id: u64, now: Duration) {
        if let Some(index) = self.gaps.iter().position(|slot| slot.item.0 == id) {
            let declared = self.gaps.remove(index).map(|slot| slot.item);
            self.recent_gaps.extend(declared.map(|gap| (now, gap)));
        }
        take_saved(&mut self.recent_gaps, now);
    }

    /// The broker refused gap number `id`: sent again, it would be refused again.
    pub fn gap_refused(&mut self, id: u64) {
        self.gaps.retain(|slot| slot.item.0 != id);
    }

    /// The connection was lost: what was in flight is sent again, and so is what was acknowledged
    /// just before.
    pub fn disconnected(&mut self) {
        self.queue
            .iter_mut()
            .for_each(|slot| slot.in_flight = false);
        self.again
            .iter_mut()
            .for_each(|slot| slot.in_flight = false);
        self.gaps.iter_mut().for_each(|slot| slot.in_flight = false);
        self.counts.repeated += self.recent.len() as u64;
        // Acknowledgements come in the order of sending, but a repeat may have been acknowledged
        // after a younger event.
        let recent = self.recent.drain(..).map(|(_, seq)| Tracked::waiting(seq));
        self.again.extend(recent);
        self.again.make_contiguous().sort_by_key(|slot| slot.item);
        for (_, gap) in self.recent_gaps.drain(..).rev() {
            self.gaps.push_front(Tracked::waiting(gap));
        }
    }

    fn take(&mut self, index: usize) -> Option<Queued> {
        let queued = self.queue.remove(index)?.item;
        self.queued_bytes -= queued.bytes;
        Some(queued)
    }

    fn drop_and_declare(&mut self, seq: u64, reason: GapReason) {
        #[cfg(test)]
        if mutants::is_active(Mutant::UndeclaredGap) {
            return;
        }
        self.counts.dropped += 1;
        self.declare(seq, reason);
    }

    fn declare(&mut self, seq: u64, reason: GapReason) {
        // Where there is room, the last gap that waits grows by its neighbour alone. Without room
        // it grows by any event; if every gap is in flight, one more is made.
        let full = self.gaps.len() >= GAPS_MAX;
        let mut waiting = self.gaps.iter_mut().rev().filter(|slot| !slot.in_flight);
        let gap = waiting.next().map(|slot| &mut slot.item.1);
        if let Some(gap) = gap
            && (full || (gap.to_seq + 1 == seq && gap.reason == reason))
        {
            gap.to_seq = gap.to_seq.max(seq);
            gap.from_seq = gap.from_seq.min(seq);
            gap.count += 1;
            return;
        }
        self.gap_ids += 1;
        let gap = Gap {
            from_seq: seq,
            to_seq: seq,
            count: 1,
            reason,
        };
        self.gaps.push_back(Tracked::waiting((self.gap_ids, gap)));
    }
}

/// Takes out what a broker has saved by now: everything acknowledged well before the newest
/// acknowledgement.
///
/// Measured from there and not from the loss of the connection, which may be noticed long after the
/// broker died.
fn take_saved<T>(recent: &mut VecDeque<(Duration, T)>, newest: Duration) -> Vec<T> {
    let mut saved = Vec::new();
    while let Some((at, _)) = recent.front()
        && (recent.len() > RECENT_MAX || newest.saturating_sub(*at) > SAVED_AFTER)
    {
        saved.extend(recent.pop_front().map(|(_, item)| item));
    }
    saved
}
