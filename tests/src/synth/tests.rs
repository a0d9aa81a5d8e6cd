use std::fs;

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::weights::Weights;
use super::{Dtype, Synthetic, Tensor};

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
    let index: Value =
        serde_json::from_slice(&fs::read(dir.path().join("model.safetensors.index.json")).unwrap())
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
