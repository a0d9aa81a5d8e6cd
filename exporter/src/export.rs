//! From a checkpoint folder to a bundle: load, build, quantize, write, verify, judge.

use std::io::Write;
use std::path::Path;

use firmware_config::manifest::{
    FORMAT, Graphs, Manifest, Part, Precision, QuantizedTensor, Source,
};

use crate::arch::ArchError;
use crate::arch::smolvlm::{self, SmolVlm};
use crate::bundle::{BundleWriteError, Draft, companions, graphs};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::graph::onnx::{self, OnnxError};
use crate::metadata::Metadata;
use crate::quantize::quantize;
use crate::report::{Verdict, VerificationReport};
use crate::verify::{VerifyError, VerifyOptions, verify};

/// What is asked of an export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// How weights are stored.
    pub precision: Precision,
    /// Model name; the checkpoint folder's name if none.
    pub name: Option<String>,
    /// Whether a bundle under the same name gives way.
    pub replace: bool,
}

/// Why an export failed. Nothing is left under the bundle's name then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint is no model of its architecture.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// A graph cannot be written.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// The bundle cannot be written.
    #[error(transparent)]
    Bundle(#[from] BundleWriteError),
    /// The bundle cannot be verified.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// The bundle is not close enough to its checkpoint.
    #[error(
        "{0}\nno bundle was made: it misses its quality gate; choose a finer precision, or give --allow-loss to keep it"
    )]
    Lossy(Box<VerificationReport>),
}

impl ExportError {
    /// Whether a file could not be read or written, rather than holding what cannot be used.
    pub(crate) fn is_io(&self) -> bool {
        match self {
            ExportError::Checkpoint(error) => error.is_io(),
            ExportError::Arch(error) => error.is_io(),
            ExportError::Onnx(error) => error.is_io(),
            ExportError::Bundle(error) => error.is_io(),
            ExportError::Verify(error) => error.is_io(),
            ExportError::Lossy(_) => false,
        }
    }
}

/// Turns a checkpoint folder into a bundle at `out`, unverified: whoever uses it unseen wants
/// [`export_verified`].
///
/// # Errors
/// When the checkpoint is not to be believed, or the bundle cannot be written; then `out` is as it
/// was.
pub fn export(source: &Path, out: &Path, options: &ExportOptions) -> Result<Manifest, ExportError> {
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
    options: &ExportOptions,
    verification: &VerifyOptions,
    allow_loss: bool,
) -> Result<(Manifest, VerificationReport), ExportError> {
    let (draft, manifest) = assemble(source, out, options)?;
    let report = verify(draft.dir(), source, verification)?;
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
    options: &ExportOptions,
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
    for (name, content) in companions::files(source, &facts)? {
        draft.add(name, &content)?;
    }
    let Metadata {
        image,
        video,
        prompt,
        ..
    } = metadata;
    let manifest = Manifest {
        format: FORMAT,
        name: options
            .name
            .clone()
            .unwrap_or_else(|| checkpoint.name().to_owned()),
        source: Source {
            name: checkpoint.name().to_owned(),
            sha256: checkpoint.sha256(),
        },
        architecture: smolvlm::NAME.into(),
        precision: options.precision,
        // Graphs for one runtime would lie in folders of their own; none are built yet.
        targets: Vec::new(),
        geometry: model.geometry,
        image,
        video,
        prompt,
        graphs: Graphs::from_fn(|part| graphs::path(part, options.precision)),
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
    let quantized = quantize(
        model.build(part),
        precision,
        checkpoint,
        smolvlm::takes_int8,
    )?;
    let path = graphs::path(part, precision);
    let mut file = draft.create(&path)?;
    let mut external = None;
    if onnx::needs_external_data(&quantized.graph) {
        let data_path = graphs::external_data_path(&path);
        let mut data = draft.create(&data_path)?;
        let sink: &mut dyn Write = &mut data;
        onnx::write(
            &quantized.graph,
            checkpoint,
            &mut file,
            Some((graphs::file_name(&data_path), sink)),
        )?;
        draft.close(&data_path, data)?;
        external = Some(graphs::file_name(&path).to_owned());
    } else {
        onnx::write(&quantized.graph, checkpoint, &mut file, None)?;
    }
    draft.close(&path, file)?;
    Ok((quantized.tensors, external))
}
