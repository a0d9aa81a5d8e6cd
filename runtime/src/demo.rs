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
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use firmware_config::agent::AgentConfig;
use firmware_config::agent::units::parse_duration;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::{Exit, Failure, OrExit};
use crate::{labels, memory, pipeline};
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
    parse_duration(text).map_err(|error| error.to_string())
}

/// Runs the demo.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let assets = Assets::find().or_exit(Exit::Io)?;
    let workdir = tempdir().or_exit(Exit::Io)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().or_exit(Exit::Io)?;
    let outcome = runtime.block_on(replay(args, &assets, &workdir)).or_exit(Exit::Io);
    // A thread in the middle of an answer must not keep the program from ending.
    runtime.shutdown_background();
    outcome
}

async fn replay(args: &Args, assets: &Assets, workdir: &Path) -> anyhow::Result<Exit> {
    // Subscribed before anything starts, so that Ctrl-C always ends in the same place.
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let address = children::free_port()?;
    let mut broker = Sidecar::start("broker", ["demo-broker".to_owned(), "--listen".into(), address.to_string()])?;
    children::wait_listening(address, &mut broker, START_PATIENCE)?;
    let url = format!("mqtt://{address}");
    let worker_args =
        ["worker", "--until-stdin-ends", "--backend", "tract", "--mqtt", &url, "--pool", config::POOL, "--bundle"].map(Into::into);
    let _worker = Sidecar::start("worker", worker_args.into_iter().chain([assets.pool_bundle().into_os_string()]))?;

    let path = workdir.join("egret.toml");
    let text = config::text(assets, address);
    std::fs::write(&path, &text).with_context(|| format!("writing {}", path.display()))?;
    let config = AgentConfig::parse(&text, &path.display().to_string())?;
    let (labels, bad) = labels::parse(&std::fs::read_to_string(assets.labels()).context("reading the demo's labels")?);
    anyhow::ensure!(bad.is_empty(), "{}: line {}: {}", assets.labels().display(), bad[0].line, bad[0].reason);

    let view = View::new(if args.json { Out::Stderr } else { Out::Stdout });
    view.line(&format!("configuration  {}", path.display()));
    view.line(&format!("broker         {url}  (mosquitto_sub -V 5 -v -p {} -t 'egret/#')", address.port()));
    let auditor = Auditor::start(&config)?;
    auditor.wait_for_pool(START_PATIENCE).await.context("waiting for the demo's worker")?;

    let ledger = Arc::new(Ledger::new(view.clone(), labels));
    let mut interrupted = false;
    let shutdown = async {
        let limit = async {
            match args.limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = limit => {}
            _ = interrupt.recv() => interrupted = true,
            _ = terminate.recv() => interrupted = true,
        }
    };
    let totals = pipeline::run(config, ledger.clone(), shutdown).await?;

    let published = ledger.events();
    auditor.wait_for_events(published, ARRIVAL_PATIENCE).await;
    // The pipeline is gone: nothing is added any more.
    let mut pairs = ledger.pairs();
    if !interrupted {
        view.line("asking the pool about what stayed on the box, to compare…");
        tokio::select! {
            () = auditor.ask_about(&mut pairs) => {}
            _ = interrupt.recv() => interrupted = true,
        }
    }
    let counts = Counts {
        frames: totals.frames,
        frames_skipped: totals.frames - totals.frames_answered,
        updates: ledger.updates(),
        events_published: published,
        events_received: auditor.events_received(),
        bytes_up: ledger.bytes_up(),
    };
    let summary = Summary::of(counts, &pairs.iter().map(|(pair, _)| pair.clone()).collect::<Vec<_>>(), memory::peak_rss_bytes());
    view.line("");
    view.line(&summary.for_people());
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    }
    Ok(if interrupted { Exit::Interrupted } else { Exit::Done })
}

/// A folder of this run's own, kept: its configuration can be read and run again.
fn tempdir() -> anyhow::Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("egret-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
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
