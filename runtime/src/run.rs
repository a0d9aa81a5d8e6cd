//! `egret run`: the agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firmware_config::agent::{AgentConfig, PoolTransport, RouteMode, Source};
use firmware_config::redact;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

use crate::exit::{Exit, Failure, OrExit};
use crate::pipeline::{self, StartError, Summary};
use crate::policy::kill_switch_name;
use crate::record::Nobody;

/// Arguments of `egret run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, `egret.toml`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print what would run, or every error of the configuration, and start nothing.
    #[arg(long)]
    check: bool,
}

/// Runs the agent until it is told to stop, or its sources end.
///
/// # Errors
/// When the configuration is wrong, or the agent cannot start.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let config = load(&args.config)?;
    if args.check {
        print!("{}", plan(&config));
        return Ok(Exit::Done);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().or_exit(Exit::Io)?;
    let outcome = runtime.block_on(until_signalled(config));
    // Threads of the runtime that are stuck in a system call must not keep the box from stopping.
    runtime.shutdown_background();
    outcome
}

/// Reads and checks a configuration file.
///
/// # Errors
/// When the file cannot be read, or with every error in it.
pub fn load(path: &Path) -> Result<AgentConfig, Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| Failure::new(Exit::Io, format_args!("{name}: {error}")))?;
    AgentConfig::parse(&text, &name).or_exit(Exit::Usage)
}

async fn until_signalled(config: AgentConfig) -> Result<Exit, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Io)?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Io)?;
    let mut exit = Exit::Done;
    let signalled = async {
        tokio::select! {
            _ = interrupt.recv() => exit = Exit::Interrupted,
            // The service manager's way of saying stop: obeying it is a success.
            _ = terminate.recv() => {}
        }
    };
    let Summary { totals, events_undelivered } = pipeline::run(config, Arc::new(Nobody), signalled).await.map_err(|error| {
        let exit = match error {
            StartError::Model { .. } | StartError::Pools(_) => Exit::Usage,
            StartError::Listen { .. } | StartError::Thread(_) => Exit::Io,
        };
        Failure { exit, error: error.into() }
    })?;
    info!(
        "{} frames, {} skipped, {} answers, {} escalated, {} events published, {} dropped, {events_undelivered} undelivered",
        totals.frames, totals.frames_skipped, totals.answers, totals.answers_escalated, totals.events_published, totals.events_dropped
    );
    Ok(exit)
}

/// What a configuration would run, for people.
fn plan(config: &AgentConfig) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "node {}", config.node.id);
    let _ = writeln!(text, "model {}", config.model.bundle.display());
    match &config.mqtt {
        Some(mqtt) => _ = writeln!(text, "broker {}:{}", mqtt.url.host, mqtt.url.port),
        None => _ = writeln!(text, "broker none: events are only logged"),
    }
    for camera in &config.cameras {
        let source = match &camera.source {
            Source::Folder(path) => format!("folder {}", path.display()),
            Source::File(path) => format!("file {}", path.display()),
            Source::Rtsp(url) => redact(url).into_owned(),
        };
        let _ = writeln!(text, "camera {}: {source}, a frame every {:?}", camera.id, camera.period);
        for rule in &camera.rules {
            let answers = if rule.answers.is_empty() { "free text".to_owned() } else { rule.answers.join(" | ") };
            let pool = rule.pool.as_deref().or(config.pools.first().map(|pool| pool.id.as_str())).unwrap_or("none");
            let route = match rule.route {
                RouteMode::Local => "never leaves the box".to_owned(),
                RouteMode::Auto => format!("below {} to pool {pool}", rule.threshold),
                RouteMode::Pool => format!("always to pool {pool}"),
                RouteMode::MustEscalate => format!("settled by pool {pool} only"),
            };
            let _ = writeln!(text, "  rule {}: {:?} ({answers}), {route}", rule.id, rule.question);
        }
    }
    for pool in &config.pools {
        let transport = match &pool.transport {
            PoolTransport::Https { url, .. } => redact(url).into_owned(),
            PoolTransport::Mqtt => "the broker".into(),
        };
        let _ = writeln!(text, "pool {}: {} over {transport}, deadline {:?}", pool.id, pool.model, pool.deadline);
    }
    let _ = writeln!(text, "kill switch {}", kill_switch_name(config.policy.kill_switch));
    if let Some(gateway) = &config.gateway {
        let _ = writeln!(text, "gateway on {}", gateway.listen);
    }
    text
}
