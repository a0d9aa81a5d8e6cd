//! Weight files that are refused: damaged ones, and those of another model.

use std::fs;

use serde_json::{Value, json};

use super::{Bench, add_tensor, edit, edit_weights, tiny};

#[test]
fn unused_tensors_are_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, data| {
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add_tensor(
                header,
                data,
                &format!("model.text_model.layers.0.self_attn.{part}.lora_A.weight"),
                "F32",
                8,
                4,
            );
        }
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny: tensors that this architecture does not use: model.text_model.layers.0.self_attn.k_proj.lora_A.weight, model.text_model.layers.0.self_attn.o_proj.lora_A.weight, model.text_model.layers.0.self_attn.q_proj.lora_A.weight and 1 more; expected a SmolVLM2 checkpoint; merge an adapter first, with merge_and_unload()");
}

#[test]
fn a_model_saved_without_its_head_is_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, _| {
        let renamed = header
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, entry)| (name.trim_start_matches("model.").to_owned(), entry.clone()));
        *header = Value::Object(renamed.collect());
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "vision_model.embeddings.patch_embedding.weight" has no "model." before it: this is a SmolVLMModel, saved without its head; save the SmolVLMForConditionalGeneration around it"#);
}

#[test]
fn a_missing_tensor_is_named() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, _| {
        let header = header.as_object_mut().unwrap();
        let moved = header
            .shift_remove("model.text_model.layers.1.self_attn.o_proj.weight")
            .unwrap();
        header.insert("another.weight".into(), moved);
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "model.text_model.layers.1.self_attn.o_proj.weight" is missing, 43 others are present; the checkpoint is incomplete or of another architecture"#);
}

#[test]
fn a_missing_head_is_tied_only_where_the_config_says_so() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny().tied());
    edit(&source.join("config.json"), |config| {
        config["tie_word_embeddings"] = json!(false);
        config["text_config"]["tie_word_embeddings"] = json!(false);
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "lm_head.weight" is missing and tie_word_embeddings is false; save the model with its head, or set tie_word_embeddings to true if it was trained with the embedding as its head"#);
}

#[test]
fn a_wrong_shape_is_reported_with_both() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, _| {
        header["model.text_model.layers.1.mlp.down_proj.weight"]["shape"] = json!([256, 192]);
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "model.text_model.layers.1.mlp.down_proj.weight" is [256, 192], expected [192, 256] to fit the other tensors; config and weights are of different models"#);
}

#[test]
fn a_truncated_file_is_reported() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let weights = source.join("model.safetensors");
    let content = fs::read(&weights).unwrap();
    fs::write(&weights, &content[..content.len() - 1000]).unwrap();
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/model.safetensors: its tensors take 2985344 bytes of data, the file has 2984344; the file is damaged or truncated: download or save it again");
    fs::write(&weights, b"").unwrap();
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/model.safetensors: the file is 0 bytes long, expected at least 8; the file is damaged or truncated: download or save it again");
}

#[test]
fn a_contradictory_header_is_refused() {
    struct Case {
        fault: &'static str,
        change: fn(&mut Value),
        says: &'static str,
    }
    const TENSOR: &str = "model.text_model.norm.weight";
    let cases = [
        Case {
            fault: "offsets past the end",
            change: |header| {
                let last = header.as_object_mut().unwrap().values_mut().last().unwrap();
                let from = last["data_offsets"][0].as_u64().unwrap();
                *last = json!({ "dtype": "F32", "shape": [1024, 1024], "data_offsets": [from, from + (4 << 20)] });
            },
            says: "bytes of data, the file has",
        },
        Case {
            fault: "overlapping",
            change: |header| {
                let from = header[TENSOR]["data_offsets"][0].as_u64().unwrap();
                header[TENSOR]["data_offsets"] = json!([from - 4, from + 192 * 4 - 4]);
            },
            says: "expected the bytes right after the tensor before it",
        },
        Case {
            fault: "reversed",
            change: |header| {
                let offsets = header[TENSOR]["data_offsets"].clone();
                header[TENSOR]["data_offsets"] = json!([offsets[1], offsets[0]]);
            },
            says: "expected the bytes right after the tensor before it",
        },
        Case {
            fault: "a shape whose product overflows",
            change: |header| header[TENSOR]["shape"] = json!([1u64 << 40, 1u64 << 40]),
            says: "\"model.text_model.norm.weight\" of shape [1099511627776, 1099511627776] F32 is at bytes",
        },
    ];
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let weights = source.join("model.safetensors");
    let intact = fs::read(&weights).unwrap();
    for case in cases {
        fs::write(&weights, &intact).unwrap();
        edit_weights(&weights, |header, _| (case.change)(header));
        let error = bench.refusal(&source);
        assert!(
            error.contains(case.says) && error.contains("model.safetensors"),
            "{}: {error}",
            case.fault
        );
    }
    let terabyte = [&(1u64 << 40).to_le_bytes()[..], &intact[8..]].concat();
    fs::write(&weights, terabyte).unwrap();
    let error = bench.refusal(&source);
    assert!(
        error.contains("its header is 1099511627776 bytes long"),
        "{error}"
    );
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let bench = Bench::new();
    for (value, says) in [
        (f32::NAN, "holds NaN at index 5"),
        (f32::NEG_INFINITY, "holds -inf at index 5"),
    ] {
        let source = bench.checkpoint(&tiny());
        edit_weights(&source.join("model.safetensors"), |header, data| {
            let from = header["model.vision_model.post_layernorm.bias"]["data_offsets"][0]
                .as_u64()
                .unwrap() as usize
                + 20;
            data[from..from + 4].copy_from_slice(&value.to_le_bytes());
        });
        let error = bench.refusal(&source);
        assert!(
            error.contains("tensor \"model.vision_model.post_layernorm.bias\"")
                && error.contains(says),
            "{error}"
        );
    }
}

#[test]
fn shards_stay_in_their_folder_and_hold_what_the_index_says() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny().shards(2));
    let index = source.join("model.safetensors.index.json");
    let intact = fs::read(&index).unwrap();
    edit(&index, |index| {
        index["weight_map"]["lm_head.weight"] = json!("../elsewhere.safetensors")
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/model.safetensors.index.json: shard "../elsewhere.safetensors" is outside the checkpoint folder; expected a file beside the index"#);

    fs::write(&index, &intact).unwrap();
    edit(&index, |index| {
        let other = index["weight_map"]["model.vision_model.post_layernorm.bias"].clone();
        index["weight_map"]["lm_head.weight"] = other;
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/model.safetensors.index.json: tensor "lm_head.weight" is not in "model-00002-of-00002.safetensors", where the index lists it; the shards are of different downloads: download them again"#);

    fs::write(&index, &intact).unwrap();
    edit(&index, |index| {
        index["weight_map"]["lm_head.weight"] = json!("model-00003-of-00003.safetensors")
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/model-00003-of-00003.safetensors: no such file; expected a checkpoint folder with config.json, tokenizer.json and safetensors, as save_pretrained writes it");
}
