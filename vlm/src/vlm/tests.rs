#![allow(clippy::unwrap_used)]
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use firmware_config::manifest::{
    CheckpointSource, FORMAT, Geometry, Graphs, Precision, TextGeometry, VideoRules, VisionGeometry,
};
use proptest::prelude::*;

use super::*;
use crate::answer::ConfidenceSource;
use crate::fake::{FakeModel, HIDDEN, Runs};
use crate::picture::Picture;
use crate::reference;
use crate::request::{Content, Role, Turn};
use crate::template::DEFAULT;

const VOCAB: usize = 49280;

fn manifest(context_length: usize) -> Manifest {
    let image = reference::rules("micro");
    Manifest {
        format: FORMAT,
        name: "fake".into(),
        source: CheckpointSource {
            name: "fake".into(),
            sha256: "00".into(),
        },
        architecture: "smolvlm".into(),
        precision: Precision::Fp32,
        targets: Vec::new(),
        geometry: Geometry {
            vision: VisionGeometry {
                hidden_size: 1,
                layers: 1,
                heads: 1,
                image_size: image.tile_size,
                patch_size: 8,
            },
            text: TextGeometry {
                hidden_size: HIDDEN,
                layers: 1,
                heads: 1,
                kv_heads: 1,
                head_dim: 1,
                vocab_size: VOCAB,
                context_length,
            },
            scale_factor: 4,
        },
        image,
        video: VideoRules {
            frames_per_second: 1.0,
            frames_max: 64,
        },
        prompt: reference::tokens(),
        graphs: Graphs {
            vision_encoder: String::new(),
            embed_tokens: String::new(),
            decoder_model_merged: String::new(),
        },
        quantization: Vec::new(),
        files: Default::default(),
        exporter: "0".into(),
    }
}

fn vlm_of(model: FakeModel, context_length: usize) -> (Vlm, Arc<Runs>) {
    let runs = model.runs.clone();
    let tokenizer = Tokenizer::from_json(
        &std::fs::read(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/data/tokenizer.json"
        ))
        .unwrap(),
    )
    .unwrap();
    (
        Vlm::new(
            manifest(context_length),
            "ab".into(),
            tokenizer,
            Template::new(DEFAULT).unwrap(),
            Box::new(model),
        ),
        runs,
    )
}

fn hashing() -> (Vlm, Arc<Runs>) {
    vlm_of(
        FakeModel::hashing(VOCAB, reference::rules("micro").tokens_per_tile),
        8192,
    )
}

fn grey(level: u8) -> Picture {
    Picture::from_rgb(16, 16, vec![level; 16 * 16 * 3]).unwrap()
}

fn closed(picture: Picture, question: &str) -> Request {
    Request {
        candidates: vec!["yes".into(), "no".into()],
        ..Request::question(picture, question)
    }
}

fn summary(answer: &Answer) -> (String, Vec<(u32, u32)>, Vec<u64>) {
    let tokens = answer
        .tokens
        .iter()
        .map(|token| (token.id, token.logprob.to_bits()))
        .collect();
    (
        answer.text.clone(),
        tokens,
        answer
            .candidates
            .iter()
            .map(|candidate| candidate.probability.to_bits())
            .collect(),
    )
}

/// Joins the pieces, and cancels once it has taken a number of them.
struct Pieces {
    cancel_at: usize,
    taken: usize,
    text: String,
    tokens: Vec<Token>,
}

impl Pieces {
    fn until(cancel_at: usize) -> Self {
        Pieces {
            cancel_at,
            taken: 0,
            text: String::new(),
            tokens: Vec::new(),
        }
    }
}

impl Sink for Pieces {
    fn piece(&mut self, piece: &Piece) {
        self.taken += 1;
        self.text.push_str(&piece.text);
        self.tokens.extend_from_slice(&piece.tokens);
    }

    fn is_cancelled(&self) -> bool {
        self.taken >= self.cancel_at
    }
}

/// Cancels after it has been asked this many times.
struct CancelAfter(Cell<u32>);

impl Sink for CancelAfter {
    fn piece(&mut self, _: &Piece) {}

    fn is_cancelled(&self) -> bool {
        match self.0.get() {
            0 => true,
            left => {
                self.0.set(left - 1);
                false
            }
        }
    }
}

#[test]
fn questions_on_one_frame_share_its_prefix() {
    let questions = [
        closed(grey(50), "Is it open?"),
        Request {
            max_new_tokens: 3,
            ..Request::question(grey(50), "What is it?")
        },
    ];
    let unshared: Vec<_> = questions
        .iter()
        .map(|question| summary(&hashing().0.ask(question).unwrap()))
        .collect();

    let (mut vlm, runs) = hashing();
    let shared: Vec<_> = questions
        .iter()
        .map(|question| summary(&vlm.ask(question).unwrap()))
        .collect();
    assert_eq!(shared, unshared);
    assert_eq!(
        runs.encode.load(Ordering::Relaxed),
        1,
        "the second question does not run the vision encoder"
    );

    let before = runs.decoded_tokens.load(Ordering::Relaxed);
    let answer = vlm.ask(&closed(grey(50), "Is it open?")).unwrap();
    let prefix = 9;
    // " yes" and " no" are one token each, scored at the prompt's last position.
    assert_eq!(
        runs.decoded_tokens.load(Ordering::Relaxed) - before,
        answer.prompt_tokens - prefix,
        "nor the prefix"
    );
}

#[test]
fn another_frame_has_a_prefix_of_its_own() {
    let (mut vlm, runs) = hashing();
    let first = summary(&vlm.ask(&closed(grey(50), "Is it open?")).unwrap());
    let other = summary(&vlm.ask(&closed(grey(60), "Is it open?")).unwrap());
    assert_ne!(first, other);
    assert_eq!(
        summary(&vlm.ask(&closed(grey(50), "Is it open?")).unwrap()),
        first
    );
    assert_eq!(runs.encode.load(Ordering::Relaxed), 2);
}

#[test]
fn a_trace_shows_the_vision_encoder_even_on_a_kept_prefix() {
    let (mut vlm, _) = hashing();
    let plain = vlm.ask(&closed(grey(50), "Is it open?")).unwrap();
    let traced = vlm
        .ask(&Request {
            trace: true,
            ..closed(grey(50), "Is it open?")
        })
        .unwrap();
    assert_eq!(summary(&plain), summary(&traced));
    let trace = traced.trace.unwrap();
    assert_eq!(
        trace.prompt,
        "<|im_start|>User:<image>Is it open?<end_of_utterance>\nAssistant:"
    );
    assert_eq!(trace.input_ids.len(), traced.prompt_tokens);
    assert_eq!(trace.pixel_shape, Some([1, 1, 3, 64, 64]));
    assert_eq!(trace.image_features.unwrap().len(), 4 * HIDDEN);
    assert_eq!(trace.logits.len(), VOCAB);
}

#[test]
fn text_alone_does_not_run_the_vision_encoder() {
    let (mut vlm, runs) = hashing();
    let turns = vec![Turn {
        role: Role::User,
        content: vec![Content::Text("Say something.".into())],
    }];
    let answer = vlm
        .ask(&Request {
            turns,
            max_new_tokens: 2,
            trace: true,
            ..Request::default()
        })
        .unwrap();
    assert_eq!(answer.tokens.len(), 2);
    assert_eq!(runs.encode.load(Ordering::Relaxed), 0);
    assert!(answer.trace.unwrap().pixel_shape.is_none());
}

#[test]
fn free_text_is_streamed_as_it_is_decoded() {
    let (vlm, _) = hashing();
    let scripted = vlm.tokenizer.encode(" A door, I think.").unwrap();
    let request = Request::question(grey(50), "What is it?");
    let prompt = vlm
        .prompt_rules()
        .prompt(&request.turns, false)
        .unwrap()
        .input_ids
        .len();
    let script = [&scripted[..], &[49279]].concat();
    let (mut vlm, _) = vlm_of(
        FakeModel {
            tokens_per_tile: 4,
            ..FakeModel::scripted(VOCAB, prompt, &script)
        },
        8192,
    );

    let mut streamed = String::new();
    let answer = vlm
        .ask_streaming(&request, &mut |piece: &Piece| {
            streamed.push_str(&piece.text)
        })
        .unwrap();
    assert_eq!(
        (streamed.as_str(), answer.text.as_str()),
        ("A door, I think.", "A door, I think.")
    );
    assert_eq!(answer.finish_reason, FinishReason::Stop);
    assert_eq!(
        answer.tokens.len(),
        scripted.len(),
        "the end token is not part of it"
    );
    assert_eq!(answer.confidence.source, ConfidenceSource::Tokens);
    assert!((answer.confidence.p - 0.5).abs() < 1e-6);

    let mut first_piece = Pieces::until(1);
    let stopped = vlm.ask_streaming(&request, &mut first_piece).unwrap();
    assert_eq!(stopped.text, "A");
}

#[test]
fn a_cancelled_question_runs_nothing_more() {
    let images = |count: u8| {
        let shown = (0..count).map(|level| Content::Picture(grey(level)));
        vec![Turn {
            role: Role::User,
            content: shown.chain([Content::Text("Which?".into())]).collect(),
        }]
    };
    // Of several tokens each, so that each costs a run of the decoder.
    let candidates: Vec<String> = (10..20).map(|number| number.to_string()).collect();
    for (asked, encoded, decoded) in [(0, 0, 0), (2, 2, 0), (3, 3, 2), (5, 3, 4), (99, 3, 12)] {
        let (mut vlm, runs) = hashing();
        let request = Request {
            turns: images(3),
            candidates: candidates.clone(),
            ..Request::default()
        };
        let outcome = vlm.ask_streaming(&request, &mut CancelAfter(Cell::new(asked)));
        assert_eq!(
            matches!(outcome, Err(VlmError::Cancelled)),
            asked < 99,
            "{asked}: {outcome:?}"
        );
        // The prompt is two runs: up to its last image token, and the rest.
        assert_eq!(
            (
                runs.encode.load(Ordering::Relaxed),
                runs.decode.load(Ordering::Relaxed)
            ),
            (encoded, decoded),
            "{asked}"
        );
    }
}

#[test]
fn bad_requests_are_distinguished_from_failures() {
    let (mut vlm, _) = vlm_of(FakeModel::hashing(VOCAB, 4), 30);
    let mut refuse = |request: Request| {
        let error = vlm.ask(&request).unwrap_err();
        assert!(error.is_bad_request(), "{error}");
        error.to_string()
    };
    insta::assert_snapshot!(refuse(Request { max_new_tokens: 0, ..Request::question(grey(1), "What?") }), @"max_new_tokens is 0: expected 1 or more, or candidates");
    insta::assert_snapshot!(refuse(Request { candidates: vec!["a".into(), "a".into()], ..Request::question(grey(1), "What?") }), @r#"candidates "a" and "a" are the same to the model; keep one"#);
    insta::assert_snapshot!(refuse(Request::question(grey(1), &"very ".repeat(30))), @"prompt has 46 tokens: expected at most the context's 30; shorten it, or show fewer or unsplit images");
    let long = Request {
        candidates: vec!["very ".repeat(20)],
        ..Request::question(grey(1), "What is it, please?")
    };
    assert!(
        refuse(long).contains("at most the context's 30"),
        "a candidate that does not fit after its prompt"
    );
    insta::assert_snapshot!(refuse(Request { max_new_tokens: 1, ..Request::default() }), @"prompt has no question: expected a last turn by the user, with text; ask something");

    let overflowing = FakeModel {
        logits: Box::new(|_| vec![f32::NAN; VOCAB]),
        ..FakeModel::hashing(VOCAB, 4)
    };
    let error = vlm_of(overflowing, 8192)
        .0
        .ask(&Request::question(grey(1), "What?"))
        .unwrap_err();
    assert!(!error.is_bad_request());
}

/// The model's tokens: whitespace, characters of several tokens and the beginnings of some, special
/// tokens, anything.
fn script() -> impl Strategy<Value = Vec<u32>> {
    let text = |text: &'static str| Just(reference::tokenizer().encode(text).unwrap());
    let beginning = Just(reference::tokenizer().encode("\u{1f9a9}").unwrap()[..1].to_vec());
    let any_token = (0..VOCAB as u32).prop_map(|id| vec![id]);
    let tokens = prop_oneof![
        text(" "),
        text("\n"),
        text("\t"),
        text("  "),
        text(" A door"),
        text("é🦩"),
        beginning,
        any_token
    ];
    prop::collection::vec(tokens, 0..6).prop_map(|tokens| tokens.concat())
}

#[test]
fn the_pieces_add_up_to_the_answer() {
    let vlm = RefCell::new(hashing().0);
    proptest!(ProptestConfig::with_cases(64), |(script in script(), cancel_at in 1_usize..12, candidate in prop::option::of("[a-zé\u{4}]{1,9}"))| {
        let vlm = &mut *vlm.borrow_mut();
        let turns = vec![Turn { role: Role::User, content: vec![Content::Text("What is it?".into())] }];
        // Candidates come as they were asked, whitespace included.
        let candidates: Vec<String> = candidate.into_iter().flat_map(|text| [format!(" {text}a "), format!("b{text}")]).collect();
        let request = Request { turns, candidates, max_new_tokens: 99, ..Request::default() };
        let prompt = vlm.prompt_rules().prompt(&request.turns, false).unwrap().input_ids.len();
        let script: Vec<u32> = script.into_iter().filter(|id| !vlm.manifest.prompt.stop.contains(id)).collect();
        let scripted = vlm.tokenizer.decode(&script);
        vlm.model = Box::new(FakeModel::scripted(VOCAB, prompt, &[&script[..], &[49279]].concat()));

        let mut all = Pieces::until(usize::MAX);
        let answer = vlm.ask_streaming(&request, &mut all).unwrap();
        prop_assert_eq!((&all.text, &all.tokens), (&answer.text, &answer.tokens));
        if request.candidates.is_empty() {
            prop_assert_eq!(&all.text[..], scripted.strip_prefix(' ').unwrap_or(&scripted));
        }

        let mut some = Pieces::until(cancel_at);
        let answer = vlm.ask_streaming(&request, &mut some).unwrap();
        prop_assert_eq!(some.text, answer.text, "cancelled");
        prop_assert!(some.taken <= cancel_at);
    });
}
