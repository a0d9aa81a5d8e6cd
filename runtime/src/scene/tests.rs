//! A scene's core, fed input by input, and its effects read like a subscriber would.

use std::time::Duration;

use bytes::Bytes;
use firmware_config::agent::{AgentConfig, KillSwitch};
use jiff::Timestamp;
use vlm::Picture;
use vlm::answer::{Answer, Confidence, ConfidenceSource, FinishReason, Timings};

use super::core::{CallId, Effect, Input, SceneCore};
use crate::capture::admitted::AdmittedFrame;
use crate::capture::status::{CameraState, CameraStatus};
use crate::decide::call::Called;
use crate::deliver::post::{Kind, Post};
use crate::observe::Record;
use crate::pool::{EscalationError, Spent};
use crate::random::Ids;
use crate::reason::Reason;
use crate::settled::{AnswerSource, By, ConfidenceKind, Settled};

const CONFIG: &str = r#"
[node]
id = "gate-01"
[model]
bundle = "/nowhere"
[mqtt]
url = "mqtt://127.0.0.1:1883"
[[camera]]
id = "yard"
source = "rtsp://192.0.2.7/1"
[[camera.rule]]
id = "person"
question = "Is there a person?"
answers = ["yes", "no"]
alert = ["yes"]
[[pool]]
id = "big"
mqtt = true
model = "m"
"#;

struct SceneRig {
    core: SceneCore,
    now: Duration,
    frames: u64,
}

impl SceneRig {
    /// The scene of the first camera.
    fn new() -> SceneRig {
        SceneRig::of_last_camera("")
    }

    /// The scene of the camera that `camera` adds to the configuration.
    fn of_last_camera(camera: &str) -> SceneRig {
        let text = format!("{CONFIG}{camera}");
        let config = AgentConfig::parse(&text, "egret.toml").expect("a configuration");
        let online = CameraStatus {
            state: CameraState::Online,
            ..CameraStatus::opening(Timestamp::UNIX_EPOCH)
        };
        let core = SceneCore::new(
            &config,
            config.cameras.last().expect("a camera"),
            crate::infer::tests::identity(),
            online,
            Ids::seeded(1),
        );
        SceneRig {
            core,
            now: Duration::ZERO,
            frames: 0,
        }
    }

    fn on(&mut self, input: Input) -> Vec<Effect> {
        self.core.on(input, self.now)
    }

    /// Everything that comes of one frame and its local answer, as lines; and the call, if one is
    /// wanted.
    fn look(&mut self, answer: &str, p: f64, kill_switch: KillSwitch) -> (String, Option<CallId>) {
        self.frames += 1;
        let mut effects = self.on(Input::Frame(frame(self.frames)));
        let answer = Ok(local(answer, p));
        effects.extend(self.on(Input::Answer {
            answer,
            kill_switch,
        }));
        let call = effects.iter().find_map(|effect| match effect {
            Effect::Call { call, .. } => Some(*call),
            _ => None,
        });
        (lines(&effects), call)
    }
}

fn frame(number: u64) -> AdmittedFrame {
    AdmittedFrame {
        number,
        time: Timestamp::UNIX_EPOCH,
        name: None,
        picture: Picture::from_rgb(1, 1, vec![0; 3]).expect("one pixel"),
        jpeg: Bytes::from_static(b"\xff\xd8"),
        sha256: format!("f{number}"),
    }
}

fn local(text: &str, p: f64) -> Answer {
    Answer {
        text: text.into(),
        finish_reason: FinishReason::Stop,
        tokens: Vec::new(),
        candidates: Vec::new(),
        confidence: Confidence {
            p,
            source: ConfidenceSource::Candidates,
        },
        prompt_tokens: 81,
        timings: Timings::default(),
        trace: None,
    }
}

fn called(result: Result<&str, Reason>) -> Called<Settled> {
    let settled = |text: &str| Settled {
        text: text.into(),
        confidence: None,
        confidence_kind: ConfidenceKind::None,
        by: By {
            source: AnswerSource::Pool,
            pool: Some("big".into()),
            model: "m".into(),
            model_sha256: None,
            backend: None,
            ep: "remote".into(),
            total: Duration::from_secs(1),
            prefill: None,
            decode: None,
            tokens_out: None,
        },
    };
    Called {
        pool: "big".into(),
        result: result
            .map(settled)
            .map_err(|reason| EscalationError::new(reason, "why")),
        spent: Spent::default(),
        cost_usd: None,
        latency: Duration::from_secs(1),
    }
}

/// Events, states of one word, and what is asked of the outside; other effects are left out.
fn lines(effects: &[Effect]) -> String {
    let lines = effects.iter().filter_map(|effect| match effect {
        Effect::Ask(requests) => Some(format!("ask {}", requests.len())),
        Effect::StopAsking => Some("stop asking".into()),
        Effect::Call { pool, .. } => Some(format!("call {pool:?}")),
        Effect::Cancel(..) => Some("cancel".into()),
        Effect::Post(Post::Event { draft, .. }) => {
            let reasons: Vec<_> = draft
                .escalation
                .reasons
                .iter()
                .map(|r| r.as_str())
                .collect();
            Some(format!(
                "{:?} {} {} {:?} {}{}",
                draft.step,
                draft.settled.text,
                draft.state.as_str(),
                draft.escalation.outcome,
                reasons.join("+"),
                if draft.late { " late" } else { "" },
            ))
        }
        Effect::Post(Post::Retained {
            topic,
            payload,
            kind: Kind::Word,
        }) => Some(format!("{topic} {}", String::from_utf8_lossy(payload))),
        Effect::Post(Post::Retained { .. }) => None,
        Effect::Record(Record::AnswerFailed { error, .. }) => Some(format!("failed: {error}")),
        Effect::Record(Record::TimedOut { .. }) => Some("timed out".into()),
        Effect::Record(Record::Event { seq, .. }) => Some(format!("stored {seq}")),
        Effect::Record(_) => None,
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn a_sure_answer_is_kept_and_ends_with_the_frames() {
    let mut rig = SceneRig::new();
    let (seen, call) = rig.look("yes", 0.95, KillSwitch::Off);
    assert_eq!(
        (seen.as_str(), call),
        ("ask 1\nNew yes ON None CONFIDENT", None)
    );
    let ended = rig.on(Input::FramesEnded);
    assert_eq!(lines(&ended), "End yes ON None CONFIDENT");
    assert!(rig.core.is_finished());
}

#[test]
fn an_unsure_answer_waits_for_its_call_to_be_made() {
    let mut rig = SceneRig::new();
    let (seen, call) = rig.look("yes", 0.6, KillSwitch::Off);
    assert_eq!(seen, "ask 1\ncall Some(\"big\")", "no event yet");
    let call = call.expect("a call");
    let made = rig.on(Input::CallMade(call));
    assert_eq!(lines(&made), "New yes ON Pending LOW_CONFIDENCE");
    let ended = rig.on(Input::CallEnded(call, called(Ok("no"))));
    assert_eq!(lines(&ended), "Update no OFF Answered LOW_CONFIDENCE");
    let again = rig.on(Input::CallEnded(call, called(Ok("yes"))));
    assert_eq!(lines(&again), "", "a call ends once");
}

#[test]
fn the_first_reason_of_a_denied_call_says_what_denied_it() {
    for reason in [
        Reason::NoCapableModel,
        Reason::LinkDown,
        Reason::BreakerOpen,
        Reason::Busy,
        Reason::BudgetCalls,
        Reason::BudgetBytes,
        Reason::BudgetUsd,
    ] {
        let mut rig = SceneRig::new();
        let call = rig.look("yes", 0.6, KillSwitch::Off).1.expect("a call");
        let denied = rig.on(Input::CallDenied(call, EscalationError::new(reason, "why")));
        let expected = format!("New yes ON Denied {}+LOW_CONFIDENCE", reason.as_str());
        assert_eq!(lines(&denied), expected);
    }
}

#[test]
fn the_kill_switch_in_force_when_the_answer_comes_counts() {
    let mut rig = SceneRig::new();
    let (seen, call) = rig.look("yes", 0.6, KillSwitch::LocalOnly);
    let expected = "ask 1\nNew yes ON Denied KILL_SWITCH+LOW_CONFIDENCE";
    assert_eq!((seen.as_str(), call), (expected, None));
    let (seen, call) = rig.look("yes", 0.99, KillSwitch::PoolOnly);
    assert_eq!(seen, "ask 1\ncall Some(\"big\")");
    assert!(call.is_some());
}

#[test]
fn a_lost_camera_ends_its_events_and_its_states_are_unknown() {
    let away = |state, losses| CameraStatus {
        state,
        reason: "gone".into(),
        since: Timestamp::UNIX_EPOCH,
        losses,
    };
    let topic = "egret/gate-01/cam/yard/rule/person/state";
    let ends = format!("End yes ON None CONFIDENT\n{topic} unknown");

    let mut rig = SceneRig::new();
    rig.look("yes", 0.95, KillSwitch::Off);
    let stalled = rig.on(Input::Camera(away(CameraState::Stalled, 1)));
    assert_eq!(lines(&stalled), ends);
    let offline = rig.on(Input::Camera(away(CameraState::Offline, 1)));
    assert_eq!(lines(&offline), "", "there is nothing left to end");

    let mut rig = SceneRig::new();
    rig.look("yes", 0.95, KillSwitch::Off);
    let back = rig.on(Input::Camera(away(CameraState::Online, 1)));
    assert_eq!(lines(&back), ends, "it went away and came back unseen");

    let mut rig = SceneRig::new();
    rig.on(Input::Frame(frame(1)));
    rig.on(Input::Camera(away(CameraState::Stalled, 1)));
    let answer = Ok(local("yes", 0.95));
    let kill_switch = KillSwitch::Off;
    let answered = rig.on(Input::Answer {
        answer,
        kill_switch,
    });
    let expected = format!("New yes ON None CONFIDENT\n{ends}");
    assert_eq!(lines(&answered), expected, "its last frame was on its way");
}

#[test]
fn a_stop_gives_what_was_begun_until_its_deadline() {
    let mut rig = SceneRig::new();
    let call = rig.look("yes", 0.6, KillSwitch::Off).1.expect("a call");
    rig.on(Input::CallMade(call));
    rig.on(Input::Frame(frame(2)));
    let deadline = Duration::from_secs(2);
    assert_eq!(rig.core.next_wake(), None);
    assert_eq!(lines(&rig.on(Input::Stop { deadline })), "");
    assert_eq!(rig.core.next_wake(), Some(deadline));

    rig.now = deadline;
    assert_eq!(
        lines(&rig.on(Input::Tick)),
        "failed: the agent stops\nstop asking\ncancel\ntimed out"
    );
    assert!(
        !rig.core.is_finished(),
        "the cancelled call has an outcome to come"
    );
    assert_eq!(lines(&rig.on(Input::Frame(frame(3)))), "", "no more frames");
    let ended = rig.on(Input::CallEnded(call, called(Err(Reason::Deadline))));
    assert_eq!(
        lines(&ended),
        "Update yes ON Expired DEADLINE+LOW_CONFIDENCE\nEnd yes ON Expired DEADLINE+LOW_CONFIDENCE"
    );
    assert!(rig.core.is_finished());
    assert_eq!(
        (rig.core.next_wake(), lines(&rig.on(Input::Tick))),
        (None, String::new())
    );
}

#[test]
fn calls_under_way_are_waited_for_at_the_end_of_a_source() {
    let mut rig = SceneRig::new();
    let call = rig.look("yes", 0.6, KillSwitch::Off).1.expect("a call");
    rig.on(Input::CallMade(call));
    assert_eq!(lines(&rig.on(Input::FramesEnded)), "");
    let ended = rig.on(Input::CallEnded(call, called(Ok("yes"))));
    assert_eq!(
        lines(&ended),
        "Update yes ON Answered LOW_CONFIDENCE\nEnd yes ON Answered LOW_CONFIDENCE"
    );
}

#[test]
fn events_are_shown_with_the_places_they_were_given_in_order() {
    let mut rig = SceneRig::new();
    rig.look("yes", 0.95, KillSwitch::Off);
    rig.look("no", 0.95, KillSwitch::Off);
    let shown: Vec<_> = [7, 9, 11]
        .map(|seq| lines(&rig.on(Input::Stored(seq))))
        .into();
    assert_eq!(
        shown,
        ["stored 7", "stored 9", "stored 11"],
        "new, end, new"
    );
    assert_eq!(
        lines(&rig.on(Input::Stored(12))),
        "",
        "nothing else was posted"
    );
}

#[test]
fn a_model_that_fails_or_is_gone_costs_answers_only() {
    let rule = |id| format!("[[camera.rule]]\nid = \"{id}\"\nquestion = \"Is it {id}?\"\n");
    let camera = "[[camera]]\nid = \"dock\"\nsource = \"rtsp://192.0.2.7/3\"\n";
    let rules = ["open", "lit", "wet"].map(rule).concat();
    let mut rig = SceneRig::of_last_camera(&format!("{camera}{rules}"));
    rig.on(Input::Frame(frame(1)));
    let failed = rig.on(Input::Answer {
        answer: Err("out of memory".into()),
        kill_switch: KillSwitch::Off,
    });
    assert_eq!(lines(&failed), "failed: out of memory");
    assert!(rig.core.is_asking(), "two rules are left");
    let gone = "failed: the inference thread has stopped";
    assert_eq!(
        lines(&rig.on(Input::ModelGone)),
        format!("{gone}\n{gone}"),
        "each rule that is left failed"
    );
    assert!(!rig.core.is_asking());
}

#[test]
fn a_must_escalate_rule_is_unknown_until_a_pool_answers() {
    let camera = "[[camera]]\nid = \"dock\"\nsource = \"rtsp://192.0.2.7/3\"\n[[camera.rule]]\nid = \"leak\"\nquestion = \"Is there a leak?\"\nanswers = [\"yes\", \"no\"]\nalert = [\"yes\"]\nroute = \"must-escalate\"\n";
    let mut rig = SceneRig::of_last_camera(camera);
    let call = rig.look("yes", 0.99, KillSwitch::Off).1.expect("a call");
    let made = rig.on(Input::CallMade(call));
    assert_eq!(lines(&made), "New yes unknown Pending MUST_ESCALATE");
    let ended = rig.on(Input::CallEnded(call, called(Ok("yes"))));
    assert_eq!(lines(&ended), "Update yes ON Answered MUST_ESCALATE");
}
