//! `verify` passes what an export wrote, and fails what was changed since, even with new hashes.

use std::fs;
use std::path::{Path, PathBuf};

use exporter::report::{Outcome, Verdict, VerificationReport};
use exporter::verify::{VerifyOptions, verify};
use firmware_config::manifest::{FileEntry, Manifest, Precision};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tests::bundles::{damage, linked_copy};
use tests::synth::{Dtype, Synthetic};
use vlm::BackendChoice;

/// A bundle to be verified, and the checkpoint it was made from.
struct Exported {
    bundle: TempDir,
    source: PathBuf,
}

impl Exported {
    fn new(checkpoint: &Synthetic, precision: Precision) -> Self {
        let bundle = tempfile::tempdir_in(tests::kept::scratch()).unwrap();
        linked_copy(
            &tests::bundles::bundle(checkpoint, precision),
            bundle.path(),
        );
        Exported {
            bundle,
            source: checkpoint.shared(),
        }
    }

    fn bundle(&self) -> &Path {
        self.bundle.path()
    }

    fn verify(&self) -> VerificationReport {
        verify(
            self.bundle(),
            &self.source,
            &VerifyOptions {
                backend: BackendChoice::Tract,
                ..VerifyOptions::default()
            },
        )
        .unwrap()
    }

    /// Changes the manifest, whose own hash is listed nowhere.
    fn change_manifest(&self, change: impl FnOnce(&mut Manifest)) {
        damage(&self.bundle().join("manifest.json"), |json| {
            let mut manifest: Manifest = serde_json::from_slice(json).unwrap();
            change(&mut manifest);
            *json = serde_json::to_vec(&manifest).unwrap();
        });
    }

    /// Changes a file, and its hash in the manifest.
    fn change(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        damage(&self.bundle().join(file), change);
        let bytes = fs::read(self.bundle().join(file)).unwrap();
        let sha256 = Sha256::digest(&bytes)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.change_manifest(|manifest| {
            manifest.files.insert(
                file.into(),
                FileEntry {
                    bytes: bytes.len() as u64,
                    sha256,
                },
            );
        });
    }
}

#[test]
fn an_export_is_its_checkpoint_in_every_precision_and_geometry() {
    for (checkpoint, precision) in [
        (Synthetic::micro(), Precision::Fp32),
        (Synthetic::micro(), Precision::Fp16),
        (Synthetic::micro(), Precision::Int8),
        (
            Synthetic::micro_so400m()
                .dtype(Dtype::Bf16)
                .shards(3)
                .seed(7),
            Precision::Fp32,
        ),
        (
            Synthetic::micro()
                .dtype(Dtype::F16)
                .kv_heads(3)
                .head_dim(32)
                .tied()
                .nested_rope()
                .seed(11),
            Precision::Fp16,
        ),
    ] {
        let report = Exported::new(&checkpoint, precision).verify();
        eprintln!("{report}\n");
        assert_eq!(
            report.verdict(),
            Verdict::Pass,
            "{precision:?} of {checkpoint:?}:\n{report}"
        );
    }
}

#[test]
fn the_report_is_the_same_every_time() {
    let exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp16);
    assert_eq!(exported.verify().to_json(), exported.verify().to_json());
}

/// In each graph, and weights that no probe uses: the embedding of a token that is in no prompt.
#[test]
fn two_swapped_weights_fail() {
    let tensors = [
        "model.vision_model.encoder.layers.1.mlp.fc1.weight",
        "model.connector.modality_projection.proj.weight",
        "model.text_model.layers.0.self_attn.q_proj.weight",
        "model.text_model.embed_tokens.weight",
        "lm_head.weight",
    ];
    for (tensor, precision) in tensors
        .iter()
        .flat_map(|tensor| [Precision::Fp32, Precision::Fp16].map(|precision| (*tensor, precision)))
    {
        let exported = Exported::new(&Synthetic::micro_so400m(), precision);
        let width = if precision == Precision::Fp32 { 4 } else { 2 };
        exported.change(&graph_with(exported.bundle(), tensor), |bytes| {
            let at = weights_of(bytes, tensor);
            (0..width).for_each(|i| bytes.swap(at + i, at + width * 77 + i));
        });
        let report = exported.verify();
        assert_eq!(
            report.verdict(),
            Verdict::Fail,
            "{tensor} {precision:?}:\n{report}"
        );
        assert_eq!(report.weights.differ.len(), 1, "{report}");
        assert_eq!(report.weights.differ[0].name, tensor);
    }
}

/// Without comparing weights: two swapped rows of a matrix change the outputs of the graphs.
#[test]
fn running_the_graphs_finds_swapped_rows() {
    for (tensor, gate) in [
        (
            "model.vision_model.encoder.layers.0.self_attn.v_proj.weight",
            "vision_encoder relative error",
        ),
        (
            "model.text_model.embed_tokens.weight",
            "embed_tokens relative error",
        ),
        (
            "model.text_model.layers.1.mlp.down_proj.weight",
            "decoder_model_merged relative error",
        ),
        ("lm_head.weight", "decoder_model_merged relative error"),
    ] {
        let exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp32);
        exported.change(&graph_with(exported.bundle(), tensor), |bytes| {
            let at = weights_of(bytes, tensor);
            // In either layout of the matrix, this is a row of it or many pieces of rows.
            (0..256).for_each(|i| bytes.swap(at + i, at + 4096 + i));
        });
        let report = exported.verify();
        let gate = report
            .gates
            .iter()
            .find(|found| found.name == gate)
            .unwrap();
        assert_eq!(gate.outcome, Outcome::Fail, "{tensor}:\n{report}");
    }
}

#[test]
fn another_tokenizer_template_or_config_fails() {
    for (file, from, to) in [
        ("tokenizer.json", "{", "{ "),
        ("config.json", "\"llama\"", "\"mistral\""),
        ("generation_config.json", "49279", "2"),
        ("preprocessor_config.json", "true", "false"),
    ] {
        let exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp16);
        exported.change(file, |bytes| {
            let text = String::from_utf8_lossy(bytes);
            let changed = text.replacen(from, to, 1);
            assert_ne!(text, changed, "{file}");
            *bytes = changed.into_bytes();
        });
        let report = exported.verify();
        assert_eq!(report.verdict(), Verdict::Fail, "{file}:\n{report}");
        assert_eq!(report.files.differ, [file]);
    }
}

/// Both sides of a verification use the rules of the manifest, so they have to be the checkpoint's.
#[test]
fn other_rules_in_the_manifest_fail() {
    type Change = fn(&mut Manifest);
    let changes: [(&str, Change); 8] = [
        ("image", |manifest| manifest.image.mean = [0.48, 0.46, 0.41]),
        ("image", |manifest| manifest.image.splits_by_default = false),
        ("video", |manifest| manifest.video.frames_max = 8),
        ("geometry", |manifest| manifest.geometry.text.heads = 4),
        ("source.sha256", |manifest| {
            manifest.source.sha256 = "0".repeat(64)
        }),
        ("architecture", |manifest| {
            manifest.architecture = "idefics".into()
        }),
        ("prompt", |manifest| {
            std::mem::swap(
                &mut manifest.prompt.fake_token_around_image,
                &mut manifest.prompt.global_img,
            )
        }),
        ("prompt", |manifest| {
            manifest.prompt.stop.retain(|&id| id != 49279)
        }),
    ];
    for (field, change) in changes {
        let exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp16);
        exported.change_manifest(change);
        let report = exported.verify();
        assert_eq!(report.files.differ, [format!("manifest.json: {field}")]);
        assert_eq!(report.verdict(), Verdict::Fail);
    }
}

/// Newer transformers save the rules in another file; the older file in the bundle is made from it.
#[test]
fn rules_and_files_are_compared_in_either_layout_of_the_source() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("nested");
    Synthetic::micro_so400m().write(&source).unwrap();
    let pictures: serde_json::Value =
        serde_json::from_slice(&fs::read(source.join("preprocessor_config.json")).unwrap())
            .unwrap();
    fs::write(
        source.join("processor_config.json"),
        serde_json::json!({ "image_processor": pictures }).to_string(),
    )
    .unwrap();
    fs::remove_file(source.join("preprocessor_config.json")).unwrap();
    let export = |bundle: &Path| {
        let options = exporter::ExportOptions {
            precision: Precision::Fp16,
            name: None,
            replace: true,
        };
        exporter::export(&source, bundle, &options).unwrap();
    };
    let exported = Exported {
        bundle: tempfile::tempdir_in(tests::kept::scratch()).unwrap(),
        source: source.clone(),
    };
    fs::write(exported.bundle().join("manifest.json"), "{}").unwrap();
    export(exported.bundle());
    assert_eq!(exported.verify().files.differ, [""; 0]);

    exported.change("preprocessor_config.json", |bytes| {
        *bytes = String::from_utf8_lossy(bytes)
            .replace("0.5", "0.4")
            .into_bytes()
    });
    assert_eq!(exported.verify().files.differ, ["preprocessor_config.json"]);

    export(exported.bundle());
    exported.change_manifest(|manifest| manifest.image.std = [0.4; 3]);
    assert_eq!(exported.verify().files.differ, ["manifest.json: image"]);
}

#[test]
fn a_precision_that_the_graphs_do_not_have_fails() {
    let exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp16);
    exported.change_manifest(|manifest| manifest.precision = Precision::Int8);
    let report = exported.verify();
    assert_eq!(report.weights.differ.len(), 1, "{report}");
    assert_eq!(
        report.weights.differ[0].diagnostic,
        "manifest.json has int8, expected fp16 as in the graphs"
    );
}

/// No probe is that long.
#[test]
fn a_rotary_table_is_compared_with_theta_up_to_its_last_position() {
    let exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp32);
    let graph = graph_with(exported.bundle(), "lm_head.weight");
    exported.change(&graph, |bytes| {
        let tables = rotary_tables(bytes);
        assert_eq!(tables.len(), 2);
        for (at, length) in tables {
            // The cosine of a far position, the sine of the last.
            let value = at + length - 4;
            bytes[value..value + 4].copy_from_slice(&0.75f32.to_le_bytes());
        }
    });
    let report = exported.verify();
    let problems: Vec<_> = report
        .weights
        .differ
        .iter()
        .map(|weight| format!("{}: {}", weight.name, weight.diagnostic))
        .collect();
    assert_eq!(
        problems,
        [
            "rotary cosines: 1 of 524288 values are not those of theta 130000",
            "rotary sines: 1 of 524288 values are not those of theta 130000"
        ]
    );
    assert_eq!(report.verdict(), Verdict::Fail);
}

#[test]
fn a_bundle_of_another_checkpoint_fails() {
    let mut exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp32);
    exported.source = Synthetic::micro_so400m().seed(1).shared();
    let report = exported.verify();
    assert_eq!(report.verdict(), Verdict::Fail);
    assert!(!report.source_is_the_same);
}

#[test]
fn a_bundle_of_another_size_is_an_error() {
    let mut exported = Exported::new(&Synthetic::micro_so400m(), Precision::Fp32);
    exported.source = Synthetic::micro().shared();
    let error = verify(
        exported.bundle(),
        &exported.source,
        &VerifyOptions {
            backend: BackendChoice::Tract,
            ..VerifyOptions::default()
        },
    );
    assert_eq!(
        error.unwrap_err().to_string(),
        "the bundle's tile size is 90, expected 64 as in the checkpoint; they are different models"
    );
}

#[test]
fn images_of_a_folder_are_asked_about_by_name() {
    let exported = Exported::new(&Synthetic::micro(), Precision::Fp32);
    let options = VerifyOptions {
        images: Some(tests::data("images")),
        backend: BackendChoice::Tract,
        ..VerifyOptions::default()
    };
    let report = verify(exported.bundle(), &exported.source, &options).unwrap();
    let probes: Vec<_> = report
        .answers
        .list
        .iter()
        .map(|answer| answer.probe.as_str())
        .collect();
    assert_eq!(
        probes,
        [
            "gradient",
            "blocks",
            "two pictures",
            "text",
            "long text",
            "a_entrance.png",
            "b_carpark.png",
            "c_worker_tall.png"
        ]
    );
    assert_eq!(report.verdict(), Verdict::Pass, "{report}");
}

/// The graph file whose bytes name `tensor` as a constant.
fn graph_with(bundle: &Path, tensor: &str) -> String {
    let manifest: Manifest =
        serde_json::from_slice(&fs::read(bundle.join("manifest.json")).unwrap()).unwrap();
    let mut graphs = manifest.graphs.iter().map(|(_, graph)| graph);
    graphs
        .find(|graph| {
            exporter::graph::onnx::GraphFile::open(&bundle.join(graph))
                .unwrap()
                .constant(tensor)
                .is_some()
        })
        .unwrap()
        .clone()
}

/// Offset of the values of a constant in a graph file.
fn weights_of(file: &[u8], tensor: &str) -> usize {
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(copy.path(), file).unwrap();
    let graph = exporter::graph::onnx::GraphFile::open(copy.path()).unwrap();
    let values = graph.constant(tensor).unwrap().bytes;
    file.windows(values.len())
        .position(|window| window == values)
        .unwrap()
}

/// Offset and length of the two tables of [context, head_dim] in a decoder's file.
fn rotary_tables(file: &[u8]) -> Vec<(usize, usize)> {
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(copy.path(), file).unwrap();
    let graph = exporter::graph::onnx::GraphFile::open(copy.path()).unwrap();
    let tables = graph
        .constants()
        .filter(|(name, constant)| name.starts_with("constant.") && constant.dims == [8192, 64]);
    let offset_of = |values: &[u8]| {
        file.windows(values.len())
            .position(|window| window == values)
            .unwrap()
    };
    tables
        .map(|(_, constant)| (offset_of(constant.bytes), constant.bytes.len()))
        .collect()
}
