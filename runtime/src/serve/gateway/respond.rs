//! An outcome as an HTTP response: a completion, or a stream of chunks.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use vlm::answer::Piece;

use super::Gateway;
use super::room::Place;
use super::routing::Routing;
use super::settle::{Outcome, Writing, local_error};
use crate::serve::chat::Asked;
use crate::serve::chat::completion::{self, Head};
use crate::serve::openai::reply::{Chunk, Usage};
use crate::serve::openai::{ApiError, Completion};

/// The response to `asked`. `place` is the request's place in the gateway, given back at the end of
/// the response.
pub(super) fn respond(
    gateway: &Arc<Gateway>,
    asked: Asked,
    outcome: Outcome,
    place: Place,
) -> Response {
    let routing = outcome.routing();
    let model = match &outcome {
        Outcome::Pool { completion, .. } => completion.model.clone(),
        Outcome::Local { .. } | Outcome::Writing { .. } => gateway.parts.name.clone(),
    };
    let headers = header_map(routing, &model);
    let head = Head {
        id: format!("chatcmpl-{}", routing.decision_id),
        created: unix_time(),
        model,
    };
    match outcome {
        Outcome::Writing { writing, routing } => {
            let chunks = as_written(head, asked, writing, routing, Arc::clone(gateway));
            (headers, event_stream(chunks, place)).into_response()
        }
        Outcome::Local { answer, routing } => {
            gateway.metrics.used(completion::usage(&answer));
            let reply = completion::completion(head.clone(), &asked, &answer, json!(routing));
            whole(headers, head, &asked, reply, place)
        }
        Outcome::Pool {
            completion,
            routing,
        } => {
            let reply = Completion {
                id: head.id.clone(),
                created: head.created,
                routing: Some(json!(routing)),
                ..completion
            };
            gateway.metrics.used(reply.usage.unwrap_or_default());
            whole(headers, head, &asked, reply, place)
        }
    }
}

/// A reply that is all there: as it is, or as the chunks of a stream, its content in one of them.
fn whole(
    headers: HeaderMap,
    head: Head,
    asked: &Asked,
    reply: Completion,
    place: Place,
) -> Response {
    if !asked.stream {
        return (headers, Json(reply)).into_response();
    }
    let choice = reply.choices.into_iter().next();
    let (content, logprobs, finish_reason) = match choice {
        Some(choice) => (
            choice.message.content.unwrap_or_default(),
            choice.logprobs,
            choice.finish_reason,
        ),
        None => (String::new(), None, None),
    };
    let mut events = vec![
        event(&head.opening()),
        event(&head.addition(content, logprobs)),
    ];
    events.push(event(
        &head.finish(finish_reason.as_deref().unwrap_or("stop"), reply.routing),
    ));
    events.extend(
        asked
            .include_usage
            .then(|| event(&head.usage(reply.usage.unwrap_or_default()))),
    );
    events.push(done());
    (headers, event_stream(stream::iter(events), place)).into_response()
}

/// A reply as the model writes it.
fn as_written(
    head: Head,
    asked: Asked,
    writing: Writing,
    routing: Routing,
    gateway: Arc<Gateway>,
) -> impl Stream<Item = Event> + Send {
    let opening = event(&head.opening());
    let rest = stream::unfold(writing.pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let (head, asked) = (Arc::new(head), Arc::new(asked));
    let additions = {
        let (head, asked) = (Arc::clone(&head), Arc::clone(&asked));
        stream::iter(writing.first)
            .chain(rest)
            .map(move |piece| event(&addition(&head, &asked, piece)))
    };
    let ending = stream::once(writing.answer).flat_map(move |ended| {
        stream::iter(match ended {
            Ok(answer) => {
                let usage = completion::usage(&answer);
                gateway.metrics.used(usage);
                let routing = Routing {
                    confidence: Some(completion::confidence(&answer)),
                    ..routing.clone()
                };
                ending(
                    &head,
                    answer.finish_reason.as_str(),
                    &routing,
                    asked.include_usage.then_some(usage),
                )
            }
            Err(error) => {
                let error = local_error(&error);
                gateway.metrics.failed(&error);
                vec![event(&error.body())]
            }
        })
    });
    stream::once(std::future::ready(opening))
        .chain(additions)
        .chain(ending)
}

fn ending(head: &Head, finish_reason: &str, routing: &Routing, usage: Option<Usage>) -> Vec<Event> {
    let mut events = vec![event(&head.finish(finish_reason, Some(json!(routing))))];
    events.extend(usage.map(|usage| event(&head.usage(usage))));
    events.push(done());
    events
}

fn addition(head: &Head, asked: &Asked, piece: Piece) -> Chunk {
    let logprobs =
        (asked.logprobs && !piece.tokens.is_empty()).then(|| completion::logprobs(&piece.tokens));
    head.addition(piece.text, logprobs)
}

fn event_stream(events: impl Stream<Item = Event> + Send + 'static, place: Place) -> Response {
    let events = events.map(move |event| {
        // Held by the stream, so that its place is taken until the client has all of it or goes.
        let _ = &place;
        Ok::<_, Infallible>(event)
    });
    Sse::new(events)
        .keep_alive(KeepAlive::default())
        .into_response()
}

fn event(data: &impl Serialize) -> Event {
    // Plain structs of strings and numbers always serialize.
    Event::default()
        .json_data(data)
        .unwrap_or_else(|error| Event::default().comment(error.to_string()))
}

fn done() -> Event {
    Event::default().data("[DONE]")
}

fn header_map(routing: &Routing, model: &str) -> HeaderMap {
    let header = |(name, value): (&'static str, String)| {
        Some((
            HeaderName::from_static(name),
            HeaderValue::try_from(value).ok()?,
        ))
    };
    routing
        .headers(model)
        .into_iter()
        .filter_map(header)
        .collect()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self
            .retry_after
            .map(|seconds| [("retry-after", seconds.to_string())]);
        let body: Json<Value> = Json(json!(self.body()));
        match retry_after {
            Some(header) => (status, header, body).into_response(),
            None => (status, body).into_response(),
        }
    }
}

pub(super) fn unix_time() -> u64 {
    // A box without a clock battery may stand before 1970.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
