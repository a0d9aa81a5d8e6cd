//! Why there is no answer.

use crate::backend::BackendError;
use crate::bundle::BundleError;
use crate::model::ModelError;
use crate::prompt::PromptError;
use crate::score::CandidateError;
use crate::special_tokens::SpecialTokensError;
use crate::template::TemplateError;
use crate::tokenizer::TokenizerError;

/// Why a bundle does not open, or a request is not answered.
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
    /// The conversation does not make a prompt.
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
            // The template may render other texts correctly.
            VlmError::Prompt(PromptError::Template(TemplateError::Changed)) => true,
            VlmError::Prompt(error) => !matches!(
                error,
                PromptError::Template(_) | PromptError::Tokenizer(_) | PromptError::Images { .. }
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
