//! The model on tract, in pure Rust. The only file that names `tract_onnx`.
//!
//! Batch is fixed at 1 and the vision encoder at one frame, so that tract plans with constants;
//! sequence and past lengths stay symbols, the same two in every input that has them. The three
//! graphs share one thread pool. Its size changes no bit of a result, because work is never split
//! within a sum.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use firmware_config::manifest::Part;
use firmware_config::tensors;
use tract_linalg::multithread::Executor;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::dims;
use tract_onnx::tract_core::internal::{DatumExt, ShapeFact};

use super::{BackendError, Dimensions, expect_shape};
use crate::bundle::Bundle;
use crate::model::{Decoded, KvCache, Logits, Model, ModelError, Provider};

/// Default log filter of programs that use this crate, as `tracing`'s `EnvFilter` reads it. tract
/// warns about every graph newer than opset 18, as all of ours are.
pub const LOG_FILTER: &str = "info,tract_onnx=error,tract_linalg=warn";

/// The three graphs as optimised plans.
pub(super) struct TractModel {
    dimensions: Dimensions,
    vision_encoder: Graph,
    embed_tokens: Graph,
    decoder: Graph,
    pixel_attention_mask: TValue,
}

/// Key and value of each layer, as the decoder returned them.
type TractCache = Vec<TValue>;

impl TractModel {
    /// Loads and optimises the bundle's graphs, to run on `threads` threads or on one for each
    /// core.
    pub(super) fn load(bundle: &Bundle, threads: Option<usize>) -> Result<Self, BackendError> {
        let manifest = bundle.manifest();
        let dimensions = Dimensions::new(manifest);
        let executor = executor(threads);
        let load = |part: Part, inputs: &dyn Fn(&SymbolScope) -> Inputs, outputs: &[String]| {
            let path = bundle.path(manifest.graphs.get(part));
            Graph::load(&path, part.as_str(), inputs, outputs, &executor).map_err(|error| {
                BackendError::Graph {
                    backend: "tract",
                    path,
                    message: format!("{error:#}"),
                }
            })
        };
        let Dimensions {
            tile,
            hidden,
            kv_heads,
            head_dim,
            ..
        } = dimensions;
        let vision_inputs = |_: &SymbolScope| {
            vec![
                (
                    tensors::PIXEL_VALUES.to_owned(),
                    f32::fact([1, 1, 3, tile, tile]),
                ),
                (
                    tensors::PIXEL_ATTENTION_MASK.to_owned(),
                    bool::fact([1, 1, tile, tile]),
                ),
            ]
        };
        let embed_inputs = |symbols: &SymbolScope| {
            vec![(
                tensors::INPUT_IDS.to_owned(),
                i64::fact(dims![1, symbols.sym("S")]),
            )]
        };
        let decoder_inputs = |symbols: &SymbolScope| {
            let (s, p) = (symbols.sym("S").to_dim(), symbols.sym("P").to_dim());
            let total = p.clone() + &s;
            let mut inputs = vec![
                (
                    tensors::INPUTS_EMBEDS.to_owned(),
                    f32::fact(dims![1, s, hidden]),
                ),
                (
                    tensors::ATTENTION_MASK.to_owned(),
                    i64::fact(dims![1, total]),
                ),
                (tensors::POSITION_IDS.to_owned(), i64::fact(dims![1, s])),
            ];
            inputs.extend(
                tensors::past_key_values(dimensions.layers)
                    .flatten()
                    .map(|name| (name, f32::fact(dims![1, kv_heads, p, head_dim]))),
            );
            inputs
        };
        let mut decoder_outputs = vec![tensors::LOGITS.to_owned()];
        decoder_outputs.extend(tensors::present(dimensions.layers).flatten());
        Ok(TractModel {
            dimensions,
            vision_encoder: load(
                Part::VisionEncoder,
                &vision_inputs,
                &[tensors::IMAGE_FEATURES.into()],
            )?,
            embed_tokens: load(
                Part::EmbedTokens,
                &embed_inputs,
                &[tensors::INPUTS_EMBEDS.into()],
            )?,
            decoder: load(Part::DecoderModelMerged, &decoder_inputs, &decoder_outputs)?,
            pixel_attention_mask: Tensor::from_shape(&[1, 1, tile, tile], &vec![true; tile * tile])
                .expect("as many values as the shape has")
                .into(),
        })
    }

    fn empty_past(&self) -> TractCache {
        let empty = Tensor::from_shape::<f32>(
            &[1, self.dimensions.kv_heads, 0, self.dimensions.head_dim],
            &[],
        )
        .expect("no values for an empty axis");
        let empty: TValue = empty.into();
        vec![empty; 2 * self.dimensions.layers]
    }
}

impl Model for TractModel {
    fn encode(&mut self, pixel_values: &[f32], frames: usize) -> Result<Vec<f32>, ModelError> {
        let Dimensions {
            tile,
            tokens_per_tile,
            hidden,
            ..
        } = self.dimensions;
        let pixels_of_frames = self.dimensions.frames(pixel_values, frames)?;
        let mut image_features = Vec::with_capacity(frames * tokens_per_tile * hidden);
        for frame in pixels_of_frames {
            let outputs = self.vision_encoder.run(tvec![
                tensor(&[1, 1, 3, tile, tile], frame),
                self.pixel_attention_mask.clone()
            ])?;
            image_features.extend_from_slice(self.vision_encoder.values(
                &outputs[0],
                tensors::IMAGE_FEATURES,
                &[1, tokens_per_tile, hidden],
            )?);
        }
        Ok(image_features)
    }

    fn embed(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let ids = self.dimensions.token_ids(input_ids)?;
        let outputs = self
            .embed_tokens
            .run(tvec![tensor(&[1, ids.len()], &ids)])?;
        self.embed_tokens
            .values(
                &outputs[0],
                tensors::INPUTS_EMBEDS,
                &[1, ids.len(), self.dimensions.hidden],
            )
            .map(<[f32]>::to_vec)
    }

    fn decode(
        &mut self,
        inputs_embeds: &[f32],
        past: &KvCache,
        logits: Logits,
    ) -> Result<Decoded, ModelError> {
        let Dimensions { hidden, vocab, .. } = self.dimensions;
        let n = self.dimensions.tokens(inputs_embeds)?;
        let total = past.tokens + n;
        // Inputs: embeddings, mask and positions, then the cache.
        let position_ids: Vec<i64> = (past.tokens as i64..total as i64).collect();
        let mut inputs = tvec![
            tensor(&[1, n, hidden], inputs_embeds),
            tensor(&[1, total], &vec![1i64; total]),
            tensor(&[1, n], &position_ids)
        ];
        match &past.state {
            // Reference-counted: nothing is copied until the graph appends to them.
            Some(state) => inputs.extend(
                state
                    .downcast_ref::<TractCache>()
                    .ok_or_else(|| self.decoder.failed("the KV cache is from another backend"))?
                    .iter()
                    .cloned(),
            ),
            None => inputs.extend(self.empty_past()),
        }
        // Outputs: the requested logits, then the grown cache.
        let mut outputs = self.decoder.run(inputs)?;
        let rows = self
            .decoder
            .values(&outputs[0], tensors::LOGITS, &[1, n, vocab])?;
        let rows = match logits {
            Logits::Last => rows[rows.len() - vocab..].to_vec(),
            Logits::All => rows.to_vec(),
        };
        let present: TractCache = outputs.drain(1..).collect();
        Ok(Decoded {
            logits: rows,
            cache: KvCache {
                tokens: total,
                state: Some(Arc::new(present)),
            },
        })
    }

    fn provider(&self) -> Provider {
        Provider {
            backend: "tract".into(),
            execution_provider: "tract".into(),
        }
    }
}

/// The thread pool of the graphs; `None` has one thread for each core.
fn executor(threads: Option<usize>) -> Executor {
    match threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get)) {
        1 => Executor::SingleThread,
        threads => Executor::multithread_with_name(threads, "tract"),
    }
}

/// Input names with their types and shapes, in the order of the graph's inputs.
type Inputs = Vec<(String, TypedFact)>;

/// One graph, optimised, with the state it runs in.
struct Graph {
    name: &'static str,
    state: TypedSimpleState,
}

impl Graph {
    fn load(
        path: &Path,
        name: &'static str,
        inputs: &dyn Fn(&SymbolScope) -> Inputs,
        outputs: &[String],
        executor: &Executor,
    ) -> TractResult<Self> {
        // The file's own symbols (batch, sequence_length, …) are dropped with its value infos; ours
        // replace them.
        let mut model = tract_onnx::onnx()
            .with_ignore_value_info(true)
            .model_for_path(path)?;
        let inputs = inputs(&model.symbols);
        model.set_input_names(inputs.iter().map(|(name, _)| name))?;
        for (index, (_, fact)) in inputs.into_iter().enumerate() {
            model.set_input_fact(index, fact.into())?;
        }
        model.select_outputs_by_name(outputs)?;
        let options = RunOptions {
            executor: Some(executor.clone()),
            ..RunOptions::default()
        };
        let state = model
            .into_optimized()?
            .into_runnable_with_options(&options)?
            .spawn()?;
        Ok(Graph { name, state })
    }

    fn run(&mut self, inputs: TVec<TValue>) -> Result<TVec<TValue>, ModelError> {
        self.state.run(inputs).map_err(|error| {
            // A failed run must leave no state for the next one; if the reset fails, so will that
            // run.
            let _ = self.state.reset_turn();
            self.failed(&format!("{error:#}"))
        })
    }

    /// An output as a slice, after a check of its shape.
    fn values<'v>(
        &self,
        value: &'v TValue,
        tensor: &'static str,
        expected: &[usize],
    ) -> Result<&'v [f32], ModelError> {
        expect_shape(self.name, tensor, expected, value.shape())?;
        value
            .try_as_plain_ram()
            .and_then(|plain| plain.as_slice::<f32>())
            .map_err(|error| self.failed(&format!("{error:#}")))
    }

    fn failed(&self, message: &str) -> ModelError {
        ModelError::Backend {
            backend: "tract",
            graph: self.name,
            message: message.to_owned(),
        }
    }
}

/// A tensor with a copy of `values`.
fn tensor<D: Datum + Copy>(shape: &[usize], values: &[D]) -> TValue {
    Tensor::from_shape(shape, values)
        .expect("callers give as many values as the shape has")
        .into()
}
