//! The demo's bundles are trained models: they answer every labelled frame as transformers does.
//!
//! Probabilities may be 0.02 apart: the frames are JPEGs, and decoders differ by a level here and
//! there (from the same decoded pixels they agree to four digits). A different answer is accepted
//! only where transformers gives two nearly equal probabilities: see [`TIES`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use vlm::{BackendChoice, Options, Picture, Request, Vlm};

/// `vlm`'s example, compiled into this test.
#[path = "../../vlm/examples/ask.rs"]
#[expect(
    dead_code,
    unreachable_pub,
    reason = "the example is a complete program"
)]
mod example;

/// Largest difference of a candidate's probability.
const TOLERANCE: f64 = 0.02;

/// Bundle, frame and question where the two likeliest answers are 0.0004 apart, and may change
/// places.
const TIES: [(&str, &str, &str); 1] = [("nano-pool", "carpark/018400.jpg", "is there a car?")];

/// The answer of transformers to one question about one frame.
#[derive(Deserialize)]
struct Expected {
    image: PathBuf,
    question: String,
    answer: String,
    probabilities: Vec<f64>,
    prompt_tokens: usize,
}

/// A labelled question, read for its candidate answers.
#[derive(Deserialize)]
struct Label {
    image: PathBuf,
    question: String,
    candidates: Vec<String>,
}

#[test]
fn nano_edge_on_tract() {
    answers_as_transformers("nano-edge", BackendChoice::Tract);
}

#[test]
fn nano_edge_on_ort() {
    answers_as_transformers("nano-edge", BackendChoice::Ort);
}

#[test]
fn nano_pool_on_tract() {
    answers_as_transformers("nano-pool", BackendChoice::Tract);
}

#[test]
fn nano_pool_on_ort() {
    answers_as_transformers("nano-pool", BackendChoice::Ort);
}

#[test]
fn the_example_answers_in_free_text() {
    let frame = tests::demo("frames/lobby/035000.jpg");
    let answer = example::ask(
        &tests::demo("bundles/nano-edge"),
        &frame,
        "is there a person?",
    )
    .unwrap();
    assert_eq!(answer.text, "yes");
}

fn answers_as_transformers(name: &str, backend: BackendChoice) {
    let mut vlm = Vlm::open(
        &tests::demo("bundles").join(name),
        &Options {
            backend,
            ..Options::default()
        },
    )
    .unwrap();
    let labels: Vec<Label> = rows(&tests::demo("labels.jsonl"));
    let candidates: BTreeMap<_, _> = labels
        .into_iter()
        .map(|label| ((label.image, label.question), label.candidates))
        .collect();
    let expected: Vec<Expected> = rows(&tests::data(&format!("{name}-expected.jsonl")));
    assert!(!expected.is_empty());

    let mut largest = 0f64;
    for expected in &expected {
        let picture =
            Picture::decode(&fs::read(tests::demo("frames").join(&expected.image)).unwrap())
                .unwrap();
        let request = Request {
            candidates: candidates[&(expected.image.clone(), expected.question.clone())].clone(),
            ..Request::question(picture, &expected.question)
        };
        let answer = vlm.ask(&request).unwrap();
        let of = format!(
            "{name}: {} {:?}",
            expected.image.display(),
            expected.question
        );
        assert_eq!(answer.prompt_tokens, expected.prompt_tokens, "{of}");
        assert_eq!(
            answer.candidates.len(),
            expected.probabilities.len(),
            "{of}"
        );
        for (candidate, &probability) in answer.candidates.iter().zip(&expected.probabilities) {
            let difference = (candidate.probability - probability).abs();
            assert!(
                difference <= TOLERANCE,
                "{of} {:?}: probability {}, expected {probability}",
                candidate.text,
                candidate.probability
            );
            largest = largest.max(difference);
        }
        let tie = TIES.contains(&(name, expected.image.to_str().unwrap(), &expected.question));
        assert!(
            tie || answer.text == expected.answer,
            "{of}: answer {:?}, expected {:?}",
            answer.text,
            expected.answer
        );
    }
    let (backend, answers) = (&vlm.identity().backend, expected.len());
    eprintln!(
        "{name} on {backend}: {answers} answers, largest difference of a probability {largest:.1e}"
    );
}

fn rows<T: serde::de::DeserializeOwned>(path: &Path) -> Vec<T> {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines()
        .map(|line| {
            serde_json::from_str(line)
                .unwrap_or_else(|error| panic!("{}: {error}: {line}", path.display()))
        })
        .collect()
}
