//! The small files of a bundle against the checkpoint's: a model that computes right still answers wrong with another tokenizer.
//!
//! So does one that is fed by other rules, and both sides of a verification are fed by the manifest's: what it says of pictures and
//! special tokens is compared too.

use std::fs;
use std::path::Path;

use firmware_config::manifest::{ImageRules, Manifest, PromptTokens};
use serde_json::{Value, json};
use vlm::bundle::MANIFEST;
use vlm::tokenizer::Tokenizer;

use super::VerifyError;
use crate::bundle::companions::chat_template;
use crate::report::Files;

/// Copied byte for byte where the checkpoint carries them.
const COPIED: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"];

/// What the exporter adds to `config.json` for transformers.js.
const ADDED: &str = "transformers.js_config";

/// Compares every companion file that `source` carries, and the manifest's rules with them.
pub(super) fn compare(bundle: &Path, manifest: &Manifest, source: &Path) -> Result<Files, VerifyError> {
    let mut files = Files { compared: 0, differ: Vec::new() };
    let mut judge = |name: &str, is_same: bool| {
        files.compared += 1;
        if !is_same {
            files.differ.push(name.to_owned());
        }
    };
    for name in COPIED.into_iter().filter(|name| source.join(name).is_file()) {
        judge(name, read(&bundle.join(name))? == read(&source.join(name))?);
    }
    let config = |folder: &Path| -> Result<Value, VerifyError> {
        let mut config = read_json(&folder.join("config.json"))?;
        if let Some(config) = config.as_object_mut() {
            config.remove(ADDED);
        }
        Ok(config)
    };
    judge("config.json", config(bundle)? == config(source)?);
    if let Some(template) = chat_template(source)? {
        judge("chat_template.jinja", read(&bundle.join("chat_template.jinja"))? == template);
    }
    let rules_agree = picture_rules_agree(&manifest.image, source)? && tokens_agree(&manifest.prompt, source)?;
    judge(MANIFEST, rules_agree);
    Ok(files)
}

/// Whether pictures are prepared as the checkpoint's processor says, where it does.
fn picture_rules_agree(rules: &ImageRules, source: &Path) -> Result<bool, VerifyError> {
    let path = source.join("preprocessor_config.json");
    if !path.is_file() {
        return Ok(true);
    }
    let processor = read_json(&path)?;
    let same = |said: &Value, value: Value| said.is_null() || said.as_f64() == value.as_f64();
    let same_channels = |said: &Value, values: [f32; 3]| {
        said.as_array().is_none_or(|said| {
            said.len() == 3 && said.iter().zip(values).all(|(said, value)| said.as_f64().map(|s| s as f32) == Some(value))
        })
    };
    Ok(same(&processor["size"]["longest_edge"], json!(rules.longest_edge))
        && same(&processor["max_image_size"]["longest_edge"], json!(rules.tile_size))
        && same_channels(&processor["image_mean"], rules.mean)
        && same_channels(&processor["image_std"], rules.std))
}

/// Whether the special tokens have the ids that the checkpoint's tokenizer gives them, and answers end where it says.
fn tokens_agree(tokens: &PromptTokens, source: &Path) -> Result<bool, VerifyError> {
    let tokenizer = Tokenizer::from_json(&read(&source.join("tokenizer.json"))?).map_err(VerifyError::Tokenizer)?;
    let named =
        [("<image>", tokens.image), ("<fake_token_around_image>", tokens.fake_token_around_image), ("<global-img>", tokens.global_img)];
    let rows_cols = tokens.rows_cols.iter().map(|(content, &id)| (content.as_str(), id));
    let path = source.join("generation_config.json");
    let ends = match path.is_file() {
        true => read_json(&path)?["eos_token_id"].clone(),
        false => Value::Null,
    };
    let mut ends = ends.as_array().cloned().unwrap_or_else(|| vec![ends]).into_iter().filter_map(|id| id.as_u64());
    Ok(named.into_iter().chain(rows_cols).all(|(content, id)| tokenizer.id(content) == Some(id))
        && ends.all(|end| tokens.stop.iter().any(|&stop| u64::from(stop) == end)))
}

fn read(path: &Path) -> Result<Vec<u8>, VerifyError> {
    fs::read(path).map_err(|source| VerifyError::Io { path: path.to_owned(), source })
}

fn read_json(path: &Path) -> Result<Value, VerifyError> {
    serde_json::from_slice(&read(path)?).map_err(|error| VerifyError::Io { path: path.to_owned(), source: error.into() })
}
