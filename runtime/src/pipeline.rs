//! Starts every long-lived thread and task of `egret run`, joins them by queues, and ends them in
//! order. (The gateway's `serve` starts a task for each connection, the demo its auditor;
//! `Link::ends`, `infer::channel` and `handoff` make the queues that have two ends of their own.)
//!
//! ```text
//! capture thread ─▶ handoff (latest, or every) ─▶ scene task ─▶ posts: mpsc ─▶ publisher task ─▶ link task ─▶ broker
//!                                                  ▲    │ job queue                                 │
//!                                        pool calls┘    ▼                                           ▼
//!                                                inference thread              inbox task ◀─ deliveries: mpsc
//! ```
//!
//! What each queue holds, and what happens when it is full, is in the table of `ARCHITECTURE.md`.

mod parts;
mod stoppable;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use devices::Stop;
use firmware_config::agent::AgentConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};
use vlm::{Vlm, VlmError};

use crate::capture::Join;
use crate::clock::Clock;
use crate::decide::call::Escalations;
use crate::deliver::post::Posts;
use crate::deliver::topics::Topics;
use crate::environment::Environment;
use crate::infer::{Answerer, Handle};
use crate::metrics::{Metrics, Totals};
use crate::mqtt::LinkState;
use crate::observe::{FanOut, Log, Observer};
use crate::pool::PoolsError;
use crate::scene::SceneContext;
use crate::serve::gateway;
pub use parts::spawn_inference;
use stoppable::{Stoppable, ended_early, joined};

/// Posts on their way to the publisher.
const POSTS: usize = 64;
/// At the start, how long the first frame waits for the broker, so that its questions can be
/// escalated over it.
const BROKER_WAIT: Duration = Duration::from_secs(1);
/// After Ctrl-C: what the scenes, and then the publisher, may still take. With the link's grace it
/// is all under 5 s.
const SCENES_GRACE: Duration = Duration::from_millis(2000);
/// What the scenes may take beyond that to end their events; one that takes longer is abandoned.
const SCENES_END_GRACE: Duration = Duration::from_millis(300);
const PUBLISHER_GRACE: Duration = Duration::from_millis(1500);
/// What the publisher may take beyond that to notice.
const PUBLISHER_END_GRACE: Duration = Duration::from_millis(100);
/// The same at the end of finite sources, when nothing has to end soon.
const PUBLISHER_GRACE_AT_END: Duration = Duration::from_secs(10);
/// What the gateway may take from the stop on: its open replies, and to notice.
const GATEWAY_GRACE: Duration = gateway::DRAIN.saturating_add(Duration::from_millis(100));
/// What the link may take to disconnect cleanly.
const LINK_GRACE: Duration = Duration::from_millis(500);

/// Why the agent did not start, or broke off.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The bundle.
    #[error("bundle {}", path.display())]
    Model {
        /// The folder.
        path: PathBuf,
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
    #[error("{part} ended by a fault of Egret; the log above has its message: please report it")]
    Fault {
        /// Which part.
        part: String,
    },
}

/// Runs the agent on this box: until `shutdown`, or until every source has ended and nothing else
/// is configured.
///
/// A broker or pool that is not there is normal; a bundle that is not, is an error.
///
/// # Errors
/// When something the box cannot work without is missing, or a part ends by a fault.
pub async fn run(
    config: AgentConfig,
    observer: Arc<dyn Observer>,
    shutdown: impl Future<Output = ()>,
) -> Result<Totals, RunError> {
    let mut shutdown = pin!(shutdown);
    // Loading a large bundle takes a while; the agent can be stopped in the meantime.
    let model = tokio::select! {
        model = open_model(&config) => model?,
        () = &mut shutdown => return Ok(Totals::default()),
    };
    run_with(model, config, observer, shutdown).await
}

/// As [`run`], with a model that is open already.
///
/// # Errors
/// As [`run`].
pub async fn run_with(
    model: impl Answerer + 'static,
    config: AgentConfig,
    observer: Arc<dyn Observer>,
    shutdown: impl Future<Output = ()>,
) -> Result<Totals, RunError> {
    let (model, _thread) = spawn_inference(model).map_err(RunError::Thread)?;
    run_in(Environment::system(), model, config, observer, shutdown).await
}

/// As [`run`], in any environment, with a model that is at work already.
///
/// # Errors
/// As [`run`].
pub async fn run_in(
    environment: Environment,
    model: Handle,
    config: AgentConfig,
    observer: Arc<dyn Observer>,
    shutdown: impl Future<Output = ()>,
) -> Result<Totals, RunError> {
    let mut shutdown = pin!(shutdown);
    let mut agent = Agent::start(environment, model, config, observer).await?;
    let ended = tokio::select! {
        ended = agent.ended() => ended,
        () = &mut shutdown => StopCause::Interrupted,
    };
    agent.drain(ended, shutdown).await
}

async fn open_model(config: &AgentConfig) -> Result<Vlm, RunError> {
    let path = config.model.bundle.clone();
    let options = crate::infer::options(&config.model);
    let opening = tokio::task::spawn_blocking(move || {
        Vlm::open(&path, &options).map_err(|source| RunError::Model { path, source })
    });
    // It is never cancelled, so an error is a panic.
    opening.await.map_err(|_| RunError::Fault {
        part: "loading the model".into(),
    })?
}

/// Every part of an agent at work, in the order of the data.
struct Agent {
    cameras: Vec<CameraAtWork>,
    /// Each resolves with its camera's index when it has ended.
    scenes: JoinSet<usize>,
    scenes_stop: watch::Sender<Option<Duration>>,
    model: Handle,
    gateway: Option<Stoppable>,
    posts: Posts,
    publisher: JoinHandle<()>,
    publisher_grace: watch::Sender<Duration>,
    inbox: Option<JoinHandle<()>>,
    link: Option<Stoppable>,
    metrics: Arc<Metrics>,
    clock: Clock,
}

/// A camera's capture.
struct CameraAtWork {
    id: String,
    stop: Stop,
    /// Taken when its scene has ended. Not joined before: a thread stuck in a driver must not keep
    /// the box from stopping.
    join: Option<Join>,
}

/// Why the agent stops.
enum StopCause {
    /// Every source has ended.
    Sources,
    Interrupted,
    Fault {
        part: String,
    },
}

impl Agent {
    async fn start(
        environment: Environment,
        model: Handle,
        config: AgentConfig,
        observer: Arc<dyn Observer>,
    ) -> Result<Agent, RunError> {
        let metrics = Arc::new(Metrics::for_agent());
        let topics = Topics::new(&config.node.id);
        let epoch = environment.random.number();

        // What may be missing from the box comes first, so that nothing has to be undone.
        let listener = match &config.gateway {
            Some(gateway) => Some(parts::listen(gateway.listen).await?),
            None => None,
        };
        let broker = parts::broker(&config, epoch, &environment);
        let link = broker.as_ref().map(|broker| broker.connection.link.clone());
        let (pools, policy) = (&config.pools, &config.policy);
        let node = &config.node.id;
        let escalations = Escalations::new(pools, policy, link.clone(), node, &environment)?;

        let (queue, posted) = mpsc::channel(POSTS);
        let posts = Posts::new(queue);
        let (publisher_grace, grace) = watch::channel(PUBLISHER_GRACE_AT_END);
        let context = SceneContext {
            node: config.node.id.clone(),
            model: model.clone(),
            escalations,
            posts: posts.clone(),
            observer: Arc::new(FanOut(vec![
                Arc::new(Log),
                Arc::clone(&metrics) as Arc<dyn Observer>,
                observer,
            ])),
        };
        posts.post(parts::info(&context, &topics, &config)).await;

        // Publisher, inbox and link; then the gateway; the cameras come last.
        let (publisher, inbox, link_task) =
            parts::start_broker_side(broker, &context, &metrics, posted, grace);
        let gateway = listener
            .map(|listener| parts::start_gateway(listener, &context, &environment, &metrics));
        if let Some(link) = &link {
            // Without a broker events queue, and questions are settled on the box.
            let mut status = link.status();
            let up = status.wait_for(|status| status.state == LinkState::Up);
            let _ = timeout(BROKER_WAIT, up).await;
        }
        let (scenes_stop, stop) = watch::channel(None);
        let mut scenes = JoinSet::new();
        let mut cameras = Vec::new();
        for (index, camera) in config.cameras.iter().enumerate() {
            let stop = stop.clone();
            let (scene, camera) =
                parts::start_camera(&config, camera, &context, &environment, stop)
                    .map_err(RunError::Thread)?;
            scenes.spawn(async move {
                scene.await;
                index
            });
            cameras.push(camera);
        }
        Ok(Agent {
            cameras,
            scenes,
            scenes_stop,
            model,
            gateway,
            posts,
            publisher,
            publisher_grace,
            inbox,
            link: link_task,
            metrics,
            clock: environment.clock,
        })
    }

    /// Resolves when there is nothing more to do, or a part that the others need is gone.
    async fn ended(&mut self) -> StopCause {
        let has_gateway = self.gateway.is_some();
        let gateway = self.gateway.as_mut().map(Stoppable::task);
        let sources = async {
            while let Some(ended) = self.scenes.join_next().await {
                let Ok(index) = ended else {
                    return StopCause::Fault {
                        part: "a camera's scene".into(),
                    };
                };
                let camera = &mut self.cameras[index];
                // The scene ended because the capture let go of its end of the hand-off.
                if camera.join.take().is_some_and(|join| join().is_err()) {
                    return StopCause::Fault {
                        part: format!("camera {}", camera.id),
                    };
                }
            }
            // With a gateway the box is of use without any camera.
            if has_gateway {
                std::future::pending::<()>().await;
            }
            StopCause::Sources
        };
        let fault = |part: &str| StopCause::Fault { part: part.into() };
        tokio::select! {
            // A part that panicked may have ended the sources: it comes first.
            biased;
            () = self.model.ended() => fault("the inference thread"),
            () = self.posts.closed() => fault("the publisher"),
            () = ended_early(self.inbox.as_mut()) => fault("the inbox"),
            () = ended_early(gateway) => fault("the gateway"),
            () = ended_early(self.link.as_mut().map(Stoppable::task)) => {
                fault("the connection to the broker")
            }
            ended = sources => ended,
        }
    }

    /// Ends every part in the order of the data: cameras and clients, what they wait for,
    /// publisher, link.
    async fn drain(
        mut self,
        ended: StopCause,
        shutdown: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Totals, RunError> {
        let hurry = !matches!(ended, StopCause::Sources);
        match &ended {
            StopCause::Sources => info!("every source has ended"),
            StopCause::Interrupted => info!("stopping"),
            StopCause::Fault { part } => error!("{part} ended by a fault; stopping"),
        }

        // Cameras and clients.
        for camera in &self.cameras {
            camera.stop.stop();
        }
        if hurry {
            self.publisher_grace.send_replace(PUBLISHER_GRACE);
            let deadline = self.clock.now() + SCENES_GRACE;
            self.scenes_stop.send_replace(Some(deadline));
        }
        let gateway = self.gateway.map(Stoppable::stop);
        let gateway = async {
            if let Some(gateway) = gateway {
                let _ = timeout(GATEWAY_GRACE, joined(gateway)).await;
            }
        };
        let scenes = async {
            let ended = async { while self.scenes.join_next().await.is_some() {} };
            if !hurry {
                ended.await;
            } else if timeout(SCENES_GRACE + SCENES_END_GRACE, ended)
                .await
                .is_err()
            {
                warn!("abandoned a camera that did not end in time");
                self.scenes.shutdown().await;
            }
        };
        tokio::join!(scenes, gateway);
        if let Some(inbox) = self.inbox {
            // It holds a sender of posts, which is gone once the task is joined.
            inbox.abort();
            joined(inbox).await;
        }

        // The publisher takes posts until the last sender is gone.
        drop(self.posts);
        // A stop while the last events are on their way takes no longer than at any other time.
        let hurried = async {
            if hurry {
                // It ends by itself, unless it waits for room on a connection that is stuck.
                sleep(PUBLISHER_END_GRACE).await;
            } else {
                shutdown.await;
            }
            sleep(PUBLISHER_GRACE).await;
        };
        tokio::select! {
            biased;
            _ = &mut self.publisher => {}
            () = hurried => self.publisher.abort(),
        }

        if let Some(link) = self.link {
            let _ = timeout(LINK_GRACE, joined(link.stop())).await;
        }
        match ended {
            StopCause::Sources | StopCause::Interrupted => Ok(self.metrics.totals()),
            StopCause::Fault { part } => Err(RunError::Fault { part }),
        }
    }
}

#[cfg(test)]
mod tests;
