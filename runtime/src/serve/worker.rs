//! `egret worker`: answers a pool's requests from a broker's shared subscription.
//!
//! A request is acknowledged after its reply was, and the session ends with the connection: brokers
//! that redeliver give a request that a worker died over to another one, and for the others the
//! node sends it once more (see `pool::mqtt`). What comes back is an OpenAI chat completion, or an
//! error object with User Property `status`.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use firmware_config::agent::{Mqtt, MqttUrl};
use serde::Serialize;
use serde_json::json;
use tokio::sync::oneshot;
use tracing::{info, warn};
use uuid::Uuid;

use crate::commands::exit::{Exit, Failure};
use crate::commands::server::{self, ModelArgs};
use crate::deliver::mqtt::{
    Deliveries, Delivery, Link, LinkError, LinkOptions, LinkState, Publication, Qos,
};
use crate::environment::Environment;
use crate::infer::Handle;
use crate::pool::mqtt::{STATUS, shared_subscription};
use crate::serve::chat::completion::{self, Head};
use crate::serve::chat::{BODY_BYTES_MAX, Reader};
use crate::serve::gateway::local_error;
use crate::serve::openai::{ApiError, Completion};

/// Request topics and properties, on top of the body.
const PACKET_OVERHEAD: u32 = 64 << 10;
/// Bytes of requests that wait: two of the largest. Each counts as having the largest of topics and
/// properties.
const WAITING_BYTES_MAX: usize = 2 * (BODY_BYTES_MAX + PACKET_OVERHEAD as usize);

/// Arguments of `egret worker`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The broker; by default the configuration's, with its user, password and certificates.
    #[arg(long, value_name = "URL", required_unless_present = "config")]
    mqtt: Option<MqttUrl>,
    /// The pool whose requests are answered.
    #[arg(long, value_name = "ID", value_parser = pool_id)]
    pool: String,
    /// Stop when standard input ends, so that the worker does not outlive whoever started it.
    #[arg(long, hide = true)]
    until_stdin_ends: bool,
}

fn pool_id(text: &str) -> Result<String, String> {
    let fits = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
    };
    match text.len() {
        1..=64 if text.bytes().all(fits) => Ok(text.to_owned()),
        _ => Err("expected 1 to 64 of a-z, 0-9, _ and -".to_owned()),
    }
}

/// Answers until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the configuration is wrong or the bundle cannot be used. A broker that is away is waited
/// for.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let config = args.model.config()?;
    let configured = config.as_ref().and_then(|config| config.mqtt.clone());
    let mqtt = match (&args.mqtt, configured) {
        (Some(url), Some(configured)) => Mqtt {
            url: url.clone(),
            ..configured
        },
        (Some(url), None) => Mqtt {
            url: url.clone(),
            username_file: None,
            password_file: None,
            ca_file: None,
            outbox_events_max: 1,
        },
        (None, Some(configured)) => configured,
        (None, None) => {
            return Err(Failure::new(
                Exit::Usage,
                "no broker; name one with --mqtt URL, or in the configuration's [mqtt]",
            ));
        }
    };
    let model = args.model.start(config.as_ref())?;
    if let Some(config) = &config {
        let answers = &model.identity().name;
        match config.pools.iter().find(|pool| pool.id == args.pool) {
            None => warn!(
                "the configuration has no pool {}: nobody who runs on it will ask this worker",
                args.pool
            ),
            Some(pool) if pool.model != *answers => {
                warn!(
                    "pool {} is configured as {}, and {answers} answers for it; another one is named with --bundle",
                    pool.id, pool.model
                );
            }
            Some(_) => {}
        }
    }
    let address = format!("{}:{}", mqtt.url.host, mqtt.url.port);
    let environment = Environment::system();
    let options = LinkOptions {
        // With the session go its unacknowledged requests, which the broker then gives to other
        // workers.
        session_expiry: Duration::ZERO,
        subscriptions: vec![(shared_subscription(&args.pool), Qos::AtLeastOnce)],
        // The model answers one at a time; a second request would wait here while another worker
        // has nothing to do.
        receive_max: 1,
        packet_bytes_max: BODY_BYTES_MAX as u32 + PACKET_OVERHEAD,
        manual_acks: true,
        ..LinkOptions::new(mqtt, format!("egret-worker-{}", Uuid::now_v7().simple()))
    };
    let (link, task, deliveries) = Link::open(options, &environment);
    let started = format!(
        "egret worker: {} answers pool {} on {address}",
        server::describe(&model.identity().name, &model),
        args.pool
    );
    server::run_to_end(async {
        let mut exit = Ok(Exit::Done);
        let stop = async {
            tokio::select! {
                stopped = server::stopped(&model) => exit = stopped,
                () = stdin_ended(), if args.until_stdin_ends => {}
            }
        };
        // The connection ends last, and by itself: a request in work then stays unacknowledged.
        tokio::select! {
            () = task.run(stop) => {}
            () = announce(&link, &started) => {}
            () = work(&link, deliveries, &model) => {}
        }
        exit
    })
}

/// Says that requests are taken, once they are.
async fn announce(link: &Link, started: &str) {
    let mut status = link.status();
    if status
        .wait_for(|status| status.state == LinkState::Up)
        .await
        .is_ok()
    {
        println!("{started}");
    }
    std::future::pending().await
}

async fn stdin_ended() {
    let (ended, end) = oneshot::channel();
    // A thread of its own: nothing can take back a read of standard input.
    std::thread::spawn(move || {
        // An input that fails has ended, too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}

/// Answers one request after another.
async fn work(link: &Link, mut deliveries: Deliveries, model: &Handle) {
    let reader = Reader::default();
    let mut waiting = Waiting::default();
    loop {
        let next = match waiting.take() {
            Some(next) => Some(next),
            None => deliveries.recv().await.map(Arrived::now),
        };
        let Some(Arrived {
            delivery: Delivery { publication, ack },
            at,
        }) = next
        else {
            return;
        };
        let mut serving = pin!(serve_one(link, publication, at, model, &reader));
        let done = loop {
            tokio::select! {
                done = &mut serving => break done,
                // One at a time is what was subscribed for, but that holds for QoS 1 alone, and not
                // with every broker.
                Some(delivery) = deliveries.recv() => waiting.put(Arrived::now(delivery)),
            }
        };
        if let (true, Some(ack)) = (done, ack) {
            ack.send();
        }
    }
}

/// A request, and when it came: from then on its time runs out.
struct Arrived {
    delivery: Delivery,
    at: Instant,
}

impl Arrived {
    fn now(delivery: Delivery) -> Self {
        Arrived {
            delivery,
            at: Instant::now(),
        }
    }

    fn bytes(&self) -> usize {
        self.delivery.publication.payload.len() + PACKET_OVERHEAD as usize
    }
}

/// Requests that came while another was answered, in their order.
#[derive(Default)]
struct Waiting {
    queue: VecDeque<Arrived>,
    bytes: usize,
}

impl Waiting {
    /// Keeps a request, if there is room for it; else its sender has to send it again.
    fn put(&mut self, request: Arrived) {
        let bytes = self.bytes + request.bytes();
        if bytes > WAITING_BYTES_MAX {
            warn!(
                "a request was dropped: those that wait have {} bytes, and there is room for {WAITING_BYTES_MAX}",
                self.bytes
            );
            // Not kept from the broker: unacknowledged, it would take a place among those it hands
            // out at one time, for ever.
            if let Some(ack) = request.delivery.ack {
                ack.send();
            }
            return;
        }
        self.bytes = bytes;
        self.queue.push_back(request);
    }

    fn take(&mut self) -> Option<Arrived> {
        let request = self.queue.pop_front()?;
        self.bytes -= request.bytes();
        Some(request)
    }
}

/// Answers one request that arrived `at`. False when it should go to another worker.
async fn serve_one(
    link: &Link,
    request: Publication,
    at: Instant,
    model: &Handle,
    reader: &Reader,
) -> bool {
    let Some(topic) = request.response_topic.filter(|_| !request.retain) else {
        warn!(
            topic = request.topic,
            "a request without Response Topic, or a retained one: ignored"
        );
        return true;
    };
    let began = Instant::now();
    // Nobody waits for the answer of an expired request, so the model is stopped when it expires.
    let expires = at + request.expiry.unwrap_or(Duration::from_secs(3600));
    let Ok(answered) =
        tokio::time::timeout_at(expires.into(), answer(request.payload, model, reader)).await
    else {
        info!(after = ?began.elapsed(), "a request expired");
        return true;
    };
    info!(took = ?began.elapsed(), outcome = answered.as_ref().map_or_else(|error| error.message.as_str(), |_| "answered"), "request");
    let reply = Publication {
        topic,
        qos: Qos::AtLeastOnce,
        correlation: request.correlation,
        content_type: Some("application/json".into()),
        expiry: Some(expires.saturating_duration_since(Instant::now())),
        ..reply(&answered)
    };
    match link.publish(reply).await {
        Ok(()) => true,
        Err(error @ LinkError::Down(_)) => {
            warn!(%error, "the reply was not delivered; the request goes to another worker");
            false
        }
        Err(error) => {
            warn!(%error, "the reply cannot be delivered");
            true
        }
    }
}

/// The payload of a reply, and its status when it is an error.
fn reply(answered: &Result<Completion, ApiError>) -> Publication {
    match answered {
        Ok(completion) => Publication {
            payload: json_bytes(completion),
            ..Publication::default()
        },
        Err(error) => {
            let mut user_properties = vec![(STATUS.to_owned(), error.status.to_string())];
            user_properties.extend(
                error
                    .retry_after
                    .map(|seconds| ("retry-after".to_owned(), seconds.to_string())),
            );
            Publication {
                payload: json_bytes(&error.body()),
                user_properties,
                ..Publication::default()
            }
        }
    }
}

async fn answer(body: Bytes, model: &Handle, reader: &Reader) -> Result<Completion, ApiError> {
    let asked = reader.read(body).await?;
    let answer = model
        .ask(asked.request.clone())
        .await
        .map_err(|error| local_error(&error))?;
    let created = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    // Whatever model was asked for, this one answered; the request's is between the node and the
    // pool.
    let head = Head {
        id: format!("chatcmpl-{}", Uuid::now_v7()),
        created,
        model: model.identity().name.clone(),
    };
    let routing = json!({"where": "local", "confidence": completion::confidence(&answer)});
    Ok(completion::completion(head, &asked, &answer, routing))
}

fn json_bytes(value: &impl Serialize) -> Bytes {
    // Plain structs of strings and numbers always serialize; an empty payload would be read as a
    // broken reply.
    Bytes::from(serde_json::to_vec(value).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_travel_with_their_status() {
        let refused = reply(&Err(ApiError::bad_request("n", "n is not supported")));
        assert_eq!(
            refused.user_properties,
            [("status".to_owned(), "400".to_owned())]
        );
        insta::assert_snapshot!(String::from_utf8_lossy(&refused.payload), @r#"{"error":{"message":"n is not supported","type":"invalid_request_error","param":"n","code":null}}"#);
        let busy = reply(&Err(ApiError::busy("later", 2)));
        assert_eq!(
            busy.user_properties[1],
            ("retry-after".to_owned(), "2".to_owned())
        );
    }

    #[test]
    fn requests_wait_in_order_and_within_a_limit() {
        let request = |name: u8, bytes: usize| Delivery {
            publication: Publication {
                topic: name.to_string(),
                payload: vec![name; bytes].into(),
                ..Publication::default()
            },
            ack: None,
        };
        let mut waiting = Waiting::default();
        for (name, bytes) in [(1, BODY_BYTES_MAX), (2, 3), (3, BODY_BYTES_MAX), (4, 5)] {
            waiting.put(Arrived::now(request(name, bytes)));
        }
        let kept: Vec<_> = std::iter::from_fn(|| waiting.take())
            .map(|request| request.delivery.publication.topic)
            .collect();
        assert_eq!(kept, ["1", "2", "4"], "the third was too much");
        for _ in 0..2000 {
            waiting.put(Arrived::now(request(5, 0)));
        }
        assert!(
            (1000..1100).contains(&waiting.queue.len()),
            "{} that are nearly nothing, with the room given back",
            waiting.queue.len()
        );
    }

    #[test]
    fn pool_ids() {
        assert!(pool_id("vlm-large").is_ok());
        for id in ["", "a/b", "#", "+", "Big"] {
            assert!(pool_id(id).is_err(), "{id}");
        }
    }
}
