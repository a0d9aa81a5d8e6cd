//! `egret-export verify`.

use std::fs;
use std::path::Path;

use firmware_config::manifest::{FileEntry, Manifest};
use serde_json::json;
use sha2::{Digest, Sha256};
use tests::bundles::damage;
use tests::synth::Synthetic;

use super::{Bench, unhashed, unmeasured};

#[test]
fn verify_distinguishes_the_checkpoint_of_a_bundle_from_another() {
    let bench = Bench::new();
    bench.tiny();
    bench.checkpoint("other", Synthetic::micro().seed(1));
    bench
        .run(&["export", "tiny", "bundle", "--precision", "fp16"])
        .done();

    let ran = bench
        .run(&["verify", "bundle", "--reference", "tiny"])
        .done();
    assert!(ran.stdout.ends_with("\npass"), "{}", ran.stdout);
    let ran = bench
        .run(&["verify", "bundle", "--reference", "tiny", "--json"])
        .done();
    assert_eq!(
        (ran.stdout.lines().count(), &ran.json()["verdict"]),
        (1, &json!("pass"))
    );

    let ran = bench.run(&["verify", "bundle", "--reference", "other"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(
        ran.stdout
            .contains("the checkpoint's weight files are not those that the bundle was made from"),
        "{}",
        ran.stdout
    );
    assert!(ran.stdout.ends_with("\nFAIL"), "{}", ran.stdout);

    // Two weights are swapped, first without and then with the new hash in the manifest.
    let graph = bench.path("bundle/onnx/decoder_model_merged_fp16.onnx");
    damage(&graph, |bytes| {
        let at = weights_of(bytes, "model.text_model.layers.0.self_attn.q_proj.weight");
        (0..2).for_each(|i| bytes.swap(at + i, at + 2 * 77 + i));
    });
    insta::assert_snapshot!(unhashed(&bench.run(&["verify", "bundle", "--reference", "tiny"]).refused(1)), @"egret-export: the bundle: bundle/onnx/decoder_model_merged_fp16.onnx has sha256 SHA256: expected SHA256; copy the bundle again");
    damage(&bench.path("bundle/manifest.json"), |json| {
        let mut manifest: Manifest = serde_json::from_slice(json).unwrap();
        let bytes = fs::metadata(&graph).unwrap().len();
        manifest.files.insert(
            "onnx/decoder_model_merged_fp16.onnx".into(),
            FileEntry {
                bytes,
                sha256: sha256(&graph),
            },
        );
        *json = serde_json::to_vec(&manifest).unwrap();
    });
    let ran = bench.run(&["verify", "bundle", "--reference", "tiny"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    insta::assert_snapshot!(unmeasured(&ran.stdout), @r"
    tiny (fp16) on tract (tract)

      files that differ                                0  at most 0         pass
      weights that differ                              1  at most 0         FAIL
      vision_encoder cosine                            #  at least 0.9999   pass
      vision_encoder relative error                    #                    not gated
      embed_tokens cosine                              #  at least 0.9999   pass
      embed_tokens relative error                      #                    not gated
      decoder_model_merged cosine                      #  at least 0.9999   pass
      decoder_model_merged relative error              #                    not gated
      top-1 agreement                                  #                    not gated
      mean KL divergence                               #                    not gated
      equal answers                                    #                    not gated

      model.text_model.layers.0.self_attn.q_proj.weight: 2 of 36864 values are not the checkpoint's

    FAIL
    ");
}

/// Where the values of a constant begin in a graph file.
fn weights_of(file: &[u8], tensor: &str) -> usize {
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(copy.path(), file).unwrap();
    let graph = exporter::graph::onnx::GraphFile::open(copy.path()).unwrap();
    let values = graph.constant(tensor).unwrap().bytes;
    file.windows(values.len())
        .position(|window| window == values)
        .unwrap()
}

fn sha256(path: &Path) -> String {
    vlm::hex(&Sha256::digest(fs::read(path).unwrap()))
}
