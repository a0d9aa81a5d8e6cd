#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// SmolVLM2-256M's, in short.
fn manifest() -> Value {
    let entry = json!({ "bytes": 1, "sha256": "0".repeat(64) });
    json!({
        "format": 1,
        "name": "smolvlm2-256m",
        "source": { "name": "SmolVLM2-256M-Video-Instruct", "sha256": "1".repeat(64) },
        "architecture": "smolvlm",
        "precision": "int8",
        "targets": ["cpu"],
        "geometry": {
            "vision": { "hidden_size": 768, "layers": 12, "heads": 12, "image_size": 512, "patch_size": 16 },
            "text": {
                "hidden_size": 576, "layers": 30, "heads": 9, "kv_heads": 3, "head_dim": 64, "vocab_size": 49280, "context_length": 8192
            },
            "scale_factor": 4
        },
        "image": {
            "tile_size": 512, "longest_edge": 2048, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "splits_by_default": true,
            "tokens_per_tile": 64
        },
        "video": { "frames_per_second": 1.0, "frames_max": 64 },
        "prompt": {
            "image": 49190, "fake_token_around_image": 49189, "global_img": 49152, "rows_cols": { "<row_1_col_1>": 49153 }, "stop": [49279]
        },
        "graphs": { "vision_encoder": "onnx/v.onnx", "embed_tokens": "onnx/e.onnx", "decoder_model_merged": "onnx/d.onnx" },
        "quantization": [{ "name": "lm_head.weight", "error_max": 0.1, "error_relative": 0.01 }],
        "files": { "onnx/v.onnx": entry, "onnx/e.onnx": entry, "onnx/d.onnx": entry, "config.json": entry },
        "exporter": "0.1.0"
    })
}

fn read(json: &Value) -> Result<Manifest, ManifestError> {
    Manifest::from_json(json.to_string().as_bytes())
}

#[test]
fn what_is_written_is_read_back_and_gives_the_same_bytes() {
    let manifest = read(&manifest()).unwrap();
    let text = manifest.to_json();
    assert!(
        text.starts_with("{\n  \"format\": 1,\n") && text.ends_with("}\n"),
        "{text}"
    );
    let again = Manifest::from_json(text.as_bytes()).unwrap();
    assert_eq!((&again, again.to_json()), (&manifest, text));
}

#[test]
fn patches_need_not_fill_a_tile() {
    let mut manifest = manifest();
    manifest["geometry"]["vision"] = json!({ "hidden_size": 1152, "layers": 27, "heads": 16, "image_size": 384, "patch_size": 14 });
    manifest["geometry"]["scale_factor"] = json!(3);
    manifest["image"]["tile_size"] = json!(384);
    manifest["image"]["tokens_per_tile"] = json!(81);
    assert!(read(&manifest).is_ok());
}

#[test]
fn a_newer_format_is_reported_before_anything_else() {
    let newer = br#"{ "format": 2, "name": 7, "experts": [] }"#;
    assert_eq!(
        Manifest::from_json(newer),
        Err(ManifestError::TooNew { found: 2 })
    );
    insta::assert_snapshot!(Manifest::from_json(newer).unwrap_err(), @"the bundle has manifest format 2, and this build reads up to 1; update egret, or export the bundle again");
}

#[test]
fn anything_but_a_manifest_is_refused() {
    for text in [
        "",
        "[]",
        "{}",
        "{ \"format\": \"1\" }",
        "{ \"format\": -1 }",
        "{ \"format\": 1 }",
    ] {
        assert!(
            matches!(
                Manifest::from_json(text.as_bytes()),
                Err(ManifestError::Malformed(_))
            ),
            "{text}"
        );
    }
    let mut unknown = manifest();
    unknown["colour"] = json!("red");
    let error = read(&unknown).unwrap_err().to_string();
    assert!(error.contains("unknown field `colour`"), "{error}");
}

#[test]
fn a_contradiction_is_refused_with_its_field() {
    let entry = json!({ "bytes": 1, "sha256": "0".repeat(64) });
    for (pointer, value, field) in [
        ("/format", json!(0), "format"),
        ("/name", json!(" "), "name"),
        ("/source/sha256", json!("A".repeat(64)), "source.sha256"),
        ("/targets", json!(["../cpu"]), "targets"),
        (
            "/graphs/embed_tokens",
            json!("onnx/other.onnx"),
            "graphs.embed_tokens",
        ),
        (
            "/geometry/vision/layers",
            json!(0),
            "geometry.vision.layers",
        ),
        ("/geometry/vision/heads", json!(7), "geometry.vision.heads"),
        (
            "/geometry/vision/patch_size",
            json!(513),
            "geometry.vision.patch_size",
        ),
        (
            "/geometry/text/kv_heads",
            json!(2),
            "geometry.text.kv_heads",
        ),
        (
            "/geometry/text/head_dim",
            json!(63),
            "geometry.text.head_dim",
        ),
        (
            "/geometry/text/vocab_size",
            json!(1_u64 << 40),
            "geometry.text.vocab_size",
        ),
        ("/geometry/scale_factor", json!(5), "geometry.scale_factor"),
        ("/image/tile_size", json!(384), "image.tile_size"),
        ("/image/tokens_per_tile", json!(81), "image.tokens_per_tile"),
        ("/image/std", json!([0.5, 0.0, 0.5]), "image.std"),
        (
            "/video/frames_per_second",
            json!(0.0),
            "video.frames_per_second",
        ),
        ("/prompt/image", json!(49280), "prompt.image"),
        ("/prompt/stop", json!([]), "prompt.stop"),
        (
            "/quantization/0/error_max",
            json!(1e300),
            "quantization.error_max",
        ),
        (
            "/quantization/0/error_relative",
            json!(-1.0),
            "quantization.error_relative",
        ),
        ("/files", json!({ "/etc/passwd": entry }), "files"),
        ("/files", json!({ "a\nb": entry }), "files"),
        ("/files", json!({ "a/../../b": entry }), "files"),
        ("/files", json!({ "a\\b": entry }), "files"),
        ("/files", json!({ "C:b": entry }), "files"),
        ("/files", json!({ "a//b": entry }), "files"),
        ("/files", json!({ "": entry }), "files"),
        (
            "/files",
            json!({ "a": { "bytes": 1, "sha256": "" } }),
            "files.a.sha256",
        ),
    ] {
        let mut json = manifest();
        *json.pointer_mut(pointer).unwrap() = value;
        match read(&json) {
            Err(ManifestError::Invalid { field: found, .. }) => {
                assert_eq!(found, field, "{pointer}")
            }
            other => panic!("{pointer}: {other:?}"),
        }
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Manifest::from_json(&bytes).is_err());
    }

    #[test]
    fn no_geometry_panics(values in prop::collection::vec(0_u64..5000, 12)) {
        let mut json = manifest();
        let keys = [
            "vision/hidden_size", "vision/layers", "vision/heads", "vision/image_size", "vision/patch_size", "text/hidden_size", "text/layers",
            "text/heads", "text/kv_heads", "text/head_dim", "text/vocab_size", "scale_factor",
        ];
        for (key, value) in keys.into_iter().zip(values) {
            *json.pointer_mut(&format!("/geometry/{key}")).unwrap() = json!(value);
        }
        let _ = read(&json);
    }
}
