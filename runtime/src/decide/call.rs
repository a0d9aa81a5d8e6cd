//! One escalation, for a camera or a gateway client: what is in its way, what it may cost, and how
//! it ends early.
//!
//! ```text
//! prepare: a capable pool? ─▶ a way to it? ─▶ in-flight slot and budgets ─▶ Call
//! make:    attempts … ─▶ completion           cancelled (kill switch, shutdown) ─▶ error, and why
//! ```
//!
//! Everything is checked before the first byte leaves the box, and the worst case is reserved; what
//! was not used is given back.

use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::{Policy, Pool};

use crate::clock::Clock;
use crate::decide::budget::{Cost, micro_usd};
use crate::decide::policy::{Permit, PolicyState};
use crate::environment::Environment;
use crate::mqtt::Link;
use crate::openai::Completion;
use crate::pool::question::settle;
use crate::pool::{EscalationError, Pools, PoolsError, QuestionId, Spent};
use crate::reason::Reason;
use crate::settled::Settled;

/// What every call of one box shares; cheap to clone.
#[derive(Debug, Clone)]
pub struct Escalations {
    /// The configured pools.
    pub pools: Pools,
    /// Kill switch, in-flight limit and budgets.
    pub policy: PolicyState,
    /// Measures latencies.
    pub clock: Clock,
}

/// A pool call, permitted and not made.
#[derive(Debug)]
pub struct Call {
    shared: Escalations,
    pool: String,
    id: QuestionId,
    body: Bytes,
    permit: Permit,
    /// Price of one attempt that is charged for, in US dollars.
    usd: Option<f64>,
}

/// A pool call that ended, with what the pool gave: its [`Completion`], or the answer in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Called<T> {
    /// The pool that was asked.
    pub pool: String,
    /// What it gave.
    pub result: Result<T, EscalationError>,
    /// What the call used.
    pub spent: Spent,
    /// What it cost, where the pool has a price.
    pub cost_usd: Option<f64>,
    /// From the first attempt to the end.
    pub latency: Duration,
}

impl Escalations {
    /// The configured pools and policy; MQTT pools are asked over `link`.
    ///
    /// # Errors
    /// As [`Environment::connect_pools`].
    pub fn new(
        pools: &[Pool],
        policy: &Policy,
        link: Option<Link>,
        node_id: &str,
        environment: &Environment,
    ) -> Result<Self, PoolsError> {
        Ok(Escalations {
            pools: environment.connect_pools(pools, link, node_id)?,
            policy: PolicyState::new(policy, environment.clock.clone()),
            clock: environment.clock.clone(),
        })
    }

    /// Prepares to send `pool` the request that `body` makes, with images in it or without.
    ///
    /// # Errors
    /// What is in the way.
    pub fn prepare(
        &self,
        pool: Option<&Pool>,
        images: bool,
        id: QuestionId,
        body: impl FnOnce(&Pool) -> Bytes,
    ) -> Result<Call, EscalationError> {
        let Some(pool) = pool else {
            return Err(EscalationError::new(
                Reason::NoCapableModel,
                "no pool is configured that takes this request",
            ));
        };
        let denied = |reason, why: &str| EscalationError::of_pool(&pool.id, reason, why);
        if images && !pool.images {
            return Err(denied(Reason::NoCapableModel, "takes no images"));
        }
        if let Some(obstacle) = self.pools.obstacle(&pool.id) {
            return Err(match obstacle {
                Reason::LinkDown => denied(obstacle, "there is no broker session"),
                _ => denied(obstacle, "it failed too often; its breaker is open"),
            });
        }
        let slot = self
            .policy
            .slot()
            .map_err(|reason| denied(reason, "the limit of calls in flight is reached"))?;
        let body = body(pool);
        let usd = pool.usd_per_call;
        let worst = Spent {
            attempts: pool.attempts,
            charged: pool.attempts,
            bytes_up: body.len() as u64 * u64::from(pool.attempts),
        };
        let permit = slot
            .permit(cost(worst, usd))
            .map_err(|reason| denied(reason, "a budget of the policy is used up"))?;
        Ok(Call {
            shared: self.clone(),
            pool: pool.id.clone(),
            id,
            body,
            permit,
            usd,
        })
    }
}

impl Call {
    /// Makes the call. It is given up when the kill switch forbids it, or when `cancelled` resolves.
    pub async fn make(
        self,
        cancelled: impl Future<Output = EscalationError>,
    ) -> Called<Completion> {
        let Call {
            shared,
            pool,
            id,
            body,
            permit,
            usd,
        } = self;
        let started = shared.clock.now();
        let mut spent = Spent::default();
        let result = tokio::select! {
            biased;
            () = shared.policy.forbidden() => Err(EscalationError::of_pool(
                &pool,
                Reason::KillSwitch,
                "the kill switch was set to local-only",
            )),
            error = cancelled => Err(error),
            result = shared.pools.complete(&pool, id, body, &mut spent) => result,
        };
        match spent.attempts {
            0 => permit.cancel(),
            _ => permit.settle(cost(spent, usd)),
        }
        Called {
            pool,
            result,
            spent,
            cost_usd: usd.map(|usd| usd * f64::from(spent.charged)),
            latency: shared.clock.now() - started,
        }
    }
}

impl Called<Completion> {
    /// Reads the pool's answer, one of `answers` or free text.
    pub fn settle(self, answers: &[String]) -> Called<Settled> {
        let Called {
            pool,
            result,
            spent,
            cost_usd,
            latency,
        } = self;
        let result = result.and_then(|completion| settle(&pool, &completion, answers, latency));
        Called {
            pool,
            result,
            spent,
            cost_usd,
            latency,
        }
    }
}

fn cost(spent: Spent, usd: Option<f64>) -> Cost {
    Cost {
        bytes: spent.bytes_up,
        micro_usd: micro_usd(usd.unwrap_or(0.0)).saturating_mul(spent.charged.into()),
    }
}

#[cfg(test)]
mod tests;
