//! From a checkpoint folder to a bundle: load, build, quantize, write, verify, judge.

use std::io::Write;
use std::path::Path;

use firmware_config::manifest::{
    CheckpointSource, FORMAT, Graphs, Manifest, Part, Precision, QuantizedTensor,
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

/// How a checkpoint is exported.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// How weights are stored.
    pub precision: Precision,
    /// Model name; the checkpoint folder's name if none.
    pub name: Option<String>,
    /// Whether a bundle of the same name is replaced.
    pub replace: bool,
}

/// Why an export failed. Then nothing is left under the bundle's name.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint is not a model of its architecture.
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
        "{0}\nno bundle was made, since a quality gate failed; choose a finer precision, or give --allow-loss to keep the bundle"
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

/// Turns a checkpoint folder into a bundle at `out` without verifying it; see [`export_verified`].
///
/// # Errors
/// When the checkpoint cannot be used or the bundle cannot be written; `out` is then unchanged.
pub fn export(source: &Path, out: &Path, options: &ExportOptions) -> Result<Manifest, ExportError> {
    let (draft, manifest) = assemble(source, out, options)?;
    draft.publish()?;
    Ok(manifest)
}

/// Turns a checkpoint folder into a bundle at `out`, compared with an independent reference before
/// it gets its name.
///
/// # Errors
/// As [`export`], and when the bundle cannot be verified or, unless `allow_loss`, fails a quality
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

/// Load, build, quantize, write: everything up to a complete bundle under a temporary name.
fn assemble(
    source: &Path,
    out: &Path,
    options: &ExportOptions,
) -> Result<(Draft, Manifest), ExportError> {
    // Load and build: errors in the source are reported before anything is written.
    let checkpoint = Checkpoint::open(source)?;
    let model = SmolVlm::new(&checkpoint)?;
    let metadata = Metadata::read(&checkpoint, &model)?;
    metadata
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));

    // Quantize and write: one graph after the other, so that one at a time is in memory.
    let mut draft = Draft::new(out, options.replace)?;
    let mut quantization = Vec::new();
    let mut external_data = Vec::new();
    for part in Part::ALL {
        let (errors, external) =
            write_graph(&mut draft, &model, part, options.precision, &checkpoint)?;
        quantization.extend(errors);
        external_data.extend(external);
    }
    // Write the companion files.
    let inputs = companions::CompanionInputs {
        geometry: &model.geometry,
        metadata: &metadata,
        precision: options.precision,
        external_data: &external_data,
    };
    for (name, content) in companions::files(source, &inputs)? {
        draft.add(name, &content)?;
    }
    // Write the manifest, which lists them all.
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
        source: CheckpointSource {
            name: checkpoint.name().to_owned(),
            sha256: checkpoint.sha256(),
        },
        architecture: smolvlm::NAME.into(),
        precision: options.precision,
        // Graphs fused for one runtime would have folders of their own; none are built yet.
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

/// Builds, quantizes and writes one graph. Returns the errors of its matrices, and its file name if
/// it has external data.
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
