//! `egret-export export` of complete checkpoints: the bundle, its report, and the gates.

use std::fs;
use std::path::Path;

use firmware_config::manifest::Manifest;
use serde_json::{Value, json};
use tests::bundles::damage;

use super::{Bench, edit, unmeasured};

#[test]
fn an_int8_export_reports_its_distances_as_not_gated() {
    let bench = Bench::new();
    bench.tiny();
    let ran = bench.run(&["export", "tiny", "bundle"]).done();
    insta::assert_snapshot!(unmeasured(&ran.stdout), @r"
    tiny (int8) in bundle
      onnx/vision_encoder_int8.onnx                1.0 MB
      onnx/embed_tokens_int8.onnx                  1.6 MB
      onnx/decoder_model_merged_int8.onnx          7.0 MB
      all files                                    9.7 MB
    tiny (int8) on tract (tract)

      files that differ                                0  at most 0         pass
      weights that differ                              0  at most 0         pass
      vision_encoder cosine                            #                    not gated
      vision_encoder relative error                    #                    not gated
      embed_tokens cosine                              #                    not gated
      embed_tokens relative error                      #                    not gated
      decoder_model_merged cosine                      #                    not gated
      decoder_model_merged relative error              #                    not gated
      top-1 agreement                                  #                    not gated
      mean KL divergence                               #                    not gated
      equal answers                                    #                    not gated


    pass
    ");
    let report: Value =
        serde_json::from_slice(&fs::read(bench.path("bundle/report.json")).unwrap()).unwrap();
    assert_eq!(
        (
            &report["verdict"],
            &report["precision"],
            &report["source_is_the_same"]
        ),
        (&json!("pass"), &json!("int8"), &json!(true))
    );
    let outcome = |name: &str| {
        let gate = report["gates"]
            .as_array()
            .unwrap()
            .iter()
            .find(|gate| gate["name"] == name)
            .unwrap();
        gate["outcome"].as_str().unwrap().to_owned()
    };
    for gate in [
        "mean KL divergence",
        "top-1 agreement",
        "equal answers",
        "decoder_model_merged cosine",
    ] {
        assert_eq!(outcome(gate), "not_gated", "{gate}");
    }
    assert_eq!(outcome("weights that differ"), "pass");
    let steps = &report["steps"];
    assert!(
        steps["kl_mean"].as_f64().unwrap() > 0.0
            && steps["kl_max"].as_f64() >= steps["kl_mean"].as_f64(),
        "{steps}"
    );
    assert!(
        (0.5..=1.0).contains(&steps["top1_agreement"].as_f64().unwrap()),
        "{steps}"
    );
    let probes: Vec<_> = report["answers"]["list"]
        .as_array()
        .unwrap()
        .iter()
        .map(|answer| answer["probe"].as_str().unwrap())
        .collect();
    assert_eq!(
        probes,
        ["gradient", "blocks", "two pictures", "text", "long text"]
    );
}

#[test]
fn the_json_of_an_export_is_one_line_of_bundle_manifest_and_report() {
    let bench = Bench::new();
    bench.tiny();
    let ran = bench
        .run(&[
            "export",
            "tiny",
            "out/of/the/way",
            "--precision",
            "fp16",
            "--name",
            "gate",
            "--json",
        ])
        .done();
    assert_eq!(ran.stdout.lines().count(), 1);
    let json = ran.json();
    assert_eq!(
        (
            &json["bundle"],
            &json["manifest"]["name"],
            &json["report"]["verdict"]
        ),
        (&json!("out/of/the/way"), &json!("gate"), &json!("pass"))
    );
    assert_eq!(json["manifest"]["source"]["name"], "tiny");
    let written: Value =
        serde_json::from_slice(&fs::read(bench.path("out/of/the/way/manifest.json")).unwrap())
            .unwrap();
    assert_eq!(written, json["manifest"]);
}

/// Weights near the smallest fp16 value lose digits; the matrix before them is scaled up to make up
/// for their size.
#[test]
fn a_failed_gate_makes_no_bundle_unless_loss_is_allowed() {
    let bench = Bench::new();
    let source = bench.tiny();
    scale(
        &source.join("model.safetensors"),
        "model.text_model.layers.1.mlp.up_proj.weight",
        1e6,
    );
    scale(
        &source.join("model.safetensors"),
        "model.text_model.layers.1.mlp.down_proj.weight",
        1e-6,
    );
    let error = bench
        .run(&["export", "tiny", "bundle", "--precision", "fp16"])
        .refused(1);
    insta::assert_snapshot!(unmeasured(&error), @r"
    egret-export: tiny (fp16) on tract (tract)

      files that differ                                0  at most 0         pass
      weights that differ                              0  at most 0         pass
      vision_encoder cosine                            #  at least 0.9999   pass
      vision_encoder relative error                    #                    not gated
      embed_tokens cosine                              #  at least 0.9999   pass
      embed_tokens relative error                      #                    not gated
      decoder_model_merged cosine                      #  at least 0.9999   FAIL
      decoder_model_merged relative error              #                    not gated
      top-1 agreement                                  #                    not gated
      mean KL divergence                               #                    not gated
      equal answers                                    #                    not gated


    FAIL
    no bundle was made, since a quality gate failed; choose a finer precision, or give --allow-loss to keep the bundle
    ");
    assert_eq!(
        bench.left(),
        [""; 0],
        "nothing is left of an export that fails a gate"
    );

    let ran = bench
        .run(&[
            "export",
            "tiny",
            "bundle",
            "--precision",
            "fp16",
            "--allow-loss",
        ])
        .done();
    assert!(ran.stdout.ends_with("FAIL"), "{}", ran.stdout);
    let report: Value =
        serde_json::from_slice(&fs::read(bench.path("bundle/report.json")).unwrap()).unwrap();
    assert_eq!(report["verdict"], "fail");
}

/// One file for the whole processor, a template in its own file, dtype and theta under their newer
/// names.
#[test]
fn a_checkpoint_as_transformers_5_saves_it_is_exported_and_verified() {
    let bench = Bench::new();
    let source = bench.tiny();
    let mut images: Value =
        serde_json::from_slice(&fs::read(source.join("preprocessor_config.json")).unwrap())
            .unwrap();
    fs::remove_file(source.join("preprocessor_config.json")).unwrap();
    images
        .as_object_mut()
        .unwrap()
        .shift_remove("video_sampling");
    edit(&source.join("processor_config.json"), |processor| {
        processor["image_processor"] = images;
        processor["video_processor"] =
            json!({ "fps": 2, "num_frames": 7, "resample": 1, "do_sample_frames": false });
    });
    edit(&source.join("config.json"), |config| {
        let config = config.as_object_mut().unwrap();
        config.shift_remove("torch_dtype");
        config.insert("dtype".into(), json!("float32"));
        let text = config["text_config"].as_object_mut().unwrap();
        let theta = text.shift_remove("rope_theta");
        text.insert(
            "rope_parameters".into(),
            json!({ "rope_theta": theta, "rope_type": "default" }),
        );
    });
    fs::write(source.join("chat_template.jinja"), vlm::template::DEFAULT).unwrap();
    let ran = bench
        .run(&["export", "tiny", "bundle", "--precision", "fp32", "--json"])
        .done();
    assert_eq!(ran.json()["report"]["files"]["differ"], json!([]));
    assert_eq!(
        ran.json()["manifest"]["video"],
        json!({ "frames_per_second": 2.0, "frames_max": 7 })
    );

    // Its rules for images are compared with those inside.
    damage(&bench.path("bundle/manifest.json"), |json| {
        let mut manifest: Manifest = serde_json::from_slice(json).unwrap();
        manifest.image.mean = [0.48, 0.46, 0.41];
        *json = serde_json::to_vec(&manifest).unwrap();
    });
    let ran = bench.run(&["verify", "bundle", "--reference", "tiny"]);
    assert!(
        ran.code == Some(1)
            && ran
                .stdout
                .contains("  manifest.json: image differs from the checkpoint's\n"),
        "{}",
        ran.stdout
    );
}

#[test]
fn positions_that_older_transformers_stored_are_ignored() {
    let bench = Bench::new();
    let weights = bench.tiny().join("model.safetensors");
    let file = fs::read(&weights).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    let offsets = [data.len(), data.len() + 64 * 8];
    header["model.vision_model.embeddings.position_ids"] =
        json!({ "dtype": "I64", "shape": [1, 64], "data_offsets": offsets });
    let header = header.to_string();
    let positions: Vec<u8> = (0..64i64).flat_map(i64::to_le_bytes).collect();
    fs::write(
        &weights,
        [
            &(header.len() as u64).to_le_bytes(),
            header.as_bytes(),
            data,
            &positions,
        ]
        .concat(),
    )
    .unwrap();
    bench
        .run(&["export", "tiny", "bundle", "--precision", "fp32"])
        .done();
}

/// Multiplies the values of an F32 tensor.
fn scale(weights: &Path, tensor: &str, by: f32) {
    let mut file = fs::read(weights).unwrap();
    let length = u64::from_le_bytes(*file.first_chunk::<8>().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let offset =
        |end: usize| 8 + length + header[tensor]["data_offsets"][end].as_u64().unwrap() as usize;
    for value in file[offset(0)..offset(1)].as_chunks_mut::<4>().0 {
        *value = (f32::from_le_bytes(*value) * by).to_le_bytes();
    }
    fs::write(weights, file).unwrap();
}
