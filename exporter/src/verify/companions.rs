//! The small files of a bundle against the checkpoint's: a model that computes right still answers wrong with another tokenizer.

use std::fs;
use std::path::Path;

use serde_json::Value;

use super::VerifyError;
use crate::report::Files;

/// Copied byte for byte where the checkpoint carries them.
const COPIED: [&str; 5] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "preprocessor_config.json", "processor_config.json"];

/// What the exporter adds to `config.json` for transformers.js.
const ADDED: &str = "transformers.js_config";

/// Compares every companion file that `source` carries.
pub(super) fn compare(bundle: &Path, source: &Path) -> Result<Files, VerifyError> {
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
        let mut config = json(&folder.join("config.json"))?;
        if let Some(config) = config.as_object_mut() {
            config.remove(ADDED);
        }
        Ok(config)
    };
    judge("config.json", config(bundle)? == config(source)?);
    if let Some(template) = chat_template(source)? {
        judge("chat_template.jinja", read(&bundle.join("chat_template.jinja"))? == template.as_bytes());
    }
    Ok(files)
}

/// The checkpoint's chat template, from whichever of its three places has it.
fn chat_template(source: &Path) -> Result<Option<String>, VerifyError> {
    let jinja = source.join("chat_template.jinja");
    if jinja.is_file() {
        return Ok(Some(String::from_utf8_lossy(&read(&jinja)?).into_owned()));
    }
    for name in ["chat_template.json", "tokenizer_config.json"] {
        let path = source.join(name);
        if path.is_file()
            && let Some(template) = json(&path)?["chat_template"].as_str()
        {
            return Ok(Some(template.to_owned()));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Vec<u8>, VerifyError> {
    fs::read(path).map_err(|source| VerifyError::Io { path: path.to_owned(), source })
}

fn json(path: &Path) -> Result<Value, VerifyError> {
    serde_json::from_slice(&read(path)?).map_err(|error| VerifyError::Io { path: path.to_owned(), source: error.into() })
}
