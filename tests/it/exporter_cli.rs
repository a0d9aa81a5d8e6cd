//! `egret-export`, run as a user runs it.

mod hub;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use firmware_config::manifest::{FileEntry, Manifest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tests::bundles::damage;
use tests::synth::Synthetic;

/// A folder to work in, removed with the test.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Bench {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The smallest checkpoint that answers: the micro model around the vocabulary of a demo's. 5
    /// MB.
    fn checkpoint(&self, name: &str, synthetic: Synthetic) -> PathBuf {
        let mut small = synthetic;
        small.text.vocab_size = 2048;
        let dir = self.path(name);
        small.write(&dir).unwrap();
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../demo/bundles/nano-edge");
        fs::copy(demo.join("tokenizer.json"), dir.join("tokenizer.json")).unwrap();
        edit(&dir.join("config.json"), |config| {
            config["image_token_id"] = json!(6)
        });
        edit(&dir.join("generation_config.json"), |config| {
            config["eos_token_id"] = json!(3)
        });
        dir
    }

    fn tiny(&self) -> PathBuf {
        self.checkpoint("tiny", Synthetic::micro())
    }

    /// Runs the program in the folder, on tract.
    fn run(&self, args: &[&str]) -> Ran {
        self.run_with(args, &[])
    }

    fn run_with(&self, args: &[&str], variables: &[(&str, &str)]) -> Ran {
        let mut command = Command::new(tests::program("egret-export"));
        command
            .args(args)
            .current_dir(self.folder.path())
            .env("RUST_LOG", "error")
            .env_remove("ORT_DYLIB_PATH");
        // Tests reach no hub except the one on loopback.
        command
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("HF_HUB_CACHE", self.path("cache"))
            .env_remove("HF_TOKEN");
        command
            .env("NO_PROXY", "127.0.0.1")
            .envs(variables.iter().copied());
        Ran::new(command.output().unwrap(), self.folder.path())
    }

    /// What is in the folder besides checkpoints, by relative path.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = files(self.folder.path()).into_keys().collect();
        left.retain(|name| !name.starts_with("tiny/") && !name.starts_with("other/"));
        left
    }
}

/// The result of a run, with the folder's name left out.
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn new(output: Output, folder: &Path) -> Self {
        let text = |bytes: Vec<u8>| {
            String::from_utf8(bytes)
                .unwrap()
                .replace(&folder.display().to_string(), "…")
                .trim_end()
                .to_owned()
        };
        Ran {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self
    }

    /// The error of a run that ended with `code`.
    #[track_caller]
    fn refused(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
        self.stderr
    }

    /// The object that ends stdout.
    fn json(&self) -> Value {
        serde_json::from_str(self.stdout.lines().last().unwrap()).unwrap()
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Every file of a folder, by relative path.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(
                files(&path)
                    .into_iter()
                    .map(|(inner, content)| (format!("{name}/{inner}"), content)),
            );
        } else {
            found.insert(name, fs::read(path).unwrap());
        }
    }
    found
}

/// A report as it is on every machine: without the values that were measured, and without answers
/// that are nearly ties.
fn unmeasured(report: &str) -> String {
    let line = |line: &str| match line.split_at_checked(40) {
        Some((gate, rest))
            if ["cosine", "error", "agreement", "divergence", "answers"]
                .iter()
                .any(|end| gate.trim_end().ends_with(end)) =>
        {
            format!("{gate}           #{}", &rest[12..])
        }
        _ => line.to_owned(),
    };
    report
        .lines()
        .filter(|line| !line.contains("differs from token") && !line.contains("answers are"))
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Text without the hashes of files that change with the exporter.
fn unhashed(text: &str) -> String {
    let is_hash =
        |word: &str| word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hashes = text
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| is_hash(word));
    hashes.fold(text.to_owned(), |text, hash| text.replace(hash, "SHA256"))
}

// --- export

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
    let said = bench
        .run(&["export", "tiny", "bundle", "--precision", "fp16"])
        .refused(1);
    insta::assert_snapshot!(unmeasured(&said), @r"
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

#[test]
fn wrong_usage_is_reported_before_any_work() {
    let bench = Bench::new();
    bench.tiny();
    bench
        .run(&["export", "tiny", "bundle", "--precision", "fp32"])
        .done();
    let before = files(&bench.path("bundle"));
    fs::create_dir(bench.path("empty")).unwrap();
    fs::create_dir(bench.path("photos")).unwrap();
    fs::write(bench.path("photos/thesis.txt"), "years of work").unwrap();
    let refusal = |args: &[&str], code| bench.run(args).refused(code);
    insta::assert_snapshot!(refusal(&["export", "tiny", "bundle"], 64), @"egret-export: bundle: already exists; choose another name, or give --force to replace a bundle");
    insta::assert_snapshot!(refusal(&["export", "tiny", "photos", "--force"], 64), @"egret-export: photos: exists and is not a bundle (it has no manifest.json), so --force does not replace it; choose another name");
    insta::assert_snapshot!(refusal(&["export", "nowhere", "new"], 74), @"egret-export: nowhere: no such folder; expected a folder with config.json, tokenizer.json and model.safetensors, or a hub id such as HuggingFaceTB/SmolVLM2-256M-Video-Instruct");
    insta::assert_snapshot!(refusal(&["export", "empty", "new"], 64), @"egret-export: empty/config.json: no such file; expected a checkpoint folder with config.json, tokenizer.json and safetensors, as save_pretrained writes it");
    insta::assert_snapshot!(refusal(&["export", "tiny/config.json", "new"], 74), @"egret-export: tiny/config.json: no such folder; expected a folder with config.json, tokenizer.json and model.safetensors, or a hub id such as HuggingFaceTB/SmolVLM2-256M-Video-Instruct");
    insta::assert_snapshot!(refusal(&["export", "tiny", "new", "--calibration", "nowhere"], 74), @"egret-export: nowhere: no such folder; --calibration expects a folder of 1 to 256 images, which are used to verify the bundle (quantization does not use them yet)");
    insta::assert_snapshot!(refusal(&["export", "tiny", "new", "--calibration", "photos"], 64), @"egret-export: photos/thesis.txt: image: expected a jpeg, png, webp, bmp or gif file, got 13 bytes that begin with 79 65 61 72 73 20 6f 66; convert it first; the folder may hold only images");
    insta::assert_snapshot!(refusal(&["export", "tiny", "new", "--revision", "v2"], 64), @"egret-export: --revision is for hub ids, and tiny is a folder; leave it out");
    insta::assert_snapshot!(refusal(&["verify", "nowhere", "--reference", "tiny"], 74), @"egret-export: nowhere: no such folder; expected a bundle folder, as `egret-export export` makes it");
    insta::assert_snapshot!(refusal(&["verify", "tiny", "--reference", "tiny"], 74), @"egret-export: the bundle: tiny/manifest.json: no such file; a bundle is the folder that `egret-export` wrote");
    insta::assert_snapshot!(refusal(&["verify", "bundle"], 64).lines().take(3).collect::<Vec<_>>().join("\n"), @r"
    error: the following required arguments were not provided:
      --reference <REFERENCE>
    ");
    assert!(
        files(&bench.path("bundle")) == before
            && bench.path("photos/thesis.txt").exists()
            && !bench.path("new").exists()
    );

    bench
        .run(&["export", "tiny", "bundle", "--precision", "fp16", "--force"])
        .done();
    assert!(
        bench.path("bundle/onnx/embed_tokens_fp16.onnx").exists()
            && !bench.path("bundle/onnx/embed_tokens.onnx").exists()
    );
}

/// Permissions do not stop root, so the target is below what is not a folder.
#[test]
fn a_target_that_cannot_be_written_is_named_and_unchanged() {
    let bench = Bench::new();
    bench.tiny();
    fs::write(bench.path("file"), "").unwrap();
    insta::assert_snapshot!(bench.run(&["export", "tiny", "file/bundle"]).refused(74), @"egret-export: file: cannot be written; choose a writable folder with room for the bundle: File exists (os error 17)");
    assert_eq!(bench.left(), ["file"]);
    let said = bench.run(&["export", "tiny", "/proc/bundle"]).refused(74);
    insta::assert_snapshot!(said.split(" at path").next().unwrap(), @"egret-export: /proc: cannot be written; choose a writable folder with room for the bundle: No such file or directory (os error 2)");
    assert_eq!(bench.left(), ["file"]);
}

/// Files are limited to 1 MiB, which acts like a full disk: the first large graph does not fit.
#[test]
fn a_disk_that_fills_up_leaves_nothing_half_written() {
    let bench = Bench::new();
    bench.tiny();
    let mut command = Command::new("sh");
    // The signal that comes with the limit would end the program before it can report.
    command.args([
        "-c",
        "ulimit -f 1024; trap '' XFSZ; exec \"$0\" export tiny bundle --precision fp32",
    ]);
    command
        .arg(tests::program("egret-export"))
        .current_dir(bench.folder.path())
        .env("RUST_LOG", "error");
    let said = Ran::new(command.output().unwrap(), bench.folder.path()).refused(74);
    insta::assert_snapshot!(said, @"egret-export: bundle/onnx/vision_encoder.onnx: cannot be written; choose a writable folder with room for the bundle: File too large (os error 27)");
    assert_eq!(bench.left(), [""; 0]);
}

#[test]
fn an_export_that_is_interrupted_leaves_nothing_half_written() {
    let bench = Bench::new();
    bench.tiny();
    for signal in ["-INT", "-TERM"] {
        let mut command = Command::new(tests::program("egret-export"));
        command
            .args(["export", "tiny", "bundle", "--precision", "fp32"])
            .current_dir(bench.folder.path())
            .env("RUST_LOG", "error");
        let mut export = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // As soon as it has begun to write.
        let begun = || {
            fs::read_dir(bench.folder.path())
                .unwrap()
                .flatten()
                .any(|entry| entry.file_name().as_encoded_bytes().starts_with(b".egret"))
        };
        while export.try_wait().unwrap().is_none() && !begun() {
            std::thread::yield_now();
        }
        let signalled = Command::new("kill")
            .args([signal, &export.id().to_string()])
            .status()
            .unwrap();
        let code = export.wait().unwrap().code();
        // An export as small as this one may end before the signal arrives.
        assert!(
            matches!(
                (signalled.success(), code),
                (true, Some(130)) | (_, Some(0))
            ),
            "{code:?}"
        );
        assert!(
            bench.left().iter().all(|name| name.starts_with("bundle/")),
            "{:?}",
            bench.left()
        );
        let _ = fs::remove_dir_all(bench.path("bundle"));
    }
}

/// One file for the whole processor, a template in its own file, dtype and theta under their newer
/// names.
#[test]
fn a_checkpoint_as_transformers_5_saves_it_is_exported_and_verified() {
    let bench = Bench::new();
    let source = bench.tiny();
    let mut pictures: Value =
        serde_json::from_slice(&fs::read(source.join("preprocessor_config.json")).unwrap())
            .unwrap();
    fs::remove_file(source.join("preprocessor_config.json")).unwrap();
    pictures
        .as_object_mut()
        .unwrap()
        .shift_remove("video_sampling");
    edit(&source.join("processor_config.json"), |processor| {
        processor["image_processor"] = pictures;
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

// --- verify

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

// --- inspect

#[test]
fn inspect_ends_with_one_line_of_json() {
    let bench = Bench::new();
    bench.tiny();
    bench
        .run(&["export", "tiny", "bundle", "--precision", "fp32"])
        .done();
    for (folder, kind) in [("tiny", "checkpoint"), ("bundle", "bundle")] {
        let ran = bench.run(&["inspect", folder, "--json"]).done();
        assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
        assert_eq!(
            (&ran.json()["kind"], &ran.json()["name"]),
            (&json!(kind), &json!("tiny"))
        );
        assert!(
            bench
                .run(&["inspect", folder])
                .done()
                .stdout
                .starts_with(&format!("{kind} tiny (smolvlm"))
        );
    }
}

#[test]
fn help_lists_what_each_command_takes() {
    let bench = Bench::new();
    let help = |command| bench.run(&[command, "--help"]).done().stdout;
    insta::assert_snapshot!(help("export"), @r"
    Turn a checkpoint folder into a bundle

    Usage: egret-export export [OPTIONS] <SOURCE> <OUT>

    Arguments:
      <SOURCE>  Checkpoint folder (config.json, tokenizer.json, safetensors), or hub id (owner/model)
      <OUT>     Bundle folder to make

    Options:
          --revision <REVISION>    Branch, tag or commit of a hub id [default: main]
          --precision <PRECISION>  How weights are stored: fp32, fp16 or int8 [default: int8]
          --target <TARGET>        Graphs to make: onnx, which is always made; graphs fused for one runtime are not built yet
          --calibration <DIR>      Folder of 1 to 256 images for the verification, besides the built-in ones; quantization does not use them yet
          --name <NAME>            Model name [default: the last part of SOURCE]
          --allow-loss             Keep a bundle that fails a quality gate
          --force                  Replace a bundle of the same name
          --json                   End stdout with one line of JSON: bundle, manifest and report
      -h, --help                   Print help
      -V, --version                Print version
    ");
    insta::assert_snapshot!(help("inspect"), @r"
    Show what a checkpoint or a bundle holds

    Usage: egret-export inspect [OPTIONS] <SOURCE|BUNDLE>

    Arguments:
      <SOURCE|BUNDLE>  Checkpoint or bundle folder, or hub id (owner/model)

    Options:
          --revision <REVISION>  Branch, tag or commit of a hub id [default: main]
          --json                 One line of JSON
      -h, --help                 Print help
      -V, --version              Print version
    ");
    insta::assert_snapshot!(help("verify"), @r"
    Compare a bundle with its checkpoint; exit 0 if it passes, 1 if it fails

    Usage: egret-export verify [OPTIONS] --reference <REFERENCE> <BUNDLE>

    Arguments:
      <BUNDLE>  Bundle folder

    Options:
          --reference <REFERENCE>  The checkpoint it was made from: a folder, or a hub id
          --revision <REVISION>    Branch, tag or commit of a hub id [default: main]
          --images <IMAGES>        Folder of images to ask about, besides the built-in ones
          --json                   One line of JSON: the report
      -h, --help                   Print help
      -V, --version                Print version
    ");
}

// --- files

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
