//! `egret worker` and MQTT pools against a real broker.

use std::path::PathBuf;
use std::time::Duration;

use crate::gateway;
use bytes::Bytes;
use firmware_config::agent::{ClosedForm, Pool, PoolTransport};
use firmware_config::manifest::Precision;
use runtime::clock::Clock;
use runtime::environment::Environment;
use runtime::mqtt::{Incoming, Link, LinkOptions, LinkState, Publication, Qos};
use runtime::pool::{PoolQuestion, Pools, Spent, mqtt};
use runtime::random::Random;
use runtime::reason::Reason;
use serde_json::{Value, json};
use tests::broker::Broker;
use tests::bundles::bundle;
use tests::config;
use tests::started::Started;
use tests::synth::Synthetic;

fn worker(broker: &Broker) -> Started {
    let bundle = bundle(&Synthetic::micro(), Precision::Fp32);
    let url = broker.url();
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
    Started::egret(args.map(PathBuf::from).into_iter().chain([bundle]))
}

/// A connection that is up, with what arrives on `subscription`.
async fn connect(broker: &Broker, client_id: &str, subscription: &str) -> (Link, Incoming) {
    let options = LinkOptions {
        subscriptions: vec![(subscription.to_owned(), Qos::AtLeastOnce)],
        ..LinkOptions::new(config::mqtt(&broker.url()), client_id)
    };
    let (link, task, deliveries) = Link::open(options, Clock::system(), Random::from_system());
    tokio::spawn(task.run(std::future::pending()));
    link.status()
        .wait_for(|status| status.state == LinkState::Up)
        .await
        .unwrap();
    (link, deliveries)
}

/// A node's pools, as the agent connects them.
async fn node(broker: &Broker, deadline: Duration, attempts: u32) -> Pools {
    let (link, mut deliveries) = connect(broker, "gate-01", &mqtt::reply_topic("gate-01")).await;
    let pool = Pool {
        id: "big".into(),
        transport: PoolTransport::Mqtt,
        model: "some-vlm".into(),
        deadline,
        closed: ClosedForm::Schema,
        images: true,
        attempts,
        usd_per_call: None,
    };
    let pools = Environment::system()
        .connect_pools(&[pool], Some(link), "gate-01")
        .unwrap();
    let receiver = pools.clone();
    tokio::spawn(async move {
        while let Some(delivery) = deliveries.recv().await {
            receiver.on_reply(delivery.publication);
        }
    });
    pools
}

fn question(id: u8) -> PoolQuestion {
    PoolQuestion {
        id: [id; 16],
        question: "Is there a person?".into(),
        answers: vec!["yes".into(), "no".into()],
        jpeg: Some(Bytes::from(
            std::fs::read(tests::data("images/a_entrance.png")).unwrap(),
        )),
        max_tokens: 8,
    }
}

const LONG: Duration = Duration::from_secs(60);

/// A completion with the answer yes.
fn yes() -> Bytes {
    Bytes::from(
        json!({"model": "by-hand", "choices": [{"message": {"content": r#"{"answer":"yes"}"#}}]})
            .to_string(),
    )
}

fn reply_to(request: &Publication, payload: Bytes) -> Publication {
    Publication {
        topic: request.response_topic.clone().unwrap(),
        correlation: request.correlation.clone(),
        payload,
        ..Publication::default()
    }
}

#[tokio::test]
async fn a_worker_answers_a_nodes_questions() {
    let broker = Broker::start();
    let mut worker = worker(&broker);
    let pools = node(&broker, LONG, 1).await;
    for id in 1..4 {
        let mut spent = Spent::default();
        let reply = pools.ask("big", &question(id), &mut spent).await.unwrap();
        assert!(["yes", "no"].contains(&reply.text.as_str()), "{reply:?}");
        assert!(
            reply.confidence.is_some_and(|p| (0.5..=1.0).contains(&p)),
            "{reply:?}"
        );
        assert_eq!(spent.attempts, 1);
    }
    assert_eq!(worker.stop(), 0);
}

#[tokio::test]
async fn a_bad_request_comes_back_as_an_error_with_its_status() {
    let broker = Broker::start();
    let _worker = worker(&broker);
    let (link, mut deliveries) = connect(&broker, "by-hand", "replies/here").await;
    let request = Publication {
        topic: mqtt::request_topic("big"),
        payload: Bytes::from_static(b"{\"messages\": [], \"n\": 2}"),
        response_topic: Some("replies/here".into()),
        correlation: Some(Bytes::from_static(b"any bytes")),
        expiry: Some(LONG),
        ..Publication::default()
    };
    link.publish(request).await.unwrap();
    let reply = deliveries.recv().await.unwrap().publication;
    assert_eq!(reply.correlation.as_deref(), Some(&b"any bytes"[..]));
    assert_eq!(
        reply.user_properties,
        [("status".to_owned(), "400".to_owned())]
    );
    let error: Value = serde_json::from_slice(&reply.payload).unwrap();
    assert_eq!(error["error"]["param"], "n");
}

#[tokio::test]
async fn a_request_without_a_response_topic_is_ignored() {
    let broker = Broker::start();
    let _worker = worker(&broker);
    let (link, _deliveries) = connect(&broker, "by-hand", "replies/here").await;
    let nameless = Publication {
        topic: mqtt::request_topic("big"),
        payload: Bytes::from_static(b"\0"),
        ..Publication::default()
    };
    link.publish(nameless).await.unwrap();
    assert!(
        node(&broker, LONG, 1)
            .await
            .ask("big", &question(1), &mut Spent::default())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn only_the_reply_with_the_right_correlation_counts() {
    let broker = Broker::start();
    let (link, mut requests) = connect(&broker, "by-hand", &mqtt::shared_subscription("big")).await;
    let pools = node(&broker, LONG, 1).await;
    let by_hand = async {
        let request = requests.recv().await.unwrap().publication;
        assert_eq!(request.correlation.as_deref(), Some(&[7; 16][..]));
        assert!(
            request.expiry.is_some_and(|expiry| expiry <= LONG),
            "{:?}",
            request.expiry
        );
        let wrong = Publication {
            correlation: Some(Bytes::from_static(&[8; 16])),
            ..reply_to(&request, Bytes::from_static(b"{}"))
        };
        link.publish(wrong).await.unwrap();
        link.publish(Publication {
            correlation: None,
            ..reply_to(&request, Bytes::from_static(b"{}"))
        })
        .await
        .unwrap();
        for _ in 0..2 {
            link.publish(reply_to(&request, yes())).await.unwrap();
        }
    };
    let asked = question(7);
    let mut spent = Spent::default();
    let (reply, ()) = tokio::join!(pools.ask("big", &asked, &mut spent), by_hand);
    assert_eq!(reply.unwrap().by.model, "by-hand");
    assert!(
        pools.unmatched_replies() >= 2,
        "the wrong ones were dropped and counted"
    );
}

#[tokio::test]
async fn a_reply_after_the_deadline_is_dropped_and_counted() {
    let broker = Broker::start();
    let (link, mut requests) = connect(&broker, "by-hand", &mqtt::shared_subscription("big")).await;
    let pools = node(&broker, Duration::from_millis(300), 1).await;
    let outcome = pools.ask("big", &question(1), &mut Spent::default()).await;
    assert_eq!(outcome.unwrap_err().reason, Reason::Deadline);
    let request = requests.recv().await.unwrap().publication;
    link.publish(reply_to(&request, yes())).await.unwrap();
    // The next reply comes behind it on the same connection, so the late one has been seen by then.
    let pools_next = pools.clone();
    let asked = question(2);
    let by_hand = async {
        let request = requests.recv().await.unwrap().publication;
        link.publish(reply_to(&request, yes())).await.unwrap();
    };
    let mut spent = Spent::default();
    let (next, ()) = tokio::join!(pools_next.ask("big", &asked, &mut spent), by_hand);
    assert!(next.is_ok(), "{next:?}");
    assert_eq!(pools.unmatched_replies(), 1);
}

/// The broker of these tests forgets what a worker held when it died, as brokers may; so the node
/// sends its question once more.
#[tokio::test]
async fn a_killed_workers_request_goes_to_another() {
    let broker = Broker::start();
    let (link, task, mut requests) = Link::open(
        LinkOptions {
            subscriptions: vec![(mqtt::shared_subscription("big"), Qos::AtLeastOnce)],
            session_expiry: Duration::ZERO,
            receive_max: 1,
            manual_acks: true,
            ..LinkOptions::new(config::mqtt(&broker.url()), "doomed")
        },
        Clock::system(),
        Random::from_system(),
    );
    let doomed = tokio::spawn(task.run(std::future::pending()));
    link.status()
        .wait_for(|status| status.state == LinkState::Up)
        .await
        .unwrap();
    let pools = node(&broker, Duration::from_secs(10), 2).await;
    let question = question(1);
    let killing = async {
        let held = requests.recv().await.unwrap();
        doomed.abort();
        drop(held);
        let (link, mut others) = connect(&broker, "other", &mqtt::shared_subscription("big")).await;
        let request = others.recv().await.unwrap().publication;
        link.publish(reply_to(&request, yes())).await.unwrap();
    };
    let mut spent = Spent::default();
    let (reply, ()) = tokio::join!(pools.ask("big", &question, &mut spent), killing);
    let reply = reply.unwrap();
    assert_eq!(
        (reply.by.model.as_str(), reply.text.as_str()),
        ("by-hand", "yes")
    );
}

#[tokio::test]
async fn without_a_broker_the_link_is_down_and_the_breaker_stays_closed() {
    let mut broker = Broker::start();
    let pools = node(&broker, LONG, 1).await;
    broker.kill();
    // As often as would open the breaker of a pool that is to blame. The connection may take a
    // moment to be seen as gone.
    for id in 1..=4 {
        let outcome = pools.ask("big", &question(id), &mut Spent::default()).await;
        assert_eq!(outcome.unwrap_err().reason, Reason::LinkDown);
    }
    assert_eq!(pools.obstacle("big"), Some(Reason::LinkDown));
}

/// Its open replies have 2.5 s to end, so its connection to the broker must not end before them.
#[tokio::test]
async fn a_gateway_that_stops_waits_for_a_reply_from_its_broker() {
    let broker = Broker::start();
    let (link, mut requests) = connect(&broker, "by-hand", &mqtt::shared_subscription("big")).await;
    let pool = "[[pool]]\nid = \"big\"\nmqtt = true\nmodel = \"by-hand\"\n";
    let tables = format!("[mqtt]\nurl = \"{}\"\n{pool}", broker.url());
    let mut gateway = gateway::configured(&tables).gateway;
    let url = gateway.url();
    let metrics = url.replace("/v1", "/metrics");
    while !fetched(&metrics).await.contains("egret_link_up 1") {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let asked = tests::http_client()
        .post(format!("{url}/chat/completions"))
        .body(gateway::said("big", json!({})).to_string())
        .send();
    let answering = async {
        let request = requests.recv().await.unwrap().publication;
        let stopped = tokio::task::spawn_blocking(move || gateway.stop());
        tokio::time::sleep(Duration::from_millis(700)).await;
        link.publish(reply_to(&request, yes())).await.unwrap();
        stopped.await.unwrap()
    };
    let (reply, exit) = tokio::join!(asked, answering);
    assert_eq!((reply.unwrap().status().as_u16(), exit), (200, 0));
}

async fn fetched(url: &str) -> String {
    let reply = tests::http_client().get(url).send().await.unwrap();
    reply.text().await.unwrap()
}
