//! Hands frames from a camera's thread to its scene: the latest frame, or every frame.
//!
//! A live camera never waits: a frame that was not received yet is replaced by the next admitted
//! one, so the scene always receives the newest. A folder or a file loses no frame: its thread
//! waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};

/// The camera's side.
#[derive(Debug)]
pub struct Sender<T>(Side<T>);

#[derive(Debug)]
enum Side<T> {
    Latest(Arc<LatestSlot<T>>),
    Every(mpsc::Sender<T>),
}

/// The scene's side.
#[derive(Debug)]
pub struct Receiver<T>(ReceiverSide<T>);

#[derive(Debug)]
enum ReceiverSide<T> {
    Latest(Arc<LatestSlot<T>>),
    Every(mpsc::Receiver<T>),
}

#[derive(Debug)]
struct LatestSlot<T> {
    item: Mutex<Option<T>>,
    changed: Notify,
    /// Whether either side was dropped.
    closed: AtomicBool,
}

/// What happened to an item that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandOver {
    /// It will be received.
    Accepted,
    /// It will be received, and replaced one that was not.
    Replaced,
    /// The receiver is gone.
    Closed,
}

/// A channel that holds one item: a new one replaces it.
pub fn latest<T>() -> (Sender<T>, Receiver<T>) {
    let slot = Arc::new(LatestSlot {
        item: Mutex::new(None),
        changed: Notify::new(),
        closed: AtomicBool::new(false),
    });
    (
        Sender(Side::Latest(Arc::clone(&slot))),
        Receiver(ReceiverSide::Latest(slot)),
    )
}

/// A channel that holds one item: the sender waits for room.
pub fn every<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = mpsc::channel(1);
    (
        Sender(Side::Every(sender)),
        Receiver(ReceiverSide::Every(receiver)),
    )
}

impl<T> LatestSlot<T> {
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
    /// Hands one item over; with [`every`], blocks until there is room.
    pub fn hand_over(&self, item: T) -> HandOver {
        match &self.0 {
            Side::Latest(slot) if slot.closed.load(Ordering::Acquire) => HandOver::Closed,
            Side::Latest(slot) => {
                let before = slot.put(item);
                slot.changed.notify_one();
                if before.is_some() {
                    HandOver::Replaced
                } else {
                    HandOver::Accepted
                }
            }
            Side::Every(sender) if sender.blocking_send(item).is_ok() => HandOver::Accepted,
            Side::Every(_) => HandOver::Closed,
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
    /// The next item; `None` when the sender is gone and the channel is empty.
    pub async fn recv(&mut self) -> Option<T> {
        match &mut self.0 {
            ReceiverSide::Every(receiver) => receiver.recv().await,
            ReceiverSide::Latest(slot) => loop {
                // Read before the slot, so that an item put before the close is still received.
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
    async fn a_newer_item_replaces_the_one_before() {
        let (sender, mut receiver) = latest();
        assert_eq!(sender.hand_over(1), HandOver::Accepted);
        assert_eq!(sender.hand_over(2), HandOver::Replaced);
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
            std::thread::spawn(move || (0..5).all(|i| sender.hand_over(i) == HandOver::Accepted));
        let mut received = Vec::new();
        while let Some(item) = receiver.recv().await {
            received.push(item);
        }
        assert_eq!(received, [0, 1, 2, 3, 4]);
        assert!(thread.join().expect("the sender does not panic"));
    }

    #[tokio::test]
    async fn handing_over_without_a_receiver_is_reported() {
        let (sender, receiver) = latest();
        drop(receiver);
        assert_eq!(sender.hand_over(1), HandOver::Closed);
    }
}
