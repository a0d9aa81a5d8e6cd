//! Exports that fail: exit codes, errors, and nothing left half written.

use std::fs;
use std::process::{Command, Stdio};

use super::{Bench, Ran, files};

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
    let error = bench.run(&["export", "tiny", "/proc/bundle"]).refused(74);
    insta::assert_snapshot!(error.split(" at path").next().unwrap(), @"egret-export: /proc: cannot be written; choose a writable folder with room for the bundle: No such file or directory (os error 2)");
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
    let error = Ran::new(command.output().unwrap(), bench.folder.path()).refused(74);
    insta::assert_snapshot!(error, @"egret-export: bundle/onnx/vision_encoder.onnx: cannot be written; choose a writable folder with room for the bundle: File too large (os error 27)");
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
