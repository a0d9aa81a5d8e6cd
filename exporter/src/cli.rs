//! The command line of `egret-export`: arguments, what is printed, exit codes.
//!
//! With `--json`, stdout ends with one object on one line; logs and errors go to stderr.

use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use firmware_config::manifest::{Manifest, Precision};

use crate::arch::ArchError;
use crate::bundle::BundleError;
use crate::checkpoint::CheckpointError;
use crate::graph::onnx::OnnxError;
use crate::inspect::{inspect, megabytes};
use crate::report::Verdict;
use crate::verify::{self, VerifyError};
use crate::{ExportError, Options, export_verified};
use vlm::VlmError;

/// Turns a SmolVLM2 checkpoint into a bundle: quantized ONNX graphs, tokenizer, manifest, and a report.
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
    /// Say what a checkpoint or a bundle holds
    Inspect(InspectArgs),
    /// Hold a bundle to its checkpoint; exit 0 if it passes, 1 if it fails
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// Checkpoint folder: config.json, tokenizer.json, and safetensors in one file or several
    source: PathBuf,
    /// Bundle folder to make
    out: PathBuf,
    /// How weights are stored: fp32, fp16 or int8
    #[arg(long, default_value = "int8", value_parser = precision)]
    precision: Precision,
    /// Graph folders to make; `onnx` is always there
    #[arg(long = "target", value_parser = target)]
    targets: Vec<String>,
    /// Folder of pictures to verify with, besides the built-in ones
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Model name [default: the checkpoint folder's name]
    #[arg(long, value_parser = name)]
    name: Option<String>,
    /// Keep a bundle that misses its quality gate
    #[arg(long)]
    allow_loss: bool,
    /// Replace a bundle of the same name
    #[arg(long)]
    force: bool,
    /// End with one line of JSON: bundle, manifest and report
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Checkpoint or bundle folder
    folder: PathBuf,
    /// One line of JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// Bundle folder
    bundle: PathBuf,
    /// The checkpoint folder it was made from
    #[arg(long)]
    reference: PathBuf,
    /// Folder of pictures to ask about, besides the built-in ones
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
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Parses the arguments, runs the command, and ends with its exit code.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are asked for, and go to stdout; anything else is wrong usage.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // Nobody is left to tell when the terminal is gone.
            let _ = error.print();
            return exit.into();
        }
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| vlm::backend::LOG_FILTER.into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(false)
        .init();
    let outcome = match &cli.command {
        Command::Export(args) => run_export(args),
        Command::Inspect(args) => run_inspect(args),
        Command::Verify(args) => run_verify(args),
    };
    match outcome {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("egret-export: {}", chain(&error));
            exit_of(&error).into()
        }
    }
}

fn run_export(args: &ExportArgs) -> Result<Exit, ExportError> {
    is_folder(&args.source)?;
    if let Some(folder) = &args.calibration {
        is_folder(folder)?;
    }
    // `onnx` is not a target among others: it is always there.
    let targets = args.targets.iter().filter(|&target| target != "onnx").cloned().collect();
    let options = Options { precision: args.precision, targets, name: args.name.clone(), replace: args.force };
    let verification = verify::Options { images: args.calibration.clone(), ..verify::Options::default() };
    let (manifest, report) = export_verified(&args.source, &args.out, &options, &verification, args.allow_loss)?;
    if args.json {
        say(format_args!("{}", serde_json::json!({ "bundle": args.out, "manifest": manifest, "report": report })))?;
    } else {
        say(format_args!("{}{report}", table(&manifest, &args.out)))?;
    }
    Ok(Exit::Done)
}

fn run_inspect(args: &InspectArgs) -> Result<Exit, ExportError> {
    is_folder(&args.folder)?;
    let inspection = inspect(&args.folder)?;
    if args.json {
        say(format_args!("{}", one_line(&inspection)))?;
    } else {
        say(format_args!("{inspection}"))?;
    }
    Ok(Exit::Done)
}

fn run_verify(args: &VerifyArgs) -> Result<Exit, ExportError> {
    [Some(&args.bundle), Some(&args.reference), args.images.as_ref()].into_iter().flatten().try_for_each(|folder| is_folder(folder))?;
    let options = verify::Options { images: args.images.clone(), ..verify::Options::default() };
    let report = verify::verify(&args.bundle, &args.reference, &options)?;
    if args.json {
        say(format_args!("{}", one_line(&report)))?;
    } else {
        say(format_args!("{report}"))?;
    }
    Ok(match report.verdict() {
        Verdict::Pass => Exit::Done,
        Verdict::Fail => Exit::CheckFailed,
    })
}

/// What was made, for people.
fn table(manifest: &Manifest, out: &Path) -> String {
    let graphs = &manifest.graphs;
    let mut text = format!("{} ({}) in {}\n", manifest.name, manifest.precision.as_str(), out.display());
    for graph in [&graphs.vision_encoder, &graphs.embed_tokens, &graphs.decoder_model_merged] {
        let size = |path: &str| manifest.files.get(path).map_or(0, |entry| entry.bytes);
        text += &format!("  {graph:<40} {:>10}\n", megabytes(size(graph) + size(&format!("{graph}_data"))));
    }
    let total = manifest.files.values().map(|entry| entry.bytes).sum();
    text + &format!("  {:<40} {:>10}\n", "all files", megabytes(total))
}

/// A folder, or the words for what was probably meant.
fn is_folder(path: &Path) -> Result<(), ExportError> {
    if path.is_dir() {
        return Ok(());
    }
    let shown = path.display().to_string();
    let expected = if is_hub_id(&shown) {
        format!("if a hub id is meant, download it first: hf download {shown} --local-dir FOLDER, then give FOLDER")
    } else {
        "expected one with config.json, tokenizer.json and model.safetensors, or a bundle".to_owned()
    };
    Err(ExportError::NoFolder { path: path.to_owned(), expected })
}

/// `owner/model`, as on the hub.
fn is_hub_id(text: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    text.split_once('/').is_some_and(|(owner, model)| plain(owner) && plain(model))
}

fn precision(text: &str) -> Result<Precision, String> {
    match text {
        "fp32" => Ok(Precision::Fp32),
        "fp16" => Ok(Precision::Fp16),
        "int8" => Ok(Precision::Int8),
        "q8" | "q4" => Err(format!("{text} is not built yet; choose fp32, fp16 or int8")),
        _ => Err("no such precision; choose fp32, fp16 or int8".into()),
    }
}

fn target(text: &str) -> Result<String, String> {
    match text {
        "onnx" => Ok(text.into()),
        "cpu" | "cuda" | "tensorrt" => {
            Err(format!("graphs fused for {text} are not built yet; onnx, which every runtime loads, is always there"))
        }
        _ => Err("no such target; onnx is always there".into()),
    }
}

/// Names travel in topics, headers and paths.
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

/// An error with its causes; a cause that the text before it already tells is left out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string) {
        if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
    }
    text
}

/// Prints a result; a reader that has gone is told in the exit code, as any file that cannot be written.
fn say(text: std::fmt::Arguments<'_>) -> Result<(), ExportError> {
    writeln!(io::stdout(), "{text}").map_err(ExportError::Output)
}

/// I/O is apart from input that is wrong: the former may pass when tried again.
fn exit_of(error: &ExportError) -> Exit {
    match error {
        ExportError::Output(_)
        | ExportError::NoFolder { .. }
        | ExportError::Checkpoint(CheckpointError::Io { .. })
        | ExportError::Arch(ArchError::Checkpoint(CheckpointError::Io { .. }))
        | ExportError::Onnx(OnnxError::Io { .. } | OnnxError::Weights(CheckpointError::Io { .. }))
        | ExportError::Bundle(BundleError::Io { .. })
        | ExportError::Verify(VerifyError::Io { .. } | VerifyError::Checkpoint(CheckpointError::Io { .. })) => Exit::Io,
        // A bundle of other sizes is not this checkpoint, and a changed one is not what was made of it: that is an answer, not a
        // mistake in asking.
        ExportError::Lossy(_) | ExportError::Verify(VerifyError::Geometry { .. }) => Exit::CheckFailed,
        ExportError::Verify(VerifyError::Bundle(VlmError::Bundle(error))) if error.is_damage() => Exit::CheckFailed,
        ExportError::Verify(VerifyError::Bundle(VlmError::Bundle(_))) => Exit::Io,
        ExportError::Verify(VerifyError::Bundle(_) | VerifyError::Model(_) | VerifyError::NoTrace) => Exit::Internal,
        _ => Exit::Usage,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_not_built_yet_is_told() {
        let refusal = |args: &[&str]| {
            let args = ["egret-export", "export", "in", "out"].iter().chain(args);
            Cli::try_parse_from(args).unwrap_err().to_string().lines().next().unwrap_or_default().to_owned()
        };
        insta::assert_snapshot!(refusal(&["--precision", "q4"]), @"error: invalid value 'q4' for '--precision <PRECISION>': q4 is not built yet; choose fp32, fp16 or int8");
        insta::assert_snapshot!(refusal(&["--precision", "fp8"]), @"error: invalid value 'fp8' for '--precision <PRECISION>': no such precision; choose fp32, fp16 or int8");
        insta::assert_snapshot!(refusal(&["--target", "cuda"]), @"error: invalid value 'cuda' for '--target <TARGETS>': graphs fused for cuda are not built yet; onnx, which every runtime loads, is always there");
        insta::assert_snapshot!(refusal(&["--name", "a/b"]), @"error: invalid value 'a/b' for '--name <NAME>': expected 1 to 128 letters, digits, '-', '_' or '.'");
    }

    #[test]
    fn hub_ids_are_told_from_paths() {
        for (text, is_id) in [
            ("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", true),
            ("models/a/b", false),
            ("/models/a", false),
            ("./model", false),
            ("../model", false),
            ("model", false),
        ] {
            assert_eq!(is_hub_id(text), is_id, "{text}");
        }
    }
}
