//! One camera's scene: admitted frames in; local answers, routes, pool calls and events out.
//!
//! ```text
//! frame ─▶ every rule asked in one job ─▶ answer ─▶ route ──▶ span ─▶ events
//!                                                     └▶ pool call ─▶ outcome ─▶ span ─▶ update
//! ```
//! One task for each camera owns its spans, so there is nothing to lock. Pool calls run inside the task, next to the following frames.

use std::sync::Arc;

use bytes::Bytes;
use firmware_config::agent::{self, PoolTransport, RouteMode};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};
use uuid::Uuid;
use vlm::{Answer, Content, Picture, Request, Role, Split, Turn, VlmError};

use crate::budget::{Cost, micro_usd};
use crate::capture::{CameraState, CameraStatus};
use crate::clock::Clock;
use crate::event::{By, Escalation, FrameInfo, Outcome, Place, Settled, Step, Topics};
use crate::handoff;
use crate::infer::Handle;
use crate::metrics::Metrics;
use crate::mqtt::{Link, LinkState};
use crate::policy::{InForce, Permit};
use crate::pool::{PoolError, PoolQuestion, PoolReply, Pools};
use crate::publisher::Post;
use crate::record::{LocalAnswer, Record, Watcher};
use crate::router::{Reason, Route, Target, Terms, route};
use crate::span::{Observation, PoolOutcome, Spans, Subject};

/// An admitted frame.
#[derive(Debug, Clone)]
pub struct Sighting {
    /// Its number, from 1, within the camera.
    pub number: u64,
    /// When it was captured.
    pub time: Timestamp,
    /// The file it came from, for sources that have one.
    pub name: Option<String>,
    /// What is seen.
    pub picture: Picture,
    /// The same, as it is published and sent to pools.
    pub jpeg: Bytes,
    /// Hex sha256 of `jpeg`.
    pub sha256: String,
}

/// What all scenes share.
#[derive(Clone)]
pub struct Surroundings {
    /// `[node] id`.
    pub node: String,
    /// The model.
    pub model: Handle,
    /// The pools.
    pub pools: Pools,
    /// The broker, if one is configured.
    pub link: Option<Link>,
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
}

/// One camera with its rules.
pub struct Scene {
    cam: String,
    rules: Vec<RuleSpans>,
    around: Surroundings,
    calls: FuturesUnordered<BoxFuture<'static, Called>>,
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
    answers: mpsc::Receiver<Result<Answer, VlmError>>,
    next_rule: usize,
}

/// A pool call that ended.
struct Called {
    rule: usize,
    frame: u64,
    event: String,
    pool: String,
    result: Result<PoolReply, PoolError>,
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
            RuleSpans { rule: rule.clone(), spans: Spans::new(subject) }
        });
        Scene {
            cam: camera.id.clone(),
            rules: rules.collect(),
            around,
            calls: FuturesUnordered::new(),
            looking: None,
            status: CameraStatus::opening(),
        }
    }

    /// Looks at frames until their sender is gone; finishes what was begun, until `deadline` if one is set; ends its events.
    pub async fn run(
        mut self,
        mut frames: handoff::Receiver<Sighting>,
        mut status: watch::Receiver<CameraStatus>,
        mut deadline: watch::Receiver<Option<Instant>>,
    ) {
        let mut more = true;
        while more || self.looking.is_some() || !self.calls.is_empty() {
            let cut = *deadline.borrow_and_update();
            tokio::select! {
                sighting = frames.recv(), if more && self.looking.is_none() => match sighting {
                    Some(sighting) => self.look(sighting).await,
                    None => more = false,
                },
                answer = next_answer(&mut self.looking), if self.looking.is_some() => self.answered(answer).await,
                Some(called) = self.calls.next() => self.called(called).await,
                Ok(()) = status.changed() => self.camera_changed(&mut status).await,
                Ok(()) = deadline.changed() => {}
                () = sleep_until(cut.unwrap_or_else(Instant::now)), if cut.is_some() => {
                    warn!(cam = self.cam, "out of time with {} pool calls unanswered", self.calls.len());
                    break;
                }
            }
        }
        // Its last words come together with its last frame, in either order.
        self.camera_changed(&mut status).await;
        self.end_events().await;
    }

    async fn look(&mut self, sighting: Sighting) {
        if self.rules.is_empty() {
            // Told at the start; the frame is looked at by nobody.
            return self.around.metrics.frames_answered.count();
        }
        let requests = self.rules.iter().map(|RuleSpans { rule, .. }| request(rule, &sighting.picture)).collect();
        let answers = self.around.model.ask_each(requests).await;
        self.around.metrics.frames_answered.count();
        self.looking = Some(Looking { sighting, answers, next_rule: 0 });
    }

    async fn answered(&mut self, answer: Option<Result<Answer, VlmError>>) {
        let Some(looking) = self.looking.as_mut() else { return };
        let index = looking.next_rule;
        looking.next_rule += 1;
        if looking.next_rule >= self.rules.len() || answer.is_none() {
            let Some(Looking { sighting, .. }) = self.looking.take() else { return };
            self.settle(index, answer, &sighting).await;
        } else {
            let sighting = looking.sighting.clone();
            self.settle(index, answer, &sighting).await;
        }
    }

    async fn settle(&mut self, index: usize, answer: Option<Result<Answer, VlmError>>, sighting: &Sighting) {
        let metrics = Arc::clone(&self.around.metrics);
        let answer = match answer {
            Some(Ok(answer)) => self.settled(&answer),
            Some(Err(error)) => {
                metrics.answers_failed.count();
                return warn!(cam = self.cam, rule = self.rules[index].rule.id, "no local answer: {error}");
            }
            None => return metrics.answers_failed.count(),
        };
        metrics.answers.count();
        let rule = self.rules[index].rule.clone();
        let terms = Terms { mode: rule.route, threshold: rule.threshold };
        let wish = route(answer.confidence.unwrap_or(0.0), terms, self.around.in_force.kill_switch());
        let (route, call) = match wish.target {
            Target::Local => (wish, None),
            Target::Escalate => match self.prepare_call(&rule, sighting) {
                Ok(call) => (wish, Some(call)),
                Err(obstacle) => (wish.kept_local(obstacle), None),
            },
        };
        match route.target {
            Target::Local => metrics.answers_local.count(),
            Target::Escalate => metrics.answers_escalated.count(),
        }
        let observation = Observation { answer: answer.clone(), frame: frame_info(sighting), escalation: self.escalation(&rule, &route) };
        let (drafts, event) = self.rules[index].spans.observe(observation, || Uuid::now_v7().to_string());
        if let Some(call) = call {
            self.calls.push(call.start(self.around.pools.clone(), index, event.clone(), sighting.number));
        }
        self.around.watcher.see(Record::Answer(Box::new(LocalAnswer {
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
            self.around.post(Post::Snapshot { cam: self.cam.clone(), jpeg: sighting.jpeg.clone() }).await;
        }
        for draft in drafts {
            self.around.post(Post::Event { cam: self.cam.clone(), draft: Box::new(draft) }).await;
        }
    }

    /// Everything an escalation needs, or what is in its way.
    fn prepare_call(&self, rule: &agent::Rule, sighting: &Sighting) -> Result<Call, Reason> {
        let around = &self.around;
        let pool = self.pool_of(rule).filter(|pool| pool.images).ok_or(Reason::NoCapableModel)?;
        let down = || !around.link.as_ref().is_some_and(|link| link.state() == LinkState::Up);
        if pool.transport == PoolTransport::Mqtt && down() {
            return Err(Reason::LinkDown);
        }
        if around.pools.breaker_open(&pool.id) {
            return Err(Reason::BreakerOpen);
        }
        let question = PoolQuestion {
            id: Uuid::now_v7().into_bytes(),
            question: rule.question.clone(),
            answers: rule.answers.clone(),
            jpeg: Some(sighting.jpeg.clone()),
            max_tokens: rule.max_new_tokens,
        };
        let bytes = around.pools.request_bytes(&pool.id, &question).saturating_mul(pool.attempts.into());
        let micro_usd = micro_usd(pool.usd_per_call.unwrap_or(0.0));
        let permit = around.in_force.permit(Cost { bytes, micro_usd })?;
        Ok(Call { pool: pool.id.clone(), question, permit, micro_usd })
    }

    fn pool_of(&self, rule: &agent::Rule) -> Option<&agent::Pool> {
        match &rule.pool {
            Some(id) => self.around.pools.get(id),
            None => self.around.pools.first(),
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
        Escalation { outcome, reasons: route.reasons.clone(), threshold: rule.threshold, attempts: 0, bytes_up: 0, deadline }
    }

    async fn called(&mut self, called: Called) {
        let Called { rule: index, frame, event, pool, result } = called;
        let metrics = &self.around.metrics;
        let (attempts, bytes_up) = spent(&result);
        metrics.bytes_up.add(bytes_up);
        let result = match result {
            Ok(reply) => {
                metrics.pool_answered.count();
                Ok(Settled::by_pool(&pool, &reply))
            }
            Err(error) => {
                metrics.pool_failed.count();
                info!(cam = self.cam, rule = self.rules[index].rule.id, "the local answer stands: {error}");
                Err(Reason::from(&error))
            }
        };
        self.around.watcher.see(Record::Outcome {
            cam: self.cam.clone(),
            frame,
            rule: self.rules[index].rule.id.clone(),
            result: result.clone().map(Box::new),
            attempts,
            bytes_up,
        });
        if let Some(draft) = self.rules[index].spans.pool_outcome(&event, PoolOutcome { result, attempts, bytes_up }) {
            self.around.post(Post::Event { cam: self.cam.clone(), draft: Box::new(draft) }).await;
        }
    }

    async fn camera_changed(&mut self, status: &mut watch::Receiver<CameraStatus>) {
        let status = status.borrow_and_update().clone();
        if self.status == status {
            return;
        }
        let CameraStatus { state, reason, since } = &status;
        let json = serde_json::json!({ "state": state.as_str(), "reason": reason, "since": format!("{since:.3}") });
        let topic = Topics::new(&self.around.node).camera_status(&self.cam);
        self.around.post(Post::Standing { topic, payload: json.to_string().into() }).await;
        self.around.watcher.see(Record::Camera { cam: self.cam.clone(), state: state.as_str(), reason: reason.clone() });
        self.status = status.clone();
        // A camera that shows nothing proves nothing: its events end, and their states are not known any more.
        if matches!(state, CameraState::Stalled | CameraState::Offline) && self.end_events().await {
            for RuleSpans { rule, .. } in &self.rules {
                self.around.post(Post::Unknown { cam: self.cam.clone(), rule: rule.id.clone() }).await;
            }
        }
    }

    /// Ends all open events; whether there were any.
    async fn end_events(&mut self) -> bool {
        let ends: Vec<_> = self.rules.iter_mut().filter_map(|RuleSpans { spans, .. }| spans.end()).collect();
        let any = !ends.is_empty();
        for draft in ends {
            self.around.post(Post::Event { cam: self.cam.clone(), draft: Box::new(draft) }).await;
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

/// One pool call, permitted and not started.
struct Call {
    pool: String,
    question: PoolQuestion,
    permit: Permit,
    micro_usd: u64,
}

impl Call {
    fn start(self, pools: Pools, rule: usize, event: String, frame: u64) -> BoxFuture<'static, Called> {
        let Call { pool, question, permit, micro_usd } = self;
        async move {
            let result = pools.ask(&pool, &question).await;
            let (_, bytes) = spent(&result);
            permit.settle(Cost { bytes, micro_usd: if result.is_ok() { micro_usd } else { 0 } });
            Called { rule, frame, event, pool, result }
        }
        .boxed()
    }
}

/// Attempts made and request bytes sent.
fn spent(result: &Result<PoolReply, PoolError>) -> (u32, u64) {
    match result {
        Ok(reply) => (reply.attempts, reply.bytes_up),
        Err(error) => error.spent(),
    }
}

async fn next_answer(looking: &mut Option<Looking>) -> Option<Result<Answer, VlmError>> {
    looking.as_mut()?.answers.recv().await
}

fn request(rule: &agent::Rule, picture: &Picture) -> Request {
    Request {
        // Picture first: the prefix up to it is the same for every rule, and computed once.
        turns: vec![Turn { role: Role::User, content: vec![Content::Picture(picture.clone()), Content::Text(rule.question.clone())] }],
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
