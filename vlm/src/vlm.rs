//! The facade: an open bundle that answers.

mod error;

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use firmware_config::manifest::{CHAT_TEMPLATE_FILE, Manifest, Part, TOKENIZER_FILE};
use firmware_config::tensors;

pub use self::error::VlmError;
use crate::answer::{Answer, Candidate, FinishReason, Piece, Timings, Token, TopToken, Trace};
use crate::backend::{self, Options};
use crate::bundle::Bundle;
use crate::confidence;
use crate::generate::{GenerateOptions, generate, prefill};
use crate::logits::TokenLogprobs;
use crate::model::{Decoded, KvCache, Model, ModelError};
use crate::prefix::{PrefixKey, Prefixes};
use crate::prompt::{Prompt, PromptError, PromptRules};
use crate::request::{Request, Split};
use crate::score::{self, Sequences};
use crate::sink::Sink;
use crate::special_tokens::{self, SpecialTokens};
use crate::template::Template;
use crate::tiles::{Tiles, pixel_values, tiles_of_turns, u8_sha256};
use crate::tokenizer::{TokenText, Tokenizer};

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
    /// Time that opening the bundle took, hashing included.
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
    /// When a file is missing or changed, no engine is available, or a graph does not load.
    pub fn open(dir: &Path, options: &Options) -> Result<Self, VlmError> {
        let started = Instant::now();
        let bundle = Bundle::open(dir)?;
        let tokenizer = Tokenizer::from_json(&bundle.read(TOKENIZER_FILE)?)?;
        let template = Template::new(&String::from_utf8_lossy(&bundle.read(CHAT_TEMPLATE_FILE)?))?;
        let template = template.with_special_tokens(special_tokens(&bundle)?)?;
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

    /// The graphs themselves, for verification.
    pub fn model(&mut self) -> &mut dyn Model {
        &mut *self.model
    }

    /// Answers one request.
    ///
    /// # Errors
    /// When the request does not fit this model ([`VlmError::is_bad_request`]), or the model fails.
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
        let split = request.split == Split::On;

        // Everything that can be refused is refused before the model runs.
        let task = self.task(request)?;
        let prompt = self.prompt_rules().prompt(&request.turns, split)?;
        self.check_context(&prompt, &task)?;
        let tiles = tiles_of_turns(&request.turns, &self.manifest.image, split);
        timings.preprocess = started.elapsed();

        // The prompt through the model, to the logits of its last position.
        let (decoded, mut trace) =
            self.prefill(&prompt, &tiles, request.trace, &mut timings, sink)?;
        if let Some(trace) = &mut trace {
            trace.logits.clone_from(&decoded.logits);
        }

        // The answer, token by token or candidate by candidate.
        let mut sink = TimedSink {
            sink,
            started,
            first_piece: None,
        };
        let decoding = Instant::now();
        let completion = match &task {
            Task::Choose(sequences) => self.choose(&decoded, request, sequences, &mut sink)?,
            Task::Generate => self.generate(decoded, request, &mut sink)?,
        };
        timings.decode = decoding.elapsed();
        timings.total = started.elapsed();
        timings.first_token = sink.first_piece.unwrap_or(timings.total);

        let confidence = match &task {
            Task::Choose(_) => {
                let candidates = completion.candidates.iter();
                confidence::of_candidates(candidates.map(|candidate| candidate.probability))
            }
            Task::Generate => {
                confidence::of_tokens(completion.tokens.iter().map(|token| token.logprob))
            }
        };
        Ok(Answer {
            confidence,
            text: completion.text,
            finish_reason: completion.finish_reason,
            tokens: completion.tokens,
            candidates: completion.candidates,
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

    /// What is to be done after the prompt; refuses a request that asks for nothing, or for
    /// candidates that cannot be scored.
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

    /// Whether the longest candidate still fits after the prompt. Free text needs no check: it ends
    /// where the context does.
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

    /// Runs the prompt: the prefix up to its last image token, from the kept caches where it is one
    /// of them, then the rest.
    fn prefill(
        &mut self,
        prompt: &Prompt,
        tiles: &[Tiles],
        traced: bool,
        timings: &mut Timings,
        sink: &dyn Sink,
    ) -> Result<(Decoded, Option<Trace>), VlmError> {
        let pixel_sha256 = (!tiles.is_empty()).then(|| u8_sha256(tiles));
        let (past, image_features) = match &pixel_sha256 {
            None => (KvCache::empty(), None),
            Some(sha256) => self.prefill_prefix(prompt, tiles, sha256, traced, timings, sink)?,
        };
        let prefilling = Instant::now();
        let hidden = self.manifest.geometry.text.hidden_size;
        let inputs_embeds = self.model.embed(&prompt.input_ids[prompt.prefix_len..])?;
        let decoded = prefill(&mut *self.model, &inputs_embeds, hidden, &past)?;
        timings.prefill += prefilling.elapsed();
        let trace = traced.then(|| Trace {
            prompt: prompt.text.clone(),
            input_ids: prompt.input_ids.clone(),
            pixel_shape: tiles.first().map(|first| {
                let frames = tiles.iter().map(Tiles::frames).sum();
                [1, frames, 3, first.side, first.side]
            }),
            pixel_sha256,
            image_features,
            logits: Vec::new(),
        });
        Ok((decoded, trace))
    }

    /// The cache of the prompt's prefix, and the image features where the vision encoder ran for
    /// it.
    fn prefill_prefix(
        &mut self,
        prompt: &Prompt,
        tiles: &[Tiles],
        pixel_sha256: &str,
        traced: bool,
        timings: &mut Timings,
        sink: &dyn Sink,
    ) -> Result<(KvCache, Option<Vec<f32>>), VlmError> {
        let input_ids = &prompt.input_ids[..prompt.prefix_len];
        let key = PrefixKey {
            input_ids: input_ids.to_vec(),
            pixel_sha256: pixel_sha256.to_owned(),
        };
        // A trace has the vision encoder's output, so the encoder has to run.
        if let Some(cache) = self.prefixes.find(&key).filter(|_| !traced) {
            return Ok((cache, None));
        }
        self.prefixes.make_room();
        let features = self.encode(tiles, timings, sink)?;
        let prefilling = Instant::now();
        let hidden = self.manifest.geometry.text.hidden_size;
        let inputs_embeds =
            self.embed_with_features(input_ids, &prompt.image_positions, &features)?;
        let cache = prefill(&mut *self.model, &inputs_embeds, hidden, &KvCache::empty())?.cache;
        timings.prefill += prefilling.elapsed();
        self.prefixes.keep(key, cache.clone());
        Ok((cache, Some(features)))
    }

    /// Image features of every tile, in prompt order: [frames · S, H].
    fn encode(
        &mut self,
        tiles: &[Tiles],
        timings: &mut Timings,
        sink: &dyn Sink,
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
            return Err(ModelError::Shape {
                graph: Part::VisionEncoder.as_str(),
                tensor: tensors::IMAGE_FEATURES,
                expected: vec![positions.len(), hidden],
                got: vec![features.len() / hidden, hidden],
            });
        }
        for (&position, row) in positions.iter().zip(features.chunks_exact(hidden)) {
            inputs_embeds[position * hidden..][..hidden].copy_from_slice(row);
        }
        Ok(inputs_embeds)
    }

    /// Greedy free text after the prompt.
    fn generate(
        &mut self,
        prompt: Decoded,
        request: &Request,
        sink: &mut dyn Sink,
    ) -> Result<Completion, VlmError> {
        let options = GenerateOptions {
            stop: &self.manifest.prompt.stop,
            max_new_tokens: request.max_new_tokens,
            context_length: self.manifest.geometry.text.context_length,
            top_logprobs: request.top_logprobs,
        };
        let mut text = TokenText::new(&self.tokenizer);
        let mut streamed = StreamedText::default();
        let mut cancelled = false;
        let finish_reason = generate(&mut *self.model, prompt, options, &mut |logprobs| {
            let token = token(&logprobs, &mut text);
            sink.piece(&streamed.piece(&token.text.clone(), vec![token]));
            cancelled = sink.is_cancelled();
            if cancelled {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })?;
        let rest = text.finish();
        if !cancelled && !rest.is_empty() {
            sink.piece(&streamed.piece(&rest, Vec::new()));
        }
        let StreamedText { text, tokens, .. } = streamed;
        Ok(Completion {
            text,
            tokens,
            candidates: Vec::new(),
            finish_reason,
        })
    }

    /// The likeliest of the candidates after the prompt.
    fn choose(
        &mut self,
        prompt: &Decoded,
        request: &Request,
        sequences: &Sequences,
        sink: &mut dyn Sink,
    ) -> Result<Completion, VlmError> {
        let logprobs = score::logprobs(
            &mut *self.model,
            prompt,
            &sequences.tokens,
            request.top_logprobs,
            sink,
        )?
        .ok_or(VlmError::Cancelled)?;
        let scores = score::scores(&logprobs);
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
        // The first among equals, as in decoding.
        let winner =
            scores.iter().enumerate().fold(
                0,
                |best, (index, score)| if *score > scores[best] { index } else { best },
            );
        // Its own tokens: without the end token that was added for scoring.
        let own = sequences.tokens[winner].len() - usize::from(sequences.ended);
        let mut text = TokenText::new(&self.tokenizer);
        let tokens: Vec<Token> = logprobs[winner][..own]
            .iter()
            .map(|logprobs| token(logprobs, &mut text))
            .collect();
        // The text as it was asked: the tokens are those of the trimmed text, and lack what the
        // vocabulary has no token for.
        let whole = Piece {
            text: candidates[winner].text.clone(),
            tokens,
        };
        sink.piece(&whole);
        Ok(Completion {
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

/// The special tokens that the bundle's template may use by name.
fn special_tokens(bundle: &Bundle) -> Result<SpecialTokens, VlmError> {
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

/// The answer's token, the next one in `text`.
fn token(logprobs: &TokenLogprobs, text: &mut TokenText<'_>) -> Token {
    let top = logprobs
        .top
        .iter()
        .map(|&(id, logprob)| TopToken {
            id,
            text: text.alone(id),
            logprob: logprob as f32,
        })
        .collect();
    Token {
        id: logprobs.id,
        text: text.push(logprobs.id),
        logprob: logprobs.logprob as f32,
        top,
    }
}

/// What is done after the prompt.
enum Task {
    /// Score the candidates.
    Choose(Sequences),
    /// Decode free text.
    Generate,
}

/// What follows the prompt: the answer without what was measured on the way.
struct Completion {
    text: String,
    tokens: Vec<Token>,
    candidates: Vec<Candidate>,
    finish_reason: FinishReason,
}

/// A sink that notes when its first piece came.
struct TimedSink<'a> {
    sink: &'a mut dyn Sink,
    started: Instant,
    /// Since `started`.
    first_piece: Option<Duration>,
}

impl Sink for TimedSink<'_> {
    fn piece(&mut self, piece: &Piece) {
        self.first_piece
            .get_or_insert_with(|| self.started.elapsed());
        self.sink.piece(piece);
    }

    fn is_cancelled(&self) -> bool {
        self.sink.is_cancelled()
    }
}

/// Free text and its tokens, as far as they were given to the sink.
#[derive(Default)]
struct StreamedText {
    text: String,
    tokens: Vec<Token>,
    /// Whether there was any text yet, if only a space.
    begun: bool,
}

impl StreamedText {
    /// The piece that `text` adds: all of it, without the space that separates an answer from its
    /// prompt.
    fn piece(&mut self, text: &str, tokens: Vec<Token>) -> Piece {
        let added = if self.begun {
            text
        } else {
            text.strip_prefix(' ').unwrap_or(text)
        };
        self.begun |= !text.is_empty();
        self.text.push_str(added);
        self.tokens.extend_from_slice(&tokens);
        Piece {
            text: added.to_owned(),
            tokens,
        }
    }
}

#[cfg(test)]
mod tests;
