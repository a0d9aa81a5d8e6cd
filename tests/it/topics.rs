//! Which topics a subscriber sees, how each is published, and what its payload is.

use std::collections::BTreeSet;
use std::sync::Arc;

use firmware_config::agent::AgentConfig;
use runtime::deliver::topics::{PublishOptions, Topics};
use runtime::mqtt::Publication;
use runtime::observe::EventLog;
use runtime::pipeline;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tests::broker::Broker;
use tests::config::{config, folder_camera};
use tests::scripted::{Scripted, pictures};
use tests::subscriber::Subscriber;

const JSON: &str = "application/json";

/// Every topic of a node with one camera and one rule, and how it is published.
fn documented() -> [(String, PublishOptions); 9] {
    let of = Topics::new("gate-01");
    [
        (of.status(), PublishOptions::OBJECT),
        (of.info(), PublishOptions::OBJECT),
        (of.health(), PublishOptions::HEALTH),
        (of.kill_switch_state(), PublishOptions::WORD),
        (of.camera_status("yard"), PublishOptions::OBJECT),
        (of.rule_state("yard", "person"), PublishOptions::WORD),
        (of.rule_attributes("yard", "person"), PublishOptions::OBJECT),
        (of.snapshot("yard"), PublishOptions::SNAPSHOT),
        (of.event("yard"), PublishOptions::EVENT),
    ]
}

/// How the topic of a publication is documented.
fn options(publication: &Publication) -> PublishOptions {
    documented()
        .into_iter()
        .find(|(topic, _)| *topic == publication.topic)
        .unwrap_or_else(|| panic!("{} is not documented", publication.topic))
        .1
}

/// What an agent published for four images, as received by a subscriber that was there before it
/// and by one that came after its end.
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

fn topics(publications: &[Publication]) -> BTreeSet<String> {
    publications.iter().map(|it| it.topic.clone()).collect()
}

fn events(publications: &[Publication]) -> Vec<Value> {
    publications
        .iter()
        .filter(|it| it.topic.ends_with("/event"))
        .map(|it| serde_json::from_slice(&it.payload).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_are_published_as_documented() {
    let (early, late) = published().await;
    let all = documented();
    assert_eq!(
        topics(&early),
        all.iter().map(|(topic, _)| topic.clone()).collect()
    );
    assert_eq!(
        topics(&late),
        all.iter()
            .filter(|(_, options)| options.retain)
            .map(|(topic, _)| topic.clone())
            .collect(),
        "the retained topics alone"
    );
    for publication in early.iter().chain(&late) {
        let topic = &publication.topic;
        let options = options(publication);
        assert_eq!(
            (publication.qos, publication.retain),
            (options.qos, options.retain),
            "{topic}"
        );
        assert_eq!(
            publication.expiry.is_some(),
            options.expiry.is_some(),
            "{topic}"
        );
        // The broker subtracts the time that it has held the publication.
        let in_range = publication
            .expiry
            .zip(options.expiry)
            .is_none_or(|(left, whole)| left <= whole && left > whole / 2);
        assert!(
            in_range,
            "{topic}: {:?} of {:?}",
            publication.expiry, options.expiry
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn payloads_are_what_their_content_type_says() {
    let (early, late) = published().await;
    for publication in early.iter().chain(&late) {
        let topic = &publication.topic;
        let options = options(publication);
        assert_eq!(
            publication.content_type.as_deref(),
            Some(options.content_type),
            "{topic}"
        );
        assert!(
            options.content_type != JSON
                || serde_json::from_slice::<Value>(&publication.payload)
                    .is_ok_and(|json| json.is_object()),
            "{topic}"
        );
        let mut properties = publication.user_properties.clone();
        properties.sort();
        let expected = options.schema.map(|schema| {
            [
                ("ct".to_owned(), options.content_type.to_owned()),
                ("schema".to_owned(), schema.to_owned()),
            ]
        });
        assert_eq!(
            properties,
            expected
                .as_ref()
                .map(<[_; 2]>::as_slice)
                .unwrap_or_default(),
            "{topic}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_the_image_of_the_newest_event() {
    let (early, late) = published().await;
    let events = events(&early);
    let newest = events.iter().rfind(|event| event["type"] == "new").unwrap();
    for received in [early, late] {
        let snapshot = received
            .iter()
            .rfind(|publication| publication.topic.ends_with("/snapshot"))
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
