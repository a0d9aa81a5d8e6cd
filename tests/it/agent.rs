//! `egret run` as its users meet it: checks, commands, cameras that fail, and the end.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use firmware_config::agent::AgentConfig;
use runtime::mqtt::{Link, LinkOptions, LinkState, Publication};
use runtime::pipeline;
use runtime::record::Nobody;
use tests::broker::Broker;
use tests::ledger::Ledger;
use tests::scripted::{Scripted, pictures};

fn camera(id: &str, folder: &Path) -> String {
    format!(
        r#"
[[camera]]
id = "{id}"
source = "dir://{}"
rate = "25/s"
gate = {{ motion = 0, max-age = "30s" }}
[[camera.rule]]
id = "person"
question = "Is there a person?"
answers = ["yes", "no"]
alert = ["yes"]
"#,
        folder.display()
    )
}

fn config(broker: Option<&str>, cameras: &[String]) -> String {
    let broker = broker.map(|url| format!("[mqtt]\nurl = \"{url}\"\n")).unwrap_or_default();
    format!("[node]\nid = \"gate-01\"\n[model]\nbundle = \"/nowhere\"\n{broker}{}", cameras.concat())
}

fn check(text: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.toml");
    std::fs::write(&file, text).unwrap();
    Command::new(tests::program("egret")).args(["run", "--check", "--config"]).arg(file).output().unwrap()
}

#[test]
fn check_tells_what_would_run() {
    let output = check(&config(Some("mqtt://127.0.0.1:1883"), &[camera("yard", Path::new("/frames"))]));
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    for expected in ["node gate-01", "broker 127.0.0.1:1883", "camera yard: folder /frames", "rule person"] {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
}

#[test]
fn check_tells_every_error_at_once() {
    let text = config(Some("http://127.0.0.1"), &[camera("YARD", Path::new("/frames"))]).replace("rate = \"25/s\"", "rate = \"often\"");
    let output = check(&text);
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    for expected in ["http://127.0.0.1", "YARD", "often"] {
        assert!(said.contains(expected), "{expected:?} in {said}");
    }
}

#[test]
fn a_missing_bundle_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.toml");
    std::fs::write(&file, config(None, &[camera("yard", folder.path())])).unwrap();
    let output = Command::new(tests::program("egret")).args(["run", "--config"]).arg(file).output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8(output.stderr).unwrap().contains("/nowhere"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_camera_that_fails_does_not_touch_the_others() {
    let frames = tempfile::tempdir().unwrap();
    let garbage = tempfile::tempdir().unwrap();
    pictures(frames.path(), 20);
    pictures(garbage.path(), 2);
    std::fs::write(garbage.path().join("00000.png"), b"not a picture").unwrap();
    std::fs::write(garbage.path().join("00002.jpg"), b"\xff\xd8\xff").unwrap();
    let broker = Broker::start();
    let ledger = Ledger::keep(&broker.url()).await;
    let cameras = [camera("yard", frames.path()), camera("garbage", garbage.path()), camera("gone", Path::new("/nowhere/at/all"))];
    let config = AgentConfig::parse(&config(Some(&broker.url()), &cameras), "egret.toml").unwrap();
    let summary = pipeline::run_with(Scripted::flapping(0.95), config, Arc::new(Nobody), std::future::pending()).await.unwrap();
    assert_eq!((summary.totals.answers, summary.totals.frames_bad), (21, 2));
    ledger.mark(&broker.url()).await;
    let status = |cam: &str| ledger.state(&format!("egret/gate-01/cam/{cam}/status")).unwrap();
    assert!(status("yard").contains(r#""state":"ended""#), "{}", status("yard"));
    assert!(status("gone").contains(r#""state":"offline""#) && status("gone").contains("/nowhere/at/all"), "{}", status("gone"));
    assert!(ledger.state("egret/gate-01/status").unwrap().contains(r#""state":"stopped""#));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kill_switch_is_thrown_over_mqtt_and_never_by_a_retained_message() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 400);
    let broker = Broker::start();
    let ledger = Ledger::keep(&broker.url()).await;
    let pool = "[[pool]]\nid = \"big\"\nurl = \"http://127.0.0.1:9/v1\"\nmodel = \"m\"\n".to_owned();
    let text = config(Some(&broker.url()), &[camera("yard", frames.path()), pool]);
    let config = AgentConfig::parse(&text, "egret.toml").unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let agent = tokio::spawn(async {
        let stopped = async { _ = stopped.await };
        pipeline::run_with(Scripted::flapping(0.5), config, Arc::new(Nobody), stopped).await.unwrap()
    });
    let state = |expected: &'static str| {
        let ledger = ledger.clone();
        async move { ledger.wait_until(|ledger| ledger.state("egret/gate-01/kill-switch/state").as_deref() == Some(expected)).await }
    };
    state("off").await;
    let (link, task, _deliveries) =
        Link::open(LinkOptions::new(AgentConfig::parse(&text, "egret.toml").unwrap().mqtt.unwrap(), "operator"));
    tokio::spawn(task.run(std::future::pending()));
    link.status().wait_for(|status| status.state == LinkState::Up).await.unwrap();
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
    ledger.wait_until(|ledger| ledger.events()[before..].iter().any(|event| event["reasons"][0] == "KILL_SWITCH")).await;
    stop.send(()).unwrap();
    let summary = agent.await.unwrap();
    assert_eq!(summary.totals.commands_refused, 1);
    assert_eq!(summary.events_undelivered, 0);
}

#[test]
fn ctrl_c_ends_it_with_its_own_code() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 1000);
    let broker = Broker::start();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo").canonicalize().unwrap();
    let text = config(Some(&broker.url()), &[camera("yard", frames.path())]);
    let text = text.replace("/nowhere", &demo.join("bundles/nano-edge").display().to_string());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("egret.toml");
    std::fs::write(&file, text).unwrap();
    let mut agent = Command::new(tests::program("egret")).args(["run", "--config"]).arg(file).spawn().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ledger = Ledger::keep(&broker.url()).await;
        ledger.wait_until(|ledger| ledger.received() >= 1).await;
        Command::new("kill").args(["-INT", &agent.id().to_string()]).status().unwrap();
        ledger.wait_until(|ledger| ledger.state("egret/gate-01/status").is_some_and(|status| status.contains("stopped"))).await;
    });
    assert_eq!(agent.wait().unwrap().code(), Some(130));
}
