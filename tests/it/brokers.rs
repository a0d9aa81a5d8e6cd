//! The link against real brokers: TLS, websockets, passwords, duplicate client ids, size limits.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use firmware_config::agent::Mqtt;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use runtime::clock::Clock;
use runtime::mqtt::{Link, LinkError, LinkOptions, LinkState, Publication, Qos};
use runtime::random::Random;
use tempfile::TempDir;
use tests::broker::Broker;
use tests::config::mqtt;

/// Long enough for a handshake on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A server's key and certificate, and the CA that signed it.
pub(crate) struct Certificates(TempDir);

impl Certificates {
    pub(crate) fn new() -> Certificates {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let server =
            CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let server = server.signed_by(&key, &authority).unwrap();
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).unwrap();
        std::fs::write(folder.path().join("server.pem"), server.pem()).unwrap();
        std::fs::write(folder.path().join("server.key"), key.serialize_pem()).unwrap();
        Certificates(folder)
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Lines of mosquitto's configuration. `user root`, since it drops root's privileges before it
    /// reads the key.
    fn lines(&self) -> String {
        format!(
            "user root\ncertfile {}\nkeyfile {}\n",
            self.file("server.pem").display(),
            self.file("server.key").display()
        )
    }
}

/// A listener besides the plain one: mosquitto 2.0.11 does not start with websockets alone.
fn websocket_listener(port: u16) -> String {
    format!("listener {port} 127.0.0.1\nprotocol websockets\n")
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Checks that a client receives its own publication from the broker.
async fn assert_round_trip(mqtt: Mqtt) {
    let topic = "egret/test/echo".to_owned();
    let options = LinkOptions {
        subscriptions: vec![(topic.clone(), Qos::AtLeastOnce)],
        ..LinkOptions::new(mqtt, "box")
    };
    let (link, task, mut deliveries) = Link::open(options, Clock::system(), Random::from_system());
    tokio::spawn(task.run(std::future::pending()));
    wait_up(&link).await;
    // More than one read of a socket or one frame of a websocket.
    let payload = bytes::Bytes::from(vec![7; 300_000]);
    link.publish(Publication {
        topic,
        payload: payload.clone(),
        ..Publication::default()
    })
    .await
    .unwrap();
    let delivery = tokio::time::timeout(TIMEOUT, deliveries.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(delivery.publication.payload, payload);
}

async fn wait_up(link: &Link) {
    let mut status = link.status();
    let up = tokio::time::timeout(
        TIMEOUT,
        status.wait_for(|status| status.state == LinkState::Up),
    )
    .await;
    assert!(up.is_ok(), "{:?}", link.state());
}

/// Waits until the link is down for a reason that contains `expected`.
async fn wait_down(link: &Link, expected: &str) {
    let is_down = |status: &runtime::mqtt::LinkStatus| matches!(&status.state, LinkState::Down(why) if why.contains(expected));
    let mut status = link.status();
    let down = tokio::time::timeout(TIMEOUT, status.wait_for(is_down)).await;
    assert!(down.is_ok(), "expected {expected:?}: {:?}", link.state());
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_private_ca() {
    let certificates = Certificates::new();
    let broker = Broker::with(&certificates.lines());
    let url = format!("mqtts://localhost:{}", broker.port());
    assert_round_trip(Mqtt {
        ca_file: Some(certificates.file("ca.pem")),
        ..mqtt(&url)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_an_unknown_ca_is_refused() {
    let (certificates, others) = (Certificates::new(), Certificates::new());
    let broker = Broker::with(&certificates.lines());
    let url = format!("mqtts://localhost:{}", broker.port());
    let mqtt = Mqtt {
        ca_file: Some(others.file("ca.pem")),
        ..mqtt(&url)
    };
    let (link, task, _deliveries) = Link::open(
        LinkOptions::new(mqtt, "box"),
        Clock::system(),
        Random::from_system(),
    );
    tokio::spawn(task.run(std::future::pending()));
    wait_down(&link, "certificate").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets() {
    let port = free_port();
    let _broker = Broker::with(&websocket_listener(port));
    assert_round_trip(mqtt(&format!("ws://127.0.0.1:{port}/mqtt"))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_over_tls() {
    let certificates = Certificates::new();
    let port = free_port();
    let _broker = Broker::with(&format!(
        "{}{}",
        websocket_listener(port),
        certificates.lines()
    ));
    let url = format!("wss://localhost:{port}/mqtt");
    assert_round_trip(Mqtt {
        ca_file: Some(certificates.file("ca.pem")),
        ..mqtt(&url)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn user_and_password_come_from_files() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let passwords = file("passwords", "");
    let made = Command::new("mosquitto_passwd")
        .arg("-b")
        .arg(&passwords)
        .args(["gate-01", "s3cret"])
        .status()
        .unwrap();
    assert!(made.success());
    let broker = Broker::with(&format!(
        "user root\nallow_anonymous false\npassword_file {}\n",
        passwords.display()
    ));
    let with = |password: &Path| Mqtt {
        username_file: Some(file("user", "gate-01\n")),
        password_file: Some(password.to_owned()),
        ..mqtt(&broker.url())
    };
    assert_round_trip(with(&file("right", "s3cret\n"))).await;
    let (link, task, _deliveries) = Link::open(
        LinkOptions::new(with(&file("wrong", "guess\n")), "box"),
        Clock::system(),
        Random::from_system(),
    );
    tokio::spawn(task.run(std::future::pending()));
    wait_down(&link, "NotAuthorized").await;
}

/// A broker sends DISCONNECT with reason 0x8e (session taken over) to a client when another one
/// connects with its id. Mosquitto 2.0.11 only closes the connection.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_taken_over_is_not_taken_back_at_once() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("mqtt://{}", listener.local_addr().unwrap());
    let (connections, connected) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _connect = stream.read(&mut [0; 1024]).unwrap();
            connections.send(()).unwrap();
            stream.write_all(&[0x20, 3, 0, 0, 0]).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            stream.write_all(&[0xe0, 2, 0x8e, 0]).unwrap();
        }
    });
    let (link, task, _deliveries) = Link::open(
        LinkOptions::new(mqtt(&url), "egret-gate-01"),
        Clock::system(),
        Random::from_system(),
    );
    tokio::spawn(task.run(std::future::pending()));
    wait_down(&link, "another client connected with our client id").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(
        connected.try_iter().count(),
        1,
        "it waits before it reconnects, instead of taking the session back"
    );
}

/// The same with a broker that only closes the connection: the reason names the likely cause.
#[tokio::test(flavor = "multi_thread")]
async fn repeated_disconnects_are_reported_with_their_likely_cause() {
    let broker = Broker::start();
    let open = || {
        let (link, task, deliveries) = Link::open(
            LinkOptions::new(mqtt(&broker.url()), "egret-gate-01"),
            Clock::system(),
            Random::from_system(),
        );
        tokio::spawn(task.run(std::future::pending()));
        (link, deliveries)
    };
    let (first, _deliveries) = open();
    wait_up(&first).await;
    let (_second, _more) = open();
    wait_down(
        &first,
        "check whether another client connects as egret-gate-01",
    )
    .await;
}

/// mosquitto's `message_size_limit` is not part of the CONNACK, and the client library closes the
/// connection on the reason code of the refusal.
#[tokio::test(flavor = "multi_thread")]
async fn a_publication_over_an_unannounced_size_limit_does_not_block_others() {
    let broker = Broker::with("message_size_limit 1000\n");
    let (link, task, _deliveries) = Link::open(
        LinkOptions::new(mqtt(&broker.url()), "box"),
        Clock::system(),
        Random::from_system(),
    );
    tokio::spawn(task.run(std::future::pending()));
    wait_up(&link).await;
    let publish = |bytes: usize| {
        link.publish(Publication {
            topic: "t".into(),
            payload: vec![b'x'; bytes].into(),
            ..Publication::default()
        })
    };
    let refused = publish(5000).await;
    assert!(
        matches!(&refused, Err(LinkError::Refused { reason, .. }) if reason == "PacketTooLarge"),
        "{refused:?}"
    );
    let next = async {
        while publish(10).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, next)
        .await
        .expect("the next publication succeeds on the next connection");
}
