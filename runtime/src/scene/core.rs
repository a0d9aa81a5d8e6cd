//! The decisions of one camera's scene, without I/O: inputs in, effects out.
//!
//! ```text
//! Frame ─▶ Ask ─▶ Answer (of each rule) ─▶ route ─ keep ──────────────▶ span ─▶ Post(event)
//!                                             └─ escalate ─▶ Call ─▶ CallMade | CallDenied ─▶ span
//!                                                              └───▶ CallEnded ─▶ span ─▶ Post(update)
//! Camera, Stop, FramesEnded, Tick ─▶ span ─▶ Post(end)
//! ```
//!
//! Time is an argument, and nothing waits: what takes time is asked for by an [`Effect`], and its
//! result comes back as an [`Input`]. Pure.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::{self, AgentConfig, KillSwitch, RouteMode};
use vlm::{Answer, Identity, Request};

use super::request;
use crate::capture::admitted::AdmittedFrame;
use crate::capture::status::CameraStatus;
use crate::decide::call::Called;
use crate::decide::router::{Route, RouteSettings, Target, route};
use crate::deliver::event::{Draft, Escalation, EscalationOutcome, RuleState, Step};
use crate::deliver::post::{Kind, Post};
use crate::deliver::span::{Observation, PoolOutcome, Spans, Subject};
use crate::deliver::topics::Topics;
#[cfg(test)]
use crate::mutants::{self, Mutant};
use crate::observe::{LocalAnswer, Record};
use crate::pool::{EscalationError, PoolQuestion};
use crate::random::Ids;
use crate::reason::Reason;
use crate::settled::Settled;

/// Names one pool call within a scene.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct CallId(u64);

/// Something that happened outside.
#[derive(Debug)]
pub enum Input {
    /// An admitted frame. It comes when no other is being asked about.
    Frame(AdmittedFrame),
    /// The local model's next answer, in the order of the rules, or why there is none.
    Answer {
        /// The answer.
        answer: Result<Answer, String>,
        /// The kill switch in force when it came.
        kill_switch: KillSwitch,
    },
    /// The local model is gone; no more answers will come.
    ModelGone,
    /// A call was permitted and is under way.
    CallMade(CallId),
    /// A call was not permitted.
    CallDenied(CallId, EscalationError),
    /// A call that was made has ended.
    CallEnded(CallId, Called<Settled>),
    /// The camera's status changed.
    Camera(CameraStatus),
    /// The oldest event posted and not yet stored has this sequence number.
    Stored(u64),
    /// No more frames will come.
    FramesEnded,
    /// The agent stops: what was begun may go on until `deadline`.
    Stop {
        /// When everything still under way is given up.
        deadline: Duration,
    },
    /// Time passed: [`SceneCore::next_wake`] was reached.
    Tick,
}

/// Something to be done outside.
#[derive(Debug)]
pub enum Effect {
    /// Ask the local model these requests in a row; each answer comes back as [`Input::Answer`].
    Ask(Vec<Request>),
    /// Take back what was asked and not answered.
    StopAsking,
    /// Ask a pool, if that is permitted: [`Input::CallMade`] or [`Input::CallDenied`] comes back at
    /// once, and [`Input::CallEnded`] after a call that was made.
    Call {
        /// The call.
        call: CallId,
        /// The pool; `None` when no configured pool can be asked.
        pool: Option<String>,
        /// The question.
        question: PoolQuestion,
    },
    /// End a call under way with this error; its [`Input::CallEnded`] comes back all the same.
    Cancel(CallId, EscalationError),
    /// Publish this. For an event [`Input::Stored`] comes back, in the order of posting.
    Post(Post),
    /// Show this to the log, the metrics, and other observers.
    Record(Record),
}

/// One camera with its rules.
#[derive(Debug)]
pub struct SceneCore {
    cam: String,
    topics: Topics,
    model: Identity,
    rules: Vec<Rule>,
    ids: Ids,
    /// The camera's status, as last published.
    status: CameraStatus,
    asking: Option<Asking>,
    calls: BTreeMap<CallId, PendingCall>,
    calls_asked_for: u64,
    /// Events posted and not yet stored, oldest first.
    unstored: VecDeque<Box<Draft>>,
    phase: ScenePhase,
}

/// How far a scene is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ScenePhase {
    /// Frames may come.
    Watching,
    /// The agent stops: no more frames are taken, and answers may come until then.
    Stopping { deadline: Duration },
    /// No more frames; what was begun goes on, until the deadline if there is one.
    Finishing { deadline: Option<Duration> },
    /// Past the deadline: calls were cancelled, and their outcomes may come.
    TimedOut,
    /// Every event has ended.
    Finished,
}

#[derive(Debug)]
struct Rule {
    config: agent::Rule,
    /// The pool that is asked, and its deadline.
    pool: Option<(String, Duration)>,
    spans: Spans,
}

/// A frame whose rules are being answered, in their order.
#[derive(Debug)]
struct Asking {
    frame: AdmittedFrame,
    next_rule: usize,
}

#[derive(Debug)]
enum PendingCall {
    /// Asked for; neither made nor denied.
    Requested(Routed),
    /// Under way, for the event with this id.
    Made {
        rule: usize,
        event: String,
        observation: Observation,
    },
}

/// A local answer and the route it takes.
#[derive(Debug)]
struct Routed {
    rule: usize,
    frame: AdmittedFrame,
    answer: Settled,
    route: Route,
}

impl SceneCore {
    /// The scene of one of the configuration's cameras, that has seen nothing. `ids` makes the ids
    /// of events and questions.
    pub fn new(
        config: &AgentConfig,
        camera: &agent::Camera,
        model: Identity,
        status: CameraStatus,
        ids: Ids,
    ) -> Self {
        let rules = camera.rules.iter().map(|rule| Rule {
            config: rule.clone(),
            pool: config
                .pool_for(rule)
                .map(|pool| (pool.id.clone(), pool.deadline)),
            spans: Spans::new(Subject {
                rule: rule.id.clone(),
                question: rule.question.clone(),
                alert: rule.alert.clone(),
                must_escalate: rule.route == RouteMode::MustEscalate,
            }),
        });
        SceneCore {
            cam: camera.id.clone(),
            topics: Topics::new(&config.node.id),
            model,
            rules: rules.collect(),
            ids,
            status,
            asking: None,
            calls: BTreeMap::new(),
            calls_asked_for: 0,
            unstored: VecDeque::new(),
            phase: ScenePhase::Watching,
        }
    }

    /// Takes one input at `now`, a time since any fixed moment. Returns what is to be done, in
    /// order.
    pub fn on(&mut self, input: Input, now: Duration) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Frame(frame) => self.frame(frame, &mut effects),
            Input::Answer {
                answer,
                kill_switch,
            } => self.answered(answer, kill_switch, &mut effects),
            Input::ModelGone => self.model_gone(&mut effects),
            Input::CallMade(call) => self.call_made(call, &mut effects),
            Input::CallDenied(call, error) => self.call_denied(call, &error, &mut effects),
            Input::CallEnded(call, called) => self.call_ended(call, called, &mut effects),
            Input::Camera(status) => self.camera(status, &mut effects),
            Input::Stored(seq) => self.stored(seq, &mut effects),
            Input::FramesEnded => self.frames_ended(),
            Input::Stop { deadline } => self.stop(deadline, &mut effects),
            Input::Tick => {}
        }
        if self.next_wake().is_some_and(|deadline| now >= deadline) {
            self.time_out(&mut effects);
        }
        if self.status.state.is_away() {
            self.camera_away(&mut effects);
        }
        if self.has_nothing_left() {
            self.end_events(&mut effects);
            self.phase = ScenePhase::Finished;
        }
        effects
    }

    /// When [`Input::Tick`] is due; `None` as long as nothing has to happen by itself.
    pub fn next_wake(&self) -> Option<Duration> {
        match self.phase {
            ScenePhase::Stopping { deadline } => Some(deadline),
            ScenePhase::Finishing { deadline } => deadline,
            ScenePhase::Watching | ScenePhase::TimedOut | ScenePhase::Finished => None,
        }
    }

    /// Whether every event has ended: no input but [`Input::Stored`] has an effect any more.
    pub fn is_finished(&self) -> bool {
        self.phase == ScenePhase::Finished
    }

    /// Whether the local model has answers outstanding.
    pub fn is_asking(&self) -> bool {
        self.asking.is_some()
    }

    fn takes_frames(&self) -> bool {
        #[cfg(test)]
        if mutants::is_active(Mutant::FrameAfterStop) {
            return !self.is_asking();
        }
        self.phase == ScenePhase::Watching && !self.is_asking()
    }

    fn frame(&mut self, frame: AdmittedFrame, effects: &mut Vec<Effect>) {
        if !self.takes_frames() {
            return;
        }
        effects.push(Effect::Record(Record::Asked {
            cam: self.cam.clone(),
            frame: frame.number,
        }));
        // A camera without rules has been reported at the start.
        if !self.rules.is_empty() {
            let requests = self.rules.iter();
            let requests = requests.map(|rule| request::local(&rule.config, &frame.picture));
            effects.push(Effect::Ask(requests.collect()));
            self.asking = Some(Asking {
                frame,
                next_rule: 0,
            });
        }
    }

    fn answered(
        &mut self,
        answer: Result<Answer, String>,
        kill_switch: KillSwitch,
        effects: &mut Vec<Effect>,
    ) {
        let Some(mut asking) = self.asking.take() else {
            return;
        };
        let (rule, frame) = (asking.next_rule, asking.frame.clone());
        asking.next_rule += 1;
        if asking.next_rule < self.rules.len() {
            self.asking = Some(asking);
        }
        match answer {
            Ok(answer) => self.decide(rule, frame, &answer, kill_switch, effects),
            Err(error) => effects.push(self.failed(rule, &frame, error)),
        }
    }

    fn model_gone(&mut self, effects: &mut Vec<Effect>) {
        self.give_up_asking("the inference thread has stopped", effects);
    }

    /// Gives up the frame being asked about: each of its rules without an answer failed.
    fn give_up_asking(&mut self, why: &str, effects: &mut Vec<Effect>) -> bool {
        let Some(Asking { frame, next_rule }) = self.asking.take() else {
            return false;
        };
        let rules = next_rule..self.rules.len();
        effects.extend(rules.map(|rule| self.failed(rule, &frame, why.to_owned())));
        true
    }

    fn failed(&self, rule: usize, frame: &AdmittedFrame, error: String) -> Effect {
        Effect::Record(Record::AnswerFailed {
            cam: self.cam.clone(),
            frame: frame.number,
            rule: self.rules[rule].config.id.clone(),
            error,
        })
    }

    /// Routes a local answer: keeps it, or asks for a call first, whose denial keeps it after all.
    fn decide(
        &mut self,
        rule: usize,
        frame: AdmittedFrame,
        answer: &Answer,
        kill_switch: KillSwitch,
        effects: &mut Vec<Effect>,
    ) {
        let config = &self.rules[rule].config;
        let answer = request::settled(answer, &self.model);
        let settings = RouteSettings {
            mode: config.route,
            threshold: config.threshold,
        };
        let route = route(answer.confidence.unwrap_or(0.0), settings, kill_switch);
        let decision = Routed {
            rule,
            frame,
            answer,
            route,
        };
        match decision.route.target {
            Target::Local => _ = self.publish(decision, effects),
            Target::Escalate => {
                self.calls_asked_for += 1;
                let call = CallId(self.calls_asked_for);
                let id = self.ids.uuid(decision.frame.time).into_bytes();
                effects.push(Effect::Call {
                    call,
                    pool: self.rules[rule].pool.as_ref().map(|(id, _)| id.clone()),
                    question: PoolQuestion {
                        id,
                        question: config.question.clone(),
                        answers: config.answers.clone(),
                        jpeg: Some(decision.frame.jpeg.clone()),
                        max_tokens: config.max_new_tokens,
                    },
                });
                self.calls.insert(call, PendingCall::Requested(decision));
            }
        }
    }

    fn call_made(&mut self, call: CallId, effects: &mut Vec<Effect>) {
        let Some(PendingCall::Requested(decision)) = self.calls.remove(&call) else {
            return;
        };
        let rule = decision.rule;
        let (event, observation) = self.publish(decision, effects);
        let made = PendingCall::Made {
            rule,
            event,
            observation,
        };
        self.calls.insert(call, made);
        if self.phase == ScenePhase::TimedOut {
            effects.push(cancel(call));
        }
    }

    fn call_denied(&mut self, call: CallId, error: &EscalationError, effects: &mut Vec<Effect>) {
        if let Some(PendingCall::Requested(mut decision)) = self.calls.remove(&call) {
            decision.route = decision.route.kept_local(error.reason);
            self.publish(decision, effects);
        }
    }

    /// Gives a routed answer to its rule's span and posts its events. Returns the event's id
    /// and the observation that a pool may be asked about.
    fn publish(&mut self, decision: Routed, effects: &mut Vec<Effect>) -> (String, Observation) {
        let Routed {
            rule,
            frame,
            answer,
            route,
        } = decision;
        let observation = Observation {
            number: frame.number,
            answer: answer.clone(),
            frame: request::frame_info(&frame),
            escalation: self.escalation(rule, &route),
        };
        let Rule { config, spans, .. } = &mut self.rules[rule];
        let fresh_id = || self.ids.uuid(frame.time).to_string();
        let (drafts, event) = spans.observe(observation.clone(), fresh_id);
        effects.push(Effect::Record(Record::Answer(Box::new(LocalAnswer {
            cam: self.cam.clone(),
            frame: frame.number,
            name: frame.name,
            jpeg: frame.jpeg.clone(),
            rule: config.id.clone(),
            question: config.question.clone(),
            answers: config.answers.clone(),
            answer,
            route,
            event: event.clone(),
        }))));
        if drafts.iter().any(|draft| draft.step == Step::New) {
            let topic = self.topics.snapshot(&self.cam);
            effects.push(retained(topic, frame.jpeg, Kind::Snapshot));
        }
        for draft in drafts {
            self.post(draft, effects);
        }
        (event, observation)
    }

    fn escalation(&self, rule: usize, route: &Route) -> Escalation {
        let Rule { config, pool, .. } = &self.rules[rule];
        let outcome = match route.target {
            Target::Escalate => EscalationOutcome::Pending,
            // A second reason means that an escalation was wanted and denied.
            Target::Local if route.reasons.len() > 1 => EscalationOutcome::Denied,
            Target::Local => EscalationOutcome::None,
        };
        Escalation {
            outcome,
            reasons: route.reasons.clone(),
            threshold: config.threshold,
            attempts: 0,
            bytes_up: 0,
            cost_usd: None,
            deadline: pool.as_ref().map(|(_, deadline)| *deadline),
        }
    }

    fn call_ended(&mut self, call: CallId, called: Called<Settled>, effects: &mut Vec<Effect>) {
        let Some(PendingCall::Made {
            rule,
            event,
            observation,
        }) = self.calls.remove(&call)
        else {
            return;
        };
        #[cfg(test)]
        if mutants::is_active(Mutant::LostOutcome) {
            return;
        }
        let Rule { config, spans, .. } = &mut self.rules[rule];
        effects.push(Effect::Record(Record::Outcome {
            cam: self.cam.clone(),
            frame: observation.number,
            rule: config.id.clone(),
            called: Box::new(called.clone()),
        }));
        let outcome = PoolOutcome {
            asked: observation,
            called,
        };
        if let Some(draft) = spans.pool_outcome(&event, outcome) {
            self.post(draft, effects);
        }
    }

    fn camera(&mut self, status: CameraStatus, effects: &mut Vec<Effect>) {
        if self.status == status {
            return;
        }
        let topic = self.topics.camera_status(&self.cam);
        effects.push(retained(topic, request::camera_json(&status), Kind::Json));
        effects.push(Effect::Record(Record::Camera {
            cam: self.cam.clone(),
            state: status.state,
            reason: status.reason.clone(),
        }));
        // It may have gone away and come back since the last look.
        let lost = status.losses > self.status.losses;
        self.status = status;
        if lost {
            self.camera_away(effects);
        }
    }

    /// A camera that shows nothing proves nothing: its events end, and the states of their rules
    /// are unknown.
    fn camera_away(&mut self, effects: &mut Vec<Effect>) {
        if self.end_events(effects) {
            let states = self.rules.iter().map(|rule| {
                let topic = self.topics.rule_state(&self.cam, &rule.config.id);
                retained(topic, RuleState::Unknown.as_str().into(), Kind::Word)
            });
            effects.extend(states);
        }
    }

    /// Ends all open events; whether there were any.
    fn end_events(&mut self, effects: &mut Vec<Effect>) -> bool {
        let ends: Vec<_> = self
            .rules
            .iter_mut()
            .filter_map(|rule| rule.spans.end())
            .collect();
        let any = !ends.is_empty();
        for draft in ends {
            #[cfg(test)]
            let ended = draft.clone();
            self.post(draft, effects);
            #[cfg(test)]
            if mutants::is_active(Mutant::EventAfterEnd) {
                let step = Step::Update;
                self.post(Draft { step, ..ended }, effects);
            }
        }
        any
    }

    fn post(&mut self, draft: Draft, effects: &mut Vec<Effect>) {
        let draft = Box::new(draft);
        self.unstored.push_back(draft.clone());
        let cam = self.cam.clone();
        effects.push(Effect::Post(Post::Event { cam, draft }));
    }

    fn stored(&mut self, seq: u64, effects: &mut Vec<Effect>) {
        if let Some(draft) = self.unstored.pop_front() {
            let cam = self.cam.clone();
            effects.push(Effect::Record(Record::Event { cam, seq, draft }));
        }
    }

    fn frames_ended(&mut self) {
        self.phase = match self.phase {
            ScenePhase::Watching => ScenePhase::Finishing { deadline: None },
            ScenePhase::Stopping { deadline } => ScenePhase::Finishing {
                deadline: Some(deadline),
            },
            phase
            @ (ScenePhase::Finishing { .. } | ScenePhase::TimedOut | ScenePhase::Finished) => phase,
        };
    }

    fn stop(&mut self, deadline: Duration, effects: &mut Vec<Effect>) {
        effects.push(Effect::Record(Record::Stopping {
            cam: self.cam.clone(),
        }));
        self.phase = match self.phase {
            ScenePhase::Watching | ScenePhase::Stopping { .. } => ScenePhase::Stopping { deadline },
            ScenePhase::Finishing { .. } => ScenePhase::Finishing {
                deadline: Some(deadline),
            },
            phase @ (ScenePhase::TimedOut | ScenePhase::Finished) => phase,
        };
    }

    /// Gives up what is still under way. Cancelled calls end, each with its outcome.
    fn time_out(&mut self, effects: &mut Vec<Effect>) {
        self.phase = ScenePhase::TimedOut;
        if self.give_up_asking("the agent stops", effects) {
            effects.push(Effect::StopAsking);
        }
        let made = |call: &PendingCall| matches!(call, PendingCall::Made { .. });
        let calls = self.calls.iter().filter(|(_, call)| made(call));
        effects.extend(calls.map(|(call, _)| cancel(*call)));
        effects.push(Effect::Record(Record::TimedOut {
            cam: self.cam.clone(),
        }));
    }

    fn has_nothing_left(&self) -> bool {
        let no_frames = matches!(
            self.phase,
            ScenePhase::Finishing { .. } | ScenePhase::TimedOut
        );
        no_frames && self.asking.is_none() && self.calls.is_empty()
    }
}

fn cancel(call: CallId) -> Effect {
    let error = EscalationError::new(Reason::Deadline, "the agent stops");
    Effect::Cancel(call, error)
}

fn retained(topic: String, payload: Bytes, kind: Kind) -> Effect {
    Effect::Post(Post::Retained {
        topic,
        payload,
        kind,
    })
}
