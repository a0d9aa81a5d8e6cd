//! The facade: a bundle, opened, that answers.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use firmware_config::manifest::Manifest;

use crate::answer::{Answer, Candidate, FinishReason, Piece, Timings, Token, TopToken, Trace};
use crate::backend::{self, BackendError, Options};
use crate::bundle::{Bundle, BundleError};
use crate::confidence;
use crate::generate::{Limits, generate, prefill};
use crate::logits::Reading;
use crate::model::{Decoded, KvCache, Model, ModelError};
use crate::prefix::{PrefixKey, Prefixes};
use crate::prompt::{Prompt, PromptError, PromptRules};
use crate::request::{Request, Split};
use crate::score::{self, CandidateError, Sequences};
use crate::sink::Sink;
use crate::special_tokens::{self, SpecialTokens, SpecialTokensError};
use crate::template::{Template, TemplateError};
use crate::tiles::{Tiles, pixel_values, tiles_of_turns, u8_sha256};
use crate::tokenizer::{TokenText, Tokenizer, TokenizerError};

/// Which model answers, and on what. Serialized it is the `model` object of `egret ask --json`, of
/// a node's info topic and of the gateway's health check.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Identity {
    /// The manifest's name.
    pub name: String,
    /// Hex sha256 of `manifest.json`: the bundle's identity.
    pub sha256: String,
    /// `fp32`, `fp16` or `int8`.
    pub precision: String,
    /// `ort` or `tract`.
    pub backend: String,
    /// The execution provider that really runs.
    pub execution_provider: String,
    /// What opening took, hashing included.
    #[serde(skip)]
    pub load: Duration,
}

/// An open bundle. Owned by one thread, asked one request at a time.
pub struct Vlm {
    identity: Identity,
    manifest: Manifest,
    tokenizer: Tokenizer,
    template: Template,
    model: Box<dyn Model>,
    prefixes: Prefixes,
}

impl Vlm {
    /// Opens the bundle in `dir`: checks every file, chooses an engine, loads the graphs.
    ///
    /// # Errors
    /// When a file is missing or changed, no engine can be had, or a graph does not load.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, VlmError> {
        let started = Instant::now();
        let bundle = Bundle::open(dir)?;
        let tokenizer = Tokenizer::from_json(&bundle.read("tokenizer.json")?)?;
        let template = Template::new(&String::from_utf8_lossy(
            &bundle.read("chat_template.jinja")?,
        ))?;
        let template = template.with_special_tokens(named_tokens(&bundle)?)?;
        let model = backend::load(&bundle, options)?;
        let mut vlm = Vlm::new(
            bundle.manifest().clone(),
            bundle.sha256().to_owned(),
            tokenizer,
            template,
            model,
        );
        vlm.identity.load = started.elapsed();
        Ok(vlm)
    }

    fn new(
        manifest: Manifest,
        sha256: String,
        tokenizer: Tokenizer,
        template: Template,
        model: Box<dyn Model>,
    ) -> Self {
        let provider = model.provider();
        let identity = Identity {
            name: manifest.name.clone(),
            sha256,
            precision: manifest.precision.as_str().to_owned(),
            backend: provider.backend,
            execution_provider: provider.execution_provider,
            load: Duration::ZERO,
        };
        Vlm {
            identity,
            manifest,
            tokenizer,
            template,
            model,
            prefixes: Prefixes::default(),
        }
    }

    /// Which model answers, and on what.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the bundle holds and how its model is fed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The graphs themselves: what verification measures.
    pub fn model(&mut self) -> &mut dyn Model {
        &mut *self.model
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When the request cannot be put to this model ([`VlmError::is_bad_request`]), or the model
    /// fails.
    pub fn ask(&mut self, request: &Request) -> Result<Answer, VlmError> {
        self.ask_streaming(request, &mut |_: &Piece| {})
    }

    /// As [`Vlm::ask`], with each piece of the text given to `sink`. Where the sink cancels, free
    /// text ends with the pieces it has taken.
    ///
    /// # Errors
    /// As [`Vlm::ask`]; [`VlmError::Cancelled`] when the sink cancels before there is any answer.
    pub fn ask_streaming(
        &mut self,
        request: &Request,
        sink: &mut dyn Sink,
    ) -> Result<Answer, VlmError> {
        let started = Instant::now();
        let mut timings = Timings::default();
        let task = self.task(request)?;
        let prompt = self
            .prompt_rules()
            .prompt(&request.turns, request.split == Split::On)?;
        self.check_context(&prompt, &task)?;
        let tiles = tiles_of_turns(
            &request.turns,
            &self.manifest.image,
            request.split == Split::On,
        );
        timings.preprocess = started.elapsed();

        let (decoded, mut trace) =
            self.prefill(&prompt, &tiles, request.trace, &mut timings, sink)?;
        if let Some(trace) = &mut trace {
            trace.logits.clone_from(&decoded.logits);
        }
        let mut sink = Timed {
            sink,
            started,
            first_piece: None,
        };
        let decoding = Instant::now();
        let said = match &task {
            Task::Choose(sequences) => self.choose(&decoded, request, sequences, &mut sink)?,
            Task::Generate => self.generate(decoded, request, &mut sink)?,
        };
        timings.decode = decoding.elapsed();
        timings.total = started.elapsed();
        timings.first_token = sink.first_piece.unwrap_or(timings.total);
        Ok(Answer {
            confidence: match &task {
                Task::Choose(_) => confidence::of_candidates(
                    said.candidates
                        .iter()
                        .map(|candidate| candidate.probability),
                ),
                Task::Generate => {
                    confidence::of_tokens(said.tokens.iter().map(|token| token.logprob))
                }
            },
            text: said.text,
            finish_reason: said.finish_reason,
            tokens: said.tokens,
            candidates: said.candidates,
            prompt_tokens: prompt.input_ids.len(),
            timings,
            trace,
        })
    }

    /// Length of a text in tokens; special tokens in it count as text.
    pub fn token_count(&self, text: &str) -> usize {
        self.tokenizer.encode(text).map_or(0, |ids| ids.len())
    }

    fn prompt_rules(&self) -> PromptRules<'_> {
        PromptRules {
            template: &self.template,
            tokenizer: &self.tokenizer,
            tokens: &self.manifest.prompt,
            image: &self.manifest.image,
            context_length: self.manifest.geometry.text.context_length,
        }
    }

    /// What is to be done once the prompt is in; refuses what cannot be done before any work.
    fn task(&self, request: &Request) -> Result<Task, VlmError> {
        if request.candidates.is_empty() {
            return if request.max_new_tokens == 0 {
                Err(VlmError::NoTokens)
            } else {
                Ok(Task::Generate)
            };
        }
        let end = *self
            .manifest
            .prompt
            .stop
            .first()
            .ok_or(VlmError::NoEndToken)?;
        Ok(Task::Choose(score::sequences(
            &request.candidates,
            |text| self.tokenizer.encode(text),
            end,
        )?))
    }

    /// Whether the longest candidate still fits behind the prompt. Free text needs no check: it
    /// ends where the context does.
    fn check_context(&self, prompt: &Prompt, task: &Task) -> Result<(), VlmError> {
        let Task::Choose(sequences) = task else {
            return Ok(());
        };
        let longest = sequences.tokens.iter().map(Vec::len).max().unwrap_or(0);
        let context = self.manifest.geometry.text.context_length;
        // The last token is predicted, never fed.
        let tokens = prompt.input_ids.len() + longest.saturating_sub(1);
        if tokens > context {
            Err(PromptError::TooLong { tokens, context }.into())
        } else {
            Ok(())
        }
    }

    /// Runs the prompt: the part up to the last image token from the kept caches where it is there,
    /// the rest always.
    fn prefill(
        &mut self,
        prompt: &Prompt,
        tiles: &[Tiles],
        trace: bool,
        timings: &mut Timings,
        sink: &mut dyn Sink,
    ) -> Result<(Decoded, Option<Trace>), VlmError> {
        let hidden = self.manifest.geometry.text.hidden_size;
        let (prefix_ids, rest) = prompt.input_ids.split_at(prompt.prefix_len);
        let pixel_sha256 = (!tiles.is_empty()).then(|| u8_sha256(tiles));
        let mut image_features = None;
        let past = match &pixel_sha256 {
            None => KvCache::empty(),
            Some(pixel_sha256) => {
                let key = PrefixKey {
                    input_ids: prefix_ids.to_vec(),
                    pixel_sha256: pixel_sha256.clone(),
                };
                // A trace shows what the vision encoder puts out, so it has to run.
                match self.prefixes.find(&key).filter(|_| !trace) {
                    Some(cache) => cache,
                    None => {
                        self.prefixes.make_room();
                        let features = self.encode(tiles, timings, sink)?;
                        let prefilling = Instant::now();
                        let inputs_embeds = self.embed_with_features(
                            prefix_ids,
                            &prompt.image_positions,
                            &features,
                        )?;
                        let cache =
                            prefill(&mut *self.model, &inputs_embeds, hidden, &KvCache::empty())?
                                .cache;
                        timings.prefill += prefilling.elapsed();
                        self.prefixes.keep(key, cache.clone());
                        image_features = Some(features);
                        cache
                    }
                }
            }
        };
        let prefilling = Instant::now();
        let inputs_embeds = self.model.embed(rest)?;
        let decoded = prefill(&mut *self.model, &inputs_embeds, hidden, &past)?;
        timings.prefill += prefilling.elapsed();
        let trace = trace.then(|| Trace {
            prompt: prompt.text.clone(),
            input_ids: prompt.input_ids.clone(),
            pixel_shape: tiles.first().map(|first| {
                [
                    1,
                    tiles.iter().map(Tiles::frames).sum(),
                    3,
                    first.side,
                    first.side,
                ]
            }),
            pixel_sha256,
            image_features,
            logits: Vec::new(),
        });
        Ok((decoded, trace))
    }

    /// Image features of every tile, in prompt order: [frames · S, H].
    fn encode(
        &mut self,
        tiles: &[Tiles],
        timings: &mut Timings,
        sink: &mut dyn Sink,
    ) -> Result<Vec<f32>, VlmError> {
        let mut features = Vec::new();
        for tiles in tiles {
            if sink.is_cancelled() {
                return Err(VlmError::Cancelled);
            }
            let preprocessing = Instant::now();
            let pixels = pixel_values(tiles, &self.manifest.image);
            timings.preprocess += preprocessing.elapsed();
            let encoding = Instant::now();
            features.extend(self.model.encode(&pixels, tiles.frames())?);
            timings.vision += encoding.elapsed();
        }
        Ok(features)
    }

    /// Embeddings of `input_ids`, with a row of `features` in place of each image token.
    fn embed_with_features(
        &mut self,
        input_ids: &[u32],
        positions: &[usize],
        features: &[f32],
    ) -> Result<Vec<f32>, ModelError> {
        let hidden = self.manifest.geometry.text.hidden_size;
        let mut inputs_embeds = self.model.embed(input_ids)?;
        if features.len() != positions.len() * hidden {
            let (expected, got) = (
                vec![positions.len(), hidden],
                vec![features.len() / hidden, hidden],
            );
            return Err(ModelError::Shape {
                graph: "vision_encoder",
                tensor: "image_features",
                expected,
                got,
            });
        }
        for (&position, row) in positions.iter().zip(features.chunks_exact(hidden)) {
            inputs_embeds[position * hidden..][..hidden].copy_from_slice(row);
        }
        Ok(inputs_embeds)
    }

    /// Greedy free text behind the prompt.
    fn generate(
        &mut self,
        prompt: Decoded,
        request: &Request,
        sink: &mut dyn Sink,
    ) -> Result<Said, VlmError> {
        let limits = Limits {
            stop: &self.manifest.prompt.stop,
            max_new_tokens: request.max_new_tokens,
            context_length: self.manifest.geometry.text.context_length,
            top_logprobs: request.top_logprobs,
        };
        let mut text = TokenText::new(&self.tokenizer);
        let mut written = Written::default();
        let mut cancelled = false;
        let finish_reason = generate(&mut *self.model, prompt, limits, &mut |reading| {
            let token = token(&reading, &mut text);
            sink.piece(&written.piece(&token.text.clone(), vec![token]));
            cancelled = sink.is_cancelled();
            if cancelled {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let rest = text.finish();
        if !cancelled && !rest.is_empty() {
            sink.piece(&written.piece(&rest, Vec::new()));
        }
        let Written { text, tokens, .. } = written;
        Ok(Said {
            text,
            tokens,
            candidates: Vec::new(),
            finish_reason,
        })
    }

    /// The likeliest of the candidates behind the prompt.
    fn choose(
        &mut self,
        prompt: &Decoded,
        request: &Request,
        sequences: &Sequences,
        sink: &mut dyn Sink,
    ) -> Result<Said, VlmError> {
        let readings = score::read(
            &mut *self.model,
            prompt,
            &sequences.tokens,
            request.top_logprobs,
            sink,
        )?;
        let readings = readings.ok_or(VlmError::Cancelled)?;
        let scores = score::scores(&readings);
        let candidates: Vec<Candidate> = request
            .candidates
            .iter()
            .zip(scores.iter().zip(score::probabilities(&scores)))
            .map(|(text, (&score, probability))| Candidate {
                text: text.clone(),
                score,
                probability,
            })
            .collect();
        // The first of the likeliest, as in decoding.
        let winner =
            scores.iter().enumerate().fold(
                0,
                |best, (index, score)| if *score > scores[best] { index } else { best },
            );
        let own = sequences.tokens[winner].len() - usize::from(sequences.ended);
        let mut text = TokenText::new(&self.tokenizer);
        let tokens: Vec<Token> = readings[winner][..own]
            .iter()
            .map(|reading| token(reading, &mut text))
            .collect();
        // As it was asked: its tokens are those of a trimmed text, and leave out what the
        // vocabulary has no token for.
        let whole = Piece {
            text: candidates[winner].text.clone(),
            tokens,
        };
        sink.piece(&whole);
        Ok(Said {
            text: whole.text,
            tokens: whole.tokens,
            candidates,
            finish_reason: FinishReason::Stop,
        })
    }
}

impl std::fmt::Debug for Vlm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vlm")
            .field("identity", &self.identity)
            .finish_non_exhaustive()
    }
}

/// The special tokens that the bundle's template may call by name.
fn named_tokens(bundle: &Bundle) -> Result<SpecialTokens, VlmError> {
    let listed = |name: &str| {
        bundle
            .manifest()
            .files
            .contains_key(name)
            .then(|| bundle.read(name))
            .transpose()
    };
    let (config, map) = (
        listed(special_tokens::TOKENIZER_CONFIG)?,
        listed(special_tokens::SPECIAL_TOKENS_MAP)?,
    );
    Ok(special_tokens::read(config.as_deref(), map.as_deref())?)
}

/// A token as it is told, next in `text`.
fn token(reading: &Reading, text: &mut TokenText<'_>) -> Token {
    let top = reading
        .top
        .iter()
        .map(|&(id, logprob)| TopToken {
            id,
            text: text.alone(id),
            logprob: logprob as f32,
        })
        .collect();
    Token {
        id: reading.id,
        text: text.push(reading.id),
        logprob: reading.logprob as f32,
        top,
    }
}

/// A sink that notes when its first piece came.
struct Timed<'a> {
    sink: &'a mut dyn Sink,
    started: Instant,
    first_piece: Option<Duration>,
}

impl Sink for Timed<'_> {
    fn piece(&mut self, piece: &Piece) {
        self.first_piece
            .get_or_insert_with(|| self.started.elapsed());
        self.sink.piece(piece);
    }

    fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled()
    }
}

/// What is done behind the prompt.
enum Task {
    /// Score the candidates.
    Choose(Sequences),
    /// Decode free text.
    Generate,
}

/// What came out behind the prompt.
struct Said {
    text: String,
    tokens: Vec<Token>,
    candidates: Vec<Candidate>,
    finish_reason: FinishReason,
}

/// Free text and its tokens, as far as they were handed over.
#[derive(Default)]
struct Written {
    text: String,
    tokens: Vec<Token>,
    /// Whether the model has said anything, if only a space.
    begun: bool,
}

impl Written {
    /// What `said` adds: all of it, but for the space that separates an answer from its prompt.
    fn piece(&mut self, said: &str, tokens: Vec<Token>) -> Piece {
        let text = if self.begun {
            said
        } else {
            said.strip_prefix(' ').unwrap_or(said)
        };
        self.begun |= !said.is_empty();
        self.text.push_str(text);
        self.tokens.extend_from_slice(&tokens);
        Piece {
            text: text.to_owned(),
            tokens,
        }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum VlmError {
    /// The bundle cannot be used.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// No engine runs it.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// Its tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The names of its special tokens cannot be read.
    #[error(transparent)]
    SpecialTokens(#[from] SpecialTokensError),
    /// The bundle names no token that ends an answer.
    #[error(
        "the manifest's prompt.stop is empty: expected the ids that end an answer; export the bundle again"
    )]
    NoEndToken,
    /// An answer of no tokens was asked for.
    #[error("max_new_tokens is 0: expected 1 or more, or candidates")]
    NoTokens,
    /// The candidates cannot be scored.
    #[error(transparent)]
    Candidates(#[from] CandidateError),
    /// The conversation cannot be put to the model.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// The sink cancelled.
    #[error("the question was cancelled before there was an answer; ask it again")]
    Cancelled,
    /// The model failed.
    #[error(transparent)]
    Model(#[from] ModelError),
}

impl VlmError {
    /// Whether the request is at fault, so that asking it again will not help.
    pub fn is_bad_request(&self) -> bool {
        match self {
            VlmError::NoTokens => true,
            VlmError::Candidates(error) => !matches!(error, CandidateError::Tokenizer(_)),
            // A template that may be right about other texts.
            VlmError::Prompt(PromptError::Template(TemplateError::Changed)) => true,
            VlmError::Prompt(error) => !matches!(
                error,
                PromptError::Template(_) | PromptError::Tokenizer(_) | PromptError::Pictures { .. }
            ),
            VlmError::Bundle(_)
            | VlmError::Backend(_)
            | VlmError::Tokenizer(_)
            | VlmError::Template(_)
            | VlmError::SpecialTokens(_)
            | VlmError::NoEndToken
            | VlmError::Cancelled
            | VlmError::Model(_) => false,
        }
    }
}

#[cfg(test)]
mod tests;
