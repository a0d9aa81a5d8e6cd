use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::deliver::event::tests::{frame, local};
use crate::pool::Spent;
use crate::settled::{AnswerSource, By};

fn spans(must_escalate: bool) -> Spans {
    Spans::new(Subject {
        rule: "person".into(),
        question: "Is there a person?".into(),
        alert: vec!["yes".into()],
        must_escalate,
    })
}

/// A local answer about frame `number`.
fn seen_on(number: u64, answer: &str, outcome: EscalationOutcome) -> Observation {
    let reasons = match outcome {
        EscalationOutcome::None => vec![Reason::Confident],
        EscalationOutcome::Denied => vec![Reason::LinkDown, Reason::LowConfidence],
        _ => vec![Reason::LowConfidence],
    };
    let escalation = Escalation {
        outcome,
        reasons,
        threshold: 0.9,
        attempts: 0,
        bytes_up: 0,
        cost_usd: None,
        deadline: None,
    };
    let confidence = if outcome == EscalationOutcome::None {
        0.95
    } else {
        0.5
    };
    Observation {
        number,
        answer: local(answer, confidence),
        frame: FrameInfo {
            sha256: format!("f{number}"),
            ..frame()
        },
        escalation,
    }
}

fn seen(answer: &str, outcome: EscalationOutcome) -> Observation {
    seen_on(1, answer, outcome)
}

/// The pool's answer to `asked`.
fn says(asked: Observation, answer: &str) -> PoolOutcome {
    let by = By {
        source: AnswerSource::Pool,
        pool: Some("big".into()),
        ..local(answer, 0.9).by
    };
    let settled = Settled {
        by,
        ..local(answer, 0.9)
    };
    outcome(asked, Ok(settled), 1, 10)
}

/// The outcome of `asked` without an answer after two attempts.
fn fails(asked: Observation, reason: Reason) -> PoolOutcome {
    outcome(asked, Err(EscalationError::new(reason, "why")), 2, 20)
}

fn outcome(
    asked: Observation,
    result: Result<Settled, EscalationError>,
    attempts: u32,
    bytes_up: u64,
) -> PoolOutcome {
    let spent = Spent {
        attempts,
        charged: attempts,
        bytes_up,
    };
    let called = Called {
        pool: "big".into(),
        result,
        spent,
        cost_usd: None,
        latency: Duration::ZERO,
    };
    PoolOutcome { asked, called }
}

fn pool(answer: &str) -> PoolOutcome {
    says(seen("yes", EscalationOutcome::Pending), answer)
}

fn failed(reason: Reason) -> PoolOutcome {
    fails(seen("yes", EscalationOutcome::Pending), reason)
}

/// One line per draft: step, id, settled answer, state, escalation outcome, reasons, marks.
fn lines(drafts: impl IntoIterator<Item = Draft>) -> String {
    let line = |draft: Draft| {
        let Draft {
            step,
            id,
            settled,
            state,
            escalation,
            provisional,
            late,
            ..
        } = draft;
        let reasons: Vec<_> = escalation
            .reasons
            .iter()
            .map(|reason| reason.as_str())
            .collect();
        let marks = [(provisional, " provisional"), (late, " late")]
            .iter()
            .filter(|(on, _)| *on)
            .map(|(_, mark)| *mark)
            .collect::<String>();
        format!(
            "{step:?} {id} {} {} {:?} {}{marks}",
            settled.text,
            state.as_str(),
            escalation.outcome,
            reasons.join("+")
        )
    };
    drafts.into_iter().map(line).collect::<Vec<_>>().join("\n")
}

fn observe(spans: &mut Spans, id: &str, observation: Observation) -> String {
    lines(spans.observe(observation, || id.into()).0)
}

#[test]
fn equal_answers_are_one_event_and_a_different_answer_ends_it() {
    let mut spans = spans(false);
    assert_eq!(
        observe(&mut spans, "a", seen("yes", EscalationOutcome::None)),
        "New a yes ON None CONFIDENT"
    );
    assert_eq!(
        observe(&mut spans, "b", seen("yes", EscalationOutcome::None)),
        ""
    );
    assert_eq!(
        observe(&mut spans, "b", seen("no", EscalationOutcome::None)),
        "End a yes ON None CONFIDENT\nNew b no OFF None CONFIDENT"
    );
    assert_eq!(lines(spans.end()), "End b no OFF None CONFIDENT");
    assert_eq!(lines(spans.end()), "");
}

#[test]
fn a_correction_updates_the_event_without_ending_it() {
    let mut spans = spans(false);
    assert_eq!(
        observe(&mut spans, "a", seen("yes", EscalationOutcome::Pending)),
        "New a yes ON Pending LOW_CONFIDENCE"
    );
    assert_eq!(
        lines(spans.pool_outcome("a", pool("no"))),
        "Update a no OFF Answered LOW_CONFIDENCE"
    );
    // The local model repeats the answer that opened the event, and the pool its correction: neither
    // is published.
    assert_eq!(
        observe(&mut spans, "b", seen("yes", EscalationOutcome::Pending)),
        ""
    );
    assert_eq!(lines(spans.pool_outcome("a", pool("no"))), "");
    assert_eq!(lines(spans.pool_outcome("a", failed(Reason::Deadline))), "");
    // The pool's answer changed, and with it the settled answer.
    assert_eq!(
        lines(spans.pool_outcome("a", pool("yes"))),
        "Update a yes ON Answered LOW_CONFIDENCE"
    );
}

#[test]
fn an_unchanged_failure_is_published_once() {
    let mut spans = spans(false);
    observe(&mut spans, "a", seen("yes", EscalationOutcome::Pending));
    assert_eq!(
        lines(spans.pool_outcome("a", failed(Reason::Deadline))),
        "Update a yes ON Expired DEADLINE+LOW_CONFIDENCE"
    );
    observe(&mut spans, "b", seen("yes", EscalationOutcome::Pending));
    assert_eq!(lines(spans.pool_outcome("a", failed(Reason::Deadline))), "");
    assert_eq!(
        observe(&mut spans, "b", seen("yes", EscalationOutcome::Denied)),
        "Update a yes ON Denied LINK_DOWN+LOW_CONFIDENCE"
    );
    assert_eq!(
        observe(&mut spans, "b", seen("yes", EscalationOutcome::Denied)),
        ""
    );
    assert_eq!(
        lines(spans.pool_outcome("a", pool("yes"))),
        "Update a yes ON Answered LOW_CONFIDENCE"
    );
}

#[test]
fn a_pool_answer_after_the_end_is_marked_late() {
    let mut spans = spans(false);
    observe(&mut spans, "a", seen("yes", EscalationOutcome::Pending));
    observe(&mut spans, "b", seen("no", EscalationOutcome::None));
    assert_eq!(
        lines(spans.pool_outcome("a", pool("no"))),
        "Update a no OFF Answered LOW_CONFIDENCE late"
    );
    // The event's only call is settled, so the event is forgotten.
    assert_eq!(lines(spans.pool_outcome("a", pool("yes"))), "");
}

#[test]
fn must_escalate_is_unknown_until_a_pool_answers() {
    let mut spans = spans(true);
    assert_eq!(
        observe(&mut spans, "a", seen("yes", EscalationOutcome::Pending)),
        "New a yes unknown Pending LOW_CONFIDENCE provisional"
    );
    let expired = "Update a yes unknown Expired DEADLINE+LOW_CONFIDENCE provisional";
    assert_eq!(
        lines(spans.pool_outcome("a", failed(Reason::Deadline))),
        expired
    );
    assert_eq!(
        lines(spans.pool_outcome("a", pool("yes"))),
        "Update a yes ON Answered LOW_CONFIDENCE"
    );
}

#[test]
fn an_update_is_about_the_frame_that_the_pool_judged() {
    let mut spans = spans(false);
    observe(&mut spans, "a", seen_on(1, "yes", EscalationOutcome::None));
    let unsure = seen_on(2, "yes", EscalationOutcome::Pending);
    assert_eq!(observe(&mut spans, "b", unsure.clone()), "");
    let update = spans
        .pool_outcome("a", says(unsure, "no"))
        .expect("an update");
    assert_eq!(
        (
            update.opened_on.sha256.as_str(),
            update.frame.sha256.as_str()
        ),
        ("f1", "f2")
    );
    assert_eq!(
        update.first.as_ref().and_then(|first| first.confidence),
        Some(0.5),
        "the local answer that was below the threshold"
    );
    // The reason is that of this answer, not the one of the confident answer that opened the event.
    assert_eq!(lines([update]), "Update a no OFF Answered LOW_CONFIDENCE");
}

#[test]
fn a_failed_escalation_keeps_the_reason_for_the_escalation() {
    let mut spans = spans(false);
    observe(&mut spans, "a", seen_on(1, "yes", EscalationOutcome::None));
    let unsure = seen_on(2, "yes", EscalationOutcome::Pending);
    observe(&mut spans, "b", unsure.clone());
    assert_eq!(
        lines(spans.pool_outcome("a", fails(unsure, Reason::Deadline))),
        "Update a yes ON Expired DEADLINE+LOW_CONFIDENCE"
    );
}

#[test]
fn the_outcome_about_the_newest_frame_settles_the_event() {
    let mut spans = spans(false);
    let asked: Vec<_> = (1..=3)
        .map(|number| seen_on(number, "yes", EscalationOutcome::Pending))
        .collect();
    for observation in &asked {
        observe(&mut spans, "a", observation.clone());
    }
    assert_eq!(
        lines(spans.pool_outcome("a", says(asked[2].clone(), "no"))),
        "Update a no OFF Answered LOW_CONFIDENCE"
    );
    assert_eq!(
        lines(spans.pool_outcome("a", says(asked[0].clone(), "yes"))),
        "",
        "an answer about an older frame is not published"
    );
    assert_eq!(
        lines(spans.pool_outcome("a", fails(asked[1].clone(), Reason::Deadline))),
        ""
    );
}

#[test]
fn a_failure_about_an_older_frame_is_not_published() {
    let mut spans = spans(false);
    let asked = seen_on(1, "yes", EscalationOutcome::Pending);
    observe(&mut spans, "a", asked.clone());
    assert_eq!(
        observe(
            &mut spans,
            "b",
            seen_on(2, "yes", EscalationOutcome::Denied)
        ),
        "Update a yes ON Denied LINK_DOWN+LOW_CONFIDENCE"
    );
    assert_eq!(
        lines(spans.pool_outcome("a", fails(asked.clone(), Reason::Deadline))),
        ""
    );
    assert_eq!(
        lines(spans.pool_outcome("a", says(asked, "no"))),
        "Update a no OFF Answered LOW_CONFIDENCE",
        "the first answer is published even if its frame is older"
    );
}

#[derive(Debug, Clone)]
enum SpanAct {
    See {
        answer: u8,
        outcome: u8,
    },
    Reply {
        which: prop::sample::Index,
        answer: u8,
    },
    Fail {
        which: prop::sample::Index,
        deadline: bool,
    },
    End,
}

fn act() -> impl Strategy<Value = SpanAct> {
    prop_oneof![
        4 => (0_u8..3, 0_u8..3).prop_map(|(answer, outcome)| SpanAct::See { answer, outcome }),
        2 => (any::<prop::sample::Index>(), 0_u8..3).prop_map(|(which, answer)| SpanAct::Reply { which, answer }),
        1 => (any::<prop::sample::Index>(), any::<bool>()).prop_map(|(which, deadline)| SpanAct::Fail { which, deadline }),
        1 => Just(SpanAct::End),
    ]
}

fn number(frame: &FrameInfo) -> u64 {
    frame.sha256[1..]
        .parse()
        .expect("the number that `seen_on` puts there")
}

proptest! {
    /// The guarantees that subscribers rely on.
    #[test]
    fn every_event_is_published_in_order(acts in prop::collection::vec(act(), 1..80)) {
        let mut spans = spans(false);
        let (mut ids, mut frames, mut waiting) = (0, 1, Vec::new());
        let mut log: Vec<Draft> = Vec::new();
        let mut opened_by: Option<String> = None;
        for act in acts {
            match act {
                SpanAct::See { answer, outcome } => {
                    let outcome = [EscalationOutcome::None, EscalationOutcome::Pending, EscalationOutcome::Denied][outcome as usize];
                    let answer = answer.to_string();
                    let observation = seen_on(frames, &answer, outcome);
                    frames += 1;
                    let (drafts, id) = spans.observe(observation.clone(), || { ids += 1; ids.to_string() });
                    // A new event begins exactly when the answer differs from the one that opened
                    // the last event.
                    let is_new = drafts.iter().any(|draft| draft.step == Step::New);
                    prop_assert_eq!(is_new, opened_by.as_ref() != Some(&answer));
                    opened_by = Some(answer);
                    if outcome == EscalationOutcome::Pending { waiting.push((id, observation)); }
                    log.extend(drafts);
                }
                SpanAct::Reply { which, answer } if !waiting.is_empty() => {
                    let (id, asked) = waiting.remove(which.index(waiting.len()));
                    log.extend(spans.pool_outcome(&id, says(asked, &answer.to_string())));
                }
                SpanAct::Fail { which, deadline } if !waiting.is_empty() => {
                    let (id, asked) = waiting.remove(which.index(waiting.len()));
                    log.extend(spans.pool_outcome(&id, fails(asked, if deadline { Reason::Deadline } else { Reason::Fallback })));
                }
                SpanAct::End => { log.extend(spans.end()); opened_by = None; }
                _ => {}
            }
        }
        log.extend(spans.end());
        let mut open: Option<String> = None;
        let mut last: std::collections::HashMap<String, Draft> = Default::default();
        for draft in log {
            match draft.step {
                Step::New => {
                    prop_assert!(open.is_none() && !last.contains_key(&draft.id), "a new before the end of the last event, or with its id");
                    open = Some(draft.id.clone());
                }
                Step::Update => {
                    prop_assert_eq!(draft.late, open.as_ref() != Some(&draft.id));
                    let before = &last[&draft.id];
                    if draft.escalation.outcome == EscalationOutcome::Answered {
                        prop_assert_eq!(&draft.escalation.reasons, &[Reason::LowConfidence]);
                        if before.escalation.outcome == EscalationOutcome::Answered {
                            prop_assert!(number(&before.frame) <= number(&draft.frame), "an answer about an older frame settled it");
                        }
                    }
                    prop_assert!(before.settled.text != draft.settled.text || before.escalation.outcome != draft.escalation.outcome, "an update that changes nothing");
                }
                Step::End => prop_assert_eq!(open.take(), Some(draft.id.clone())),
            }
            last.insert(draft.id.clone(), draft);
        }
        prop_assert!(open.is_none(), "an event without an end");
    }
}
