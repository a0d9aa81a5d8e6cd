//! A SmolVLM2 checkpoint in, a verified bundle of quantized ONNX graphs out.
//!
//! | stage | call | output |
//! |---|---|---|
//! | fetch | [`source::folder`] | a checkpoint folder; a [`hub`]'s model lies in its cache then |
//! | load | [`Checkpoint::open`](checkpoint::Checkpoint::open) | config, names, dtypes, shapes, mapped bytes |
//! | build | [`SmolVlm::new`](arch::smolvlm::SmolVlm::new), [`build`](arch::smolvlm::SmolVlm::build) | a [`Graph`](graph::Graph) for each [`Part`] |
//! | quantize | [`quantize::quantize`] | the graph in its precision, and each matrix's error |
//! | write | [`graph::onnx::write`] into a [`Draft`] | ONNX files, companions, `manifest.json` with every sha256 |
//! | verify | [`verify::verify`] | a [`VerificationReport`]: the bundle against an independent [`reference`](mod@reference) |
//! | judge | [`VerificationReport::verdict`] | exit code 0 or 1; `report.json` is kept in the bundle |
//!
//! Where a tensor name becomes an initializer: [`arch::smolvlm`] and its two files name it,
//! [`graph::builder`] makes it one. What ONNX looks like on disk: [`graph::onnx`], and nowhere
//! else.
#![forbid(unsafe_code)]

pub mod arch;
pub mod bundle;
pub mod checkpoint;
pub mod cli;
pub mod graph;
pub mod hub;
pub mod inspect;
mod interrupt;
pub mod quantize;
pub mod reference;
pub mod report;
pub mod source;
pub mod verify;

use std::io::Write;
use std::path::{Path, PathBuf};

use firmware_config::manifest::{
    CheckpointSource, FORMAT, Graphs, Manifest, Precision, QuantizedTensor,
};

use arch::smolvlm::{self, SmolVlm};
use arch::{ArchError, Part};
use bundle::metadata::Metadata;
use bundle::{BundleError, Draft, companions};
use checkpoint::{Checkpoint, CheckpointError};
use graph::onnx::{self, OnnxError};
use hub::HubError;
use report::{Verdict, VerificationReport};
use verify::VerifyError;

/// What is asked of an export.
#[derive(Debug, Clone)]
pub struct Options {
    /// How weights are stored.
    pub precision: Precision,
    /// Graph folders besides `onnx/`.
    pub targets: Vec<String>,
    /// Model name; the checkpoint folder's name if none.
    pub name: Option<String>,
    /// Whether a bundle under the same name gives way.
    pub replace: bool,
}

/// Why an export failed. Nothing is left under the bundle's name then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The result cannot be told.
    #[error("standard output cannot be written")]
    Output(#[source] std::io::Error),
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint cannot be fetched.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The checkpoint is no model of its architecture.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A folder that is not there.
    #[error("{path}: no such folder; {expected}", path = .path.display())]
    NoFolder {
        /// As given.
        path: PathBuf,
        /// What it should be, and how to get it.
        expected: String,
    },
    /// A file beside the weights says what cannot be.
    #[error("{0}")]
    Source(String),
    /// A graph cannot be written.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The bundle cannot be written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The bundle cannot be verified.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The bundle is not close enough to its checkpoint.
    #[error(
        "{0}\nno bundle was made: it misses its quality gate; choose a finer precision, or give --allow-loss to keep it"
    )]
    Lossy(Box<VerificationReport>),
}

/// Turns a checkpoint folder into a bundle at `out`, unverified: whoever uses it unseen wants
/// [`export_verified`].
///
/// # Errors
/// When the checkpoint is not to be believed, or the bundle cannot be written; then `out` is as it
/// was.
pub fn export(source: &Path, out: &Path, options: &Options) -> Result<Manifest, ExportError> {
    let (draft, manifest) = assemble(source, out, options)?;
    draft.publish()?;
    Ok(manifest)
}

/// Turns a checkpoint folder into a bundle at `out`, held to an independent reference before it
/// gets its name.
///
/// # Errors
/// As [`export`], and when the bundle cannot be verified or, unless `allow_loss`, misses a quality
/// gate.
pub fn export_verified(
    source: &Path,
    out: &Path,
    options: &Options,
    verification: &verify::Options,
    allow_loss: bool,
) -> Result<(Manifest, VerificationReport), ExportError> {
    let (draft, manifest) = assemble(source, out, options)?;
    let report = verify::verify(draft.dir(), source, verification)?;
    if report.verdict() == Verdict::Fail && !allow_loss {
        return Err(ExportError::Lossy(Box::new(report)));
    }
    draft.attach("report.json", report.to_json().as_bytes())?;
    draft.publish()?;
    Ok((manifest, report))
}

/// Load, build, quantize, write: everything up to a whole bundle without its name.
fn assemble(
    source: &Path,
    out: &Path,
    options: &Options,
) -> Result<(Draft, Manifest), ExportError> {
    // Load and build: whatever is wrong with the source is told before anything is written.
    let checkpoint = Checkpoint::open(source)?;
    let model = SmolVlm::new(&checkpoint)?;
    let metadata = Metadata::read(&checkpoint, &model)?;
    metadata
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));

    // Quantize and write, one graph after the other, so that one at a time is in memory.
    let mut draft = Draft::new(out, options.replace)?;
    let mut quantization = Vec::new();
    let mut external_data = Vec::new();
    for part in Part::ALL {
        let (losses, external) =
            write_graph(&mut draft, &model, part, options.precision, &checkpoint)?;
        quantization.extend(losses);
        external_data.extend(external);
    }
    let facts = companions::Facts {
        geometry: &model.geometry,
        metadata: &metadata,
        precision: options.precision,
        external_data: &external_data,
    };
    companions::write(&mut draft, source, &facts)?;
    let Metadata {
        image,
        video,
        prompt,
        ..
    } = metadata;
    let path = |part| graph_path(part, options.precision);
    let manifest = Manifest {
        format: FORMAT,
        name: options
            .name
            .clone()
            .unwrap_or_else(|| checkpoint.name().to_owned()),
        source: CheckpointSource {
            name: checkpoint.name().to_owned(),
            sha256: checkpoint.sha256(),
        },
        architecture: smolvlm::NAME.into(),
        precision: options.precision,
        targets: options.targets.clone(),
        geometry: model.geometry,
        image,
        video,
        prompt,
        graphs: Graphs {
            vision_encoder: path(Part::VisionEncoder),
            embed_tokens: path(Part::EmbedTokens),
            decoder_model_merged: path(Part::DecoderModelMerged),
        },
        quantization,
        files: draft.files().clone(),
        exporter: env!("CARGO_PKG_VERSION").into(),
    };
    draft.seal(&manifest)?;
    Ok((draft, manifest))
}

/// Builds, quantizes and writes one graph. Returns what its matrices lost, and its file's name if
/// the weights are in a second one.
fn write_graph(
    draft: &mut Draft,
    model: &SmolVlm,
    part: Part,
    precision: Precision,
    checkpoint: &Checkpoint,
) -> Result<(Vec<QuantizedTensor>, Option<String>), ExportError> {
    let quantized = quantize::quantize(
        model.build(part),
        precision,
        checkpoint,
        smolvlm::takes_int8,
    )?;
    let path = graph_path(part, precision);
    let mut file = draft.create(&path)?;
    let mut external = None;
    if onnx::needs_external_data(&quantized.graph) {
        let data_path = format!("{path}_data");
        let name = data_path.trim_start_matches("onnx/").to_owned();
        let mut data = draft.create(&data_path)?;
        let sink: &mut dyn Write = &mut data;
        onnx::write(&quantized.graph, checkpoint, &mut file, Some((&name, sink)))?;
        draft.close(&data_path, data)?;
        external = Some(path.trim_start_matches("onnx/").to_owned());
    } else {
        onnx::write(&quantized.graph, checkpoint, &mut file, None)?;
    }
    draft.close(&path, file)?;
    Ok((quantized.tensors, external))
}

/// Bundle-relative path of a graph, under its published name and suffix.
pub fn graph_path(part: Part, precision: Precision) -> String {
    let suffix = match precision {
        Precision::Fp32 => "",
        Precision::Fp16 => "_fp16",
        Precision::Int8 => "_int8",
    };
    format!("onnx/{}{suffix}.onnx", part.as_str())
}
