//! `egret demo`: the main job on bundled cameras and models, with nothing else installed.
//!
//! ```text
//! this process: pipeline of `egret run` ◀─▶ broker process ◀─▶ worker process (nano-pool)
//!               auditor: counts what arrives, asks the pool about what stayed local
//! ```

mod assets;
mod auditor;
pub(crate) mod broker;
mod children;
mod config;
mod ledger;
mod summary;
mod view;

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use firmware_config::agent::AgentConfig;
use firmware_config::agent::units::parse_duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::commands::exit::{Exit, Failure, OrExit};
use crate::commands::labels::Label;
use crate::commands::{labels, memory};
use crate::pipeline;
use assets::Assets;
use auditor::Auditor;
use children::Sidecar;
use ledger::Ledger;
use summary::{Counts, Summary};
use view::View;

/// Starting a process that loads a model takes this long at most, on a slow card.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// After the drain, what is on its way from the broker to the auditor.
const ARRIVAL_PATIENCE: Duration = Duration::from_secs(3);
/// The same when somebody waits for the demo to stop.
const LAST_ARRIVAL_PATIENCE: Duration = Duration::from_millis(500);

/// Arguments of `egret demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop after this long (`60s`, `2m`) instead of when the frames end.
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    limit: Option<Duration>,
    /// End stdout with the summary as one JSON object on one line.
    #[arg(long)]
    json: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(Duration::ZERO) => Err("expected some time, such as 60s".to_owned()),
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

/// Runs the demo.
///
/// # Errors
/// When its parts are not to be had, or one of them ends by a fault.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let assets = Assets::find().or_exit(Exit::Io)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .or_exit(Exit::Io)?;
    let outcome = runtime.block_on(demonstrate(args, &assets));
    // A thread in the middle of an answer must not keep the program from ending.
    runtime.shutdown_background();
    outcome
}

/// Sets the stage, replays the cameras, adds up.
async fn demonstrate(args: &Args, assets: &Assets) -> Result<Exit, Failure> {
    // Subscribed before anything starts, so that a stop is obeyed at any time.
    let mut stop = Stop::subscribe().or_exit(Exit::Io)?;
    let view = View::new(if args.json { Out::Stderr } else { Out::Stdout });
    let stage = tokio::select! {
        stage = Stage::set(assets, &view) => stage.or_exit(Exit::Io)?,
        exit = stop.told() => return Ok(exit),
    };
    let ledger = Arc::new(Ledger::new(view.clone(), stage.labels.clone()));
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
            exit = stop.told() => stopped = Some(exit),
        }
    };
    let totals = pipeline::run(stage.config.clone(), ledger.clone(), shutdown).await?;

    let published = ledger.events();
    stage
        .auditor
        .wait_for_events(
            published,
            if stopped.is_some() {
                LAST_ARRIVAL_PATIENCE
            } else {
                ARRIVAL_PATIENCE
            },
        )
        .await;
    // The pipeline is gone: nothing is added any more.
    let mut pairs = ledger.pairs();
    if stopped.is_none() {
        view.line("asking the pool about what stayed on the box, to compare…");
        tokio::select! {
            () = stage.auditor.ask_about(&mut pairs) => {}
            exit = stop.told() => stopped = Some(exit),
        }
    }
    let counts = Counts {
        frames: totals.frames,
        frames_skipped: totals.frames - totals.frames_answered,
        updates: ledger.updates(),
        events_published: published,
        events_received: stage.auditor.events_received(),
        bytes_up: ledger.bytes_up(),
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
    view.line(&summary.for_people());
    if args.json {
        println!(
            "{}",
            serde_json::to_string(&summary).or_exit(Exit::Internal)?
        );
    }
    Ok(stopped.unwrap_or(Exit::Done))
}

/// Everything around the agent: a broker, a worker behind it, a subscriber that counts, and the
/// agent's configuration.
struct Stage {
    config: AgentConfig,
    labels: Vec<Label>,
    auditor: Auditor,
    /// Ended with the stage, the worker first.
    _worker: Sidecar,
    _broker: Sidecar,
}

impl Stage {
    async fn set(assets: &Assets, view: &View) -> anyhow::Result<Stage> {
        let address = children::free_port()?;
        let mut broker = Sidecar::start(
            "broker",
            [
                "demo-broker".to_owned(),
                "--listen".into(),
                address.to_string(),
            ],
        )?;
        children::wait_listening(address, &mut broker, START_PATIENCE).await?;
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

        // Kept: the configuration can be read and run again.
        let workdir = tempfile::Builder::new()
            .prefix("egret-demo-")
            .tempdir()
            .context("creating a folder for the configuration; name one that can be written to with TMPDIR")?
            .keep();
        let path = workdir.join("egret.toml");
        let text = config::text(assets, address);
        std::fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
        let config = AgentConfig::parse(&text, &path.display().to_string())?;
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
        let auditor = Auditor::start(&config)?;
        auditor
            .wait_for_pool(&mut worker, START_PATIENCE)
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

/// Ctrl-C, or the service manager's way of saying stop.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn subscribe() -> std::io::Result<Stop> {
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Waits for either; the exit code that answers it.
    async fn told(&mut self) -> Exit {
        tokio::select! {
            _ = self.interrupt.recv() => Exit::Interrupted,
            _ = self.terminate.recv() => Exit::Done,
        }
    }
}

/// Where the live view goes: out of the way of the JSON line.
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
        // A closed terminal must not end the run: the events still go out.
        let _ = match self {
            Out::Stdout => writeln!(std::io::stdout(), "{text}"),
            Out::Stderr => writeln!(std::io::stderr(), "{text}"),
        };
    }
}
