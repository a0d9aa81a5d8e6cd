//! The text decoder: embeddings in, final hidden states out.

use super::math::{Attention, Matrix, RmsNorm, add, silu};
use super::{CheckpointTensors, ReferenceError, divide};
use crate::checkpoint::Checkpoint;

/// Llama's blocks and the norm after them.
#[derive(Debug)]
pub(super) struct TextDecoder {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope_theta: f64,
    blocks: Vec<TextBlock>,
    norm: RmsNorm,
}

#[derive(Debug)]
struct TextBlock {
    input_layernorm: RmsNorm,
    q_proj: Matrix,
    k_proj: Matrix,
    v_proj: Matrix,
    o_proj: Matrix,
    post_attention_layernorm: RmsNorm,
    gate_proj: Matrix,
    up_proj: Matrix,
    down_proj: Matrix,
}

/// Keys and values of the tokens seen so far.
#[derive(Debug, Clone, Default)]
pub struct Past {
    tokens: usize,
    /// For each layer, [tokens, kv_heads · d], keys rotated by their position.
    layers: Vec<(Vec<f32>, Vec<f32>)>,
}

impl TextDecoder {
    pub(super) fn open(checkpoint: &Checkpoint, width: usize) -> Result<Self, ReferenceError> {
        let weights = CheckpointTensors(checkpoint);
        let config = &checkpoint.config.text;
        let layers = "model.text_model.layers.";
        let first_keys = weights
            .matrix(&format!("{layers}0.self_attn.k_proj.weight"))?
            .rows;
        let head_dim = match config.head_dim {
            Some(head_dim) => head_dim,
            None => divide("text width", width, "heads", config.heads)?,
        };
        let kv_heads = match config.kv_heads {
            Some(kv_heads) => kv_heads,
            None => divide("rows of k_proj", first_keys, "head_dim", head_dim)?,
        };
        // All sizes divide evenly.
        let (queries, keys) = (config.heads * head_dim, kv_heads * head_dim);
        divide("heads", config.heads, "kv_heads", kv_heads)?;
        divide("head_dim", head_dim, "the halves of a rotation,", 2)?;

        let norm = |name: &str| -> Result<RmsNorm, ReferenceError> {
            Ok(RmsNorm {
                weight: weights.vector(name, width)?,
                eps: config.rms_norm_eps,
            })
        };
        let block = |layer: usize| -> Result<TextBlock, ReferenceError> {
            let at = |name: &str| format!("{layers}{layer}.{name}.weight");
            let inner = weights.matrix(&at("mlp.gate_proj"))?.rows;
            Ok(TextBlock {
                input_layernorm: norm(&at("input_layernorm"))?,
                q_proj: weights.sized(&at("self_attn.q_proj"), queries, width)?,
                k_proj: weights.sized(&at("self_attn.k_proj"), keys, width)?,
                v_proj: weights.sized(&at("self_attn.v_proj"), keys, width)?,
                o_proj: weights.sized(&at("self_attn.o_proj"), width, queries)?,
                post_attention_layernorm: norm(&at("post_attention_layernorm"))?,
                gate_proj: weights.sized(&at("mlp.gate_proj"), inner, width)?,
                up_proj: weights.sized(&at("mlp.up_proj"), inner, width)?,
                down_proj: weights.sized(&at("mlp.down_proj"), width, inner)?,
            })
        };
        Ok(TextDecoder {
            heads: config.heads,
            kv_heads,
            head_dim,
            rope_theta: config.rope_theta,
            blocks: (0..weights.layers(layers, "input_layernorm.weight"))
                .map(block)
                .collect::<Result<_, _>>()?,
            norm: norm("model.text_model.norm.weight")?,
        })
    }

    /// `inputs_embeds` of [n, H] after `past`, which grows by n. Returns [n, H].
    pub(super) fn run(&self, inputs_embeds: &[f32], past: &mut Past) -> Vec<f32> {
        let mut x = inputs_embeds.to_vec();
        past.layers.resize_with(self.blocks.len(), Default::default);
        for (block, (keys, values)) in self.blocks.iter().zip(&mut past.layers) {
            let normed = block.input_layernorm.apply(&x);
            let mut queries = block.q_proj.apply(&normed);
            let mut new_keys = block.k_proj.apply(&normed);
            self.rotate(&mut queries, self.heads, past.tokens);
            self.rotate(&mut new_keys, self.kv_heads, past.tokens);
            keys.extend(new_keys);
            values.extend(block.v_proj.apply(&normed));
            let attention = Attention {
                heads: self.heads,
                kv_heads: self.kv_heads,
                head_dim: self.head_dim,
                causal: true,
            };
            add(
                &mut x,
                &block.o_proj.apply(&attention.apply(&queries, keys, values)),
            );

            let normed = block.post_attention_layernorm.apply(&x);
            let mut inner = block.gate_proj.apply(&normed);
            inner
                .iter_mut()
                .zip(block.up_proj.apply(&normed))
                .for_each(|(gate, up)| *gate = silu(*gate) * up);
            add(&mut x, &block.down_proj.apply(&inner));
        }
        past.tokens += inputs_embeds.len() / self.norm.weight.len();
        self.norm.apply(&x)
    }

    /// Rotates each head by its token's position: element i of the first half and element i of the
    /// second are one point, rotated by position · theta^(-2i / d). `rows`: [n, heads · d], the
    /// first at position `first`.
    fn rotate(&self, rows: &mut [f32], heads: usize, first: usize) {
        let d = self.head_dim;
        for (row, vector) in rows.chunks_exact_mut(heads * d).enumerate() {
            let position = (first + row) as f32;
            for head in vector.chunks_exact_mut(d) {
                let (left, right) = head.split_at_mut(d / 2);
                for (i, (a, b)) in left.iter_mut().zip(right).enumerate() {
                    let frequency = self.rope_theta.powf(-2.0 * i as f64 / d as f64) as f32;
                    let (sin, cos) = (position * frequency).sin_cos();
                    (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
                }
            }
        }
    }
}
