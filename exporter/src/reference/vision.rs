//! The vision encoder and the projector: a frame in, one row of text width per image token out.

use super::math::{Attention, LayerNorm, Linear, Matrix, add, gelu_tanh};
use super::{CheckpointTensors, ReferenceError, divide};
use crate::checkpoint::{Checkpoint, Tensor};

/// Vision tower and projection.
#[derive(Debug)]
pub(super) struct VisionEncoder {
    /// Side of a frame in pixels.
    pub(super) image_size: usize,
    /// Side of a patch in pixels; what does not fill a patch at the right and the bottom is
    /// ignored.
    patch_size: usize,
    heads: usize,
    scale_factor: usize,
    /// [Dv, 3 · p · p]: a convolution of stride p is a matrix over flattened patches.
    patch_embedding: Linear,
    /// [patches, Dv], row-major over the grid.
    position_embedding: Vec<f32>,
    blocks: Vec<VisionBlock>,
    post_layernorm: LayerNorm,
    /// [H, Dv · s²].
    projection: Matrix,
}

#[derive(Debug)]
struct VisionBlock {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl VisionEncoder {
    pub(super) fn open(checkpoint: &Checkpoint, text_width: usize) -> Result<Self, ReferenceError> {
        // The patch embedding, whose shape gives width and patch.
        let weights = CheckpointTensors(checkpoint);
        let config = &checkpoint.config.vision;
        let name = "model.vision_model.embeddings.patch_embedding";
        let Tensor { shape, values } = checkpoint.tensor(&format!("{name}.weight"))?;
        let (width, p) = match shape[..] {
            [width, 3, p, p2] if p == p2 && p > 0 => (width, p),
            _ => {
                return Err(ReferenceError::Rank {
                    tensor: format!("{name}.weight"),
                    expected: 4,
                    got: shape,
                });
            }
        };
        let patch_embedding = Linear {
            weight: Matrix {
                rows: width,
                columns: 3 * p * p,
                values,
            },
            bias: weights.vector(&format!("{name}.bias"), width)?,
        };
        // The projection, whose columns give the scale factor where the config leaves it out.
        let grid = config.image_size / p;
        let projection = weights.matrix("model.connector.modality_projection.proj.weight")?;
        let s = checkpoint
            .config
            .scale_factor
            .unwrap_or_else(|| (projection.columns / width.max(1)).isqrt());
        divide("the grid's side", grid, "scale_factor", s)?;
        divide("vision width", width, "heads", config.heads)?;

        // The blocks, as many as there are.
        let norm = |name: &str| -> Result<LayerNorm, ReferenceError> {
            Ok(LayerNorm {
                weight: weights.vector(&format!("{name}.weight"), width)?,
                bias: weights.vector(&format!("{name}.bias"), width)?,
                eps: config.layer_norm_eps,
            })
        };
        let linear = |name: String, columns: usize| -> Result<Linear, ReferenceError> {
            let weight = weights.matrix(&format!("{name}.weight"))?;
            let weight = weights.sized(&format!("{name}.weight"), weight.rows, columns)?;
            let bias = weights.vector(&format!("{name}.bias"), weight.rows)?;
            Ok(Linear { weight, bias })
        };
        let layers = "model.vision_model.encoder.layers.";
        let block = |layer: usize| -> Result<VisionBlock, ReferenceError> {
            let at = |name: &str| format!("{layers}{layer}.{name}");
            let fc1 = linear(at("mlp.fc1"), width)?;
            Ok(VisionBlock {
                layer_norm1: norm(&at("layer_norm1"))?,
                q_proj: linear(at("self_attn.q_proj"), width)?,
                k_proj: linear(at("self_attn.k_proj"), width)?,
                v_proj: linear(at("self_attn.v_proj"), width)?,
                out_proj: linear(at("self_attn.out_proj"), width)?,
                layer_norm2: norm(&at("layer_norm2"))?,
                fc2: linear(at("mlp.fc2"), fc1.weight.rows)?,
                fc1,
            })
        };
        Ok(VisionEncoder {
            image_size: config.image_size,
            patch_size: p,
            heads: config.heads,
            scale_factor: s,
            patch_embedding,
            position_embedding: weights.values(
                "model.vision_model.embeddings.position_embedding.weight",
                &[grid * grid, width],
            )?,
            blocks: (0..weights.layers(layers, "layer_norm1.weight"))
                .map(block)
                .collect::<Result<_, _>>()?,
            post_layernorm: norm("model.vision_model.post_layernorm")?,
            projection: weights.sized(
                "model.connector.modality_projection.proj.weight",
                text_width,
                width * s * s,
            )?,
        })
    }

    /// One frame, [3, T, T], to its image features, [S, H].
    pub(super) fn encode(&self, frame: &[f32]) -> Vec<f32> {
        let mut x = self.patch_embedding.apply(&self.patches(frame));
        add(&mut x, &self.position_embedding);
        for block in &self.blocks {
            block.run(&mut x, self.heads);
        }
        let x = self.post_layernorm.apply(&x);
        self.projection.apply(&self.pixel_shuffle(&x))
    }

    /// Rows of image features for one frame.
    pub(super) fn tokens(&self) -> usize {
        (self.grid() / self.scale_factor).pow(2)
    }

    /// Side of the grid in patches.
    fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// [3, T, T] cut into [patches, 3 · p · p], patches row-major over the grid, each channel by
    /// channel.
    fn patches(&self, frame: &[f32]) -> Vec<f32> {
        let (t, p, grid) = (self.image_size, self.patch_size, self.grid());
        let mut patches = Vec::with_capacity(3 * (grid * p).pow(2));
        for (row, column) in (0..grid).flat_map(|row| (0..grid).map(move |column| (row, column))) {
            for (channel, y) in (0..3).flat_map(|channel| (0..p).map(move |y| (channel, y))) {
                let from = (channel * t + row * p + y) * t + column * p;
                patches.extend_from_slice(&frame[from..from + p]);
            }
        }
        patches
    }

    /// [g · g, Dv] to [(g/s)², s² · Dv]: each s × s square of patches becomes one row, its patches
    /// row by row.
    fn pixel_shuffle(&self, x: &[f32]) -> Vec<f32> {
        let (s, grid, width) = (
            self.scale_factor,
            self.grid(),
            self.post_layernorm.weight.len(),
        );
        let mut out = Vec::with_capacity(x.len());
        for (row, column) in
            (0..grid / s).flat_map(|row| (0..grid / s).map(move |column| (row, column)))
        {
            for (dr, dc) in (0..s).flat_map(|dr| (0..s).map(move |dc| (dr, dc))) {
                let patch = (row * s + dr) * grid + column * s + dc;
                out.extend_from_slice(&x[patch * width..(patch + 1) * width]);
            }
        }
        out
    }
}

impl VisionBlock {
    /// Every patch attends to every patch.
    fn run(&self, x: &mut [f32], heads: usize) {
        let normed = self.layer_norm1.apply(x);
        let attention = Attention {
            heads,
            kv_heads: heads,
            head_dim: self.q_proj.bias.len() / heads,
            causal: false,
        };
        let attended = attention.apply(
            &self.q_proj.apply(&normed),
            &self.k_proj.apply(&normed),
            &self.v_proj.apply(&normed),
        );
        add(x, &self.out_proj.apply(&attended));

        let mut inner = self.fc1.apply(&self.layer_norm2.apply(x));
        inner.iter_mut().for_each(|v| *v = gelu_tanh(*v));
        add(x, &self.fc2.apply(&inner));
    }
}
