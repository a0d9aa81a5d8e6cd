//! SmolVLM and SmolVLM2: SigLIP vision tower, pixel-shuffle connector, Llama text decoder.
//!
//! Layer counts and widths are read off the tensors, since released configs leave some out; heads,
//! epsilons and theta are not in them and come from the config. Every shape is checked before a
//! graph is built.

mod positions;
mod text;
mod vision;

use std::collections::BTreeMap;

use firmware_config::manifest::{Geometry, LAYERS_MAX, Part, TextGeometry, VisionGeometry};

use super::ArchError;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::graph::Graph;

/// The name of this family in a manifest.
pub const NAME: &str = "smolvlm";

const PATCH_EMBEDDING: &str = "model.vision_model.embeddings.patch_embedding";
const POSITION_EMBEDDING: &str = "model.vision_model.embeddings.position_embedding.weight";
const VISION_LAYERS: &str = "model.vision_model.encoder.layers";
const POST_LAYERNORM: &str = "model.vision_model.post_layernorm";
const PROJECTION: &str = "model.connector.modality_projection.proj.weight";
const EMBEDDING: &str = "model.text_model.embed_tokens.weight";
const TEXT_LAYERS: &str = "model.text_model.layers";
const TEXT_NORM: &str = "model.text_model.norm.weight";
const HEAD: &str = "lm_head.weight";

/// A checkpoint read as this family: everything its graphs are built from except the weights.
#[derive(Debug, Clone, PartialEq)]
pub struct SmolVlm {
    /// Sizes that a runtime needs as well.
    pub geometry: Geometry,
    /// Image tokens of one tile, S.
    pub tokens_per_tile: usize,
    /// Patches per side of a tile.
    grid: usize,
    vision_intermediate: usize,
    text_intermediate: usize,
    layer_norm_eps: f32,
    rms_norm_eps: f32,
    rope_theta: f64,
    /// The tensor that is the head: its own, or the embedding.
    head: &'static str,
}

impl SmolVlm {
    /// Reads the geometry off a checkpoint and checks every tensor's shape against it.
    ///
    /// # Errors
    /// When a tensor is missing or its shape does not fit the others, or the config contradicts
    /// them.
    pub fn new(checkpoint: &Checkpoint) -> Result<Self, ArchError> {
        // A model saved without its head has no tensor under the expected names.
        let shapes = Shapes {
            checkpoint,
            dir: checkpoint.dir().display().to_string(),
        };
        let without_prefix = format!("{PATCH_EMBEDDING}.weight")
            .trim_start_matches("model.")
            .to_owned();
        if checkpoint.shape(&without_prefix).is_some() {
            return Err(ArchError::Headless {
                dir: shapes.dir,
                tensor: without_prefix,
            });
        }
        // Sizes from tensors and config.
        let (vision, grid, vision_intermediate) = vision_geometry(&shapes)?;
        let (text, text_intermediate, head) = text_geometry(&shapes)?;
        let scale_factor = scale_factor(&shapes, &vision, grid, text.hidden_size)?;
        let model = SmolVlm {
            geometry: Geometry {
                vision,
                text,
                scale_factor,
            },
            tokens_per_tile: (grid / scale_factor).pow(2),
            grid,
            vision_intermediate,
            text_intermediate,
            layer_norm_eps: checkpoint.config.vision.layer_norm_eps,
            rms_norm_eps: checkpoint.config.text.rms_norm_eps,
            rope_theta: checkpoint.config.text.rope_theta,
            head,
        };
        // Every tensor of the graphs is there with its shape, and no other.
        let tensors = model.tensors();
        for (tensor, dims) in &tensors {
            shapes.expect(tensor, dims)?;
        }
        let unused: Vec<&str> = checkpoint
            .names()
            .filter(|name| !tensors.contains_key(*name) && !is_buffer(name))
            .collect();
        if !unused.is_empty() {
            return Err(ArchError::Unused {
                dir: shapes.dir,
                tensors: some_of(&unused),
            });
        }
        Ok(model)
    }

    /// Base of the rotary frequencies.
    pub fn rope_theta(&self) -> f64 {
        self.rope_theta
    }

    /// Added to the variance in the vision encoder's LayerNorm, and to the mean square in the text
    /// decoder's RMSNorm.
    pub fn epsilons(&self) -> (f32, f32) {
        (self.layer_norm_eps, self.rms_norm_eps)
    }

    /// Positions along a tile's side that transformers rounds to their neighbours; 0 on the
    /// published grids.
    pub fn positions_moved_by_transformers(&self) -> usize {
        positions::moved_by_transformers(self.grid)
    }

    /// Whether the head is the embedding.
    pub fn has_tied_head(&self) -> bool {
        self.head == EMBEDDING
    }

    /// The graph of one part.
    pub fn build(&self, part: Part) -> Graph {
        match part {
            Part::VisionEncoder => vision::encoder(self),
            Part::EmbedTokens => text::embedding(self),
            Part::DecoderModelMerged => text::decoder(self),
        }
    }

    /// Every tensor that the graphs read, with its shape in the checkpoint.
    pub fn tensors(&self) -> BTreeMap<String, Vec<usize>> {
        let mut model = self.clone();
        // The context only sizes the rotary tables, which are no tensors: the shortest will do.
        model.geometry.text.context_length = 1;
        let mut tensors = BTreeMap::new();
        for part in Part::ALL {
            let graph = model.build(part);
            tensors.extend(
                graph
                    .tensors()
                    .map(|(tensor, shape)| (tensor.to_owned(), shape)),
            );
        }
        tensors
    }
}

/// Whether a tensor is a buffer that modules recompute, and that some versions of transformers
/// saved although it carries no information.
fn is_buffer(tensor: &str) -> bool {
    tensor.ends_with(".rotary_emb.inv_freq") || tensor.ends_with(".embeddings.position_ids")
}

/// The first few of a list, and how many more there are.
fn some_of(names: &[&str]) -> String {
    const SHOWN: usize = 3;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        format!("{shown} and {} more", names.len() - SHOWN)
    } else {
        shown
    }
}

/// Whether a linear takes 8-bit weights and dynamic 8-bit activations well: all of both towers do
/// except `down_proj`, whose inputs have outliers; the connector and the head do not, since every
/// output depends on them. Asked of linears only.
pub fn takes_int8(tensor: &str) -> bool {
    let is_of_tower = [VISION_LAYERS, TEXT_LAYERS]
        .iter()
        .any(|layers| tensor.starts_with(layers));
    is_of_tower && !tensor.ends_with(".down_proj.weight")
}

/// Sizes of the vision tower, its grid and the width of its MLP.
fn vision_geometry(shapes: &Shapes) -> Result<(VisionGeometry, usize, usize), ArchError> {
    let config = &shapes.checkpoint.config.vision;
    let [hidden_size, _, patch_size, _] = shapes.of(
        &format!("{PATCH_EMBEDDING}.weight"),
        "[width, 3, patch, patch]",
    )?;
    let [patches, _] = shapes.of(POSITION_EMBEDDING, "[patches, width]")?;
    let [intermediate, _] = shapes.of(
        &format!("{VISION_LAYERS}.0.mlp.fc1.weight"),
        "[intermediate, width]",
    )?;
    let grid = config.image_size.checked_div(patch_size).unwrap_or(0);
    if grid == 0 || grid * grid != patches {
        let tensors = format!("{patches} positions at patches of {patch_size} are not one tile");
        return Err(shapes.contradiction("vision_config.image_size", config.image_size, tensors));
    }
    if !hidden_size.is_multiple_of(config.heads) {
        return Err(shapes.contradiction(
            "vision_config.num_attention_heads",
            config.heads,
            format!("the width is {hidden_size}"),
        ));
    }
    // Sizes that the config declares as well must agree.
    let layers = shapes.layers(VISION_LAYERS);
    let declared = config.declared;
    shapes.agree("vision_config.num_hidden_layers", declared.layers, layers)?;
    shapes.agree(
        "vision_config.hidden_size",
        declared.hidden_size,
        hidden_size,
    )?;
    shapes.agree(
        "vision_config.intermediate_size",
        declared.intermediate_size,
        intermediate,
    )?;
    shapes.agree("vision_config.patch_size", declared.patch_size, patch_size)?;
    let geometry = VisionGeometry {
        hidden_size,
        layers,
        heads: config.heads,
        image_size: config.image_size,
        patch_size,
    };
    Ok((geometry, grid, intermediate))
}

/// Sizes of the text decoder, the width of its MLP, and the tensor that is its head.
fn text_geometry(shapes: &Shapes) -> Result<(TextGeometry, usize, &'static str), ArchError> {
    let config = &shapes.checkpoint.config.text;
    // Sizes that the tensors show.
    let [vocab_size, hidden_size] = shapes.of(EMBEDDING, "[vocabulary, width]")?;
    let [query_width, _] = shapes.of(
        &format!("{TEXT_LAYERS}.0.self_attn.q_proj.weight"),
        "[heads * head_dim, width]",
    )?;
    let [kv_width, _] = shapes.of(
        &format!("{TEXT_LAYERS}.0.self_attn.k_proj.weight"),
        "[kv heads * head_dim, width]",
    )?;
    let [intermediate, _] = shapes.of(
        &format!("{TEXT_LAYERS}.0.mlp.gate_proj.weight"),
        "[intermediate, width]",
    )?;
    // Heads, which only the config has, must divide those sizes.
    let head_dim = config.head_dim.unwrap_or(hidden_size / config.heads);
    if head_dim * config.heads != query_width || !head_dim.is_multiple_of(2) {
        let tensors = format!("queries are {query_width} wide at heads of {head_dim}");
        return Err(shapes.contradiction("text_config.num_attention_heads", config.heads, tensors));
    }
    let kv_heads = config.kv_heads.unwrap_or(config.heads);
    if kv_heads * head_dim != kv_width || !config.heads.is_multiple_of(kv_heads) {
        let tensors = format!(
            "keys are {kv_width} wide at heads of {head_dim}, for {} query heads",
            config.heads
        );
        return Err(shapes.contradiction("text_config.num_key_value_heads", kv_heads, tensors));
    }
    // The head: stored, or tied to the embedding.
    let stored = shapes.checkpoint.shape(HEAD).is_some();
    let head = match (stored, shapes.checkpoint.config.tie_word_embeddings) {
        (true, _) => HEAD,
        (false, true) => EMBEDDING,
        // Tying what was trained apart gives fluent but wrong answers.
        (false, false) => {
            return Err(ArchError::NoHead {
                dir: shapes.dir.clone(),
            });
        }
    };
    // Sizes that the config declares as well must agree.
    let layers = shapes.layers(TEXT_LAYERS);
    let declared = config.declared;
    shapes.agree("text_config.num_hidden_layers", declared.layers, layers)?;
    shapes.agree("text_config.hidden_size", declared.hidden_size, hidden_size)?;
    shapes.agree(
        "text_config.intermediate_size",
        declared.intermediate_size,
        intermediate,
    )?;
    shapes.agree("text_config.vocab_size", declared.vocab_size, vocab_size)?;
    let context_length = config.context_length;
    let geometry = TextGeometry {
        hidden_size,
        layers,
        heads: config.heads,
        kv_heads,
        head_dim,
        vocab_size,
        context_length,
    };
    Ok((geometry, intermediate, head))
}

/// Patches per side that become one image token: the connector reads the square of that at once.
fn scale_factor(
    shapes: &Shapes,
    vision: &VisionGeometry,
    grid: usize,
    text_width: usize,
) -> Result<usize, ArchError> {
    let [_, input] = shapes.of(PROJECTION, "[text width, vision width * scale_factor²]")?;
    let scale = (input / vision.hidden_size).isqrt();
    if scale == 0 || scale * scale * vision.hidden_size != input || !grid.is_multiple_of(scale) {
        let expected = format!(
            "[{text_width}, {} * scale_factor²] for a divisor of {grid}",
            vision.hidden_size
        );
        return Err(shapes.mismatch(PROJECTION, expected));
    }
    match shapes.checkpoint.config.scale_factor {
        Some(found) if found != scale => Err(shapes.contradiction(
            "scale_factor",
            found,
            format!("the connector reads {scale} by {scale} patches"),
        )),
        _ => Ok(scale),
    }
}

/// The shapes of a checkpoint's tensors, with errors that name it.
struct Shapes<'a> {
    checkpoint: &'a Checkpoint,
    dir: String,
}

impl Shapes<'_> {
    fn dims(&self, tensor: &str) -> Result<&[usize], CheckpointError> {
        self.checkpoint
            .shape(tensor)
            .ok_or_else(|| self.checkpoint.missing(tensor))
    }

    /// The dimensions of a tensor that must have N of them, none zero.
    fn of<const N: usize>(&self, tensor: &str, meaning: &str) -> Result<[usize; N], ArchError> {
        let dims = self.dims(tensor)?;
        let sized = <[usize; N]>::try_from(dims)
            .ok()
            .filter(|dims| !dims.contains(&0));
        sized.ok_or_else(|| self.mismatch(tensor, meaning.into()))
    }

    fn expect(&self, tensor: &str, dims: &[usize]) -> Result<(), ArchError> {
        if self.dims(tensor)? == dims {
            Ok(())
        } else {
            Err(self.mismatch(tensor, format!("{dims:?} to fit the other tensors")))
        }
    }

    /// How many layers there are under a prefix: one more than the highest number, so that a gap
    /// is reported as a missing tensor.
    fn layers(&self, prefix: &str) -> usize {
        let number = |name: &str| {
            name.strip_prefix(prefix)?
                .strip_prefix('.')?
                .split('.')
                .next()?
                .parse::<usize>()
                .ok()
        };
        let layers = self
            .checkpoint
            .names()
            .filter_map(number)
            .max()
            .map_or(0, |last| last.saturating_add(1));
        // No bundle may have more, so no graph is built deeper: with a larger number some
        // tensor is missing, or there are some that no graph uses.
        layers.min(LAYERS_MAX)
    }

    fn mismatch(&self, tensor: &str, expected: String) -> ArchError {
        let found = self.checkpoint.shape(tensor).unwrap_or_default().to_vec();
        ArchError::Shape {
            dir: self.dir.clone(),
            tensor: tensor.into(),
            found,
            expected,
        }
    }

    /// Holds a size that the config declares to the tensors': layers missing at the end of the file
    /// would otherwise make a shorter model.
    fn agree(
        &self,
        field: &'static str,
        declared: Option<usize>,
        stored: usize,
    ) -> Result<(), ArchError> {
        match declared {
            Some(found) if found != stored => {
                Err(self.contradiction(field, found, format!("the tensors make it {stored}")))
            }
            _ => Ok(()),
        }
    }

    fn contradiction(&self, field: &'static str, found: usize, tensors: String) -> ArchError {
        ArchError::Config {
            dir: self.dir.clone(),
            field,
            found,
            tensors,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::takes_int8;

    #[test]
    fn linears_of_both_towers_take_int8_and_nothing_else() {
        for (tensor, takes) in [
            (
                "model.vision_model.encoder.layers.0.self_attn.out_proj.weight",
                true,
            ),
            ("model.vision_model.encoder.layers.11.mlp.fc2.weight", true),
            ("model.text_model.layers.3.self_attn.o_proj.weight", true),
            ("model.text_model.layers.3.mlp.up_proj.weight", true),
            ("model.text_model.layers.3.mlp.down_proj.weight", false),
            ("model.connector.modality_projection.proj.weight", false),
            ("lm_head.weight", false),
            ("model.text_model.embed_tokens.weight", false),
        ] {
            assert_eq!(takes_int8(tensor), takes, "{tensor}");
        }
    }
}
