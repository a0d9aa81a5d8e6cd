//! What the agent hands over for publishing.

use bytes::Bytes;

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
