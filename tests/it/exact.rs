//! Comparison with transformers: every case of `tests/data/reference.json`, in fp32, on both
//! backends.
//!
//! Prompts, ids and pixels must be identical; numbers may differ by the order of f32 sums and no
//! more: 1e-3 of the largest value among the reference's samples, 1e-3 for log-probabilities.
//!
//! The 500M model, and the long prompts of the 256M model in the exporter's forward pass, are run
//! only with `EGRET_TEST_ALL_CASES=1 cargo test --release -p tests --test it exact`; the 256M model
//! takes two to three minutes a backend.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use exporter::checkpoint::Checkpoint;
use exporter::reference::{Past, Reference};
use firmware_config::manifest::Precision;
use tests::synth::Synthetic;
use tests::transformers::{Case, LastLogits, REFERENCE};
use vlm::answer::Trace;
use vlm::tiles::{pixel_values, tiles_of_turns};
use vlm::{BackendChoice, LogitsRow, Options, Vlm};

/// Largest difference of features and logits, as a share of the largest value among the reference's
/// samples.
const TOLERANCE: f64 = 1e-3;

/// Largest difference of log-probabilities.
const LOGPROB_TOLERANCE: f64 = 1e-3;

/// Held while a model with 1 GB of weights is loaded, which takes three times that in memory.
static LARGE: Mutex<()> = Mutex::new(());

#[test]
fn micro_on_tract() {
    backend_is_exact("micro", BackendChoice::Tract, &all);
}

#[test]
fn micro_on_ort() {
    backend_is_exact("micro", BackendChoice::Ort, &all);
}

#[test]
fn micro_so400m_on_tract() {
    backend_is_exact("micro-so400m", BackendChoice::Tract, &all);
}

#[test]
fn micro_so400m_on_ort() {
    backend_is_exact("micro-so400m", BackendChoice::Ort, &all);
}

#[test]
fn published_256m_on_tract() {
    let _one_at_a_time = LARGE.lock();
    backend_is_exact("256m", BackendChoice::Tract, &all);
}

#[test]
fn published_256m_on_ort() {
    let _one_at_a_time = LARGE.lock();
    backend_is_exact("256m", BackendChoice::Ort, &all);
}

#[test]
fn published_500m_on_both() {
    if !runs_all_cases() {
        eprintln!("500m is run only with EGRET_TEST_ALL_CASES=1");
        return;
    }
    let _one_at_a_time = LARGE.lock();
    backend_is_exact("500m", BackendChoice::Ort, &all);
    backend_is_exact("500m", BackendChoice::Tract, &all);
}

#[test]
fn the_reference_itself_on_micro() {
    reference_is_exact("micro", &all);
    reference_is_exact("micro-so400m", &all);
}

#[test]
fn the_reference_itself_on_256m() {
    let _one_at_a_time = LARGE.lock();
    reference_is_exact("256m", &|case| runs_all_cases() || short(case));
}

fn all(_: &str) -> bool {
    true
}

fn short(case: &str) -> bool {
    ["single", "text-only"].contains(&case)
}

fn runs_all_cases() -> bool {
    std::env::var_os("EGRET_TEST_ALL_CASES").is_some()
}

/// Runs every wanted case on an fp32 export of the checkpoint, and the clip if all cases are
/// wanted.
fn backend_is_exact(size: &str, backend: BackendChoice, wanted: &dyn Fn(&str) -> bool) {
    let dir = tempfile::tempdir_in(tests::kept::scratch()).unwrap();
    let bundle = export(size, dir.path());
    let mut vlm = Vlm::open(
        &bundle,
        &Options {
            backend,
            ..Options::default()
        },
    )
    .unwrap();
    let mut differences = Differences::new(format!("{size} on {}", vlm.identity().backend));

    for case in REFERENCE.sizes[size]
        .cases
        .iter()
        .filter(|case| wanted(&case.name))
    {
        let answer = vlm
            .ask(&case.request())
            .unwrap_or_else(|error| panic!("{size} {}: {error}", case.name));
        let trace = answer.trace.as_ref().expect("a trace was requested");
        differences.inputs(case, trace);
        if let Some(features) = &case.image_features {
            differences.values(
                case,
                "image_features",
                &features.samples,
                trace.image_features.as_ref().unwrap(),
            );
        }
        differences.logits(&case.name, &case.logits, &trace.logits);
        let (ids, logprobs): (Vec<_>, Vec<_>) = answer
            .tokens
            .iter()
            .map(|token| (token.id, f64::from(token.logprob)))
            .unzip();
        differences.generated(case, &ids, &logprobs);
    }
    if let Some(video) = REFERENCE.sizes[size]
        .video
        .as_ref()
        .filter(|_| wanted("video"))
    {
        let trace = vlm
            .ask(&video.request())
            .unwrap()
            .trace
            .expect("a trace was requested");
        assert_eq!(trace.input_ids, video.input_ids, "{size} video");
        differences.logits("video", &video.logits, &trace.logits);
    }
    differences.report();
}

/// Runs the same cases in the exporter's own forward pass.
fn reference_is_exact(size: &str, wanted: &dyn Fn(&str) -> bool) {
    let synthetic = Synthetic::named(size);
    let rules = synthetic.image_rules();
    let checkpoint = Checkpoint::open(&synthetic.shared()).unwrap();
    let reference = Reference::open(&checkpoint).unwrap();
    let image_token = checkpoint.config.image_token_id.unwrap();
    let mut differences = Differences::new(format!("{size} by the reference"));

    for case in REFERENCE.sizes[size]
        .cases
        .iter()
        .filter(|case| wanted(&case.name))
    {
        let tiles = tiles_of_turns(&case.request().turns, &rules, case.split);
        let features: Vec<f32> = tiles
            .iter()
            .flat_map(|tiles| reference.encode(&pixel_values(tiles, &rules), tiles.frames()))
            .collect();
        if let Some(expected) = &case.image_features {
            assert_eq!(
                features.len(),
                expected.shape.iter().product::<usize>(),
                "{size} {}",
                case.name
            );
            differences.values(case, "image_features", &expected.samples, &features);
        }
        let mut past = Past::default();
        let mut hidden = reference.hidden(
            &reference.prompt(&case.input_ids, image_token, &features),
            &mut past,
        );
        let (mut ids, mut logprobs) = (Vec::new(), Vec::new());
        while ids.len() < case.generated.ids.len() {
            let logits = reference.logits(&hidden[hidden.len() - reference.hidden_size()..]);
            if ids.is_empty() {
                differences.logits(&case.name, &case.logits, &logits);
            }
            let row = LogitsRow::new(&logits).unwrap();
            ids.push(row.top());
            logprobs.push(row.logprob(row.top()).unwrap());
            hidden = reference.hidden(&reference.embed(&[row.top()]), &mut past);
        }
        differences.generated(case, &ids, &logprobs);
    }
    differences.report();
}

fn export(size: &str, dir: &Path) -> PathBuf {
    let bundle = dir.join(size);
    let options = exporter::ExportOptions {
        precision: Precision::Fp32,
        name: None,
        replace: false,
    };
    exporter::export(&Synthetic::named(size).shared(), &bundle, &options).unwrap();
    bundle
}

/// Checks differences, and records the largest of each kind, so that the log shows the margin.
struct Differences {
    of: String,
    largest: [(&'static str, f64); 3],
}

impl Differences {
    fn new(of: String) -> Self {
        Differences {
            of,
            largest: [("image_features", 0.0), ("logits", 0.0), ("logprobs", 0.0)],
        }
    }

    fn inputs(&self, case: &Case, trace: &Trace) {
        let of = format!("{} {}", self.of, case.name);
        assert_eq!(trace.prompt, case.prompt, "{of}");
        assert_eq!(trace.input_ids, case.input_ids, "{of}");
        assert_eq!(
            trace.pixel_shape,
            case.pixel_values.as_ref().map(|pixels| pixels.shape),
            "{of}"
        );
        assert_eq!(
            trace.pixel_sha256,
            case.pixel_values
                .as_ref()
                .map(|pixels| pixels.u8_sha256.clone()),
            "{of}"
        );
    }

    fn logits(&mut self, case: &str, expected: &LastLogits, logits: &[f32]) {
        let largest = expected
            .top5
            .iter()
            .fold(0f32, |largest, (_, value)| largest.max(value.abs()));
        for (id, value) in expected.top5.iter().chain(&expected.samples) {
            self.check(
                &case,
                "logits",
                f64::from(logits[*id] - value).abs() / f64::from(largest),
                TOLERANCE,
            );
        }
        if let Some(expected) = expected.logsumexp {
            let got = LogitsRow::new(logits).unwrap().logsumexp();
            self.check(&case, "logprobs", (got - expected).abs(), LOGPROB_TOLERANCE);
        }
    }

    fn values(&mut self, case: &Case, what: &'static str, expected: &[(usize, f32)], got: &[f32]) {
        let largest = expected
            .iter()
            .fold(0f32, |largest, (_, value)| largest.max(value.abs()));
        for (index, value) in expected {
            self.check(
                &case.name,
                what,
                f64::from(got[*index] - value).abs() / f64::from(largest),
                TOLERANCE,
            );
        }
    }

    fn generated(&mut self, case: &Case, ids: &[u32], logprobs: &[f64]) {
        assert_eq!(ids, case.generated.ids, "{} {}", self.of, case.name);
        for (got, expected) in logprobs.iter().zip(&case.generated.logprobs) {
            self.check(
                &case.name,
                "logprobs",
                (got - expected).abs(),
                LOGPROB_TOLERANCE,
            );
        }
    }

    fn check(&mut self, case: &dyn Display, what: &'static str, difference: f64, tolerance: f64) {
        assert!(
            difference <= tolerance,
            "{} {case}: {what} differ by {difference:.2e}, allowed {tolerance:.0e}",
            self.of
        );
        for (name, largest) in &mut self.largest {
            if *name == what {
                *largest = largest.max(difference);
            }
        }
    }

    fn report(&self) {
        let largest = self
            .largest
            .map(|(name, value)| format!("{name} {value:.1e}"))
            .join(", ");
        eprintln!("{}: largest difference: {largest}", self.of);
    }
}
