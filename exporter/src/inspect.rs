//! What a checkpoint or a bundle holds: geometry, sizes, precision, and each graph's interface and
//! operators.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use firmware_config::manifest::{Geometry, ImageRules, Precision, VideoRules};
use serde::Serialize;
use vlm::{Bundle, BundleError, MANIFEST};

use crate::arch::ArchError;
use crate::arch::smolvlm::{self, SmolVlm};
use crate::bundle::graphs;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::graph::ValueInfo;
use crate::graph::onnx::{GraphFile, OnnxError};
use crate::metadata::Metadata;
use crate::units::megabytes;

/// Why a folder cannot be inspected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InspectError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint is not a model of its architecture.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// The bundle cannot be opened.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A graph file of the bundle cannot be read.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
}

impl InspectError {
    /// Whether a file could not be read, rather than holding what cannot be used.
    pub(crate) fn is_io(&self) -> bool {
        match self {
            InspectError::Checkpoint(error) => error.is_io(),
            InspectError::Arch(error) => error.is_io(),
            InspectError::Onnx(error) => error.is_io(),
            InspectError::Bundle(_) => false,
        }
    }
}

/// A summary of a checkpoint or a bundle. Its JSON is one object whose `kind` says which.
#[derive(Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// A checkpoint folder.
    Checkpoint(CheckpointSummary),
    /// A bundle folder.
    Bundle(BundleSummary),
}

/// A summary of a checkpoint.
#[derive(Debug, Serialize)]
pub struct CheckpointSummary {
    /// Last path component of the folder.
    pub name: String,
    /// Model family.
    pub architecture: String,
    /// Sizes of the model's parts.
    pub geometry: Geometry,
    /// Image tokens of one tile, S.
    pub tokens_per_tile: usize,
    /// Whether the head is the embedding.
    pub tied_head: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the variance in the vision encoder's LayerNorm.
    pub layer_norm_eps: f32,
    /// Added to the mean square in the text decoder's RMSNorm.
    pub rms_norm_eps: f32,
    /// How its inputs are prepared; `None` where an export would refuse it.
    pub feeding: Option<Feeding>,
    /// Why an export would refuse it.
    pub refusal: Option<String>,
    /// Number of tensors.
    pub tensors: usize,
    /// Number of values in them.
    pub parameters: usize,
    /// Types they are stored in.
    pub dtypes: Vec<String>,
    /// Size of the weight files.
    pub bytes: u64,
}

/// How the inputs of a checkpoint's model are prepared, and where that comes from.
#[derive(Debug, Serialize)]
pub struct Feeding {
    /// How an image becomes `pixel_values`.
    pub image: ImageRules,
    /// File of `image`.
    pub image_from: String,
    /// How a clip becomes frames.
    pub video: VideoRules,
    /// File of `video`.
    pub video_from: String,
    /// File of the chat template.
    pub chat_template_from: String,
    /// Tokens that end an answer.
    pub stop: Vec<String>,
    /// Where an export differs from transformers.
    pub warnings: Vec<String>,
}

/// A summary of a bundle.
#[derive(Debug, Serialize)]
pub struct BundleSummary {
    /// Model name.
    pub name: String,
    /// The bundle's identity: sha256 of its manifest.
    pub sha256: String,
    /// Model family.
    pub architecture: String,
    /// How weights are stored.
    pub precision: Precision,
    /// Sizes of the model's parts.
    pub geometry: Geometry,
    /// Image tokens of one tile, S.
    pub tokens_per_tile: usize,
    /// The checkpoint it was made from.
    pub source: String,
    /// Number of quantized matrices.
    pub quantized: usize,
    /// The worst of them: root mean square error over root mean square value.
    pub quantization_error_relative_max: f32,
    /// Size of all listed files.
    pub bytes: u64,
    /// The graphs, in the order they run.
    pub graphs: Vec<GraphSummary>,
}

/// A summary of a graph.
#[derive(Debug, Serialize)]
pub struct GraphSummary {
    /// Graph name.
    pub name: String,
    /// Bundle-relative path.
    pub path: String,
    /// Size of its files, external data included.
    pub bytes: u64,
    /// Operator set of the default domain.
    pub opset: i64,
    /// Tensors that a caller passes in.
    pub inputs: Vec<GraphEdge>,
    /// Tensors that a caller gets back.
    pub outputs: Vec<GraphEdge>,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// Number of constants.
    pub constants: usize,
}

/// A tensor at the edge of a graph.
#[derive(Debug, Serialize)]
pub struct GraphEdge {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub element: &'static str,
    /// Dimensions, numbers or names.
    pub dims: Vec<String>,
}

/// Inspects a folder: a bundle where there is a manifest, else a checkpoint.
///
/// # Errors
/// When it is neither, or is damaged.
pub fn inspect(dir: &Path) -> Result<Inspection, InspectError> {
    if dir.join(MANIFEST).exists() {
        bundle(dir).map(Inspection::Bundle)
    } else {
        checkpoint(dir).map(Inspection::Checkpoint)
    }
}

fn checkpoint(dir: &Path) -> Result<CheckpointSummary, InspectError> {
    let checkpoint = Checkpoint::open(dir)?;
    let model = SmolVlm::new(&checkpoint)?;
    let (feeding, refusal) = match Metadata::read(&checkpoint, &model) {
        Ok(metadata) => (Some(feeding(metadata)), None),
        // It can be inspected all the same.
        Err(error) => (None, Some(error.to_string())),
    };
    let (layer_norm_eps, rms_norm_eps) = model.epsilons();
    Ok(CheckpointSummary {
        name: checkpoint.name().to_owned(),
        architecture: smolvlm::NAME.into(),
        geometry: model.geometry,
        tokens_per_tile: model.tokens_per_tile,
        tied_head: model.has_tied_head(),
        rope_theta: model.rope_theta(),
        layer_norm_eps,
        rms_norm_eps,
        feeding,
        refusal,
        tensors: checkpoint.tensor_count(),
        parameters: checkpoint.parameter_count(),
        dtypes: checkpoint.dtypes(),
        bytes: checkpoint.bytes(),
    })
}

fn feeding(metadata: Metadata) -> Feeding {
    Feeding {
        image: metadata.image,
        image_from: metadata.processor.images.origin(),
        video: metadata.video,
        video_from: metadata.processor.clips.origin(),
        chat_template_from: metadata.template.origin(),
        stop: metadata.stops,
        warnings: metadata.warnings,
    }
}

fn bundle(dir: &Path) -> Result<BundleSummary, InspectError> {
    let bundle = Bundle::open(dir)?;
    let manifest = bundle.manifest();
    let mut graphs = Vec::new();
    for (_, path) in manifest.graphs.iter() {
        let bytes = graphs::bytes(manifest, path);
        graphs.push(graph(GraphFile::open(&bundle.path(path))?, path, bytes));
    }
    Ok(BundleSummary {
        name: manifest.name.clone(),
        sha256: bundle.sha256().to_owned(),
        architecture: manifest.architecture.clone(),
        precision: manifest.precision,
        geometry: manifest.geometry,
        tokens_per_tile: manifest.image.tokens_per_tile,
        source: manifest.source.name.clone(),
        quantized: manifest.quantization.len(),
        quantization_error_relative_max: manifest
            .quantization
            .iter()
            .map(|tensor| tensor.error_relative)
            .fold(0.0, f32::max),
        bytes: manifest.files.values().map(|entry| entry.bytes).sum(),
        graphs,
    })
}

fn graph(file: GraphFile, path: &str, bytes: u64) -> GraphSummary {
    let edges = |values: &[ValueInfo]| values.iter().map(GraphEdge::from).collect();
    GraphSummary {
        path: path.into(),
        bytes,
        opset: file.opset,
        inputs: edges(&file.inputs),
        outputs: edges(&file.outputs),
        constants: file.constants().count(),
        operators: file.operators,
        name: file.name,
    }
}

impl From<&ValueInfo> for GraphEdge {
    fn from(value: &ValueInfo) -> Self {
        GraphEdge {
            name: value.name.clone(),
            element: value.element.as_str(),
            dims: value.dims.iter().map(ToString::to_string).collect(),
        }
    }
}

// --- for people

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inspection::Checkpoint(checkpoint) => checkpoint.fmt(f),
            Inspection::Bundle(bundle) => bundle.fmt(f),
        }
    }
}

impl fmt::Display for CheckpointSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "checkpoint {} ({})", self.name, self.architecture)?;
        write_geometry(f, &self.geometry, self.tokens_per_tile)?;
        let head = if self.tied_head { "tied" } else { "its own" };
        writeln!(f, "  head     {head}")?;
        let Self {
            rope_theta,
            layer_norm_eps,
            rms_norm_eps,
            ..
        } = self;
        writeln!(
            f,
            "  theta    {rope_theta}, eps {rms_norm_eps:e} (text), {layer_norm_eps:e} (vision)"
        )?;
        if let Some(feeding) = &self.feeding {
            feeding.fmt(f)?;
        }
        let (parameters, dtypes) = (self.parameters as f64 / 1e6, self.dtypes.join(", "));
        write!(
            f,
            "  tensors  {}, {parameters:.1} M values, {dtypes}, {}",
            self.tensors,
            megabytes(self.bytes)
        )?;
        match &self.refusal {
            Some(refusal) => write!(f, "\nan export would refuse it: {refusal}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Feeding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageRules {
            tile_size,
            longest_edge,
            mean,
            std,
            splits_by_default,
            ..
        } = self.image;
        let split = if splits_by_default { "split" } else { "whole" };
        writeln!(
            f,
            "  images   {split}, longest edge {longest_edge} px, tiles of {tile_size} px, mean {mean:?}, std {std:?} ({})",
            self.image_from
        )?;
        let VideoRules {
            frames_per_second,
            frames_max,
        } = self.video;
        writeln!(
            f,
            "  clips    frames at {} per second, at most {frames_max} ({})",
            frames_per_second, self.video_from
        )?;
        writeln!(f, "  template {}", self.chat_template_from)?;
        writeln!(f, "  stop     {}", self.stop.join(", "))?;
        self.warnings
            .iter()
            .try_for_each(|warning| writeln!(f, "  warning  {warning}"))
    }
}

/// A count with its noun, in the plural where it is not 1.
fn counted(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

impl fmt::Display for BundleSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let precision = self.precision.as_str();
        writeln!(
            f,
            "bundle {} ({}, {precision} from {})",
            self.name, self.architecture, self.source
        )?;
        write_geometry(f, &self.geometry, self.tokens_per_tile)?;
        let worst = self.quantization_error_relative_max;
        if self.quantized > 0 {
            writeln!(
                f,
                "  quantized matrices  {}, largest relative error {worst:.1e}",
                self.quantized
            )?;
        }
        writeln!(
            f,
            "  files    {}, identity {}",
            megabytes(self.bytes),
            self.sha256
        )?;
        self.graphs.iter().try_for_each(|graph| graph.fmt(f))
    }
}

impl fmt::Display for GraphSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{}  {}, opset {}, {} constants",
            self.path,
            megabytes(self.bytes),
            self.opset,
            self.constants
        )?;
        // A decoder has two of these for every layer; those of the first are enough.
        let shown = |edge: &&GraphEdge| {
            !(edge.name.starts_with("past_key_values.") || edge.name.starts_with("present."))
                || edge.name.contains(".0.")
        };
        for (arrow, edges) in [("in ", &self.inputs), ("out", &self.outputs)] {
            for edge in edges.iter().filter(shown) {
                writeln!(
                    f,
                    "  {arrow}  {} {} [{}]",
                    edge.name,
                    edge.element,
                    edge.dims.join(", ")
                )?;
            }
        }
        let operators: Vec<String> = self
            .operators
            .iter()
            .map(|(op, count)| format!("{op} {count}"))
            .collect();
        writeln!(f, "  ops  {}", operators.join(", "))
    }
}

fn write_geometry(
    f: &mut fmt::Formatter<'_>,
    geometry: &Geometry,
    tokens_per_tile: usize,
) -> fmt::Result {
    let (vision, text) = (&geometry.vision, &geometry.text);
    let (layers, heads) = (
        counted(vision.layers, "layer"),
        counted(vision.heads, "head"),
    );
    writeln!(f, "  vision   {layers} of {}, {heads}", vision.hidden_size)?;
    let tokens = counted(tokens_per_tile, "token");
    writeln!(
        f,
        "  tile     {} px, patches of {} px, {tokens}",
        vision.image_size, vision.patch_size
    )?;
    let (layers, heads) = (counted(text.layers, "layer"), counted(text.heads, "head"));
    writeln!(
        f,
        "  text     {layers} of {}, {heads} of {} over {}",
        text.hidden_size, text.head_dim, text.kv_heads
    )?;
    writeln!(
        f,
        "  context  {} tokens, vocabulary of {}",
        text.context_length, text.vocab_size
    )
}
