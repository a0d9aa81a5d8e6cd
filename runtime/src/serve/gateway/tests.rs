#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;

use firmware_config::agent::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::environment::Environment;
use crate::infer::tests::Scripted;

/// A gateway without pools, with a model that answers yes.
async fn gateway() -> SocketAddr {
    let (local, inference) = infer::channel(Scripted::new(|_| ("yes".into(), 0.5)));
    std::thread::spawn(move || inference.run());
    let policy = Policy::default();
    let environment = Environment::system();
    let parts = Parts {
        local,
        name: "edge".into(),
        escalations: Escalations::new(&[], &policy, None, "here", &environment).unwrap(),
        environment,
        metrics: Arc::new(Metrics::for_gateway()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(parts, listener, std::future::pending()));
    address
}

/// Announces a body and waits for the interim or final response.
async fn announce(gateway: SocketAddr, length: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n{length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = reply(&mut stream).await;
    (stream, reply)
}

/// The next response, which is small enough for one read.
async fn reply(stream: &mut TcpStream) -> String {
    let mut reply = vec![0; 4096];
    let read = stream.read(&mut reply).await.unwrap();
    String::from_utf8_lossy(&reply[..read]).into_owned()
}

#[tokio::test]
async fn bodies_are_accepted_while_there_is_room() {
    let gateway = gateway().await;
    // Sixteen of 32 MiB, the last of them without Content-Length.
    let mut sending = Vec::new();
    for length in [
        &["content-length: 33554432"; 15][..],
        &["transfer-encoding: chunked"],
    ]
    .concat()
    {
        let (stream, reply) = announce(gateway, length).await;
        assert!(reply.starts_with("HTTP/1.1 100"), "{reply}");
        sending.push(stream);
    }
    let (_, refused) = announce(gateway, "content-length: 2").await;
    assert!(
        refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 1"),
        "{refused}"
    );

    // One of them is small, and is answered.
    let mut small = sending.pop().unwrap();
    small.write_all(b"2\r\n{}\r\n0\r\n\r\n").await.unwrap();
    let answer = reply(&mut small).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let (_, taken) = announce(gateway, "content-length: 2").await;
    assert!(taken.starts_with("HTTP/1.1 100"), "{taken}");
}
