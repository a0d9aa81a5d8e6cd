//! What transformers computes, for the tests: `tests/data/reference.json`, and the images and
//! tokenizer it was made with.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use firmware_config::manifest::{ImageRules, PromptTokens};
use serde_json::Value;

use crate::picture::Picture;
use crate::request::{Content, Role, Turn};
use crate::tokenizer::Tokenizer;

/// A model size of the reference: its name and (image size, patch size, scale factor).
pub(crate) const SIZES: [(&str, usize, usize, usize); 4] = [
    ("micro", 64, 8, 4),
    ("micro-so400m", 90, 14, 3),
    ("256m", 512, 16, 4),
    ("500m", 512, 16, 4),
];

fn file(path: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data")
        .join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub(crate) fn picture_file(name: &str) -> Vec<u8> {
    file(&format!("pictures/{name}"))
}

pub(crate) fn picture(name: &str) -> Picture {
    Picture::decode(&file(&format!("images/{name}"))).expect("a reference image decodes")
}

pub(crate) fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    TOKENIZER
        .get_or_init(|| {
            Arc::new(Tokenizer::from_json(&file("tokenizer.json")).expect("the tokenizer loads"))
        })
        .clone()
}

pub(crate) fn tokens() -> PromptTokens {
    let tokenizer = tokenizer();
    let id = |name: &str| {
        tokenizer
            .id(name)
            .unwrap_or_else(|| panic!("the tokenizer has no {name}"))
    };
    let tile = |row, col| {
        let name = format!("<row_{row}_col_{col}>");
        let id = id(&name);
        (name, id)
    };
    PromptTokens {
        image: id("<image>"),
        fake_token_around_image: id("<fake_token_around_image>"),
        global_img: id("<global-img>"),
        rows_cols: (1..=6)
            .flat_map(|row| (1..=6).map(move |col| (row, col)))
            .map(|(row, col)| tile(row, col))
            .collect(),
        stop: vec![
            id("<end_of_utterance>"),
            id("<|im_end|>"),
            id("<|endoftext|>"),
        ],
    }
}

pub(crate) fn sizes() -> &'static Value {
    static REFERENCE: OnceLock<Value> = OnceLock::new();
    &REFERENCE.get_or_init(|| {
        serde_json::from_slice(&file("reference.json")).expect("the reference is JSON")
    })["sizes"]
}

pub(crate) fn rules(size: &str) -> ImageRules {
    let (name, tile_size, patch, scale) = SIZES
        .into_iter()
        .find(|(name, ..)| *name == size)
        .expect("a size of the reference");
    ImageRules {
        tile_size,
        longest_edge: sizes()[name]["longest_edge"].as_u64().expect("a number") as usize,
        mean: [0.5; 3],
        std: [0.5; 3],
        splits_by_default: true,
        tokens_per_tile: (tile_size / patch / scale).pow(2),
    }
}

pub(crate) fn ids(case: &Value) -> Vec<u32> {
    serde_json::from_value(case["input_ids"].clone()).expect("ids")
}

/// The cases of one size.
pub(crate) fn cases(size: &str) -> impl Iterator<Item = &'static Value> {
    sizes()[size]["cases"].as_array().expect("cases").iter()
}

pub(crate) fn split(case: &Value) -> bool {
    case["split"].as_bool().expect("a boolean")
}

/// The conversation of one case.
pub(crate) fn turns(case: &Value) -> Vec<Turn> {
    let mut pictures = case["images"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|name| picture(name.as_str().expect("a name")));
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut content = |item: &Value| match item[0].as_str() {
        Some("image") => {
            Content::Picture(pictures.next().expect("as many images as `image` items"))
        }
        _ => Content::Text(text(&item[1])),
    };
    let turn = |turn: &Value| Turn {
        role: match turn[0].as_str() {
            Some("system") => Role::System,
            Some("assistant") => Role::Assistant,
            _ => Role::User,
        },
        content: turn[1]
            .as_array()
            .expect("items")
            .iter()
            .map(&mut content)
            .collect(),
    };
    case["turns"]
        .as_array()
        .expect("turns")
        .iter()
        .map(turn)
        .collect()
}
