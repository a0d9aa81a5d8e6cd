//! What has to hold, however a day goes.
//!
//! - Every rule of every frame asked about has one answer, or a failure; every answer has one
//!   route; every escalated answer has one outcome, and no other has any.
//! - What was produced was received or declared, once everything that is left could arrive.
//! - An event begins with `new` and ends with `end`; only a late update comes after that.
//! - The retained state of a rule is that of its last event.
//! - After the stop no frame is asked about, and what is retained says that everything has ended.
//! - A pool that fails is asked no more often than its breaker allows.
//! - Never are more calls under way, or made within a minute, than the policy allows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::broker::Seen;
use crate::capture::gate::Decision;
use crate::capture::record::CaptureRecord;
use crate::capture::status::CameraState;
use crate::clock::Clock;
use crate::decide::router::Target;
use crate::deliver::event::{RuleState, Step};
use crate::metrics::Totals;
use crate::observe::{Observer, Record};

/// `in-flight` of the simulated policy.
pub(super) const IN_FLIGHT_MAX: usize = 3;
/// `calls-per-minute` of the simulated policy.
const CALLS_PER_MINUTE: usize = 12;
/// Rules of each simulated camera.
const RULES: &[(&str, &[&str])] = &[("yard", &["person", "parcel"]), ("gate", &["open"])];

/// (camera, frame number, rule).
type Question = (String, u64, String);

/// What the agent showed, judged while it comes where that needs the order or the time.
#[derive(Debug)]
pub(super) struct Witness {
    clock: Clock,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    violations: Vec<String>,
    /// Everything before the stop, in order, as a hash.
    trace: u64,
    traced: bool,
    stopped: bool,
    /// Cameras whose scenes take no more frames.
    stopping: BTreeSet<String>,
    admitted: u64,
    superseded: u64,
    asked: BTreeSet<(String, u64)>,
    answered: BTreeMap<Question, usize>,
    escalated: BTreeSet<Question>,
    in_flight: BTreeSet<Question>,
    /// When calls of the last minute were made.
    calls: VecDeque<Duration>,
    outcomes: BTreeMap<Question, usize>,
    /// The last step of each event.
    events: BTreeMap<String, Step>,
    /// Cameras that are not online, or were not when their scenes stopped.
    away: BTreeSet<String>,
    /// What each rule's last event that was not over showed.
    states: BTreeMap<(String, String), RuleState>,
    seqs: Vec<u64>,
}

impl Witness {
    pub(super) fn new(clock: Clock) -> Self {
        Witness {
            clock,
            books: Mutex::default(),
        }
    }

    /// Hashes everything that happens from now on.
    pub(super) fn start_trace(&self) {
        self.books().traced = true;
    }

    /// The agent is asked to stop.
    pub(super) fn stopped(&self) {
        self.books().stopped = true;
    }

    /// A hash of everything that happened before the stop, in order.
    pub(super) fn trace(&self) -> u64 {
        self.books().trace
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("not poisoned")
    }
}

impl Observer for Witness {
    fn observe(&self, record: &Record) {
        let now = self.clock.now();
        self.books().take(record, now);
    }
}

impl Books {
    fn take(&mut self, record: &Record, now: Duration) {
        // The order in which cameras learn of a stop is tokio's choice.
        if self.traced && !self.stopped {
            self.trace = fnv(self.trace, &format!("{record:?}"));
        }
        match record {
            Record::Capture { cam, record } => match record {
                CaptureRecord::Frame {
                    decision: Decision::Admit(_),
                    ..
                } if !self.stopping.contains(cam) => self.admitted += 1,
                CaptureRecord::FramesSuperseded { count } => self.superseded += count,
                _ => {}
            },
            Record::Asked { cam, frame } => {
                if self.stopping.contains(cam) {
                    self.violated(format!(
                        "{cam}: frame {frame} was asked about after the stop"
                    ));
                }
                if !self.asked.insert((cam.clone(), *frame)) {
                    self.violated(format!("{cam}: frame {frame} was asked about twice"));
                }
            }
            Record::Answer(answer) => {
                let question = (answer.cam.clone(), answer.frame, answer.rule.clone());
                if answer.route.reasons.is_empty() {
                    self.violated(format!("{question:?}: a route without a reason"));
                }
                if answer.route.target == Target::Escalate {
                    self.escalated.insert(question.clone());
                    self.in_flight.insert(question.clone());
                    let minute = Duration::from_secs(60);
                    self.calls.push_back(now);
                    while self.calls.front().is_some_and(|at| now - *at >= minute) {
                        self.calls.pop_front();
                    }
                    if self.calls.len() > CALLS_PER_MINUTE {
                        self.violated(format!("{} calls in a minute", self.calls.len()));
                    }
                    if self.in_flight.len() > IN_FLIGHT_MAX {
                        self.violated(format!("{} calls in flight", self.in_flight.len()));
                    }
                }
                *self.answered.entry(question).or_default() += 1;
            }
            Record::AnswerFailed {
                cam, frame, rule, ..
            } => {
                let question = (cam.clone(), *frame, rule.clone());
                *self.answered.entry(question).or_default() += 1;
            }
            Record::Outcome {
                cam, frame, rule, ..
            } => {
                let question = (cam.clone(), *frame, rule.clone());
                self.in_flight.remove(&question);
                *self.outcomes.entry(question).or_default() += 1;
            }
            Record::Event { cam, seq, draft } => {
                self.seqs.push(*seq);
                self.step(&draft.id, draft.step, draft.late);
                if draft.step != Step::End && !draft.late {
                    let rule = (cam.clone(), draft.rule.clone());
                    self.states.insert(rule, draft.state);
                }
            }
            Record::Stopping { cam } => _ = self.stopping.insert(cam.clone()),
            Record::Camera { cam, state, .. } if !self.stopping.contains(cam) => {
                match state {
                    CameraState::Online => self.away.remove(cam),
                    _ => self.away.insert(cam.clone()),
                };
            }
            Record::TimedOut { .. } | Record::Camera { .. } => {}
        }
    }

    fn step(&mut self, id: &str, step: Step, late: bool) {
        let before = self.events.insert(id.to_owned(), step);
        let is_lawful = match (before, step) {
            (None, Step::New) => true,
            (Some(Step::New | Step::Update), Step::Update | Step::End) => !late,
            // The event has ended; a pool's late outcome may still correct it.
            (Some(Step::End), Step::Update) => {
                self.events.insert(id.to_owned(), Step::End);
                late
            }
            _ => false,
        };
        if !is_lawful {
            let after = if before == Some(Step::End) {
                "after its end"
            } else {
                "out of order"
            };
            self.violated(format!("event {id}: {step:?} {after} ({before:?} before)"));
        }
    }

    fn violated(&mut self, law: String) {
        self.violations.push(law);
    }
}

/// Every law that was broken.
pub(super) fn violations(witness: &Witness, seen: &Seen, totals: &Totals) -> Vec<String> {
    let books = witness.books();
    let mut found = books.violations.clone();

    for (cam, frame) in &books.asked {
        let rules = RULES
            .iter()
            .find(|(id, _)| id == cam)
            .map_or(&[][..], |(_, rules)| rules);
        for rule in rules {
            let question = (cam.clone(), *frame, (*rule).to_owned());
            match books.answered.get(&question) {
                Some(1) => {}
                answers => found.push(format!("{question:?}: {answers:?} answers")),
            }
        }
    }
    for question in &books.escalated {
        match books.outcomes.get(question) {
            Some(1) => {}
            None => found.push(format!("{question:?}: no outcome")),
            outcomes => found.push(format!("{question:?}: {outcomes:?} outcomes")),
        }
    }
    for question in books
        .outcomes
        .keys()
        .filter(|question| !books.escalated.contains(*question))
    {
        found.push(format!("{question:?}: an outcome without a call"));
    }
    for (id, step) in books.events.iter().filter(|(_, step)| **step != Step::End) {
        found.push(format!("event {id}: did not end ({step:?})"));
    }

    // Frames: of those admitted, each is asked about, superseded, or left in the hand-off of a
    // camera at the end.
    let (admitted, settled) = (books.admitted, books.asked.len() as u64 + books.superseded);
    let left_at_most = RULES.len() as u64;
    if !(settled..=settled + left_at_most).contains(&admitted) {
        found.push(format!(
            "{admitted} frames were admitted, {settled} asked about or superseded"
        ));
    }

    // Events: published + queued + declared = produced, and nothing is queued after the calm.
    let produced = totals.events_produced;
    if books.seqs.len() as u64 != produced {
        found.push(format!(
            "{} of {produced} events were shown",
            books.seqs.len()
        ));
    }
    let epochs: BTreeSet<&String> = seen.events.iter().map(|(epoch, _)| epoch).collect();
    if epochs.len() != 1 {
        found.push(format!("{} epochs", epochs.len()));
    }
    let received: BTreeSet<u64> = seen.events.iter().map(|(_, seq)| *seq).collect();
    let mut covered = received.clone();
    for (_, from, to, _) in &seen.gaps {
        covered.extend(*from..=*to);
    }
    if covered.range(produced + 1..).next().is_some() || covered.contains(&0) {
        found.push(format!(
            "{produced} events were produced, and others received or declared"
        ));
    }
    let missing = (1..=produced).filter(|seq| !covered.contains(seq)).count();
    if missing > 0 {
        found.push(format!(
            "{missing} events were neither received nor declared"
        ));
    }
    let declared: u64 = seen.gaps.iter().map(|(.., count)| count).sum();
    // A gap that grew between two connections is declared twice.
    if declared < totals.events_dropped {
        let dropped = totals.events_dropped;
        found.push(format!(
            "{dropped} events were dropped, {declared} declared"
        ));
    }
    // A range may span events that were received; the counts leave no room to hide one in it.
    if received.len() as u64 + declared < produced {
        let received = received.len();
        found.push(format!(
            "{produced} events, {received} received and {declared} declared"
        ));
    }
    if totals.events_published + totals.events_dropped != produced {
        found.push(format!("the outbox's counts do not add up: {totals:?}"));
    }

    // What a subscriber that comes later finds.
    let retained = |topic: &str, part: &str| {
        let text = seen.retained.get(topic);
        text.is_some_and(|text| text.contains(part))
    };
    if !retained("egret/sim/status", r#""state":"stopped""#) {
        found.push("the retained status is not stopped".into());
    }
    for (cam, rules) in RULES {
        if !retained(&format!("egret/sim/cam/{cam}/status"), r#""state":"ended""#) {
            found.push(format!("{cam}: the retained camera status is not ended"));
        }
        for rule in *rules {
            let topic = format!("egret/sim/cam/{cam}/rule/{rule}/state");
            let state = seen.retained.get(&topic).map(String::as_str);
            let shown = books.states.get(&((*cam).to_owned(), (*rule).to_owned()));
            // A camera that is away makes it unknown.
            let away = books.away.contains(*cam) && state == Some("unknown");
            if state != shown.map(|state| state.as_str()) && !away {
                found.push(format!(
                    "{cam} {rule}: {state:?} is retained, and {shown:?} was shown"
                ));
            }
        }
    }
    found
}

/// FNV-1a, from the hash of what came before.
fn fnv(hash: u64, text: &str) -> u64 {
    let start = if hash == 0 {
        0xcbf2_9ce4_8422_2325
    } else {
        hash
    };
    text.bytes().fold(start, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
