//! Shared by `egret serve` and `egret worker`: the model they run, and how they stop.

use std::path::PathBuf;

use firmware_config::agent::{self, AgentConfig};
use tokio::signal::unix::{SignalKind, signal};
use vlm::{BackendChoice, Options, Vlm};

use crate::commands::ask::EngineArgs;
use crate::commands::config_file;
use crate::commands::exit::{Exit, Failure, OrExit};
use crate::infer::{self, Handle};
use crate::pipeline::{self, RunError};

/// Arguments that name the model.
#[derive(Debug, clap::Args)]
pub struct ModelArgs {
    /// Bundle folder, as egret-export wrote it; by default the configuration's.
    #[arg(long, value_name = "DIR", required_unless_present = "config")]
    bundle: Option<PathBuf>,
    /// An egret.toml: its model, mqtt, pool and policy tables are used; by serve, gateway, too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineArgs,
}

impl ModelArgs {
    /// Reads the configuration, where one is named.
    pub(crate) fn config(&self) -> Result<Option<AgentConfig>, Failure> {
        self.config.as_deref().map(config_file::load).transpose()
    }

    /// Opens the bundle and starts the inference thread. Arguments override the configuration.
    pub(crate) fn start(&self, config: Option<&AgentConfig>) -> Result<Handle, Failure> {
        let model = config.map(|config| &config.model);
        let bundle = self.bundle.as_ref().or(model.map(|model| &model.bundle));
        let bundle = bundle
            .ok_or_else(|| Failure::new(Exit::Usage, "no bundle; name one with --bundle DIR"))?;
        let vlm = Vlm::open(bundle, &options(self.engine.options(), model))?;
        // Not joined: it ends with its last handle, and the reply to a request that it still
        // answers at the end of the program has no receiver.
        let (handle, _thread) = pipeline::spawn_inference(vlm).or_exit(Exit::Internal)?;
        Ok(handle)
    }
}

fn options(flags: Options, model: Option<&agent::Model>) -> Options {
    let Some(model) = model else { return flags };
    let configured = infer::options(model);
    Options {
        backend: if flags.backend == BackendChoice::Auto {
            configured.backend
        } else {
            flags.backend
        },
        threads: flags.threads.or(configured.threads),
        ort_library: flags.ort_library.or(configured.ort_library),
        require_execution_provider: flags
            .require_execution_provider
            .or(configured.require_execution_provider),
    }
}

/// Runs `serving` to its end, on threads of its own.
///
/// # Errors
/// When the system gives no threads, or as `serving` does.
pub(crate) fn run_to_end(
    serving: impl Future<Output = Result<Exit, Failure>>,
) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .or_exit(Exit::Internal)?;
    let outcome = runtime.block_on(serving);
    // A thread that is blocked in a system call, or decodes an image, must not keep the program
    // from ending.
    runtime.shutdown_background();
    outcome
}

/// Waits for Ctrl-C or SIGTERM, and returns the exit code of a clean stop by it.
///
/// # Errors
/// When the inference thread ended by a fault: a server without a model should not go on.
pub(crate) async fn stopped(model: &Handle) -> Result<Exit, Failure> {
    let mut interrupted = signal(SignalKind::interrupt()).or_exit(Exit::Io)?;
    let mut terminated = signal(SignalKind::terminate()).or_exit(Exit::Io)?;
    tokio::select! {
        _ = interrupted.recv() => Ok(Exit::Interrupted),
        _ = terminated.recv() => Ok(Exit::Done),
        () = model.ended() => Err(RunError::Fault { part: "the inference thread".into() }.into()),
    }
}

/// "nano-edge (int8, ort on cpu)".
pub(crate) fn describe(name: &str, handle: &Handle) -> String {
    let identity = handle.identity();
    format!(
        "{name} ({}, {} on {})",
        identity.precision, identity.backend, identity.execution_provider
    )
}
