//! The latest retained publication of each topic, and which of them the broker does not have yet.
//! Pure.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::post::Kind;
use crate::mqtt::Publication;

/// The latest publication of each topic. Its size is bounded by the configuration: a few topics for
/// each rule and camera.
#[derive(Debug, Default)]
pub(super) struct Retained {
    topics: BTreeMap<String, Latest>,
}

#[derive(Debug)]
struct Latest {
    payload: Bytes,
    kind: Kind,
    unsent: bool,
    in_flight: bool,
}

impl Retained {
    /// Replaces what is published on `topic`.
    pub(super) fn set(&mut self, topic: String, payload: Bytes, kind: Kind) {
        let before = self.topics.get(&topic);
        let in_flight = before.is_some_and(|latest| latest.in_flight);
        self.topics.insert(
            topic,
            Latest {
                payload,
                kind,
                unsent: true,
                in_flight,
            },
        );
    }

    /// The next one to send, marked as in flight. One at a time for each topic, so that an older
    /// value never ends up on top.
    pub(super) fn next(&mut self) -> Option<(String, Publication)> {
        let (topic, latest) = self
            .topics
            .iter_mut()
            .find(|(_, latest)| latest.unsent && !latest.in_flight)?;
        (latest.unsent, latest.in_flight) = (false, true);
        let options = latest.kind.options();
        let publication = options.publication(topic.clone(), latest.payload.clone());
        Some((topic.clone(), publication))
    }

    /// What was in flight on `topic` is done with.
    pub(super) fn finished(&mut self, topic: &str) {
        if let Some(latest) = self.topics.get_mut(topic) {
            latest.in_flight = false;
            if latest.kind == Kind::Snapshot && !latest.unsent {
                self.topics.remove(topic);
            }
        }
    }

    /// The connection was lost: everything is sent again on the next one.
    pub(super) fn disconnected(&mut self) {
        for latest in self.topics.values_mut() {
            (latest.unsent, latest.in_flight) = (true, false);
        }
    }

    /// Whether the broker has everything.
    pub(super) fn is_clean(&self) -> bool {
        self.topics
            .values()
            .all(|latest| !latest.unsent && !latest.in_flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mqtt::Qos;

    fn payload(retained: &mut Retained) -> Option<Bytes> {
        retained.next().map(|(_, publication)| publication.payload)
    }

    #[test]
    fn the_latest_wins_and_is_sent_again_on_each_connection() {
        let mut retained = Retained::default();
        retained.set("a".into(), "1".into(), Kind::Word);
        assert_eq!(payload(&mut retained), Some("1".into()));
        retained.set("a".into(), "2".into(), Kind::Word);
        assert_eq!(payload(&mut retained), None, "the first is still in flight");
        retained.finished("a");
        assert_eq!(payload(&mut retained), Some("2".into()));
        retained.finished("a");
        assert!(retained.is_clean());
        retained.disconnected();
        assert_eq!(payload(&mut retained), Some("2".into()));
    }

    #[test]
    fn a_snapshot_is_sent_once() {
        let mut retained = Retained::default();
        retained.set("s".into(), "jpeg".into(), Kind::Snapshot);
        let (_, publication) = retained.next().expect("unsent");
        assert_eq!(
            (publication.qos, publication.retain),
            (Qos::AtMostOnce, true)
        );
        retained.finished("s");
        retained.disconnected();
        assert_eq!(payload(&mut retained), None);
    }
}
