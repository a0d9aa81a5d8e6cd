//! Counts what happens.

use super::{Observer, Record};
use crate::capture::gate::Decision;
use crate::decide::router::Target;
use crate::metrics::Metrics;

impl Observer for Metrics {
    fn observe(&self, record: &Record) {
        match record {
            Record::Frame { decision, .. } => {
                self.frames.count();
                if let Decision::Skip(_) = decision {
                    self.frames_skipped.count();
                }
            }
            Record::FrameBad { frame, .. } => {
                self.frames.add(u64::from(frame.is_some()));
                self.frames_bad.count();
            }
            Record::FramesSuperseded { count, .. } => self.frames_superseded.add(*count),
            Record::CameraFailed { reopen_in, .. } => match reopen_in {
                Some(_) => self.camera_restarts.count(),
                None => self.sources_failed.count(),
            },
            Record::Asked { .. } => self.frames_answered.count(),
            Record::Answer(answer) => {
                self.answers.count();
                match answer.route.target {
                    Target::Local => self.answers_local.count(),
                    Target::Escalate => self.answers_escalated.count(),
                }
            }
            Record::AnswerFailed { .. } => self.answers_failed.count(),
            Record::Outcome { called, .. } => {
                self.bytes_up.add(called.spent.bytes_up);
                match called.result {
                    Ok(_) => self.pool_answered.count(),
                    Err(_) => self.pool_failed.count(),
                }
            }
            // The outbox counts events itself.
            Record::Event { .. } | Record::Camera { .. } | Record::TimedOut { .. } => {}
        }
    }
}
