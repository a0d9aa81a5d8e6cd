//! The graphs of a complete checkpoint, whatever form its tensors are stored in.

use exporter::graph::Element;
use exporter::graph::onnx::GraphFile;
use firmware_config::manifest::{Manifest, Precision};
use serde_json::json;
use tests::synth::Dtype;

use super::{Bench, add_tensor, edit_weights, tiny};

#[test]
fn shards_give_the_same_graphs_as_one_file() {
    let bench = Bench::new();
    let mut sharded = tiny().shards(3);
    sharded.name = "sharded".into();
    let one = bench
        .export(&bench.checkpoint(&tiny()), "one", Precision::Int8)
        .unwrap();
    let three = bench
        .export(&bench.checkpoint(&sharded), "three", Precision::Int8)
        .unwrap();
    assert_eq!(one.files, three.files);
    assert_ne!(one.source.sha256, three.source.sha256);
}

#[test]
fn half_precision_checkpoints_are_widened() {
    let bench = Bench::new();
    for (dtype, name) in [(Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let mut checkpoint = tiny().dtype(dtype);
        checkpoint.name = name.into();
        let source = bench.checkpoint(&checkpoint);
        bench
            .export(&source, &format!("{name}-fp32"), Precision::Fp32)
            .unwrap();
        let graph =
            GraphFile::open(&bench.path(&format!("{name}-fp32/onnx/embed_tokens.onnx"))).unwrap();
        assert_eq!(
            graph
                .constant("model.text_model.embed_tokens.weight")
                .unwrap()
                .element,
            Element::F32
        );
        if dtype == Dtype::F16 {
            let manifest = bench.export(&source, "f16-fp16", Precision::Fp16).unwrap();
            assert!(
                manifest
                    .quantization
                    .iter()
                    .all(|tensor| tensor.error_max == 0.0),
                "f16 to f16 loses nothing"
            );
        }
    }
}

#[test]
fn a_tied_head_is_the_embedding() {
    let bench = Bench::new();
    bench
        .export(&bench.checkpoint(&tiny().tied()), "tied", Precision::Fp32)
        .unwrap();
    let graph =
        |name: &str| GraphFile::open(&bench.path(&format!("tied/onnx/{name}.onnx"))).unwrap();
    let (embedding, decoder) = (graph("embed_tokens"), graph("decoder_model_merged"));
    let rows = embedding
        .constant("model.text_model.embed_tokens.weight")
        .unwrap();
    let head = decoder
        .constant("model.text_model.embed_tokens.weight")
        .unwrap();
    assert_eq!((rows.dims, head.dims), (&[8, 192][..], &[192, 8][..]));
    assert_eq!(rows.bytes[4..8], head.bytes[8 * 4..9 * 4]);
}

#[test]
fn other_geometries_are_read_off_the_tensors() {
    let bench = Bench::new();
    let mut checkpoint = tiny().kv_heads(3).head_dim(32).nested_rope();
    checkpoint.name = "other".into();
    checkpoint.text.intermediate_size = 96;
    let manifest = bench
        .export(&bench.checkpoint(&checkpoint), "bundle", Precision::Fp32)
        .unwrap();
    let text = manifest.geometry.text;
    assert_eq!(
        (text.layers, text.heads, text.kv_heads, text.head_dim),
        (2, 3, 3, 32)
    );
}

/// Modules recompute these, and some versions saved them.
#[test]
fn buffers_beside_the_weights_are_left_out() {
    let bench = Bench::new();
    let plain = bench
        .export(&bench.checkpoint(&tiny()), "plain", Precision::Fp32)
        .unwrap();
    let mut tiny = tiny();
    tiny.name = "buffers".into();
    let source = bench.checkpoint(&tiny);
    edit_weights(&source.join("model.safetensors"), |header, data| {
        add_tensor(
            header,
            data,
            "model.text_model.layers.0.self_attn.rotary_emb.inv_freq",
            "F32",
            32,
            4,
        );
        add_tensor(
            header,
            data,
            "model.vision_model.embeddings.position_ids",
            "I64",
            64,
            8,
        );
    });
    let manifest = bench.export(&source, "bundle", Precision::Fp32).unwrap();
    assert_eq!(
        manifest.files[&plain.graphs.decoder_model_merged],
        plain.files[&plain.graphs.decoder_model_merged]
    );
}

#[test]
fn weights_in_double_precision_are_rounded() {
    let bench = Bench::new();
    let plain = bench
        .export(&bench.checkpoint(&tiny()), "plain", Precision::Fp32)
        .unwrap();
    let mut tiny = tiny();
    tiny.name = "double".into();
    let source = bench.checkpoint(&tiny);
    edit_weights(&source.join("model.safetensors"), |header, data| {
        let last = header
            .as_object_mut()
            .unwrap()
            .values_mut()
            .filter(|entry| entry.get("data_offsets").is_some());
        let last = last
            .max_by_key(|entry| entry["data_offsets"][1].as_u64())
            .unwrap();
        let from = last["data_offsets"][0].as_u64().unwrap() as usize;
        let values: Vec<u8> = data
            .split_off(from)
            .as_chunks()
            .0
            .iter()
            .flat_map(|&b| f64::from(f32::from_le_bytes(b)).to_le_bytes())
            .collect();
        data.extend(values);
        last["dtype"] = json!("F64");
        last["data_offsets"] = json!([from, data.len()]);
    });
    let manifest = bench.export(&source, "bundle", Precision::Fp32).unwrap();
    let graphs = |manifest: &Manifest| -> Vec<_> {
        let of = |(_, path): (_, &String)| manifest.files[path].clone();
        manifest.graphs.iter().map(of).collect()
    };
    assert_eq!(graphs(&manifest), graphs(&plain));
}
