//! What the commands print. A full disk or a closed pipe is an error, not a panic.

use std::io::{self, Write};

use anyhow::Context;

use super::exit::{Exit, Failure, OrExit};

/// Prints `text` on stdout as it is.
///
/// # Errors
/// When stdout cannot be written.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .context("cannot write to standard output")
        .or_exit(Exit::Io)
}

/// Prints a line for people on stderr. A failure to write it is ignored: there is no other place to report it.
pub(super) fn print_error(line: &str) {
    let _ = writeln!(io::stderr(), "egret: {line}");
}
