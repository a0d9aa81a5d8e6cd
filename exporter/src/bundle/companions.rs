//! The files beside the graphs: copied where the checkpoint carries them, else made from what it
//! does say.
//!
//! A bundle always has all of them, so that other tools load it like a published export.

use std::fs;
use std::path::Path;

use firmware_config::manifest::{Geometry, Precision};
use serde_json::{Value, json};
use vlm::special_tokens::{SPECIAL_TOKENS_MAP, SpecialTokens, TOKENIZER_CONFIG, takes_map};

use super::chat_template::CHAT_TEMPLATE;
use super::generation::GENERATION;
use super::metadata::Metadata;
use super::processor::{PREPROCESSOR, PROCESSOR, VIDEO_PREPROCESSOR};
use super::{Draft, pretty};
use crate::ExportError;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::config::read_json;

/// What the made files are made from.
pub(crate) struct Facts<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) metadata: &'a Metadata,
    pub(crate) precision: Precision,
    /// Published names of the graphs that have a second file, in transformers.js' spelling.
    pub(crate) external_data: &'a [String],
}

/// Writes all of them into a draft.
pub(crate) fn write(draft: &mut Draft, source: &Path, facts: &Facts) -> Result<(), ExportError> {
    for (name, content) in files(source, facts)? {
        draft.add(name, &content)?;
    }
    Ok(())
}

/// Name and content of each, in a bundle of this checkpoint.
pub(crate) fn files(
    source: &Path,
    facts: &Facts,
) -> Result<Vec<(&'static str, Vec<u8>)>, CheckpointError> {
    let Metadata {
        image,
        processor,
        template,
        prompt,
        ..
    } = facts.metadata;
    let mut files = vec![
        ("config.json", config(source, facts)?),
        ("tokenizer.json", read(&source.join("tokenizer.json"))?),
        (CHAT_TEMPLATE, template.text.clone()),
        (
            TOKENIZER_CONFIG,
            tokenizer_config(source, facts.geometry.text.context_length)?,
        ),
    ];
    for (name, made) in [
        (
            GENERATION,
            json!({ "eos_token_id": prompt.stop, "do_sample": false }),
        ),
        (
            PROCESSOR,
            json!({ "processor_class": "SmolVLMProcessor", "image_seq_len": image.tokens_per_tile }),
        ),
    ] {
        files.push((name, read_or(&source.join(name), || made)?));
    }
    // Where the rules stand elsewhere, a file of this name is older than they are.
    let is_stale = processor.pictures.path.is_some() && !processor.pictures.is_in(PREPROCESSOR);
    let made = || pretty(&preprocessor(facts.metadata));
    files.push((
        PREPROCESSOR,
        if is_stale {
            made()
        } else {
            read_or(&source.join(PREPROCESSOR), || preprocessor(facts.metadata))?
        },
    ));
    if processor.clips.is_in(VIDEO_PREPROCESSOR) {
        files.push((VIDEO_PREPROCESSOR, read(&source.join(VIDEO_PREPROCESSOR))?));
    }
    if let Some(map) = special_tokens_map(source)? {
        files.push((SPECIAL_TOKENS_MAP, map));
    }
    Ok(files)
}

/// `config.json`, with what transformers.js has to know about the graphs.
fn config(source: &Path, facts: &Facts) -> Result<Vec<u8>, CheckpointError> {
    let path = source.join("config.json");
    let is_fp16 = facts.precision == Precision::Fp16;
    if !is_fp16 && facts.external_data.is_empty() {
        return read(&path);
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
        js["use_external_data_format"] = facts
            .external_data
            .iter()
            .map(|graph| (graph.clone(), json!(true)))
            .collect();
    }
    Ok(pretty(&config))
}

/// The special tokens that the template of a bundle may call by name.
pub(crate) fn special_tokens(
    source: &Path,
    context_length: usize,
) -> Result<SpecialTokens, CheckpointError> {
    let (config, map) = (
        tokenizer_config(source, context_length)?,
        special_tokens_map(source)?,
    );
    vlm::special_tokens::read(Some(&config), map.as_deref()).map_err(|error| {
        CheckpointError::Json {
            path: source.to_owned(),
            problem: error.to_string(),
        }
    })
}

fn tokenizer_config(source: &Path, context_length: usize) -> Result<Vec<u8>, CheckpointError> {
    read_or(&source.join(TOKENIZER_CONFIG), || tokenizer(context_length))
}

/// The file of older tokenizers, where the newer one beside it does not stand for it.
fn special_tokens_map(source: &Path) -> Result<Option<Vec<u8>>, CheckpointError> {
    let (path, config) = (
        source.join(SPECIAL_TOKENS_MAP),
        source.join(TOKENIZER_CONFIG),
    );
    let is_read = path.exists() && (!config.exists() || takes_map(&read_json(&config)?));
    if is_read {
        read(&path).map(Some)
    } else {
        Ok(None)
    }
}

fn preprocessor(Metadata { image, video, .. }: &Metadata) -> Value {
    json!({
        "image_processor_type": "SmolVLMImageProcessor",
        "processor_class": "SmolVLMProcessor",
        "do_convert_rgb": true,
        "do_image_splitting": image.splits_by_default,
        "do_normalize": true,
        "do_pad": true,
        "do_rescale": true,
        "do_resize": true,
        "image_mean": image.mean,
        "image_std": image.std,
        "max_image_size": { "longest_edge": image.tile_size },
        "size": { "longest_edge": image.longest_edge },
        "resample": 1,
        "rescale_factor": 1.0 / 255.0,
        "video_sampling": {
            "fps": video.frames_per_second,
            "max_frames": video.frames_max,
            "video_size": { "longest_edge": image.tile_size },
        },
    })
}

fn tokenizer(context_length: usize) -> Value {
    json!({
        "tokenizer_class": "GPT2Tokenizer",
        "bos_token": "<|im_start|>",
        "eos_token": "<end_of_utterance>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "model_max_length": context_length,
        "truncation_side": "left",
    })
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    fs::read(path).map_err(|source| CheckpointError::io(path, source))
}

/// A file of the checkpoint, or what is made in its place.
fn read_or(path: &Path, make: impl FnOnce() -> Value) -> Result<Vec<u8>, CheckpointError> {
    if path.exists() {
        read(path)
    } else {
        Ok(pretty(&make()))
    }
}
