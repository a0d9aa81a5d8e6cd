//! The OpenAI-compatible endpoint: the agent's routing for anybody's prompts.
//!
//! ```text
//! POST /v1/chat/completions ─▶ chat::read ─▶ target ─▶ settle (local model · router · pools) ─▶ respond (whole | stream)
//! GET  /v1/models   GET /healthz   GET /metrics
//! ```
//!
//! The body's `model` is always who answered. Every refusal is an OpenAI error object that names
//! the field.

mod connections;
mod metrics;
mod relay;
mod respond;
mod room;
mod routing;
mod settle;
mod target;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use tokio::net::TcpListener;

use crate::decide::call::Escalations;
use crate::infer;
use crate::serve::chat::{self, BODY_BYTES_MAX};
use crate::serve::openai::reply::Architecture;
use crate::serve::openai::{ApiError, ModelEntry, ModelList};
use metrics::Metrics;
use room::Room;
pub(crate) use settle::local_error;

/// A client that has not sent its body by then is turned away.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// Replies under way may end in this time when the gateway stops.
pub const DRAIN: Duration = Duration::from_millis(2500);

/// What a gateway is made of.
#[derive(Debug)]
pub struct Parts {
    /// The model on this box.
    pub local: infer::Handle,
    /// What it is called in replies.
    pub name: String,
    /// Pools and policy, shared with the cameras.
    pub escalations: Escalations,
}

/// What all requests share.
#[derive(Debug)]
struct Gateway {
    parts: Parts,
    metrics: Metrics,
    room: Room,
    reader: chat::Reader,
    started: u64,
}

/// Serves until `shutdown` resolves; replies under way then have [`DRAIN`] to end, and are cut off.
///
/// # Errors
/// When `listener` does not listen.
pub async fn serve(
    parts: Parts,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let (metrics, started) = (Metrics::default(), respond::unix_time());
    let cut = Arc::clone(&metrics.connections_cut);
    let gateway = Gateway {
        parts,
        metrics,
        room: Room::default(),
        reader: chat::Reader::default(),
        started,
    };
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .route("/healthz", get(healthz))
        .route("/metrics", get(prometheus))
        .fallback(nothing_here)
        .method_not_allowed_fallback(another_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(gateway));
    connections::serve(listener, routes, shutdown, DRAIN, &cut).await
}

async fn chat_completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    match answer(&gateway, request).await {
        Ok(response) => response,
        Err(error) => {
            gateway.metrics.failed(&error);
            error.into_response()
        }
    }
}

async fn answer(gateway: &Arc<Gateway>, request: Request) -> Result<Response, ApiError> {
    // A length that is not told may be any.
    let told = request
        .body()
        .size_hint()
        .upper()
        .and_then(|bytes| usize::try_from(bytes).ok());
    let mut place = gateway
        .room
        .enter(told.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX))?;
    let began = Instant::now();
    let body = read_body(request).await?;
    place.hold(body.len())?;
    let asked = gateway.reader.read(body.clone()).await?;
    place.hold(body.len() + asked.picture_bytes())?;
    let pools: Vec<String> = gateway
        .parts
        .escalations
        .pools
        .iter()
        .map(|pool| pool.id.clone())
        .collect();
    let targets = target::targets(
        asked.model.as_deref(),
        &asked.models,
        &gateway.parts.name,
        &pools,
    )?;
    let settled = settle::settle(&gateway.parts, &asked, &body, targets).await?;
    gateway.metrics.answered(settled.routing(), began.elapsed());
    Ok(respond::respond(gateway, asked, settled, place))
}

async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIME_MAX, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body is over {BODY_BYTES_MAX} bytes; send smaller pictures");
            Err(ApiError {
                status: 413,
                param: None,
                ..ApiError::bad_request("", message)
            })
        }
        Ok(Err(rejection)) => Err(ApiError {
            param: None,
            ..ApiError::bad_request("", rejection.body_text())
        }),
        Err(_) => {
            let message = format!("the body did not come within {BODY_TIME_MAX:?}");
            Err(ApiError {
                status: 408,
                param: None,
                ..ApiError::bad_request("", message)
            })
        }
    }
}

async fn models(State(gateway): State<Arc<Gateway>>) -> axum::Json<ModelList> {
    let entry = |id: String, owned_by, images: bool, usd_per_call| ModelEntry {
        id,
        object: "model",
        created: gateway.started,
        owned_by,
        architecture: Architecture {
            input_modalities: if images {
                vec!["text", "image"]
            } else {
                vec!["text"]
            },
            output_modalities: vec!["text"],
        },
        usd_per_call,
    };
    let name = &gateway.parts.name;
    let mut data: Vec<_> = target::names_here(name, &[])
        .into_iter()
        .map(|id| entry(id, "egret", true, None))
        .collect();
    data.extend(
        gateway
            .parts
            .escalations
            .pools
            .iter()
            .map(|pool| entry(pool.id.clone(), "pool", pool.images, pool.usd_per_call)),
    );
    axum::Json(ModelList {
        object: "list",
        data,
    })
}

async fn healthz(State(gateway): State<Arc<Gateway>>) -> axum::Json<serde_json::Value> {
    axum::Json(serde_json::json!({
        "status": "ok",
        "model": gateway.parts.local.identity(),
    }))
}

async fn prometheus(
    State(gateway): State<Arc<Gateway>>,
) -> ([(&'static str, &'static str); 1], String) {
    (
        [("content-type", "text/plain; version=0.0.4")],
        gateway.metrics.text(),
    )
}

async fn another_method(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let expected = if path == "/v1/chat/completions" {
        "POST"
    } else {
        "GET"
    };
    let message = format!("{path} does not take {method}; send {expected}");
    take_body(request).await;
    ApiError {
        status: 405,
        param: None,
        ..ApiError::bad_request("", message)
    }
}

/// Takes what came along with a request that is refused by its head: left behind, it would end the
/// connection under the client's next one.
async fn take_body(request: Request) {
    let mut body = request.into_body().into_data_stream();
    let mut left = BODY_BYTES_MAX;
    let taken = async {
        while let Some(Ok(bytes)) = body.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
    };
    // A client that does not send it is none that goes on.
    let _ = tokio::time::timeout(BODY_TIME_MAX, taken).await;
}

async fn nothing_here(request: Request) -> ApiError {
    let message = format!(
        "{} {} is not served; see POST /v1/chat/completions and GET /v1/models",
        request.method(),
        request.uri().path()
    );
    take_body(request).await;
    ApiError {
        status: 404,
        param: None,
        ..ApiError::bad_request("", message)
    }
}
