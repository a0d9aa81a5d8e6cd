//! Answers a request: asks the local model, lets the router decide about its answer, and asks a
//! pool.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::{KillSwitch, Pool, RouteMode, Rule};
use tokio::sync::mpsc;
use uuid::Uuid;
use vlm::Answer;
use vlm::answer::Piece;

use super::model_choice::ModelChoice;
use super::routing::{AttemptStatus, ModelAttempt, Routing};
use super::{Parts, relay};
use crate::decide::call::Called;
use crate::decide::router::{self, Route, RouteSettings};
use crate::infer::{self, AskError};
use crate::openai::{ApiError, Completion};
use crate::pool::EscalationError;
use crate::reason::Reason;
use crate::serve::chat::completion;
use crate::serve::chat::{ChatQuestion, local_error};
use crate::settled::AnswerSource;

/// An answer and its route.
pub(super) enum RoutedAnswer {
    /// The local model's.
    Local { answer: Answer, routing: Routing },
    /// The local model's, while it is generated.
    Streaming {
        stream: LocalStream,
        routing: Routing,
    },
    /// A pool's.
    Pool {
        completion: Completion,
        routing: Routing,
    },
}

impl RoutedAnswer {
    pub(super) fn routing(&self) -> &Routing {
        match self {
            RoutedAnswer::Local { routing, .. }
            | RoutedAnswer::Streaming { routing, .. }
            | RoutedAnswer::Pool { routing, .. } => routing,
        }
    }

    fn routing_mut(&mut self) -> &mut Routing {
        match self {
            RoutedAnswer::Local { routing, .. }
            | RoutedAnswer::Streaming { routing, .. }
            | RoutedAnswer::Pool { routing, .. } => routing,
        }
    }
}

/// A local answer of which at least the first piece, or the whole, is known. Dropping it stops the
/// model.
pub(super) struct LocalStream {
    pub(super) first: Option<Piece>,
    pub(super) pieces: mpsc::Receiver<Piece>,
    pub(super) answer: Pin<Box<dyn Future<Output = Result<Answer, AskError>> + Send>>,
}

/// Asks the models in order until one answers.
///
/// # Errors
/// The failure of the last one; at once when the request itself is at fault.
pub(super) async fn settle(
    parts: &Parts,
    question: &ChatQuestion,
    body: &Bytes,
    choices: Vec<ModelChoice>,
) -> Result<RoutedAnswer, ApiError> {
    let mut pending = PendingAnswer {
        parts,
        question,
        body,
        id: parts.environment.uuid(),
        attempts: Vec::new(),
    };
    let mut last = None;
    for choice in choices {
        match pending.ask(&choice).await {
            Ok(mut answer) => {
                if last.is_some() {
                    answer.routing_mut().reasons.insert(0, Reason::Fallback);
                }
                return Ok(answer);
            }
            Err(error) if error.status < 500 => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| ApiError::server(500, "internal", "no model was asked")))
}

/// A request that is being answered.
struct PendingAnswer<'a> {
    parts: &'a Parts,
    question: &'a ChatQuestion,
    body: &'a Bytes,
    id: Uuid,
    attempts: Vec<ModelAttempt>,
}

impl PendingAnswer<'_> {
    async fn ask(&mut self, choice: &ModelChoice) -> Result<RoutedAnswer, ApiError> {
        let kill_switch = self.parts.escalations.policy.kill_switch();
        match choice {
            ModelChoice::Pool(_) if kill_switch == KillSwitch::LocalOnly => {
                let message =
                    "the kill switch is local-only: no pool is asked; set model to auto or local";
                Err(ApiError::server(503, Reason::KillSwitch.as_str(), message))
            }
            ModelChoice::Pool(id) => {
                let pool = self.parts.escalations.pools.get(id);
                match self.escalate(pool).await {
                    Ok(completion) => Ok(self.by_pool(completion, id, vec![Reason::Pin], None)),
                    Err(error) => Err(pool_error(error)),
                }
            }
            ModelChoice::Local
                if kill_switch != KillSwitch::PoolOnly
                    && self.question.stream
                    && self.question.form.is_none() =>
            {
                self.stream_local().await
            }
            ModelChoice::Local => self.ask_local(RouteMode::Local, kill_switch).await,
            ModelChoice::Auto => self.ask_local(RouteMode::Auto, kill_switch).await,
        }
    }

    /// Asks the local model, and a pool if the router escalates.
    async fn ask_local(
        &mut self,
        mode: RouteMode,
        kill_switch: KillSwitch,
    ) -> Result<RoutedAnswer, ApiError> {
        let began = self.parts.environment.clock.now();
        let answer = self
            .parts
            .local
            .ask(self.question.request.clone())
            .await
            .map_err(|error| self.local_failed(began, &error))?;
        self.attempts.push(self.local_ok(began));
        // As for a camera's rule.
        let settings = RouteSettings {
            mode,
            threshold: Rule::default_threshold(self.question.form.is_some()),
        };
        let threshold = (mode == RouteMode::Auto).then_some(settings.threshold);
        let mut route = router::route(answer.confidence.p, settings, kill_switch);
        if route.target == router::Target::Escalate {
            let pool = self
                .parts
                .escalations
                .pools
                .capable(self.question.images > 0);
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
        let routing = self.routing(AnswerSource::Local, reasons, Some((&answer, threshold)));
        Ok(RoutedAnswer::Local { answer, routing })
    }

    /// Starts a local answer that is sent piece by piece.
    async fn stream_local(&mut self) -> Result<RoutedAnswer, ApiError> {
        let began = self.parts.environment.clock.now();
        let (local, request) = (self.parts.local.clone(), self.question.request.clone());
        let (sender, mut pieces) = infer::pieces(&request);
        let mut answer: Pin<Box<dyn Future<Output = _> + Send>> =
            Box::pin(async move { local.ask_streaming(request, sender).await });
        // An error before the first piece becomes an HTTP status; after it, an event of the stream.
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
        let routing = self.routing(AnswerSource::Local, vec![Reason::Pin], None);
        Ok(RoutedAnswer::Streaming {
            stream: LocalStream {
                first,
                pieces,
                answer,
            },
            routing,
        })
    }

    /// Asks a pool, if there is one, its breaker is closed, and the policy allows it.
    async fn escalate(&mut self, pool: Option<&Pool>) -> Result<Completion, EscalationError> {
        let (parts, form, body) = (self.parts, self.question.form.as_ref(), self.body);
        let call = parts.escalations.prepare(
            pool,
            self.question.images > 0,
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
        let outcome = replied.as_ref().map(|_| ()).map_err(|failed| failed.reason);
        parts.metrics.routing.pool_call(&pool, outcome, latency);
        let error = replied.as_ref().err().map(|failed| failed.detail.clone());
        let status = match error {
            None => AttemptStatus::Ok,
            Some(_) => AttemptStatus::Failed,
        };
        let latency_ms = latency.as_millis() as u64;
        self.attempts.push(ModelAttempt {
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
    ) -> RoutedAnswer {
        let routing = Routing {
            pool: Some(pool.to_owned()),
            ..self.routing(AnswerSource::Pool, reasons, local)
        };
        RoutedAnswer::Pool {
            completion,
            routing,
        }
    }

    fn routing(
        &mut self,
        source: AnswerSource,
        reasons: Vec<Reason>,
        local: Option<(&Answer, Option<f64>)>,
    ) -> Routing {
        let attempts = std::mem::take(&mut self.attempts);
        Routing {
            decision_id: self.id.to_string(),
            source,
            reasons,
            pool: None,
            confidence: local.map(|(answer, _)| completion::confidence(answer)),
            threshold: local.and_then(|(_, threshold)| threshold),
            bytes_up: attempts.iter().map(|attempt| attempt.bytes_up).sum(),
            attempts,
        }
    }

    fn local_ok(&self, began: Duration) -> ModelAttempt {
        let model = self.parts.name.clone();
        ModelAttempt {
            model,
            status: AttemptStatus::Ok,
            error: None,
            latency_ms: (self.parts.environment.clock.now() - began).as_millis() as u64,
            tries: 1,
            bytes_up: 0,
        }
    }

    fn local_failed(&mut self, began: Duration, error: &AskError) -> ApiError {
        self.attempts.push(ModelAttempt {
            status: AttemptStatus::Failed,
            error: Some(error.to_string()),
            ..self.local_ok(began)
        });
        local_error(error)
    }
}

/// The failure of a pool that the request names, as a client sees it: a status that its retries
/// understand, and the router's reason code.
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

    use vlm::VlmError;

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
            let api_error = local_error(&error);
            assert_eq!(
                (api_error.status, api_error.param.as_deref()),
                (status, param),
                "{error}"
            );
        }
    }
}
