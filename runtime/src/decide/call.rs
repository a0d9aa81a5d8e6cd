//! One escalation, whoever wants it: what is in its way, what it may cost, and how it ends early.
//!
//! ```text
//! prepare: a capable pool? ─▶ a way to it? ─▶ budgets and a place in flight ─▶ Call
//! make:    attempts … ─▶ completion                    recalled (kill switch, shutdown) ─▶ none, and why
//! ```
//!
//! Everything is looked at before the first byte leaves the box, and the worst case is reserved;
//! what was not used is given back.

use std::time::{Duration, Instant};

use bytes::Bytes;
use firmware_config::agent::Pool;

use crate::decide::budget::{Cost, micro_usd};
use crate::decide::policy::{InForce, Permit};
use crate::decide::router::Reason;
use crate::pool::{Pools, QuestionId, Spent};
use crate::serve::openai::Completion;

/// A pool call, permitted and not made.
#[derive(Debug)]
pub struct Call {
    pools: Pools,
    in_force: InForce,
    pool: String,
    id: QuestionId,
    body: Bytes,
    permit: Permit,
    /// Price of one attempt that is charged for.
    usd: Option<f64>,
}

/// A pool call that ended.
#[derive(Debug)]
pub struct Called {
    /// The pool that was asked.
    pub pool: String,
    /// Its completion, or why there is none.
    pub result: Result<Completion, NoAnswer>,
    /// What it took.
    pub spent: Spent,
    /// What it cost, where the pool has a price.
    pub cost_usd: Option<f64>,
    /// From the first attempt to the end.
    pub latency: Duration,
}

/// Why a pool gave no answer: the code for programs, and words for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoAnswer {
    /// The code.
    pub reason: Reason,
    /// What happened.
    pub detail: String,
}

impl NoAnswer {
    fn new(reason: Reason, detail: impl Into<String>) -> Self {
        NoAnswer {
            reason,
            detail: detail.into(),
        }
    }
}

impl Call {
    /// Prepares to put what `body` makes to `pool`, with `pictures` in it or without.
    ///
    /// # Errors
    /// What is in the way.
    pub fn prepare(
        (pools, in_force): (&Pools, &InForce),
        pool: Option<&Pool>,
        pictures: bool,
        id: QuestionId,
        body: impl FnOnce(&Pool) -> Bytes,
    ) -> Result<Call, NoAnswer> {
        let Some(pool) = pool else {
            return Err(NoAnswer::new(
                Reason::NoCapableModel,
                "no pool is configured that takes this request",
            ));
        };
        if pictures && !pool.images {
            return Err(NoAnswer::new(
                Reason::NoCapableModel,
                format!("pool {} takes no pictures", pool.id),
            ));
        }
        if let Some(obstacle) = pools.obstacle(&pool.id) {
            let why = if obstacle == Reason::LinkDown {
                "there is no broker session"
            } else {
                "it failed too often and rests"
            };
            return Err(NoAnswer::new(obstacle, format!("pool {}: {why}", pool.id)));
        }
        let place = in_force
            .place()
            .map_err(|reason| NoAnswer::new(reason, "as many calls are under way as may be"))?;
        let body = body(pool);
        let usd = pool.usd_per_call;
        let worst = cost(
            Spent {
                attempts: pool.attempts,
                charged: pool.attempts,
                bytes_up: body.len() as u64 * u64::from(pool.attempts),
            },
            usd,
        );
        let permit = place
            .permit(worst)
            .map_err(|reason| NoAnswer::new(reason, "the policy's limit is reached"))?;
        Ok(Call {
            pools: pools.clone(),
            in_force: in_force.clone(),
            pool: pool.id.clone(),
            id,
            body,
            permit,
            usd,
        })
    }

    /// Makes the call. It is given up when the kill switch forbids it, or when `recalled` says so.
    pub async fn make(self, recalled: impl Future<Output = NoAnswer>) -> Called {
        let Call {
            pools,
            in_force,
            pool,
            id,
            body,
            permit,
            usd,
        } = self;
        let started = Instant::now();
        let mut spent = Spent::default();
        let result = tokio::select! {
            biased;
            () = in_force.forbidden() => Err(NoAnswer::new(Reason::KillSwitch, "the kill switch was set to local-only")),
            no_answer = recalled => Err(no_answer),
            result = pools.complete(&pool, id, body, &mut spent) => {
                result.map_err(|error| NoAnswer::new(Reason::from(&error), error.to_string()))
            }
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
            latency: started.elapsed(),
        }
    }
}

fn cost(spent: Spent, usd: Option<f64>) -> Cost {
    Cost {
        bytes: spent.bytes_up,
        micro_usd: micro_usd(usd.unwrap_or(0.0)).saturating_mul(spent.charged.into()),
    }
}
