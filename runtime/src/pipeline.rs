//! Starts every long-lived thread and task of `egret run`, joins them by queues, and ends them in
//! order (the gateway's `serve` has its connections, the demo its auditor). `Link::open`,
//! `infer::channel` and `handoff` make the queues that have two ends of their own.
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
//! | outbox | `outbox-events`, 64 MiB | the oldest is dropped | declared in a gap; `events_dropped` |
//! | broker → inbox | Receive Maximum, at least 64 | the newest is dropped | a pool's reply; `deliveries_dropped` |

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use devices::Stop;
use firmware_config::agent::{AgentConfig, Camera, Mqtt, PoolTransport};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tracing::{error, info, warn};
use vlm::{Options, Vlm, VlmError};

use crate::capture::handoff;
use crate::capture::{self, CameraStatus, Capture};
use crate::decide::policy::InForce;
use crate::deliver::inbox::Inbox;
use crate::deliver::mqtt::{
    Deliveries, LastWill, Link, LinkOptions, LinkState, LinkTask, Publication, Qos,
};
use crate::deliver::outbox::Outbox;
use crate::deliver::publisher::{self, Kind, Post, Publisher};
use crate::deliver::topics::Topics;
use crate::environment::clock::Clock;
use crate::infer::{self, Answerer, Handle};
use crate::metrics::{Metrics, Totals};
use crate::observe::{Record, Watcher};
use crate::pool::mqtt::reply_topic;
use crate::pool::{Pools, PoolsError};
use crate::scene::{Scene, Surroundings};
use crate::serve::gateway;

/// Posts on their way to the publisher.
const POSTS: usize = 64;
/// How long the broker waits with our last will, so that a short outage does not flap.
const WILL_DELAY: Duration = Duration::from_secs(10);
/// At the start, how long the first frame waits for the broker, so that its questions can be
/// escalated over it.
const BROKER_PATIENCE: Duration = Duration::from_secs(1);
/// After Ctrl-C: what the scenes, and then the publisher, may still take. With the link's goodbye
/// and the gateway's it is all under 5 s.
const SCENES_PATIENCE: Duration = Duration::from_millis(2000);
/// What the scenes then still take to tell how everything ended; one that takes longer is left
/// behind.
const SCENES_LAST_WORDS: Duration = Duration::from_millis(300);
const PUBLISHER_PATIENCE: Duration = Duration::from_millis(1500);
/// What the publisher then still takes to notice.
const PUBLISHER_LAST_WORDS: Duration = Duration::from_millis(100);
/// At the end of finite sources nobody is waiting at a terminal.
const PUBLISHER_PATIENCE_AT_END: Duration = Duration::from_secs(10);
/// What the link may take for its goodbye.
const LINK_PATIENCE: Duration = Duration::from_millis(500);

/// Why the agent did not start, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
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
    #[error("gateway: cannot listen on {address}; choose another [gateway] listen")]
    Listen {
        /// From `[gateway] listen`.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// A thread.
    #[error("the system gives no thread")]
    Thread(#[source] io::Error),
    /// A part of the agent panicked. Without it the agent would go on for years doing half its
    /// work, so all of it ends.
    #[error("{part} ended by a fault of Egret; what it said is in the log above: please report it")]
    Fault {
        /// Which part.
        part: String,
    },
}

/// Runs the agent: until `shutdown`, or until every source has ended and nothing else is
/// configured.
///
/// A broker or pool that is not there is normal; a bundle that is not, is an error.
///
/// # Errors
/// When something the box cannot work without is not to be had, or ends by a fault.
pub async fn run(
    config: AgentConfig,
    watcher: Arc<dyn Watcher>,
    shutdown: impl Future<Output = ()>,
) -> Result<Totals, RunError> {
    let mut shutdown = pin!(shutdown);
    // A large bundle takes its time, and whoever stops the agent meanwhile does not have to wait
    // for it.
    let model = tokio::select! {
        model = open_model(&config) => model?,
        () = &mut shutdown => return Ok(Totals::default()),
    };
    run_with(model, config, watcher, shutdown).await
}

async fn open_model(config: &AgentConfig) -> Result<Vlm, RunError> {
    let path = config.model.bundle.clone();
    let options = Options {
        backend: config.model.backend,
        threads: config.model.threads,
        ort_library: config.model.ort_library.clone(),
        require_execution_provider: config.model.require_execution_provider.clone(),
    };
    let opening = tokio::task::spawn_blocking(move || {
        Vlm::open(&path, &options).map_err(|source| RunError::Model { path, source })
    });
    // Nothing cancels it, so it panicked.
    opening.await.map_err(|_| RunError::Fault {
        part: "loading the model".into(),
    })?
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
) -> Result<Totals, RunError> {
    let mut shutdown = pin!(shutdown);
    let mut running = Running::start(model, config, watcher).await?;
    let ended = tokio::select! {
        ended = running.ended() => ended,
        () = &mut shutdown => Ended::Interrupted,
    };
    running.drain(ended, shutdown).await
}

/// Every part of an agent at work, in the order of the data.
struct Running {
    cameras: Vec<RunningCamera>,
    /// Each gives its camera's place when it has ended.
    scenes: JoinSet<usize>,
    scenes_deadline: watch::Sender<Option<Instant>>,
    model: Handle,
    gateway: Option<Stoppable>,
    posts: mpsc::Sender<Post>,
    publisher: JoinHandle<()>,
    publisher_patience: watch::Sender<Duration>,
    inbox: Option<JoinHandle<()>>,
    link: Option<Stoppable>,
    metrics: Arc<Metrics>,
}

/// A camera's thread.
struct RunningCamera {
    id: String,
    stop: Stop,
    /// Taken when its scene has ended. Not joined before: a thread stuck in a driver must not keep
    /// the box from stopping.
    thread: Option<thread::JoinHandle<()>>,
}

/// A task that ends when it is told to.
struct Stoppable {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Why the agent stops.
enum Ended {
    /// Every source has.
    Sources,
    Interrupted,
    Fault {
        part: String,
    },
}

impl Running {
    async fn start(
        model: impl Answerer + 'static,
        config: AgentConfig,
        watcher: Arc<dyn Watcher>,
    ) -> Result<Running, RunError> {
        let clock = Arc::new(Clock::start());
        let metrics = Arc::new(Metrics::default());
        let topics = Topics::new(&config.node.id);
        let epoch = rand::random();
        let in_force = InForce::new(&config.policy);
        let listener = match &config.gateway {
            Some(gateway) => Some(listen(gateway.listen).await?),
            None => None,
        };
        let broker = config.mqtt.as_ref().map(|mqtt| {
            (
                mqtt.outbox_events_max,
                Link::open(link_options(&config, mqtt, &topics, epoch, &clock)),
            )
        });
        let link = broker.as_ref().map(|(_, (link, ..))| link.clone());
        let pools = Pools::new(&config.pools, link.clone(), &config.node.id)?;
        let (model, _thread) = spawn_inference(model).map_err(RunError::Thread)?;

        let (posts, posted) = mpsc::channel(POSTS);
        let (publisher_patience, patience) = watch::channel(PUBLISHER_PATIENCE_AT_END);
        let around = Surroundings {
            node: config.node.id.clone(),
            model: model.clone(),
            pools,
            in_force,
            posts: posts.clone(),
            clock,
            metrics: Arc::clone(&metrics),
            watcher,
        };
        tell_info(&around, &topics, &config).await;
        let (publisher, inbox, link_task) =
            start_broker_side(broker, &around, epoch, posted, patience);
        let gateway = listener.map(|listener| start_gateway(listener, &around));
        if let Some(link) = &link {
            // A broker that is not there yet is not waited for: events queue, and questions are
            // settled on the box.
            let _ = timeout(
                BROKER_PATIENCE,
                link.status()
                    .wait_for(|status| status.state == LinkState::Up),
            )
            .await;
        }
        let (scenes_deadline, deadline) = watch::channel(None);
        let mut scenes = JoinSet::new();
        let mut cameras = Vec::new();
        for camera in config.cameras {
            cameras.push(
                start_camera(
                    &mut scenes,
                    cameras.len(),
                    camera,
                    &around,
                    deadline.clone(),
                )
                .map_err(RunError::Thread)?,
            );
        }
        Ok(Running {
            cameras,
            scenes,
            scenes_deadline,
            model,
            gateway,
            posts,
            publisher,
            publisher_patience,
            inbox,
            link: link_task,
            metrics,
        })
    }

    /// Resolves when there is nothing more to do, or a part that the others need is gone.
    async fn ended(&mut self) -> Ended {
        let (has_gateway, gateway) = (
            self.gateway.is_some(),
            self.gateway.as_mut().map(|gateway| &mut gateway.task),
        );
        let sources = async {
            while let Some(ended) = self.scenes.join_next().await {
                let Ok(place) = ended else {
                    return Ended::Fault {
                        part: "a camera's scene".into(),
                    };
                };
                let camera = &mut self.cameras[place];
                // Its last act was to let go of what the scene waited for.
                if camera
                    .thread
                    .take()
                    .is_some_and(|thread| thread.join().is_err())
                {
                    return Ended::Fault {
                        part: format!("camera {}", camera.id),
                    };
                }
            }
            // With a gateway the box is of use without any camera.
            if has_gateway {
                std::future::pending::<()>().await;
            }
            Ended::Sources
        };
        let fault = |part: &str| Ended::Fault { part: part.into() };
        tokio::select! {
            ended = sources => ended,
            () = self.model.ended() => fault("the inference thread"),
            () = self.posts.closed() => fault("the publisher"),
            () = ended_early(self.inbox.as_mut()) => fault("the inbox"),
            () = ended_early(gateway) => fault("the gateway"),
            () = ended_early(self.link.as_mut().map(|link| &mut link.task)) => fault("the connection to the broker"),
        }
    }

    /// Ends every part in the order of the data: cameras and clients, what they wait for,
    /// publisher, link.
    async fn drain(
        mut self,
        ended: Ended,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Totals, RunError> {
        let hurry = !matches!(ended, Ended::Sources);
        match &ended {
            Ended::Sources => info!("every source has ended"),
            Ended::Interrupted => info!("stopping"),
            Ended::Fault { part } => error!("{part} ended by a fault; stopping"),
        }
        for camera in &self.cameras {
            camera.stop.stop();
        }
        if hurry {
            self.publisher_patience.send_replace(PUBLISHER_PATIENCE);
            self.scenes_deadline
                .send_replace(Some(Instant::now() + SCENES_PATIENCE));
        }
        let gateway = self.gateway.map(Stoppable::stop);
        let last_words = async { while self.scenes.join_next().await.is_some() {} };
        if !hurry {
            last_words.await;
        } else if timeout(SCENES_PATIENCE + SCENES_LAST_WORDS, last_words)
            .await
            .is_err()
        {
            warn!("left behind a camera that did not end in time");
            self.scenes.shutdown().await;
        }
        if let Some(gateway) = gateway {
            // It was told as long ago as the scenes were.
            let _ = timeout(LINK_PATIENCE, joined(gateway)).await;
        }
        if let Some(inbox) = self.inbox {
            inbox.abort();
            // It holds a sender of posts; gone is gone once it is joined.
            joined(inbox).await;
        }
        // The publisher takes posts as long as anybody could send one.
        drop(self.posts);
        // Whoever asks to stop while the last events are on their way waits no longer than at any
        // other time.
        let hurried = async {
            if hurry {
                // It ends by itself, unless it waits for room on a connection that is stuck.
                sleep(PUBLISHER_LAST_WORDS).await;
            } else {
                shutdown.await;
            }
            sleep(PUBLISHER_PATIENCE).await;
        };
        tokio::select! {
            _ = &mut self.publisher => {}
            () = hurried => self.publisher.abort(),
        }
        if let Some(link) = self.link {
            let _ = timeout(LINK_PATIENCE, joined(link.stop())).await;
        }
        match ended {
            Ended::Sources | Ended::Interrupted => Ok(self.metrics.totals()),
            Ended::Fault { part } => Err(RunError::Fault { part }),
        }
    }
}

impl Stoppable {
    fn spawn<F: Future<Output = ()> + Send + 'static>(
        task: impl FnOnce(BoxFuture<'static, ()>) -> F,
    ) -> Stoppable {
        let (stop, stopped) = oneshot::channel();
        // A sender that is gone means that everything is, which is a stop too.
        Stoppable {
            stop,
            task: tokio::spawn(task(stopped.map(|_| ()).boxed())),
        }
    }

    /// Tells it to end; what it gives resolves when it has.
    fn stop(self) -> JoinHandle<()> {
        // One that has ended already is not there to be told.
        let _ = self.stop.send(());
        self.task
    }
}

/// Resolves when a task that should not has ended; never where there is none.
async fn ended_early(task: Option<&mut JoinHandle<()>>) {
    match task {
        Some(task) => _ = task.await,
        None => std::future::pending().await,
    }
}

/// Resolves when a task has ended, as one that [`ended_early`] saw already has.
async fn joined(task: JoinHandle<()>) {
    if !task.is_finished() {
        // How it ended makes no difference any more.
        let _ = task.await;
    }
}

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

/// A connection to a broker that is not made yet, and how many events wait for it at most.
type Broker = (usize, (Link, LinkTask, Deliveries));

/// Starts what publishes and what listens, where there is a broker; else what only shows.
fn start_broker_side(
    broker: Option<Broker>,
    around: &Surroundings,
    epoch: u64,
    posted: mpsc::Receiver<Post>,
    patience: watch::Receiver<Duration>,
) -> (JoinHandle<()>, Option<JoinHandle<()>>, Option<Stoppable>) {
    let watcher = Arc::clone(&around.watcher);
    let Some((outbox_events_max, (link, link_task, deliveries))) = broker else {
        return (tokio::spawn(without_broker(posted, watcher)), None, None);
    };
    let outbox = Outbox::new(epoch, outbox_events_max);
    let publisher = Publisher::new(
        &around.node,
        outbox,
        link,
        Arc::clone(&around.clock),
        Arc::clone(&around.metrics),
        watcher,
    );
    let inbox = Inbox {
        topics: Topics::new(&around.node),
        pools: around.pools.clone(),
        in_force: around.in_force.clone(),
        posts: around.posts.clone(),
        metrics: Arc::clone(&around.metrics),
    };
    let publisher = tokio::spawn(publisher.run(posted, patience));
    (
        publisher,
        Some(tokio::spawn(inbox.run(deliveries))),
        Some(Stoppable::spawn(|stopped| link_task.run(stopped))),
    )
}

fn start_gateway(listener: TcpListener, around: &Surroundings) -> Stoppable {
    let Surroundings {
        model,
        pools,
        in_force,
        ..
    } = around.clone();
    let parts = gateway::Parts {
        name: model.identity().name.clone(),
        local: model,
        pools,
        in_force,
    };
    Stoppable::spawn(|stopped| serve(parts, listener, stopped))
}

fn start_camera(
    scenes: &mut JoinSet<usize>,
    place: usize,
    camera: Camera,
    around: &Surroundings,
    deadline: watch::Receiver<Option<Instant>>,
) -> io::Result<RunningCamera> {
    let (sender, frames) = if capture::is_finite(&camera.source) {
        handoff::every()
    } else {
        handoff::latest()
    };
    let (status, status_seen) = watch::channel(CameraStatus::opening());
    let scene = Scene::new(&camera, around.clone());
    scenes.spawn(async move {
        scene.run(frames, status_seen, deadline).await;
        place
    });
    let (id, stop) = (camera.id.clone(), Stop::new());
    let capture = Capture {
        camera,
        frames: sender,
        status,
        stop: stop.clone(),
        clock: Arc::clone(&around.clock),
        metrics: Arc::clone(&around.metrics),
        watcher: Arc::clone(&around.watcher),
    };
    let thread = thread::Builder::new()
        .name(format!("cam {id}"))
        .spawn(move || capture.run())?;
    Ok(RunningCamera {
        id,
        stop,
        thread: Some(thread),
    })
}

async fn serve(parts: gateway::Parts, listener: TcpListener, stopped: BoxFuture<'static, ()>) {
    if let Err(error) = gateway::serve(parts, listener, stopped).await {
        error!("the gateway ended: {error}");
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| RunError::Listen { address, source })
}

fn link_options(
    config: &AgentConfig,
    mqtt: &Mqtt,
    topics: &Topics,
    epoch: u64,
    clock: &Clock,
) -> LinkOptions {
    let mut subscriptions = vec![(topics.kill_switch_set(), Qos::AtLeastOnce)];
    if config
        .pools
        .iter()
        .any(|pool| pool.transport == PoolTransport::Mqtt)
    {
        subscriptions.push((reply_topic(&config.node.id), Qos::AtLeastOnce));
    }
    let offline = Publication {
        topic: topics.status(),
        payload: publisher::status_json("offline", epoch, clock),
        retain: true,
        ..Publication::default()
    };
    LinkOptions {
        subscriptions,
        last_will: Some(LastWill {
            publication: offline,
            delay: WILL_DELAY,
        }),
        ..LinkOptions::new(mqtt.clone(), format!("egret-{}", config.node.id))
    }
}

/// Tells what this box is.
async fn tell_info(around: &Surroundings, topics: &Topics, config: &AgentConfig) {
    let identity = around.model.identity();
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
    // The first post, and so there is room for it.
    let _ = around
        .posts
        .send(Post::Standing {
            topic: topics.info(),
            payload: info.to_string().into(),
            kind: Kind::Json,
        })
        .await;
}

/// Stands in for the publisher of a box without a broker: events are only seen by whoever watches.
async fn without_broker(mut posts: mpsc::Receiver<Post>, watcher: Arc<dyn Watcher>) {
    let mut seq = 0;
    while let Some(post) = posts.recv().await {
        if let Post::Event { cam, draft } = post {
            seq += 1;
            watcher.see(Record::Event { cam, seq, draft });
        }
    }
}
