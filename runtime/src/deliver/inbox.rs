//! What arrives from the broker: replies from pools, and commands.

use std::sync::Arc;

use firmware_config::agent::{KillSwitch, UnknownKillSwitch};
use tracing::{debug, info, warn};

use super::post::{Kind, Post, Posts};
use super::topics::Topics;
use crate::decide::call::Escalations;
use crate::metrics::Metrics;
use crate::mqtt::{Incoming, Publication};

/// Routes deliveries to the parts that wait for them.
pub struct Inbox {
    /// The topics of this node.
    pub topics: Topics,
    /// The pools, the kill switch, and the publisher.
    pub escalations: Escalations,
    /// To the publisher.
    pub posts: Posts,
    /// Where drops and refusals are counted.
    pub metrics: Arc<Metrics>,
}

impl Inbox {
    /// Publishes the kill switch's state, then reads deliveries until the connection's task ends.
    pub async fn run(self, mut deliveries: Incoming) {
        self.publish_kill_switch().await;
        let pools = &self.escalations.pools;
        while let Some(delivery) = deliveries.recv().await {
            let publication = delivery.publication;
            if publication.topic == self.topics.kill_switch_set() {
                self.command(&publication).await;
            } else if !pools.on_reply(publication) {
                // A reply after its deadline, or a duplicate.
                debug!("ignored a delivery that no pool call waits for");
            }
            self.metrics
                .deliveries_dropped
                .raise_to(deliveries.dropped());
            self.metrics
                .replies_unmatched
                .raise_to(pools.unmatched_replies());
        }
    }

    async fn command(&self, publication: &Publication) {
        match kill_switch_command(publication) {
            Ok(switch) => {
                info!("kill switch set to {}", switch.as_str());
                self.escalations.policy.set_kill_switch(switch);
                self.publish_kill_switch().await;
            }
            Err(why) => {
                self.metrics.commands_refused.count();
                warn!("refused a command on {}: {why}", publication.topic);
            }
        }
    }

    async fn publish_kill_switch(&self) {
        let switch = self.escalations.policy.kill_switch();
        let state = Post::Retained {
            topic: self.topics.kill_switch_state(),
            payload: switch.as_str().into(),
            kind: Kind::Word,
        };
        self.posts.post(state).await;
    }
}

/// Parses a command. A retained one is refused: it would be repeated on every connection, long
/// after it was sent.
///
/// # Errors
/// A message, when the command is retained or is not a kill switch position.
pub fn kill_switch_command(publication: &Publication) -> Result<KillSwitch, String> {
    if publication.retain {
        return Err("the command is retained; send it without the retain flag".into());
    }
    let text = std::str::from_utf8(&publication.payload).unwrap_or_default();
    text.trim()
        .parse()
        .map_err(|unknown: UnknownKillSwitch| unknown.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kill_switch_commands_are_parsed_and_retained_ones_refused() {
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
            Err("the command is retained; send it without the retain flag".into())
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
