//! Types of `tests/data/reference.json`: what transformers computes from the synthetic checkpoints.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;
use vlm::video::{Clip, ClipFrame};
use vlm::{Content, Picture, Request, Role, Split, Turn};

/// The file's content.
pub static REFERENCE: LazyLock<Reference> = LazyLock::new(|| {
    serde_json::from_slice(&std::fs::read(crate::data("reference.json")).unwrap())
        .expect("tests/data/reference.json")
});

/// The results for all checkpoints.
#[derive(Debug, Deserialize)]
pub struct Reference {
    /// By checkpoint name.
    pub sizes: BTreeMap<String, Size>,
}

/// The results for one checkpoint.
#[derive(Debug, Deserialize)]
pub struct Size {
    /// Conversations with still images and text.
    pub cases: Vec<Case>,
    /// A clip of four flat grey frames.
    pub video: Option<Video>,
}

/// One conversation.
#[derive(Debug, Deserialize)]
pub struct Case {
    /// Short name of the case.
    pub name: String,
    /// Files of `tests/data/images`, in prompt order.
    pub images: Vec<String>,
    /// Whether they are split into tiles.
    pub split: bool,
    /// (role, items) with items `["image"]` or `["text", "…"]`.
    pub turns: Vec<(String, Vec<Vec<String>>)>,
    /// The rendered prompt, before image expansion.
    pub prompt: String,
    /// Token ids after image expansion.
    pub input_ids: Vec<u32>,
    /// Only with images.
    pub pixel_values: Option<Pixels>,
    /// Only with images.
    pub image_features: Option<Features>,
    /// Logits of the last prompt position.
    pub logits: LastLogits,
    /// The greedy answer.
    pub generated: Generated,
}

/// Processed pixels.
#[derive(Debug, Deserialize)]
pub struct Pixels {
    /// [1, frames, 3, T, T].
    pub shape: [usize; 5],
    /// Of the u8 bytes as [frames, T, T, RGB].
    pub u8_sha256: String,
}

/// The vision encoder's output.
#[derive(Debug, Deserialize)]
pub struct Features {
    /// [frames · S, H].
    pub shape: [usize; 2],
    /// (flat index, value).
    pub samples: Vec<(usize, f32)>,
}

/// Logits of one position.
#[derive(Debug, Deserialize)]
pub struct LastLogits {
    /// (id, value), largest first.
    pub top5: Vec<(usize, f32)>,
    /// (id, value).
    pub samples: Vec<(usize, f32)>,
    /// Natural log of the sum of exp; not given for clips.
    pub logsumexp: Option<f64>,
}

/// A greedy answer.
#[derive(Debug, Deserialize)]
pub struct Generated {
    /// Tokens.
    pub ids: Vec<u32>,
    /// Natural log of each token's probability.
    pub logprobs: Vec<f64>,
}

/// The results for the clip.
#[derive(Debug, Deserialize)]
pub struct Video {
    /// The question.
    pub text: String,
    /// Token ids after image expansion.
    pub input_ids: Vec<u32>,
    /// Logits of the last prompt position.
    pub logits: LastLogits,
}

impl Case {
    /// The case as a request with a trace.
    ///
    /// # Panics
    /// When an image file is missing or cannot be decoded.
    pub fn request(&self) -> Request {
        let mut images = self.images.iter().map(|name| {
            let bytes = std::fs::read(crate::data("images").join(name)).unwrap();
            Content::Picture(Picture::decode(&bytes).unwrap())
        });
        let turns = self.turns.iter().map(|(role, items)| Turn {
            role: match role.as_str() {
                "system" => Role::System,
                "assistant" => Role::Assistant,
                _ => Role::User,
            },
            content: items
                .iter()
                .map(|item| match item.as_slice() {
                    [_, text] => Content::Text(text.clone()),
                    _ => images.next().expect("one file for each image"),
                })
                .collect(),
        });
        Request {
            turns: turns.collect(),
            candidates: Vec::new(),
            split: if self.split { Split::On } else { Split::Off },
            max_new_tokens: self.generated.ids.len(),
            top_logprobs: 0,
            trace: true,
        }
    }
}

impl Video {
    /// Four flat grey frames of 160 x 120 pixels, one a second, and the question.
    pub fn request(&self) -> Request {
        let frame = |second: u64, level: u8| ClipFrame {
            picture: Picture::from_rgb(160, 120, vec![level; 160 * 120 * 3])
                .expect("the size matches the data"),
            at: std::time::Duration::from_secs(second),
        };
        let frames = [60, 100, 140, 180]
            .into_iter()
            .zip(0..)
            .map(|(level, second)| frame(second, level))
            .collect();
        let clip = Clip {
            frames,
            duration: std::time::Duration::from_secs(4),
        };
        Request {
            turns: vec![Turn {
                role: Role::User,
                content: vec![Content::Clip(clip), Content::Text(self.text.clone())],
            }],
            max_new_tokens: 1,
            trace: true,
            ..Request::default()
        }
    }
}
