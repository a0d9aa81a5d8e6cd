//! What arrives from the broker: replies of pools, and commands.

use std::sync::Arc;

use firmware_config::agent::KillSwitch;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::decide::policy::{InForce, kill_switch_name, parse_kill_switch};
use crate::deliver::mqtt::{Deliveries, Publication};
use crate::deliver::publisher::{Kind, Post};
use crate::deliver::topics::Topics;
use crate::metrics::Metrics;
use crate::pool::Pools;

/// Hands deliveries to whom they concern.
pub struct Inbox {
    /// The topics of this box.
    pub topics: Topics,
    /// Wait for replies.
    pub pools: Pools,
    /// Holds the kill switch.
    pub in_force: InForce,
    /// To the publisher.
    pub posts: mpsc::Sender<Post>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Inbox {
    /// Reads deliveries until the connection is closed for good.
    pub async fn run(self, mut deliveries: Deliveries) {
        self.tell_kill_switch().await;
        while let Some(delivery) = deliveries.recv().await {
            let publication = delivery.publication;
            if publication.topic == self.topics.kill_switch_set() {
                match kill_switch_command(&publication) {
                    Ok(switch) => {
                        info!("kill switch: {}", kill_switch_name(switch));
                        self.in_force.set_kill_switch(switch);
                        self.tell_kill_switch().await;
                    }
                    Err(why) => {
                        self.metrics.commands_refused.count();
                        warn!("command on {} refused: {why}", publication.topic);
                    }
                }
            } else if !self.pools.on_reply(publication) {
                // A reply after its deadline, or one sent twice.
                debug!("a delivery nobody waits for");
            }
            self.metrics
                .deliveries_dropped
                .raise_to(deliveries.dropped());
            self.metrics
                .replies_unmatched
                .raise_to(self.pools.unmatched_replies());
        }
    }

    async fn tell_kill_switch(&self) {
        let payload = kill_switch_name(self.in_force.kill_switch()).into();
        // Without a publisher there is nobody to tell.
        let _ = self
            .posts
            .send(Post::Standing {
                topic: self.topics.kill_switch_state(),
                payload,
                kind: Kind::Word,
            })
            .await;
    }
}

/// Reads a command. A retained one is refused: it would be obeyed again on every connection, long
/// after it was meant.
///
/// # Errors
/// In words, what is wrong with it.
pub fn kill_switch_command(publication: &Publication) -> Result<KillSwitch, String> {
    if publication.retain {
        return Err("it is retained; send it without the retain flag".into());
    }
    let text = std::str::from_utf8(&publication.payload)
        .ok()
        .map(str::trim)
        .filter(|text| text.len() <= 16);
    text.and_then(parse_kill_switch)
        .ok_or_else(|| "expected off, local-only or pool-only".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        let command = |payload: &'static [u8], retain| {
            kill_switch_command(&Publication {
                payload: payload.into(),
                retain,
                ..Publication::default()
            })
        };
        assert_eq!(command(b"local-only\n", false), Ok(KillSwitch::LocalOnly));
        assert_eq!(
            command(b"off", true),
            Err("it is retained; send it without the retain flag".into())
        );
        for payload in [
            &b""[..],
            b"ON",
            b"\xff\xfe",
            b"local-onlylocal-onlylocal-only",
        ] {
            assert!(command(payload, false).is_err(), "{payload:?}");
        }
    }
}
