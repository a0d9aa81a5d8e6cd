//! `manifest.json`: what is in a bundle, where it came from, and how the model's inputs are made.
//!
//! The exporter writes it, the runtime reads it. Maps are ordered and numbers are exact, so the
//! same checkpoint gives the same bytes; the sha256 of those bytes is the bundle's identity.

mod rules;

pub use rules::LAYERS_MAX;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The newest manifest format this build reads and the one it writes.
pub const FORMAT: u32 = 1;

/// Why a text is not a manifest that this build can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Written by a newer exporter. Checked first, since every other difference may follow from it.
    #[error(
        "the bundle has manifest format {found}, and this build reads up to {FORMAT}; update egret, or export the bundle again"
    )]
    TooNew {
        /// The file's `format`.
        found: u64,
    },
    /// Not JSON, or not the JSON of a manifest.
    #[error("not a bundle manifest: {0}; export the bundle again")]
    Malformed(String),
    /// A value that no exporter writes.
    #[error("{field}: found {found}, expected {expected}; export the bundle again")]
    Invalid {
        /// Path of the field, such as `geometry.text.kv_heads`.
        field: String,
        /// What the file has there.
        found: String,
        /// What it should have.
        expected: String,
    },
}

impl Manifest {
    /// Reads and checks the bytes of a `manifest.json`.
    ///
    /// # Errors
    /// When they are not a manifest, or one of a newer format, or its values contradict each other.
    pub fn from_json(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u64,
        }
        let malformed = |error: serde_json::Error| ManifestError::Malformed(error.to_string());
        let Format { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format > u64::from(FORMAT) {
            return Err(ManifestError::TooNew { found: format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(malformed)?;
        rules::check(&manifest)?;
        Ok(manifest)
    }

    /// The bytes of a `manifest.json`: the same manifest gives the same text, which ends with a
    /// newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        let mut json = serde_json::to_string_pretty(self)
            .expect("a manifest is maps with text keys, lists and numbers");
        json.push('\n');
        json
    }
}

/// A bundle's table of contents.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Manifest format; a larger number than [`FORMAT`] is refused.
    pub format: u32,
    /// Model name: `model` in answers and events.
    pub name: String,
    /// The checkpoint it was made from.
    pub source: CheckpointSource,
    /// Model family; `smolvlm` so far.
    pub architecture: String,
    /// How weights are stored.
    pub precision: Precision,
    /// Graph folders present besides `onnx/`.
    pub targets: Vec<String>,
    /// Sizes of the model's parts.
    pub geometry: Geometry,
    /// How an image becomes `pixel_values`.
    pub image: ImageRules,
    /// How a clip becomes frames.
    pub video: VideoRules,
    /// Token ids the prompt needs, found by content in the tokenizer.
    pub prompt: PromptTokens,
    /// Bundle-relative paths of the three graphs.
    pub graphs: Graphs,
    /// How far each quantized matrix is from its source.
    pub quantization: Vec<QuantizedTensor>,
    /// Every other file of the bundle, by bundle-relative path with forward slashes.
    pub files: BTreeMap<String, FileEntry>,
    /// `egret-export`'s version.
    pub exporter: String,
}

/// The checkpoint a bundle was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSource {
    /// Last path component of the checkpoint folder, or the hub id.
    pub name: String,
    /// Hex sha256 over the checkpoint's weight files, in shard order.
    pub sha256: String,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As 32-bit floats.
    Fp32,
    /// Matrices as 16-bit floats, widened when loaded.
    Fp16,
    /// Per-channel 8-bit integers with dynamic 8-bit activations.
    Int8,
}

impl Precision {
    /// Every precision, finest first.
    pub const ALL: [Precision; 3] = [Precision::Fp32, Precision::Fp16, Precision::Int8];

    /// As it is written: `fp32`, `fp16` or `int8`.
    pub fn as_str(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Fp16 => "fp16",
            Precision::Int8 => "int8",
        }
    }
}

/// Sizes of the model's parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Geometry {
    /// Vision encoder.
    pub vision: VisionGeometry,
    /// Text decoder.
    pub text: TextGeometry,
    /// Pixel shuffle: patches per side that become one image token.
    pub scale_factor: usize,
}

/// Sizes of the vision encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionGeometry {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of a tile in pixels, T.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

/// Sizes of the text decoder; also the layout of its KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextGeometry {
    /// Width of the residual stream, H.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding and the head.
    pub vocab_size: usize,
    /// Longest sequence, prompt and answer together, in tokens.
    pub context_length: usize,
}

/// How an image becomes `pixel_values`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRules {
    /// Side of a tile in pixels, T.
    pub tile_size: usize,
    /// The longest edge an image is first resized to, in pixels, L.
    pub longest_edge: usize,
    /// Subtracted from each channel after scaling to 0..=1.
    pub mean: [f32; 3],
    /// Divides each channel after that.
    pub std: [f32; 3],
    /// Whether the checkpoint's own processor splits images into tiles by default.
    pub splits_by_default: bool,
    /// Image tokens for one tile, S.
    pub tokens_per_tile: usize,
}

/// How a clip becomes frames.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VideoRules {
    /// Frames taken for each second of the clip.
    pub frames_per_second: f64,
    /// Most frames taken.
    pub frames_max: usize,
}

/// Token ids the prompt needs, found by content in the tokenizer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptTokens {
    /// `<image>`: the placeholder that image features replace.
    pub image: u32,
    /// `<fake_token_around_image>`.
    pub fake_token_around_image: u32,
    /// `<global-img>`.
    pub global_img: u32,
    /// `<row_r_col_c>`, row-major from `<row_1_col_1>`, with the widest column; empty where the
    /// tokenizer has none (then images cannot be split).
    pub rows_cols: BTreeMap<String, u32>,
    /// Ids that end an answer.
    pub stop: Vec<u32>,
}

/// The tokenizer's file, in a bundle as in a checkpoint.
pub const TOKENIZER_FILE: &str = "tokenizer.json";
/// The chat template's file, in a bundle as in newer checkpoints.
pub const CHAT_TEMPLATE_FILE: &str = "chat_template.jinja";

/// A part of the model that is a graph of its own, by its published name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `pixel_values` to `image_features`.
    VisionEncoder,
    /// `input_ids` to `inputs_embeds`.
    EmbedTokens,
    /// `inputs_embeds` and past to `logits` and present.
    DecoderModelMerged,
}

impl Part {
    /// Every part, in the order they run.
    pub const ALL: [Part; 3] = [
        Part::VisionEncoder,
        Part::EmbedTokens,
        Part::DecoderModelMerged,
    ];

    /// The published name; also its field's in [`Graphs`].
    pub const fn as_str(self) -> &'static str {
        match self {
            Part::VisionEncoder => "vision_encoder",
            Part::EmbedTokens => "embed_tokens",
            Part::DecoderModelMerged => "decoder_model_merged",
        }
    }
}

/// One value for each graph of a bundle; in a manifest, its bundle-relative path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Graphs<T = String> {
    /// Of [`Part::VisionEncoder`].
    pub vision_encoder: T,
    /// Of [`Part::EmbedTokens`].
    pub embed_tokens: T,
    /// Of [`Part::DecoderModelMerged`].
    pub decoder_model_merged: T,
}

impl<T> Graphs<T> {
    /// Makes the value of each part, in the order they run.
    pub fn from_fn(mut make: impl FnMut(Part) -> T) -> Self {
        Graphs {
            vision_encoder: make(Part::VisionEncoder),
            embed_tokens: make(Part::EmbedTokens),
            decoder_model_merged: make(Part::DecoderModelMerged),
        }
    }

    /// Makes another value of each, in the order they run.
    ///
    /// # Errors
    /// The first that `make` returns.
    pub fn try_map<U, E>(&self, mut make: impl FnMut(&T) -> Result<U, E>) -> Result<Graphs<U>, E> {
        Ok(Graphs {
            vision_encoder: make(&self.vision_encoder)?,
            embed_tokens: make(&self.embed_tokens)?,
            decoder_model_merged: make(&self.decoder_model_merged)?,
        })
    }

    /// The value of one part.
    pub fn get(&self, part: Part) -> &T {
        match part {
            Part::VisionEncoder => &self.vision_encoder,
            Part::EmbedTokens => &self.embed_tokens,
            Part::DecoderModelMerged => &self.decoder_model_merged,
        }
    }

    /// Every part with its value, in the order they run.
    pub fn iter(&self) -> impl Iterator<Item = (Part, &T)> {
        Part::ALL.into_iter().map(|part| (part, self.get(part)))
    }
}

/// How far one quantized matrix is from its source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizedTensor {
    /// Tensor name in the checkpoint.
    pub name: String,
    /// Largest absolute difference.
    pub error_max: f32,
    /// Root mean square difference over root mean square value.
    pub error_relative: f32,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length in bytes.
    pub bytes: u64,
    /// Lower-case hex sha256 of the content.
    pub sha256: String,
}

#[cfg(test)]
mod tests;
