//! An answer, and where it came from: the same for the local model and for a pool. Pure.

use std::time::Duration;

use serde::Serialize;
use vlm::answer::ConfidenceSource;

#[cfg(test)]
use crate::json::schema::Millis;
use crate::json::{millis, some_millis};

/// One answer, its confidence, and the model that gave it.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// The answer.
    pub text: String,
    /// Probability that it is right, 0..=1, if the model gave one.
    pub confidence: Option<f64>,
    /// What the confidence is computed from.
    pub confidence_kind: ConfidenceKind,
    /// The model that gave it.
    pub by: By,
}

/// What a confidence is computed from. As published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum ConfidenceKind {
    /// A softmax over the rule's `answers`.
    Candidates,
    /// The tokens of a free text.
    Tokens,
    /// As the pool reported it.
    Pool,
    /// There is none.
    None,
}

impl From<ConfidenceSource> for ConfidenceKind {
    fn from(source: ConfidenceSource) -> Self {
        match source {
            ConfidenceSource::Candidates => ConfidenceKind::Candidates,
            ConfidenceSource::Tokens => ConfidenceKind::Tokens,
        }
    }
}

/// The model that gave an answer, and the time it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct By {
    /// Where the model runs.
    #[serde(rename = "where")]
    pub source: AnswerSource,
    /// Id of the pool; absent for the local model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// Name of the bundle, or the `model` of the pool's reply.
    pub model: String,
    /// Identity of the bundle; absent for a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_sha256: Option<String>,
    /// `ort` (ONNX Runtime) or `tract`; absent for a pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// The execution provider that ran, or `remote` for a pool.
    pub ep: String,
    /// From the question to the answer; for a pool, all attempts together.
    #[serde(rename = "total_ms", serialize_with = "millis")]
    #[cfg_attr(test, schemars(with = "Millis"))]
    pub total: Duration,
    /// Prefill; absent for a pool.
    #[serde(
        rename = "prefill_ms",
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_millis"
    )]
    #[cfg_attr(test, schemars(with = "Option<Millis>"))]
    pub prefill: Option<Duration>,
    /// All decode steps; absent for a pool.
    #[serde(
        rename = "decode_ms",
        skip_serializing_if = "Option::is_none",
        serialize_with = "some_millis"
    )]
    #[cfg_attr(test, schemars(with = "Option<Millis>"))]
    pub decode: Option<Duration>,
    /// Length of the answer in tokens; absent where the pool does not report it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_out: Option<u64>,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum AnswerSource {
    /// On the node.
    Local,
    /// In a pool.
    Pool,
}

impl AnswerSource {
    /// As published.
    pub fn as_str(self) -> &'static str {
        match self {
            AnswerSource::Local => "local",
            AnswerSource::Pool => "pool",
        }
    }
}
