//! `/metrics` of the gateway and of the agent, read by Prometheus' own Python parser.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use firmware_config::agent::AgentConfig;
use runtime::observe::Log;
use runtime::pipeline;
use serde::Deserialize;
use serde_json::json;
use tests::broker::Broker;
use tests::config::{config, folder_camera};
use tests::pool_server::{Act, PoolServer};
use tests::scripted::{Scripted, pictures};

use crate::gateway::{alone, ask, said};

#[derive(Debug, Deserialize)]
struct Family {
    r#type: String,
    samples: Vec<Sample>,
}

#[derive(Debug, Deserialize)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

/// What Prometheus reads at `url`.
#[derive(Debug)]
struct Scraped(BTreeMap<String, Family>);

impl Scraped {
    async fn at(url: String) -> Scraped {
        // The parser waits for the server, so it must not stand in the way of the server's tasks.
        let read = move || {
            let python = std::env::var_os("EGRET_TEST_PYTHON").unwrap_or_else(|| "python3".into());
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/it/metrics/scrape.py");
            Command::new(python).arg(script).arg(url).output().unwrap()
        };
        let output = tokio::task::spawn_blocking(read).await.unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Scraped(serde_json::from_slice(&output.stdout).unwrap())
    }

    /// The family's type; `None` when it is not there.
    fn kind(&self, family: &str) -> Option<&str> {
        self.0.get(family).map(|family| family.r#type.as_str())
    }

    /// The value of the series with exactly these labels; `None` when it is not there.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted = labels
            .iter()
            .map(|&(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let mut samples = self.0.values().flat_map(|family| &family.samples);
        samples
            .find(|sample| sample.name == name && sample.labels == wanted)
            .map(|sample| sample.value)
    }
}

#[tokio::test]
async fn the_gateways_metrics_are_read_by_prometheus() {
    let gateway = alone("edge");
    assert_eq!(
        ask(&gateway, said("local", json!({"n": 3}))).await.status(),
        400
    );
    assert_eq!(ask(&gateway, said("local", json!({}))).await.status(), 200);
    let root = gateway.url().trim_end_matches("/v1").to_owned();
    let scraped = Scraped::at(format!("{root}/metrics")).await;

    for (family, kind) in [
        ("egret_gateway_answers", "counter"),
        ("egret_gateway_errors", "counter"),
        ("egret_gateway_connections_cut", "counter"),
        ("egret_gateway_decision_duration_seconds", "histogram"),
        ("egret_link_up", "gauge"),
        ("egret_kill_switch", "gauge"),
    ] {
        assert_eq!(scraped.kind(family), Some(kind), "{family} in {scraped:?}");
    }
    assert_eq!(scraped.kind("egret_frames"), None, "there are no cameras");
    for (name, labels, expected) in [
        (
            "egret_gateway_answers_total",
            &[("where", "local"), ("reason", "PIN")][..],
            1.0,
        ),
        ("egret_gateway_errors_total", &[("status", "400")], 1.0),
        ("egret_gateway_decision_duration_seconds_count", &[], 1.0),
        ("egret_gateway_pool_request_bytes_total", &[], 0.0),
        ("egret_kill_switch", &[("state", "off")], 1.0),
        ("egret_kill_switch", &[("state", "local-only")], 0.0),
    ] {
        let found = scraped.value(name, labels);
        assert_eq!(found, Some(expected), "{name} {labels:?} in {scraped:?}");
    }
    let tokens = |name| scraped.value(name, &[]).unwrap();
    assert!(
        tokens("egret_gateway_prompt_tokens_total") > 0.0,
        "{scraped:?}"
    );
    assert!(
        (1.0..=4.0).contains(&tokens("egret_gateway_completion_tokens_total")),
        "{scraped:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_metrics_are_read_by_prometheus() {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 3);
    std::fs::write(frames.path().join("00003.png"), b"not a picture").unwrap();
    let broker = Broker::start();
    let big = PoolServer::start([Act::Say("yes")]).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let sections = [
        folder_camera("yard", frames.path()),
        folder_camera("gone", Path::new("/nowhere/at/all")),
        format!(
            "[[pool]]\nid = \"big\"\nurl = \"{}\"\nmodel = \"some-vlm\"\n",
            big.url()
        ),
        format!("[gateway]\nlisten = \"127.0.0.1:{port}\"\n"),
    ];
    let config = AgentConfig::parse(&config(Some(&broker.url()), &sections), "egret.toml").unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let agent = tokio::spawn(async {
        let stopped = async { _ = stopped.await };
        // Sure of the first answer alone.
        let mut confidence = [0.95, 0.5, 0.5].into_iter();
        let model = Scripted::new(move |_| ("yes".into(), confidence.next().unwrap_or(0.95)));
        pipeline::run_with(model, config, Arc::new(Log), stopped)
            .await
            .unwrap()
    });
    // The folder has an end, the gateway goes on: what is counted then stays as it is.
    let url = format!("http://127.0.0.1:{port}/metrics");
    let scraped = tokio::time::timeout(Duration::from_secs(60), settled(url))
        .await
        .expect("the pool has answered twice, and the broker has taken every event");

    for (family, kind) in [
        ("egret_frames", "counter"),
        ("egret_camera_frames", "counter"),
        ("egret_camera_state", "gauge"),
        ("egret_local_answer_duration_seconds", "histogram"),
        ("egret_pool_call_duration_seconds", "histogram"),
        ("egret_outbox_bytes", "gauge"),
        ("egret_gateway_connections_cut", "counter"),
    ] {
        assert_eq!(scraped.kind(family), Some(kind), "{family} in {scraped:?}");
    }
    for (name, labels, expected) in [
        ("egret_frames_total", &[][..], 4.0),
        ("egret_frames_bad_total", &[], 1.0),
        ("egret_answers_total", &[], 3.0),
        ("egret_sources_failed_total", &[], 1.0),
        (
            "egret_camera_frames_total",
            &[("camera", "yard"), ("decision", "admit")],
            3.0,
        ),
        (
            "egret_camera_frames_total",
            &[("camera", "yard"), ("decision", "unusable")],
            1.0,
        ),
        (
            "egret_camera_state",
            &[("camera", "yard"), ("state", "ended")],
            1.0,
        ),
        (
            "egret_camera_state",
            &[("camera", "gone"), ("state", "offline")],
            1.0,
        ),
        (
            "egret_camera_state",
            &[("camera", "gone"), ("state", "online")],
            0.0,
        ),
        (
            "egret_rule_answers_total",
            &[("camera", "yard"), ("rule", "person"), ("route", "local")],
            1.0,
        ),
        (
            "egret_rule_answers_total",
            &[
                ("camera", "yard"),
                ("rule", "person"),
                ("route", "escalate"),
            ],
            2.0,
        ),
        (
            "egret_route_reasons_total",
            &[("route", "escalate"), ("reason", "LOW_CONFIDENCE")],
            2.0,
        ),
        ("egret_local_answer_duration_seconds_count", &[], 3.0),
        (
            "egret_pool_calls_total",
            &[("pool", "big"), ("outcome", "answered")],
            2.0,
        ),
        (
            "egret_pool_call_duration_seconds_count",
            &[("pool", "big")],
            2.0,
        ),
        ("egret_outbox_events", &[], 0.0),
        ("egret_link_up", &[], 1.0),
        ("egret_link_connections_total", &[], 1.0),
        ("egret_kill_switch", &[("state", "off")], 1.0),
    ] {
        let found = scraped.value(name, labels);
        assert_eq!(found, Some(expected), "{name} {labels:?} in {scraped:?}");
    }
    stop.send(()).unwrap();
    let totals = agent.await.unwrap();
    assert_eq!(
        (totals.frames, totals.answers, totals.events_queued()),
        (4, 3, 0)
    );
}

/// What the agent shows once it has nothing left to do.
async fn settled(url: String) -> Scraped {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if tests::http_client().get(&url).send().await.is_err() {
            continue; // It does not listen yet.
        }
        let scraped = Scraped::at(url.clone()).await;
        let total = |name| scraped.value(name, &[]).unwrap_or(0.0);
        let produced = total("egret_events_produced_total");
        if total("egret_pool_answered_total") == 2.0
            && produced > 0.0
            && total("egret_events_published_total") == produced
        {
            return scraped;
        }
    }
}
