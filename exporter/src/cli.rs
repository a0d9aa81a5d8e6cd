//! The command line of `egret-export`: arguments, output, exit codes.
//!
//! With `--json`, stdout ends with one object on one line; logs and errors go to stderr.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use firmware_config::manifest::{Manifest, Precision};

use vlm::VlmError;

use crate::bundle::{BundleWriteError, graphs, vacant};
use crate::export::{ExportError, ExportOptions, export_verified};
use crate::inspect::{InspectError, inspect};
use crate::interrupt;
use crate::report::{Verdict, VerificationReport};
use crate::source::{self, SourceError};
use crate::units::megabytes;
use crate::verify::{VerifyError, VerifyOptions, verify};

/// Turns a SmolVLM2 checkpoint into a bundle: quantized ONNX graphs, tokenizer, manifest, and a
/// report.
#[derive(Debug, Parser)]
#[command(name = "egret-export", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Turn a checkpoint folder into a bundle
    Export(ExportArgs),
    /// Show what a checkpoint or a bundle holds
    Inspect(InspectArgs),
    /// Compare a bundle with its checkpoint; exit 0 if it passes, 1 if it fails
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Checkpoint folder (config.json, tokenizer.json, safetensors), or hub id (owner/model)
    source: PathBuf,
    /// Bundle folder to make
    out: PathBuf,
    /// Branch, tag or commit of a hub id [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// How weights are stored: fp32, fp16 or int8
    #[arg(long, default_value = "int8", value_parser = precision)]
    precision: Precision,
    /// Graphs to make: onnx, which is always made; graphs fused for one runtime are not built yet
    #[arg(long = "target", value_name = "TARGET", value_parser = target)]
    _targets: Vec<Target>,
    /// Folder of 1 to 256 images for the verification, besides the built-in ones; quantization does
    /// not use them yet
    #[arg(long, value_name = "DIR")]
    calibration: Option<PathBuf>,
    /// Model name [default: the last part of SOURCE]
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Keep a bundle that fails a quality gate
    #[arg(long)]
    allow_loss: bool,
    /// Replace a bundle of the same name
    #[arg(long)]
    force: bool,
    /// End stdout with one line of JSON: bundle, manifest and report
    #[arg(long)]
    json: bool,
}

/// What graphs are made for.
#[derive(Debug, Clone, Copy)]
enum Target {
    /// Every runtime that loads ONNX; always made.
    Onnx,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Checkpoint or bundle folder, or hub id (owner/model)
    #[arg(value_name = "SOURCE|BUNDLE")]
    folder: PathBuf,
    /// Branch, tag or commit of a hub id [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Bundle folder
    bundle: PathBuf,
    /// The checkpoint it was made from: a folder, or a hub id
    #[arg(long)]
    reference: PathBuf,
    /// Branch, tag or commit of a hub id [default: main]
    #[arg(long)]
    revision: Option<String>,
    /// Folder of images to ask about, besides the built-in ones
    #[arg(long)]
    images: Option<PathBuf>,
    /// One line of JSON: the report
    #[arg(long)]
    json: bool,
}

/// Exit codes; the numbers above 1 are those of `sysexits.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Done = 0,
    CheckFailed = 1,
    Usage = 64,
    Internal = 70,
    Io = 74,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command did not run to its end.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error("standard output cannot be written")]
    Output(#[source] io::Error),
    #[error("{path}: no such folder; {expected}", path = .path.display())]
    NoFolder {
        path: PathBuf,
        /// What it should be, and how to get it.
        expected: String,
    },
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Target(#[from] BundleWriteError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error(transparent)]
    Inspect(#[from] InspectError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

impl CliError {
    /// I/O is apart from wrong input: the former may succeed when tried again.
    fn exit(&self) -> Exit {
        let io_or_usage = |is_io| if is_io { Exit::Io } else { Exit::Usage };
        match self {
            CliError::Output(_)
            | CliError::NoFolder { .. }
            | CliError::Source(SourceError::NotFound { .. }) => Exit::Io,
            CliError::Source(SourceError::Hub(error)) => io_or_usage(!error.is_usage()),
            CliError::Source(SourceError::RevisionOfFolder { .. }) => Exit::Usage,
            CliError::Target(error) => io_or_usage(error.is_io()),
            CliError::Export(ExportError::Lossy(_)) => Exit::CheckFailed,
            CliError::Export(ExportError::Verify(error)) | CliError::Verify(error) => {
                exit_of_verification(error)
            }
            CliError::Export(error) => io_or_usage(error.is_io()),
            CliError::Inspect(error) => io_or_usage(error.is_io()),
        }
    }
}

fn exit_of_verification(error: &VerifyError) -> Exit {
    match error {
        // A bundle of other sizes is not this checkpoint's, and a damaged one is not what was
        // exported: that is a result, not a wrong request.
        VerifyError::Geometry { .. } => Exit::CheckFailed,
        VerifyError::Bundle(VlmError::Bundle(error)) if error.is_damage() => Exit::CheckFailed,
        VerifyError::Bundle(VlmError::Bundle(_)) => Exit::Io,
        VerifyError::Bundle(_) | VerifyError::Model(_) | VerifyError::NoTrace => Exit::Internal,
        error if error.is_io() => Exit::Io,
        _ => Exit::Usage,
    }
}

/// Parses the arguments, runs the command, and ends with its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version were requested and go to stdout; anything else is wrong usage.
            let exit = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            // There is nothing to do about a closed terminal.
            let _ = error.print();
            return exit.into();
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| vlm::LOG_FILTER.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    interrupt::watch(Exit::Interrupted as i32);
    let outcome = match &cli.command {
        Command::Export(args) => run_export(args),
        Command::Inspect(args) => run_inspect(args),
        Command::Verify(args) => run_verify(args),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("egret-export: {}", chain(&error));
            error.exit().into()
        }
    }
}

fn run_export(args: &ExportArgs) -> Result<Exit, CliError> {
    // Checked before anything is fetched.
    vacant(&args.out, args.force)?;
    if let Some(folder) = &args.calibration {
        is_folder(folder, CALIBRATION)?;
        tracing::info!(
            "the images in {} are used to verify the bundle; quantization does not use them yet",
            folder.display()
        );
    }
    let source = source::folder(&args.source, args.revision.as_deref())?;
    let options = ExportOptions {
        precision: args.precision,
        name: args.name.clone(),
        replace: args.force,
    };
    let verification = VerifyOptions {
        images: args.calibration.clone(),
        ..VerifyOptions::default()
    };
    let (manifest, report) =
        export_verified(&source, &args.out, &options, &verification, args.allow_loss)?;
    if args.json {
        print(format_args!(
            "{}",
            one_line(&ExportJson {
                bundle: &args.out,
                manifest: &manifest,
                report: &report
            })
        ))?;
    } else {
        print(format_args!("{}{report}", table(&manifest, &args.out)))?;
    }
    Ok(Exit::Done)
}

fn run_inspect(args: &InspectArgs) -> Result<Exit, CliError> {
    let inspection = inspect(&source::folder(&args.folder, args.revision.as_deref())?)?;
    if args.json {
        print(format_args!("{}", one_line(&inspection)))?;
    } else {
        print(format_args!("{inspection}"))?;
    }
    Ok(Exit::Done)
}

fn run_verify(args: &VerifyArgs) -> Result<Exit, CliError> {
    is_folder(
        &args.bundle,
        "expected a bundle folder, as `egret-export export` makes it",
    )?;
    if let Some(folder) = &args.images {
        is_folder(folder, IMAGES)?;
    }
    let reference = source::folder(&args.reference, args.revision.as_deref())?;
    let options = VerifyOptions {
        images: args.images.clone(),
        ..VerifyOptions::default()
    };
    let report = verify(&args.bundle, &reference, &options)?;
    if args.json {
        print(format_args!("{}", one_line(&report)))?;
    } else {
        print(format_args!("{report}"))?;
    }
    Ok(match report.verdict() {
        Verdict::Pass => Exit::Done,
        Verdict::Fail => Exit::CheckFailed,
    })
}

/// The JSON of an export: manifest and report exactly as they are in the bundle.
#[derive(Debug, serde::Serialize)]
struct ExportJson<'a> {
    bundle: &'a Path,
    manifest: &'a Manifest,
    report: &'a VerificationReport,
}

/// The table of an export.
fn table(manifest: &Manifest, out: &Path) -> String {
    let mut text = format!(
        "{} ({}) in {}\n",
        manifest.name,
        manifest.precision.as_str(),
        out.display()
    );
    for (_, graph) in manifest.graphs.iter() {
        let size = megabytes(graphs::bytes(manifest, graph));
        text += &format!("  {graph:<40} {size:>10}\n");
    }
    let total = manifest.files.values().map(|entry| entry.bytes).sum();
    text + &format!("  {:<40} {:>10}\n", "all files", megabytes(total))
}

/// What `--images` expects.
const IMAGES: &str = "--images expects a folder of 1 to 256 images";

/// What `--calibration` expects, and what it is for.
const CALIBRATION: &str = "--calibration expects a folder of 1 to 256 images, which are used to verify the bundle \
                           (quantization does not use them yet)";

/// Checks that a path is a folder.
fn is_folder(path: &Path, expected: &str) -> Result<(), CliError> {
    if path.is_dir() {
        Ok(())
    } else {
        Err(CliError::NoFolder {
            path: path.to_owned(),
            expected: expected.to_owned(),
        })
    }
}

fn precision(text: &str) -> Result<Precision, String> {
    let known = Precision::ALL
        .into_iter()
        .find(|known| known.as_str() == text);
    known.ok_or_else(|| match text {
        "q8" | "q4" => format!("{text} is not built yet; choose fp32, fp16 or int8"),
        _ => "no such precision; choose fp32, fp16 or int8".into(),
    })
}

/// Accepts what is made in any case, and refuses every other target by name.
fn target(text: &str) -> Result<Target, String> {
    match text {
        "onnx" => Ok(Target::Onnx),
        "cpu" | "cuda" | "tensorrt" => Err(format!(
            "graphs fused for {text} are not built yet; leave it out: onnx, which every runtime loads, is always made"
        )),
        _ => Err(format!(
            "no target {text:?}; leave it out: onnx is always made"
        )),
    }
}

/// Names are part of topics, headers and paths.
fn name(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=128).contains(&text.len()) && text.chars().all(plain) {
        Ok(text.into())
    } else {
        Err("expected 1 to 128 letters, digits, '-', '_' or '.'".into())
    }
}

fn one_line(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("only strings are keys")
}

/// An error with its causes; a cause that the text before it already contains is left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in
        std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string)
    {
        if !text.contains(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// Prints a result.
///
/// # Errors
/// When stdout is closed, as for any file that cannot be written.
fn print(text: std::fmt::Arguments<'_>) -> Result<(), CliError> {
    writeln!(io::stdout(), "{text}").map_err(CliError::Output)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_not_built_yet_is_refused_by_name() {
        let refusal = |args: &[&str]| {
            let args = ["egret-export", "export", "in", "out"].iter().chain(args);
            Cli::try_parse_from(args)
                .unwrap_err()
                .to_string()
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        insta::assert_snapshot!(refusal(&["--precision", "q4"]), @"error: invalid value 'q4' for '--precision <PRECISION>': q4 is not built yet; choose fp32, fp16 or int8");
        insta::assert_snapshot!(refusal(&["--precision", "fp8"]), @"error: invalid value 'fp8' for '--precision <PRECISION>': no such precision; choose fp32, fp16 or int8");
        insta::assert_snapshot!(refusal(&["--target", "cuda"]), @"error: invalid value 'cuda' for '--target <TARGET>': graphs fused for cuda are not built yet; leave it out: onnx, which every runtime loads, is always made");
        insta::assert_snapshot!(refusal(&["--target", "coreml"]), @"error: invalid value 'coreml' for '--target <TARGET>': no target \"coreml\"; leave it out: onnx is always made");
        insta::assert_snapshot!(refusal(&["--name", "a/b"]), @"error: invalid value 'a/b' for '--name <NAME>': expected 1 to 128 letters, digits, '-', '_' or '.'");
    }
}
