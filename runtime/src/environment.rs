//! The box around the agent. [`Environment`] is the only way to time, chance and the outside:
//! nothing else in this crate reads a clock or draws a random number, so a simulation that passes
//! its own runs the same agent, repeatably.

pub mod backoff;
pub mod clock;
pub mod random;

use std::fmt;
use std::sync::Arc;

use uuid::Uuid;

use crate::capture::{self, CameraThreads, Cameras};
use crate::deliver::mqtt::{Brokers, MqttBrokers};
use crate::pool::https::HttpsConnector;
use crate::pool::transport::Connector;
use clock::Clock;
use random::Random;

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

    /// This box.
    pub fn system() -> Self {
        Environment {
            clock: Clock::system(),
            random: Random::from_system(),
            cameras: Arc::new(CameraThreads(capture::open)),
            pools: Arc::new(HttpsConnector),
            brokers: Arc::new(MqttBrokers),
        }
    }
}
