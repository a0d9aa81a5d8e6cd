//! Records every pair of admitted frame and question, with its answers, while the pipeline runs.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use super::live_view::LiveView;
use super::summary::{Escalated, Pair};
use crate::capture::gate::Decision;
use crate::capture::record::CaptureRecord;
use crate::clock::Clock;
use crate::commands::labels::Label;
use crate::deliver::event::Step;
use crate::observe::{LocalAnswer, Observer, Record};

/// (camera, frame number, rule).
type PairKey = (String, u64, String);

/// The records so far, each shown in the live view as it comes.
#[derive(Debug)]
pub(super) struct Recorder {
    view: LiveView,
    clock: Clock,
    /// Right answers by (image, question).
    labels: BTreeMap<(String, String), String>,
    records: Mutex<Records>,
}

#[derive(Debug, Default)]
struct Records {
    admitted: BTreeMap<(String, u64), Duration>,
    pairs: BTreeMap<PairKey, RecordedPair>,
    events: u64,
    updates: u64,
    bytes_up: u64,
}

#[derive(Debug)]
struct RecordedPair {
    pair: Pair,
    local: LocalAnswer,
    admitted: Duration,
}

impl Recorder {
    pub(super) fn new(view: LiveView, labels: Vec<Label>, clock: Clock) -> Recorder {
        let labels = labels
            .into_iter()
            .map(|label| ((label.image, label.question), label.answer))
            .collect();
        Recorder {
            view,
            clock,
            labels,
            records: Mutex::default(),
        }
    }

    /// Every pair, with its local answer.
    pub(super) fn pairs(&self) -> Vec<(Pair, LocalAnswer)> {
        self.records()
            .pairs
            .values()
            .map(|recorded| (recorded.pair.clone(), recorded.local.clone()))
            .collect()
    }

    /// Events published.
    pub(super) fn events(&self) -> u64 {
        self.records().events
    }

    /// `update` events among them.
    pub(super) fn updates(&self) -> u64 {
        self.records().updates
    }

    /// Request bytes sent to pools.
    pub(super) fn bytes_up(&self) -> u64 {
        self.records().bytes_up
    }

    fn answered(&self, local: LocalAnswer) {
        self.view.answer(&local);
        let image = local
            .name
            .as_ref()
            .map(|name| format!("{}/{name}", local.cam));
        let label =
            image.and_then(|image| self.labels.get(&(image, local.question.clone())).cloned());
        let mut records = self.records();
        // The gate's decision comes first; without it the latency counts from here.
        let admitted = records
            .admitted
            .get(&(local.cam.clone(), local.frame))
            .copied()
            .unwrap_or_else(|| self.clock.now());
        let pair = Pair {
            label,
            local: local.answer.text.clone(),
            local_latency: self.clock.now().saturating_sub(admitted),
            reason: local.route.decided_by().as_str().to_owned(),
            escalated: None,
            pool_calls: 0,
            pool_afterwards: None,
        };
        records.pairs.insert(
            (local.cam.clone(), local.frame, local.rule.clone()),
            RecordedPair {
                pair,
                local,
                admitted,
            },
        );
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Nothing panics while it is held, and every record is whole.
        self.records
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Observer for Recorder {
    fn observe(&self, record: &Record) {
        match record {
            Record::Capture {
                cam,
                record:
                    CaptureRecord::Frame {
                        frame,
                        decision: Decision::Admit(_),
                        ..
                    },
            } => {
                self.records()
                    .admitted
                    .insert((cam.clone(), *frame), self.clock.now());
            }
            Record::Answer(answer) => self.answered((**answer).clone()),
            Record::Outcome {
                cam,
                frame,
                rule,
                called,
            } => {
                let mut records = self.records();
                records.bytes_up += called.spent.bytes_up;
                let Some(recorded) = records.pairs.get_mut(&(cam.clone(), *frame, rule.clone()))
                else {
                    return;
                };
                self.view.outcome(&recorded.local, &called.result);
                recorded.pair.pool_calls += called.spent.attempts;
                match &called.result {
                    Ok(pool) => {
                        recorded.pair.escalated = Some(Escalated {
                            answer: pool.text.clone(),
                            latency: self.clock.now().saturating_sub(recorded.admitted),
                        })
                    }
                    Err(error) => recorded.pair.reason = error.reason.as_str().to_owned(),
                }
            }
            Record::Event { draft, .. } => {
                let mut records = self.records();
                records.events += 1;
                records.updates += u64::from(draft.step == Step::Update);
            }
            _ => {}
        }
    }
}
