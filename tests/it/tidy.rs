//! The invariants of `ARCHITECTURE.md`, checked by reading the sources.

mod imports;

use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

const CRATES: [&str; 8] = [
    "firmware-config",
    "devices",
    "vlm",
    "runtime",
    "exporter",
    "tests",
    "benches",
    "fuzz",
];
/// Sources of the shipped programs.
const PRODUCT: [&str; 5] = [
    "firmware-config/src",
    "devices/src",
    "vlm/src",
    "runtime/src",
    "exporter/src",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
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
                let name = path
                    .strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned();
                found.push((name, std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// Source lines that are neither comments nor documentation.
fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .map(str::trim)
        .filter(|line| !line.starts_with("//"))
}

/// The files with a line of code that contains one of `words`.
fn files_naming(folders: &[&str], words: &[&str]) -> Vec<String> {
    folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|(_, text)| {
            code_lines(text).any(|line| words.iter().any(|word| line.contains(word)))
        })
        .map(|(name, _)| name)
        .collect()
}

/// As [`files_naming`], without unit tests.
fn files_naming_outside_tests(folders: &[&str], words: &[&str]) -> Vec<String> {
    folders
        .iter()
        .flat_map(|folder| sources(folder))
        .filter(|(name, _)| !name.ends_with("/tests.rs") && !name.contains("/simulation"))
        .filter(|(_, text)| {
            code_lines(&without_tests(text))
                .any(|line| words.iter().any(|word| line.contains(word)))
        })
        .map(|(name, _)| name)
        .collect()
}

/// The text without its test-only items: from `#[cfg(test)]` to the brace at the same indentation,
/// or to the end of `mod name;`.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
        } else if let Some(item) = lines.next().filter(|item| item.ends_with('{')) {
            let close = if item.trim_start().starts_with("use ") {
                "};"
            } else {
                "}"
            };
            let end = line.replace("#[cfg(test)]", close);
            lines.by_ref().find(|line| *line == end);
        }
    }
    kept
}

#[test]
fn unit_tests_are_left_out() {
    let text = "a\n    #[cfg(test)]\n    fn x() {\n        y\n    }\nb\n#[cfg(test)]\nmod z;\nc // not #[cfg(test)]\n#[cfg(test)]\nuse e::{\n    E,\n};\n#[cfg(test)]\nmod tests {\n    q\n}\nd\n";
    assert_eq!(without_tests(text), "a\nb\nc // not #[cfg(test)]\nd\n");
}

/// The workspace members that `member` depends on outside its tests.
fn dependencies(member: &str) -> Vec<String> {
    let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
    let after = manifest.split("[dependencies]").nth(1).unwrap_or_default();
    let section = after.split("\n[").next().unwrap_or_default();
    section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| CRATES.contains(name))
        .map(str::to_owned)
        .collect()
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
            assert!(
                allowed.contains(&dependency.as_str()),
                "{member} must not depend on {dependency}; allowed: {allowed:?}"
            );
        }
    }
}

#[test]
fn each_third_party_library_is_used_in_one_place() {
    let places: &[(&str, &[&str])] = &[
        // `backend.rs` declares our module of that name.
        ("ort::", &["vlm/src/backend/ort", "vlm/src/backend.rs"]),
        ("tract_onnx", &["vlm/src/backend/tract"]),
        ("rumqttc", &["runtime/src/mqtt", "tests/"]),
        ("rumqttd", &["runtime/src/commands/demo/broker.rs"]),
        ("prost::", &["exporter/src/graph/"]),
        ("tokenizers::", &["vlm/src/tokenizer.rs"]),
        ("minijinja::", &["vlm/src/template"]),
        ("memmap2", &["vlm/src/mapped.rs"]),
        (
            "reqwest::",
            &["runtime/src/pool/https", "exporter/src/hub/", "tests/"],
        ),
        ("prometheus_client::", &["runtime/src/metrics"]),
        (
            "hyper_util::",
            &["runtime/src/serve/gateway/connections.rs"],
        ),
    ];
    for (word, allowed) in places {
        for (name, text) in CRATES
            .iter()
            .flat_map(|member| sources(member))
            .filter(|(name, _)| !name.ends_with("tidy.rs"))
        {
            let named = code_lines(&text).any(|line| {
                line.match_indices(word).any(|(at, _)| {
                    !line[..at].ends_with(|before: char| {
                        before.is_alphanumeric() || before == '_' || before == ':'
                    })
                })
            });
            assert!(
                !named || allowed.iter().any(|place| name.starts_with(place)),
                "{name} uses {word}, which is allowed in {allowed:?} only"
            );
        }
    }
}

/// The demo's broker and its dependencies are not part of a device build.
#[test]
fn the_device_build_has_no_broker() {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .args(["tree", "--locked", "-p", "runtime", "--no-default-features"])
        .args(["-e", "normal,build", "--prefix", "none"])
        .current_dir(root())
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && tree.contains("rumqttc v"),
        "{tree}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let found: Vec<_> = ["rumqttd v", "config v", "tempfile v"]
        .into_iter()
        .filter(|name| tree.lines().any(|line| line.starts_with(name)))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn formats_have_no_io_and_no_async() {
    let found = files_naming(
        &["firmware-config/src"],
        &["std::fs", "std::net::Tcp", "tokio", "async fn", ".await"],
    );
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_model_crate_has_no_async() {
    let found = files_naming(
        &["vlm/src", "exporter/src"],
        &["tokio", "async fn", ".await"],
    );
    // The exceptions are the client that fetches checkpoints, and Ctrl-C.
    let found: Vec<_> = found
        .into_iter()
        .filter(|name| !name.starts_with("exporter/src/hub") && name != "exporter/src/interrupt.rs")
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn pure_modules_take_time_and_randomness_as_arguments() {
    let routing = [
        "capture/gate",
        "decide/router",
        "decide/budget",
        "deliver/span",
        "deliver/event",
        "deliver/topics",
        "deliver/outbox",
        "deliver/outbox/delivery",
        "deliver/outbox/gap",
        "scene/core",
        "backoff",
        "commands/labels",
    ];
    let pools = [
        "pool/breaker",
        "pool/retry",
        "pool/question",
        "pool/reading",
    ];
    let chat = [
        "serve/chat/schema",
        "serve/chat/completion",
        "serve/chat/data_uri",
        "serve/gateway/relay",
        "serve/gateway/model_choice",
        "serve/gateway/routing",
    ];
    let mut pure: Vec<String> = routing
        .iter()
        .chain(&pools)
        .chain(&chat)
        .map(|name| format!("runtime/src/{name}.rs"))
        .collect();
    pure.extend(
        ["prompt", "confidence", "score", "resample", "tiles"]
            .iter()
            .map(|name| format!("vlm/src/{name}.rs")),
    );
    for name in &pure {
        assert!(
            root().join(name).is_file(),
            "{name} does not exist; was it moved?"
        );
    }
    // And every module documented as pure.
    let is_pure = |text: &str| {
        text.lines()
            .take_while(|line| line.starts_with("//!"))
            .any(|line| line.contains("Pure"))
    };
    pure.extend(
        PRODUCT
            .iter()
            .flat_map(|folder| sources(folder))
            .filter(|(_, text)| is_pure(text))
            .map(|(name, _)| name),
    );
    let words = [
        "now()",
        "elapsed()",
        "rand::",
        "std::fs",
        "std::net",
        "tokio",
        ".await",
        "Mutex",
        "tracing::",
    ];
    let impure = files_naming_outside_tests(&PRODUCT, &words);
    let found: Vec<_> = impure
        .into_iter()
        .filter(|name| pure.contains(name))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn tasks_and_threads_are_started_where_the_architecture_says() {
    let allowed = [
        // The agent, the gateway, the worker, the demo.
        "runtime/src/pipeline",
        "runtime/src/capture.rs",
        "runtime/src/serve/gateway",
        "runtime/src/commands/worker.rs",
        "runtime/src/commands/demo",
        // Child processes, and the threads that read their output.
        "devices/src/child.rs",
        "devices/src/clip.rs",
        "devices/src/camera/live.rs",
        // Decodes an image on a blocking thread, and awaits it.
        "runtime/src/serve/chat/reader.rs",
        // Scoped: joined before the function returns.
        "exporter/src/reference/math.rs",
        // Waits for Ctrl-C, then ends the program.
        "exporter/src/interrupt.rs",
    ];
    let tasks = [
        "tokio::spawn",
        "tokio::task::spawn",
        "spawn_blocking",
        "spawn_local",
        "JoinSet",
    ];
    let threads = [
        "thread::spawn",
        "thread::scope",
        "thread::Builder",
        "rayon::",
        "Command::new",
    ];
    let found = elsewhere(&[&tasks[..], &threads].concat(), &allowed);
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn queues_are_bounded_and_made_where_the_architecture_says() {
    let allowed = [
        "runtime/src/pipeline",
        // Modules that own both ends of a queue.
        "runtime/src/mqtt.rs",
        "runtime/src/infer.rs",
        "runtime/src/capture/handoff.rs",
        // The output of one child process.
        "devices/src/clip.rs",
        // Only the latest value: the stop signal, the number of events.
        "runtime/src/serve/gateway/connections.rs",
        "runtime/src/commands/serve.rs",
        "runtime/src/commands/demo/auditor.rs",
    ];
    let found = elsewhere(
        &[
            "mpsc::channel",
            "watch::channel",
            "watch::Sender::new",
            "broadcast::",
            "sync_channel",
            "crossbeam",
        ],
        &allowed,
    );
    assert!(found.is_empty(), "{found:?}");
    let unbounded = elsewhere(
        &[
            "unbounded",
            "std::sync::mpsc;",
            "std::sync::mpsc::channel",
            "sync::mpsc::Sender",
        ],
        &[],
    );
    assert!(unbounded.is_empty(), "{unbounded:?}");
}

/// The product's files that contain one of `words` outside tests, and are not among `allowed`.
fn elsewhere(words: &[&str], allowed: &[&str]) -> Vec<String> {
    let found = files_naming_outside_tests(&PRODUCT, words);
    found
        .into_iter()
        .filter(|name| !allowed.iter().any(|place| name.starts_with(place)))
        .collect()
}

#[test]
fn the_reference_shares_no_code_with_the_graphs() {
    let graphs = [
        "crate::arch",
        "crate::graph",
        "crate::quantize",
        "super::arch",
        "super::graph",
        "vlm::",
    ];
    let found: Vec<_> = files_naming(&["exporter/src"], &graphs)
        .into_iter()
        .filter(|name| name.starts_with("exporter/src/reference"))
        .collect();
    assert!(found.is_empty(), "{found:?}");
    let found: Vec<_> = files_naming(&["exporter/src"], &["crate::reference"])
        .into_iter()
        .filter(|name| !name.starts_with("exporter/src/verify"))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn unsafe_code_is_in_one_file() {
    for member in CRATES.iter().filter(|member| **member != "vlm") {
        let root_file = root().join(member).join("src/lib.rs");
        assert!(
            std::fs::read_to_string(&root_file)
                .unwrap()
                .contains("#![forbid(unsafe_code)]"),
            "{member}"
        );
    }
    let found = files_naming(&CRATES, &["unsafe {", "unsafe fn", "unsafe impl"]);
    let found: Vec<_> = found
        .into_iter()
        .filter(|name| !name.ends_with("tidy.rs"))
        .collect();
    assert_eq!(found, ["vlm/src/mapped.rs"]);
}

#[test]
fn files_stay_short() {
    for (name, text) in CRATES.iter().flat_map(|member| sources(member)) {
        let lines = text.lines().count();
        assert!(
            lines <= 700,
            "{name} has {lines} lines, at most 700 are allowed; split it by topic"
        );
    }
    let lines = std::fs::read_to_string(root().join("ARCHITECTURE.md"))
        .unwrap()
        .lines()
        .count();
    assert!(
        lines <= 150,
        "ARCHITECTURE.md has {lines} lines, at most 150 are allowed"
    );
}

#[test]
fn the_repository_stays_small() {
    let listed = Command::new("git")
        .args(["ls-files", "-z"])
        .current_dir(root())
        .output()
        .expect("git is installed");
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let files: Vec<_> = std::str::from_utf8(&listed.stdout)
        .unwrap()
        .split_terminator('\0')
        .collect();
    for (below, mib_max) in [("demo/bundles/", 24), ("demo/frames/", 3), ("", 40)] {
        // A file that is deleted but still in the index counts as zero bytes.
        let sizes = files
            .iter()
            .filter(|file| file.starts_with(below))
            .filter_map(|file| root().join(file).metadata().ok());
        let bytes: u64 = sizes.map(|file| file.len()).sum();
        assert!(
            (1..=mib_max << 20).contains(&bytes),
            "{below:?}: {bytes} bytes, expected at most {mib_max} MiB"
        );
    }
}

/// cross only warns about unknown keys, and ignores them.
#[test]
fn the_cross_configuration_has_known_keys_only() {
    let known: &[(&str, &[&str])] = &[
        ("", &["build", "target", "env"]),
        (
            "build",
            &[
                "build-std",
                "xargo",
                "zig",
                "default-target",
                "pre-build",
                "dockerfile",
                "env",
            ],
        ),
        (
            "target.*",
            &[
                "build-std",
                "xargo",
                "zig",
                "image",
                "pre-build",
                "dockerfile",
                "runner",
                "env",
            ],
        ),
        ("env", &["volumes", "passthrough"]),
        ("build.env", &["volumes", "passthrough"]),
        ("target.*.env", &["volumes", "passthrough"]),
    ];
    let config: Table = std::fs::read_to_string(root().join("cross.toml"))
        .unwrap()
        .parse()
        .unwrap();
    let mut tables = vec![(String::new(), &config)];
    while let Some((place, table)) = tables.pop() {
        for (key, value) in table {
            let keys = known
                .iter()
                .find(|(known, _)| *known == place)
                .map(|(_, keys)| *keys);
            assert!(
                place == "target" || keys.is_some_and(|keys| keys.contains(&key.as_str())),
                "[{place}] {key} is not a key of cross"
            );
            if let Value::Table(inner) = value {
                let key = if place == "target" { "*" } else { key };
                tables.push((
                    if place.is_empty() {
                        key.to_owned()
                    } else {
                        format!("{place}.{key}")
                    },
                    inner,
                ));
            }
        }
    }
    assert_eq!(
        config["build"]["default-target"].as_str(),
        Some("aarch64-unknown-linux-gnu")
    );
}

#[test]
fn nothing_is_left_unfinished() {
    let found: Vec<_> = files_naming(&CRATES, &["todo!(", "unimplemented!(", "#[ignore"])
        .into_iter()
        .filter(|name| !name.ends_with("tidy.rs"))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn the_licence_is_the_same_everywhere() {
    assert!(
        std::fs::read_to_string(root().join("LICENSE"))
            .unwrap()
            .contains("Apache License")
    );
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(manifest.contains("license = \"Apache-2.0\""));
    for member in CRATES {
        let manifest = std::fs::read_to_string(root().join(member).join("Cargo.toml")).unwrap();
        assert!(manifest.contains("license.workspace = true"), "{member}");
    }
}
