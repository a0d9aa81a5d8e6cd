//! Prompt tokens, found by content in `tokenizer.json`: their ids differ between vocabularies.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use firmware_config::manifest::PromptTokens;
use serde::Deserialize;

use crate::checkpoint::CheckpointError;
use crate::checkpoint::files::GENERATION_CONFIG;
use crate::checkpoint::json::read_json;

/// The tokens that a tokenizer adds to its vocabulary.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    /// The tokenizer's file, for errors.
    path: PathBuf,
    ids: BTreeMap<String, u32>,
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

impl AddedTokens {
    pub(crate) fn read(path: &Path) -> Result<Self, CheckpointError> {
        let tokenizer: TokenizerFile = read_json(path)?;
        let ids = tokenizer
            .added_tokens
            .into_iter()
            .map(|token| (token.content, token.id))
            .collect();
        Ok(AddedTokens {
            path: path.to_owned(),
            ids,
        })
    }

    pub(crate) fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    fn need(&self, content: &str) -> Result<u32, CheckpointError> {
        let missing = || {
            let added = self.ids.len();
            // Idefics3-8B and the first SmolVLM-Instruct have only some of these tokens.
            format!(
                "{content:?} is not among its {added} added tokens; expected the tokenizer of a SmolVLM2 model (some earlier ones spell this token in several)"
            )
        };
        self.id(content).ok_or_else(|| self.diagnostic(missing()))
    }

    fn diagnostic(&self, diagnostic: String) -> CheckpointError {
        CheckpointError::json(&self.path, diagnostic)
    }

    /// A token's content, or its id where it is not an added token.
    pub(crate) fn content(&self, id: u32) -> String {
        self.ids
            .iter()
            .find(|(_, other)| **other == id)
            .map_or_else(|| id.to_string(), |(content, _)| content.clone())
    }

    /// The tokens of a prompt. `image` is the id of `<image>` in `config.json`, `eos` the end ids
    /// in `generation_config.json`; either may be missing.
    pub(crate) fn prompt(
        &self,
        image: Option<u32>,
        eos: &[u32],
        vocab_size: usize,
    ) -> Result<PromptTokens, CheckpointError> {
        let found = self.need("<image>")?;
        if let Some(image) = image.filter(|&image| image != found) {
            let text = format!(
                "\"<image>\" is {found}, expected {image}, the image_token_id in config.json; they are of different models"
            );
            return Err(self.diagnostic(text));
        }
        let mut stop = match eos {
            // The template ends every turn with this token.
            [] => Vec::from_iter(self.id("<end_of_utterance>")),
            ids => ids.to_vec(),
        };
        stop.extend(
            ["<|im_end|>", "<|endoftext|>"]
                .iter()
                .filter_map(|content| self.id(content)),
        );
        let mut seen = std::collections::BTreeSet::new();
        stop.retain(|&id| seen.insert(id));
        let tokens = PromptTokens {
            image: found,
            fake_token_around_image: self.need("<fake_token_around_image>")?,
            global_img: self.need("<global-img>")?,
            rows_cols: self
                .ids
                .iter()
                .filter(|(content, _)| is_row_col(content))
                .map(|(content, &id)| (content.clone(), id))
                .collect(),
            stop,
        };
        let all = [
            tokens.image,
            tokens.fake_token_around_image,
            tokens.global_img,
        ]
        .into_iter();
        if let Some(id) = all
            .chain(tokens.rows_cols.values().copied())
            .chain(tokens.stop.iter().copied())
            .find(|&id| id as usize >= vocab_size)
        {
            let text = format!(
                "token id {id}, from here or from {GENERATION_CONFIG}, is outside the embedding, expected an id below {vocab_size}; the files are of different models"
            );
            return Err(self.diagnostic(text));
        }
        Ok(tokens)
    }
}

/// `<row_r_col_c>` with r and c numbers.
fn is_row_col(content: &str) -> bool {
    let numbers = content
        .strip_prefix("<row_")
        .and_then(|rest| rest.strip_suffix('>'))
        .and_then(|rest| rest.split_once("_col_"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    numbers.is_some_and(|(row, column)| is_number(row) && is_number(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(contents: &[&str]) -> AddedTokens {
        let ids = contents
            .iter()
            .enumerate()
            .map(|(id, &content)| (content.to_owned(), id as u32))
            .collect();
        AddedTokens {
            path: "tokenizer.json".into(),
            ids,
        }
    }

    const ALL: [&str; 8] = [
        "<|endoftext|>",
        "<|im_end|>",
        "<image>",
        "<fake_token_around_image>",
        "<global-img>",
        "<row_1_col_2>",
        "<row_x_col_2>",
        "<end_of_utterance>",
    ];

    #[test]
    fn tokens_are_found_by_content() {
        let prompt = tokens(&ALL).prompt(Some(2), &[7, 7], 8).unwrap();
        assert_eq!(
            (
                prompt.image,
                prompt.fake_token_around_image,
                prompt.global_img
            ),
            (2, 3, 4)
        );
        assert_eq!(
            prompt.rows_cols,
            BTreeMap::from([("<row_1_col_2>".into(), 5)])
        );
        assert_eq!(prompt.stop, [7, 1, 0]);
        assert_eq!(
            tokens(&ALL).prompt(Some(2), &[], 8).unwrap().stop,
            [7, 1, 0],
            "without end ids, the end of a turn ends an answer"
        );
    }

    #[test]
    fn contradictions_are_reported() {
        let error = |result: Result<PromptTokens, CheckpointError>| result.unwrap_err().to_string();
        assert!(
            error(tokens(&ALL).prompt(Some(3), &[], 8))
                .contains("\"<image>\" is 2, expected 3, the image_token_id in config.json")
        );
        assert!(error(tokens(&ALL).prompt(None, &[49279], 8)).contains(
            "token id 49279, from here or from generation_config.json, is outside the embedding"
        ));
        assert!(
            error(tokens(&ALL[3..]).prompt(None, &[], 8))
                .contains("\"<image>\" is not among its 5 added tokens")
        );
    }
}
