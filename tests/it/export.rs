//! Checkpoints in, bundles out: complete ones give the same bytes every time, damaged ones give an
//! error with its help, and leave nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use exporter::graph::Element;
use exporter::graph::onnx::GraphFile;
use exporter::inspect::inspect;
use exporter::{ExportOptions, export};
use firmware_config::manifest::{Manifest, Precision};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::synth::{Dtype, Synthetic};

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

// --- complete checkpoints

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
fn shards_give_the_same_graphs_as_one_file() {
    let bench = Bench::new();
    let mut sharded = tiny().shards(3);
    sharded.name = "sharded".into();
    let one = bench
        .export(&bench.checkpoint(&tiny()), "one", Precision::Int8)
        .unwrap();
    let three = bench
        .export(&bench.checkpoint(&sharded), "three", Precision::Int8)
        .unwrap();
    assert_eq!(one.files, three.files);
    assert_ne!(one.source.sha256, three.source.sha256);
}

#[test]
fn half_precision_checkpoints_are_widened() {
    let bench = Bench::new();
    for (dtype, name) in [(Dtype::F16, "f16"), (Dtype::Bf16, "bf16")] {
        let mut checkpoint = tiny().dtype(dtype);
        checkpoint.name = name.into();
        let source = bench.checkpoint(&checkpoint);
        bench
            .export(&source, &format!("{name}-fp32"), Precision::Fp32)
            .unwrap();
        let graph =
            GraphFile::open(&bench.path(&format!("{name}-fp32/onnx/embed_tokens.onnx"))).unwrap();
        assert_eq!(
            graph
                .constant("model.text_model.embed_tokens.weight")
                .unwrap()
                .element,
            Element::F32
        );
        if dtype == Dtype::F16 {
            let manifest = bench.export(&source, "f16-fp16", Precision::Fp16).unwrap();
            assert!(
                manifest
                    .quantization
                    .iter()
                    .all(|tensor| tensor.error_max == 0.0),
                "f16 to f16 loses nothing"
            );
        }
    }
}

#[test]
fn a_tied_head_is_the_embedding() {
    let bench = Bench::new();
    bench
        .export(&bench.checkpoint(&tiny().tied()), "tied", Precision::Fp32)
        .unwrap();
    let graph =
        |name: &str| GraphFile::open(&bench.path(&format!("tied/onnx/{name}.onnx"))).unwrap();
    let (embedding, decoder) = (graph("embed_tokens"), graph("decoder_model_merged"));
    let rows = embedding
        .constant("model.text_model.embed_tokens.weight")
        .unwrap();
    let head = decoder
        .constant("model.text_model.embed_tokens.weight")
        .unwrap();
    assert_eq!((rows.dims, head.dims), (&[8, 192][..], &[192, 8][..]));
    assert_eq!(rows.bytes[4..8], head.bytes[8 * 4..9 * 4]);
}

#[test]
fn other_geometries_are_read_off_the_tensors() {
    let bench = Bench::new();
    let mut checkpoint = tiny().kv_heads(3).head_dim(32).nested_rope();
    checkpoint.name = "other".into();
    checkpoint.text.intermediate_size = 96;
    let manifest = bench
        .export(&bench.checkpoint(&checkpoint), "bundle", Precision::Fp32)
        .unwrap();
    let text = manifest.geometry.text;
    assert_eq!(
        (text.layers, text.heads, text.kv_heads, text.head_dim),
        (2, 3, 3, 32)
    );
}

/// The first SmolVLM is written as Idefics3: other names in the config, and nothing else.
#[test]
fn idefics3_is_the_same_model() {
    let bench = Bench::new();
    let later = bench
        .export(&bench.checkpoint(&tiny()), "later", Precision::Int8)
        .unwrap();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("config.json"), |config| {
        config["model_type"] = json!("idefics3");
        config["architectures"] = json!(["Idefics3ForConditionalGeneration"]);
        config["vision_config"]["model_type"] = json!("idefics3_vision");
    });
    edit(&source.join("preprocessor_config.json"), |config| {
        config["image_processor_type"] = json!("Idefics3ImageProcessor");
        config["processor_class"] = json!("Idefics3Processor");
        config
            .as_object_mut()
            .unwrap()
            .shift_remove("video_sampling");
    });
    let mut first = bench.export(&source, "first", Precision::Int8).unwrap();
    let other: Vec<_> = first
        .files
        .iter()
        .filter(|(name, entry)| later.files[*name] != **entry)
        .map(|(name, _)| name.clone())
        .collect();
    assert_eq!(other, ["config.json", "preprocessor_config.json"]);
    first.files.clone_from(&later.files);
    assert_eq!(first, later);
}

/// Its 2.2B model has tokens around an image, but writes the position of a tile in several.
#[test]
fn a_vocabulary_without_a_token_for_tiles_is_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("tokenizer.json"), |tokenizer| {
        tokenizer["added_tokens"]
            .as_array_mut()
            .unwrap()
            .retain(|token| token["content"] != "<global-img>");
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/tokenizer.json: "<global-img>" is not among its 6 added tokens; expected the tokenizer of a SmolVLM2 model (some earlier ones spell this token in several)"#);
}

#[test]
fn missing_files_are_made() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    for name in [
        "generation_config.json",
        "processor_config.json",
        "preprocessor_config.json",
    ] {
        fs::remove_file(source.join(name)).unwrap();
    }
    let manifest = bench.export(&source, "bundle", Precision::Fp16).unwrap();
    assert_eq!(
        (manifest.image.tile_size, manifest.image.longest_edge),
        (64, 256)
    );
    assert_eq!(manifest.prompt.stop, [6, 2, 0]);
    let read = |name: &str| fs::read_to_string(bench.path("bundle").join(name)).unwrap();
    assert_eq!(read("chat_template.jinja"), vlm::template::DEFAULT);
    assert!(read("processor_config.json").contains("\"image_seq_len\": 4"));
    assert!(
        read("config.json").contains("\"fp16\": \"float32\""),
        "transformers.js reads that the KV cache is f32"
    );
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

#[test]
fn an_inspection_shows_what_is_inside() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let text = inspect(&source)
        .unwrap()
        .to_string()
        .replace(&bench.folder.path().display().to_string(), "…");
    insta::assert_snapshot!(text, @r"
    checkpoint tiny (smolvlm)
      vision   1 layer of 64, 2 heads
      tile     64 px, patches of 8 px, 4 tokens
      text     2 layers of 192, 3 heads of 64 over 1
      context  8192 tokens, vocabulary of 8
      head     its own
      theta    100000, eps 1e-5 (text), 1e-6 (vision)
      images   split, longest edge 256 px, tiles of 64 px, mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5] (preprocessor_config.json)
      clips    frames at 1 per second, at most 64 (preprocessor_config.json)
      template the default of the model family
      stop     <end_of_utterance>, <|im_end|>, <|endoftext|>
      warning  no chat template in …/tiny: the default of the model family is used
      warning  …/tiny/tokenizer_config.json is missing: written with the defaults of the model family
      tensors  43, 0.7 M values, F32, 3.0 MB
    ");
    bench.export(&source, "bundle", Precision::Int8).unwrap();
    let text = inspect(&bench.path("bundle")).unwrap().to_string();
    // The identity changes with every change of the exporter.
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.contains("identity"))
        .collect();
    insta::assert_snapshot!(text.join("\n"), @r#"
    bundle tiny (smolvlm, int8 from tiny)
      vision   1 layer of 64, 2 heads
      tile     64 px, patches of 8 px, 4 tokens
      text     2 layers of 192, 3 heads of 64 over 1
      context  8192 tokens, vocabulary of 8
      quantized matrices  18, largest relative error 3.9e-3
    onnx/vision_encoder_int8.onnx  0.9 MB, opset 20, 35 constants
      in   pixel_values f32 [batch, num_images, 3, 64, 64]
      in   pixel_attention_mask bool [batch, num_images, 64, 64]
      out  image_features f32 [batch*num_images, 4, 192]
      ops  Add 9, Cast 6, Conv 1, DynamicQuantizeLinear 4, Gelu 1, Identity 1, LayerNormalization 3, MatMul 3, MatMulInteger 6, Mul 13, Reshape 8, Softmax 1, Transpose 6
    onnx/embed_tokens_int8.onnx  0.0 MB, opset 20, 1 constants
      in   input_ids i64 [batch, sequence_length]
      out  inputs_embeds f32 [batch, sequence_length, 192]
      ops  Gather 1, Identity 1
    onnx/decoder_model_merged_int8.onnx  5.0 MB, opset 20, 49 constants
      in   inputs_embeds f32 [batch, sequence_length, 192]
      in   attention_mask i64 [batch, total_sequence_length]
      in   position_ids i64 [batch, sequence_length]
      in   past_key_values.0.key f32 [batch, 1, past_sequence_length, 64]
      in   past_key_values.0.value f32 [batch, 1, past_sequence_length, 64]
      out  logits f32 [batch, sequence_length, 8]
      out  present.0.key f32 [batch, 1, total_sequence_length, 64]
      out  present.0.value f32 [batch, 1, total_sequence_length, 64]
      ops  Add 15, And 1, Cast 12, Concat 8, CumSum 1, Div 5, DynamicQuantizeLinear 6, Equal 1, Gather 2, Identity 5, LessOrEqual 1, MatMul 7, MatMulInteger 12, Mul 43, Pow 5, ReduceMean 5, Reshape 10, Sigmoid 2, Softmax 2, Split 4, Sqrt 5, Sub 1, Transpose 10, Unsqueeze 10, Where 1
    "#);
    let json = serde_json::to_value(inspect(&bench.path("bundle")).unwrap()).unwrap();
    assert_eq!(
        (&json["kind"], &json["precision"]),
        (&json!("bundle"), &json!("int8"))
    );
    assert_eq!(
        json["graphs"][0]["inputs"][1]["dims"],
        json!(["batch", "num_images", "64", "64"])
    );
}

#[test]
fn the_file_that_a_fine_tune_saved_last_is_used() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    // Beside the older file, which newer transformers do not remove.
    edit(&source.join("processor_config.json"), |config| {
        config["image_processor"] = json!({ "size": { "longest_edge": 128 }, "image_mean": 0.25 });
        config["video_processor"] = json!({ "fps": 2, "num_frames": 7 });
    });
    let manifest = bench.export(&source, "nested", Precision::Fp32).unwrap();
    assert_eq!(
        (manifest.image.longest_edge, manifest.image.mean),
        (128, [0.25; 3])
    );
    assert_eq!(
        (manifest.video.frames_per_second, manifest.video.frames_max),
        (2.0, 7)
    );
    let written: Value =
        serde_json::from_slice(&fs::read(bench.path("nested/preprocessor_config.json")).unwrap())
            .unwrap();
    assert_eq!(
        (
            &written["size"]["longest_edge"],
            &written["video_sampling"]["max_frames"]
        ),
        (&json!(128), &json!(7))
    );

    // One version had a third file for clips.
    edit(&source.join("processor_config.json"), |config| {
        config
            .as_object_mut()
            .unwrap()
            .retain(|key, _| !key.ends_with("_processor"));
    });
    fs::write(
        source.join("video_preprocessor_config.json"),
        r#"{"video_sampling": {"fps": 3, "max_frames": 9}}"#,
    )
    .unwrap();
    let manifest = bench.export(&source, "third", Precision::Fp32).unwrap();
    assert_eq!(
        (manifest.image.longest_edge, manifest.video.frames_max),
        (256, 9)
    );
    assert!(
        manifest
            .files
            .contains_key("video_preprocessor_config.json")
    );
}

#[test]
fn the_template_comes_with_the_tokens_it_uses() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let template = vlm::template::DEFAULT
        .replace("<|im_start|>", "{{ bos_token }}")
        .replace("item['text']", "item['text'] | trim");
    fs::write(
        source.join("chat_template.json"),
        json!({ "chat_template": template }).to_string(),
    )
    .unwrap();
    fs::write(
        source.join("tokenizer_config.json"),
        r#"{"eos_token": "<end_of_utterance>"}"#,
    )
    .unwrap();
    fs::write(
        source.join("special_tokens_map.json"),
        r#"{"bos_token": {"content": "<|im_start|>"}}"#,
    )
    .unwrap();
    let manifest = bench.export(&source, "bundle", Precision::Fp32).unwrap();
    assert_eq!(
        fs::read_to_string(bench.path("bundle/chat_template.jinja")).unwrap(),
        template
    );
    assert!(manifest.files.contains_key("special_tokens_map.json"));
}

/// Modules recompute these, and some versions saved them.
#[test]
fn buffers_beside_the_weights_are_left_out() {
    let bench = Bench::new();
    let plain = bench
        .export(&bench.checkpoint(&tiny()), "plain", Precision::Fp32)
        .unwrap();
    let mut tiny = tiny();
    tiny.name = "buffers".into();
    let source = bench.checkpoint(&tiny);
    edit_weights(&source.join("model.safetensors"), |header, data| {
        add_tensor(
            header,
            data,
            "model.text_model.layers.0.self_attn.rotary_emb.inv_freq",
            "F32",
            32,
            4,
        );
        add_tensor(
            header,
            data,
            "model.vision_model.embeddings.position_ids",
            "I64",
            64,
            8,
        );
    });
    let manifest = bench.export(&source, "bundle", Precision::Fp32).unwrap();
    assert_eq!(
        manifest.files[&plain.graphs.decoder_model_merged],
        plain.files[&plain.graphs.decoder_model_merged]
    );
}

#[test]
fn weights_in_double_precision_are_rounded() {
    let bench = Bench::new();
    let plain = bench
        .export(&bench.checkpoint(&tiny()), "plain", Precision::Fp32)
        .unwrap();
    let mut tiny = tiny();
    tiny.name = "double".into();
    let source = bench.checkpoint(&tiny);
    edit_weights(&source.join("model.safetensors"), |header, data| {
        let last = header
            .as_object_mut()
            .unwrap()
            .values_mut()
            .filter(|entry| entry.get("data_offsets").is_some());
        let last = last
            .max_by_key(|entry| entry["data_offsets"][1].as_u64())
            .unwrap();
        let from = last["data_offsets"][0].as_u64().unwrap() as usize;
        let values: Vec<u8> = data
            .split_off(from)
            .as_chunks()
            .0
            .iter()
            .flat_map(|&b| f64::from(f32::from_le_bytes(b)).to_le_bytes())
            .collect();
        data.extend(values);
        last["dtype"] = json!("F64");
        last["data_offsets"] = json!([from, data.len()]);
    });
    let manifest = bench.export(&source, "bundle", Precision::Fp32).unwrap();
    let graphs = |manifest: &Manifest| -> Vec<_> {
        let of = |(_, path): (_, &String)| manifest.files[path].clone();
        manifest.graphs.iter().map(of).collect()
    };
    assert_eq!(graphs(&manifest), graphs(&plain));
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

#[test]
fn an_inspection_shows_why_an_export_would_be_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("preprocessor_config.json"), |config| {
        config["do_resize"] = json!(false)
    });
    let text = inspect(&source)
        .unwrap()
        .to_string()
        .replace(&bench.folder.path().display().to_string(), "…");
    insta::assert_snapshot!(text.lines().last().unwrap(), @"an export would refuse it: …/tiny/preprocessor_config.json: do_resize is false, expected true: the step cannot be left out");
}

// --- damaged checkpoints

#[test]
fn an_unusable_template_is_reported_with_its_file() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    fs::write(
        source.join("tokenizer_config.json"),
        json!({ "chat_template": "{% for message in messages %}" }).to_string(),
    )
    .unwrap();
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/tokenizer_config.json: chat template: syntax error: unexpected end of input, expected end of block (in chat_template:1); fix it there, or remove it to export with the default of the model family");
}

#[test]
fn unused_tensors_are_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, data| {
        for part in ["q_proj", "k_proj", "v_proj", "o_proj"] {
            add_tensor(
                header,
                data,
                &format!("model.text_model.layers.0.self_attn.{part}.lora_A.weight"),
                "F32",
                8,
                4,
            );
        }
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny: tensors that this architecture does not use: model.text_model.layers.0.self_attn.k_proj.lora_A.weight, model.text_model.layers.0.self_attn.o_proj.lora_A.weight, model.text_model.layers.0.self_attn.q_proj.lora_A.weight and 1 more; expected a SmolVLM2 checkpoint; merge an adapter first, with merge_and_unload()");
}

#[test]
fn a_model_saved_without_its_head_is_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, _| {
        let renamed = header
            .as_object()
            .unwrap()
            .iter()
            .map(|(name, entry)| (name.trim_start_matches("model.").to_owned(), entry.clone()));
        *header = Value::Object(renamed.collect());
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "vision_model.embeddings.patch_embedding.weight" has no "model." before it: this is a SmolVLMModel, saved without its head; save the SmolVLMForConditionalGeneration around it"#);
}

#[test]
fn another_decoder_under_the_same_names_is_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("config.json"), |config| {
        config["text_config"]["model_type"] = json!("mistral")
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/config.json: text_config.model_type is "mistral", expected "llama", the decoder of SmolVLM2, since no other is supported; export a fine-tune of SmolVLM2 itself"#);
}

#[test]
fn values_are_reported_with_their_file() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("generation_config.json"), |config| {
        config["eos_token_id"] = json!(-1)
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/generation_config.json: eos_token_id is -1, expected a token id or a list of them");
    edit(&source.join("generation_config.json"), |config| {
        config["eos_token_id"] = json!([])
    });
    edit(&source.join("processor_config.json"), |config| {
        config["image_processor"] = json!({ "size": { "height": 64, "width": 64 } })
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/processor_config.json: image_processor.size is {"height":64,"width":64}, expected {"longest_edge": N}: images are resized by their longest edge, no other form is supported"#);
}

#[test]
fn a_missing_tensor_is_named() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, _| {
        let header = header.as_object_mut().unwrap();
        let moved = header
            .shift_remove("model.text_model.layers.1.self_attn.o_proj.weight")
            .unwrap();
        header.insert("another.weight".into(), moved);
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "model.text_model.layers.1.self_attn.o_proj.weight" is missing, 43 others are present; the checkpoint is incomplete or of another architecture"#);
}

#[test]
fn a_missing_head_is_tied_only_where_the_config_says_so() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny().tied());
    edit(&source.join("config.json"), |config| {
        config["tie_word_embeddings"] = json!(false);
        config["text_config"]["tie_word_embeddings"] = json!(false);
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "lm_head.weight" is missing and tie_word_embeddings is false; save the model with its head, or set tie_word_embeddings to true if it was trained with the embedding as its head"#);
}

#[test]
fn a_wrong_shape_is_reported_with_both() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit_weights(&source.join("model.safetensors"), |header, _| {
        header["model.text_model.layers.1.mlp.down_proj.weight"]["shape"] = json!([256, 192]);
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny: tensor "model.text_model.layers.1.mlp.down_proj.weight" is [256, 192], expected [192, 256] to fit the other tensors; config and weights are of different models"#);
}

#[test]
fn a_config_of_another_model_is_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let config = source.join("config.json");
    edit(&config, |config| {
        config["text_config"]["num_key_value_heads"] = json!(3)
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/config.json: text_config.num_key_value_heads is 3, but keys are 64 wide at heads of 64, for 3 query heads; config and weights are of different models");
    edit(&config, |config| {
        config["text_config"]["num_key_value_heads"] = json!(1)
    });
    edit(&config, |config| {
        config["vision_config"]["image_size"] = json!(128)
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/config.json: vision_config.image_size is 128, but 64 positions at patches of 8 are not one tile; config and weights are of different models");
    edit(&config, |config| {
        config["vision_config"]["image_size"] = json!(64)
    });
    edit(&config, |config| config["scale_factor"] = json!(2));
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/config.json: scale_factor is 2, but the connector reads 4 by 4 patches; config and weights are of different models");
    edit(&config, |config| config["scale_factor"] = json!(4));
    edit(&source.join("processor_config.json"), |config| {
        config["image_seq_len"] = json!(64)
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/processor_config.json: image_seq_len is 64, expected the 4 tokens that the vision encoder gives for a tile");
}

#[test]
fn layers_missing_from_the_file_are_reported() {
    let bench = Bench::new();
    for (part, field) in [
        ("text_config", "num_hidden_layers"),
        ("vision_config", "num_hidden_layers"),
        ("text_config", "vocab_size"),
    ] {
        let source = bench.checkpoint(&tiny());
        edit(&source.join("config.json"), |config| {
            config[part][field] = json!(77)
        });
        let said = bench.refusal(&source);
        assert!(
            said.contains(&format!("{part}.{field} is 77, but the tensors make it ")),
            "{said}"
        );
    }
}

#[test]
fn a_truncated_file_is_reported() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let weights = source.join("model.safetensors");
    let content = fs::read(&weights).unwrap();
    fs::write(&weights, &content[..content.len() - 1000]).unwrap();
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/model.safetensors: its tensors take 2985344 bytes of data, the file has 2984344; the file is damaged or truncated: download or save it again");
    fs::write(&weights, b"").unwrap();
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/model.safetensors: the file is 0 bytes long, expected at least 8; the file is damaged or truncated: download or save it again");
}

#[test]
fn a_contradictory_header_is_refused() {
    struct Case {
        fault: &'static str,
        change: fn(&mut Value),
        says: &'static str,
    }
    const TENSOR: &str = "model.text_model.norm.weight";
    let cases = [
        Case {
            fault: "offsets past the end",
            change: |header| {
                let last = header.as_object_mut().unwrap().values_mut().last().unwrap();
                let from = last["data_offsets"][0].as_u64().unwrap();
                *last = json!({ "dtype": "F32", "shape": [1024, 1024], "data_offsets": [from, from + (4 << 20)] });
            },
            says: "bytes of data, the file has",
        },
        Case {
            fault: "overlapping",
            change: |header| {
                let from = header[TENSOR]["data_offsets"][0].as_u64().unwrap();
                header[TENSOR]["data_offsets"] = json!([from - 4, from + 192 * 4 - 4]);
            },
            says: "expected the bytes right after the tensor before it",
        },
        Case {
            fault: "reversed",
            change: |header| {
                let offsets = header[TENSOR]["data_offsets"].clone();
                header[TENSOR]["data_offsets"] = json!([offsets[1], offsets[0]]);
            },
            says: "expected the bytes right after the tensor before it",
        },
        Case {
            fault: "a shape whose product overflows",
            change: |header| header[TENSOR]["shape"] = json!([1u64 << 40, 1u64 << 40]),
            says: "\"model.text_model.norm.weight\" of shape [1099511627776, 1099511627776] F32 is at bytes",
        },
    ];
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    let weights = source.join("model.safetensors");
    let intact = fs::read(&weights).unwrap();
    for case in cases {
        fs::write(&weights, &intact).unwrap();
        edit_weights(&weights, |header, _| (case.change)(header));
        let error = bench.refusal(&source);
        assert!(
            error.contains(case.says) && error.contains("model.safetensors"),
            "{}: {error}",
            case.fault
        );
    }
    let terabyte = [&(1u64 << 40).to_le_bytes()[..], &intact[8..]].concat();
    fs::write(&weights, terabyte).unwrap();
    let error = bench.refusal(&source);
    assert!(
        error.contains("its header is 1099511627776 bytes long"),
        "{error}"
    );
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let bench = Bench::new();
    for (value, says) in [
        (f32::NAN, "holds NaN at index 5"),
        (f32::NEG_INFINITY, "holds -inf at index 5"),
    ] {
        let source = bench.checkpoint(&tiny());
        edit_weights(&source.join("model.safetensors"), |header, data| {
            let from = header["model.vision_model.post_layernorm.bias"]["data_offsets"][0]
                .as_u64()
                .unwrap() as usize
                + 20;
            data[from..from + 4].copy_from_slice(&value.to_le_bytes());
        });
        let error = bench.refusal(&source);
        assert!(
            error.contains("tensor \"model.vision_model.post_layernorm.bias\"")
                && error.contains(says),
            "{error}"
        );
    }
}

#[test]
fn shards_stay_in_their_folder_and_hold_what_the_index_says() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny().shards(2));
    let index = source.join("model.safetensors.index.json");
    let intact = fs::read(&index).unwrap();
    edit(&index, |index| {
        index["weight_map"]["lm_head.weight"] = json!("../elsewhere.safetensors")
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/model.safetensors.index.json: shard "../elsewhere.safetensors" is outside the checkpoint folder; expected a file beside the index"#);

    fs::write(&index, &intact).unwrap();
    edit(&index, |index| {
        let other = index["weight_map"]["model.vision_model.post_layernorm.bias"].clone();
        index["weight_map"]["lm_head.weight"] = other;
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/model.safetensors.index.json: tensor "lm_head.weight" is not in "model-00002-of-00002.safetensors", where the index lists it; the shards are of different downloads: download them again"#);

    fs::write(&index, &intact).unwrap();
    edit(&index, |index| {
        index["weight_map"]["lm_head.weight"] = json!("model-00003-of-00003.safetensors")
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/model-00003-of-00003.safetensors: no such file; expected a checkpoint folder with config.json, tokenizer.json and safetensors, as save_pretrained writes it");
}

#[test]
fn another_architecture_is_refused() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("config.json"), |config| {
        config["model_type"] = json!("llava")
    });
    insta::assert_snapshot!(bench.refusal(&source), @r#"…/tiny/config.json: unknown architecture: model_type is "llava", expected "smolvlm" or "idefics3" (SmolVLM, SmolVLM2 or a fine-tune)"#);
}

#[test]
fn theta_is_never_guessed() {
    let bench = Bench::new();
    let source = bench.checkpoint(&tiny());
    edit(&source.join("config.json"), |config| {
        config["text_config"]
            .as_object_mut()
            .unwrap()
            .shift_remove("rope_theta");
    });
    insta::assert_snapshot!(bench.refusal(&source), @"…/tiny/config.json: rope_theta is missing from text_config and from text_config.rope_parameters; add the value the model was trained with");
}

#[test]
fn missing_files_are_named() {
    let bench = Bench::new();
    for (name, says) in [
        ("tokenizer.json", "tokenizer.json: no such file"),
        ("config.json", "config.json: no such file"),
        (
            "model.safetensors",
            "no model.safetensors and no model.safetensors.index.json",
        ),
    ] {
        let source = bench.checkpoint(&tiny());
        fs::remove_file(source.join(name)).unwrap();
        let error = bench.refusal(&source);
        assert!(error.contains(says), "{error}");
    }
}
