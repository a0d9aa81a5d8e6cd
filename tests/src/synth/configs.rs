//! The configuration files of a checkpoint.

use firmware_config::manifest::ImageRules;
use serde_json::{Value, json};

use super::{Rope, Synthetic};

impl Synthetic {
    /// File names and contents of the folder's configs.
    pub fn configs(&self) -> [(&'static str, Value); 4] {
        [
            ("config.json", self.config()),
            (
                "generation_config.json",
                json!({ "bos_token_id": 0, "eos_token_id": 49279, "pad_token_id": 2 }),
            ),
            (
                "processor_config.json",
                json!({ "processor_class": "SmolVLMProcessor", "image_seq_len": self.tokens_per_tile() }),
            ),
            ("preprocessor_config.json", self.preprocessor_config()),
        ]
    }

    fn tokens_per_tile(&self) -> usize {
        (self.vision.image_size / self.vision.patch_size / self.scale_factor).pow(2)
    }

    /// How its images become pixel values.
    pub fn image_rules(&self) -> ImageRules {
        ImageRules {
            tile_size: self.vision.image_size,
            longest_edge: self.longest_edge,
            mean: [0.5; 3],
            std: [0.5; 3],
            splits_by_default: true,
            tokens_per_tile: self.tokens_per_tile(),
        }
    }

    fn config(&self) -> Value {
        let (vision, text) = (&self.vision, &self.text);
        let mut text_config = json!({
            "model_type": "llama",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "pad_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": text.head_dim,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
        });
        match text.rope {
            Rope::Flat => text_config["rope_theta"] = json!(text.rope_theta),
            Rope::Nested => {
                text_config["rope_parameters"] =
                    json!({ "rope_theta": text.rope_theta, "rope_type": "default" })
            }
        }
        text_config["tie_word_embeddings"] = json!(text.tied);
        json!({
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": 49190,
            "scale_factor": self.scale_factor,
            "tie_word_embeddings": text.tied,
            "pad_token_id": 128002,
            "torch_dtype": "float32",
            "text_config": text_config,
            "vision_config": {
                "model_type": "smolvlm_vision",
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "num_channels": 3,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
        })
    }

    fn preprocessor_config(&self) -> Value {
        let tile = self.vision.image_size;
        json!({
            "do_convert_rgb": true,
            "do_image_splitting": true,
            "do_normalize": true,
            "do_pad": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "SmolVLMImageProcessor",
            "processor_class": "SmolVLMProcessor",
            "max_image_size": { "longest_edge": tile },
            "size": { "longest_edge": self.longest_edge },
            "resample": 1,
            "rescale_factor": 1.0 / 255.0,
            "video_sampling": { "fps": 1, "max_frames": 64, "video_size": { "longest_edge": tile } },
        })
    }
}
