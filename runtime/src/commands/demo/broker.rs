//! The demo's broker: `rumqttd` on loopback, in a process of its own because it cannot be stopped.
//!
//! The process ends when its standard input does, so it never outlives the demo, however the demo
//! ends.

use std::collections::HashMap;
use std::io::Read;
use std::net::SocketAddr;

use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

use crate::commands::exit::{Exit, Failure, OrExit};

/// An image in a request is at most a few hundred kilobytes; base64 adds a third.
const PAYLOAD_BYTES_MAX: usize = 8 << 20;

/// Arguments of the hidden command that the demo starts itself with.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1:1883")]
    listen: SocketAddr,
}

/// Serves MQTT v5 until standard input ends.
pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let (listen, config) = (args.listen, config(args.listen));
    std::thread::Builder::new()
        .name("broker".into())
        .spawn(move || {
            // `start` returns `Ok` when it cannot listen, and logs why. The parent process sees
            // this one end.
            match Broker::new(config).start() {
                Ok(()) => eprintln!(
                    "egret broker: cannot listen on {listen}; another program may use the port"
                ),
                Err(error) => eprintln!("egret broker: {error}"),
            }
            std::process::exit(Exit::Io as i32);
        })
        .or_exit(Exit::Io)?;
    let mut rest = Vec::new();
    std::io::stdin().read_to_end(&mut rest).or_exit(Exit::Io)?;
    Ok(Exit::Done)
}

fn config(listen: SocketAddr) -> Config {
    let connections = ConnectionSettings {
        connection_timeout_ms: 5_000,
        max_payload_size: PAYLOAD_BYTES_MAX,
        // It ignores a client's Receive Maximum: this is how many requests it sends to a worker at
        // once.
        max_inflight_count: 50,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server = ServerSettings {
        name: "demo".into(),
        listen,
        tls: None,
        next_connection_delay_ms: 1,
        connections,
    };
    Config {
        id: 0,
        router: RouterConfig {
            max_connections: 16,
            max_outgoing_packet_count: 200,
            max_segment_size: 4 << 20,
            max_segment_count: 4,
            ..RouterConfig::default()
        },
        v5: Some(HashMap::from([("demo".into(), server)])),
        ..Config::default()
    }
}
