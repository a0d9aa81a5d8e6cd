//! Counts what happens.

use super::{Observer, Record};
use crate::capture::gate::Decision;
use crate::decide::router::Target;
use crate::metrics::{GateDecision, Metrics};

impl Observer for Metrics {
    fn observe(&self, record: &Record) {
        match record {
            Record::Frame { cam, decision, .. } => {
                self.frames.count();
                match decision {
                    Decision::Admit(_) => self.agent.frame(cam, GateDecision::Admit),
                    Decision::Skip(_) => {
                        self.frames_skipped.count();
                        self.agent.frame(cam, GateDecision::Skip);
                    }
                }
            }
            Record::FrameBad { cam, frame, .. } => {
                self.frames.add(u64::from(frame.is_some()));
                self.frames_bad.count();
                self.agent.frame(cam, GateDecision::Unusable);
            }
            Record::FramesSuperseded { count, .. } => self.frames_superseded.add(*count),
            Record::CameraFailed { reopen_in, .. } => match reopen_in {
                Some(_) => self.camera_restarts.count(),
                None => self.sources_failed.count(),
            },
            Record::Asked { .. } => self.frames_answered.count(),
            Record::Answer(answer) => {
                self.answers.count();
                let took = answer.answer.by.total;
                self.agent
                    .answer(&answer.cam, &answer.rule, &answer.route, took);
                match answer.route.target {
                    Target::Local => self.answers_local.count(),
                    Target::Escalate => self.answers_escalated.count(),
                }
            }
            Record::AnswerFailed { .. } => self.answers_failed.count(),
            Record::Outcome { called, .. } => {
                self.bytes_up.add(called.spent.bytes_up);
                let outcome = called.result.as_ref().map(|_| ());
                let outcome = outcome.map_err(|error| error.reason);
                self.routing
                    .pool_call(&called.pool, outcome, called.latency);
                match called.result {
                    Ok(_) => self.pool_answered.count(),
                    Err(_) => self.pool_failed.count(),
                }
            }
            // The outbox counts events itself.
            Record::Event { .. } | Record::Stopping { .. } | Record::TimedOut { .. } => {}
            Record::Camera { cam, state, .. } => self.agent.camera_state(cam, *state),
        }
    }
}
