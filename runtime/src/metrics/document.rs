//! Holds `docs/metrics.md` to the registry. `EGRET_UPDATE_DOCS=1` writes it anew.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use firmware_config::agent::KillSwitch;

use super::{GateDecision, Metrics, RequestOutcome, Section};
use crate::capture::status::CameraState;
use crate::decide::router::{Route, Target};
use crate::openai::reply::Usage;
use crate::reason::Reason;

/// What stands above the tables is written by hand.
const MARK: &str =
    "<!-- From here on generated: EGRET_UPDATE_DOCS=1 cargo test -p runtime --lib metrics -->\n";

const SECTIONS: [(Section, &str); 4] = [
    (Section::Agent, "Agent: `egret run`"),
    (Section::Routing, "Routing: `egret run` and `egret serve`"),
    (
        Section::Gateway,
        "Gateway: `egret run` with `[gateway]`, and `egret serve`",
    ),
    (
        Section::Worker,
        "Worker: `egret worker`, counted and logged, not exposed",
    ),
];

/// Metrics of `section`, each with a sample: a family without one is not encoded.
fn sampled(section: Section) -> Metrics {
    let metrics = Metrics::new(&[section]);
    let took = Duration::from_millis(300);
    let route = Route {
        target: Target::Local,
        reasons: vec![Reason::Confident],
    };
    metrics.agent.frame("lobby", GateDecision::Admit);
    metrics.agent.answer("lobby", "person", &route, took);
    metrics.agent.camera_state("lobby", CameraState::Online);
    metrics
        .routing
        .pool_call("big", Err(Reason::Deadline), took);
    metrics.routing.kill_switch(KillSwitch::Off);
    metrics.gateway.answered("local", "PIN", took, 0);
    metrics.gateway.used(Usage::default());
    metrics.gateway.failed(400);
    metrics.worker.request(RequestOutcome::Answered);
    metrics
}

/// One metric, as the text format shows it.
struct Row<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    labels: Vec<&'a str>,
}

fn rows(text: &str) -> Vec<Row<'_>> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|l| l.split_once(' ')) {
            rows.push(Row {
                name,
                help,
                kind: "",
                labels: Vec::new(),
            });
            continue;
        }
        let row = rows.last_mut().unwrap();
        if let Some((_, kind)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
            row.kind = kind;
        } else if let Some((_, rest)) = line.split_once('{') {
            let (pairs, _) = rest.rsplit_once('}').unwrap();
            // No sample has a comma in a value.
            let names = pairs.split(',').map(|pair| pair.split_once('=').unwrap().0);
            row.labels = names.filter(|name| *name != "le").collect();
        }
    }
    rows
}

fn unit(name: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    match () {
        () if name.ends_with("_seconds") => "seconds",
        () if name.ends_with("_bytes") => "bytes",
        () => "",
    }
}

fn tables() -> String {
    let mut text = String::new();
    for (section, title) in SECTIONS {
        writeln!(text, "\n## {title}\n").unwrap();
        text.push_str("| name | type | unit | labels | meaning |\n|---|---|---|---|---|\n");
        for row in rows(&sampled(section).text()) {
            let labels: Vec<_> = row.labels.iter().map(|name| format!("`{name}`")).collect();
            writeln!(
                text,
                "| `{}` | {} | {} | {} | {} |",
                row.name,
                row.kind,
                unit(row.name),
                labels.join(", "),
                row.help
            )
            .unwrap();
        }
    }
    text
}

#[test]
fn every_registered_metric_is_sampled() {
    for (section, title) in SECTIONS {
        let metrics = sampled(section);
        let registered = format!("{:?}", metrics.exposed)
            .matches("Descriptor {")
            .count();
        assert_eq!(
            rows(&metrics.text()).len(),
            registered,
            "{title}: give the new one a sample in `sampled`"
        );
    }
}

#[test]
fn the_document_lists_every_metric() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let (head, listed) = document
        .split_once(MARK)
        .expect("docs/metrics.md has the mark");
    let expected = tables();
    if std::env::var_os("EGRET_UPDATE_DOCS").is_some() {
        return std::fs::write(&path, format!("{head}{MARK}{expected}")).unwrap();
    }
    assert_eq!(
        listed, expected,
        "docs/metrics.md is out of date; run this test with EGRET_UPDATE_DOCS=1"
    );
}

#[test]
fn names_and_types_follow_the_conventions() {
    for (section, _) in SECTIONS {
        for row in rows(&sampled(section).text()) {
            let Row { name, help, .. } = row;
            assert!(name.starts_with("egret_"), "{name}");
            assert_eq!(row.kind == "counter", name.ends_with("_total"), "{name}");
            assert_eq!(
                row.kind == "histogram",
                name.ends_with("_seconds"),
                "{name}"
            );
            assert!(
                help.len() > 10 && help.ends_with('.') && !help.ends_with(".."),
                "{name}: {help}"
            );
        }
    }
}
