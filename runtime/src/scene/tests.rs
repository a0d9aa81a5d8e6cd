//! A scene with a scripted model, real pools that nobody answers for, and its posts read like a
//! subscriber would.

use std::net::TcpListener;

use firmware_config::agent::AgentConfig;
use jiff::Timestamp;

use super::*;
use crate::deliver::event::Draft;
use crate::deliver::mqtt::{Link, LinkOptions};
use crate::infer::tests::Scripted;
use crate::observe::Log;

const CAMERA: &str = r#"
[node]
id = "gate-01"
[model]
bundle = "/nowhere"
[[camera]]
id = "yard"
source = "dir:///frames"
rate = "1/s"
[[camera.rule]]
id = "person"
question = "Is there a person?"
answers = ["yes", "no"]
alert = ["yes"]
"#;

/// A rule's camera, its surroundings with what is posted, and the thread of its model.
struct Rig {
    scene: Scene,
    posted: mpsc::Receiver<Post>,
    frames: (handoff::Sender<Sighting>, handoff::Receiver<Sighting>),
    status: (watch::Sender<CameraStatus>, watch::Receiver<CameraStatus>),
    deadline: (
        watch::Sender<Option<Instant>>,
        watch::Receiver<Option<Instant>>,
    ),
    in_force: InForce,
}

impl Rig {
    /// A scene whose model says `yes` with the probability `p`, and the rest of its configuration.
    fn new(p: f64, rest: &str) -> Rig {
        let config =
            AgentConfig::parse(&format!("{CAMERA}{rest}"), "egret.toml").expect("a configuration");
        let link = config
            .mqtt
            .clone()
            .map(|mqtt| Link::open(LinkOptions::new(mqtt, "scene")).0);
        let pools = Pools::new(&config.pools, link, &config.node.id).expect("pools");
        let (model, inference) = crate::infer::channel(Scripted::new(move |_| ("yes".into(), p)));
        std::thread::spawn(move || inference.run());
        let (posts, posted) = mpsc::channel(64);
        let in_force = InForce::new(&config.policy);
        let around = Surroundings {
            node: config.node.id.clone(),
            model,
            pools,
            in_force: in_force.clone(),
            posts,
            clock: Arc::new(Clock::start()),
            metrics: Arc::default(),
            watcher: Arc::new(Log),
        };
        let online = CameraStatus {
            state: CameraState::Online,
            ..CameraStatus::opening()
        };
        Rig {
            scene: Scene::new(&config.cameras[0], around),
            posted,
            frames: handoff::latest(),
            status: watch::channel(online),
            deadline: watch::channel(None),
            in_force,
        }
    }

    /// Runs the scene on one frame to its end, while `meanwhile` may do things to it; then
    /// everything that was posted, a line each.
    async fn told(self, meanwhile: impl AsyncFnOnce(&Outside)) -> String {
        let Rig {
            scene,
            mut posted,
            frames: (sender, frames),
            status,
            deadline,
            in_force,
        } = self;
        let running = tokio::spawn(scene.run(frames, status.1, deadline.1));
        sender.hand_over(sighting());
        let outside = Outside {
            status: status.0,
            deadline: deadline.0,
            in_force,
        };
        meanwhile(&outside).await;
        drop(sender);
        running.await.expect("the scene ends");
        let mut lines = Vec::new();
        while let Some(post) = posted.recv().await {
            lines.extend(line(post));
        }
        lines.join("\n")
    }
}

/// What the rest of the agent may do to a scene.
struct Outside {
    status: watch::Sender<CameraStatus>,
    deadline: watch::Sender<Option<Instant>>,
    in_force: InForce,
}

fn sighting() -> Sighting {
    let picture = Picture::from_rgb(1, 1, vec![0; 3]).expect("one pixel");
    Sighting {
        number: 1,
        time: Timestamp::UNIX_EPOCH,
        name: None,
        picture,
        jpeg: Bytes::from_static(b"\xff\xd8"),
        sha256: "f1".into(),
    }
}

/// Events, and states that are not known any more.
fn line(post: Post) -> Option<String> {
    match post {
        Post::Event { draft, .. } => {
            let Draft {
                step,
                settled,
                state,
                escalation,
                ..
            } = *draft;
            let reasons: Vec<_> = escalation
                .reasons
                .iter()
                .map(|reason| reason.as_str())
                .collect();
            Some(format!(
                "{step:?} {} {} {:?} {}",
                settled.text,
                state.as_str(),
                escalation.outcome,
                reasons.join("+")
            ))
        }
        Post::Standing {
            topic,
            payload,
            kind: Kind::Word,
        } => Some(format!("{topic} {}", String::from_utf8_lossy(&payload))),
        Post::Standing { .. } => None,
    }
}

/// A pool that takes connections and says nothing.
fn silent_pool() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}/v1", listener.local_addr().expect("bound"));
    let pool = format!(
        "[[pool]]\nid = \"big\"\nurl = \"{url}\"\nmodel = \"m\"\ndeadline = \"60s\"\nusd-per-call = 0.01\n"
    );
    (listener, pool)
}

#[tokio::test]
async fn what_is_in_the_way_of_an_escalation_is_its_first_reason() {
    let (_listener, pool) = silent_pool();
    let broker = "[mqtt]\nurl = \"mqtt://127.0.0.1:1\"\n";
    for (reason, rest) in [
        ("NO_CAPABLE_MODEL", String::new()),
        ("NO_CAPABLE_MODEL", format!("{pool}images = false\n")),
        (
            "LINK_DOWN",
            format!("{broker}[[pool]]\nid = \"big\"\nmqtt = true\nmodel = \"m\"\n"),
        ),
        (
            "BUDGET_CALLS",
            format!("{pool}[policy]\ncalls-per-minute = 0\n"),
        ),
        (
            "BUDGET_BYTES",
            format!("{pool}[policy]\nbytes-per-minute = \"1B\"\n"),
        ),
        (
            "BUDGET_USD",
            format!("{pool}[policy]\nusd-per-day = 0.001\n"),
        ),
        (
            "KILL_SWITCH",
            format!("{pool}[policy]\nkill-switch = \"local-only\"\n"),
        ),
    ] {
        let told = Rig::new(0.6, &rest).told(async |_| ()).await;
        let escalation = format!("Denied {reason}+LOW_CONFIDENCE");
        assert_eq!(
            told,
            format!("New yes ON {escalation}\nEnd yes ON {escalation}"),
            "{rest}"
        );
    }
}

#[tokio::test]
async fn the_default_pool_is_the_first_that_takes_pictures() {
    let (listener, pool) = silent_pool();
    let blind = pool.replace("\"big\"", "\"blind\"") + "images = false\n";
    let told = Rig::new(0.6, &format!("{blind}{pool}"))
        .told(async |outside| stop_once_asked(outside, listener).await)
        .await;
    assert!(
        told.starts_with("New yes ON Pending LOW_CONFIDENCE"),
        "{told}"
    );
}

/// Lets the scene's time run out as soon as the pool has been connected to.
async fn stop_once_asked(outside: &Outside, listener: TcpListener) {
    let _connection = tokio::task::spawn_blocking(move || listener.accept()).await;
    outside.deadline.send_replace(Some(Instant::now()));
}

#[tokio::test]
async fn a_sure_answer_is_kept_without_a_pool_in_sight() {
    let told = Rig::new(0.95, "").told(async |_| ()).await;
    assert_eq!(told, "New yes ON None CONFIDENT\nEnd yes ON None CONFIDENT");
}

#[tokio::test]
async fn a_call_cut_short_by_the_end_of_the_agent_has_an_outcome() {
    let (listener, pool) = silent_pool();
    let told = Rig::new(0.6, &pool)
        .told(async |outside| stop_once_asked(outside, listener).await)
        .await;
    let expired = "yes ON Expired DEADLINE+LOW_CONFIDENCE";
    assert_eq!(
        told,
        format!("New yes ON Pending LOW_CONFIDENCE\nUpdate {expired}\nEnd {expired}")
    );
}

#[tokio::test]
async fn the_kill_switch_ends_a_call_under_way() {
    let (listener, pool) = silent_pool();
    let told = Rig::new(0.6, &pool).told(async |outside| {
        // Its connection is there, so the question is on its way.
        let _ = tokio::task::spawn_blocking(move || listener.accept()).await;
        outside
            .in_force
            .set_kill_switch(agent::KillSwitch::LocalOnly);
    });
    let denied = "yes ON Denied KILL_SWITCH+LOW_CONFIDENCE";
    assert_eq!(
        told.await,
        format!("New yes ON Pending LOW_CONFIDENCE\nUpdate {denied}\nEnd {denied}")
    );
}

#[tokio::test]
async fn nothing_stays_open_behind_a_camera_that_went() {
    let told = Rig::new(0.95, "").told(async |outside| {
        // Before the frame's answer is there: the model's thread was not even asked.
        outside
            .status
            .send_modify(|status| (status.state, status.losses) = (CameraState::Stalled, 1));
    });
    assert_eq!(
        told.await,
        "New yes ON None CONFIDENT\nEnd yes ON None CONFIDENT\negret/gate-01/cam/yard/rule/person/state unknown"
    );
}
