//! The folder that an export writes.

use firmware_config::manifest::Precision;

use super::{Bench, files, tiny};

#[test]
fn the_same_checkpoint_gives_the_same_bytes() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    for precision in [Precision::Fp32, Precision::Fp16, Precision::Int8] {
        bench
            .export(&source, &format!("a-{precision:?}"), precision)
            .unwrap();
        bench
            .export(&source, &format!("b-{precision:?}"), precision)
            .unwrap();
        let [a, b] = ["a", "b"].map(|name| files(&bench.path(&format!("{name}-{precision:?}"))));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        assert!(
            a == b,
            "{precision:?}: some file differs between two exports"
        );
    }
}

#[test]
fn a_bundle_lists_every_file_and_opens() {
    let bench = Bench::new();
    let manifest = bench
        .export(&bench.checkpoint(&tiny()), "bundle", Precision::Fp16)
        .unwrap();
    let mut present: Vec<String> = files(&bench.path("bundle")).into_keys().collect();
    present.retain(|name| name != "manifest.json");
    assert_eq!(manifest.files.keys().cloned().collect::<Vec<_>>(), present);
    assert_eq!(
        vlm::Bundle::open(&bench.path("bundle")).unwrap().manifest(),
        &manifest
    );
    assert_eq!(manifest.prompt.stop, [6, 2, 0]);
}

#[test]
fn a_taken_name_is_not_replaced() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    bench.export(&source, "bundle", Precision::Fp32).unwrap();
    let before = files(&bench.path("bundle"));
    let error = bench
        .export(&source, "bundle", Precision::Fp16)
        .unwrap_err();
    insta::assert_snapshot!(error, @"…/bundle: already exists; choose another name, or give --force to replace a bundle");
    assert!(files(&bench.path("bundle")) == before);
}
