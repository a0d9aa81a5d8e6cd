//! What the agent hands over for publishing.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use super::event::Draft;
use super::topics::PublishOptions;

/// One thing to publish.
#[derive(Debug, Clone, PartialEq)]
pub enum Post {
    /// One step of an event: each of them has to arrive.
    Event {
        /// Its camera.
        cam: String,
        /// The step.
        draft: Box<Draft>,
    },
    /// A retained publication: only the latest of each topic matters. It is published again on
    /// every connection, since a broker that lost its store has forgotten it.
    Retained {
        /// Its topic.
        topic: String,
        /// Its content.
        payload: Bytes,
        /// What the content is.
        kind: Kind,
    },
}

/// A post on its way to the publisher.
#[derive(Debug)]
pub struct Posted {
    /// What to publish.
    pub post: Post,
    /// Is sent the event's seq when the outbox has it; dropped for a retained publication.
    pub stored: oneshot::Sender<u64>,
}

/// The way to the publisher; cheap to clone.
#[derive(Debug, Clone)]
pub struct Posts(mpsc::Sender<Posted>);

impl Posts {
    /// Posts through `queue`.
    pub fn new(queue: mpsc::Sender<Posted>) -> Self {
        Posts(queue)
    }

    /// Posts one thing; waits for room. What it returns resolves with the event's seq once the
    /// outbox has it.
    pub async fn post(&self, post: Post) -> oneshot::Receiver<u64> {
        let (stored, seq) = oneshot::channel();
        // The publisher takes posts until the last sender is gone, unless it ended by a fault.
        let _ = self.0.send(Posted { post, stored }).await;
        seq
    }

    /// Resolves when the publisher is gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// What a retained publication is, and so how it is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One word: `ON`.
    Word,
    /// A JSON object.
    Json,
    /// A JSON object that is soon out of date.
    Health,
    /// A JPEG, published once: last hour's image is of no use to a new connection.
    Snapshot,
}

impl Kind {
    /// How it is published.
    pub fn options(self) -> PublishOptions {
        match self {
            Kind::Word => PublishOptions::WORD,
            Kind::Json => PublishOptions::OBJECT,
            Kind::Health => PublishOptions::HEALTH,
            Kind::Snapshot => PublishOptions::SNAPSHOT,
        }
    }
}
