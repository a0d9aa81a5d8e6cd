//! How the program ends: an error is printed once, at the top, and its kind is the exit code.

use std::process::ExitCode;

use vlm::{BackendError, VlmError};

/// Exit codes; the numbers above 1 are those of `sysexits.h`, so that systemd and scripts can
/// distinguish them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// The check ran and failed.
    CheckFailed = 1,
    /// Wrong usage or configuration (EX_USAGE): running it again will not help.
    Usage = 64,
    /// Our own failure, or the inference engine's (EX_SOFTWARE).
    Internal = 70,
    /// A file, a process or the network failed (EX_IOERR).
    Io = 74,
    /// Stopped by SIGINT.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended early, and its exit code.
#[derive(Debug)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// The error with its causes.
    pub error: anyhow::Error,
}

impl Failure {
    /// A failure with a message.
    pub fn new(exit: Exit, message: impl std::fmt::Display) -> Self {
        Failure {
            exit,
            error: anyhow::anyhow!("{message}"),
        }
    }
}

impl From<VlmError> for Failure {
    fn from(error: VlmError) -> Self {
        let exit = match &error {
            VlmError::Bundle(_) => Exit::Io,
            VlmError::Backend(
                BackendError::NoLibrary
                | BackendError::LibraryMissing { .. }
                | BackendError::ExecutionProvider { .. },
            ) => Exit::Usage,
            error if error.is_bad_request() => Exit::Usage,
            _ => Exit::Internal,
        };
        Failure {
            exit,
            error: error.into(),
        }
    }
}

/// Gives an error its exit code.
pub trait OrExit<T> {
    /// Turns an error into a [`Failure`] that ends the program with `exit`.
    ///
    /// # Errors
    /// The error it was called on.
    fn or_exit(self, exit: Exit) -> Result<T, Failure>;
}

impl<T, E: Into<anyhow::Error>> OrExit<T> for Result<T, E> {
    fn or_exit(self, exit: Exit) -> Result<T, Failure> {
        self.map_err(|error| Failure {
            exit,
            error: error.into(),
        })
    }
}

/// Prints a command's error, if it has one, and returns its exit code.
pub fn report(outcome: Result<Exit, Failure>) -> ExitCode {
    match outcome {
        Ok(exit) => exit.into(),
        Err(Failure { exit, error }) => {
            // The alternate form is the whole chain on one line, each cause after a colon.
            super::output::print_error(&format!("{error:#}"));
            exit.into()
        }
    }
}
