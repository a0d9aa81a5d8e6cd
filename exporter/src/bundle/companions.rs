//! The files beside the graphs: copied where the checkpoint carries them, else made from what it does say.
//!
//! A bundle always has all of them, so that other tools load it like a published export.

use std::fs;
use std::path::Path;

use firmware_config::manifest::{Geometry, ImageRules, Precision, PromptTokens, VideoRules};
use serde_json::{Value, json};

use super::{Draft, pretty};
use crate::ExportError;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::config::read_json;

/// What the made files are made from.
pub(crate) struct Facts<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) image: &'a ImageRules,
    pub(crate) video: &'a VideoRules,
    pub(crate) prompt: &'a PromptTokens,
    pub(crate) precision: Precision,
    /// Published names of the graphs that have a second file, in transformers.js' spelling.
    pub(crate) external_data: &'a [String],
}

/// Writes all of them into a draft.
pub(crate) fn write(draft: &mut Draft, source: &Path, facts: &Facts) -> Result<(), ExportError> {
    draft.add("config.json", &config(source, facts)?)?;
    draft.add("tokenizer.json", &read(&source.join("tokenizer.json"))?)?;
    let chat_template = chat_template(source)?.unwrap_or_else(|| {
        tracing::warn!("no chat template in {}: the family's is used", source.display());
        vlm::template::DEFAULT.into()
    });
    draft.add("chat_template.jinja", &chat_template)?;
    for (name, made) in [
        ("generation_config.json", json!({ "eos_token_id": facts.prompt.stop, "do_sample": false })),
        ("preprocessor_config.json", preprocessor(facts)),
        ("processor_config.json", json!({ "processor_class": "SmolVLMProcessor", "image_seq_len": facts.image.tokens_per_tile })),
        ("tokenizer_config.json", tokenizer(facts)),
    ] {
        let path = source.join(name);
        let content = if path.exists() {
            read(&path)?
        } else {
            tracing::warn!("{} is not there: made from the family's defaults and config.json", path.display());
            pretty(&made)
        };
        draft.add(name, &content)?;
    }
    Ok(())
}

/// `config.json`, with what transformers.js has to know about the graphs.
fn config(source: &Path, facts: &Facts) -> Result<Vec<u8>, ExportError> {
    let path = source.join("config.json");
    let is_fp16 = facts.precision == Precision::Fp16;
    if !is_fp16 && facts.external_data.is_empty() {
        return Ok(read(&path)?);
    }
    let mut config: Value = read_json(&path)?;
    let js = &mut config["transformers.js_config"];
    if !js.is_object() {
        *js = json!({});
    }
    if is_fp16 {
        // Only weights are f16 here; without this the KV cache would be guessed to be f16 as well.
        js["kv_cache_dtype"] = json!({ "fp16": "float32" });
    }
    if !facts.external_data.is_empty() {
        js["use_external_data_format"] = facts.external_data.iter().map(|graph| (graph.clone(), json!(true))).collect();
    }
    Ok(pretty(&config))
}

/// The checkpoint's own template, from the places where it has been kept over the years.
pub(crate) fn chat_template(source: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let jinja = source.join("chat_template.jinja");
    if jinja.exists() {
        return read(&jinja).map(Some);
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = source.join(name);
        if path.exists()
            && let Some(template) = read_json::<Value>(&path)?.get("chat_template").and_then(default_template)
        {
            return Ok(Some(template.into()));
        }
    }
    Ok(None)
}

/// The template itself, or the one of several that is called `default`.
fn default_template(chat_template: &Value) -> Option<&str> {
    match chat_template {
        Value::String(template) => Some(template),
        Value::Array(named) => named.iter().find(|entry| entry["name"] == "default")?["template"].as_str(),
        _ => None,
    }
}

fn preprocessor(facts: &Facts) -> Value {
    json!({
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": true,
        "do_image_splitting": facts.image.splits_by_default,
        "do_normalize": true,
        "do_pad": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": facts.image.mean,
        "image_std": facts.image.std,
        "max_image_size": { "longest_edge": facts.image.tile_size },
        "size": { "longest_edge": facts.image.longest_edge },
        "resample": 1,
        "rescale_factor": 1.0 / 255.0,
        "video_sampling": {
            "fps": facts.video.frames_per_second,
            "max_frames": facts.video.frames_max,
            "video_size": { "longest_edge": facts.image.tile_size },
        },
    })
}

fn tokenizer(facts: &Facts) -> Value {
    json!({
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": facts.geometry.text.context_length,
        "truncation_side": "left",
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|source| CheckpointError::io(path, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_found_among_several() {
        for (value, template) in [
            (json!("one"), Some("one")),
            (json!([{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]), Some("b")),
            (json!([{"name": "tool_use", "template": "a"}]), None),
            (json!({"template": "a"}), None),
            (json!(["a"]), None),
        ] {
            assert_eq!(default_template(&value), template, "{value}");
        }
    }
}
