//! The configuration file that a command is given.

use std::io;
use std::path::Path;

use firmware_config::agent::AgentConfig;

use super::exit::{Exit, Failure, OrExit};

/// Reads and checks a configuration file.
///
/// # Errors
/// When the file cannot be read, or with every error in it.
pub(super) fn load(path: &Path) -> Result<AgentConfig, Failure> {
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Failure::new(
            Exit::Usage,
            format_args!("{name} is not UTF-8 text; name an egret.toml with --config"),
        ),
        _ => Failure::new(
            Exit::Io,
            format_args!("{name}: {error}; name a readable egret.toml with --config"),
        ),
    })?;
    AgentConfig::parse(&text, &name).or_exit(Exit::Usage)
}
