//! Is a bundle its checkpoint? The bundle on a backend and the plain [`Reference`] answer the same
//! probes.
//!
//! | compared | finds |
//! |---|---|
//! | companion files, and the manifest's fields | another tokenizer, template, config or rule |
//! | every constant of the graphs with its tensor, by name | any weight changed or moved, whether a probe uses it or not |
//! | the rotary tables with theta, over the whole context | wrong angles at positions that no probe reaches |
//! | image features, embeddings of the whole vocabulary, logits of every position | a graph that computes something else |
//! | answers, token by token | a cache, a position or a prompt that goes wrong while generating |
//!
//! The bundle runs first and is closed before the reference opens, so the two are never in memory
//! together.

mod companions;
mod measure;
mod probe;
mod rotary;
mod weights;

use std::io;
use std::path::{Path, PathBuf};

use firmware_config::manifest::{Graphs, Manifest};
use vlm::answer::FinishReason;
use vlm::model::{KvCache, Logits, ModelError};
use vlm::tiles::{pixel_values, tiles_of_turns};
use vlm::{BackendChoice, PictureError, Split, TokenizerError, Vlm, VlmError};

use crate::arch::ArchError;
use crate::arch::smolvlm::SmolVlm;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::graph::onnx::OnnxError;
use crate::reference::{Past, Reference, ReferenceError};
use crate::report::{Answer, Answers, Backend, Steps, VerificationReport};

use measure::{Sums, divergence, top};
use probe::Probe;

/// Embedding rows requested at once.
const EMBED_CHUNK: usize = 4096;

/// How a bundle is verified.
#[derive(Debug, Clone, Default)]
pub struct VerifyOptions {
    /// A folder of images to ask about, besides the built-in ones.
    pub images: Option<PathBuf>,
    /// Which backend runs the bundle.
    pub backend: BackendChoice,
    /// Inference threads; `None` leaves the choice to the backend.
    pub threads: Option<usize>,
}

/// Compares a bundle with the checkpoint it was made from.
///
/// # Errors
/// When either cannot be read or does not run. A bundle that runs and is wrong is not an error: its
/// report's verdict is `fail`.
pub fn verify(
    bundle: &Path,
    source: &Path,
    options: &VerifyOptions,
) -> Result<VerificationReport, VerifyError> {
    // Read the checkpoint and the probes before anything runs.
    let checkpoint = Checkpoint::open(source)?;
    let model = SmolVlm::new(&checkpoint)?;
    let mut probes = probe::built_in();
    if let Some(folder) = &options.images {
        probes.extend(probe::of_folder(folder)?);
    }
    // Open the bundle and run it on every probe; close it before the reference takes its memory.
    let options = vlm::Options {
        backend: options.backend,
        threads: options.threads,
        ..vlm::Options::default()
    };
    let mut vlm = Vlm::open(bundle, &options)?;
    let manifest = vlm.manifest().clone();
    let backend = Backend {
        name: vlm.identity().backend.clone(),
        execution_provider: vlm.identity().execution_provider.clone(),
    };
    tracing::info!("verify: running {} on {}", manifest.name, backend.name);
    retain_fitting(&mut probes, &vlm);
    let embeddings = embeddings(&mut vlm, &manifest)?;
    let observed = probes
        .iter()
        .map(|probe| observe(&mut vlm, &manifest, probe))
        .collect::<Result<Vec<_>, _>>()?;
    drop(vlm);

    // Open the reference; compare what is stored, then what was computed.
    tracing::info!("verify: computing the reference");
    let reference = Reference::open(&checkpoint)?;
    same_sizes(&reference, &manifest)?;
    let files = companions::compare(bundle, &manifest, &checkpoint, &model)?;
    let weights = weights::compare(bundle, &manifest, &checkpoint, &model)?;
    let mut comparison = Comparison::new();
    comparison.embeddings(&reference, &embeddings);
    for (probe, observed) in probes.iter().zip(&observed) {
        comparison.probe(&reference, &manifest, probe, observed);
    }
    // Judge it.
    let Comparison {
        graphs,
        steps,
        answers,
    } = comparison;
    Ok(VerificationReport::new(
        (&manifest.name, manifest.precision),
        checkpoint.sha256() == manifest.source.sha256,
        backend,
        files,
        weights,
        Graphs::from_fn(|part| graphs.get(part).distance()),
        steps.summary(),
        Answers {
            asked: answers.len(),
            equal: answers.iter().filter(|answer| answer.is_equal).count(),
            list: answers,
        },
    ))
}

/// Drops the long text where it does not fit the model's context.
fn retain_fitting(probes: &mut Vec<Probe>, vlm: &Vlm) {
    let context = vlm.manifest().geometry.text.context_length;
    let token_count = |content: &vlm::Content| match content {
        vlm::Content::Text(text) => vlm.token_count(text),
        vlm::Content::Picture(_) | vlm::Content::Clip(_) => 0,
    };
    probes.retain(|probe| {
        let content = probe.request.turns.iter().flat_map(|turn| &turn.content);
        let tokens: usize = content.map(token_count).sum();
        // The other half is more than enough for the rest of the prompt and the answer.
        probe.name != probe::LONG || tokens <= context / 2
    });
}

/// Checks that inputs and outputs of the graphs can be compared at all.
fn same_sizes(reference: &Reference, manifest: &Manifest) -> Result<(), VerifyError> {
    let (vision, text) = (&manifest.geometry.vision, &manifest.geometry.text);
    for (what, expected, got) in [
        ("tile size", reference.image_size(), vision.image_size),
        (
            "number of image tokens",
            reference.tokens_per_frame(),
            manifest.image.tokens_per_tile,
        ),
        ("vocabulary", reference.vocab_size(), text.vocab_size),
        ("text width", reference.hidden_size(), text.hidden_size),
    ] {
        if expected != got {
            return Err(VerifyError::Geometry {
                what,
                expected,
                got,
            });
        }
    }
    Ok(())
}

/// A bundle's answer to one probe.
struct Observed {
    /// [frames · S, H], in the order of the prompt's images.
    image_features: Vec<f32>,
    input_ids: Vec<u32>,
    /// The greedy answer, including the end token if there was one.
    answer: Vec<u32>,
    text: String,
    /// Logits after each of `input_ids` and each of `answer` but the last, [positions, vocabulary].
    logits: Vec<f32>,
}

/// Embeddings of the whole vocabulary, [vocabulary, H].
fn embeddings(vlm: &mut Vlm, manifest: &Manifest) -> Result<Vec<f32>, VerifyError> {
    let ids: Vec<u32> = (0..manifest.geometry.text.vocab_size as u32).collect();
    let mut rows = Vec::with_capacity(ids.len() * manifest.geometry.text.hidden_size);
    for ids in ids.chunks(EMBED_CHUNK) {
        rows.extend(vlm.model().embed(ids)?);
    }
    Ok(rows)
}

/// Asks the bundle, then runs prompt and answer through the decoder once more, for the logits of
/// every position.
fn observe(vlm: &mut Vlm, manifest: &Manifest, probe: &Probe) -> Result<Observed, VerifyError> {
    // The answer, token by token.
    let answer = vlm.ask(&probe.request)?;
    let trace = answer.trace.ok_or(VerifyError::NoTrace)?;
    let image_features = trace.image_features.unwrap_or_default();
    let mut ids: Vec<u32> = answer.tokens.iter().map(|token| token.id).collect();
    let mut fed = [&trace.input_ids[..], &ids].concat();
    if answer.finish_reason == FinishReason::Stop {
        // An answer leaves its end token out; the logits below say which it was.
        ids.push(u32::MAX);
    } else {
        fed.pop();
    }
    // Prompt and answer as one sequence of embeddings, image features in place.
    let hidden = manifest.geometry.text.hidden_size;
    let model = vlm.model();
    let mut inputs_embeds = model.embed(&fed)?;
    let features = image_features.chunks_exact(hidden);
    let images = inputs_embeds
        .chunks_exact_mut(hidden)
        .zip(&fed)
        .filter(|(_, id)| **id == manifest.prompt.image);
    images
        .zip(features)
        .for_each(|((row, _), feature)| row.copy_from_slice(feature));
    // The logits of every position in one run.
    let logits = model
        .decode(&inputs_embeds, &KvCache::empty(), Logits::All)?
        .logits;
    if let Some(end) = ids.last_mut().filter(|id| **id == u32::MAX) {
        *end = top(&logits[logits.len() - manifest.geometry.text.vocab_size..]);
    }
    Ok(Observed {
        image_features,
        input_ids: trace.input_ids,
        answer: ids,
        text: answer.text,
        logits,
    })
}

/// The running comparison of all probes.
struct Comparison {
    graphs: Graphs<Sums>,
    steps: StepSums,
    answers: Vec<Answer>,
}

impl Comparison {
    fn new() -> Self {
        Comparison {
            graphs: Graphs::from_fn(|_| Sums::new()),
            steps: StepSums::default(),
            answers: Vec::new(),
        }
    }

    fn embeddings(&mut self, reference: &Reference, embeddings: &[f32]) {
        for (id, row) in embeddings.chunks_exact(reference.hidden_size()).enumerate() {
            self.graphs
                .embed_tokens
                .add(&reference.embed(&[id as u32]), row);
        }
    }

    /// Each side uses its own image features, so that errors accumulate as they do in use.
    fn probe(
        &mut self,
        reference: &Reference,
        manifest: &Manifest,
        probe: &Probe,
        observed: &Observed,
    ) {
        let tiles = tiles_of_turns(
            &probe.request.turns,
            &manifest.image,
            probe.request.split == Split::On,
        );
        let image_features: Vec<f32> = tiles
            .iter()
            .flat_map(|tiles| {
                reference.encode(&pixel_values(tiles, &manifest.image), tiles.frames())
            })
            .collect();
        self.graphs
            .vision_encoder
            .add(&image_features, &observed.image_features);

        let fed = [
            &observed.input_ids[..],
            &observed.answer[..observed.answer.len().saturating_sub(1)],
        ]
        .concat();
        let inputs_embeds = reference.prompt(&fed, manifest.prompt.image, &image_features);
        let hidden = reference.hidden(&inputs_embeds, &mut Past::default());
        let vocabulary = reference.vocab_size();
        let positions = hidden
            .chunks_exact(reference.hidden_size())
            .zip(observed.logits.chunks_exact(vocabulary));
        let mut expected = Vec::new();
        for (position, (hidden, logits)) in positions.enumerate() {
            let reference = reference.logits(hidden);
            self.graphs.decoder_model_merged.add(&reference, logits);
            if position + 1 >= observed.input_ids.len() {
                self.steps.add(&reference, logits);
                expected.push(top(&reference));
            }
        }
        let first_difference = expected
            .iter()
            .zip(&observed.answer)
            .position(|(expected, got)| expected != got);
        self.answers.push(Answer {
            probe: probe.name.clone(),
            text: observed.text.clone(),
            tokens: observed.answer.len(),
            is_equal: first_difference.is_none(),
            first_difference,
        });
    }
}

/// Sums over the steps of all answers.
#[derive(Debug, Default)]
struct StepSums {
    count: usize,
    top1: usize,
    kl_sum: f64,
    kl_max: f64,
}

impl StepSums {
    fn add(&mut self, reference: &[f32], bundle: &[f32]) {
        let kl = divergence(reference, bundle);
        self.count += 1;
        self.top1 += usize::from(top(reference) == top(bundle));
        self.kl_sum += kl;
        self.kl_max = self.kl_max.max(kl);
    }

    fn summary(&self) -> Steps {
        let count = self.count.max(1) as f64;
        Steps {
            count: self.count,
            top1_agreement: self.top1 as f64 / count,
            kl_mean: self.kl_sum / count,
            kl_max: self.kl_max,
        }
    }
}

impl VerifyError {
    /// Whether a file could not be read, rather than holding what cannot be used.
    pub(crate) fn is_io(&self) -> bool {
        match self {
            VerifyError::Io { .. } => true,
            VerifyError::Checkpoint(error) => error.is_io(),
            VerifyError::Arch(error) => error.is_io(),
            VerifyError::Onnx(error) => error.is_io(),
            _ => false,
        }
    }
}

/// Why a bundle cannot be verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The checkpoint is not a model of its architecture.
    #[error(transparent)]
    Arch(#[from] ArchError),
    /// The forward pass of the checkpoint cannot run.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The bundle does not open or does not answer.
    #[error("the bundle: {0}")]
    Bundle(#[from] VlmError),
    /// A graph of the bundle does not run.
    #[error("the bundle: {0}")]
    Model(#[from] ModelError),
    /// A graph file of the bundle cannot be read.
    #[error("the bundle: {0}")]
    Onnx(#[from] OnnxError),
    /// The bundle is a model of other sizes.
    #[error(
        "the bundle's {what} is {got}, expected {expected} as in the checkpoint; they are different models"
    )]
    Geometry {
        /// What differs.
        what: &'static str,
        /// Of the checkpoint.
        expected: usize,
        /// Of the bundle.
        got: usize,
    },
    /// An answer has no trace although one was requested.
    #[error("the bundle's answer has no trace, expected one; this is a bug, please report it")]
    NoTrace,
    /// The checkpoint's tokenizer cannot be used.
    #[error("the checkpoint's tokenizer.json: {0}")]
    Tokenizer(#[source] TokenizerError),
    /// A file cannot be read.
    #[error("{path}: cannot be read", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A folder holds no images, or too many.
    #[error("{folder} holds {got} files, expected 1 to 256 images", folder = .folder.display())]
    ImageCount {
        /// The folder.
        folder: PathBuf,
        /// Files in it.
        got: usize,
    },
    /// An image file is too large.
    #[error("{path} is {bytes} bytes, expected at most 64 MiB; scale it down first", path = .path.display())]
    ImageBytes {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// An image cannot be decoded.
    #[error("{path}: {source}; the folder may hold only images", path = .path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PictureError,
    },
}
