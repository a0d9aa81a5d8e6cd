//! What arrives from the broker: replies of pools, and commands.

use std::sync::Arc;

use firmware_config::agent::{KillSwitch, UnknownKillSwitch};
use tracing::{debug, info, warn};

use super::mqtt::{Deliveries, Publication};
use super::post::{Kind, Post};
use super::topics::Topics;
use crate::metrics::Metrics;
use crate::scene::SceneContext;

/// Hands deliveries to the parts that wait for them.
pub struct Inbox {
    /// The topics of this box.
    pub topics: Topics,
    /// Pools, kill switch, and the way to the publisher.
    pub context: SceneContext,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Inbox {
    /// Reads deliveries until the connection is closed for good.
    pub async fn run(self, mut deliveries: Deliveries) {
        self.publish_kill_switch().await;
        let pools = &self.context.escalations.pools;
        while let Some(delivery) = deliveries.recv().await {
            let publication = delivery.publication;
            if publication.topic == self.topics.kill_switch_set() {
                self.command(&publication).await;
            } else if !pools.on_reply(publication) {
                // A reply after its deadline, or one sent twice.
                debug!("a delivery that no call waits for");
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
                info!("kill switch: {}", switch.as_str());
                self.context.escalations.policy.set_kill_switch(switch);
                self.publish_kill_switch().await;
            }
            Err(why) => {
                self.metrics.commands_refused.count();
                warn!("command on {} refused: {why}", publication.topic);
            }
        }
    }

    async fn publish_kill_switch(&self) {
        let switch = self.context.escalations.policy.kill_switch();
        let state = Post::Retained {
            topic: self.topics.kill_switch_state(),
            payload: switch.as_str().into(),
            kind: Kind::Word,
        };
        self.context.post(state).await;
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
    let text = std::str::from_utf8(&publication.payload).unwrap_or_default();
    text.trim()
        .parse()
        .map_err(|unknown: UnknownKillSwitch| unknown.to_string())
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
