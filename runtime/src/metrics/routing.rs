//! Pool calls, the link and the kill switch: what cameras and clients share.

use std::time::Duration;

use firmware_config::agent::KillSwitch;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

use super::{Counter, Durations, Group};
use crate::mqtt::{Link, LinkState, LinkStatus};
use crate::reason::Reason;

/// Pool calls, the link and the kill switch.
#[derive(Debug)]
pub struct RoutingMetrics {
    calls: Family<CallLabels, counter::Counter>,
    call_durations: Family<PoolLabels, Histogram>,
    link_up: Gauge,
    link_connections: Counter,
    kill_switch: Family<SwitchLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    pool: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SwitchLabels {
    state: &'static str,
}

impl RoutingMetrics {
    pub(super) fn new(mut group: Group<'_>) -> Self {
        RoutingMetrics {
            calls: group.add(
                "pool_calls",
                "Calls of pools, by `answered` or the reason code of the failure.",
                Family::default(),
            ),
            call_durations: group.add(
                "pool_call_duration_seconds",
                "Time from the first attempt to the end of a pool call.",
                Family::new_with_constructor(|| Durations::new().0),
            ),
            link_up: group.add(
                "link_up",
                "1 while there is a broker session, else 0.",
                Gauge::default(),
            ),
            link_connections: group.counter("link_connections", "Broker sessions that came up."),
            kill_switch: group.add(
                "kill_switch",
                "1 for the kill switch's state in force, else 0.",
                Family::default(),
            ),
        }
    }

    /// Counts a call of `pool` that ended after `took`, with an answer or the reason why there is
    /// none.
    pub fn pool_call(&self, pool: &str, outcome: Result<(), Reason>, took: Duration) {
        let labels = CallLabels {
            pool: pool.to_owned(),
            outcome: outcome.map_or_else(Reason::as_str, |()| "answered"),
        };
        self.calls.get_or_create(&labels).inc();
        let labels = PoolLabels {
            pool: pool.to_owned(),
        };
        let durations = self.call_durations.get_or_create(&labels);
        durations.observe(took.as_secs_f64());
    }

    /// Shows the link as it is now.
    pub fn link(&self, status: &LinkStatus) {
        self.link_up.set(i64::from(status.state == LinkState::Up));
        self.link_connections.raise_to(status.connections);
    }

    /// Shows `link` until its task ends.
    pub async fn follow(&self, link: &Link) {
        let mut status = link.status();
        loop {
            self.link(&status.borrow_and_update());
            if status.changed().await.is_err() {
                self.link_up.set(0);
                return;
            }
        }
    }

    /// Shows the kill switch that is in force now.
    pub fn kill_switch(&self, now: KillSwitch) {
        for switch in KillSwitch::ALL {
            let labels = SwitchLabels {
                state: switch.as_str(),
            };
            let shown = i64::from(switch == now);
            self.kill_switch.get_or_create(&labels).set(shown);
        }
    }
}
