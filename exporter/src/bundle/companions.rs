//! The files beside the graphs: copied where the checkpoint has them, else made from its other
//! files.
//!
//! A bundle always has all of them, so that other tools load it like a published export.

use std::path::Path;

use firmware_config::manifest::{Geometry, Precision};
use serde_json::{Value, json};
use vlm::special_tokens::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::{
    CHAT_TEMPLATE, CONFIG, GENERATION_CONFIG, PREPROCESSOR, PROCESSOR, TOKENIZER,
    VIDEO_PREPROCESSOR, read, read_or,
};
use crate::checkpoint::json::{pretty, read_json};
use crate::metadata::{Metadata, special_tokens};

/// What the companion files are made from.
pub(crate) struct CompanionInputs<'a> {
    pub(crate) geometry: &'a Geometry,
    pub(crate) metadata: &'a Metadata,
    pub(crate) precision: Precision,
    /// File names of the graphs with external data, as transformers.js lists them.
    pub(crate) external_data: &'a [String],
}

/// Name and content of each, in a bundle of this checkpoint.
pub(crate) fn files(
    source: &Path,
    inputs: &CompanionInputs,
) -> Result<Vec<(&'static str, Vec<u8>)>, CheckpointError> {
    let Metadata {
        image,
        processor,
        template,
        prompt,
        ..
    } = inputs.metadata;
    let mut files = vec![
        (CONFIG, config(source, inputs)?),
        (TOKENIZER, read(&source.join(TOKENIZER))?),
        (CHAT_TEMPLATE, template.text.clone()),
        (
            TOKENIZER_CONFIG,
            special_tokens::tokenizer_config(source, inputs.geometry.text.context_length)?,
        ),
    ];
    // Copied where the checkpoint has them, else made.
    for (name, made) in [
        (
            GENERATION_CONFIG,
            json!({ "eos_token_id": prompt.stop, "do_sample": false }),
        ),
        (
            PROCESSOR,
            json!({ "processor_class": "SmolVLMProcessor", "image_seq_len": image.tokens_per_tile }),
        ),
    ] {
        files.push((name, read_or(&source.join(name), || made)?));
    }
    // Where the rules are in another file, a file of this name is older than they are.
    let is_stale = processor.images.path.is_some() && !processor.images.is_in(PREPROCESSOR);
    let made = || pretty(&preprocessor(inputs.metadata));
    files.push((
        PREPROCESSOR,
        if is_stale {
            made()
        } else {
            read_or(&source.join(PREPROCESSOR), || preprocessor(inputs.metadata))?
        },
    ));
    // Only where the checkpoint uses them.
    if processor.clips.is_in(VIDEO_PREPROCESSOR) {
        files.push((VIDEO_PREPROCESSOR, read(&source.join(VIDEO_PREPROCESSOR))?));
    }
    if let Some(map) = special_tokens::map(source)? {
        files.push((SPECIAL_TOKENS_MAP, map));
    }
    Ok(files)
}

/// `config.json`, with what transformers.js needs to know about the graphs.
fn config(source: &Path, inputs: &CompanionInputs) -> Result<Vec<u8>, CheckpointError> {
    let path = source.join(CONFIG);
    let is_fp16 = inputs.precision == Precision::Fp16;
    if !is_fp16 && inputs.external_data.is_empty() {
        return read(&path);
    }
    let mut config: Value = read_json(&path)?;
    let js = &mut config["transformers.js_config"];
    if !js.is_object() {
        *js = json!({});
    }
    if is_fp16 {
        // Only weights are f16 here; without this transformers.js takes the KV cache for f16 as
        // well.
        js["kv_cache_dtype"] = json!({ "fp16": "float32" });
    }
    if !inputs.external_data.is_empty() {
        js["use_external_data_format"] = inputs
            .external_data
            .iter()
            .map(|graph| (graph.clone(), json!(true)))
            .collect();
    }
    Ok(pretty(&config))
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
