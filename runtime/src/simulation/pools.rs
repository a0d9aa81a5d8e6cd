//! Pools that answer, answer nonsense, fail, and are silent.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use serde_json::json;
use tokio::time::sleep;

use super::chance::Chance;
use super::laws::IN_FLIGHT_MAX;
use crate::pool::PoolsError;
use crate::pool::breaker::Thresholds;
use crate::pool::retry::{AttemptFailure, Class};
use crate::pool::transport::{Attempt, Connector, Transport};

/// Makes pools that share their faults.
#[derive(Debug, Clone)]
pub(super) struct PoolDoubles(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    chance: Chance,
    refusals: Mutex<Refusals>,
}

/// What an outage refused.
#[derive(Debug, Default)]
struct Refusals {
    /// When the outage began, and the attempts since.
    present: Option<(Duration, u32)>,
    violations: Vec<String>,
}

#[derive(Debug)]
struct PoolDouble(Arc<Shared>);

impl PoolDoubles {
    pub(super) fn new(chance: Chance) -> Self {
        PoolDoubles(Arc::new(Shared {
            chance,
            refusals: Mutex::default(),
        }))
    }

    /// The outages in which the pool was asked more often than a breaker allows.
    pub(super) fn violations(&self) -> Vec<String> {
        self.0.refusals().violations.clone()
    }
}

impl Shared {
    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().expect("not poisoned")
    }

    /// Whether there is an outage, which refuses an attempt.
    fn refuses(&self) -> bool {
        let mut refusals = self.refusals();
        if !self.chance.outage(7_200.0, 300.0) {
            refusals.present = None;
            return false;
        }
        let now = self.chance.now();
        let (since, attempts) = refusals.present.unwrap_or((now, 0));
        let attempts = attempts + 1;
        refusals.present = Some((since, attempts));
        // Those that open the breaker, those under way meanwhile, and then its trials.
        let Thresholds { failures, cooldown } = Thresholds::default();
        let trials = (now - since).as_secs_f64() / cooldown.as_secs_f64();
        let allowed = f64::from(failures) + IN_FLIGHT_MAX as f64 + trials;
        if f64::from(attempts) > allowed {
            let outage = now - since;
            refusals.violations.push(format!(
                "a pool was asked {attempts} times in an outage of {outage:.0?}"
            ));
        }
        true
    }
}

impl Connector for PoolDoubles {
    fn connect(&self, _: &str, _: Option<&Path>) -> Result<Box<dyn Transport>, PoolsError> {
        Ok(Box::new(PoolDouble(Arc::clone(&self.0))))
    }
}

impl Transport for PoolDouble {
    fn attempt<'a>(&'a self, _: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>> {
        async {
            let chance = &self.0.chance;
            sleep(chance.between(0.1, 2.0)).await;
            if self.0.refuses() {
                let class = Class::Unhealthy { wait: None };
                return Err(AttemptFailure::unreachable(class, "connection refused"));
            }
            if chance.fails(0.02) {
                std::future::pending::<()>().await;
            }
            if chance.fails(0.05) {
                return Err(AttemptFailure::status(503, Some("1"), "overloaded"));
            }
            if chance.fails(0.02) {
                return Err(AttemptFailure::status(400, None, "no"));
            }
            Ok(reply(chance))
        }
        .boxed()
    }
}

/// A chat completion; now and then one without an answer.
pub(super) fn reply(chance: &Chance) -> Bytes {
    let content = if chance.fails(0.03) {
        "who knows".to_owned()
    } else {
        json!({ "answer": chance.answer() }).to_string()
    };
    let completion = json!({
        "id": "1",
        "object": "chat.completion",
        "created": 1,
        "model": "double",
        "choices": [{
            "index": 0,
            "message": { "role": "assistant", "content": content },
            "finish_reason": "stop",
        }],
    });
    completion.to_string().into()
}
