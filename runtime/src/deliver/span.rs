//! The life cycle of events: which answers of a rule make a `new`, an `update`, an `end`. Pure; ids
//! and answers are arguments.
//!
//! A span opens with a local answer and lasts while the local answers equal the one that opened it.
//! A pool's answer changes the *settled* answer of the span's event, never when it ends: otherwise
//! a pool that corrects every frame would end the event on every frame.

use firmware_config::limits::IN_FLIGHT_MAX;

use crate::decide::call::Called;
use crate::deliver::event::{Draft, Escalation, EscalationOutcome, FrameInfo, RuleState, Step};
use crate::pool::EscalationError;
use crate::reason::Reason;
use crate::settled::Settled;

/// Most ended events that still wait for a pool's outcome, as many as `in-flight` allows; beyond it
/// the oldest is forgotten.
const ENDED_MAX: usize = IN_FLIGHT_MAX as usize;

/// What all events of one rule have in common.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The rule's id.
    pub rule: String,
    /// The question.
    pub question: String,
    /// Answers that mean ON.
    pub alert: Vec<String>,
    /// Whether only a pool's answer settles it.
    pub must_escalate: bool,
}

/// The spans of one rule.
#[derive(Debug)]
pub struct Spans {
    subject: Subject,
    open: Option<Event>,
    /// Ended events with outcomes still to come, oldest first.
    ended: Vec<Event>,
}

/// One event, as it was last published.
#[derive(Debug, Clone)]
struct Event {
    draft: Draft,
    /// The local answer that opened it.
    opened_by: String,
    /// Pool calls for this event without an outcome yet.
    waiting: u32,
    /// Number of the frame published last.
    published_frame: u64,
}

/// A local answer about one frame.
#[derive(Debug, Clone)]
pub struct Observation {
    /// The frame's number within its camera; a later frame has a higher one.
    pub number: u64,
    /// The local answer.
    pub answer: Settled,
    /// The frame it is about.
    pub frame: FrameInfo,
    /// State of its escalation: pending, denied, or none.
    pub escalation: Escalation,
}

/// A pool call that ended.
#[derive(Debug, Clone)]
pub struct PoolOutcome {
    /// The local answer that the pool was asked to check.
    pub asked: Observation,
    /// The pool's answer, or why there is none.
    pub called: Called<Settled>,
}

impl Spans {
    /// A rule without events yet.
    pub fn new(subject: Subject) -> Self {
        Spans {
            subject,
            open: None,
            ended: Vec::new(),
        }
    }

    /// Takes a local answer. Returns the drafts to publish, in order, and the id of the event that
    /// the answer belongs to.
    ///
    /// `fresh_id` returns the id of a new event.
    pub fn observe(
        &mut self,
        observation: Observation,
        fresh_id: impl FnOnce() -> String,
    ) -> (Vec<Draft>, String) {
        let waits = u32::from(observation.escalation.outcome == EscalationOutcome::Pending);
        if let Some(event) = &mut self.open
            && event.opened_by == observation.answer.text
        {
            event.waiting += waits;
            let id = event.draft.id.clone();
            // An equal answer publishes nothing by itself, but a denied escalation is an outcome.
            let denied = observation.escalation.outcome == EscalationOutcome::Denied;
            let update = denied.then(|| event.not_answered(observation)).flatten();
            return (update.into_iter().collect(), id);
        }
        let mut drafts: Vec<Draft> = self.end().into_iter().collect();
        let event = self.opened(observation, fresh_id(), waits);
        let id = event.draft.id.clone();
        drafts.push(event.draft.clone());
        self.open = Some(event);
        (drafts, id)
    }

    /// Takes the outcome of a pool call for event `id`. Returns the `update`, unless nothing
    /// changed.
    ///
    /// Outcomes come in any order; the one about the newest frame settles the event.
    pub fn pool_outcome(&mut self, id: &str, outcome: PoolOutcome) -> Option<Draft> {
        if let Some(event) = self.open.as_mut().filter(|event| event.draft.id == id) {
            event.waiting = event.waiting.saturating_sub(1);
            return event.apply(&self.subject, outcome);
        }
        let index = self.ended.iter().position(|event| event.draft.id == id)?;
        let event = &mut self.ended[index];
        event.waiting = event.waiting.saturating_sub(1);
        let update = event.apply(&self.subject, outcome);
        if event.waiting == 0 {
            self.ended.remove(index);
        }
        update.map(|draft| Draft {
            late: true,
            ..draft
        })
    }

    /// Ends the open event, if any: the answer changed, its camera stalled, or the agent stops.
    pub fn end(&mut self) -> Option<Draft> {
        let event = self.open.take()?;
        let end = Draft {
            step: Step::End,
            ..event.draft.clone()
        };
        if event.waiting > 0 {
            if self.ended.len() == ENDED_MAX {
                self.ended.remove(0);
            }
            self.ended.push(event);
        }
        Some(end)
    }

    fn opened(&self, observation: Observation, id: String, waiting: u32) -> Event {
        let Observation {
            number,
            answer,
            frame,
            escalation,
        } = observation;
        let provisional = self.subject.must_escalate;
        let state = if provisional {
            RuleState::Unknown
        } else {
            RuleState::of(&answer.text, &self.subject.alert)
        };
        let opened_by = answer.text.clone();
        let draft = Draft {
            step: Step::New,
            id,
            rule: self.subject.rule.clone(),
            question: self.subject.question.clone(),
            opened_on: frame.clone(),
            frame,
            state,
            settled: answer,
            first: None,
            escalation,
            provisional,
            late: false,
        };
        Event {
            draft,
            opened_by,
            waiting,
            published_frame: number,
        }
    }
}

impl Event {
    fn apply(&mut self, subject: &Subject, outcome: PoolOutcome) -> Option<Draft> {
        let PoolOutcome { mut asked, called } = outcome;
        let escalation = &mut asked.escalation;
        escalation.attempts = called.spent.attempts;
        escalation.bytes_up = called.spent.bytes_up;
        escalation.cost_usd = called.cost_usd;
        match called.result {
            Ok(answer) => {
                escalation.outcome = EscalationOutcome::Answered;
                self.answered(subject, answer, asked)
            }
            Err(EscalationError { reason, .. }) => {
                escalation.outcome = if reason == Reason::Deadline {
                    EscalationOutcome::Expired
                } else {
                    EscalationOutcome::Denied
                };
                escalation.reasons.insert(0, reason);
                self.not_answered(asked)
            }
        }
    }

    fn answered(
        &mut self,
        subject: &Subject,
        answer: Settled,
        asked: Observation,
    ) -> Option<Draft> {
        let draft = &mut self.draft;
        let answered = draft.escalation.outcome == EscalationOutcome::Answered;
        // Only a newer answer outranks this one; a newer frame published without an answer does
        // not.
        if answered && asked.number < self.published_frame {
            return None;
        }
        self.published_frame = asked.number;
        if answered && draft.settled.text == answer.text {
            return None;
        }
        draft.escalation = asked.escalation;
        draft.frame = asked.frame;
        draft.state = RuleState::of(&answer.text, &subject.alert);
        draft.provisional = false;
        draft.settled = answer;
        draft.first = Some(asked.answer);
        Some(self.update())
    }

    /// An escalation without an answer: published when its outcome is new, and never over a pool's
    /// answer.
    fn not_answered(&mut self, asked: Observation) -> Option<Draft> {
        let now = self.draft.escalation.outcome;
        if now == EscalationOutcome::Answered
            || now == asked.escalation.outcome
            || asked.number < self.published_frame
        {
            return None;
        }
        self.published_frame = asked.number;
        self.draft.escalation = asked.escalation;
        self.draft.frame = asked.frame;
        self.draft.settled = asked.answer;
        Some(self.update())
    }

    fn update(&self) -> Draft {
        Draft {
            step: Step::Update,
            ..self.draft.clone()
        }
    }
}

#[cfg(test)]
mod tests;
