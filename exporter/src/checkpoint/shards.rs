//! Which weight files a checkpoint has: `model.safetensors`, or the shards that
//! `model.safetensors.index.json` lists.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::error::CheckpointError;
use super::files::{WEIGHTS, WEIGHTS_INDEX};
use super::json::read_json;

/// The weight files of a checkpoint and, for shards, which tensor should be in which.
#[derive(Debug)]
pub(super) struct WeightFiles {
    /// In shard order: sorted by name, which is how shards are numbered.
    pub(super) paths: Vec<PathBuf>,
    index: PathBuf,
    listed: BTreeMap<String, String>,
    shards: Vec<String>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// Finds the weight files in a folder; a single file takes precedence over an index, as in the
/// tools that write them.
pub(super) fn find(dir: &Path) -> Result<WeightFiles, CheckpointError> {
    let single = dir.join(WEIGHTS);
    let index = dir.join(WEIGHTS_INDEX);
    if single.exists() {
        return Ok(WeightFiles {
            paths: vec![single],
            index,
            listed: BTreeMap::new(),
            shards: Vec::new(),
        });
    }
    if !index.exists() {
        return Err(CheckpointError::NoWeights {
            dir: dir.to_owned(),
        });
    }
    let listed = read_json::<ShardIndex>(&index)?.weight_map;
    let shards = names(&index, &listed)?;
    Ok(WeightFiles {
        paths: shards.iter().map(|shard| dir.join(shard)).collect(),
        index,
        listed,
        shards,
    })
}

/// The shards that the index in `dir` lists, in order.
pub(crate) fn listed(dir: &Path) -> Result<Vec<String>, CheckpointError> {
    let index = dir.join(WEIGHTS_INDEX);
    names(&index, &read_json::<ShardIndex>(&index)?.weight_map)
}

/// The shards of an index, each once, all of them plain names.
fn names(index: &Path, listed: &BTreeMap<String, String>) -> Result<Vec<String>, CheckpointError> {
    let mut shards: Vec<String> = listed.values().cloned().collect();
    shards.sort();
    shards.dedup();
    match shards.iter().find(|shard| !is_file_name(shard)) {
        Some(shard) => Err(CheckpointError::ShardOutside {
            index: index.to_owned(),
            shard: shard.clone(),
        }),
        None => Ok(shards),
    }
}

impl WeightFiles {
    /// Checks that every tensor is in the shard that the index names; `holds` is asked
    /// with a tensor and a shard number.
    pub(super) fn check(&self, holds: impl Fn(&str, usize) -> bool) -> Result<(), CheckpointError> {
        for (tensor, shard) in &self.listed {
            let number = self
                .shards
                .binary_search(shard)
                .expect("shards are the index's own values");
            if !holds(tensor, number) {
                return Err(CheckpointError::NotInShard {
                    index: self.index.clone(),
                    tensor: tensor.clone(),
                    shard: shard.clone(),
                });
            }
        }
        Ok(())
    }
}

/// Whether a name is one plain path component.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(
        (parts.next(), parts.next()),
        (Some(Component::Normal(_)), None)
    ) && !name.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_plain_file_names() {
        for (name, plain) in [
            ("model-00001-of-00002.safetensors", true),
            ("../model.safetensors", false),
            ("/etc/passwd", false),
            ("sub/model.safetensors", false),
            ("..\\model.safetensors", false),
            ("..", false),
            ("", false),
        ] {
            assert_eq!(is_file_name(name), plain, "{name:?}");
        }
    }
}
