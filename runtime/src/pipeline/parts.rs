//! Makes the parts of an agent and starts them.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devices::Stop;
use firmware_config::agent::{AgentConfig, Camera, Mqtt, PoolTransport};
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tracing::error;

use super::stoppable::Stoppable;
use super::{CameraAtWork, RunError};
use crate::capture::record::Report;
use crate::capture::status::CameraStatus;
use crate::capture::{Capture, handoff};
use crate::clock::Clock;
use crate::deliver::inbox::Inbox;
use crate::deliver::outbox::Outbox;
use crate::deliver::outbox::store::MemoryStore;
use crate::deliver::payload::{InfoPayload, NodeState};
use crate::deliver::post::{Kind, Post, Posted};
use crate::deliver::publisher::{self, Publisher};
use crate::deliver::topics::Topics;
use crate::environment::Environment;
use crate::infer::{self, Answerer, Handle};
use crate::metrics::Metrics;
use crate::mqtt::{BrokerConnection, LastWill, LinkOptions, Qos};
use crate::observe::{Observer, Record};
use crate::pool::mqtt::reply_topic;
use crate::random::Ids;
use crate::scene::{Scene, SceneContext};
use crate::serve::gateway;

/// How long the broker holds our last will back, so that a short outage does not show.
const WILL_DELAY: Duration = Duration::from_secs(10);

/// Starts the thread that owns `model`; it ends when the last handle is dropped.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn_inference(
    model: impl Answerer + 'static,
) -> io::Result<(Handle, thread::JoinHandle<()>)> {
    let (handle, inference) = infer::channel(model);
    let thread = thread::Builder::new()
        .name("inference".into())
        .spawn(move || inference.run())?;
    Ok((handle, thread))
}

/// A connection to a broker that is not dialled yet, and the outbox that waits for it.
pub(super) struct BrokerParts {
    pub(super) connection: BrokerConnection,
    outbox: Outbox,
}

/// The configured broker.
pub(super) fn broker(
    config: &AgentConfig,
    epoch: u64,
    environment: &Environment,
) -> Option<BrokerParts> {
    let mqtt = config.mqtt.as_ref()?;
    let options = link_options(config, mqtt, epoch, &environment.clock);
    let store = Box::new(MemoryStore::default());
    Some(BrokerParts {
        connection: environment.connect_broker(options),
        outbox: Outbox::new(epoch, mqtt.outbox_events_max, store),
    })
}

fn link_options(config: &AgentConfig, mqtt: &Mqtt, epoch: u64, clock: &Clock) -> LinkOptions {
    let topics = Topics::new(&config.node.id);
    let mut subscriptions = vec![(topics.kill_switch_set(), Qos::AtLeastOnce)];
    let over_mqtt = |pool: &firmware_config::agent::Pool| pool.transport == PoolTransport::Mqtt;
    if config.pools.iter().any(over_mqtt) {
        subscriptions.push((reply_topic(&config.node.id), Qos::AtLeastOnce));
    }
    let offline = publisher::status(NodeState::Offline, epoch, clock);
    let offline = Kind::Json.options().publication(topics.status(), offline);
    LinkOptions {
        subscriptions,
        last_will: Some(LastWill {
            publication: offline,
            delay: WILL_DELAY,
        }),
        ..LinkOptions::new(mqtt.clone(), format!("egret-{}", config.node.id))
    }
}

/// Publisher, inbox and connection.
type BrokerSide = (JoinHandle<()>, Option<JoinHandle<()>>, Option<Stoppable>);

/// Starts publisher, inbox and connection. Without a broker, starts what numbers the events for
/// observers.
pub(super) fn start_broker_side(
    broker: Option<BrokerParts>,
    context: &SceneContext,
    metrics: &Arc<Metrics>,
    posted: mpsc::Receiver<Posted>,
    grace: watch::Receiver<Duration>,
) -> BrokerSide {
    let Some(BrokerParts { connection, outbox }) = broker else {
        return (tokio::spawn(without_broker(posted)), None, None);
    };
    let BrokerConnection {
        link,
        deliveries,
        run,
    } = connection;
    let clock = context.escalations.clock.clone();
    let publisher = Publisher::new(&context.node, outbox, link, clock, Arc::clone(metrics));
    let inbox = Inbox {
        topics: Topics::new(&context.node),
        escalations: context.escalations.clone(),
        posts: context.posts.clone(),
        metrics: Arc::clone(metrics),
    };
    (
        tokio::spawn(publisher.run(posted, grace)),
        Some(tokio::spawn(inbox.run(deliveries))),
        Some(Stoppable::spawn(run)),
    )
}

/// Stands in for the publisher of a box without a broker: events are shown to observers alone.
async fn without_broker(mut posts: mpsc::Receiver<Posted>) {
    let mut seq = 0;
    while let Some(Posted { post, stored }) = posts.recv().await {
        if let Post::Event { .. } = post {
            seq += 1;
            // A scene that is gone does not wait for it.
            let _ = stored.send(seq);
        }
    }
}

/// Binds the gateway's address.
///
/// # Errors
/// When the system does not allow it.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })
}

pub(super) fn start_gateway(
    listener: TcpListener,
    context: &SceneContext,
    environment: &Environment,
    metrics: &Arc<Metrics>,
) -> Stoppable {
    let parts = gateway::Parts {
        name: context.model.identity().name.clone(),
        local: context.model.clone(),
        escalations: context.escalations.clone(),
        environment: environment.clone(),
        metrics: Arc::clone(metrics),
    };
    Stoppable::spawn(|stopped| serve(parts, listener, stopped))
}

async fn serve(parts: gateway::Parts, listener: TcpListener, stopped: BoxFuture<'static, ()>) {
    if let Err(error) = gateway::serve(parts, listener, stopped).await {
        error!("the gateway ended: {error}");
    }
}

/// Starts a camera's capture, and makes the scene that takes its frames.
///
/// # Errors
/// When the system has no thread for the capture.
pub(super) fn start_camera(
    config: &AgentConfig,
    camera: &Camera,
    context: &SceneContext,
    environment: &Environment,
    stop_scene: watch::Receiver<Option<Duration>>,
) -> io::Result<(impl Future<Output = ()> + Send + use<>, CameraAtWork)> {
    let (sender, frames) = if camera.source.is_finite() {
        handoff::every()
    } else {
        handoff::latest()
    };
    let opening = CameraStatus::opening(environment.clock.wall());
    let (status, status_seen) = watch::channel(opening.clone());
    let ids = Ids::seeded(environment.random.number());
    let scene = Scene::new(config, camera, context.clone(), opening, ids).run(
        frames,
        status_seen,
        stop_scene,
    );
    let (id, stop) = (camera.id.clone(), Stop::new());
    let capture = Capture::new(
        camera.clone(),
        sender,
        status,
        stop.clone(),
        environment.clock.clone(),
        environment.random.clone(),
        report_to(Arc::clone(&context.observer), &id),
    );
    let join = Some(environment.cameras.start(capture)?);
    Ok((scene, CameraAtWork { id, stop, join }))
}

/// Shows what happens in the capture of `camera` to `observer`.
fn report_to(observer: Arc<dyn Observer>, camera: &str) -> Report {
    let camera = camera.to_owned();
    Box::new(move |record| {
        let cam = camera.clone();
        observer.observe(&Record::Capture { cam, record });
    })
}

/// What this box is, for its `info` topic.
pub(super) fn info(context: &SceneContext, topics: &Topics, config: &AgentConfig) -> Post {
    let info = InfoPayload {
        version: env!("CARGO_PKG_VERSION"),
        node: &config.node.id,
        model: context.model.identity(),
        cameras: config.cameras.iter().map(|camera| &*camera.id).collect(),
        pools: config.pools.iter().map(|pool| &*pool.id).collect(),
    };
    Post::Retained {
        topic: topics.info(),
        payload: info.to_json().into(),
        kind: Kind::Json,
    }
}
