//! The command line: one variant per command, each with its own module that holds its arguments and
//! runs it.

pub mod ask;
mod config_file;
#[cfg(feature = "demo")]
pub mod demo;
pub mod exit;
pub mod labels;
mod memory;
pub mod model_server;
mod output;
pub mod preflight;
pub mod run;
pub mod serve;
pub mod worker;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use self::exit::{Exit, Failure};

/// Watches cameras with a small vision-language model on this box, and asks a bigger one only when
/// the small one is likely wrong.
#[derive(Debug, Parser)]
#[command(name = "egret", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The main job on bundled cameras and models: a small model here, a bigger one behind a
    /// broker, events over MQTT.
    #[cfg(feature = "demo")]
    Demo(demo::Args),
    /// Run the agent: watch cameras, answer, escalate, publish.
    Run(run::Args),
    /// Ask a bundle one question, with pictures, a clip, or text alone.
    Ask(ask::Args),
    /// Serve an OpenAI-compatible endpoint that routes between the model on this box and its pools.
    Serve(serve::Args),
    /// Answer a pool's requests from a broker, as one of its workers.
    Worker(worker::Args),
    #[cfg(feature = "demo")]
    #[command(hide = true, about = "The demo's broker, in a process of its own")]
    DemoBroker(demo::broker::Args),
}

impl Command {
    fn run(&self) -> Result<Exit, Failure> {
        match self {
            Command::Run(args) => run::run(args),
            #[cfg(feature = "demo")]
            Command::Demo(args) => demo::run(args),
            Command::Ask(args) => ask::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Worker(args) => worker::run(args),
            #[cfg(feature = "demo")]
            Command::DemoBroker(args) => demo::broker::run(args),
        }
    }
}

/// Parses the arguments, runs the command, and ends with its exit code.
pub fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => {
            log_to_stderr();
            exit::report(cli.command.run())
        }
        Err(error) => {
            // Help and version are asked for, and go to stdout; anything else is wrong usage.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            // Fails only when the terminal is closed.
            let _ = error.print();
            exit.into()
        }
    }
}

/// Logs and progress go to stderr, so that stdout carries answers only; `RUST_LOG` filters them.
fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| vlm::LOG_FILTER.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_demo_is_offered_where_it_is_built_in() {
        let help = Cli::command().render_help().to_string();
        assert_eq!(help.contains("\n  demo "), cfg!(feature = "demo"), "{help}");
        assert!(!help.contains("demo-broker"), "{help}");
    }
}
