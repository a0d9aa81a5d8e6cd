//! `egret-export`, run as a user runs it.

mod export;
mod failures;
mod hub;
mod inspect;
mod verify;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
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
