//! `egret run` as a user runs it: --check, commands, failing cameras, and shutdown.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use firmware_config::agent::AgentConfig;
use runtime::clock::Clock;
use runtime::mqtt::{Link, LinkOptions, LinkState, Publication};
use runtime::observe::EventLog;
use runtime::pipeline::{self, RunError};
use runtime::random::Random;
use tests::broker::Broker;
use tests::config::{camera, config, folder_camera};
use tests::ledger::Ledger;
use tests::rtsp::RtspServer;
use tests::scripted::{Scripted, pictures};

fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.toml");
    std::fs::write(&file, text).unwrap();
    Command::new(tests::program("egret"))
        .args(["run", "--check", "--config"])
        .arg(file)
        .output()
        .unwrap()
}

#[test]
fn check_lists_what_would_run() {
    let output = check(&config(
        Some("mqtt://127.0.0.1:1883"),
        &[folder_camera("yard", Path::new("/frames"))],
    ));
    assert!(output.status.success(), "{output:?}");
    let stdout = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "node gate-01",
        "broker 127.0.0.1:1883",
        "camera yard: folder /frames",
        "rule person",
    ] {
        assert!(stdout.contains(expected), "{expected:?} in {stdout}");
    }
}

#[test]
fn check_reports_every_error_at_once() {
    let text = config(
        Some("http://127.0.0.1"),
        &[folder_camera("YARD", Path::new("/frames"))],
    )
    .replace("rate = \"25/s\"", "rate = \"often\"");
    let output = check(&text);
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8(output.stderr).unwrap();
    for expected in ["http://127.0.0.1", "YARD", "often"] {
        assert!(stderr.contains(expected), "{expected:?} in {stderr}");
    }
}

#[test]
fn a_missing_bundle_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.toml");
    std::fs::write(&file, config(None, &[folder_camera("yard", folder.path())])).unwrap();
    let output = Command::new(tests::program("egret"))
        .args(["run", "--config"])
        .arg(file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(74));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("/nowhere")
    );
}

#[test]
fn check_warns_about_configured_paths_that_do_not_exist() {
    let output = check(&config(
        None,
        &[folder_camera("yard", Path::new("/no/frames"))],
    ));
    assert!(
        output.status.success(),
        "a missing path is not an error of --check: {output:?}"
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    for expected in [
        "camera yard: /no/frames: No such file",
        "model: ",
        "/nowhere",
    ] {
        assert!(stderr.contains(expected), "{expected:?} in {stderr}");
    }
}

#[test]
fn nothing_to_run_is_an_error() {
    let output = check(&config(None, &[]));
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("nothing to run: add a [[camera]]"),
        "{stderr}"
    );
}

#[test]
fn a_source_that_cannot_be_read_ends_with_an_error() {
    let output = run_on_the_demo_bundle(
        &config(None, &[folder_camera("yard", Path::new("/no/frames"))]),
        |_| {},
    );
    assert_eq!(output.status.code(), Some(74));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("/no/frames") && stderr.contains("1 of the cameras' folders or files"),
        "{stderr}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_the_model_ends_the_whole_agent() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 1000);
    let broker = Broker::start();
    let ledger = Ledger::keep(&broker.url()).await;
    let config = AgentConfig::parse(
        &config(Some(&broker.url()), &[folder_camera("yard", frames.path())]),
        "egret.toml",
    )
    .unwrap();
    let mut left = 5;
    let model = Scripted::new(move |_| {
        left -= 1;
        assert!(left > 0, "the scripted panic");
        ("yes".into(), 0.95)
    });
    let error = pipeline::run_with(model, config, Arc::new(EventLog), std::future::pending())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, RunError::Fault { part } if part == "the inference thread"),
        "{error}"
    );
    ledger
        .wait_until(|ledger| {
            ledger
                .state("egret/gate-01/status")
                .is_some_and(|status| status.contains("stopped"))
        })
        .await;
    assert_eq!(
        ledger.epochs(),
        [(2, 2)],
        "the events before the panic are published: new and end"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_camera_that_fails_does_not_affect_the_others() {
    let frames = tempfile::tempdir().unwrap();
    let garbage = tempfile::tempdir().unwrap();
    pictures(frames.path(), 20);
    pictures(garbage.path(), 2);
    std::fs::write(garbage.path().join("00000.png"), b"not an image").unwrap();
    std::fs::write(garbage.path().join("00002.jpg"), b"\xff\xd8\xff").unwrap();
    let broker = Broker::start();
    let ledger = Ledger::keep(&broker.url()).await;
    let cameras = [
        folder_camera("yard", frames.path()),
        folder_camera("garbage", garbage.path()),
        folder_camera("gone", Path::new("/nowhere/at/all")),
    ];
    let config = AgentConfig::parse(&config(Some(&broker.url()), &cameras), "egret.toml").unwrap();
    let totals = pipeline::run_with(
        Scripted::flapping(0.95),
        config,
        Arc::new(EventLog),
        std::future::pending(),
    )
    .await
    .unwrap();
    assert_eq!(
        (totals.answers, totals.frames_bad, totals.sources_failed),
        (21, 2, 1)
    );
    ledger.mark(&broker.url()).await;
    let status = |cam: &str| {
        ledger
            .state(&format!("egret/gate-01/cam/{cam}/status"))
            .unwrap()
    };
    assert!(
        status("yard").contains(r#""state":"ended""#),
        "{}",
        status("yard")
    );
    assert!(
        status("gone").contains(r#""state":"offline""#)
            && status("gone").contains("/nowhere/at/all"),
        "{}",
        status("gone")
    );
    assert!(
        ledger
            .state("egret/gate-01/status")
            .unwrap()
            .contains(r#""state":"stopped""#)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_is_set_over_mqtt_but_not_by_a_retained_message() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 400);
    let broker = Broker::start();
    let ledger = Ledger::keep(&broker.url()).await;
    let pool =
        "[[pool]]\nid = \"big\"\nurl = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\n".to_owned();
    let text = config(
        Some(&broker.url()),
        &[folder_camera("yard", frames.path()), pool],
    );
    let config = AgentConfig::parse(&text, "egret.toml").unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let agent = tokio::spawn(async {
        let stopped = async { _ = stopped.await };
        pipeline::run_with(Scripted::flapping(0.5), config, Arc::new(EventLog), stopped)
            .await
            .unwrap()
    });
    let state = |expected: &'static str| {
        let ledger = ledger.clone();
        async move {
            ledger
                .wait_until(|ledger| {
                    ledger.state("egret/gate-01/kill-switch/state").as_deref() == Some(expected)
                })
                .await
        }
    };
    state("off").await;
    let (link, task, _deliveries) = Link::open(
        LinkOptions::new(
            AgentConfig::parse(&text, "egret.toml")
                .unwrap()
                .mqtt
                .unwrap(),
            "operator",
        ),
        Clock::system(),
        Random::from_system(),
    );
    tokio::spawn(task.run(std::future::pending()));
    link.status()
        .wait_for(|status| status.state == LinkState::Up)
        .await
        .unwrap();
    let set = |payload: &'static str, retain| Publication {
        topic: "egret/gate-01/kill-switch/set".into(),
        payload: payload.into(),
        retain,
        ..Publication::default()
    };
    link.publish(set("pool-only", true)).await.unwrap();
    link.publish(set("local-only", false)).await.unwrap();
    state("local-only").await;
    let before = ledger.events().len();
    ledger
        .wait_until(|ledger| {
            ledger.events()[before..]
                .iter()
                .any(|event| event["reasons"][0] == "KILL_SWITCH")
        })
        .await;
    stop.send(()).unwrap();
    let totals = agent.await.unwrap();
    assert_eq!(totals.commands_refused, 1);
    assert_eq!(totals.events_queued(), 0);
}

/// Runs `egret run` on `text` with the demo's model, and `meanwhile` with its process id.
fn run_on_the_demo_bundle(text: &str, meanwhile: impl FnOnce(u32)) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.toml");
    std::fs::write(
        &file,
        text.replace(
            "/nowhere",
            &tests::demo("bundles/nano-edge").display().to_string(),
        ),
    )
    .unwrap();
    let mut agent = Command::new(tests::program("egret"));
    let agent = agent
        .args(["run", "--config"])
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    meanwhile(agent.id());
    agent.wait_with_output().unwrap()
}

/// The exit code of an agent that receives `signal` after its first event, once its status is
/// `stopped`.
fn exit_code_after(signal: &str) -> Option<i32> {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 1000);
    let broker = Broker::start();
    let text = config(Some(&broker.url()), &[folder_camera("yard", frames.path())]);
    let output = run_on_the_demo_bundle(&text, |agent| {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let ledger = Ledger::keep(&broker.url()).await;
            ledger.wait_until(|ledger| ledger.received() >= 1).await;
            Command::new("kill")
                .args([signal, &agent.to_string()])
                .status()
                .unwrap();
            ledger
                .wait_until(|ledger| {
                    ledger
                        .state("egret/gate-01/status")
                        .is_some_and(|status| status.contains("stopped"))
                })
                .await;
        });
    });
    output.status.code()
}

/// Fills a folder with images of a person and of an empty room alternately, so that every answer
/// ends one event and begins another.
fn alternating_frames(folder: &Path, count: usize) {
    let (person, empty) = (
        tests::demo("frames/lobby/068500.jpg"),
        tests::demo("frames/lobby/072000.jpg"),
    );
    for i in 0..count {
        std::os::unix::fs::symlink(
            if i % 2 == 0 { &person } else { &empty },
            folder.join(format!("{i:05}.jpg")),
        )
        .unwrap();
    }
}

/// What the ledger has recorded of camera `yard`: its status, its rule's state, and the step and id
/// of its last event.
fn yard(ledger: &Ledger) -> (String, String, Option<(String, String)>) {
    let state = |topic| {
        ledger
            .state(&format!("egret/gate-01/cam/yard/{topic}"))
            .unwrap_or_default()
    };
    let status: serde_json::Value = serde_json::from_str(&state("status")).unwrap_or_default();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let last = ledger
        .events()
        .into_iter()
        .rfind(|event| event["cam"] == "yard");
    (
        text(&status["state"]),
        state("rule/person/state"),
        last.map(|event| (text(&event["type"]), text(&event["id"]))),
    )
}

/// Waits until camera `yard` is online with an open event, and returns the id of the event.
async fn wait_online(ledger: &Ledger) -> String {
    let open = |ledger: &Ledger| match yard(ledger) {
        (status, state, Some((step, id)))
            if status == "online" && ["ON", "OFF"].contains(&&*state) && step != "end" =>
        {
            Some(id)
        }
        _ => None,
    };
    ledger.wait_until(|ledger| open(ledger).is_some()).await;
    open(ledger).unwrap_or_default()
}

/// Waits until camera `yard` has `status`, no open event and an unknown rule state, and the other
/// camera has published four more events.
async fn wait_interrupted(ledger: &Ledger, status: &str) {
    let others = |ledger: &Ledger| {
        ledger
            .events()
            .iter()
            .filter(|event| event["cam"] == "lobby")
            .count()
    };
    ledger
        .wait_until(|ledger| match yard(ledger) {
            (found, state, Some((step, _))) => {
                found == status && state == "unknown" && step == "end"
            }
            _ => false,
        })
        .await;
    let before = others(ledger);
    ledger
        .wait_until(|ledger| others(ledger) >= before + 4)
        .await;
}

#[test]
fn a_camera_that_stalls_or_disconnects_is_reported_and_recovers_while_the_other_continues() {
    let frames = tempfile::tempdir().unwrap();
    alternating_frames(frames.path(), 4000);
    let mut server = RtspServer::start();
    let broker = Broker::start();
    let yard = camera("yard", &server.url(""))
        .replace("[[camera.rule]]", "stall-after = \"3s\"\n[[camera.rule]]");
    let text = config(
        Some(&broker.url()),
        &[yard, folder_camera("lobby", frames.path())],
    )
    .replace("25/s", "4/s");
    let output = run_on_the_demo_bundle(&text, |agent| {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let ledger = Ledger::keep(&broker.url()).await;
            let first = wait_online(&ledger).await;
            server.stall();
            wait_interrupted(&ledger, "stalled").await;
            server.go_on();
            let second = wait_online(&ledger).await;
            server.vanish();
            wait_interrupted(&ledger, "offline").await;
            server.come_back();
            let third = wait_online(&ledger).await;
            assert!(
                first != second && second != third,
                "every interruption begins a new event: {first} {second} {third}"
            );
            Command::new("kill")
                .args(["-TERM", &agent.to_string()])
                .status()
                .unwrap();
            ledger
                .wait_until(|ledger| {
                    ledger
                        .state("egret/gate-01/status")
                        .is_some_and(|status| status.contains("stopped"))
                })
                .await;
            ledger.mark(&broker.url()).await;
            let [(contiguous, all)] = ledger.epochs()[..] else {
                panic!("expected one epoch: {:?}", ledger.epochs())
            };
            assert_eq!(contiguous, all, "no event is missing");
        });
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn sigint_exits_with_130() {
    assert_eq!(exit_code_after("-INT"), Some(130));
}

#[test]
fn sigterm_exits_with_0() {
    assert_eq!(exit_code_after("-TERM"), Some(0));
}

#[test]
fn the_gateway_serves_beside_the_cameras_and_after_they_end() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 2);
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let text = format!(
        "{}[gateway]\nlisten = \"127.0.0.1:{port}\"\n",
        config(None, &[folder_camera("yard", frames.path())])
    );
    let output = run_on_the_demo_bundle(&text, |agent| {
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let url = format!("http://127.0.0.1:{port}/v1/chat/completions");
            let body = serde_json::json!({"model": "auto", "messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 4});
            let client = tests::http_client();
            let reply = loop {
                // It listens only after it has loaded its model.
                match client.post(&url).header("content-type", "application/json").body(body.to_string()).send().await {
                    Ok(reply) => break reply,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                }
            };
            let reply: serde_json::Value = serde_json::from_slice(&reply.bytes().await.unwrap()).unwrap();
            assert_eq!(reply["model"], "nano-edge", "{reply}");
        });
        Command::new("kill")
            .args(["-TERM", &agent.to_string()])
            .status()
            .unwrap();
    });
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
