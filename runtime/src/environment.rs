//! The box around the agent: [`Environment`] is the only way to time, chance and the outside, so a
//! simulation that passes its own runs the same agent, repeatably.

use std::fmt;
use std::sync::Arc;

use firmware_config::agent::Pool;
use uuid::Uuid;

use crate::capture::{CameraThreads, Cameras};
use crate::clock::Clock;
use crate::mqtt::{BrokerConnection, Brokers, Incoming, Link, LinkOptions, LinkTask, MqttBrokers};
use crate::pool::https::HttpsConnector;
use crate::pool::transport::Connector;
use crate::pool::{Pools, PoolsError};
use crate::random::Random;

/// Time, chance and the outside; cheap to clone.
#[derive(Clone)]
pub struct Environment {
    /// What time it is.
    pub clock: Clock,
    /// Jitter, epochs and ids.
    pub random: Random,
    /// Opens and runs cameras.
    pub cameras: Arc<dyn Cameras>,
    /// Connects to pools behind a URL.
    pub pools: Arc<dyn Connector>,
    /// Connects to brokers.
    pub brokers: Arc<dyn Brokers>,
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Environment { clock, pools, .. } = self;
        f.debug_struct("Environment")
            .field("clock", clock)
            .field("pools", pools)
            .finish_non_exhaustive()
    }
}

impl Environment {
    /// A UUIDv7 made now.
    pub fn uuid(&self) -> Uuid {
        self.random.uuid(self.clock.wall())
    }

    /// A connection to a broker that does not connect yet.
    pub fn connect_broker(&self, options: LinkOptions) -> BrokerConnection {
        let (clock, random) = (self.clock.clone(), self.random.clone());
        self.brokers.connect(options, clock, random)
    }

    /// A link of a program of its own, with its task and what arrives.
    pub fn open_link(&self, options: LinkOptions) -> (Link, LinkTask, Incoming) {
        Link::open(options, self.clock.clone(), self.random.clone())
    }

    /// The pools of a configuration; `link` is the way to those over MQTT.
    ///
    /// # Errors
    /// As [`Pools::new`].
    pub fn connect_pools(
        &self,
        pools: &[Pool],
        link: Option<Link>,
        node_id: &str,
    ) -> Result<Pools, PoolsError> {
        let (clock, random) = (self.clock.clone(), self.random.clone());
        Pools::new(pools, link, node_id, &*self.pools, clock, random)
    }

    /// This box.
    pub fn system() -> Self {
        Environment {
            clock: Clock::system(),
            random: Random::from_system(),
            cameras: Arc::new(CameraThreads),
            pools: Arc::new(HttpsConnector),
            brokers: Arc::new(MqttBrokers),
        }
    }
}
