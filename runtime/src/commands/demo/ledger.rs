//! Keeps the demo's books while the pipeline runs: every pair of admitted frame and question, and
//! what was said about it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use super::summary::{Escalated, Pair};
use super::view::View;
use crate::capture::gate::Decision;
use crate::commands::labels::Label;
use crate::deliver::event::Step;
use crate::observe::{LocalAnswer, Observer, Record};

/// (camera, frame number, rule).
type Key = (String, u64, String);

/// The books, and the live view of each entry.
#[derive(Debug)]
pub(super) struct Ledger {
    view: View,
    /// Right answers by (image, question).
    labels: BTreeMap<(String, String), String>,
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    admitted: BTreeMap<(String, u64), Instant>,
    entries: BTreeMap<Key, Entry>,
    events: u64,
    updates: u64,
    bytes_up: u64,
}

#[derive(Debug)]
struct Entry {
    pair: Pair,
    asked: LocalAnswer,
    admitted: Instant,
}

impl Ledger {
    pub(super) fn new(view: View, labels: Vec<Label>) -> Ledger {
        let labels = labels
            .into_iter()
            .map(|label| ((label.image, label.question), label.answer))
            .collect();
        Ledger {
            view,
            labels,
            books: Mutex::default(),
        }
    }

    /// Every pair, with what was asked.
    pub(super) fn pairs(&self) -> Vec<(Pair, LocalAnswer)> {
        self.books()
            .entries
            .values()
            .map(|entry| (entry.pair.clone(), entry.asked.clone()))
            .collect()
    }

    /// Events published.
    pub(super) fn events(&self) -> u64 {
        self.books().events
    }

    /// `update` events among them.
    pub(super) fn updates(&self) -> u64 {
        self.books().updates
    }

    /// Request bytes sent to pools.
    pub(super) fn bytes_up(&self) -> u64 {
        self.books().bytes_up
    }

    fn answered(&self, asked: LocalAnswer) {
        self.view.answer(&asked);
        let image = asked
            .name
            .as_ref()
            .map(|name| format!("{}/{name}", asked.cam));
        let label =
            image.and_then(|image| self.labels.get(&(image, asked.question.clone())).cloned());
        let mut books = self.books();
        // The gate's decision comes first; without it the clock starts here.
        let admitted = books
            .admitted
            .get(&(asked.cam.clone(), asked.frame))
            .copied()
            .unwrap_or_else(Instant::now);
        let pair = Pair {
            label,
            local: asked.answer.text.clone(),
            local_latency: admitted.elapsed(),
            reason: asked.route.decided_by().as_str().to_owned(),
            escalated: None,
            pool_calls: 0,
            pool_afterwards: None,
        };
        books.entries.insert(
            (asked.cam.clone(), asked.frame, asked.rule.clone()),
            Entry {
                pair,
                asked,
                admitted,
            },
        );
    }

    fn books(&self) -> MutexGuard<'_, Books> {
        // Nothing panics while it is held; if something did, the books are still the best there is.
        self.books
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Observer for Ledger {
    fn observe(&self, record: &Record) {
        match record {
            Record::Frame {
                cam,
                frame,
                decision: Decision::Admit(_),
                ..
            } => {
                self.books()
                    .admitted
                    .insert((cam.clone(), *frame), Instant::now());
            }
            Record::Answer(answer) => self.answered((**answer).clone()),
            Record::Outcome {
                cam,
                frame,
                rule,
                called,
            } => {
                let mut books = self.books();
                books.bytes_up += called.spent.bytes_up;
                let Some(entry) = books.entries.get_mut(&(cam.clone(), *frame, rule.clone()))
                else {
                    return;
                };
                self.view.outcome(&entry.asked, &called.result);
                entry.pair.pool_calls += called.spent.attempts;
                match &called.result {
                    Ok(pool) => {
                        entry.pair.escalated = Some(Escalated {
                            answer: pool.text.clone(),
                            latency: entry.admitted.elapsed(),
                        })
                    }
                    Err(error) => entry.pair.reason = error.reason.as_str().to_owned(),
                }
            }
            Record::Event { draft, .. } => {
                let mut books = self.books();
                books.events += 1;
                books.updates += u64::from(draft.step == Step::Update);
            }
            _ => {}
        }
    }
}
