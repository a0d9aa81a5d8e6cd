//! `egret ask`: one question, one answer.

use crate::exit::{Exit, Failure};

/// Arguments of `egret ask`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The question.
    question: String,
}

/// Asks the question and prints the answer.
///
/// # Errors
/// When the bundle cannot be used, or the question cannot be asked of it.
pub fn run(_args: &Args) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
