//! `egret serve`: the gateway alone.

use std::net::SocketAddr;
use std::sync::Arc;

use firmware_config::agent::{AgentConfig, Gateway, Policy};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::warn;

use crate::commands::exit::{Exit, Failure, OrExit};
use crate::commands::model_server::{self, ModelArgs};
use crate::commands::output;
use crate::commands::preflight;
use crate::decide::call::Escalations;
use crate::environment::Environment;
use crate::metrics::Metrics;
use crate::mqtt::{Incoming, Link, LinkOptions, LinkTask, Qos};
use crate::pool::{self, Pools};
use crate::serve::gateway::{self, Parts};

/// Arguments of `egret serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// What the local model is called in replies; by default the bundle's name.
    #[arg(long, value_name = "ID")]
    name: Option<String>,
    /// Address to listen on; by default the configuration's, else 127.0.0.1:8080.
    #[arg(long, value_name = "ADDR")]
    listen: Option<SocketAddr>,
}

/// Serves until Ctrl-C or SIGTERM.
///
/// # Errors
/// When the configuration is wrong, the bundle cannot be used, or the address is taken.
pub fn run(args: &Args) -> Result<Exit, Failure> {
    let config = args.model.config()?;
    let configured = config
        .as_ref()
        .and_then(|config| config.gateway.as_ref())
        .map(|gateway| gateway.listen);
    let listen = args.listen.or(configured).unwrap_or(Gateway::LISTEN);
    for finding in config.iter().flat_map(preflight::check) {
        warn!("{finding}");
    }
    let local = args.model.start(config.as_ref())?;
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| local.identity().name.clone());
    model_server::run_to_end(async {
        let listener = TcpListener::bind(listen).await.map_err(|error| {
            Failure::new(
                Exit::Io,
                format!("cannot listen on {listen}: {error}; choose another address with --listen"),
            )
        })?;
        let address = listener.local_addr().or_exit(Exit::Io)?;
        let environment = Environment::system();
        let link = config
            .as_ref()
            .and_then(|config| link(config, &environment));
        let escalations = escalations(
            config.as_ref(),
            link.as_ref().map(|(link, ..)| link.clone()),
            &environment,
        )?;
        let pools = escalations.pools.clone();
        let model = model_server::describe(&name, &local);
        output::print(&format!("egret serve: {model} on http://{address}/v1\n"))?;
        let metrics = Arc::new(Metrics::for_gateway());
        let (stop, stopping) = watch::channel(false);
        let (close, closing) = watch::channel(false);
        let parts = Parts {
            local: local.clone(),
            name,
            escalations,
            environment: environment.clone(),
            metrics: Arc::clone(&metrics),
        };
        let gateway = async {
            let served = gateway::serve(parts, listener, stopped(stopping)).await;
            // Open replies may wait for a pool behind the broker until then.
            let _ = close.send(true);
            served
        };
        let broker = async {
            if let Some((link, task, deliveries)) = link {
                tokio::join!(
                    task.run(stopped(closing)),
                    deliver_replies(deliveries, pools, &metrics),
                    metrics.routing.follow(&link)
                );
            }
        };
        let signal = async {
            let exit = model_server::stopped(&local).await;
            // The receivers are the two futures beside this one.
            let _ = stop.send(true);
            exit
        };
        let (served, (), exit) = tokio::join!(gateway, broker, signal);
        served.or_exit(Exit::Io)?;
        exit
    })
}

/// The connection to MQTT pools, where a broker is configured.
fn link(config: &AgentConfig, environment: &Environment) -> Option<(Link, LinkTask, Incoming)> {
    let node = &config.node.id;
    let options = LinkOptions::new(config.mqtt.clone()?, format!("egret-{node}-gateway"));
    let options = LinkOptions {
        subscriptions: vec![(pool::mqtt::reply_topic(node), Qos::AtLeastOnce)],
        ..options
    };
    Some(environment.open_link(options))
}

fn escalations(
    config: Option<&AgentConfig>,
    link: Option<Link>,
    environment: &Environment,
) -> Result<Escalations, Failure> {
    let alone = Policy::default();
    let (pools, node, policy) = match config {
        Some(config) => (
            config.pools.as_slice(),
            config.node.id.as_str(),
            &config.policy,
        ),
        None => (&[][..], "gateway", &alone),
    };
    Escalations::new(pools, policy, link, node, environment).or_exit(Exit::Usage)
}

/// Hands replies to the calls that wait for them, until the connection is closed.
async fn deliver_replies(mut deliveries: Incoming, pools: Pools, metrics: &Metrics) {
    while let Some(delivery) = deliveries.recv().await {
        pools.on_reply(delivery.publication);
        metrics.deliveries_dropped.raise_to(deliveries.dropped());
        metrics
            .replies_unmatched
            .raise_to(pools.unmatched_replies());
    }
}

async fn stopped(mut stopping: watch::Receiver<bool>) {
    // A dropped sender means that the command has ended.
    let _ = stopping.wait_for(|stop| *stop).await;
}
