//! Finds the answer to a request: asks the local model, lets the router judge its answer, asks a
//! pool.

use std::pin::Pin;
use std::time::Instant;

use bytes::Bytes;
use firmware_config::agent::{KillSwitch, Pool, RouteMode, Rule};
use tokio::sync::mpsc;
use uuid::Uuid;
use vlm::answer::Piece;
use vlm::{Answer, VlmError};

use super::routing::{Attempt, Routing, Settled};
use super::target::Target;
use super::{Parts, relay};
use crate::decide::call::Called;
use crate::decide::router::{self, Reason, Route, Terms};
use crate::infer::{self, AskError};
use crate::pool::EscalationError;
use crate::serve::chat::Asked;
use crate::serve::chat::completion;
use crate::serve::openai::{ApiError, Completion};

/// An answer and how it came about.
pub(super) enum Outcome {
    /// The local model's.
    Local { answer: Answer, routing: Routing },
    /// The local model's, being written.
    Writing { writing: Writing, routing: Routing },
    /// A pool's.
    Pool {
        completion: Completion,
        routing: Routing,
    },
}

impl Outcome {
    pub(super) fn routing(&self) -> &Routing {
        match self {
            Outcome::Local { routing, .. }
            | Outcome::Writing { routing, .. }
            | Outcome::Pool { routing, .. } => routing,
        }
    }
}

/// A local answer of which at least the first piece, or the whole, is there. Dropping it stops the
/// model.
pub(super) struct Writing {
    pub(super) first: Option<Piece>,
    pub(super) pieces: mpsc::Receiver<Piece>,
    pub(super) answer: Pin<Box<dyn Future<Output = Result<Answer, AskError>> + Send>>,
}

/// Asks the targets in order until one answers.
///
/// # Errors
/// The last one's failure; at once when the request itself is at fault.
pub(super) async fn settle(
    parts: &Parts,
    asked: &Asked,
    body: &Bytes,
    targets: Vec<Target>,
) -> Result<Outcome, ApiError> {
    let mut decision = Decision {
        parts,
        asked,
        body,
        id: Uuid::now_v7(),
        attempts: Vec::new(),
    };
    let mut last = None;
    for target in targets {
        match decision.ask(&target).await {
            Ok(mut outcome) => {
                if last.is_some() {
                    outcome.routing_mut().reasons.insert(0, Reason::Fallback);
                }
                return Ok(outcome);
            }
            Err(error) if error.status < 500 => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ApiError::server(500, "internal", "nobody was asked")))
}

impl Outcome {
    fn routing_mut(&mut self) -> &mut Routing {
        match self {
            Outcome::Local { routing, .. }
            | Outcome::Writing { routing, .. }
            | Outcome::Pool { routing, .. } => routing,
        }
    }
}

/// One request on its way to an answer.
struct Decision<'a> {
    parts: &'a Parts,
    asked: &'a Asked,
    body: &'a Bytes,
    id: Uuid,
    attempts: Vec<Attempt>,
}

impl Decision<'_> {
    async fn ask(&mut self, target: &Target) -> Result<Outcome, ApiError> {
        let kill_switch = self.parts.escalations.policy.kill_switch();
        match target {
            Target::Pool(_) if kill_switch == KillSwitch::LocalOnly => {
                let message =
                    "the kill switch is on local-only: no pool is asked; ask for auto or local";
                Err(ApiError::server(503, Reason::KillSwitch.as_str(), message))
            }
            Target::Pool(id) => {
                let pool = self.parts.escalations.pools.get(id);
                match self.escalate(pool).await {
                    Ok(completion) => Ok(self.by_pool(completion, id, vec![Reason::Pin], None)),
                    Err(error) => Err(pool_error(error)),
                }
            }
            Target::Local
                if kill_switch != KillSwitch::PoolOnly
                    && self.asked.stream
                    && self.asked.form.is_none() =>
            {
                self.write().await
            }
            Target::Local => self.judge(RouteMode::Local, kill_switch).await,
            Target::Auto => self.judge(RouteMode::Auto, kill_switch).await,
        }
    }

    /// Asks the local model, and a pool if the router says so.
    async fn judge(
        &mut self,
        mode: RouteMode,
        kill_switch: KillSwitch,
    ) -> Result<Outcome, ApiError> {
        let began = Instant::now();
        let answer = self
            .parts
            .local
            .ask(self.asked.request.clone())
            .await
            .map_err(|error| self.local_failed(began, &error))?;
        self.attempts.push(self.local_ok(began));
        // As for a camera's rule.
        let terms = Terms {
            mode,
            threshold: Rule::default_threshold(self.asked.form.is_some()),
        };
        let threshold = (mode == RouteMode::Auto).then_some(terms.threshold);
        let mut route = router::route(answer.confidence.p, terms, kill_switch);
        if route.target == router::Target::Escalate {
            let pool = self
                .parts
                .escalations
                .pools
                .capable(self.asked.pictures > 0);
            match self.escalate(pool).await {
                Ok(completion) => {
                    let id = pool.map(|pool| pool.id.clone()).unwrap_or_default();
                    return Ok(self.by_pool(
                        completion,
                        &id,
                        route.reasons,
                        Some((&answer, threshold)),
                    ));
                }
                Err(error) => route = route.kept_local(error.reason),
            }
        }
        let Route { reasons, .. } = route;
        let routing = self.routing(Settled::Local, reasons, Some((&answer, threshold)));
        Ok(Outcome::Local { answer, routing })
    }

    /// Starts a local answer whose pieces go out as they come.
    async fn write(&mut self) -> Result<Outcome, ApiError> {
        let began = Instant::now();
        let (local, request) = (self.parts.local.clone(), self.asked.request.clone());
        let (sender, mut pieces) = infer::pieces(&request);
        let mut answer: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { local.ask_streaming(request, sender).await });
        // An error before the first piece is still an HTTP status; after it, only an event in the
        // stream.
        let first = tokio::select! {
            biased;
            Some(first) = pieces.recv() => Some(first),
            ended = &mut answer => {
                let ended = ended.map_err(|error| self.local_failed(began, &error))?;
                answer = Box::pin(std::future::ready(Ok(ended)));
                None
            }
        };
        self.attempts.push(self.local_ok(began));
        let routing = self.routing(Settled::Local, vec![Reason::Pin], None);
        Ok(Outcome::Writing {
            writing: Writing {
                first,
                pieces,
                answer,
            },
            routing,
        })
    }

    /// Asks a pool, if there is one, it is well, and the policy allows it.
    async fn escalate(&mut self, pool: Option<&Pool>) -> Result<Completion, EscalationError> {
        let (parts, form, body) = (self.parts, self.asked.form.as_ref(), self.body);
        let call = parts.escalations.prepare(
            pool,
            self.asked.pictures > 0,
            *self.id.as_bytes(),
            |pool| relay::request(body, form, pool),
        )?;
        let Called {
            pool,
            result,
            spent,
            latency,
            ..
        } = call.make(std::future::pending()).await;
        let model = parts
            .escalations
            .pools
            .get(&pool)
            .map_or_else(String::new, |pool| pool.model.clone());
        let replied = result.and_then(|completion| {
            relay::reply(completion, form, &model)
                .map_err(|detail| EscalationError::of_pool(&pool, Reason::InvalidFormat, detail))
        });
        let error = replied.as_ref().err().map(|failed| failed.detail.clone());
        let status = if error.is_none() { "ok" } else { "failed" };
        let latency_ms = latency.as_millis() as u64;
        self.attempts.push(Attempt {
            model: pool,
            status,
            error,
            latency_ms,
            tries: spent.attempts,
            bytes_up: spent.bytes_up,
        });
        replied
    }

    fn by_pool(
        &mut self,
        completion: Completion,
        pool: &str,
        reasons: Vec<Reason>,
        local: Option<(&Answer, Option<f64>)>,
    ) -> Outcome {
        let routing = Routing {
            pool: Some(pool.to_owned()),
            ..self.routing(Settled::Pool, reasons, local)
        };
        Outcome::Pool {
            completion,
            routing,
        }
    }

    fn routing(
        &mut self,
        settled: Settled,
        reasons: Vec<Reason>,
        local: Option<(&Answer, Option<f64>)>,
    ) -> Routing {
        let attempts = std::mem::take(&mut self.attempts);
        Routing {
            decision_id: self.id.to_string(),
            settled,
            reasons,
            pool: None,
            confidence: local.map(|(answer, _)| completion::confidence(answer)),
            threshold: local.and_then(|(_, threshold)| threshold),
            bytes_up: attempts.iter().map(|attempt| attempt.bytes_up).sum(),
            attempts,
        }
    }

    fn local_ok(&self, began: Instant) -> Attempt {
        let model = self.parts.name.clone();
        Attempt {
            model,
            status: "ok",
            error: None,
            latency_ms: began.elapsed().as_millis() as u64,
            tries: 1,
            bytes_up: 0,
        }
    }

    fn local_failed(&mut self, began: Instant, error: &AskError) -> ApiError {
        self.attempts.push(Attempt {
            status: "failed",
            error: Some(error.to_string()),
            ..self.local_ok(began)
        });
        local_error(error)
    }
}

/// What the local model's failure is to a client.
pub(crate) fn local_error(error: &AskError) -> ApiError {
    match error {
        AskError::Busy => ApiError::busy(error.to_string(), 1),
        AskError::Stopped => ApiError::server(503, "stopping", error.to_string()),
        AskError::Model(model) if model.is_bad_request() => {
            let field = if matches!(model, VlmError::Candidates(_)) {
                "response_format"
            } else {
                "messages"
            };
            ApiError::bad_request(field, error.to_string())
        }
        AskError::Model(_) => ApiError::server(500, "model_failed", error.to_string()),
    }
}

/// What a pinned pool's failure is to a client: the status that a client's own retries go by, and
/// the router's code.
fn pool_error(error: EscalationError) -> ApiError {
    let status = match error.reason {
        Reason::Deadline => 504,
        Reason::InvalidFormat | Reason::Fallback => 502,
        _ => 503,
    };
    ApiError::server(status, error.reason.as_str(), error.detail)
}

#[cfg(test)]
mod tests {
    use vlm::{CandidateError, PromptError};

    use super::*;

    #[test]
    fn a_failure_of_the_model_names_the_field_at_fault() {
        for (error, status, param) in [
            (
                AskError::Model(VlmError::Candidates(CandidateError::TooLong {
                    begin: "x".into(),
                    tokens: 80,
                })),
                400,
                Some("response_format"),
            ),
            (
                AskError::Model(VlmError::Prompt(PromptError::TooLong {
                    tokens: 9000,
                    context: 8192,
                })),
                400,
                Some("messages"),
            ),
            (AskError::Model(VlmError::NoEndToken), 500, None),
            (AskError::Busy, 503, None),
            (AskError::Stopped, 503, None),
        ] {
            let told = local_error(&error);
            assert_eq!(
                (told.status, told.param.as_deref()),
                (status, param),
                "{error}"
            );
        }
    }
}
