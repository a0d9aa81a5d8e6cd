//! The programs of `examples/`, run against a real broker as their readers would run them.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;

use firmware_config::agent::AgentConfig;
use runtime::clock::Clock;
use runtime::deliver::topics::Topics;
use runtime::metrics::Totals;
use runtime::mqtt::{Link, LinkOptions, LinkState, Publication};
use runtime::observe::Log;
use runtime::pipeline;
use runtime::random::Random;
use serde_json::{Value, json};
use tests::broker::Broker;
use tests::config::{self, config, folder_camera};
use tests::ledger::Ledger;
use tests::scripted::{Scripted, pictures};

/// A Python program of `examples/`; killed when dropped.
struct Example {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Example {
    /// Starts it, and returns when the broker has confirmed its subscription.
    fn start(name: &str, args: &[&str]) -> Example {
        let python = std::env::var_os("EGRET_TEST_PYTHON").unwrap_or_else(|| "python3".into());
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
        let mut child = Command::new(python)
            .arg(folder.join(name))
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 with paho-mqtt is installed; tests/run.sh installs it");
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut example = Example { child, output };
        assert_eq!(example.line(), "subscribed");
        example
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it ended: {:?}", self.child.wait());
        line.trim_end().to_owned()
    }

    /// Its lines up to `last`, without it.
    fn lines_until(&mut self, last: &str) -> Vec<String> {
        std::iter::repeat_with(|| self.line())
            .take_while(|line| line != last)
            .collect()
    }

    /// Asks it to stop; returns the line that it then prints, and its exit code.
    fn stop(&mut self) -> (String, Option<i32>) {
        let asked = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(asked.success(), "kill: {asked}");
        (self.line(), self.child.wait().unwrap().code())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Either may fail only because it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An agent that looks at `count` images and ends.
async fn agent(broker: &Broker, count: usize, confidence: f64, more: &str) -> Totals {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), count);
    let text = config(
        Some(&broker.url()),
        &[folder_camera("yard", frames.path()), more.to_owned()],
    );
    let config = AgentConfig::parse(&text, "egret.toml").unwrap();
    pipeline::run_with(
        Scripted::flapping(confidence),
        config,
        Arc::new(Log),
        std::future::pending(),
    )
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumer_misses_nothing_of_an_agent() {
    let broker = Broker::start();
    let mut consumer = Example::start("consumer.py", &[&broker.url()]);
    let totals = agent(&broker, 4, 0.95, "").await;
    let lines = consumer.lines_until("status gate-01 stopped");
    assert_eq!(lines[0], "status gate-01 online");
    let opened: Vec<_> = lines
        .iter()
        .filter(|line| line.starts_with("new "))
        .collect();
    assert_eq!(
        opened[..2],
        [
            "new gate-01/yard/person ON: yes (scripted, CONFIDENT)",
            "new gate-01/yard/person OFF: no (scripted, CONFIDENT)"
        ]
    );
    assert_eq!(opened.len(), 4);
    let expected = format!("{} events, missing: nothing", totals.events_produced);
    assert_eq!(consumer.stop(), (expected, Some(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_consumer_finds_holes_and_honours_gaps_and_repeats() {
    let broker = Broker::start();
    let mut consumer = Example::start("consumer.py", &[&broker.url()]);
    let (link, task, _deliveries) = Link::open(
        LinkOptions::new(config::mqtt(&broker.url()), "by-hand"),
        Clock::system(),
        Random::from_system(),
    );
    tokio::spawn(task.run(std::future::pending()));
    link.status()
        .wait_for(|status| status.state == LinkState::Up)
        .await
        .unwrap();
    let of = Topics::new("gate-02");
    let status = |state: &str| (of.status(), json!({"state": state, "epoch": "a1"}));
    let event = |epoch: &str, seq: u64| {
        let event = json!({
            "node": "gate-02", "cam": "yard", "rule": "person", "epoch": epoch, "seq": seq,
            "type": "new", "state": "ON", "answer": "yes", "by": {"model": "m"},
            "reasons": ["CONFIDENT"],
        });
        (of.event("yard"), event)
    };
    let gap = json!({"epoch": "a1", "from_seq": 2, "to_seq": 2, "reason": "size", "count": 1});
    let publications = [
        status("online"),
        event("a1", 1),
        event("a1", 4),
        (of.gap(), gap),
        event("a1", 3),
        event("a1", 3),
        // An epoch that began before the consumer subscribed.
        event("b2", 70),
        event("a1", 6),
        status("stopped"),
    ];
    for (topic, payload) in publications {
        let payload = Value::to_string(&payload).into();
        link.publish(Publication {
            topic,
            payload,
            ..Publication::default()
        })
        .await
        .unwrap();
    }
    let seen = "new gate-02/yard/person ON: yes (m, CONFIDENT)";
    assert_eq!(
        consumer.lines_until("status gate-02 stopped"),
        [
            "status gate-02 online",
            seen,
            "missing of gate-02/a1: 2..3",
            seen,
            "gap 2..2: size",
            "missing of gate-02/a1: 3..3",
            "missing of gate-02/a1: nothing",
            seen,
            "repeat 3",
            seen,
            "missing of gate-02/a1: 5..5",
            seen,
        ]
    );
    let summary = "5 events, missing: {('gate-02', 'a1'): ['5..5']}".to_owned();
    assert_eq!(consumer.stop(), (summary, Some(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_worker_answers_for_a_pool() {
    let broker = Broker::start();
    let ledger = Ledger::keep(&broker.url()).await;
    let _worker = Example::start("worker.py", &[&broker.url(), "site"]);
    let pool = "pool = \"site\"\n[[pool]]\nid = \"site\"\nmqtt = true\nmodel = \"some-vlm\"\ndeadline = \"60s\"\n";
    let totals = agent(&broker, 2, 0.5, pool).await;
    assert_eq!((totals.pool_answered, totals.pool_failed), (2, 0));
    let answered = |ledger: &Ledger| {
        ledger
            .events()
            .into_iter()
            .filter(|event| event["by"]["model"] == "first-answer")
            .filter(|event| event["type"] == "update")
            .map(|event| event["answer"].clone())
            .collect::<Vec<_>>()
    };
    ledger
        .wait_until(|ledger| answered(ledger).len() == 2)
        .await;
    assert_eq!(answered(&ledger), ["yes", "yes"]);
}
