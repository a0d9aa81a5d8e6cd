//! Counts what happens.

use super::{Observer, Record};
use crate::capture::gate::Decision;
use crate::capture::record::CaptureRecord;
use crate::decide::router::Target;
use crate::metrics::{GateDecision, Metrics};

impl Observer for Metrics {
    fn observe(&self, record: &Record) {
        match record {
            Record::Capture { cam, record } => count_capture(self, cam, record),
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

fn count_capture(metrics: &Metrics, cam: &str, record: &CaptureRecord) {
    match record {
        CaptureRecord::Frame { decision, .. } => {
            metrics.frames.count();
            match decision {
                Decision::Admit(_) => metrics.agent.frame(cam, GateDecision::Admit),
                Decision::Skip(_) => {
                    metrics.frames_skipped.count();
                    metrics.agent.frame(cam, GateDecision::Skip);
                }
            }
        }
        CaptureRecord::FrameBad { .. } => {
            metrics.frames.count();
            metrics.frames_bad.count();
            metrics.agent.frame(cam, GateDecision::Unusable);
        }
        CaptureRecord::FramesSuperseded { count } => metrics.frames_superseded.add(*count),
        CaptureRecord::Failed { reopen_in, .. } => match reopen_in {
            Some(_) => metrics.camera_restarts.count(),
            None => metrics.sources_failed.count(),
        },
    }
}
