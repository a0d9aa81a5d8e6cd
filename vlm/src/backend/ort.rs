//! The model on ONNX Runtime, loaded from a shared library at run time. The only file that names
//! `ort`.
//!
//! Graph optimisation is at its highest level: on the graphs of a bundle (no DequantizeLinear
//! feeding a MatMul in fp32 and fp16) its rewrites keep f32 arithmetic.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use firmware_config::manifest::Part;
use firmware_config::tensors;
use ort::environment::Environment;
use ort::ep;
use ort::memory::Allocator;
use ort::session::{Session, SessionInputValue, SessionOutputs};
use ort::value::{DynValue, Tensor, TensorRef};

use super::{BackendError, Dimensions, expect_shape};
use crate::bundle::Bundle;
use crate::model::{Decoded, KvCache, Logits, Model, ModelError, Provider};

const VISION: &str = Part::VisionEncoder.as_str();
const EMBED: &str = Part::EmbedTokens.as_str();
const DECODER: &str = Part::DecoderModelMerged.as_str();

/// The three graphs as sessions.
pub(super) struct OrtModel {
    dimensions: Dimensions,
    vision_encoder: Session,
    embed_tokens: Session,
    decoder: Session,
    past_names: Vec<String>,
    present_names: Vec<String>,
    pixel_attention_mask: Vec<bool>,
}

/// Key and value of each layer, as the decoder returned them.
type OrtCache = Vec<DynValue>;

impl OrtModel {
    /// Loads the bundle's graphs with the library at `library`, an absolute path of a file.
    pub(super) fn load(
        bundle: &Bundle,
        library: &Path,
        threads: Option<usize>,
    ) -> Result<Self, BackendError> {
        let environment = environment(library)?;
        let manifest = bundle.manifest();
        let dimensions = Dimensions::new(manifest);
        let session = |name: &str, arena: bool| {
            let path = bundle.path(name);
            open(&environment, &path, threads, arena).map_err(|error| BackendError::Graph {
                backend: "ort",
                path,
                message: error.to_string(),
            })
        };
        Ok(OrtModel {
            dimensions,
            // A tile's activations are about 100 MB, always of the same size: without the arena
            // they are returned to the system after each tile.
            vision_encoder: session(&manifest.graphs.vision_encoder, false)?,
            embed_tokens: session(&manifest.graphs.embed_tokens, true)?,
            decoder: session(&manifest.graphs.decoder_model_merged, true)?,
            past_names: tensors::past_key_values(dimensions.layers)
                .flatten()
                .collect(),
            present_names: tensors::present(dimensions.layers).flatten().collect(),
            pixel_attention_mask: vec![true; dimensions.tile * dimensions.tile],
        })
    }

    /// A cache of no tokens: tensors with an axis of length 0.
    fn empty_past(&self) -> ort::Result<OrtCache> {
        let shape = [1, self.dimensions.kv_heads, 0, self.dimensions.head_dim];
        let allocator = Allocator::default();
        self.past_names
            .iter()
            .map(|_| Ok(Tensor::<f32>::new(&allocator, shape)?.into_dyn()))
            .collect()
    }
}

impl Model for OrtModel {
    fn encode(&mut self, pixel_values: &[f32], frames: usize) -> Result<Vec<f32>, ModelError> {
        let Dimensions {
            tile,
            tokens_per_tile,
            hidden,
            ..
        } = self.dimensions;
        let pixels_of_frames = self.dimensions.frames(pixel_values, frames)?;
        let mut image_features = Vec::with_capacity(frames * tokens_per_tile * hidden);
        // One frame at a time: a tile keeps all cores busy, and a batch would only take more
        // memory.
        for frame in pixels_of_frames {
            let pixels = TensorRef::from_array_view(([1, 1, 3, tile, tile], frame))
                .map_err(failed(VISION))?;
            let mask =
                TensorRef::from_array_view(([1, 1, tile, tile], &*self.pixel_attention_mask))
                    .map_err(failed(VISION))?;
            let outputs = self
                .vision_encoder
                .run(ort::inputs![tensors::PIXEL_VALUES => pixels, tensors::PIXEL_ATTENTION_MASK => mask])
                .map_err(failed(VISION))?;
            image_features.extend_from_slice(output(
                &outputs,
                VISION,
                tensors::IMAGE_FEATURES,
                &[1, tokens_per_tile, hidden],
            )?);
        }
        Ok(image_features)
    }

    fn embed(&mut self, input_ids: &[u32]) -> Result<Vec<f32>, ModelError> {
        let ids = self.dimensions.token_ids(input_ids)?;
        let input = TensorRef::from_array_view(([1, ids.len()], &*ids)).map_err(failed(EMBED))?;
        let outputs = self
            .embed_tokens
            .run(ort::inputs![tensors::INPUT_IDS => input])
            .map_err(failed(EMBED))?;
        output(
            &outputs,
            EMBED,
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
        let empty;
        let present: &OrtCache = match &past.state {
            Some(state) => state.downcast_ref().ok_or_else(|| foreign_cache(DECODER))?,
            None => {
                empty = self.empty_past().map_err(failed(DECODER))?;
                &empty
            }
        };
        let attention_mask = vec![1i64; total];
        let position_ids: Vec<i64> = (past.tokens as i64..total as i64).collect();
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = ort::inputs![
            tensors::INPUTS_EMBEDS => TensorRef::from_array_view(([1, n, hidden], inputs_embeds)).map_err(failed(DECODER))?,
            tensors::ATTENTION_MASK => TensorRef::from_array_view(([1, total], &*attention_mask)).map_err(failed(DECODER))?,
            tensors::POSITION_IDS => TensorRef::from_array_view(([1, n], &*position_ids)).map_err(failed(DECODER))?
        ];
        inputs.extend(
            self.past_names
                .iter()
                .zip(present)
                .map(|(name, value)| (Cow::from(name), value.into())),
        );

        // Outputs: the requested logits, then the grown cache.
        let mut outputs = self.decoder.run(inputs).map_err(failed(DECODER))?;
        let rows = output(&outputs, DECODER, tensors::LOGITS, &[1, n, vocab])?;
        let rows = match logits {
            Logits::Last => rows[rows.len() - vocab..].to_vec(),
            Logits::All => rows.to_vec(),
        };
        // The values are reference-counted: nothing is copied.
        let state: Option<OrtCache> = self
            .present_names
            .iter()
            .map(|name| outputs.remove(name))
            .collect();
        let state = state.ok_or_else(|| ModelError::Backend {
            backend: "ort",
            graph: DECODER,
            message: "an output present.* is missing: expected a key and a value of each layer"
                .into(),
        })?;
        Ok(Decoded {
            logits: rows,
            cache: KvCache {
                tokens: total,
                state: Some(Arc::new(state)),
            },
        })
    }

    fn provider(&self) -> Provider {
        // Sessions are opened on the CPU provider alone.
        Provider {
            backend: "ort".into(),
            execution_provider: "cpu".into(),
        }
    }
}

/// The process's environment: ONNX Runtime allows one, from the first library that loads.
pub(super) fn environment(library: &Path) -> Result<Environment, BackendError> {
    static LOADED: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);
    let mut loaded = LOADED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some((path, environment)) = &*loaded {
        if path != library {
            tracing::warn!(
                "ONNX Runtime is already loaded from {}; {} is not used",
                path.display(),
                library.display()
            );
        }
        return Ok(environment.clone());
    }
    let failed = |message: String| BackendError::Library {
        path: library.to_owned(),
        message,
    };
    let builder = ort::init_from(library).map_err(|error| failed(error.to_string()))?;
    let environment = builder
        .with_name("egret")
        .with_telemetry(false)
        .build()
        .map_err(|error| failed(error.to_string()))?;
    *loaded = Some((library.to_owned(), environment.clone()));
    Ok(environment)
}

fn open(
    environment: &Environment,
    graph: &Path,
    threads: Option<usize>,
    arena: bool,
) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        // Every request has its own lengths, so there is no pattern to remember.
        .with_memory_pattern(false)?
        .with_execution_providers([ep::CPU::default().with_arena_allocator(arena).build()])?;
    if let Some(threads) = threads {
        builder = builder.with_intra_threads(threads)?;
    }
    builder.commit_from_file(graph)
}

/// An output as a slice, after a check of its shape.
fn output<'o>(
    outputs: &'o SessionOutputs<'_>,
    graph: &'static str,
    tensor: &'static str,
    expected: &[usize],
) -> Result<&'o [f32], ModelError> {
    let missing = || ModelError::Backend {
        backend: "ort",
        graph,
        message: format!("output {tensor} is missing"),
    };
    let (shape, values) = outputs
        .get(tensor)
        .ok_or_else(missing)?
        .try_extract_tensor::<f32>()
        .map_err(failed(graph))?;
    let got: Vec<usize> = shape.iter().map(|&dim| dim as usize).collect();
    expect_shape(graph, tensor, expected, &got)?;
    Ok(values)
}

fn failed<R>(graph: &'static str) -> impl Fn(ort::Error<R>) -> ModelError {
    move |error| ModelError::Backend {
        backend: "ort",
        graph,
        message: error.to_string(),
    }
}

fn foreign_cache(graph: &'static str) -> ModelError {
    ModelError::Backend {
        backend: "ort",
        graph,
        message: "the KV cache is from another backend".into(),
    }
}
