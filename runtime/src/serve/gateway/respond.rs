//! An answer as an HTTP response: a completion, or a stream of chunks.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream, StreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use vlm::answer::Piece;

use super::Gateway;
use super::permits::RequestPermit;
use super::routing::Routing;
use super::settle::{LocalStream, RoutedAnswer};
use crate::openai::reply::{Chunk, Usage};
use crate::openai::{ApiError, Completion};
use crate::serve::chat::completion::{self, Head};
use crate::serve::chat::{ChatQuestion, local_error};

/// The response to `question`, which holds the request's `permit` until its end.
pub(super) fn respond(
    gateway: &Arc<Gateway>,
    question: ChatQuestion,
    answer: RoutedAnswer,
    permit: RequestPermit,
) -> Response {
    let routing = answer.routing();
    let model = match &answer {
        RoutedAnswer::Pool { completion, .. } => completion.model.clone(),
        RoutedAnswer::Local { .. } | RoutedAnswer::Streaming { .. } => gateway.parts.name.clone(),
    };
    let headers = header_map(routing, &model);
    let head = Head {
        id: format!("chatcmpl-{}", routing.decision_id),
        created: gateway.parts.environment.clock.unix_secs(),
        model,
    };
    let metrics = &gateway.parts.metrics.gateway;
    match answer {
        RoutedAnswer::Streaming { stream, routing } => {
            let chunks = streamed(head, question, stream, routing, Arc::clone(gateway));
            (headers, event_stream(chunks, permit)).into_response()
        }
        RoutedAnswer::Local { answer, routing } => {
            metrics.used(completion::usage(&answer));
            let reply = completion::completion(head.clone(), &question, &answer, json!(routing));
            whole(headers, head, &question, reply, permit)
        }
        RoutedAnswer::Pool {
            completion,
            routing,
        } => {
            let reply = Completion {
                id: head.id.clone(),
                created: head.created,
                routing: Some(json!(routing)),
                ..completion
            };
            metrics.used(reply.usage.unwrap_or_default());
            whole(headers, head, &question, reply, permit)
        }
    }
}

/// A whole reply: as it is, or as the chunks of a stream with all content in one of them.
fn whole(
    headers: HeaderMap,
    head: Head,
    question: &ChatQuestion,
    reply: Completion,
    permit: RequestPermit,
) -> Response {
    if !question.stream {
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
        question
            .include_usage
            .then(|| event(&head.usage(reply.usage.unwrap_or_default()))),
    );
    events.push(done());
    (headers, event_stream(stream::iter(events), permit)).into_response()
}

/// A reply while the model generates it.
fn streamed(
    head: Head,
    question: ChatQuestion,
    local: LocalStream,
    routing: Routing,
    gateway: Arc<Gateway>,
) -> impl Stream<Item = Event> + Send {
    let opening = event(&head.opening());
    let rest = stream::unfold(local.pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let (head, question) = (Arc::new(head), Arc::new(question));
    let additions = {
        let (head, question) = (Arc::clone(&head), Arc::clone(&question));
        stream::iter(local.first)
            .chain(rest)
            .map(move |piece| event(&addition(&head, &question, piece)))
    };
    let ending = stream::once(local.answer).flat_map(move |ended| {
        stream::iter(match ended {
            Ok(answer) => {
                let usage = completion::usage(&answer);
                gateway.parts.metrics.gateway.used(usage);
                let routing = Routing {
                    confidence: Some(completion::confidence(&answer)),
                    ..routing.clone()
                };
                ending(
                    &head,
                    answer.finish_reason.as_str(),
                    &routing,
                    question.include_usage.then_some(usage),
                )
            }
            Err(error) => {
                let error = local_error(&error);
                gateway.parts.metrics.gateway.failed(error.status);
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

fn addition(head: &Head, question: &ChatQuestion, piece: Piece) -> Chunk {
    let logprobs = (question.logprobs && !piece.tokens.is_empty())
        .then(|| completion::logprobs(&piece.tokens));
    head.addition(piece.text, logprobs)
}

fn event_stream(
    events: impl Stream<Item = Event> + Send + 'static,
    permit: RequestPermit,
) -> Response {
    let events = events.map(move |event| {
        // Moved into the stream, so that it is held until the client has all of it or leaves.
        let _ = &permit;
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
