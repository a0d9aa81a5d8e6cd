use super::*;
use crate::settled::AnswerSource;

pub(crate) fn local(answer: &str, confidence: f64) -> Settled {
    Settled {
        text: answer.into(),
        confidence: Some(confidence),
        confidence_kind: ConfidenceKind::Candidates,
        by: By {
            source: AnswerSource::Local,
            pool: None,
            model: "nano-edge".into(),
            model_sha256: Some("ab12".into()),
            backend: Some("tract".into()),
            ep: "tract".into(),
            total: Duration::from_millis(310),
            prefill: Some(Duration::from_millis(200)),
            decode: Some(Duration::from_millis(40)),
            tokens_out: Some(1),
        },
    }
}

pub(crate) fn frame() -> FrameInfo {
    FrameInfo {
        time: "2026-11-23T08:50:59.87Z".parse().expect("a time"),
        w: 768,
        h: 432,
        sha256: "d31e".into(),
        jpeg_bytes: 41_233,
    }
}

pub(crate) fn moment() -> Moment {
    Moment {
        time: "2026-11-23T08:51:00.123Z".parse().expect("a time"),
        mono: Duration::from_millis(7_312_345),
        boot_id: "b1f00d42".into(),
        clock: ClockTrust::Synced,
    }
}

pub(crate) fn draft() -> Draft {
    Draft {
        step: Step::New,
        id: "0193".into(),
        rule: "person".into(),
        question: "Is there a person?".into(),
        opened_on: frame(),
        frame: frame(),
        state: RuleState::On,
        settled: local("yes", 0.62),
        first: None,
        escalation: Escalation {
            outcome: EscalationOutcome::Pending,
            reasons: vec![Reason::LowConfidence],
            threshold: 0.9,
            attempts: 0,
            bytes_up: 0,
            cost_usd: None,
            deadline: Some(Duration::from_secs(8)),
        },
        provisional: false,
        late: false,
    }
}

pub(crate) fn shown(bytes: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(bytes).expect("json");
    serde_json::to_string_pretty(&value).expect("json")
}

#[test]
fn new_while_a_pool_is_asked() {
    let json = draft().to_json(
        Origin {
            node: "gate-01",
            cam: "yard",
        },
        &moment(),
        0x9f3c_2a71,
        48_213,
    );
    insta::assert_snapshot!(shown(&json), @r#"
    {
      "v": 1,
      "type": "new",
      "event_type": "new",
      "id": "0193",
      "epoch": "000000009f3c2a71",
      "seq": 48213,
      "node": "gate-01",
      "cam": "yard",
      "rule": "person",
      "time": "2026-11-23T08:51:00.123Z",
      "mono_ms": 7312345,
      "boot_id": "b1f00d42",
      "clock": "synced",
      "frame": {
        "time": "2026-11-23T08:50:59.870Z",
        "w": 768,
        "h": 432,
        "sha256": "d31e"
      },
      "question": "Is there a person?",
      "answer": "yes",
      "state": "ON",
      "confidence": 0.62,
      "confidence_kind": "candidates",
      "by": {
        "where": "local",
        "model": "nano-edge",
        "model_sha256": "ab12",
        "backend": "tract",
        "ep": "tract",
        "total_ms": 310,
        "prefill_ms": 200,
        "decode_ms": 40,
        "tokens_out": 1
      },
      "reasons": [
        "LOW_CONFIDENCE"
      ],
      "escalation": {
        "outcome": "pending",
        "reasons": [
          "LOW_CONFIDENCE"
        ],
        "threshold": 0.9,
        "attempts": 0,
        "bytes_up": 0,
        "deadline_ms": 8000
      },
      "image": {
        "topic": "egret/gate-01/cam/yard/snapshot",
        "bytes": 41233,
        "sha256": "d31e"
      }
    }
    "#);
}

#[test]
fn update_with_the_pools_answer_after_the_end() {
    let mut draft = Draft {
        step: Step::Update,
        state: RuleState::Off,
        late: true,
        first: Some(local("yes", 0.62)),
        ..draft()
    };
    draft.settled = Settled {
        text: "no".into(),
        confidence: None,
        confidence_kind: ConfidenceKind::None,
        by: By {
            source: AnswerSource::Pool,
            pool: Some("vlm-large".into()),
            model: "example-72b".into(),
            model_sha256: None,
            backend: None,
            ep: "remote".into(),
            total: Duration::from_millis(1840),
            prefill: None,
            decode: None,
            tokens_out: Some(2),
        },
    };
    draft.escalation = Escalation {
        outcome: EscalationOutcome::Answered,
        attempts: 1,
        bytes_up: 41_300,
        ..draft.escalation
    };
    let json = draft.to_json(
        Origin {
            node: "gate-01",
            cam: "yard",
        },
        &moment(),
        u64::MAX,
        1,
    );
    insta::assert_snapshot!(shown(&json), @r#"
    {
      "v": 1,
      "type": "update",
      "event_type": "update",
      "id": "0193",
      "epoch": "ffffffffffffffff",
      "seq": 1,
      "node": "gate-01",
      "cam": "yard",
      "rule": "person",
      "time": "2026-11-23T08:51:00.123Z",
      "mono_ms": 7312345,
      "boot_id": "b1f00d42",
      "clock": "synced",
      "frame": {
        "time": "2026-11-23T08:50:59.870Z",
        "w": 768,
        "h": 432,
        "sha256": "d31e"
      },
      "question": "Is there a person?",
      "answer": "no",
      "state": "OFF",
      "late": true,
      "confidence": null,
      "confidence_kind": "none",
      "by": {
        "where": "pool",
        "pool": "vlm-large",
        "model": "example-72b",
        "ep": "remote",
        "total_ms": 1840,
        "tokens_out": 2
      },
      "first": {
        "answer": "yes",
        "confidence": 0.62,
        "confidence_kind": "candidates",
        "where": "local",
        "model": "nano-edge",
        "model_sha256": "ab12",
        "backend": "tract",
        "ep": "tract",
        "total_ms": 310,
        "prefill_ms": 200,
        "decode_ms": 40,
        "tokens_out": 1
      },
      "reasons": [
        "LOW_CONFIDENCE"
      ],
      "escalation": {
        "outcome": "answered",
        "reasons": [
          "LOW_CONFIDENCE"
        ],
        "threshold": 0.9,
        "attempts": 1,
        "bytes_up": 41300,
        "deadline_ms": 8000
      },
      "image": {
        "topic": "egret/gate-01/cam/yard/snapshot",
        "bytes": 41233,
        "sha256": "d31e"
      }
    }
    "#);
    insta::assert_snapshot!(shown(&draft.attributes_json(&moment())), @r#"
    {
      "id": "0193",
      "time": "2026-11-23T08:51:00.123Z",
      "question": "Is there a person?",
      "answer": "no",
      "confidence": null,
      "confidence_kind": "none",
      "by": {
        "where": "pool",
        "pool": "vlm-large",
        "model": "example-72b",
        "ep": "remote",
        "total_ms": 1840,
        "tokens_out": 2
      },
      "reasons": [
        "LOW_CONFIDENCE"
      ],
      "outcome": "answered"
    }
    "#);
}

#[test]
fn states() {
    let alert = ["yes".to_owned()];
    assert_eq!(
        [
            RuleState::of("yes", &alert),
            RuleState::of("no", &alert),
            RuleState::of("yes", &[])
        ]
        .map(RuleState::as_str),
        ["ON", "OFF", "unknown"]
    );
}
