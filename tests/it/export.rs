//! Checkpoints in, bundles out: complete ones give the same bytes every time, damaged ones give an
//! error with its help, and leave nothing behind.

mod bundles;
mod configs;
mod graphs;
mod inspect;
mod weights;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use exporter::{ExportOptions, export};
use firmware_config::manifest::{Manifest, Precision};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::synth::Synthetic;

/// A checkpoint of some kilobytes: the family's shapes around a vocabulary of eight.
fn tiny() -> Synthetic {
    let mut tiny = Synthetic::micro();
    tiny.name = "tiny".into();
    tiny.vision.layers = 1;
    tiny.text.layers = 2;
    tiny.text.vocab_size = 8;
    tiny
}

/// A folder to write into, removed with the test.
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

    /// Writes a checkpoint with a tokenizer that fits its vocabulary.
    fn checkpoint(&self, checkpoint: &Synthetic) -> PathBuf {
        let dir = self.path(&checkpoint.name);
        checkpoint.write(&dir).unwrap();
        let contents = [
            "<|endoftext|>",
            "<|im_start|>",
            "<|im_end|>",
            "<image>",
            "<fake_token_around_image>",
            "<global-img>",
            "<end_of_utterance>",
        ];
        let added: Vec<Value> = contents
            .iter()
            .enumerate()
            .map(|(id, content)| json!({ "id": id, "content": content, "special": true }))
            .collect();
        fs::write(
            dir.join("tokenizer.json"),
            json!({ "added_tokens": added }).to_string(),
        )
        .unwrap();
        edit(&dir.join("config.json"), |config| {
            config["image_token_id"] = json!(3)
        });
        edit(&dir.join("generation_config.json"), |config| {
            config["eos_token_id"] = json!(6)
        });
        dir
    }

    fn export(&self, source: &Path, out: &str, precision: Precision) -> Result<Manifest, String> {
        let options = ExportOptions {
            precision,
            name: None,
            replace: false,
        };
        export(source, &self.path(out), &options).map_err(|error| {
            let causes =
                std::iter::successors(std::error::Error::source(&error), |cause| cause.source());
            let text = std::iter::once(error.to_string())
                .chain(causes.map(ToString::to_string))
                .collect::<Vec<_>>()
                .join(": ");
            // Test folders have another name each time.
            text.replace(&self.folder.path().display().to_string(), "…")
        })
    }

    /// The error of exporting a damaged checkpoint, which must leave nothing behind.
    fn refusal(&self, source: &Path) -> String {
        let before = fs::read_dir(self.folder.path()).unwrap().count();
        let error = self
            .export(source, "refused", Precision::Fp32)
            .expect_err("a damaged checkpoint is refused");
        assert_eq!(
            fs::read_dir(self.folder.path()).unwrap().count(),
            before,
            "nothing is left of a failed export"
        );
        error
    }
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

/// Changes the header and data of a weight file.
fn edit_weights(path: &Path, change: impl FnOnce(&mut Value, &mut Vec<u8>)) {
    let file = fs::read(path).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let (mut header, mut data) = (serde_json::from_slice(header).unwrap(), data.to_vec());
    change(&mut header, &mut data);
    let header = header.to_string();
    let parts = [
        &(header.len() as u64).to_le_bytes()[..],
        header.as_bytes(),
        &data,
    ];
    fs::write(path, parts.concat()).unwrap();
}

/// Appends a tensor of zeros.
fn add_tensor(
    header: &mut Value,
    data: &mut Vec<u8>,
    name: &str,
    dtype: &str,
    values: usize,
    width: usize,
) {
    let from = data.len();
    data.resize(from + values * width, 0);
    header[name] = json!({ "dtype": dtype, "shape": [values], "data_offsets": [from, data.len()] });
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
    // Holds measurements, which need not be the same.
    found.remove("report.json");
    found
}
