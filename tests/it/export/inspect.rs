//! What an inspection shows of a checkpoint and of its bundle.

use exporter::inspect::inspect;
use firmware_config::manifest::Precision;
use serde_json::json;

use super::{Bench, edit, tiny};

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
