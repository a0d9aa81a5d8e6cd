//! Events are delivered although the broker, a worker or the agent is killed. Checked by the
//! (epoch, seq) received: repeats are allowed, missing ones are not.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use firmware_config::agent::AgentConfig;
use firmware_config::manifest::Precision;
use runtime::metrics::Totals;
use runtime::observe::{EventLog, Observer, Record};
use runtime::pipeline;
use serde_json::Value;
use tests::broker::Broker;
use tests::bundles::bundle;
use tests::config::folder_camera;
use tests::ledger::Ledger;
use tests::scripted::{Scripted, pictures};
use tests::started::Started;
use tests::subscriber::Subscriber;
use tests::synth::Synthetic;
use tokio::task::JoinHandle;

/// A broker that saves every change, as the documentation recommends.
const PERSISTENT: &str =
    "persistence true\nautosave_on_changes true\nautosave_interval 1\nuser root\n";

/// One camera that reads `frames`, followed by `more`.
fn config(broker: &str, frames: &Path, more: &str) -> String {
    tests::config::config(
        Some(broker),
        &[folder_camera("yard", frames), more.to_owned()],
    )
}

fn start(text: &str, model: Scripted, observer: Arc<dyn Observer>) -> JoinHandle<Totals> {
    let config = AgentConfig::parse(text, "egret.toml").unwrap();
    tokio::spawn(async {
        pipeline::run_with(model, config, observer, std::future::pending())
            .await
            .unwrap()
    })
}

/// Waits until the ledger has recorded every event that the agent produced.
async fn all_recorded(ledger: &Ledger, totals: &Totals) {
    let produced = totals.events_produced;
    assert_eq!((totals.events_queued(), totals.events_dropped), (0, 0));
    ledger
        .wait_until(|ledger| ledger.epochs() == [(produced, produced)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_repeatedly_loses_no_event() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 120);
    let mut broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    let agent = start(
        &config(&broker.url(), frames.path(), ""),
        Scripted::flapping(0.95),
        Arc::new(EventLog),
    );
    for events in [10, 60, 61, 150] {
        ledger
            .wait_until(|ledger| ledger.received() >= events)
            .await;
        broker.kill();
        broker.restart();
    }
    let totals = agent.await.unwrap();
    assert_eq!(totals.answers, 120);
    assert_eq!(
        totals.events_produced, 240,
        "one new and one end for each answer"
    );
    all_recorded(&ledger, &totals).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_returns_late_receives_every_event() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 10);
    let mut broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    // A broker that is killed before it has saved a subscription does not deliver to it, even if
    // we publish again.
    broker.wait_saved("egret/+/kill-switch/state");
    broker.kill();
    let produced = Arc::new(Produced::default());
    let agent = start(
        &config(&broker.url(), frames.path(), ""),
        Scripted::flapping(0.95),
        produced.clone(),
    );
    // It continues to answer without a broker.
    produced.reach(20).await;
    broker.restart();
    all_recorded(&ledger, &agent.await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_dropped_by_a_full_outbox_are_declared() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 30);
    let mut broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    // A broker that is killed before it has saved a subscription does not deliver to it, even if
    // we publish again.
    broker.wait_saved("egret/+/kill-switch/state");
    broker.kill();
    let produced = Arc::new(Produced::default());
    let text = config(&broker.url(), frames.path(), "")
        .replace("[[camera]]", "outbox-events = 8\n[[camera]]");
    let agent = start(&text, Scripted::flapping(0.95), produced.clone());
    produced.reach(60).await;
    broker.restart();
    let totals = agent.await.unwrap();
    assert_eq!(
        (
            totals.events_produced,
            totals.events_published,
            totals.events_dropped
        ),
        (60, 8, 52)
    );
    ledger
        .wait_until(|ledger| ledger.epochs() == [(60, 60)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_loses_its_own_answers_only() {
    let frames = tempfile::tempdir().unwrap();
    // More than needed: the agent is stopped when the second worker has answered.
    pictures(frames.path(), 4000);
    let broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    let url = broker.url();
    let bundle = bundle(&Synthetic::micro(), Precision::Fp32);
    let worker = || {
        let args = [
            "worker",
            "--backend",
            "tract",
            "--pool",
            "big",
            "--mqtt",
            &url,
            "--bundle",
        ];
        Started::egret(args.map(PathBuf::from).into_iter().chain([bundle.clone()]))
    };
    let mut first = worker();
    let pool = "pool = \"big\"\n[[pool]]\nid = \"big\"\nmqtt = true\nmodel = \"m\"\ndeadline = \"2s\"\n[policy]\nin-flight = 64\n";
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let parsed = AgentConfig::parse(&config(&url, frames.path(), pool), "egret.toml").unwrap();
    let agent = tokio::spawn(async {
        let stopped = async { _ = stopped.await };
        pipeline::run_with(Scripted::flapping(0.5), parsed, Arc::new(EventLog), stopped)
            .await
            .unwrap()
    });
    let outcomes = |ledger: &Ledger, outcome: &str| {
        ledger
            .events()
            .iter()
            .filter(|event| event["type"] == "update" && event["escalation"]["outcome"] == outcome)
            .count()
    };
    ledger
        .wait_until(|ledger| outcomes(ledger, "answered") >= 1)
        .await;
    first.kill();
    let answered = outcomes(&ledger, "answered");
    ledger
        .wait_until(|ledger| outcomes(ledger, "expired") >= 1)
        .await;
    // If the breaker has opened, this waits for its half-open trial, after 30 s.
    let _second = worker();
    ledger
        .wait_until(|ledger| outcomes(ledger, "answered") > answered + 1)
        .await;
    stop.send(()).unwrap();
    let totals = agent.await.unwrap();
    assert_eq!(
        totals.pool_answered + totals.pool_failed,
        totals.answers_escalated
    );
    all_recorded(&ledger, &totals).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_leaves_no_missing_event_before_its_last() {
    let folder = tempfile::tempdir().unwrap();
    let broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    let text = config(&broker.url(), &tests::demo("frames/lobby"), "");
    let text = text.replace(
        "/nowhere",
        &tests::demo("bundles/nano-edge").display().to_string(),
    );
    let file = folder.path().join("egret.toml");
    std::fs::write(&file, text).unwrap();
    let start = || {
        Command::new(tests::program("egret"))
            .arg("run")
            .arg("--config")
            .arg(&file)
            .spawn()
            .unwrap()
    };
    for starts in 1..=3 {
        let mut agent = start();
        ledger
            .wait_until(|ledger| {
                ledger.epochs().len() == starts
                    && ledger.epochs().iter().all(|(_, events)| *events >= 3)
            })
            .await;
        // No clean shutdown, as in a power cut.
        agent.kill().unwrap();
        agent.wait().unwrap();
    }
    // The broker delivers in the order of arrival, so no publication of the agents comes after the
    // mark.
    ledger.mark(&broker.url()).await;
    let epochs = ledger.epochs();
    assert!(
        epochs.iter().all(|(contiguous, all)| contiguous == all),
        "{epochs:?}"
    );

    // No agent reconnected, so the broker publishes the last will, with the epoch of the agent that
    // registered it.
    let last_epoch = ledger.events().last().unwrap()["epoch"].clone();
    let status = |ledger: &Ledger| -> Value {
        serde_json::from_str(&ledger.state("egret/gate-01/status").unwrap()).unwrap()
    };
    ledger
        .wait_until(|ledger| status(ledger)["state"] == "offline")
        .await;
    assert_eq!(status(&ledger)["epoch"], last_epoch);
    let late = Subscriber::open(&broker.url(), "late")
        .await
        .received()
        .await;
    let kept = late
        .iter()
        .find(|publication| publication.topic == "egret/gate-01/status")
        .unwrap();
    assert!(
        kept.retain
            && std::str::from_utf8(&kept.payload)
                .unwrap()
                .contains("offline"),
        "{kept:?}"
    );
    let mut agent = start();
    ledger
        .wait_until(|ledger| status(ledger)["state"] == "online")
        .await;
    assert_ne!(status(&ledger)["epoch"], last_epoch);
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// Counts the events produced.
#[derive(Default)]
struct Produced(AtomicU64);

impl Observer for Produced {
    fn observe(&self, record: &Record) {
        if let Record::Event { seq, .. } = record {
            self.0.store(*seq, Ordering::Relaxed);
        }
    }
}

impl Produced {
    async fn reach(&self, events: u64) {
        while self.0.load(Ordering::Relaxed) < events {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
