//! `egret serve`, as applications see it.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use firmware_config::agent::Policy;
use firmware_config::manifest::Precision;
use reqwest::Response;
use runtime::decide::call::Escalations;
use runtime::environment::Environment;
use runtime::infer::Answerer;
use runtime::metrics::Metrics;
use runtime::pipeline;
use runtime::serve::gateway::{self, Parts};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};
use tests::bundles::bundle;
use tests::pool_server::{Act, PoolServer};
use tests::scripted::Scripted;
use tests::started::Started;
use tests::synth::Synthetic;
use tokio::net::TcpListener;
use vlm::answer::Piece;
use vlm::{Answer, Identity, Request, Sink, VlmError};

use crate::brokers::Certificates;

fn micro() -> PathBuf {
    bundle(&Synthetic::micro(), Precision::Fp32)
}

/// The demo's small model: its confidence in the answer below is 0.84, under the threshold of 0.9.
fn nano() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/bundles/nano-edge")
}

/// A gateway on a free port, without pools.
pub(crate) fn alone(name: &str) -> Started {
    let bundle = micro();
    let args = [
        "serve",
        "--backend",
        "tract",
        "--listen",
        "127.0.0.1:0",
        "--name",
        name,
        "--bundle",
    ];
    Started::egret(args.map(PathBuf::from).into_iter().chain([bundle]))
}

/// A gateway with the pools and other tables of a configuration.
pub(crate) struct Configured {
    pub(crate) gateway: Started,
    _folder: tempfile::TempDir,
}

pub(crate) fn configured(tables: &str) -> Configured {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("egret.toml");
    let text = format!(
        "[node]\nid = \"gate-01\"\n[model]\nbundle = {:?}\nbackend = \"tract\"\n{tables}\n[gateway]\nlisten = \"127.0.0.1:0\"\n",
        nano()
    );
    std::fs::write(&config, text).unwrap();
    let gateway = Started::egret([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--name",
        "edge",
        "--config",
        config.to_str().unwrap(),
    ]);
    Configured {
        gateway,
        _folder: folder,
    }
}

fn pool(id: &str, url: &str) -> String {
    format!("[[pool]]\nid = \"{id}\"\nurl = \"{url}\"\nmodel = \"local\"\ndeadline = \"20s\"\n")
}

/// A pool over HTTPS that answers `yes` to clients that trust its certificate.
fn tls_pool(certificates: &Certificates) -> String {
    let chain = CertificateDer::pem_file_iter(certificates.file("server.pem"))
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.file("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap();
    let config = Arc::new(
        config
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap(),
    );
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!(
        "https://localhost:{}/v1",
        listener.local_addr().unwrap().port()
    );
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream =
                StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            // Fails when the client does not trust the certificate.
            let _ = answer_yes(&mut stream);
        }
    });
    url
}

/// Reads one request, whole or not, and answers it.
fn answer_yes(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut request = [0; 64 << 10];
    let mut got = 0;
    while !request[..got].ends_with(b"}") {
        match stream.read(&mut request[got..])? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            more => got += more,
        }
    }
    let body = r#"{"model": "behind-tls", "choices": [{"message": {"content": "yes"}}]}"#;
    write!(
        stream,
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

#[tokio::test]
async fn a_pool_behind_tls_is_asked_only_when_its_certificate_is_trusted() {
    let certificates = Certificates::new();
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("egret.toml");
    let tables = pool("big", &tls_pool(&certificates));
    std::fs::write(
        &config,
        format!(
            "[node]\nid = \"gate-01\"\n[model]\nbundle = {:?}\nbackend = \"tract\"\n{tables}",
            nano()
        ),
    )
    .unwrap();
    let start = |variables: &[(&str, &OsStr)]| {
        Started::egret_with(
            [
                "serve",
                "--listen",
                "127.0.0.1:0",
                "--config",
                config.to_str().unwrap(),
            ],
            variables,
        )
    };
    let question = json!({"model": "big", "messages": [{"role": "user", "content": "is it?"}]});

    let trusting = start(&[("SSL_CERT_FILE", certificates.file("ca.pem").as_os_str())]);
    let reply: Value =
        serde_json::from_str(&ask(&trusting, question.clone()).await.text().await.unwrap())
            .unwrap();
    assert_eq!(
        (&reply["model"], &reply["choices"][0]["message"]["content"]),
        (&json!("behind-tls"), &json!("yes")),
        "{reply}"
    );

    let wary = ask(&start(&[]), question).await;
    assert!(wary.status().is_server_error());
    let text = wary.text().await.unwrap();
    assert!(text.contains("certificate"), "{text}");
}

pub(crate) async fn ask(gateway: &Started, request: Value) -> Response {
    tests::http_client()
        .post(format!("{}/chat/completions", gateway.url()))
        .header("content-type", "application/json")
        .body(request.to_string())
        .send()
        .await
        .unwrap()
}

async fn body(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
}

/// The picture of the question below, as a data URI.
static PIXELS: LazyLock<String> = LazyLock::new(|| {
    let jpeg = std::fs::read(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/frames/lobby/035000.jpg"),
    )
    .unwrap();
    format!("data:image/jpeg;base64,{}", STANDARD.encode(jpeg))
});

const QUESTION: &str = "is there a person?";

/// A request that shows the picture and asks the question, with more fields.
pub(crate) fn said(model: &str, fields: Value) -> Value {
    let content = json!([{"type": "image_url", "image_url": {"url": *PIXELS}}, {"type": "text", "text": QUESTION}]);
    let mut request = json!({"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": 4});
    request
        .as_object_mut()
        .unwrap()
        .extend(fields.as_object().unwrap().clone());
    request
}

fn closed(answers: &[&str]) -> Value {
    json!({"response_format": {"type": "json_schema", "json_schema": {"name": "seen", "schema": {
        "type": "object", "properties": {"verdict": {"type": "string", "enum": answers}}, "required": ["verdict"], "additionalProperties": false,
    }}}})
}

fn content(reply: &Value) -> &str {
    reply["choices"][0]["message"]["content"].as_str().unwrap()
}

#[test]
fn the_openai_sdk_works_unmodified() {
    let gateway = alone("edge");
    let python = std::env::var_os("EGRET_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/it/gateway/sdk.py");
    let run = Command::new(python)
        .arg(script)
        .arg(gateway.url())
        .arg(tests::data("images/a_entrance.png"))
        .arg("edge")
        .output()
        .unwrap();
    assert!(
        run.status.success(),
        "{}{}",
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr)
    );
}

#[tokio::test]
async fn one_gateway_is_a_pool_of_another() {
    let big = alone("big-one");
    let edge = configured(&pool("big", &big.url()));
    let reply = body(ask(&edge.gateway, said("big", closed(&["yes", "no"]))).await).await;
    assert_eq!(
        (
            reply["model"].as_str(),
            reply["routing"]["reasons"][0].as_str()
        ),
        (Some("big-one"), Some("PIN"))
    );
    let verdict: Value = serde_json::from_str(content(&reply)).unwrap();
    assert!(
        ["yes", "no"].contains(&verdict["verdict"].as_str().unwrap()),
        "{verdict}"
    );

    // The confidence of the small model is under the threshold, so the router asks the other one.
    let response = ask(&edge.gateway, said("auto", closed(&["yes", "no"]))).await;
    assert_eq!(response.headers()["x-router-model"], "big-one");
    assert_eq!(response.headers()["x-router-reason"], "LOW_CONFIDENCE");
    let reply = body(response).await;
    assert_eq!(
        (
            reply["routing"]["where"].as_str(),
            reply["routing"]["pool"].as_str()
        ),
        (Some("pool"), Some("big"))
    );
    assert_eq!(
        reply["routing"]["attempts"].as_array().unwrap().len(),
        2,
        "the local model was asked first"
    );

    // With a single candidate the confidence is 1.
    let reply = body(ask(&edge.gateway, said("auto", closed(&["yes"]))).await).await;
    assert_eq!(
        (
            reply["model"].as_str(),
            reply["routing"]["reasons"].to_string()
        ),
        (Some("edge"), r#"["CONFIDENT"]"#.to_owned())
    );
}

#[tokio::test]
async fn an_escalation_that_fails_keeps_the_local_answer() {
    let broken = PoolServer::start([Act::Status(500, None)]).await;
    let edge = configured(&pool("big", &broken.url()));
    let reply = body(ask(&edge.gateway, said("auto", closed(&["yes", "no"]))).await).await;
    assert_eq!(
        (reply["model"].as_str(), reply["routing"]["where"].as_str()),
        (Some("edge"), Some("local"))
    );
    assert_eq!(
        reply["routing"]["reasons"],
        json!(["FALLBACK", "LOW_CONFIDENCE"])
    );
    let reply = body(ask(&edge.gateway, said("auto", closed(&["yes", "no"]))).await).await;
    assert_eq!(
        reply["routing"]["reasons"],
        json!(["BREAKER_OPEN", "LOW_CONFIDENCE"])
    );
}

#[tokio::test]
async fn a_pools_text_is_returned_in_the_requested_form() {
    let chatty =
        PoolServer::start([Act::Say("Yes, there is one."), Act::Say("hard to tell")]).await;
    let edge = configured(&(pool("big", &chatty.url()) + "closed = \"text\"\n"));
    let reply = body(ask(&edge.gateway, said("big", closed(&["yes", "no"]))).await).await;
    assert_eq!(
        (content(&reply), reply["model"].as_str()),
        (r#"{"verdict":"yes"}"#, Some("scripted-7b"))
    );
    let seen = chatty.seen();
    assert!(seen[0].body.get("response_format").is_none());
    assert_eq!(seen[0].body["messages"][0]["content"][1]["text"], QUESTION);
    assert_eq!(
        seen[0].body["messages"][0]["content"][2]["text"],
        "Answer with one of: yes, no."
    );

    let response = ask(&edge.gateway, said("big", closed(&["yes", "no"]))).await;
    assert_eq!(response.status(), 502);
    assert_eq!(body(response).await["error"]["code"], "INVALID_FORMAT");
}

#[tokio::test]
async fn models_are_tried_in_order() {
    let broken = PoolServer::start([Act::Status(400, None)]).await;
    let edge = configured(&pool("big", &broken.url()));
    let reply = body(
        ask(
            &edge.gateway,
            said("big", json!({"models": ["big", "local"]})),
        )
        .await,
    )
    .await;
    assert_eq!(
        (
            reply["model"].as_str(),
            reply["routing"]["reasons"].to_string()
        ),
        (Some("edge"), r#"["FALLBACK","PIN"]"#.to_owned())
    );
    let response = ask(&edge.gateway, said("big", json!({}))).await;
    assert_eq!(
        response.status(),
        502,
        "a pinned pool that fails is an error, not another model's answer"
    );
    let response = ask(&edge.gateway, said("local", json!({"models": ["gpt"]}))).await;
    assert_eq!(
        (
            response.status().as_u16(),
            body(response).await["error"]["code"].clone()
        ),
        (404, json!("model_not_found"))
    );
}

#[tokio::test]
async fn the_kill_switch_keeps_everything_on_the_box() {
    let big = PoolServer::start([Act::Say("yes")]).await;
    let edge = configured(&(pool("big", &big.url()) + "[policy]\nkill-switch = \"local-only\"\n"));
    let reply = body(ask(&edge.gateway, said("auto", closed(&["yes", "no"]))).await).await;
    assert_eq!(
        reply["routing"]["reasons"],
        json!(["KILL_SWITCH", "LOW_CONFIDENCE"])
    );
    let response = ask(&edge.gateway, said("big", json!({}))).await;
    assert_eq!(
        (
            response.status().as_u16(),
            body(response).await["error"]["code"].clone()
        ),
        (503, json!("KILL_SWITCH"))
    );
    assert!(big.seen().is_empty());
}

/// A model that generates until its client leaves, or for far longer than a test takes.
struct EndlessModel(Scripted);

impl Answerer for EndlessModel {
    fn identity(&self) -> &Identity {
        self.0.identity()
    }

    fn answer(&mut self, request: &Request, sink: &mut dyn Sink) -> Result<Answer, VlmError> {
        let piece = Piece {
            text: "word ".into(),
            tokens: Vec::new(),
        };
        for _ in 1..request.max_new_tokens {
            sink.piece(&piece);
            if sink.is_cancelled() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        self.0.answer(request, sink)
    }
}

#[tokio::test]
async fn a_client_that_leaves_frees_the_model() {
    let (local, _thread) =
        pipeline::spawn_inference(EndlessModel(Scripted::new(|_| ("end".into(), 0.5)))).unwrap();
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
    let url = format!(
        "http://{}/v1/chat/completions",
        listener.local_addr().unwrap()
    );
    tokio::spawn(gateway::serve(parts, listener, std::future::pending()));
    let ask = |fields: Value| {
        tests::http_client()
            .post(&url)
            .body(said("local", fields).to_string())
            .send()
    };

    // Nearly an hour of pieces.
    let mut response = ask(json!({"max_tokens": 32000, "stream": true}))
        .await
        .unwrap();
    assert!(
        response.chunk().await.unwrap().is_some(),
        "the stream has begun"
    );
    drop(response);
    // Requests are answered in order: this one only after the first was given up.
    let next = tokio::time::timeout(Duration::from_secs(60), ask(json!({"max_tokens": 1}))).await;
    assert_eq!(next.expect("the model is free").unwrap().status(), 200);
}

#[tokio::test]
async fn other_paths_and_methods_are_answered() {
    let mut gateway = alone("edge");
    let root = gateway.url().trim_end_matches("/v1").to_owned();
    let client = tests::http_client();
    let get = async |path: &str| client.get(format!("{root}{path}")).send().await.unwrap();
    assert_eq!(
        body(get("/healthz").await).await["model"]["backend"],
        "tract"
    );
    assert_eq!(get("/v1/nothing").await.status(), 404);
    let wrong_method = get("/v1/chat/completions").await;
    assert_eq!(wrong_method.status(), 405);
    assert_eq!(
        body(wrong_method).await["error"]["message"],
        "/v1/chat/completions does not accept GET; send POST"
    );
    let too_large = client
        .post(format!("{root}/v1/chat/completions"))
        .body(vec![b' '; (32 << 20) + 1])
        .send()
        .await;
    // The gateway may close the connection before it has read all of it.
    assert!(too_large.is_err() || too_large.is_ok_and(|response| response.status() == 413));
    assert_eq!(gateway.stop(), 0);
}
