//! `egret run`: the agent.

use std::path::PathBuf;
use std::sync::Arc;

use firmware_config::agent::{AgentConfig, PoolTransport, RouteMode, Source};
use firmware_config::redact;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};
use vlm::Bundle;

use crate::commands::exit::{Exit, Failure, OrExit};
use crate::commands::{config_file, output, preflight};
use crate::observe::EventLog;
use crate::pipeline::{self, RunError};

/// Arguments of `egret run`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration, `egret.toml`.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print what would run, or every error of the configuration, and start nothing. Files and
    /// folders that are missing are warnings: they may still come before the agent starts.
    #[arg(long)]
    check: bool,
}

/// Runs the agent until a signal stops it, or its sources end.
///
/// # Errors
/// When the configuration is wrong, or the agent cannot start.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let config = config_file::load(&args.config)?;
    if config.cameras.is_empty() && config.gateway.is_none() {
        let name = args.config.display();
        return Err(Failure::new(
            Exit::Usage,
            format_args!("{name}: nothing to run: add a [[camera]], or [gateway]"),
        ));
    }
    if args.check {
        output::print(&plan(&config))?;
        for finding in preflight::check(&config) {
            output::print_error(&format!("warning: {finding}"));
        }
        if let Err(error) = Bundle::open(&config.model.bundle) {
            let error = anyhow::Error::from(error);
            output::print_error(&format!(
                "warning: model: {error:#}; egret run will not start"
            ));
        }
        return Ok(Exit::Done);
    }
    for finding in preflight::check(&config) {
        warn!("{finding}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .or_exit(Exit::Io)?;
    let outcome = runtime.block_on(until_signalled(config));
    // A thread of the runtime that is blocked in a system call must not keep the agent running.
    runtime.shutdown_background();
    outcome
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        let exit = match error {
            RunError::Model { source, .. } => return Failure::from(source),
            RunError::Pools(_) => Exit::Usage,
            RunError::Listen { .. } | RunError::Thread(_) => Exit::Io,
            RunError::Fault { .. } => Exit::Internal,
        };
        Failure {
            exit,
            error: error.into(),
        }
    }
}

async fn until_signalled(config: AgentConfig) -> Result<Exit, Failure> {
    let mut interrupt = signal(SignalKind::interrupt()).or_exit(Exit::Io)?;
    let mut terminate = signal(SignalKind::terminate()).or_exit(Exit::Io)?;
    let mut exit = Exit::Done;
    let signalled = async {
        tokio::select! {
            _ = interrupt.recv() => exit = Exit::Interrupted,
            // How a service manager stops a service: not a failure.
            _ = terminate.recv() => {}
        }
    };
    let totals = pipeline::run(config, Arc::new(EventLog), signalled).await?;
    info!(
        "{} frames, {} skipped, {} answers, {} escalated, {} events published, {} dropped, {} undelivered",
        totals.frames,
        totals.frames_skipped,
        totals.answers,
        totals.answers_escalated,
        totals.events_published,
        totals.events_dropped,
        totals.events_queued()
    );
    match totals.sources_failed {
        failed if failed > 0 && exit == Exit::Done => Err(Failure::new(
            Exit::Io,
            format_args!(
                "{failed} of the cameras' folders or files could not be read to the end; the log says why"
            ),
        )),
        _ => Ok(exit),
    }
}

/// A readable summary of what a configuration runs.
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
        let _ = writeln!(
            text,
            "camera {}: {source}, a frame every {:?}",
            camera.id, camera.period
        );
        for rule in &camera.rules {
            let answers = if rule.answers.is_empty() {
                "free text".to_owned()
            } else {
                rule.answers.join(" | ")
            };
            let pool = config
                .pool_for(rule)
                .map_or("none", |pool| pool.id.as_str());
            let route = match rule.route {
                RouteMode::Local => "no pool is asked".to_owned(),
                RouteMode::Auto => format!("below {} to pool {pool}", rule.threshold),
                RouteMode::Pool => format!("always to pool {pool}"),
                RouteMode::MustEscalate => format!("settled by pool {pool} only"),
            };
            let _ = writeln!(
                text,
                "  rule {}: {:?} ({answers}), {route}",
                rule.id, rule.question
            );
        }
    }
    for pool in &config.pools {
        let transport = match &pool.transport {
            PoolTransport::Https { url, .. } => redact(url).into_owned(),
            PoolTransport::Mqtt => "the broker".into(),
        };
        let _ = writeln!(
            text,
            "pool {}: {} over {transport}, deadline {:?}",
            pool.id, pool.model, pool.deadline
        );
    }
    let _ = writeln!(text, "kill switch {}", config.policy.kill_switch.as_str());
    if let Some(gateway) = &config.gateway {
        let _ = writeln!(text, "gateway on {}", gateway.listen);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_names_the_pool_that_the_agent_asks() {
        let text = r#"
            node.id = "n"
            model.bundle = "b"
            [[camera]]
            id = "a"
            source = "dir://frames"
            [[camera.rule]]
            id = "open"
            question = "?"
            [[pool]]
            id = "words"
            url = "http://h/v1"
            model = "m"
            images = false
            [[pool]]
            id = "images"
            url = "http://h/v1"
            model = "m"
        "#;
        let config = AgentConfig::parse(text, "egret.toml").expect("a configuration");
        let plan = plan(&config);
        assert!(
            plan.contains("rule open: \"?\" (free text), below 0.5 to pool images\n"),
            "{plan}"
        );
    }
}
