//! Starts every long-lived thread and task of `egret run`, joins them by queues, and ends them in order (the gateway's `serve` has its
//! connections, the demo its auditor). `Link::open`, `infer::channel` and `handoff` make the queues that have two ends of their own.
//!
//! ```text
//! capture thread ─▶ handoff (latest, or every) ─▶ scene task ─▶ posts: mpsc ─▶ publisher task ─▶ link task ─▶ broker
//!                                                  ▲    │ job queue                                 │
//!                                        pool calls┘    ▼                                           ▼
//!                                                inference thread              inbox task ◀─ deliveries: mpsc
//! ```
//!
//! | queue | bound | when full | who pays |
//! |---|---|---|---|
//! | camera → scene, live | 1 | replaced | an older frame; `frames_superseded` |
//! | camera → scene, folder or file | 1 | waits | the reading of the source |
//! | scene → inference | `infer::QUEUE` | waits; a gateway client is told 503 with Retry-After | the scene's next frame |
//! | scene → pool | `in-flight`, budgets | not asked | the answer stays local; `BUSY`, `BUDGET_*` |
//! | scene → publisher | `POSTS` | waits | the scene; the publisher takes, unless the link's window is full |
//! | outbox | `outbox-events` | the oldest is dropped | declared in a gap; `events_dropped` |
//! | broker → inbox | receive maximum | the newest is dropped | a pool reply; counted by the link |

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use devices::Stop;
use firmware_config::agent::{AgentConfig, Camera, PoolTransport};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tracing::{info, warn};
use vlm::{Options, Vlm, VlmError};

use crate::capture::{self, CameraStatus, Capture};
use crate::clock::Clock;
use crate::event::Topics;
use crate::gateway;
use crate::handoff;
use crate::inbox::Inbox;
use crate::infer::{self, Answerer, Handle};
use crate::metrics::{Metrics, Totals};
use crate::mqtt::{LastWill, Link, LinkOptions, Publication, Qos};
use crate::outbox::Outbox;
use crate::policy::InForce;
use crate::pool::{Pools, PoolsError};
use crate::publisher::{self, Post, Publisher};
use crate::record::{Record, Watcher};
use crate::scene::{Scene, Surroundings};

/// Posts on their way to the publisher.
const POSTS: usize = 64;
/// How long the broker waits with our last will, so that a short outage does not flap.
const WILL_DELAY: Duration = Duration::from_secs(10);
/// After Ctrl-C: what the scenes, and then the publisher, may still take. With the link's goodbye the whole drain is under 5 s.
const SCENES_PATIENCE: Duration = Duration::from_millis(2500);
const PUBLISHER_PATIENCE: Duration = Duration::from_millis(1500);
/// At the end of finite sources nobody is waiting at a terminal.
const PUBLISHER_PATIENCE_AT_END: Duration = Duration::from_secs(10);

/// Why the agent did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The bundle.
    #[error("bundle {}", path.display())]
    Model {
        /// The folder.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: VlmError,
    },
    /// A pool.
    #[error(transparent)]
    Pools(#[from] PoolsError),
    /// The gateway's address.
    #[error("gateway: cannot listen on {address}; is another program there?")]
    Listen {
        /// From `[gateway] listen`.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A thread.
    #[error("the system gives no thread")]
    Thread(#[source] io::Error),
}

/// How a run went.
#[derive(Debug, Clone, Copy)]
pub struct Summary {
    /// What was counted.
    pub totals: Totals,
    /// Events that the broker never acknowledged.
    pub events_undelivered: usize,
}

/// Runs the agent: until `shutdown`, or until every source has ended and nothing else is configured.
///
/// A broker or pool that is not there is normal; a bundle that is not, is an error.
///
/// # Errors
/// When something the box cannot work without is not to be had.
pub async fn run(config: AgentConfig, watcher: Arc<dyn Watcher>, shutdown: impl Future<Output = ()>) -> Result<Summary, StartError> {
    let model = open_model(&config).await?;
    run_with(model, config, watcher, shutdown).await
}

async fn open_model(config: &AgentConfig) -> Result<Vlm, StartError> {
    let path = config.model.bundle.clone();
    let options = Options {
        backend: config.model.backend,
        threads: config.model.threads,
        ort_library: config.model.ort_library.clone(),
        require_execution_provider: config.model.require_execution_provider.clone(),
    };
    let opening = tokio::task::spawn_blocking(move || Vlm::open(&path, &options).map_err(|source| StartError::Model { path, source }));
    match opening.await {
        Ok(model) => model,
        // Nothing cancels it, so it panicked; go on panicking.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// As [`run`], with a model that is open already.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    model: impl Answerer + 'static,
    config: AgentConfig,
    watcher: Arc<dyn Watcher>,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, StartError> {
    let clock = Arc::new(Clock::start());
    let metrics = Arc::new(Metrics::default());
    let topics = Topics::new(&config.node.id);
    let epoch = rand::random();
    let in_force = InForce::new(&config.policy);
    let listener = match &config.gateway {
        Some(gateway) => Some(listen(gateway.listen).await?),
        None => None,
    };

    let (posts, posted) = mpsc::channel(POSTS);
    let (stop_link, link_stopped) = oneshot::channel::<()>();
    let mut background = JoinSet::new();
    let broker = config.mqtt.as_ref().map(|_| Link::open(link_options(&config, &topics, epoch, &clock)));
    let (link, link_task, deliveries) = match broker {
        Some((link, task, deliveries)) => (Some(link), Some(task), Some(deliveries)),
        None => (None, None, None),
    };
    let pools = Pools::new(&config.pools, link.clone(), &config.node.id)?;
    let (model, inference) = spawn_inference(model).map_err(StartError::Thread)?;

    let (patience_set, patience) = watch::channel(PUBLISHER_PATIENCE_AT_END);
    let publisher = match &link {
        Some(link) => {
            let capacity = config.mqtt.as_ref().map_or(1, |mqtt| mqtt.outbox_events_max);
            let outbox = Outbox::new(epoch, capacity);
            let publisher =
                Publisher::new(&config.node.id, outbox, link.clone(), Arc::clone(&clock), Arc::clone(&metrics), Arc::clone(&watcher));
            tokio::spawn(publisher.run(posted, patience))
        }
        None => tokio::spawn(without_broker(posted, Arc::clone(&metrics), Arc::clone(&watcher))),
    };
    if let Some(task) = link_task {
        background.spawn(task.run(async {
            // The sender is dropped when the pipeline is, which is a stop too.
            let _ = link_stopped.await;
        }));
    }
    let inbox = deliveries.map(|deliveries| {
        let inbox = Inbox {
            topics: topics.clone(),
            pools: pools.clone(),
            in_force: in_force.clone(),
            posts: posts.clone(),
            metrics: Arc::clone(&metrics),
        };
        tokio::spawn(inbox.run(deliveries))
    });
    let (stop_gateway, gateway_stopped) = oneshot::channel::<()>();
    let serves = listener.is_some();
    if let Some(listener) = listener {
        let name = model.identity().name.clone();
        let parts = gateway::Parts { local: model.clone(), name, pools: pools.clone(), in_force: in_force.clone() };
        background.spawn(async move {
            let stopped = async {
                let _ = gateway_stopped.await;
            };
            if let Err(error) = gateway::serve(parts, listener, stopped).await {
                warn!("the gateway ended: {error}");
            }
        });
    }

    tell_info(&posts, &topics, &config, &model).await;
    let around = Surroundings { node: config.node.id.clone(), model, pools, link, in_force, posts, clock, metrics, watcher };
    let metrics = Arc::clone(&around.metrics);
    let (deadline_set, deadline) = watch::channel(None);
    let mut scenes = JoinSet::new();
    let mut stops = Vec::new();
    for camera in config.cameras {
        let stop = spawn_camera(&mut scenes, camera, &around, deadline.clone()).map_err(StartError::Thread)?;
        stops.push(stop);
    }
    drop(around);

    let all_ended = async {
        while scenes.join_next().await.is_some() {}
        // With a gateway the box is of use without any camera.
        if serves {
            std::future::pending::<()>().await;
        }
    };
    let mut shutdown = std::pin::pin!(shutdown);
    let interrupted = tokio::select! {
        () = all_ended => false,
        () = &mut shutdown => true,
    };
    info!("{}", if interrupted { "stopping" } else { "every source has ended" });

    // In the order of the data: cameras, scenes, what they wait for, publisher, link.
    for stop in stops {
        stop.stop();
    }
    if interrupted {
        patience_set.send_replace(PUBLISHER_PATIENCE);
        deadline_set.send_replace(Some(Instant::now() + SCENES_PATIENCE));
    }
    while scenes.join_next().await.is_some() {}
    let _ = stop_gateway.send(());
    if let Some(inbox) = inbox {
        inbox.abort();
        // It holds a sender of posts; gone is gone once it is joined.
        let _ = inbox.await;
    }
    // Whoever asks to stop while the last events are on their way waits no longer than at any other time.
    let hurried = async {
        if interrupted {
            std::future::pending::<()>().await;
        }
        shutdown.await;
        tokio::time::sleep(PUBLISHER_PATIENCE).await;
    };
    let mut publisher = publisher;
    let events_undelivered = tokio::select! {
        left = &mut publisher => left.unwrap_or_default(),
        () = hurried => {
            publisher.abort();
            let totals = metrics.totals();
            totals.events_produced.saturating_sub(totals.events_published + totals.events_dropped) as usize
        }
    };
    let _ = stop_link.send(());
    let _ = timeout(Duration::from_millis(500), async { while background.join_next().await.is_some() {} }).await;
    // The inference thread ends with its last handle; one in the middle of an answer is not waited for.
    drop(inference);
    Ok(Summary { totals: metrics.totals(), events_undelivered })
}

/// Starts the thread that owns `model`; it ends when the last handle is dropped.
///
/// # Errors
/// When the system gives no thread.
pub fn spawn_inference(model: impl Answerer + 'static) -> io::Result<(Handle, JoinHandle<()>)> {
    let (handle, inference) = infer::channel(model);
    let thread = thread::Builder::new().name("inference".into()).spawn(move || inference.run())?;
    Ok((handle, thread))
}

fn spawn_camera(
    scenes: &mut JoinSet<()>,
    camera: Camera,
    around: &Surroundings,
    deadline: watch::Receiver<Option<Instant>>,
) -> io::Result<Stop> {
    let (sender, frames) = if capture::is_finite(&camera.source) { handoff::every() } else { handoff::latest() };
    let (status, status_seen) = watch::channel(CameraStatus::opening());
    let stop = Stop::new();
    scenes.spawn(Scene::new(&camera, around.clone()).run(frames, status_seen, deadline));
    let name = format!("cam {}", camera.id);
    let capture = Capture {
        camera,
        frames: sender,
        status,
        stop: stop.clone(),
        clock: Arc::clone(&around.clock),
        metrics: Arc::clone(&around.metrics),
        watcher: Arc::clone(&around.watcher),
    };
    // Not joined: a thread stuck in a driver must not keep the box from stopping.
    thread::Builder::new().name(name).spawn(move || capture.run())?;
    Ok(stop)
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn link_options(config: &AgentConfig, topics: &Topics, epoch: u64, clock: &Clock) -> LinkOptions {
    let mqtt = config.mqtt.clone().expect("called with a broker configured");
    let mut subscriptions = vec![(topics.kill_switch_set(), Qos::AtLeastOnce)];
    if config.pools.iter().any(|pool| pool.transport == PoolTransport::Mqtt) {
        subscriptions.push((topics.replies(), Qos::AtLeastOnce));
    }
    let offline = Publication {
        topic: topics.status(),
        payload: publisher::status_json("offline", epoch, clock),
        retain: true,
        ..Publication::default()
    };
    LinkOptions {
        subscriptions,
        last_will: Some(LastWill { publication: offline, delay: WILL_DELAY }),
        ..LinkOptions::new(mqtt, format!("egret-{}", config.node.id))
    }
}

/// Tells what this box is.
async fn tell_info(posts: &mpsc::Sender<Post>, topics: &Topics, config: &AgentConfig, model: &Handle) {
    let identity = model.identity();
    let info = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "node": config.node.id,
        "model": {
            "name": identity.name,
            "sha256": identity.sha256,
            "precision": identity.precision,
            "backend": identity.backend,
            "execution_provider": identity.execution_provider,
        },
        "cameras": config.cameras.iter().map(|camera| &camera.id).collect::<Vec<_>>(),
        "pools": config.pools.iter().map(|pool| &pool.id).collect::<Vec<_>>(),
    });
    // The publisher has just been started and takes posts.
    let _ = posts.send(Post::Standing { topic: topics.info(), payload: info.to_string().into() }).await;
}

/// Stands in for the publisher of a box without a broker: events are only counted and shown.
async fn without_broker(mut posts: mpsc::Receiver<Post>, metrics: Arc<Metrics>, watcher: Arc<dyn Watcher>) -> usize {
    while let Some(post) = posts.recv().await {
        if let Post::Event { cam, draft } = post {
            metrics.events_produced.count();
            info!(cam, rule = draft.rule, "{:?}: {} ({})", draft.step, draft.settled.text, draft.state.as_str());
            watcher.see(Record::Event { cam, seq: metrics.events_produced.total(), draft });
        }
    }
    0
}
