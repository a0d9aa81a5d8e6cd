//! Values of the tensors, and the files that hold them.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Map, Value, json};

use super::{Synthetic, Tensor, fnv1a64};

/// Elements that one thread computes and writes at a time: 4 MiB of f32.
const PIECE: usize = 1 << 20;

struct Piece<'a> {
    tensor: &'a Tensor,
    elements: Range<usize>,
    /// In bytes, from the end of the header.
    offset: usize,
}

impl Synthetic {
    pub(super) fn write_weights(&self, dir: &Path) -> io::Result<()> {
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

    /// Writes the header, then the tensors in pieces on all cores; never holds a whole file.
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

/// The values of one tensor, each by its index.
pub(super) struct Weights {
    hash: u64,
    centre: f32,
    scale: f32,
}

impl Weights {
    pub(super) fn of(tensor: &Tensor, hidden_size: usize, seed: u64) -> Self {
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

    pub(super) fn value(&self, i: usize) -> f32 {
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
