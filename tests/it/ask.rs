//! `egret ask`, run as a user runs it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use firmware_config::manifest::Precision;
use serde_json::Value;
use tests::bundles::bundle;
use tests::synth::Synthetic;

fn micro() -> PathBuf {
    bundle(&Synthetic::micro(), Precision::Fp32)
}

fn entrance() -> PathBuf {
    tests::data("images/a_entrance.png")
}

fn ask(bundle: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(tests::program("egret"));
    command
        .arg("ask")
        .arg("--bundle")
        .arg(bundle)
        .args(args)
        .env("RUST_LOG", "error")
        .output()
        .unwrap()
}

/// Exit code and stderr, with the bundle's folder left out.
fn refused(bundle: &Path, args: &[&str]) -> (Option<i32>, String) {
    let output = ask(bundle, args);
    assert!(
        output.stdout.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    (
        output.status.code(),
        stderr
            .replace(&bundle.display().to_string(), "BUNDLE")
            .trim_end()
            .to_owned(),
    )
}

/// The JSON object that is the only line of stdout.
fn json(output: &Output) -> Value {
    let stdout = String::from_utf8(output.stdout.clone()).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(&stdout).unwrap()
}

/// Replaces every number with its kind.
fn redact(value: &mut Value) {
    match value {
        Value::Number(number) => {
            *value = Value::from(if number.is_u64() { "integer" } else { "number" })
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(fields) => fields.values_mut().for_each(redact),
        _ => {}
    }
}

const TRACT: &[&str] = &["--backend", "tract"];

#[test]
fn json_has_the_fields_of_the_contract() {
    let image = entrance();
    let args = [
        &[
            "--image",
            image.to_str().unwrap(),
            "--candidates",
            "yes, no",
            "--json",
            "--trace",
            "Is it open?",
        ],
        TRACT,
    ]
    .concat();
    let mut record = json(&ask(&micro(), &args));
    let ids = record["input_ids"].as_array().unwrap().len();
    assert_eq!(record["prompt_tokens"], ids);
    record["input_ids"] = Value::Null;
    record["model"]["sha256"] = Value::Null;
    redact(&mut record);
    insta::assert_snapshot!(serde_json::to_string(&record).unwrap(), @r#"{"answer":"no","finish_reason":"stop","tokens":[{"id":"integer","text":" no","logprob":"number"}],"candidates":[{"text":"yes","probability":"number","score":"number"},{"text":"no","probability":"number","score":"number"}],"confidence":{"p":"number","source":"candidates","state":"uncertified"},"prompt_tokens":"integer","timings_ms":{"load":"number","preprocess":"number","vision":"number","prefill":"number","first_token":"number","decode":"number","total":"number"},"model":{"name":"micro","sha256":null,"precision":"fp32","backend":"tract","execution_provider":"tract"},"peak_rss_bytes":"integer","prompt":"<|im_start|>User:<image>Is it open?<end_of_utterance>\nAssistant:","input_ids":null,"pixel_values":{"shape":["integer","integer","integer","integer","integer"],"u8_sha256":"d8a6d0e6540950393dca0e8e10256254547d7b8314df314893f0ffac89e8b951"},"logits":{"top5":[["integer","number"],["integer","number"],["integer","number"],["integer","number"],["integer","number"]],"logsumexp":"number"}}"#);
}

#[test]
fn both_backends_give_the_same_answer() {
    let image = entrance();
    let question = [
        "--image",
        image.to_str().unwrap(),
        "--max-new-tokens",
        "8",
        "--json",
        "Can you describe this image?",
    ];
    let [tract, ort] = ["tract", "ort"].map(|backend| {
        let record = json(&ask(
            &micro(),
            &[&question[..], &["--backend", backend]].concat(),
        ));
        assert_eq!(record["model"]["backend"], backend);
        record
    });
    assert_eq!(tract["answer"], ort["answer"]);
    let logprobs = |record: &Value| -> Vec<f64> {
        record["tokens"]
            .as_array()
            .unwrap()
            .iter()
            .map(|token| token["logprob"].as_f64().unwrap())
            .collect()
    };
    for (tract, ort) in logprobs(&tract).iter().zip(logprobs(&ort)) {
        assert!((tract - ort).abs() < 1e-4, "{tract} {ort}");
    }
}

#[test]
fn clips_and_text_without_images_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    let clip = dir.path().join("clip.mp4");
    let made = Command::new("ffmpeg")
        .args([
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            "testsrc=duration=3:size=64x48:rate=5",
            "-pix_fmt",
            "yuv420p",
        ])
        .arg(&clip)
        .status()
        .unwrap();
    assert!(made.success());
    let clip = clip.to_str().unwrap();
    let record = json(&ask(
        &micro(),
        &[
            &[
                "--video",
                clip,
                "--max-new-tokens",
                "1",
                "--json",
                "--trace",
                "What moves?",
            ],
            TRACT,
        ]
        .concat(),
    ));
    assert_eq!(
        record["pixel_values"]["shape"],
        serde_json::json!([1, 3, 3, 64, 64]),
        "one frame a second"
    );
    assert_eq!(
        record["prompt"],
        "<|im_start|>User: <video>What moves?<end_of_utterance>\nAssistant:"
    );

    let record = json(&ask(
        &micro(),
        &[
            &[
                "--system",
                "Be brief.",
                "--max-new-tokens",
                "2",
                "--json",
                "Hello?",
            ],
            TRACT,
        ]
        .concat(),
    ));
    assert_eq!(
        (
            record["finish_reason"].as_str(),
            record["tokens"].as_array().map(Vec::len)
        ),
        (Some("length"), Some(2))
    );
}

/// A file cut without encoding again keeps packets before and after the cut that no decoder
/// shows.
#[test]
fn a_clip_is_sampled_over_the_frames_it_shows() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, cut) = (dir.path().join("whole.mp4"), dir.path().join("cut.mp4"));
    let ffmpeg = |arguments: &[&str]| {
        assert!(
            Command::new("ffmpeg")
                .args(["-v", "error"])
                .args(arguments)
                .status()
                .unwrap()
                .success()
        )
    };
    let (whole, cut) = (whole.to_str().unwrap(), cut.to_str().unwrap());
    ffmpeg(&[
        "-f",
        "lavfi",
        "-i",
        "testsrc=duration=12:size=64x48:rate=10",
        "-g",
        "50",
        "-pix_fmt",
        "yuv420p",
        whole,
    ]);
    ffmpeg(&["-ss", "3.3", "-i", whole, "-c", "copy", "-t", "6", cut]);
    let record = json(&ask(
        &micro(),
        &[
            &[
                "--video",
                cut,
                "--max-new-tokens",
                "1",
                "--json",
                "--trace",
                "What moves?",
            ],
            TRACT,
        ]
        .concat(),
    ));
    assert_eq!(
        record["pixel_values"]["shape"],
        serde_json::json!([1, 6, 3, 64, 64]),
        "one frame a second, to the end"
    );
}

#[test]
fn text_output_shows_the_answer_and_its_confidence() {
    let image = entrance();
    let output = ask(
        &micro(),
        &[
            &[
                "--image",
                image.to_str().unwrap(),
                "--candidates",
                "yes,no",
                "Is it open?",
            ],
            TRACT,
        ]
        .concat(),
    );
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    let (answer, rest) = stdout.split_once("\n\n").unwrap();
    assert!(["yes", "no"].contains(&answer), "{stdout}");
    assert!(
        rest.starts_with("confidence 0.") && rest.contains("micro fp32 on tract"),
        "{stdout}"
    );
}

#[test]
fn wrong_usage_exits_with_64() {
    let nowhere = Path::new("/nowhere");
    for args in [
        &["--backend", "tvm", "q"][..],
        &["--split", "maybe", "q"],
        &["--max-new-tokens", "0", "q"],
        &["--trace", "q"],
        &[],
        &["--frobnicate", "q"],
    ] {
        assert_eq!(refused(nowhere, args).0, Some(64), "{args:?}");
    }
    let text = tests::data("reference.json");
    let (code, stderr) = refused(nowhere, &["--image", text.to_str().unwrap(), "q"]);
    assert_eq!(code, Some(64), "a file that is not an image: {stderr}");
    let (code, stderr) = refused(
        &micro(),
        &[TRACT, &["--candidates", "yes,yes", "q"]].concat(),
    );
    assert_eq!(code, Some(64));
    insta::assert_snapshot!(stderr, @r#"egret: candidates "yes" and "yes" are the same to the model; keep one"#);
    for too_few in ["", "yes", "yes,"] {
        let (code, stderr) = refused(nowhere, &["--candidates", too_few, "q"]);
        assert_eq!(code, Some(64));
        assert!(
            stderr.contains("expected two or more, as in yes,no"),
            "{too_few:?}: {stderr}"
        );
    }
    let (code, stderr) = refused(
        &micro(),
        &[TRACT, &["--video", text.to_str().unwrap(), "q"]].concat(),
    );
    assert_eq!(code, Some(64), "a file that is not a video: {stderr}");
    assert!(
        stderr.lines().count() == 1 && stderr.contains("convert it first"),
        "{stderr}"
    );
    let (code, stderr) = refused(
        &micro(),
        &[TRACT, &["--require-execution-provider", "cuda", "q"]].concat(),
    );
    assert_eq!(code, Some(64));
    insta::assert_snapshot!(stderr, @"egret: execution provider cuda is required, but tract runs; drop require-execution-provider, or install a library that offers cuda");
}

#[test]
fn unreadable_files_exit_with_74() {
    let (code, stderr) = refused(Path::new("/nowhere"), &["q"]);
    assert_eq!(code, Some(74));
    insta::assert_snapshot!(stderr, @"egret: BUNDLE/manifest.json: no such file; a bundle is the folder that `egret-export` wrote");
    let (code, stderr) = refused(
        Path::new("/nowhere"),
        &["--image", "/elsewhere/door.jpg", "q"],
    );
    assert_eq!(code, Some(74));
    insta::assert_snapshot!(stderr, @"egret: cannot show /elsewhere/door.jpg: No such file or directory (os error 2); name an image file that can be read");
    let (code, stderr) = refused(
        &micro(),
        &[TRACT, &["--video", "/elsewhere/door.mp4", "q"]].concat(),
    );
    assert_eq!(code, Some(74));
    insta::assert_snapshot!(stderr, @"egret: cannot show /elsewhere/door.mp4: No such file or directory (os error 2); name a video file that can be read");
}

#[test]
fn a_missing_onnx_runtime_is_an_error_or_replaced_by_tract() {
    let start = |backend: &str| {
        Command::new(tests::program("egret"))
            .args(["ask", "--bundle"])
            .arg(micro())
            .args(["--backend", backend, "--max-new-tokens", "1", "--json", "q"])
            .env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so")
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    };
    let output = start("auto");
    assert_eq!(json(&output)["model"]["backend"], "tract");
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("running on tract: ONNX Runtime: no library found at /nowhere/libonnxruntime.so, which ORT_DYLIB_PATH names"), "{stderr}");
    assert_eq!(start("ort").status.code(), Some(64));
}
