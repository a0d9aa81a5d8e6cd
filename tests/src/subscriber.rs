//! A subscriber that returns complete publications: flags, expiry, properties.

use std::time::Duration;

use runtime::clock::Clock;
use runtime::mqtt::{Incoming, Link, LinkOptions, LinkState, Publication, Qos};
use runtime::random::Random;

use crate::config::mqtt;

/// Topic of the publication that marks the end of what was sent before it.
const MARK: &str = "egret/mark";

/// Publications that a subscriber can hold.
const CAPACITY: u16 = 1000;

/// A subscriber without a persistent session, for up to 1000 publications.
#[derive(Debug)]
pub struct Subscriber {
    link: Link,
    deliveries: Incoming,
}

impl Subscriber {
    /// Subscribes to everything below `egret/`, and returns when the broker has confirmed it.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    pub async fn open(url: &str, client_id: &str) -> Subscriber {
        let options = LinkOptions {
            subscriptions: vec![("egret/#".into(), Qos::AtLeastOnce)],
            session_expiry: Duration::ZERO,
            receive_max: CAPACITY,
            ..LinkOptions::new(mqtt(url), client_id)
        };
        let (link, task, deliveries) = Link::open(options, Clock::system(), Random::from_system());
        tokio::spawn(task.run(std::future::pending()));
        link.status()
            .wait_for(|status| status.state == LinkState::Up)
            .await
            .unwrap();
        Subscriber { link, deliveries }
    }

    /// The publications, retained ones included, that the broker received before this call.
    ///
    /// # Panics
    /// When the broker cannot be reached.
    pub async fn received(mut self) -> Vec<Publication> {
        self.link
            .publish(Publication {
                topic: MARK.into(),
                ..Publication::default()
            })
            .await
            .unwrap();
        let mut received = Vec::new();
        loop {
            let publication = self.deliveries.recv().await.unwrap().publication;
            if publication.topic == MARK {
                return received;
            }
            received.push(publication);
        }
    }
}
