//! What is on the broker, to whoever listens: which topics, how long each is kept, and what it says
//! of itself.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use firmware_config::agent::AgentConfig;
use runtime::deliver::mqtt::{Publication, Qos};
use runtime::observe::EventLog;
use runtime::pipeline;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tests::broker::Broker;
use tests::config::{config, folder_camera};
use tests::scripted::{Scripted, pictures};
use tests::subscriber::Subscriber;

const HOUR: Duration = Duration::from_secs(3600);
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

/// A topic below `egret/gate-01/`.
struct Topic {
    name: &'static str,
    qos: Qos,
    retained: bool,
    expiry: Option<Duration>,
    content_type: &'static str,
}

/// One that is kept until there is a newer value.
const fn state(name: &'static str, content_type: &'static str) -> Topic {
    Topic {
        name,
        qos: Qos::AtLeastOnce,
        retained: true,
        expiry: None,
        content_type,
    }
}

const JSON: &str = "application/json";
const WORD: &str = "text/plain";
const EVENT: &str = "cam/yard/event";
const SNAPSHOT: &str = "cam/yard/snapshot";

const TOPICS: [Topic; 9] = [
    state("status", JSON),
    state("info", JSON),
    Topic {
        qos: Qos::AtMostOnce,
        expiry: Some(Duration::from_secs(120)),
        ..state("health", JSON)
    },
    state("kill-switch/state", WORD),
    state("cam/yard/status", JSON),
    state("cam/yard/rule/person/state", WORD),
    state("cam/yard/rule/person/attributes", JSON),
    Topic {
        qos: Qos::AtMostOnce,
        expiry: Some(HOUR),
        ..state(SNAPSHOT, "image/jpeg")
    },
    Topic {
        retained: false,
        expiry: Some(WEEK),
        ..state(EVENT, JSON)
    },
];

/// What an agent published for four pictures, as heard by one who was there before it and by one
/// who came when it had gone.
async fn published() -> (Vec<Publication>, Vec<Publication>) {
    let frames = tempfile::tempdir().unwrap();
    pictures(frames.path(), 4);
    let broker = Broker::start();
    let early = Subscriber::open(&broker.url(), "early").await;
    let config = AgentConfig::parse(
        &config(Some(&broker.url()), &[folder_camera("yard", frames.path())]),
        "egret.toml",
    )
    .unwrap();
    pipeline::run_with(
        Scripted::flapping(0.95),
        config,
        Arc::new(EventLog),
        std::future::pending(),
    )
    .await
    .unwrap();
    let late = Subscriber::open(&broker.url(), "late").await;
    (early.received().await, late.received().await)
}

fn topic(publication: &Publication) -> &'static Topic {
    let known = TOPICS
        .iter()
        .find(|topic| publication.topic == format!("egret/gate-01/{}", topic.name));
    known.unwrap_or_else(|| panic!("nobody knows {}", publication.topic))
}

fn names(publications: &[Publication]) -> BTreeSet<&'static str> {
    publications
        .iter()
        .map(|publication| topic(publication).name)
        .collect()
}

fn events(publications: &[Publication]) -> Vec<Value> {
    publications
        .iter()
        .filter(|it| topic(it).name == EVENT)
        .map(|it| serde_json::from_slice(&it.payload).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn states_are_kept_for_who_comes_later_and_events_are_not() {
    let (early, late) = published().await;
    assert_eq!(
        names(&early),
        TOPICS.iter().map(|topic| topic.name).collect()
    );
    assert_eq!(
        names(&late),
        TOPICS
            .iter()
            .filter(|topic| topic.retained)
            .map(|topic| topic.name)
            .collect()
    );
    for publication in early.iter().chain(&late) {
        let Topic {
            name,
            qos,
            retained,
            expiry,
            ..
        } = topic(publication);
        assert_eq!(
            (publication.qos, publication.retain),
            (*qos, *retained),
            "{name}"
        );
        assert_eq!(publication.expiry.is_some(), expiry.is_some(), "{name}");
        // The broker takes off what it has kept it for.
        let left = publication
            .expiry
            .zip(*expiry)
            .is_none_or(|(left, whole)| left <= whole && left > whole / 2);
        assert!(left, "{name}: {:?} of {expiry:?}", publication.expiry);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_says_what_it_is() {
    let (early, late) = published().await;
    for publication in early.iter().chain(&late) {
        let Topic {
            name, content_type, ..
        } = topic(publication);
        assert_eq!(
            publication.content_type.as_deref(),
            Some(*content_type),
            "{name}"
        );
        assert!(
            *content_type != JSON
                || serde_json::from_slice::<Value>(&publication.payload)
                    .is_ok_and(|json| json.is_object()),
            "{name}"
        );
    }
    for event in early
        .iter()
        .filter(|publication| topic(publication).name == EVENT)
    {
        let mut properties = event.user_properties.clone();
        properties.sort();
        assert_eq!(
            properties,
            [
                ("ct".to_owned(), JSON.to_owned()),
                ("schema".to_owned(), "event/1".to_owned())
            ]
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_the_picture_of_the_newest_event() {
    let (early, late) = published().await;
    let events = events(&early);
    let newest = events.iter().rfind(|event| event["type"] == "new").unwrap();
    for heard in [early, late] {
        let snapshot = heard
            .iter()
            .rfind(|publication| topic(publication).name == SNAPSHOT)
            .unwrap();
        let sha256: String = Sha256::digest(&snapshot.payload)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(newest["frame"]["sha256"], sha256);
        assert_eq!(newest["image"]["topic"], snapshot.topic);
        assert_eq!(newest["image"]["bytes"], snapshot.payload.len());
    }
}
