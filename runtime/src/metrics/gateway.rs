//! Requests of OpenAI clients.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter;
use prometheus_client::metrics::family::Family;

use super::{Counter, Durations, Group};
use crate::openai::reply::Usage;

/// Requests of OpenAI clients.
#[derive(Debug)]
pub struct GatewayMetrics {
    answers: Family<SourceLabels, counter::Counter>,
    errors: Family<ErrorLabels, counter::Counter>,
    decisions: Durations,
    prompt_tokens: Counter,
    completion_tokens: Counter,
    pool_request_bytes: Counter,
    /// Clients that did not read what they were sent.
    pub connections_cut: Counter,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    r#where: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabels {
    status: u16,
}

impl GatewayMetrics {
    pub(super) fn new(mut group: Group<'_>) -> Self {
        GatewayMetrics {
            answers: group.add(
                "gateway_answers",
                "Requests answered, by where they were settled and the deciding reason.",
                Family::default(),
            ),
            errors: group.add(
                "gateway_errors",
                "Requests refused or failed, by HTTP status.",
                Family::default(),
            ),
            decisions: group.durations(
                "gateway_decision_duration_seconds",
                "Time from a request until its answer is settled, models included.",
            ),
            prompt_tokens: group.counter(
                "gateway_prompt_tokens",
                "Tokens of prompts, image tokens included.",
            ),
            completion_tokens: group.counter("gateway_completion_tokens", "Tokens of completions."),
            pool_request_bytes: group.counter(
                "gateway_pool_request_bytes",
                "Bytes of requests sent to pools for clients.",
            ),
            connections_cut: group.counter(
                "gateway_connections_cut",
                "Connections closed because the client did not read.",
            ),
        }
    }

    /// Counts an answer that was settled `settled` (`local` or `pool`), `took` after its request.
    pub fn answered(
        &self,
        settled: &'static str,
        reason: &'static str,
        took: Duration,
        bytes_up: u64,
    ) {
        let labels = SourceLabels {
            r#where: settled,
            reason,
        };
        self.answers.get_or_create(&labels).inc();
        self.decisions.observe(took);
        self.pool_request_bytes.add(bytes_up);
    }

    /// Counts the tokens of an answer.
    pub fn used(&self, usage: Usage) {
        self.prompt_tokens.add(usage.prompt_tokens);
        self.completion_tokens.add(usage.completion_tokens);
    }

    /// Counts a request that was refused, or failed, with the HTTP `status`.
    pub fn failed(&self, status: u16) {
        self.errors.get_or_create(&ErrorLabels { status }).inc();
    }
}
