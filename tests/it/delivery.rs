//! Events arrive whatever is killed: the broker, a worker, the agent. Held by books over (epoch,
//! seq); repeats are allowed, holes not.

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

/// A broker that saves with every change, as the documentation asks for.
const PERSISTENT: &str =
    "persistence true\nautosave_on_changes true\nautosave_interval 1\nuser root\n";

/// One camera at `frames`, and what follows its rule.
fn config(broker: &str, frames: &Path, more: &str) -> String {
    tests::config::config(
        Some(broker),
        &[folder_camera("yard", frames), more.to_owned()],
    )
}

fn start(text: &str, model: Scripted, watcher: Arc<dyn Observer>) -> JoinHandle<Totals> {
    let config = AgentConfig::parse(text, "egret.toml").unwrap();
    tokio::spawn(async {
        pipeline::run_with(model, config, watcher, std::future::pending())
            .await
            .unwrap()
    })
}

/// Everything the agent made is in the books.
async fn balanced(ledger: &Ledger, totals: &Totals) {
    let made = totals.events_produced;
    assert_eq!((totals.events_queued(), totals.events_dropped), (0, 0));
    ledger
        .wait_until(|ledger| ledger.epochs() == [(made, made)])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_again_and_again_leaves_no_hole() {
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
    balanced(&ledger, &totals).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_late_gets_everything() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 10);
    let mut broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    // A broker that dies before it saved a subscription hands nothing on to it, whatever we send
    // again.
    broker.wait_saved("egret/+/kill-switch/state");
    broker.kill();
    let made = Arc::new(Made::default());
    let agent = start(
        &config(&broker.url(), frames.path(), ""),
        Scripted::flapping(0.95),
        made.clone(),
    );
    // It goes on answering without.
    made.reach(20).await;
    broker.restart();
    balanced(&ledger, &agent.await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_outbox_is_declared() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 30);
    let mut broker = Broker::with(PERSISTENT);
    let ledger = Ledger::keep(&broker.url()).await;
    // A broker that dies before it saved a subscription hands nothing on to it, whatever we send
    // again.
    broker.wait_saved("egret/+/kill-switch/state");
    broker.kill();
    let made = Arc::new(Made::default());
    let text = config(&broker.url(), frames.path(), "")
        .replace("[[camera]]", "outbox-events = 8\n[[camera]]");
    let agent = start(&text, Scripted::flapping(0.95), made.clone());
    made.reach(60).await;
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
async fn a_worker_killed_in_mid_run_costs_its_answers_only() {
    let frames = tempfile::tempdir().unwrap();
    // More than will be looked at: it is stopped when the second worker has answered.
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
    // If the breaker opened meanwhile, this waits for its trial: half a minute.
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
    balanced(&ledger, &totals).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_in_mid_run_leaves_no_hole_before_its_end() {
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
    for lives in 1..=3 {
        let mut agent = start();
        ledger
            .wait_until(|ledger| {
                ledger.epochs().len() == lives
                    && ledger.epochs().iter().all(|(_, events)| *events >= 3)
            })
            .await;
        // No goodbye, as in a power cut.
        agent.kill().unwrap();
        agent.wait().unwrap();
    }
    // The broker hands messages on in the order in which it got them: behind this one is nothing of
    // the agents'.
    ledger.mark(&broker.url()).await;
    let epochs = ledger.epochs();
    assert!(epochs.iter().all(|(whole, all)| whole == all), "{epochs:?}");

    // Nobody came back, so the broker tells the last will, in the name of the life that it belongs
    // to.
    let last_life = ledger.events().last().unwrap()["epoch"].clone();
    let status = |ledger: &Ledger| -> Value {
        serde_json::from_str(&ledger.state("egret/gate-01/status").unwrap()).unwrap()
    };
    ledger
        .wait_until(|ledger| status(ledger)["state"] == "offline")
        .await;
    assert_eq!(status(&ledger)["epoch"], last_life);
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
    assert_ne!(status(&ledger)["epoch"], last_life);
    agent.kill().unwrap();
    agent.wait().unwrap();
}

/// Counts the events made.
#[derive(Default)]
struct Made(AtomicU64);

impl Observer for Made {
    fn observe(&self, record: &Record) {
        if let Record::Event { seq, .. } = record {
            self.0.store(*seq, Ordering::Relaxed);
        }
    }
}

impl Made {
    async fn reach(&self, events: u64) {
        while self.0.load(Ordering::Relaxed) < events {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}
