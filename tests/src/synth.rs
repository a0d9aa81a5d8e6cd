//! SmolVLM2 checkpoints with synthetic weights, in the layout of the published ones.
//!
//! Every weight is a pure function of (seed, tensor name, element index), so
//! `tests/data/reference.json` can hold what transformers computes from them without anyone having
//! to ship them:
//!
//! ```text
//! h     = FNV-1a 64 of the tensor's name, xor seed
//! z(i)  = splitmix64 finaliser of h + (i+1) · 0x9E3779B97F4A7C15          i: flat row-major index
//! u(i)  = (z(i) >> 40) / 2^23 - 1                                          in [-1, 1), exact in f32
//! value = f32(centre) + f32(scale) · u(i)
//! ```
//!
//! The variations ([`Synthetic::seed`], [`Synthetic::dtype`], [`Synthetic::shards`], …) are
//! checkpoints that no reference knows: what exporter and runtime must also take.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use firmware_config::manifest::ImageRules;
use serde_json::{Map, Value, json};

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
    /// The longest edge a picture is first resized to, in pixels.
    pub longest_edge: usize,
    /// Picks another set of weights.
    pub seed: u64,
    /// How weights are stored.
    pub dtype: Dtype,
    /// Weight files; more than one come with an index.
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
    /// Where the config says so.
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

    /// The checkpoint of that name in `tests/data/reference.json`.
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

    /// A copy made once for this target folder and kept; read it, never write into it.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn shared(&self) -> PathBuf {
        let key = fnv1a64(&format!("{self:?}"));
        crate::kept::kept(&format!("synthetic/{key:016x}/{}", self.name), |dir| {
            self.write(dir).expect("a synthetic checkpoint is written")
        })
    }

    /// File names and contents of the folder's configs.
    pub fn configs(&self) -> [(&'static str, Value); 4] {
        [
            ("config.json", self.config()),
            (
                "generation_config.json",
                json!({ "bos_token_id": 0, "eos_token_id": 49279, "pad_token_id": 2 }),
            ),
            (
                "processor_config.json",
                json!({ "processor_class": "SmolVLMProcessor", "image_seq_len": self.tokens_per_tile() }),
            ),
            ("preprocessor_config.json", self.preprocessor_config()),
        ]
    }

    fn tokens_per_tile(&self) -> usize {
        (self.vision.image_size / self.vision.patch_size / self.scale_factor).pow(2)
    }

    /// How its pictures become pixel values.
    pub fn image_rules(&self) -> ImageRules {
        ImageRules {
            tile_size: self.vision.image_size,
            longest_edge: self.longest_edge,
            mean: [0.5; 3],
            std: [0.5; 3],
            splits_by_default: true,
            tokens_per_tile: self.tokens_per_tile(),
        }
    }

    fn config(&self) -> Value {
        let (vision, text) = (&self.vision, &self.text);
        let mut text_config = json!({
            "model_type": "llama",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "attention_bias": false,
            "mlp_bias": false,
            "pad_token_id": 2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "head_dim": text.head_dim,
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "num_key_value_heads": text.kv_heads,
        });
        match text.rope {
            Rope::Flat => text_config["rope_theta"] = json!(text.rope_theta),
            Rope::Nested => {
                text_config["rope_parameters"] =
                    json!({ "rope_theta": text.rope_theta, "rope_type": "default" })
            }
        }
        text_config["tie_word_embeddings"] = json!(text.tied);
        json!({
            "architectures": ["SmolVLMForConditionalGeneration"],
            "model_type": "smolvlm",
            "image_token_id": 49190,
            "scale_factor": self.scale_factor,
            "tie_word_embeddings": text.tied,
            "pad_token_id": 128002,
            "torch_dtype": "float32",
            "text_config": text_config,
            "vision_config": {
                "model_type": "smolvlm_vision",
                "hidden_size": vision.hidden_size,
                "intermediate_size": vision.intermediate_size,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.heads,
                "image_size": vision.image_size,
                "patch_size": vision.patch_size,
                "num_channels": 3,
                "hidden_act": "gelu_pytorch_tanh",
                "layer_norm_eps": 1e-6,
            },
        })
    }

    fn preprocessor_config(&self) -> Value {
        let tile = self.vision.image_size;
        json!({
            "do_convert_rgb": true,
            "do_image_splitting": true,
            "do_normalize": true,
            "do_pad": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "image_processor_type": "SmolVLMImageProcessor",
            "processor_class": "SmolVLMProcessor",
            "max_image_size": { "longest_edge": tile },
            "size": { "longest_edge": self.longest_edge },
            "resample": 1,
            "rescale_factor": 1.0 / 255.0,
            "video_sampling": { "fps": 1, "max_frames": 64, "video_size": { "longest_edge": tile } },
        })
    }

    /// Every tensor, in the order of the published files.
    pub fn tensors(&self) -> Vec<Tensor> {
        let Vision {
            hidden_size: dv,
            intermediate_size: iv,
            layers,
            image_size,
            patch_size: p,
            ..
        } = self.vision;
        let Text {
            hidden_size: h,
            intermediate_size: i,
            heads,
            kv_heads,
            head_dim,
            vocab_size,
            ..
        } = self.text;
        let (q, kv, s) = (heads * head_dim, kv_heads * head_dim, self.scale_factor);
        let grid = image_size / p;

        let mut tensors = Vec::new();
        let mut add = |name: String, shape: &[usize]| {
            tensors.push(Tensor {
                name,
                shape: shape.to_vec(),
            })
        };
        if !self.text.tied {
            add("lm_head.weight".into(), &[vocab_size, h]);
        }
        add(
            "model.connector.modality_projection.proj.weight".into(),
            &[h, dv * s * s],
        );
        add(
            "model.text_model.embed_tokens.weight".into(),
            &[vocab_size, h],
        );
        for layer in 0..self.text.layers {
            let mut weight = |name: &str, shape: &[usize]| {
                add(
                    format!("model.text_model.layers.{layer}.{name}.weight"),
                    shape,
                )
            };
            weight("input_layernorm", &[h]);
            weight("mlp.down_proj", &[h, i]);
            weight("mlp.gate_proj", &[i, h]);
            weight("mlp.up_proj", &[i, h]);
            weight("post_attention_layernorm", &[h]);
            weight("self_attn.k_proj", &[kv, h]);
            weight("self_attn.o_proj", &[h, q]);
            weight("self_attn.q_proj", &[q, h]);
            weight("self_attn.v_proj", &[kv, h]);
        }
        add("model.text_model.norm.weight".into(), &[h]);
        let embeddings = "model.vision_model.embeddings";
        add(format!("{embeddings}.patch_embedding.bias"), &[dv]);
        add(
            format!("{embeddings}.patch_embedding.weight"),
            &[dv, 3, p, p],
        );
        add(
            format!("{embeddings}.position_embedding.weight"),
            &[grid * grid, dv],
        );
        for layer in 0..layers {
            let mut pair = |name: &str, weight: &[usize]| {
                let prefix = format!("model.vision_model.encoder.layers.{layer}.{name}");
                add(format!("{prefix}.bias"), &weight[..1]);
                add(format!("{prefix}.weight"), weight);
            };
            pair("layer_norm1", &[dv]);
            pair("layer_norm2", &[dv]);
            pair("mlp.fc1", &[iv, dv]);
            pair("mlp.fc2", &[dv, iv]);
            for projection in ["k_proj", "out_proj", "q_proj", "v_proj"] {
                pair(&format!("self_attn.{projection}"), &[dv, dv]);
            }
        }
        add("model.vision_model.post_layernorm.bias".into(), &[dv]);
        add("model.vision_model.post_layernorm.weight".into(), &[dv]);
        tensors
    }

    fn write_weights(&self, dir: &Path) -> io::Result<()> {
        let tensors = self.tensors();
        if self.shards == 1 {
            return self.write_file(&dir.join("model.safetensors"), &tensors);
        }
        let total: usize = tensors
            .iter()
            .map(|tensor| tensor.elements() * self.dtype.bytes())
            .sum();
        let mut shards = vec![Vec::new(); self.shards];
        let mut before = 0;
        for tensor in tensors {
            let bytes = tensor.elements() * self.dtype.bytes();
            shards[(before * self.shards / total).min(self.shards - 1)].push(tensor);
            before += bytes;
        }
        let mut weight_map = Map::new();
        for (n, tensors) in shards.iter().enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", n + 1, self.shards);
            self.write_file(&dir.join(&file), tensors)?;
            weight_map.extend(
                tensors
                    .iter()
                    .map(|tensor| (tensor.name.clone(), json!(file))),
            );
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
        fs::write(dir.join("model.safetensors.index.json"), index.to_string())
    }

    /// Header, then the tensors, made in pieces by all cores and never held whole.
    fn write_file(&self, path: &Path, tensors: &[Tensor]) -> io::Result<()> {
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({ "format": "pt" }));
        let mut pieces = Vec::new();
        let mut offset = 0;
        for tensor in tensors {
            let end = offset + tensor.elements() * self.dtype.bytes();
            let entry = json!({ "dtype": self.dtype.name(), "shape": tensor.shape, "data_offsets": [offset, end] });
            header.insert(tensor.name.clone(), entry);
            pieces.extend((0..tensor.elements()).step_by(PIECE).map(|from| Piece {
                tensor,
                elements: from..(from + PIECE).min(tensor.elements()),
                offset: offset + from * self.dtype.bytes(),
            }));
            offset = end;
        }
        let mut front = Value::Object(header).to_string().into_bytes();
        front.resize(front.len().next_multiple_of(8), b' ');
        let length = (front.len() as u64).to_le_bytes();
        front.splice(..0, length);

        let file = File::create(path)?;
        file.write_all_at(&front, 0)?;
        let next = AtomicUsize::new(0);
        let write_pieces = || -> io::Result<()> {
            let mut bytes = Vec::new();
            while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                bytes.clear();
                let weights = Weights::of(piece.tensor, self.text.hidden_size, self.seed);
                piece
                    .elements
                    .clone()
                    .for_each(|i| self.dtype.push(weights.value(i), &mut bytes));
                file.write_all_at(&bytes, (front.len() + piece.offset) as u64)?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            let threads: Vec<_> = (0..cores).map(|_| scope.spawn(write_pieces)).collect();
            threads
                .into_iter()
                .try_for_each(|thread| thread.join().expect("a weight writer does not panic"))
        })
    }
}

/// Elements one thread makes and writes at a time: 4 MiB of f32.
const PIECE: usize = 1 << 20;

struct Piece<'a> {
    tensor: &'a Tensor,
    elements: Range<usize>,
    /// Bytes behind the header.
    offset: usize,
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

/// One tensor of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// As in the published files.
    pub name: String,
    /// Row-major.
    pub shape: Vec<usize>,
}

impl Tensor {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// The values of one tensor, each by its index.
struct Weights {
    hash: u64,
    centre: f32,
    scale: f32,
}

impl Weights {
    fn of(tensor: &Tensor, hidden_size: usize, seed: u64) -> Self {
        let name = tensor.name.as_str();
        let (centre, scale) = if name.ends_with(".bias") {
            (0.0, 0.1)
        } else if tensor.shape.len() == 1 {
            (1.0, 0.1)
        } else if name.contains("embed_tokens") || name.contains("position_embedding") {
            (0.0, 1.0)
        } else if name == "lm_head.weight" {
            (0.0, 3.0 * (3.0 / hidden_size as f64).sqrt())
        } else {
            let fan_in: usize = tensor.shape[1..].iter().product();
            (0.0, (3.0 / fan_in as f64).sqrt())
        };
        Weights {
            hash: fnv1a64(name) ^ seed,
            centre,
            scale: scale as f32,
        }
    }

    fn value(&self, i: usize) -> f32 {
        let mut z = self
            .hash
            .wrapping_add((i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let u = (z >> 40) as f32 / (1 << 23) as f32 - 1.0;
        self.centre + self.scale * u
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

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    #[test]
    fn weights_are_those_the_reference_was_made_from() {
        for (checkpoint, sha256) in [
            (
                Synthetic::micro(),
                "3f49af3e6ce45abadc5487929b34555227c0311891684f21e8553d9b6da38476",
            ),
            (
                Synthetic::micro_so400m(),
                "12dfeffbf0d2acde8f641c12b5339f425f7a7854a8e1844432d010099b1ee26c",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            checkpoint.write(dir.path()).unwrap();
            let bytes = fs::read(dir.path().join("model.safetensors")).unwrap();
            assert_eq!(hex(&Sha256::digest(&bytes)), sha256, "{}", checkpoint.name);
        }
    }

    #[test]
    fn published_sizes_have_the_published_number_of_weights() {
        for (checkpoint, tensors, parameters) in [
            (Synthetic::m256(), 471, 256_484_928),
            (Synthetic::m500(), 489, 507_482_304),
        ] {
            let list = checkpoint.tensors();
            assert_eq!(list.len(), tensors, "{}", checkpoint.name);
            assert_eq!(
                list.iter().map(Tensor::elements).sum::<usize>(),
                parameters,
                "{}",
                checkpoint.name
            );
        }
    }

    #[test]
    fn shards_hold_every_tensor_once() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = Synthetic::micro_so400m().dtype(Dtype::Bf16).shards(3);
        checkpoint.write(dir.path()).unwrap();
        let index: Value = serde_json::from_slice(
            &fs::read(dir.path().join("model.safetensors.index.json")).unwrap(),
        )
        .unwrap();
        assert_eq!(
            index["weight_map"].as_object().unwrap().len(),
            checkpoint.tensors().len()
        );
        let bytes: usize = checkpoint
            .tensors()
            .iter()
            .map(|tensor| tensor.elements() * 2)
            .sum();
        assert_eq!(index["metadata"]["total_size"], bytes);
        for n in 1..=3 {
            assert!(
                dir.path()
                    .join(format!("model-{n:05}-of-00003.safetensors"))
                    .is_file()
            );
        }
    }

    #[test]
    fn another_seed_gives_other_weights_of_the_same_spread() {
        let tensor = Tensor {
            name: "model.text_model.layers.0.mlp.up_proj.weight".into(),
            shape: vec![256, 192],
        };
        let mean_square = |seed| {
            let weights = Weights::of(&tensor, 192, seed);
            (0..tensor.elements())
                .map(|i| f64::from(weights.value(i)).powi(2))
                .sum::<f64>()
                / tensor.elements() as f64
        };
        assert_ne!(
            Weights::of(&tensor, 192, 0).value(0),
            Weights::of(&tensor, 192, 1).value(0)
        );
        for seed in [0, 1, u64::MAX] {
            assert!(
                (mean_square(seed) * 192.0 - 1.0).abs() < 0.02,
                "variance is 1 / fan-in"
            );
        }
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}
