//! `egret worker`: a pool's worker behind a broker.

use std::io;

use firmware_config::agent::{AgentConfig, Mqtt, MqttUrl};
use tokio::sync::oneshot;
use tracing::{info, warn};

use crate::commands::exit::{Exit, Failure};
use crate::commands::model_server::{self, ModelArgs};
use crate::commands::output;
use crate::environment::Environment;
use crate::infer::Handle;
use crate::metrics::Metrics;
use crate::mqtt::{Link, LinkState};
use crate::serve::worker::{self, Worker};

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
    let mqtt = broker(args.mqtt.as_ref(), config.as_ref())?;
    let model = args.model.start(config.as_ref())?;
    if let Some(config) = &config {
        warn_about_the_pool(config, &args.pool, &model);
    }
    let started = format!(
        "egret worker: {} answers pool {} on {}:{}",
        model_server::describe(&model.identity().name, &model),
        args.pool,
        mqtt.url.host,
        mqtt.url.port
    );
    let environment = Environment::system();
    let options = worker::link_options(mqtt, &args.pool, &environment);
    let (link, task, deliveries) = environment.open_link(options);
    let metrics = Metrics::for_worker();
    let worker = Worker {
        link: &link,
        model: &model,
        metrics: &metrics.worker,
        environment: &environment,
    };
    model_server::run_to_end(async {
        let mut exit = Ok(Exit::Done);
        let stop = async {
            tokio::select! {
                stopped = model_server::stopped(&model) => exit = stopped,
                () = stdin_ended(), if args.until_stdin_ends => {}
            }
        };
        // The connection ends last, and by itself: a request being answered then stays
        // unacknowledged.
        tokio::select! {
            () = task.run(stop) => {}
            failure = announce(&link, &started) => return Err(failure),
            () = worker.run(deliveries) => {}
        }
        info!("requests: {}", metrics.worker.summary());
        exit
    })
}

/// The broker of the command line, else of the configuration.
fn broker(url: Option<&MqttUrl>, config: Option<&AgentConfig>) -> Result<Mqtt, Failure> {
    let configured = config.and_then(|config| config.mqtt.clone());
    match (url, configured) {
        (Some(url), Some(configured)) => Ok(Mqtt {
            url: url.clone(),
            ..configured
        }),
        (Some(url), None) => Ok(Mqtt {
            url: url.clone(),
            username_file: None,
            password_file: None,
            ca_file: None,
            outbox_events_max: 1,
        }),
        (None, Some(configured)) => Ok(configured),
        (None, None) => Err(Failure::new(
            Exit::Usage,
            "no broker; name one with --mqtt URL, or in the configuration's [mqtt]",
        )),
    }
}

/// Logs what the configuration says about the pool and this worker does not do.
fn warn_about_the_pool(config: &AgentConfig, id: &str, model: &Handle) {
    let answers = &model.identity().name;
    match config.pools.iter().find(|pool| pool.id == id) {
        None => warn!(
            "the configuration has no pool {id}: no agent that runs on it will ask this worker"
        ),
        Some(pool) if pool.model != *answers => warn!(
            "pool {} is configured as {}, and {answers} answers for it; another one is named with --bundle",
            pool.id, pool.model
        ),
        Some(_) => {}
    }
}

/// Prints that requests are taken, once they are. Resolves only if it cannot.
async fn announce(link: &Link, started: &str) -> Failure {
    let mut status = link.status();
    // What it returns is a lock on the status, and must not outlive this line.
    let is_up = status
        .wait_for(|status| status.state == LinkState::Up)
        .await
        .is_ok();
    if is_up && let Err(failure) = output::print(&format!("{started}\n")) {
        return failure;
    }
    std::future::pending().await
}

async fn stdin_ended() {
    let (ended, end) = oneshot::channel();
    // A thread of its own: a read of standard input cannot be cancelled.
    std::thread::spawn(move || {
        // An input that fails has ended, too.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = ended.send(());
    });
    let _ = end.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_ids() {
        assert!(pool_id("vlm-large").is_ok());
        for id in ["", "a/b", "#", "+", "Big"] {
            assert!(pool_id(id).is_err(), "{id}");
        }
    }
}
