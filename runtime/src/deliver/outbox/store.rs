//! Where the outbox keeps its events.

use std::collections::BTreeMap;
use std::io;

use bytes::Bytes;

/// One event in the outbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its sequence number within the epoch.
    pub seq: u64,
    /// Where it is published.
    pub topic: String,
    /// Its JSON.
    pub payload: Bytes,
}

/// Keeps events until they are forgotten. What is kept, and for how long, is decided by
/// [`Delivery`](super::delivery::Delivery).
pub trait Store: Send {
    /// Keeps `entry`, whose seq is above all before it.
    ///
    /// # Errors
    /// When it cannot be kept; it is declared as a gap then.
    fn put(&mut self, entry: Entry) -> io::Result<()>;

    /// The event at `seq`; `None` if it was forgotten or lost.
    fn get(&self, seq: u64) -> Option<Entry>;

    /// Gives up the event at `seq`.
    fn forget(&mut self, seq: u64);
}

/// Keeps events in memory: a box that loses power loses what its broker did not have yet.
#[derive(Debug, Default)]
pub struct MemoryStore {
    entries: BTreeMap<u64, Entry>,
}

impl Store for MemoryStore {
    fn put(&mut self, entry: Entry) -> io::Result<()> {
        self.entries.insert(entry.seq, entry);
        Ok(())
    }

    fn get(&self, seq: u64) -> Option<Entry> {
        self.entries.get(&seq).cloned()
    }

    fn forget(&mut self, seq: u64) {
        self.entries.remove(&seq);
    }
}
