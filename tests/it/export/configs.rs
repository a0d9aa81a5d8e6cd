//! Configuration files of a checkpoint: which are read, and which are refused.

use std::fs;

use firmware_config::manifest::Precision;
use serde_json::{Value, json};

use super::{Bench, edit, tiny};

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
        let error = bench.refusal(&source);
        assert!(
            error.contains(&format!("{part}.{field} is 77, but the tensors make it ")),
            "{error}"
        );
    }
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
