//! Names and shapes of the tensors.

use super::{Synthetic, Text, Vision};

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// As in the published files.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
}

impl Tensor {
    pub(super) fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl Synthetic {
    /// Every tensor, in the order of the published files.
    pub fn tensors(&self) -> Vec<Tensor> {
        let Vision {
            hidden_size: dv,
            intermediate_size: iv,
            layers,
            image_size,
            patch_size: p,
            ..
        } = self.vision;
        let Text {
            hidden_size: h,
            intermediate_size: i,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            ..
        } = self.text;
        let (q, kv, s) = (heads * head_dim, kv_heads * head_dim, self.scale_factor);
        let grid = image_size / p;

        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(Tensor {
                name,
                shape: shape.to_vec(),
            })
        };
        if !self.text.tied {
            add("lm_head.weight".into(), &[vocab_size, h]);
        }
        add(
            "model.connector.modality_projection.proj.weight".into(),
            &[h, dv * s * s],
        );
        add(
            "model.text_model.embed_tokens.weight".into(),
            &[vocab_size, h],
        );
        for layer in 0..self.text.layers {
            let mut weight = |name: &str, shape: &[usize]| {
                add(
                    format!("model.text_model.layers.{layer}.{name}.weight"),
                    shape,
                )
            };
            weight("input_layernorm", &[h]);
            weight("mlp.down_proj", &[h, i]);
            weight("mlp.gate_proj", &[i, h]);
            weight("mlp.up_proj", &[i, h]);
            weight("post_attention_layernorm", &[h]);
            weight("self_attn.k_proj", &[kv, h]);
            weight("self_attn.o_proj", &[h, q]);
            weight("self_attn.q_proj", &[q, h]);
            weight("self_attn.v_proj", &[kv, h]);
        }
        add("model.text_model.norm.weight".into(), &[h]);
        let embeddings = "model.vision_model.embeddings";
        add(format!("{embeddings}.patch_embedding.bias"), &[dv]);
        add(
            format!("{embeddings}.patch_embedding.weight"),
            &[dv, 3, p, p],
        );
        add(
            format!("{embeddings}.position_embedding.weight"),
            &[grid * grid, dv],
        );
        for layer in 0..layers {
            let mut pair = |name: &str, weight: &[usize]| {
                let prefix = format!("model.vision_model.encoder.layers.{layer}.{name}");
                add(format!("{prefix}.bias"), &weight[..1]);
                add(format!("{prefix}.weight"), weight);
            };
            pair("layer_norm1", &[dv]);
            pair("layer_norm2", &[dv]);
            pair("mlp.fc1", &[iv, dv]);
            pair("mlp.fc2", &[dv, iv]);
            for projection in ["k_proj", "out_proj", "q_proj", "v_proj"] {
                pair(&format!("self_attn.{projection}"), &[dv, dv]);
            }
        }
        add("model.vision_model.post_layernorm.bias".into(), &[dv]);
        add("model.vision_model.post_layernorm.weight".into(), &[dv]);
        tensors
    }
}
