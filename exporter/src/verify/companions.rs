//! The small files of a bundle against the checkpoint's: a model that computes correctly still
//! answers wrongly with another tokenizer.
//!
//! So does one whose inputs are prepared by other rules, and both sides of a verification use the
//! manifest's: its fields are read from the checkpoint once more and compared, too.

use std::fs;
use std::path::Path;

use firmware_config::manifest::{Manifest, PromptTokens};
use vlm::{MANIFEST, Tokenizer};

use super::VerifyError;
use crate::arch::smolvlm::{self, SmolVlm};
use crate::bundle::companions::{CompanionInputs, files};
use crate::bundle::graphs;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::files::TOKENIZER;
use crate::metadata::Metadata;
use crate::report::FileComparison;

/// Compares every companion file with what it should be for `checkpoint`, and the manifest's fields
/// with the checkpoint's.
pub(super) fn compare(
    bundle: &Path,
    manifest: &Manifest,
    checkpoint: &Checkpoint,
    model: &SmolVlm,
) -> Result<FileComparison, VerifyError> {
    let metadata = Metadata::read(checkpoint, model)?;
    let mut comparison = FileComparison {
        compared: 0,
        differ: Vec::new(),
    };
    let mut record = |name: String, is_same: bool| {
        comparison.compared += 1;
        if !is_same {
            comparison.differ.push(name);
        }
    };
    let external_data = graphs::with_external_data(manifest);
    let inputs = CompanionInputs {
        geometry: &model.geometry,
        metadata: &metadata,
        precision: manifest.precision,
        external_data: &external_data,
    };
    // Every companion file, byte for byte.
    let companions = files(checkpoint.dir(), &inputs)?;
    // Some are read only where they exist, so an extra one counts like one that differs.
    let is_companion = |file: &str| companions.iter().any(|(name, _)| *name == file);
    for extra in manifest
        .files
        .keys()
        .filter(|file| !graphs::is_graph_file(manifest, file) && !is_companion(file))
    {
        record(extra.clone(), false);
    }
    for (name, expected) in companions {
        let path = bundle.join(name);
        record(name.into(), path.is_file() && read(&path)? == expected);
    }
    // Every field of the manifest that the checkpoint determines.
    let tokens_agree =
        manifest.prompt == metadata.prompt && tokens_agree(&manifest.prompt, checkpoint.dir())?;
    for (field, is_same) in [
        (
            "source.sha256",
            manifest.source.sha256 == checkpoint.sha256(),
        ),
        ("architecture", manifest.architecture == smolvlm::NAME),
        ("geometry", manifest.geometry == model.geometry),
        ("image", manifest.image == metadata.image),
        ("video", manifest.video == metadata.video),
        ("prompt", tokens_agree),
    ] {
        record(format!("{MANIFEST}: {field}"), is_same);
    }
    Ok(comparison)
}

/// Whether the tokenizer itself, not only its file, gives the special tokens these ids.
fn tokens_agree(tokens: &PromptTokens, source: &Path) -> Result<bool, VerifyError> {
    let tokenizer =
        Tokenizer::from_json(&read(&source.join(TOKENIZER))?).map_err(VerifyError::Tokenizer)?;
    let named = [
        ("<image>", tokens.image),
        ("<fake_token_around_image>", tokens.fake_token_around_image),
        ("<global-img>", tokens.global_img),
    ];
    let rows_cols = tokens
        .rows_cols
        .iter()
        .map(|(content, &id)| (content.as_str(), id));
    Ok(named
        .into_iter()
        .chain(rows_cols)
        .all(|(content, id)| tokenizer.id(content) == Some(id)))
}

fn read(path: &Path) -> Result<Vec<u8>, VerifyError> {
    fs::read(path).map_err(|source| VerifyError::Io {
        path: path.to_owned(),
        source,
    })
}
