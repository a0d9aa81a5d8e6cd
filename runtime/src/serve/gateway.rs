//! The OpenAI-compatible endpoint: the agent's routing for the prompts of any client.
//!
//! ```text
//! POST /v1/chat/completions ─▶ chat::read ─▶ model_choice ─▶ settle (local model · router · pools) ─▶ respond (whole | stream)
//! GET  /v1/models   GET /healthz   GET /metrics
//! ```
//!
//! The `model` of a reply is the one that answered. Every error is an OpenAI error object that
//! names the field at fault.

mod connections;
mod model_choice;
mod permits;
mod relay;
mod respond;
mod routing;
mod settle;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Bytes, HttpBody};
use axum::extract::{DefaultBodyLimit, FromRequest, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use tokio::net::TcpListener;

use crate::decide::call::Escalations;
use crate::environment::Environment;
use crate::infer;
use crate::metrics::{self, Metrics};
use crate::openai::reply::Architecture;
use crate::openai::{ApiError, ModelEntry, ModelList};
use crate::serve::chat::{self, BODY_BYTES_MAX};
use permits::RequestPermits;

/// A request whose body has not arrived by then is refused.
const BODY_TIME_MAX: Duration = Duration::from_secs(60);
/// Time that open replies have to end when the gateway stops.
pub(crate) const DRAIN: Duration = Duration::from_millis(2500);

/// The parts of a gateway.
#[derive(Debug)]
pub struct Parts {
    /// The model on this box.
    pub local: infer::Handle,
    /// Its name in replies.
    pub name: String,
    /// Pools and policy, shared with the cameras.
    pub escalations: Escalations,
    /// Time, and ids.
    pub environment: Environment,
    /// Where requests are counted; `/metrics` shows all that it exposes.
    pub metrics: Arc<Metrics>,
}

/// Shared by all requests.
#[derive(Debug)]
struct Gateway {
    parts: Parts,
    permits: RequestPermits,
    reader: chat::Reader,
    started: u64,
}

/// Serves until `shutdown` resolves; open replies then have 2.5 s to end, and are cut off.
///
/// # Errors
/// When `listener` does not listen.
pub async fn serve(
    parts: Parts,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let cut = parts.metrics.gateway.connections_cut.clone();
    let started = parts.environment.clock.unix_secs();
    let gateway = Gateway {
        parts,
        permits: RequestPermits::default(),
        reader: chat::Reader::default(),
        started,
    };
    let routes = Router::new()
        .route("/v1/chat/completions", post(chat_completions))
        .route("/v1/models", get(models))
        .route("/healthz", get(healthz))
        .route("/metrics", get(prometheus))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(Arc::new(gateway));
    connections::serve(listener, routes, shutdown, DRAIN, &cut).await
}

async fn chat_completions(State(gateway): State<Arc<Gateway>>, request: Request) -> Response {
    match answer(&gateway, request).await {
        Ok(response) => response,
        Err(error) => {
            gateway.parts.metrics.gateway.failed(error.status);
            error.into_response()
        }
    }
}

async fn answer(gateway: &Arc<Gateway>, request: Request) -> Result<Response, ApiError> {
    // Reserve room for it. Without a Content-Length the largest body is assumed.
    let announced = request
        .body()
        .size_hint()
        .upper()
        .and_then(|bytes| usize::try_from(bytes).ok());
    let mut permit = gateway
        .permits
        .acquire(announced.unwrap_or(BODY_BYTES_MAX).min(BODY_BYTES_MAX))?;

    // Read and check it; from then on it holds its true size.
    let clock = &gateway.parts.environment.clock;
    let began = clock.now();
    let body = read_body(request).await?;
    permit.resize(body.len())?;
    let question = gateway.reader.read(body.clone()).await?;
    permit.resize(body.len() + question.image_bytes())?;

    // Ask the models that it names.
    let pools: Vec<String> = gateway
        .parts
        .escalations
        .pools
        .iter()
        .map(|pool| pool.id.clone())
        .collect();
    let choices = model_choice::model_choices(
        question.model.as_deref(),
        &question.models,
        &gateway.parts.name,
        &pools,
    )?;
    let settled = settle::settle(&gateway.parts, &question, &body, choices).await?;

    // Count the decision, and send the answer.
    let routing = settled.routing();
    gateway.parts.metrics.gateway.answered(
        routing.source.as_str(),
        routing.reasons.first().map_or("", |reason| reason.as_str()),
        clock.now() - began,
        routing.bytes_up,
    );
    Ok(respond::respond(gateway, question, settled, permit))
}

async fn read_body(request: Request) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_TIME_MAX, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let message = format!("the body is over {BODY_BYTES_MAX} bytes; send smaller images");
            Err(ApiError::refused(413, message))
        }
        Ok(Err(rejection)) => Err(ApiError::refused(400, rejection.body_text())),
        Err(_) => {
            let message = format!("the body did not arrive within {BODY_TIME_MAX:?}");
            Err(ApiError::refused(408, message))
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
    let mut data: Vec<_> = model_choice::known_names(name, &[])
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
    let Parts {
        metrics,
        escalations,
        ..
    } = &gateway.parts;
    // Set when it is read: commands over MQTT change it without the gateway.
    metrics
        .routing
        .kill_switch(escalations.policy.kill_switch());
    ([("content-type", metrics::CONTENT_TYPE)], metrics.text())
}

async fn method_not_allowed(request: Request) -> ApiError {
    let (method, path) = (request.method(), request.uri().path());
    let expected = if path == "/v1/chat/completions" {
        "POST"
    } else {
        "GET"
    };
    let message = format!("{path} does not accept {method}; send {expected}");
    drain_body(request).await;
    ApiError::refused(405, message)
}

/// Reads the body of a request that is refused by its head: an unread body would end the connection
/// before the client's next request.
async fn drain_body(request: Request) {
    let mut body = request.into_body().into_data_stream();
    let mut left = BODY_BYTES_MAX;
    let drained = async {
        while let Some(Ok(bytes)) = body.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
    };
    // After a timeout the connection is closed, which is what such a client gets.
    let _ = tokio::time::timeout(BODY_TIME_MAX, drained).await;
}

async fn not_found(request: Request) -> ApiError {
    let message = format!(
        "{} {} is not served; expected POST /v1/chat/completions, GET /v1/models, GET /healthz or GET /metrics",
        request.method(),
        request.uri().path()
    );
    drain_body(request).await;
    ApiError::refused(404, message)
}
