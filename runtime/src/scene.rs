//! One camera's scene: admitted frames in; local answers, routes, pool calls and events out.
//!
//! [`SceneCore`] decides; the task here carries its effects out and hands it what came of them. One
//! task for each camera owns its spans, so there is nothing to lock. Pool calls run inside the
//! task, beside the following frames.

pub mod core;
mod request;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use firmware_config::agent::{AgentConfig, Camera};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{oneshot, watch};
use vlm::{Answer, VlmError};

use crate::capture::admitted::AdmittedFrame;
use crate::capture::handoff;
use crate::capture::status::CameraStatus;
use crate::decide::call::{Called, Escalations};
use crate::deliver::post::{Post, Posts};
use crate::infer::{Answers, Handle};
use crate::observe::Observer;
use crate::pool::{EscalationError, PoolQuestion, question};
use crate::random::Ids;
use crate::settled::Settled;
use core::{CallId, Effect, Input, SceneCore};

/// What all scenes of an agent share.
#[derive(Clone)]
pub struct SceneContext {
    /// `[node] id`.
    pub node: String,
    /// The local model.
    pub model: Handle,
    /// Pools, policy and the clock.
    pub escalations: Escalations,
    /// To the publisher.
    pub posts: Posts,
    /// Everything that happens is shown to it.
    pub observer: Arc<dyn Observer>,
}

/// One camera with its rules, at work.
pub struct Scene {
    core: SceneCore,
    context: SceneContext,
    answers: Option<Answers>,
    calls: FuturesUnordered<BoxFuture<'static, (CallId, Called<Settled>)>>,
    /// Ends the call of this id when sent to.
    cancels: BTreeMap<CallId, oneshot::Sender<EscalationError>>,
    /// Places of posted events, in the order of posting.
    stored: FuturesOrdered<oneshot::Receiver<u64>>,
}

impl Scene {
    /// The scene of one of the configuration's cameras, that has seen nothing but its `status`.
    /// `ids` makes the ids of its events and questions.
    pub fn new(
        config: &AgentConfig,
        camera: &Camera,
        context: SceneContext,
        status: CameraStatus,
        ids: Ids,
    ) -> Self {
        let core = SceneCore::new(
            config,
            camera,
            context.model.identity().clone(),
            status,
            ids,
        );
        Scene {
            core,
            context,
            answers: None,
            calls: FuturesUnordered::new(),
            cancels: BTreeMap::new(),
            stored: FuturesOrdered::new(),
        }
    }

    /// Runs until there are no more frames and everything begun has ended; `stop` sets a deadline
    /// for that.
    pub async fn run(
        mut self,
        mut frames: handoff::Receiver<AdmittedFrame>,
        mut status: watch::Receiver<CameraStatus>,
        mut stop: watch::Receiver<Option<Duration>>,
    ) {
        let clock = self.context.escalations.clock.clone();
        let (mut frames_open, mut stop_seen) = (true, false);
        while !self.core.is_finished() {
            let wake = self.core.next_wake();
            // In a fixed order, so that a simulation repeats itself: what ends something comes
            // before what begins something.
            tokio::select! {
                biased;
                Ok(deadline) = stopped(&mut stop), if !stop_seen => {
                    stop_seen = true;
                    self.feed(Input::Stop { deadline }).await;
                }
                () = clock.sleep_until(wake.unwrap_or_default()), if wake.is_some() => {
                    self.feed(Input::Tick).await;
                }
                Ok(()) = status.changed() => self.camera(&mut status).await,
                Some((call, called)) = self.calls.next() => {
                    self.cancels.remove(&call);
                    self.feed(Input::CallEnded(call, called)).await;
                }
                Some(Ok(seq)) = self.stored.next() => self.feed(Input::Stored(seq)).await,
                answer = next_answer(&mut self.answers), if self.answers.is_some() => {
                    // What the camera did meanwhile comes before what was seen on its frame.
                    self.camera(&mut status).await;
                    self.answered(answer).await;
                }
                frame = frames.recv(), if frames_open && self.answers.is_none() => {
                    self.camera(&mut status).await;
                    match frame {
                        Some(frame) => self.feed(Input::Frame(frame)).await,
                        None => {
                            frames_open = false;
                            self.feed(Input::FramesEnded).await;
                        }
                    }
                }
            }
        }
        while let Some(Ok(seq)) = self.stored.next().await {
            self.feed(Input::Stored(seq)).await;
        }
    }

    /// Hands the camera's status to the core, if it changed.
    async fn camera(&mut self, status: &mut watch::Receiver<CameraStatus>) {
        let status = status.borrow_and_update().clone();
        self.feed(Input::Camera(status)).await;
    }

    async fn answered(&mut self, answer: Option<Result<Answer, VlmError>>) {
        let input = match answer {
            Some(answer) => Input::Answer {
                answer: answer.map_err(|error| error.to_string()),
                kill_switch: self.context.escalations.policy.kill_switch(),
            },
            None => {
                // The thread is unwinding: the agent sees that before it sees this scene end.
                self.context.model.ended().await;
                Input::ModelGone
            }
        };
        self.feed(input).await;
        if !self.core.is_asking() {
            self.answers = None;
        }
    }

    /// Hands one input to the core, and carries out what it wants done.
    async fn feed(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let now = self.context.escalations.clock.now();
            for effect in self.core.on(input, now) {
                inputs.extend(self.carry_out(effect).await);
            }
        }
    }

    /// Carries one effect out; returns what came of it at once.
    async fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        match effect {
            Effect::Ask(requests) => self.answers = Some(self.context.model.ask_each(requests)),
            Effect::StopAsking => self.answers = None,
            Effect::Call {
                call,
                pool,
                question,
            } => return Some(self.call(call, pool.as_deref(), question)),
            Effect::Cancel(call, error) => {
                // A call that has just ended needs no cancel.
                _ = self.cancels.remove(&call).map(|cancel| cancel.send(error));
            }
            Effect::Post(post) => {
                let is_event = matches!(post, Post::Event { .. });
                let seq = self.context.posts.post(post).await;
                if is_event {
                    self.stored.push_back(seq);
                }
            }
            Effect::Record(record) => self.context.observer.observe(&record),
        }
        None
    }

    /// Starts a call, if nothing is in its way.
    fn call(&mut self, call: CallId, pool: Option<&str>, asked: PoolQuestion) -> Input {
        let escalations = &self.context.escalations;
        let pool = pool.and_then(|id| escalations.pools.get(id));
        let prepared =
            escalations.prepare(pool, true, asked.id, |pool| question::body(&asked, pool));
        match prepared {
            Err(error) => Input::CallDenied(call, error),
            Ok(prepared) => {
                let (cancel, cancelled) = oneshot::channel();
                self.cancels.insert(call, cancel);
                let cancelled = async move {
                    match cancelled.await {
                        Ok(error) => error,
                        // The sender is kept until the call has ended.
                        Err(_) => std::future::pending().await,
                    }
                };
                let ended = prepared
                    .make(cancelled)
                    .map(move |called| (call, called.settle(&asked.answers)));
                self.calls.push(ended.boxed());
                Input::CallMade(call)
            }
        }
    }
}

/// Resolves with the deadline once the agent stops; fails when that can no longer happen.
async fn stopped(
    stop: &mut watch::Receiver<Option<Duration>>,
) -> Result<Duration, watch::error::RecvError> {
    let stopped = stop.wait_for(Option::is_some).await?;
    Ok(stopped.unwrap_or_default())
}

async fn next_answer(answers: &mut Option<Answers>) -> Option<Result<Answer, VlmError>> {
    answers.as_mut()?.next().await
}

#[cfg(test)]
mod tests;
