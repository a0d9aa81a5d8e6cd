//! The invariants of `ARCHITECTURE.md`, held by reading the sources.

use std::path::{Path, PathBuf};

const CRATES: [&str; 7] = ["firmware-config", "devices", "vlm", "runtime", "exporter", "tests", "benches"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// Every Rust source below `folder`, as (path relative to the root, text).
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Source lines that are neither comments nor documentation.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.starts_with("//"))
}

/// The files whose code has a line with one of `words`.
fn files_naming(folders: &[&str], words: &[&str]) -> Vec<String> {
    folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|(_, text)| code_lines(text).any(|line| words.iter().any(|word| line.contains(word))))
        .map(|(name, _)| name)
        .collect()
}

/// As [`files_naming`], but tests beside the code do not count.
fn files_naming_outside_tests(folders: &[&str], words: &[&str]) -> Vec<String> {
    let code = |text: &str| text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
    folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|(_, text)| code_lines(&code(text)).any(|line| words.iter().any(|word| line.contains(word))))
        .map(|(name, _)| name)
        .collect()
}

/// The workspace members that `member` depends on outside its tests.
fn dependencies(member: &str) -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let after = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let section = after.split("\n[").next().unwrap_or_default();
    section.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|name| CRATES.contains(name)).map(str::to_owned).collect()
}

#[test]
fn dependencies_point_one_way() {
    let allowed: &[(&str, &[&str])] = &[
        ("firmware-config", &[]),
        ("devices", &["firmware-config"]),
        ("vlm", &["firmware-config"]),
        ("runtime", &["vlm", "devices", "firmware-config"]),
        ("exporter", &["vlm", "firmware-config"]),
    ];
    for (member, allowed) in allowed {
        for dependency in dependencies(member) {
            assert!(allowed.contains(&dependency.as_str()), "{member} must not depend on {dependency}; allowed: {allowed:?}");
        }
    }
}

#[test]
fn foreign_libraries_are_each_named_in_one_place() {
    let places: &[(&str, &[&str])] = &[
        // `backend.rs` names our own module of that name.
        ("ort::", &["vlm/src/backend/ort", "vlm/src/backend.rs"]),
        ("tract_onnx", &["vlm/src/backend/tract"]),
        ("rumqttc", &["runtime/src/mqtt", "tests/"]),
        ("rumqttd", &["runtime/src/demo/broker.rs"]),
        ("prost::", &["exporter/src/graph/"]),
        ("tokenizers::", &["vlm/src/tokenizer.rs"]),
        ("minijinja::", &["vlm/src/template"]),
        ("memmap2", &["vlm/src/mapped.rs"]),
        ("reqwest::", &["runtime/src/pool/https", "tests/"]),
    ];
    for (word, allowed) in places {
        for (name, text) in CRATES.iter().flat_map(|member| sources(member)).filter(|(name, _)| !name.ends_with("tidy.rs")) {
            let named = code_lines(&text).any(|line| {
                line.match_indices(word)
                    .any(|(at, _)| !line[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_' || before == ':'))
            });
            assert!(!named || allowed.iter().any(|place| name.starts_with(place)), "{name} names {word}; only {allowed:?} may");
        }
    }
}

#[test]
fn formats_have_no_io_and_no_async() {
    let found = files_naming(&["firmware-config/src"], &["std::fs", "std::net::Tcp", "tokio", "async fn", ".await"]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_model_crate_has_no_async() {
    let found = files_naming(&["vlm/src", "exporter/src"], &["tokio", "async fn", ".await"]);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn pure_modules_are_told_the_time_and_their_luck() {
    let pure = ["gate", "router", "budget", "span", "event", "outbox", "backoff", "pool/breaker", "pool/retry", "pool/reading"];
    let mut pure: Vec<String> = pure.iter().map(|name| format!("runtime/src/{name}.rs")).collect();
    pure.extend(["prompt", "confidence", "score", "resample", "tiles"].iter().map(|name| format!("vlm/src/{name}.rs")));
    let impure =
        files_naming_outside_tests(&["runtime/src", "vlm/src"], &["now()", "elapsed()", "rand::", "std::fs", "std::net", ".await"]);
    let found: Vec<_> = impure.into_iter().filter(|name| pure.contains(name)).collect();
    assert!(found.is_empty(), "{found:?}");
    for name in pure {
        assert!(root().join(&name).is_file(), "{name} has moved");
    }
}

#[test]
fn tasks_and_threads_are_started_where_the_architecture_says() {
    let allowed = [
        // The agent, the gateway, the worker, the demo.
        "runtime/src/pipeline.rs",
        "runtime/src/gateway",
        "runtime/src/worker.rs",
        "runtime/src/demo",
        // Children, and the threads that read what they say.
        "devices/src/camera/ffmpeg",
        "runtime/src/ask/clip.rs",
    ];
    let words = ["tokio::spawn", "thread::spawn", "thread::Builder", "JoinSet", "Command::new"];
    let found = files_naming_outside_tests(&["runtime/src", "devices/src", "vlm/src"], &words);
    let found: Vec<_> = found.into_iter().filter(|name| !allowed.iter().any(|place| name.starts_with(place))).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_reference_shares_no_code_with_the_graphs() {
    let graphs = ["crate::arch", "crate::graph", "crate::quantize", "super::arch", "super::graph", "vlm::"];
    let found: Vec<_> =
        files_naming(&["exporter/src"], &graphs).into_iter().filter(|name| name.starts_with("exporter/src/reference")).collect();
    assert!(found.is_empty(), "{found:?}");
    let found: Vec<_> = files_naming(&["exporter/src"], &["crate::reference"])
        .into_iter()
        .filter(|name| !name.starts_with("exporter/src/verify"))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn unsafe_code_is_one_file() {
    for member in CRATES.iter().filter(|member| **member != "vlm") {
        let root_file = root().join(member).join("src/lib.rs");
        assert!(std::fs::read_to_string(&root_file).unwrap().contains("#![forbid(unsafe_code)]"), "{member}");
    }
    let found = files_naming(&CRATES, &["unsafe {", "unsafe fn", "unsafe impl"]);
    let found: Vec<_> = found.into_iter().filter(|name| !name.ends_with("tidy.rs")).collect();
    assert_eq!(found, ["vlm/src/mapped.rs"]);
}

#[test]
fn files_are_small_enough_to_know() {
    for (name, text) in CRATES.iter().flat_map(|member| sources(member)) {
        let lines = text.lines().count();
        assert!(lines <= 700, "{name} has {lines} lines; split it where it has two reasons to change");
    }
    let lines = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap().lines().count();
    assert!(lines <= 150, "ARCHITECTURE.md has {lines} lines");
}

#[test]
fn nothing_is_left_unfinished() {
    let found: Vec<_> =
        files_naming(&CRATES, &["todo!(", "unimplemented!(", "#[ignore"]).into_iter().filter(|name| !name.ends_with("tidy.rs")).collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_licence_is_everywhere_the_same() {
    assert!(std::fs::read_to_string(root().join("LICENSE")).unwrap().contains("Apache License"));
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("license = \"Apache-2.0\""));
    for member in CRATES {
        let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("license.workspace = true"), "{member}");
    }
}
