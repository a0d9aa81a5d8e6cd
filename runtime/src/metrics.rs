//! What the box counts: one struct of counters, shown in `health`. Whatever is dropped, shed or
//! superseded is here.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// One more.
    pub fn count(&self) {
        self.add(1);
    }

    /// `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Carries over the total of someone who counts for themselves.
    pub fn raise_to(&self, total: u64) {
        self.0.fetch_max(total, Ordering::Relaxed);
    }

    /// So many.
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counters, shared by all tasks and threads.
        #[derive(Debug, Default)]
        pub struct Metrics { $($(#[$doc])* pub $name: Counter,)* }

        /// The counters at one moment.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        #[cfg_attr(test, derive(schemars::JsonSchema))]
        pub struct Totals { $($(#[$doc])* pub $name: u64,)* }

        impl Metrics {
            /// The counters now.
            pub fn totals(&self) -> Totals {
                Totals { $($name: self.$name.total(),)* }
            }
        }
    };
}

counters! {
    /// Frames that cameras delivered.
    frames,
    /// Of them, skipped by the gate.
    frames_skipped,
    /// Of them, admitted and asked about.
    frames_answered,
    /// Replaced by a newer one: in the decoder, before the gate, or admitted, before the model was
    /// free.
    frames_superseded,
    /// Not usable: no picture, no thumbnail, no JPEG.
    frames_bad,
    /// Times a camera failed or stalled and was opened again.
    camera_restarts,
    /// Folders and video files given up before their end.
    sources_failed,
    /// Local answers.
    answers,
    /// Questions the model did not answer.
    answers_failed,
    /// Answers settled on the box.
    answers_local,
    /// Answers put to a pool.
    answers_escalated,
    /// Of them, answered by it.
    pool_answered,
    /// Of them, not answered.
    pool_failed,
    /// Request bytes sent to pools.
    bytes_up,
    /// Events given a place in the outbox.
    events_produced,
    /// Events acknowledged by the broker.
    events_published,
    /// Events dropped and declared as gaps.
    events_dropped,
    /// Publications sent again after a lost connection.
    events_repeated,
    /// Snapshots and states the broker did not take.
    publications_refused,
    /// Commands that were not obeyed.
    commands_refused,
    /// Messages from the broker that found no room.
    deliveries_dropped,
    /// Replies of pools that nobody waited for: wrong, late, or sent twice.
    replies_unmatched,
}

impl Totals {
    /// Events that the broker has not acknowledged yet.
    pub fn events_queued(&self) -> u64 {
        self.events_produced
            .saturating_sub(self.events_published + self.events_dropped)
    }
}
