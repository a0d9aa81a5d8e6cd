//! `egret demo`: runs the agent on bundled camera recordings and models, with nothing else
//! installed.
//!
//! ```text
//! this process: pipeline of `egret run` ◀─▶ broker process ◀─▶ worker process (nano-pool)
//!               auditor: counts the events received, asks the pool about answers kept local
//! ```

mod assets;
mod auditor;
pub(crate) mod broker;
mod children;
mod config;
mod live_view;
mod recorder;
mod summary;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use firmware_config::agent::AgentConfig;
use firmware_config::agent::units::parse_duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::commands::exit::{Exit, Failure, OrExit};
use crate::commands::labels::Label;
use crate::commands::output;
use crate::commands::{labels, memory};
use crate::environment::Environment;
use crate::pipeline;
use assets::Assets;
use auditor::Auditor;
use children::Sidecar;
use live_view::LiveView;
use recorder::Recorder;
use summary::{PipelineCounts, Summary};

/// Timeout for starting a process that loads a model, on a slow SD card.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the auditor waits, after the agent has stopped, for events that the broker still has.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(3);
/// The same after Ctrl-C or SIGTERM.
const ARRIVAL_TIMEOUT_STOPPED: Duration = Duration::from_millis(500);

/// Arguments of `egret demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop after this time (`60s`, `2m`) instead of after the last frame.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    limit: Option<Duration>,
    /// End stdout with the summary as one JSON object on one line.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("expected more than 0, such as 60s".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Runs the demo.
///
/// # Errors
/// When a part of the demo cannot be started, or fails.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let assets = Assets::find().or_exit(Exit::Io)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .or_exit(Exit::Io)?;
    let outcome = runtime.block_on(demonstrate(args, &assets));
    // A thread in the middle of an answer must not delay the end of the program.
    runtime.shutdown_background();
    outcome
}

/// Starts broker and worker, replays the cameras, and prints the summary.
async fn demonstrate(args: &Args, assets: &Assets) -> Result<Exit, Failure> {
    // Subscribed before anything starts, so that a signal is handled at any time.
    let mut stop = StopSignals::subscribe().or_exit(Exit::Io)?;
    let view = LiveView::new(if args.json { Out::Stderr } else { Out::Stdout });
    let environment = Environment::system();
    let stage = tokio::select! {
        stage = Stage::start(assets, &view, environment.clone()) => stage.or_exit(Exit::Io)?,
        exit = stop.received() => return Ok(exit),
    };
    let recorder = Arc::new(Recorder::new(
        view.clone(),
        stage.labels.clone(),
        environment.clock.clone(),
    ));
    let mut stopped = None;
    let shutdown = async {
        let limit = async {
            match args.limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = limit => {}
            exit = stop.received() => stopped = Some(exit),
        }
    };
    let totals = pipeline::run(stage.config.clone(), recorder.clone(), shutdown).await?;

    let published = recorder.events();
    stage
        .auditor
        .wait_for_events(
            published,
            if stopped.is_some() {
                ARRIVAL_TIMEOUT_STOPPED
            } else {
                ARRIVAL_TIMEOUT
            },
        )
        .await;
    // The pipeline has ended, so the pairs are complete.
    let mut pairs = recorder.pairs();
    if stopped.is_none() {
        view.line("comparing: asking the pool about the answers that were kept local…");
        tokio::select! {
            () = stage.auditor.ask_about(&mut pairs) => {}
            exit = stop.received() => stopped = Some(exit),
        }
    }
    let counts = PipelineCounts {
        frames: totals.frames,
        frames_skipped: totals.frames - totals.frames_answered,
        updates: recorder.updates(),
        events_published: published,
        events_received: stage.auditor.events_received(),
        bytes_up: recorder.bytes_up(),
    };
    let summary = Summary::of(
        counts,
        &pairs
            .iter()
            .map(|(pair, _)| pair.clone())
            .collect::<Vec<_>>(),
        memory::peak_rss_bytes(),
    );
    view.line("");
    view.line(&summary.text());
    if args.json {
        let summary = serde_json::to_string(&summary).or_exit(Exit::Internal)?;
        output::print(&format!("{summary}\n"))?;
    }
    Ok(stopped.unwrap_or(Exit::Done))
}

/// Everything that the demo's agent needs: a broker, a pool worker, a subscriber that counts
/// events, and a configuration.
struct Stage {
    config: AgentConfig,
    labels: Vec<Label>,
    auditor: Auditor,
    /// Ended with the stage, the worker first.
    _worker: Sidecar,
    _broker: Sidecar,
}

impl Stage {
    async fn start(
        assets: &Assets,
        view: &LiveView,
        environment: Environment,
    ) -> anyhow::Result<Stage> {
        // A broker on loopback, and a worker behind it.
        let address = children::free_port()?;
        let mut broker = Sidecar::start(
            "broker",
            [
                "demo-broker".to_owned(),
                "--listen".into(),
                address.to_string(),
            ],
        )?;
        children::wait_listening(address, &mut broker, START_TIMEOUT).await?;
        let url = format!("mqtt://{address}");
        let worker_args = [
            "worker",
            "--until-stdin-ends",
            "--backend",
            "tract",
            "--mqtt",
            &url,
            "--pool",
            config::POOL,
            "--bundle",
        ]
        .map(Into::into);
        let mut worker = Sidecar::start(
            "worker",
            worker_args
                .into_iter()
                .chain([assets.pool_bundle().into_os_string()]),
        )?;

        // Not deleted at the end, so that the configuration can be read and run again.
        let workdir = tempfile::Builder::new()
            .prefix("egret-demo-")
            .tempdir()
            .context("creating a folder for the configuration; set TMPDIR to a folder that can be written to")?
            .keep();
        let path = workdir.join("egret.toml");
        let text = config::text(assets, address);
        std::fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
        let config = AgentConfig::parse(&text, &path.display().to_string())?;
        // What is right about each frame.
        let (labels, bad) = labels::parse(
            &std::fs::read_to_string(assets.labels()).context("reading the demo's labels")?,
        );
        anyhow::ensure!(
            bad.is_empty(),
            "{}: line {}: {}",
            assets.labels().display(),
            bad[0].line,
            bad[0].reason
        );

        view.line(&format!("configuration  {}", path.display()));
        view.line(&format!(
            "broker         {url}  (mosquitto_sub -V 5 -v -p {} -t 'egret/demo/#' -T 'egret/+/cam/+/snapshot')",
            address.port()
        ));
        // A subscriber that checks the events, and knows when the worker is there.
        let auditor = Auditor::start(&config, environment)?;
        auditor
            .wait_for_pool(&mut worker, START_TIMEOUT)
            .await
            .context("waiting for the demo's worker")?;
        Ok(Stage {
            config,
            labels,
            auditor,
            _worker: worker,
            _broker: broker,
        })
    }
}

/// SIGINT (Ctrl-C) or SIGTERM.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    fn subscribe() -> std::io::Result<StopSignals> {
        Ok(StopSignals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for either, and returns its exit code.
    async fn received(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Done,
        }
    }
}

/// Where the live view is printed: not the stream of the JSON line.
#[derive(Debug, Clone, Copy)]
enum Out {
    Stdout,
    Stderr,
}

impl Out {
    fn is_terminal(self) -> bool {
        match self {
            Out::Stdout => std::io::stdout().is_terminal(),
            Out::Stderr => std::io::stderr().is_terminal(),
        }
    }

    fn line(self, text: &str) {
        // A closed terminal must not end the run, which still publishes events.
        let _ = match self {
            Out::Stdout => writeln!(std::io::stdout(), "{text}"),
            Out::Stderr => writeln!(std::io::stderr(), "{text}"),
        };
    }
}
