//! SmolVLM2 checkpoints with synthetic weights, in the layout of the published ones.
//!
//! Every weight is a pure function of (seed, tensor name, element index), so
//! `tests/data/reference.json` can hold what transformers computes from them without shipping them:
//!
//! ```text
//! h     = FNV-1a 64 of the tensor's name, xor seed
//! z(i)  = splitmix64 finaliser of h + (i+1) · 0x9E3779B97F4A7C15          i: flat row-major index
//! u(i)  = (z(i) >> 40) / 2^23 - 1                                          in [-1, 1), exact in f32
//! value = f32(centre) + f32(scale) · u(i)
//! ```
//!
//! The variations ([`Synthetic::seed`], [`Synthetic::dtype`], [`Synthetic::shards`], …) are
//! checkpoints without a reference, which exporter and runtime must also accept.

mod configs;
mod tensors;
#[cfg(test)]
mod tests;
mod weights;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use tensors::Tensor;

/// A checkpoint to be written: sizes of its parts, and how its weights are stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Synthetic {
    /// Folder name of the shared copy, and the model name an export gives.
    pub name: String,
    /// Vision encoder.
    pub vision: Vision,
    /// Text decoder.
    pub text: Text,
    /// Pixel shuffle: patches per side that become one image token.
    pub scale_factor: usize,
    /// The longest edge an image is first resized to, in pixels.
    pub longest_edge: usize,
    /// Selects another set of weights.
    pub seed: u64,
    /// How weights are stored.
    pub dtype: Dtype,
    /// Number of weight files; more than one come with an index.
    pub shards: usize,
}

/// Sizes of a vision encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vision {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// Side of a tile in pixels.
    pub image_size: usize,
    /// Side of a patch in pixels.
    pub patch_size: usize,
}

/// Sizes of a text decoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Text {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside an MLP.
    pub intermediate_size: usize,
    /// Transformer blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Rows of the embedding and the head.
    pub vocab_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Where the config holds theta.
    pub rope: Rope,
    /// Whether the embedding is the head as well, and no head is stored.
    pub tied: bool,
}

/// Where a config holds theta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rope {
    /// `text_config.rope_theta`, as in the published files.
    Flat,
    /// `text_config.rope_parameters.rope_theta`, as newer transformers save it.
    Nested,
}

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// 32-bit floats, as the published files.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Dtype {
    fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    fn push(self, value: f32, out: &mut Vec<u8>) {
        match self {
            Dtype::F32 => out.extend(value.to_le_bytes()),
            Dtype::F16 => out.extend(half::f16::from_f32(value).to_le_bytes()),
            Dtype::Bf16 => out.extend(half::bf16::from_f32(value).to_le_bytes()),
        }
    }
}

/// The 256M and 500M models' vision encoder.
const SIGLIP_BASE: Vision = Vision {
    hidden_size: 768,
    intermediate_size: 3072,
    layers: 12,
    heads: 12,
    image_size: 512,
    patch_size: 16,
};

impl Synthetic {
    /// The published architecture at its smallest: grouped-query attention 3:1, 64-pixel tiles, 4
    /// tokens each. 80 MB, nearly all of it vocabulary.
    pub fn micro() -> Self {
        Synthetic::new(
            "micro",
            Vision {
                hidden_size: 64,
                intermediate_size: 160,
                layers: 2,
                heads: 2,
                image_size: 64,
                patch_size: 8,
            },
            Text {
                hidden_size: 192,
                intermediate_size: 256,
                layers: 3,
                heads: 3,
                kv_heads: 1,
                ..Text::published(1e5)
            },
            4,
            256,
        )
    }

    /// The 2.2B model's traits at the smallest size: one key per query head, head width 72 in
    /// vision, patches that do not fill the tile, pixel shuffle by 3. 53 MB.
    pub fn micro_so400m() -> Self {
        Synthetic::new(
            "micro-so400m",
            Vision {
                hidden_size: 72,
                intermediate_size: 148,
                layers: 2,
                heads: 1,
                image_size: 90,
                patch_size: 14,
            },
            Text {
                hidden_size: 128,
                intermediate_size: 320,
                layers: 2,
                heads: 2,
                kv_heads: 2,
                ..Text::published(1.3e5)
            },
            3,
            360,
        )
    }

    /// SmolVLM2-256M-Video-Instruct's sizes. 1.0 GB.
    pub fn m256() -> Self {
        Synthetic::new(
            "256m",
            SIGLIP_BASE,
            Text {
                hidden_size: 576,
                intermediate_size: 1536,
                layers: 30,
                heads: 9,
                kv_heads: 3,
                ..Text::published(1e5)
            },
            4,
            2048,
        )
    }

    /// SmolVLM2-500M-Video-Instruct's sizes. 2.0 GB.
    pub fn m500() -> Self {
        Synthetic::new(
            "500m",
            SIGLIP_BASE,
            Text {
                hidden_size: 960,
                intermediate_size: 2560,
                layers: 32,
                heads: 15,
                kv_heads: 5,
                ..Text::published(1e5)
            },
            4,
            2048,
        )
    }

    /// The checkpoint called `name` in `tests/data/reference.json`.
    ///
    /// # Panics
    /// On any other name.
    pub fn named(name: &str) -> Self {
        match name {
            "micro" => Synthetic::micro(),
            "micro-so400m" => Synthetic::micro_so400m(),
            "256m" => Synthetic::m256(),
            "500m" => Synthetic::m500(),
            _ => panic!("no synthetic checkpoint is called {name:?}"),
        }
    }

    fn new(
        name: &str,
        vision: Vision,
        text: Text,
        scale_factor: usize,
        longest_edge: usize,
    ) -> Self {
        Synthetic {
            name: name.into(),
            vision,
            text,
            scale_factor,
            longest_edge,
            seed: 0,
            dtype: Dtype::F32,
            shards: 1,
        }
    }

    /// With other weights.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Stored as `dtype`.
    pub fn dtype(mut self, dtype: Dtype) -> Self {
        self.dtype = dtype;
        self
    }

    /// Spread over `shards` weight files.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Without a head of its own.
    pub fn tied(mut self) -> Self {
        self.text.tied = true;
        self
    }

    /// With `kv_heads` key and value heads.
    pub fn kv_heads(mut self, kv_heads: usize) -> Self {
        self.text.kv_heads = kv_heads;
        self
    }

    /// With text heads of another width.
    pub fn head_dim(mut self, head_dim: usize) -> Self {
        self.text.head_dim = head_dim;
        self
    }

    /// With theta where newer transformers put it.
    pub fn nested_rope(mut self) -> Self {
        self.text.rope = Rope::Nested;
        self
    }

    /// Writes the checkpoint folder: weights, configs, and the published tokenizer.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::copy(tokenizer(), dir.join("tokenizer.json"))?;
        for (file, content) in self.configs() {
            let text = serde_json::to_string_pretty(&content).map_err(io::Error::other)?;
            fs::write(dir.join(file), text)?;
        }
        self.write_weights(dir)
    }

    /// A copy made once for this target folder and cached there; read-only for tests.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn shared(&self) -> PathBuf {
        let key = fnv1a64(&format!("{self:?}"));
        crate::kept::kept(&format!("synthetic/{key:016x}/{}", self.name), |dir| {
            self.write(dir)
                .expect("a synthetic checkpoint can be written")
        })
    }
}

impl Text {
    /// What all published sizes have in common.
    fn published(rope_theta: f64) -> Self {
        Text {
            hidden_size: 0,
            intermediate_size: 0,
            layers: 0,
            heads: 0,
            kv_heads: 0,
            head_dim: 64,
            vocab_size: 49280,
            rope_theta,
            rope: Rope::Flat,
            tied: false,
        }
    }
}

fn fnv1a64(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3)
    })
}

/// The tokenizer of the published models.
fn tokenizer() -> PathBuf {
    crate::data("tokenizer.json")
}
