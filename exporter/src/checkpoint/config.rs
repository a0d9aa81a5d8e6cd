//! `config.json`, with the defaults that transformers fills in for fields it leaves out.
//!
//! Layers and widths are taken from the tensors, not from here; see [`crate::arch`].

use std::path::Path;

use serde::Deserialize;

use super::error::CheckpointError;
use super::json::read_json;

/// Families with the same graph and tensor names, and each one's class for the whole model.
/// SmolVLM's first version is published as Idefics3; transformers derives the later family from it
/// and computes the same.
const FAMILIES: [(&str, &str); 2] = [
    ("smolvlm", "SmolVLMForConditionalGeneration"),
    ("idefics3", "Idefics3ForConditionalGeneration"),
];

/// What the tensors of a checkpoint do not show.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Vision encoder.
    pub vision: VisionConfig,
    /// Text decoder.
    pub text: TextConfig,
    /// Patches per side that become one image token; `None` where it is derived from the
    /// connector.
    pub scale_factor: Option<usize>,
    /// Whether the embedding is the head where no head is stored.
    pub tie_word_embeddings: bool,
    /// Id of `<image>`, if given.
    pub image_token_id: Option<u32>,
}

/// Vision part of a [`Config`].
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Attention heads.
    pub heads: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Added to the variance in LayerNorm.
    pub layer_norm_eps: f32,
    /// Compared with the tensors.
    pub declared: VisionSizes,
}

/// Sizes that the tensors show too, where the config gives them; published ones leave some out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VisionSizes {
    /// Transformer blocks.
    pub layers: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: Option<usize>,
    /// Width of the MLP.
    pub intermediate_size: Option<usize>,
    /// Side of a patch in pixels.
    pub patch_size: Option<usize>,
}

/// Text part of a [`Config`].
#[derive(Debug, Clone, PartialEq)]
pub struct TextConfig {
    /// Query heads.
    pub heads: usize,
    /// Width of one head; `None` where it is the width over the heads.
    pub head_dim: Option<usize>,
    /// Key and value heads, if given.
    pub kv_heads: Option<usize>,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Longest sequence in tokens.
    pub context_length: usize,
    /// Compared with the tensors.
    pub declared: TextSizes,
}

/// Sizes that the tensors show too, where the config gives them; published ones leave some out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TextSizes {
    /// Transformer blocks.
    pub layers: Option<usize>,
    /// Width of the residual stream.
    pub hidden_size: Option<usize>,
    /// Width of the MLP.
    pub intermediate_size: Option<usize>,
    /// Rows of the embedding.
    pub vocab_size: Option<usize>,
}

#[derive(Deserialize)]
struct RawConfig {
    scale_factor: Option<usize>,
    tie_word_embeddings: Option<bool>,
    image_token_id: Option<u32>,
    text_config: RawText,
    #[serde(default)]
    vision_config: RawVision,
}

#[derive(Deserialize)]
struct RawText {
    model_type: Option<String>,
    num_hidden_layers: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    vocab_size: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f64>,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    max_position_embeddings: Option<usize>,
    hidden_act: Option<String>,
    tie_word_embeddings: Option<bool>,
    attention_bias: Option<bool>,
    mlp_bias: Option<bool>,
    sliding_window: Option<u64>,
    embedding_multiplier: Option<f64>,
    residual_multiplier: Option<f64>,
    logits_scaling: Option<f64>,
    attention_multiplier: Option<f64>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The same under its oldest name; transformers writes both.
    r#type: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawVision {
    num_hidden_layers: Option<usize>,
    hidden_size: Option<usize>,
    intermediate_size: Option<usize>,
    patch_size: Option<usize>,
    num_attention_heads: Option<usize>,
    image_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
}

impl Config {
    /// Reads and checks a `config.json`.
    ///
    /// # Errors
    /// When the file is missing or not JSON, of another architecture, or needs what is not
    /// supported.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let raw: serde_json::Value = read_json(path)?;
        Config::parse(raw).map_err(|diagnostic| CheckpointError::json(path, diagnostic))
    }

    fn parse(json: serde_json::Value) -> Result<Self, String> {
        // The family comes first: with another one, missing fields would be misleading.
        let found = json
            .get("model_type")
            .and_then(|family| family.as_str())
            .unwrap_or_default();
        if !FAMILIES.iter().any(|(family, _)| *family == found) {
            return Err(format!(
                "unknown architecture: model_type is {found:?}, expected \"smolvlm\" or \"idefics3\" (SmolVLM, SmolVLM2 or a fine-tune)"
            ));
        }
        // The same towers under another head are a retriever or a classifier, which cannot answer.
        let architectures: Vec<&str> = json
            .get("architectures")
            .and_then(|list| list.as_array())
            .into_iter()
            .flatten()
            .filter_map(|name| name.as_str())
            .collect();
        if !architectures.is_empty()
            && !FAMILIES
                .iter()
                .any(|(_, whole)| architectures.contains(whole))
        {
            return Err(format!(
                "unknown architecture: architectures is {architectures:?}, expected one with a language head: {}",
                FAMILIES[0].1
            ));
        }
        let raw: RawConfig = serde_json::from_value(json).map_err(|error| error.to_string())?;
        Ok(Config {
            scale_factor: raw.scale_factor,
            tie_word_embeddings: raw
                .tie_word_embeddings
                .or(raw.text_config.tie_word_embeddings)
                .unwrap_or(false),
            image_token_id: raw.image_token_id,
            vision: raw.vision_config.check()?,
            text: raw.text_config.check()?,
        })
    }
}

impl RawVision {
    fn check(self) -> Result<VisionConfig, String> {
        only(
            "vision_config.hidden_act",
            self.hidden_act.as_deref(),
            "gelu_pytorch_tanh",
        )?;
        Ok(VisionConfig {
            heads: positive(
                "vision_config.num_attention_heads",
                self.num_attention_heads.unwrap_or(16),
            )?,
            image_size: positive("vision_config.image_size", self.image_size.unwrap_or(224))?,
            layer_norm_eps: epsilon(
                "vision_config.layer_norm_eps",
                self.layer_norm_eps.unwrap_or(1e-6),
            )?,
            declared: VisionSizes {
                layers: self.num_hidden_layers,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                patch_size: self.patch_size,
            },
        })
    }
}

impl RawText {
    fn check(self) -> Result<TextConfig, String> {
        self.is_llama()?;
        let rope_theta = self.theta()?;
        if !(rope_theta.is_finite() && rope_theta > 1.0) {
            return Err(format!(
                "text_config.rope_theta is {rope_theta}, expected a number above 1"
            ));
        }
        Ok(TextConfig {
            heads: positive(
                "text_config.num_attention_heads",
                self.num_attention_heads.unwrap_or(32),
            )?,
            head_dim: self
                .head_dim
                .map(|dim| positive("text_config.head_dim", dim))
                .transpose()?,
            kv_heads: self
                .num_key_value_heads
                .map(|heads| positive("text_config.num_key_value_heads", heads))
                .transpose()?,
            rms_norm_eps: epsilon(
                "text_config.rms_norm_eps",
                self.rms_norm_eps.unwrap_or(1e-6),
            )?,
            rope_theta,
            context_length: positive(
                "text_config.max_position_embeddings",
                self.max_position_embeddings.unwrap_or(2048),
            )?,
            declared: TextSizes {
                layers: self.num_hidden_layers,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                vocab_size: self.vocab_size,
            },
        })
    }
}

impl RawText {
    /// Another decoder's tensors can have the same names and shapes and compute something else.
    fn is_llama(&self) -> Result<(), String> {
        let found = self.model_type.as_deref().unwrap_or("llama");
        if found != "llama" {
            return Err(format!(
                "text_config.model_type is {found:?}, expected \"llama\", the decoder of SmolVLM2, since no other is supported; export a \
                 fine-tune of SmolVLM2 itself"
            ));
        }
        only("text_config.hidden_act", self.hidden_act.as_deref(), "silu")?;
        for (field, found) in [
            ("attention_bias", self.attention_bias),
            ("mlp_bias", self.mlp_bias),
        ] {
            if found == Some(true) {
                return Err(format!(
                    "text_config.{field} is true, expected false: biases of the text decoder are not supported"
                ));
            }
        }
        if let Some(window) = self.sliding_window {
            return Err(format!(
                "text_config.sliding_window is {window}, expected none: a sliding window is not supported"
            ));
        }
        for (field, found) in [
            ("embedding_multiplier", self.embedding_multiplier),
            ("residual_multiplier", self.residual_multiplier),
            ("logits_scaling", self.logits_scaling),
        ] {
            if let Some(found) = found.filter(|&found| found != 1.0) {
                return Err(format!(
                    "text_config.{field} is {found}, expected none or 1: no other value is supported"
                ));
            }
        }
        match self.attention_multiplier {
            Some(found) => Err(format!(
                "text_config.attention_multiplier is {found}, expected none: no other value is supported"
            )),
            None => Ok(()),
        }
    }

    /// Base of the rotary frequencies. As in transformers, the older `rope_scaling` takes
    /// precedence over `rope_parameters`, and either over the flat field.
    fn theta(&self) -> Result<f64, String> {
        let nested = [
            ("rope_scaling", &self.rope_scaling),
            ("rope_parameters", &self.rope_parameters),
        ];
        for (field, rope) in &nested {
            if let Some(rope) = rope {
                only(
                    &format!("text_config.{field}.rope_type"),
                    rope.rope_type.as_deref(),
                    "default",
                )?;
                only(
                    &format!("text_config.{field}.type"),
                    rope.r#type.as_deref(),
                    "default",
                )?;
            }
        }
        let given = nested
            .iter()
            .find_map(|(field, rope)| Some((field, rope.as_ref()?.rope_theta?)));
        if let (Some((field, nested)), Some(flat)) = (given, self.rope_theta)
            && nested != flat
        {
            tracing::warn!(
                "text_config.rope_theta is {flat}, {field}.rope_theta is {nested}: the latter is used, as in transformers"
            );
        }
        // A default would give fluent but wrong answers: the class has 1e4, the published models
        // 1e5 and 1.3e5.
        given.map(|(_, theta)| theta).or(self.rope_theta).ok_or_else(|| {
            "rope_theta is missing from text_config and from text_config.rope_parameters; add the value the model was trained with".into()
        })
    }
}

fn only(field: &str, found: Option<&str>, expected: &str) -> Result<(), String> {
    match found {
        Some(found) if found != expected => Err(format!(
            "{field} is {found:?}, expected {expected:?}: no other value is supported"
        )),
        _ => Ok(()),
    }
}

/// Sizes are bounded so that their products cannot overflow.
fn positive(field: &str, found: usize) -> Result<usize, String> {
    if (1..=1 << 24).contains(&found) {
        Ok(found)
    } else {
        Err(format!("{field} is {found}, expected 1 to 16777216"))
    }
}

fn epsilon(field: &str, found: f32) -> Result<f32, String> {
    if found > 0.0 && found < 1.0 {
        Ok(found)
    } else {
        Err(format!(
            "{field} is {found}, expected a number between 0 and 1"
        ))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn omitted_fields_take_the_class_defaults() {
        let config = Config::parse(
            json!({"model_type": "smolvlm", "text_config": {"rope_theta": 130000.0}}),
        )
        .unwrap();
        assert_eq!(
            (
                config.text.heads,
                config.text.head_dim,
                config.text.kv_heads
            ),
            (32, None, None)
        );
        assert_eq!(config.text.rms_norm_eps, 1e-6);
        assert_eq!(
            (
                config.vision.heads,
                config.vision.image_size,
                config.vision.layer_norm_eps
            ),
            (16, 224, 1e-6)
        );
        assert!(!config.tie_word_embeddings);
    }

    #[test]
    fn the_first_version_is_the_same_model_by_another_name() {
        let text = json!({"rope_theta": 1e5});
        let later = json!({"model_type": "smolvlm", "architectures": ["SmolVLMForConditionalGeneration"], "text_config": text});
        let first = json!({"model_type": "idefics3", "architectures": ["Idefics3ForConditionalGeneration"], "text_config": text});
        assert_eq!(Config::parse(first).unwrap(), Config::parse(later).unwrap());
    }

    #[test]
    fn theta_may_be_flat_or_nested() {
        for text in [
            json!({"rope_theta": 1e5}),
            json!({"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}),
            json!({"rope_theta": 1e5, "rope_scaling": {"rope_type": "default"}}),
            json!({"rope_theta": 1e5, "rope_scaling": {"rope_type": "default", "type": "default"}}),
            json!({"rope_theta": 1e5, "rope_scaling": {"type": "default"}}),
            // Where they differ, transformers takes the nested one.
            json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}}),
            json!({"rope_theta": 1e4, "rope_scaling": {"rope_theta": 1e5}, "rope_parameters": {"rope_theta": 2e5}}),
        ] {
            let config =
                Config::parse(json!({"model_type": "smolvlm", "text_config": text})).unwrap();
            assert_eq!(config.text.rope_theta, 1e5);
        }
    }

    /// Fields of published configs and of older fine-tunes that change nothing.
    #[test]
    fn fields_without_effect_are_accepted() {
        let text = json!({
            "rope_theta": 1e5, "model_type": "llama", "architectures": ["VLlama3ForCausalLM"], "perceiver_config": {"model_type": "vllama3"},
            "attention_bias": false, "mlp_bias": null, "sliding_window": null, "embedding_multiplier": 1.0, "logits_scaling": 1,
            "rope_scaling": null, "neftune_noise_alpha": 0.0,
        });
        Config::parse(json!({"model_type": "smolvlm", "text_config": text})).unwrap();
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        let text = |text: serde_json::Value| json!({"model_type": "smolvlm", "text_config": text});
        for (config, says) in [
            (
                json!({"model_type": "llava", "text_config": {}}),
                "unknown architecture",
            ),
            (json!({}), "unknown architecture"),
            (
                json!({"model_type": "idefics3", "architectures": ["ColIdefics3"], "text_config": {"rope_theta": 1e5}}),
                "architectures is [\"ColIdefics3\"], expected one with a language head: SmolVLMForConditionalGeneration",
            ),
            (text(json!({})), "rope_theta is missing"),
            (
                text(json!({"rope_theta": 1e5, "rope_scaling": {"type": "linear", "factor": 2}})),
                "rope_scaling.type is \"linear\", expected \"default\"",
            ),
            (
                text(json!({"rope_theta": 1e5, "model_type": "mistral"})),
                "text_config.model_type is \"mistral\", expected \"llama\"",
            ),
            (
                text(json!({"rope_theta": 1e5, "sliding_window": 8})),
                "sliding_window is 8, expected none",
            ),
            (
                text(json!({"rope_theta": 1e5, "residual_multiplier": 0.5})),
                "residual_multiplier is 0.5, expected none or 1",
            ),
            (
                text(json!({"rope_theta": 1e5, "attention_multiplier": 0.5})),
                "attention_multiplier is 0.5, expected none",
            ),
            (
                text(json!({"rope_theta": 1e5, "hidden_act": "gelu"})),
                "text_config.hidden_act is \"gelu\", expected \"silu\"",
            ),
            (
                text(json!({"rope_theta": 1e5, "attention_bias": true})),
                "biases of the text decoder are not supported",
            ),
            (
                text(json!({"rope_theta": 1e5, "rms_norm_eps": -1.0})),
                "expected a number between 0 and 1",
            ),
            (
                text(json!({"rope_theta": 1e5, "num_attention_heads": 0})),
                "num_attention_heads is 0",
            ),
        ] {
            let error = Config::parse(config).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
