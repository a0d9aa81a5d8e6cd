//! Bundles that differ from their manifest are refused before any of their files is used; the error
//! names the file and both values.

use std::path::Path;

use firmware_config::manifest::Precision;
use tests::bundles::{bundle, damage, linked_copy};
use tests::synth::Synthetic;
use vlm::{BackendChoice, Options, Vlm};

/// Opens a copy of the micro bundle after `change`, and returns the error with the copy's folder
/// left out.
fn refused(change: impl FnOnce(&Path)) -> String {
    let dir = tempfile::tempdir_in(
        bundle(&Synthetic::micro(), Precision::Fp32)
            .parent()
            .unwrap(),
    )
    .unwrap();
    let copy = dir.path().join("micro");
    linked_copy(&bundle(&Synthetic::micro(), Precision::Fp32), &copy);
    change(&copy);
    let options = Options {
        backend: BackendChoice::Tract,
        ..Options::default()
    };
    Vlm::open(&copy, &options)
        .unwrap_err()
        .to_string()
        .replace(&copy.display().to_string(), "BUNDLE")
}

#[test]
fn a_changed_byte_is_detected() {
    let error = refused(|dir| {
        damage(&dir.join("onnx/embed_tokens.onnx"), |content| {
            *content.last_mut().unwrap() ^= 1
        })
    });
    let (start, end) = (
        "BUNDLE/onnx/embed_tokens.onnx has sha256 ",
        "; copy the bundle again",
    );
    let both = error
        .strip_prefix(start)
        .and_then(|rest| rest.strip_suffix(end))
        .unwrap_or_else(|| panic!("{error}"));
    let (got, expected) = both.split_once(": expected ").unwrap();
    assert!(
        got.len() == 64 && expected.len() == 64 && got != expected,
        "{error}"
    );
}

#[test]
fn a_truncated_file_is_detected_by_its_size() {
    let error = refused(|dir| damage(&dir.join("tokenizer.json"), |content| content.truncate(100)));
    insta::assert_snapshot!(error, @"BUNDLE/tokenizer.json is 100 bytes: expected 3548256; copy the bundle again");
}

#[test]
fn a_missing_file_is_named() {
    let error = refused(|dir| std::fs::remove_file(dir.join("config.json")).unwrap());
    insta::assert_snapshot!(error, @"BUNDLE/config.json: no such file, but the manifest lists it; copy the whole bundle again");
}

#[test]
fn a_folder_without_a_manifest_is_not_a_bundle() {
    let error = refused(|dir| std::fs::remove_file(dir.join("manifest.json")).unwrap());
    insta::assert_snapshot!(error, @"BUNDLE/manifest.json: no such file; a bundle is the folder that `egret-export` wrote");
}

#[test]
fn a_newer_format_is_refused() {
    let error = refused(|dir| {
        damage(&dir.join("manifest.json"), |content| {
            let newer =
                String::from_utf8_lossy(content).replacen("\"format\": 1", "\"format\": 2", 1);
            assert_ne!(newer.as_bytes(), content.as_slice());
            *content = newer.into_bytes();
        });
    });
    insta::assert_snapshot!(error, @"BUNDLE/manifest.json: the bundle has manifest format 2, and this build reads up to 1; update egret, or export the bundle again");
}

#[test]
fn files_not_in_the_manifest_are_ignored() {
    let dir = tempfile::tempdir_in(
        bundle(&Synthetic::micro(), Precision::Fp32)
            .parent()
            .unwrap(),
    )
    .unwrap();
    let copy = dir.path().join("micro");
    linked_copy(&bundle(&Synthetic::micro(), Precision::Fp32), &copy);
    std::fs::write(copy.join("calibration.json"), "{}").unwrap();
    let options = Options {
        backend: BackendChoice::Tract,
        ..Options::default()
    };
    assert_eq!(Vlm::open(&copy, &options).unwrap().identity().name, "micro");
}
