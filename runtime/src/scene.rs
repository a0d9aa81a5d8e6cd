//! One camera's scene: admitted frames in; local answers, routes, pool calls and events out.
//!
//! ```text
//! frame ─▶ every rule asked in one job ─▶ answer ─▶ route ──▶ span ─▶ events
//!                                                     └▶ pool call ─▶ outcome ─▶ span ─▶ update
//! ```
//! One task for each camera owns its spans, so there is nothing to lock. Pool calls run inside the
//! task, next to the following frames.

use std::sync::Arc;

use bytes::Bytes;
use firmware_config::agent::{self, RouteMode};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use uuid::Uuid;
use vlm::{Answer, Content, Picture, Request, Role, Split, Turn, VlmError};

use crate::capture::admitted::Sighting;
use crate::capture::handoff;
use crate::capture::{CameraState, CameraStatus};
use crate::decide::call::{Call, Called, NoAnswer};
use crate::decide::policy::InForce;
use crate::decide::router::{Reason, Route, Target, Terms, route};
use crate::deliver::event::{By, Escalation, FrameInfo, Outcome, Place, Settled, State, Step};
use crate::deliver::publisher::{Kind, Post};
use crate::deliver::span::{Observation, PoolOutcome, Spans, Subject};
use crate::deliver::topics::Topics;
use crate::environment::clock::Clock;
use crate::infer::{Answers, Handle};
use crate::metrics::Metrics;
use crate::observe::{LocalAnswer, Record, Watcher};
use crate::pool::{PoolQuestion, PoolReply, Pools, question};

/// What all scenes share.
#[derive(Clone)]
pub struct Surroundings {
    /// `[node] id`.
    pub node: String,
    /// The model.
    pub model: Handle,
    /// The pools.
    pub pools: Pools,
    /// Kill switch and budgets.
    pub in_force: InForce,
    /// To the publisher.
    pub posts: mpsc::Sender<Post>,
    /// The time.
    pub clock: Arc<Clock>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who watches live.
    pub watcher: Arc<dyn Watcher>,
}

impl Surroundings {
    async fn post(&self, post: Post) {
        // The publisher takes posts until the last scene is gone.
        let _ = self.posts.send(post).await;
    }

    async fn tell(&self, topic: String, payload: Bytes, kind: Kind) {
        self.post(Post::Standing {
            topic,
            payload,
            kind,
        })
        .await;
    }
}

/// One camera with its rules.
pub struct Scene {
    cam: String,
    topics: Topics,
    rules: Vec<RuleSpans>,
    around: Surroundings,
    calls: FuturesUnordered<BoxFuture<'static, (Asked, Called)>>,
    looking: Option<Looking>,
    /// The camera's state, as last told.
    status: CameraStatus,
}

struct RuleSpans {
    rule: agent::Rule,
    spans: Spans,
}

/// A frame whose rules are being answered, in their order.
struct Looking {
    sighting: Sighting,
    answers: Answers,
    next_rule: usize,
}

/// What a pool was asked, and on whose behalf.
struct Asked {
    rule: usize,
    event: String,
    observation: Observation,
}

impl Scene {
    /// A scene that has seen nothing.
    pub fn new(camera: &agent::Camera, around: Surroundings) -> Self {
        let rules = camera.rules.iter().map(|rule| {
            let subject = Subject {
                rule: rule.id.clone(),
                question: rule.question.clone(),
                alert: rule.alert.clone(),
                must_escalate: rule.route == RouteMode::MustEscalate,
            };
            RuleSpans {
                rule: rule.clone(),
                spans: Spans::new(subject),
            }
        });
        Scene {
            cam: camera.id.clone(),
            topics: Topics::new(&around.node),
            rules: rules.collect(),
            around,
            calls: FuturesUnordered::new(),
            looking: None,
            status: CameraStatus::opening(),
        }
    }

    /// Looks at frames until their sender is gone; finishes what was begun, until `deadline` if one
    /// is set; ends its events.
    pub async fn run(
        mut self,
        mut frames: handoff::Receiver<Sighting>,
        mut status: watch::Receiver<CameraStatus>,
        mut deadline: watch::Receiver<Option<Instant>>,
    ) {
        let mut more = true;
        while more || self.looking.is_some() || !self.calls.is_empty() {
            tokio::select! {
                sighting = frames.recv(), if more && self.looking.is_none() => match sighting {
                    Some(sighting) => {
                        // What the camera did before this frame comes before what is seen on it.
                        self.camera_changed(&mut status).await;
                        self.look(sighting);
                    }
                    None => more = false,
                },
                answer = next_answer(&mut self.looking), if self.looking.is_some() => {
                    self.answered(answer, &deadline).await;
                    // The frame may have been on its way when the camera went.
                    self.camera_changed(&mut status).await;
                    if self.is_away() {
                        self.lose_sight().await;
                    }
                }
                Some((asked, called)) = self.calls.next() => self.called(asked, called).await,
                Ok(()) = status.changed() => self.camera_changed(&mut status).await,
                () = passed(&mut deadline), if more || self.looking.is_some() => {
                    // Calls under way end by themselves now, each with its outcome.
                    warn!(cam = self.cam, "out of time");
                    (more, self.looking) = (false, None);
                }
            }
        }
        // Its last words come together with its last frame, in either order.
        self.camera_changed(&mut status).await;
        self.end_events().await;
    }

    fn look(&mut self, sighting: Sighting) {
        self.around.metrics.frames_answered.count();
        // Without rules, which is told at the start, the frame is looked at by nobody.
        if !self.rules.is_empty() {
            let requests = self
                .rules
                .iter()
                .map(|RuleSpans { rule, .. }| request(rule, &sighting.picture))
                .collect();
            self.looking = Some(Looking {
                sighting,
                answers: self.around.model.ask_each(requests),
                next_rule: 0,
            });
        }
    }

    async fn answered(
        &mut self,
        answer: Option<Result<Answer, VlmError>>,
        deadline: &watch::Receiver<Option<Instant>>,
    ) {
        let Some(mut looking) = self.looking.take() else {
            return;
        };
        let rule = looking.next_rule;
        looking.next_rule += 1;
        let more = answer.is_some() && looking.next_rule < self.rules.len();
        self.settle(rule, answer, &looking.sighting, deadline).await;
        self.looking = more.then_some(looking);
    }

    async fn settle(
        &mut self,
        index: usize,
        answer: Option<Result<Answer, VlmError>>,
        sighting: &Sighting,
        deadline: &watch::Receiver<Option<Instant>>,
    ) {
        let metrics = Arc::clone(&self.around.metrics);
        let answer = match answer {
            Some(Ok(answer)) => self.settled(&answer),
            Some(Err(error)) => {
                metrics.answers_failed.count();
                return warn!(
                    cam = self.cam,
                    rule = self.rules[index].rule.id,
                    "no local answer: {error}"
                );
            }
            None => return metrics.answers_failed.count(),
        };
        metrics.answers.count();
        let rule = self.rules[index].rule.clone();
        let terms = Terms {
            mode: rule.route,
            threshold: rule.threshold,
        };
        let wish = route(
            answer.confidence.unwrap_or(0.0),
            terms,
            self.around.in_force.kill_switch(),
        );
        let (route, call) = match wish.target {
            Target::Local => (wish, None),
            Target::Escalate => match self.prepare_call(&rule, sighting) {
                Ok(call) => (wish, Some(call)),
                Err(obstacle) => (wish.kept_local(obstacle.reason), None),
            },
        };
        match route.target {
            Target::Local => metrics.answers_local.count(),
            Target::Escalate => metrics.answers_escalated.count(),
        }
        let observation = Observation {
            number: sighting.number,
            answer: answer.clone(),
            frame: frame_info(sighting),
            escalation: self.escalation(&rule, &route),
        };
        let (drafts, event) = self.rules[index]
            .spans
            .observe(observation.clone(), || Uuid::now_v7().to_string());
        if let Some(call) = call {
            let (asked, mut deadline) = (
                Asked {
                    rule: index,
                    event: event.clone(),
                    observation,
                },
                deadline.clone(),
            );
            let recalled = async move {
                passed(&mut deadline).await;
                NoAnswer {
                    reason: Reason::Deadline,
                    detail: "the agent stops".to_owned(),
                }
            };
            self.calls
                .push(call.make(recalled).map(|called| (asked, called)).boxed());
        }
        self.around
            .watcher
            .see(Record::Answer(Box::new(LocalAnswer {
                cam: self.cam.clone(),
                frame: sighting.number,
                name: sighting.name.clone(),
                jpeg: sighting.jpeg.clone(),
                rule: rule.id,
                question: rule.question,
                answers: rule.answers,
                answer,
                route,
                event,
            })));
        if drafts.iter().any(|draft| draft.step == Step::New) {
            self.around
                .tell(
                    self.topics.snapshot(&self.cam),
                    sighting.jpeg.clone(),
                    Kind::Snapshot,
                )
                .await;
        }
        for draft in drafts {
            self.around
                .post(Post::Event {
                    cam: self.cam.clone(),
                    draft: Box::new(draft),
                })
                .await;
        }
    }

    /// Everything an escalation needs, or what is in its way.
    fn prepare_call(&self, rule: &agent::Rule, sighting: &Sighting) -> Result<Call, NoAnswer> {
        let around = &self.around;
        let id = Uuid::now_v7().into_bytes();
        Call::prepare(
            (&around.pools, &around.in_force),
            self.pool_of(rule),
            true,
            id,
            |pool| {
                let question = PoolQuestion {
                    id,
                    question: rule.question.clone(),
                    answers: rule.answers.clone(),
                    jpeg: Some(sighting.jpeg.clone()),
                    max_tokens: rule.max_new_tokens,
                };
                question::body(&question, pool)
            },
        )
    }

    fn pool_of(&self, rule: &agent::Rule) -> Option<&agent::Pool> {
        match &rule.pool {
            Some(id) => self.around.pools.get(id),
            None => self.around.pools.capable(true),
        }
    }

    fn escalation(&self, rule: &agent::Rule, route: &Route) -> Escalation {
        let outcome = match route.target {
            Target::Escalate => Outcome::Pending,
            // Behind the deciding reason stands a wish that was not granted.
            Target::Local if route.reasons.len() > 1 => Outcome::Denied,
            Target::Local => Outcome::None,
        };
        let deadline = self.pool_of(rule).map(|pool| pool.deadline);
        Escalation {
            outcome,
            reasons: route.reasons.clone(),
            threshold: rule.threshold,
            attempts: 0,
            bytes_up: 0,
            cost_usd: None,
            deadline,
        }
    }

    async fn called(&mut self, asked: Asked, called: Called) {
        let Asked {
            rule: index,
            event,
            observation,
        } = asked;
        let Called {
            pool,
            result,
            spent,
            cost_usd,
            latency,
        } = called;
        let RuleSpans { rule, spans } = &mut self.rules[index];
        let metrics = &self.around.metrics;
        metrics.bytes_up.add(spent.bytes_up);
        let read = |completion| {
            PoolReply::read(&pool, &completion, &rule.answers, latency, spent).map_err(|error| {
                NoAnswer {
                    reason: Reason::from(&error),
                    detail: error.to_string(),
                }
            })
        };
        let result = match result.and_then(read) {
            Ok(reply) => {
                metrics.pool_answered.count();
                Ok(Settled::from_pool(&pool, &reply))
            }
            Err(NoAnswer { reason, detail }) => {
                metrics.pool_failed.count();
                info!(
                    cam = self.cam,
                    rule = rule.id,
                    "the local answer stands: {detail}"
                );
                Err(reason)
            }
        };
        self.around.watcher.see(Record::Outcome {
            cam: self.cam.clone(),
            frame: observation.number,
            rule: rule.id.clone(),
            result: result.clone().map(Box::new),
            attempts: spent.attempts,
            bytes_up: spent.bytes_up,
        });
        let outcome = PoolOutcome {
            asked: observation,
            result,
            attempts: spent.attempts,
            bytes_up: spent.bytes_up,
            cost_usd,
        };
        if let Some(draft) = spans.pool_outcome(&event, outcome) {
            self.around
                .post(Post::Event {
                    cam: self.cam.clone(),
                    draft: Box::new(draft),
                })
                .await;
        }
    }

    async fn camera_changed(&mut self, status: &mut watch::Receiver<CameraStatus>) {
        let status = status.borrow_and_update().clone();
        if self.status == status {
            return;
        }
        let CameraStatus {
            state,
            reason,
            since,
            losses,
        } = &status;
        let json = serde_json::json!({ "state": state.as_str(), "reason": reason, "since": format!("{since:.3}") });
        self.around
            .tell(
                self.topics.camera_status(&self.cam),
                json.to_string().into(),
                Kind::Json,
            )
            .await;
        self.around.watcher.see(Record::Camera {
            cam: self.cam.clone(),
            state: state.as_str(),
            reason: reason.clone(),
        });
        // It may have gone and come back since it was last looked at.
        let lost = *losses > self.status.losses;
        self.status = status;
        if lost || self.is_away() {
            self.lose_sight().await;
        }
    }

    fn is_away(&self) -> bool {
        matches!(
            self.status.state,
            CameraState::Stalled | CameraState::Offline
        )
    }

    /// A camera that shows nothing proves nothing: its events end, and their states are not known
    /// any more.
    async fn lose_sight(&mut self) {
        if self.end_events().await {
            for RuleSpans { rule, .. } in &self.rules {
                self.around
                    .tell(
                        self.topics.rule_state(&self.cam, &rule.id),
                        State::Unknown.as_str().into(),
                        Kind::Word,
                    )
                    .await;
            }
        }
    }

    /// Ends all open events; whether there were any.
    async fn end_events(&mut self) -> bool {
        let ends: Vec<_> = self
            .rules
            .iter_mut()
            .filter_map(|RuleSpans { spans, .. }| spans.end())
            .collect();
        let any = !ends.is_empty();
        for draft in ends {
            self.around
                .post(Post::Event {
                    cam: self.cam.clone(),
                    draft: Box::new(draft),
                })
                .await;
        }
        any
    }

    fn settled(&self, answer: &Answer) -> Settled {
        let identity = self.around.model.identity();
        Settled {
            text: answer.text.trim().to_owned(),
            confidence: Some(answer.confidence.p),
            confidence_kind: answer.confidence.source.as_str(),
            by: By {
                place: Place::Local,
                pool: None,
                model: identity.name.clone(),
                model_sha256: Some(identity.sha256.clone()),
                backend: Some(identity.backend.clone()),
                ep: identity.execution_provider.clone(),
                total: answer.timings.total,
                prefill: Some(answer.timings.prefill),
                decode: Some(answer.timings.decode),
                tokens_out: Some(answer.tokens.len() as u64),
            },
        }
    }
}

/// Resolves when `deadline` is set and has passed.
async fn passed(deadline: &mut watch::Receiver<Option<Instant>>) {
    match deadline.wait_for(Option::is_some).await.map(|at| *at) {
        Ok(Some(at)) => sleep_until(at).await,
        // Nobody will set one any more.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

async fn next_answer(looking: &mut Option<Looking>) -> Option<Result<Answer, VlmError>> {
    looking.as_mut()?.answers.next().await
}

fn request(rule: &agent::Rule, picture: &Picture) -> Request {
    Request {
        // Picture first: the prefix up to it is the same for every rule, and computed once.
        turns: vec![Turn {
            role: Role::User,
            content: vec![
                Content::Picture(picture.clone()),
                Content::Text(rule.question.clone()),
            ],
        }],
        candidates: rule.answers.clone(),
        split: if rule.split { Split::On } else { Split::Off },
        max_new_tokens: rule.max_new_tokens,
        top_logprobs: 0,
        trace: false,
    }
}

fn frame_info(sighting: &Sighting) -> FrameInfo {
    FrameInfo {
        time: sighting.time,
        w: sighting.picture.width(),
        h: sighting.picture.height(),
        sha256: sighting.sha256.clone(),
        jpeg_bytes: sighting.jpeg.len(),
    }
}

#[cfg(test)]
mod tests;
