//! A scripted pool: answers, errors, hangs, truncated bodies.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::stream;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The response to one request.
#[derive(Debug, Clone)]
pub enum Act {
    /// A completion with this content.
    Say(&'static str),
    /// This body, with status 200.
    Body(&'static str),
    /// An error status, with an optional `Retry-After`.
    Status(u16, Option<&'static str>),
    /// No response.
    Hang,
    /// A connection that closes in the middle of the body.
    HalfABody,
    /// A redirect to this URL.
    Redirect(String),
}

/// A request as the server received it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Value,
}

/// A scripted pool on loopback. After the end of its script it repeats the last act.
#[derive(Debug, Clone)]
pub struct PoolServer {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug)]
struct Script {
    acts: VecDeque<Act>,
    seen: Vec<Seen>,
}

impl PoolServer {
    /// Starts a server on a free port; it ends with the test's tokio runtime.
    ///
    /// # Panics
    /// When loopback has no free port.
    pub async fn start(acts: impl IntoIterator<Item = Act>) -> PoolServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let script = Arc::new(Mutex::new(Script {
            acts: acts.into_iter().collect(),
            seen: Vec::new(),
        }));
        let routes = Router::new()
            .route("/v1/chat/completions", post(act))
            .with_state(Arc::clone(&script));
        tokio::spawn(async move { axum::serve(listener, routes).await });
        PoolServer { address, script }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// The requests received so far.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn seen(&self) -> Vec<Seen> {
        self.script.lock().expect("no handler panics").seen.clone()
    }
}

async fn act(
    State(script): State<Arc<Mutex<Script>>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let act = {
        let mut script = script.lock().expect("no handler panics");
        script.seen.push(Seen {
            headers,
            body: serde_json::from_slice(&body).unwrap_or(Value::Null),
        });
        if script.acts.len() > 1 {
            script.acts.pop_front()
        } else {
            script.acts.front().cloned()
        }
    };
    match act.expect("a script has at least one act") {
        Act::Say(content) => axum::Json(json!({
            "id": "1", "object": "chat.completion", "model": "scripted-7b",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12},
        }))
        .into_response(),
        Act::Body(body) => body.into_response(),
        Act::Status(status, retry_after) => {
            let status = StatusCode::from_u16(status).expect("a valid HTTP status");
            let body = axum::Json(json!({"error": {"message": "as scripted", "type": "server_error"}}));
            match retry_after {
                Some(seconds) => (status, [("retry-after", seconds)], body).into_response(),
                None => (status, body).into_response(),
            }
        }
        Act::Hang => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            StatusCode::OK.into_response()
        }
        Act::HalfABody => Response::builder()
            .header("content-length", "1000")
            .body(Body::from_stream(stream::iter([Ok("{\"choices\": [{\"message\": {\"content\": \"yes\""), Err("as scripted")])))
            .expect("a valid response"),
        Act::Redirect(to) => (StatusCode::TEMPORARY_REDIRECT, [("location", to)]).into_response(),
    }
}
