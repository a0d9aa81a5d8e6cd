//! From a camera's thread to its scene: the latest frame, or every frame.
//!
//! A live camera never waits: a frame nobody had time for is replaced by the next admitted one, so
//! what is answered is always the newest. A folder or a file loses nothing: its thread waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};

/// The camera's side.
#[derive(Debug)]
pub struct Sender<T>(Side<T>);

#[derive(Debug)]
enum Side<T> {
    Latest(Arc<Slot<T>>),
    Every(mpsc::Sender<T>),
}

/// The scene's side.
#[derive(Debug)]
pub struct Receiver<T>(ReceiverSide<T>);

#[derive(Debug)]
enum ReceiverSide<T> {
    Latest(Arc<Slot<T>>),
    Every(mpsc::Receiver<T>),
}

#[derive(Debug)]
struct Slot<T> {
    item: Mutex<Option<T>>,
    changed: Notify,
    /// Either side is gone.
    closed: AtomicBool,
}

/// What became of an item handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handed {
    /// It will be received.
    Over,
    /// It took the place of one that never will be.
    Superseding,
    /// Nobody receives any more.
    Nowhere,
}

/// Holds one item, the latest.
pub fn latest<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(Slot {
        item: Mutex::new(None),
        changed: Notify::new(),
        closed: AtomicBool::new(false),
    });
    (
        Sender(Side::Latest(Arc::clone(&slot))),
        Receiver(ReceiverSide::Latest(slot)),
    )
}

/// Holds one item; the next one waits.
pub fn every<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(1);
    (
        Sender(Side::Every(sender)),
        Receiver(ReceiverSide::Every(receiver)),
    )
}

impl<T> Slot<T> {
    fn put(&self, item: T) -> Option<T> {
        self.item
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(item)
    }

    fn take(&self) -> Option<T> {
        self.item
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.changed.notify_one();
    }
}

impl<T> Sender<T> {
    /// Hands one item over; blocks until there is room where every item counts.
    pub fn hand_over(&self, item: T) -> Handed {
        match &self.0 {
            Side::Latest(slot) if slot.closed.load(Ordering::Acquire) => Handed::Nowhere,
            Side::Latest(slot) => {
                let before = slot.put(item);
                slot.changed.notify_one();
                if before.is_some() {
                    Handed::Superseding
                } else {
                    Handed::Over
                }
            }
            Side::Every(sender) if sender.blocking_send(item).is_ok() => Handed::Over,
            Side::Every(_) => Handed::Nowhere,
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if let Side::Latest(slot) = &self.0 {
            slot.close();
        }
    }
}

impl<T> Receiver<T> {
    /// The next item; `None` when the sender is gone and nothing is left.
    pub async fn recv(&mut self) -> Option<T> {
        match &mut self.0 {
            ReceiverSide::Every(receiver) => receiver.recv().await,
            ReceiverSide::Latest(slot) => loop {
                // Read before the slot: what was put before the close is then seen.
                let closed = slot.closed.load(Ordering::Acquire);
                if let Some(item) = slot.take() {
                    return Some(item);
                }
                if closed {
                    return None;
                }
                slot.changed.notified().await;
            },
        }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        if let ReceiverSide::Latest(slot) = &self.0 {
            slot.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_latest_wins() {
        let (sender, mut receiver) = latest();
        assert_eq!(sender.hand_over(1), Handed::Over);
        assert_eq!(sender.hand_over(2), Handed::Superseding);
        assert_eq!(receiver.recv().await, Some(2));
        sender.hand_over(3);
        drop(sender);
        assert_eq!(
            (receiver.recv().await, receiver.recv().await),
            (Some(3), None)
        );
    }

    #[tokio::test]
    async fn every_item_arrives() {
        let (sender, mut receiver) = every();
        let thread =
            std::thread::spawn(move || (0..5).all(|i| sender.hand_over(i) == Handed::Over));
        let mut received = Vec::new();
        while let Some(item) = receiver.recv().await {
            received.push(item);
        }
        assert_eq!(received, [0, 1, 2, 3, 4]);
        assert!(thread.join().expect("ends"));
    }

    #[tokio::test]
    async fn nobody_receives() {
        let (sender, receiver) = latest();
        drop(receiver);
        assert_eq!(sender.hand_over(1), Handed::Nowhere);
    }
}
