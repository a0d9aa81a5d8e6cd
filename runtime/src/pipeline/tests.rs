//! The wiring: how an agent starts, ends, and stops.

use std::sync::Mutex;

use super::*;
use crate::deliver::event::Step;
use crate::infer::tests::Scripted;
use crate::observe::Record;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Steps of events, in order.
#[derive(Default)]
struct Steps(Mutex<Vec<Step>>);

impl Observer for Steps {
    fn observe(&self, record: &Record) {
        if let Record::Event { draft, .. } = record {
            self.0.lock().expect("not poisoned").push(draft.step);
        }
    }
}

/// An agent on a folder with `frames` frames, and the `rest` of its configuration.
fn config(folder: &tempfile::TempDir, frames: usize, rest: &str) -> AgentConfig {
    for i in 0..frames {
        let grey = if i % 2 == 0 { 40 } else { 200 };
        image::RgbImage::from_pixel(16, 16, image::Rgb([grey; 3]))
            .save(folder.path().join(format!("{i}.png")))
            .expect("a writable folder");
    }
    let text = format!(
        "[node]\nid = \"a\"\n[model]\nbundle = \"/b\"\n[[camera]]\nid = \"c\"\nsource = \"dir://{}\"\nrate = \"50/s\"\n\
         [[camera.rule]]\nid = \"r\"\nquestion = \"Is it light?\"\nanswers = [\"yes\", \"no\"]\n{rest}",
        folder.path().display()
    );
    AgentConfig::parse(&text, "egret.toml").expect("a configuration")
}

fn flapping() -> Scripted {
    let mut yes = false;
    Scripted::new(move |_| {
        yes = !yes;
        ((if yes { "yes" } else { "no" }).into(), 0.95)
    })
}

#[tokio::test]
async fn an_agent_ends_with_its_sources_and_every_event_with_it() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, steps) = (config(&folder, 3, ""), Arc::new(Steps::default()));
    let totals = run_with(flapping(), config, steps.clone(), std::future::pending())
        .await
        .expect("it ends");
    assert_eq!((totals.frames, totals.answers_local), (3, 3));
    let steps = steps.0.lock().expect("not poisoned");
    let expected = [
        Step::New,
        Step::End,
        Step::New,
        Step::End,
        Step::New,
        Step::End,
    ];
    assert_eq!(*steps, expected);
}

#[tokio::test]
async fn a_model_that_panics_ends_the_agent() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = Scripted::new(|_| panic!("a fault of the engine"));
    let config = config(&folder, 1, "");
    let ended = run_with(model, config, Arc::new(Log), std::future::pending()).await;
    let error = ended.expect_err("it cannot go on");
    insta::assert_snapshot!(error, @"the inference thread ended by a fault of Egret; the log above has its message: please report it");
}

#[tokio::test]
async fn an_address_in_use_is_reported_before_anything_starts() {
    let folder = tempfile::tempdir().expect("a folder");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("bound");
    let config = config(&folder, 1, &format!("[gateway]\nlisten = \"{address}\"\n"));
    let ended = run_with(flapping(), config, Arc::new(Log), std::future::pending()).await;
    let error = ended.expect_err("the port is taken").to_string();
    assert_eq!(
        error,
        format!("gateway: cannot listen on {address}; choose another [gateway] listen")
    );
}

#[tokio::test]
async fn a_stop_is_obeyed_where_only_a_gateway_is_left() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = config(&folder, 1, "[gateway]\nlisten = \"127.0.0.1:0\"\n");
    let steps = Arc::new(Steps::default());
    let seen = steps.clone();
    let stop = async move {
        // The only camera's only event has ended, and the agent goes on for the gateway.
        while seen.0.lock().expect("not poisoned").last() != Some(&Step::End) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let totals = run_with(flapping(), config, steps, stop)
        .await
        .expect("it stops");
    assert_eq!(totals.frames, 1);
}

#[tokio::test]
async fn a_reply_that_is_open_at_the_stop_is_sent() {
    let folder = tempfile::tempdir().expect("a folder");
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = free.local_addr().expect("bound");
    drop(free);
    let config = config(&folder, 1, &format!("[gateway]\nlisten = \"{address}\"\n"));
    let mut asked = 0;
    let model = Scripted::new(move |_| {
        asked += 1;
        // The client's question comes after the camera's, and takes longer than the scene's end.
        if asked > 1 {
            std::thread::sleep(Duration::from_millis(1200));
        }
        ("yes".into(), 0.95)
    });
    let steps = Arc::new(Steps::default());
    let seen = steps.clone();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let stop = async move {
        while seen.0.lock().expect("not poisoned").last() != Some(&Step::End) {
            sleep(Duration::from_millis(5)).await;
        }
        let body = r#"{"model":"local","messages":[{"role":"user","content":"Is it light?"}]}"#;
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = TcpStream::connect(address).await.expect("a gateway");
        client.write_all(request.as_bytes()).await.expect("sent");
        sleep(Duration::from_millis(100)).await;
        _ = sender.send(client);
    };
    run_with(model, config, steps, stop)
        .await
        .expect("it stops");
    let mut reply = String::new();
    let mut client = receiver.await.expect("a client");
    client.read_to_string(&mut reply).await.expect("a reply");
    assert!(reply.starts_with("HTTP/1.1 200"), "{reply}");
}
