//! Counters of the gateway, as Prometheus text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::routing::Routing;
use crate::serve::openai::ApiError;
use crate::serve::openai::reply::Usage;

/// What the gateway counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    counts: Mutex<Counts>,
    /// Clients that took nothing of what they were sent.
    pub(super) connections_cut: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct Counts {
    /// By where and deciding reason: both closed lists, so the map stays small.
    answers: BTreeMap<(&'static str, &'static str), u64>,
    errors: BTreeMap<u16, u64>,
    prompt_tokens: u64,
    completion_tokens: u64,
    bytes_up: u64,
    seconds: f64,
}

impl Metrics {
    /// A request was answered.
    pub(super) fn answered(&self, routing: &Routing, took: Duration) {
        let settled = match routing.settled {
            super::routing::Settled::Local => "local",
            super::routing::Settled::Pool => "pool",
        };
        let reason = routing.reasons.first().map_or("", |reason| reason.as_str());
        let mut counts = self.counts();
        *counts.answers.entry((settled, reason)).or_default() += 1;
        counts.bytes_up += routing.bytes_up;
        counts.seconds += took.as_secs_f64();
    }

    /// What an answer took.
    pub(super) fn used(&self, usage: Usage) {
        let mut counts = self.counts();
        counts.prompt_tokens += usage.prompt_tokens;
        counts.completion_tokens += usage.completion_tokens;
    }

    /// A request was refused or failed.
    pub(super) fn failed(&self, error: &ApiError) {
        *self.counts().errors.entry(error.status).or_default() += 1;
    }

    /// Everything, in the text format.
    pub(super) fn text(&self) -> String {
        let counts = self.counts();
        let mut text = String::new();
        let mut family = |name: &str, help: &str, samples: Vec<(String, String)>| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} counter");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let answers = counts.answers.iter().map(|((settled, reason), n)| {
            (
                format!(r#"{{where="{settled}",reason="{reason}"}}"#),
                n.to_string(),
            )
        });
        family(
            "egret_gateway_answers_total",
            "Requests answered, by where and deciding reason.",
            answers.collect(),
        );
        let errors = counts
            .errors
            .iter()
            .map(|(status, n)| (format!(r#"{{status="{status}"}}"#), n.to_string()));
        family(
            "egret_gateway_errors_total",
            "Requests refused or failed, by HTTP status.",
            errors.collect(),
        );
        for (name, help, value) in [
            (
                "egret_gateway_prompt_tokens_total",
                "Tokens read, image tokens included.",
                counts.prompt_tokens.to_string(),
            ),
            (
                "egret_gateway_completion_tokens_total",
                "Tokens written.",
                counts.completion_tokens.to_string(),
            ),
            (
                "egret_gateway_bytes_up_total",
                "Request bytes sent to pools.",
                counts.bytes_up.to_string(),
            ),
            (
                "egret_gateway_seconds_total",
                "Time from a request to its decision.",
                counts.seconds.to_string(),
            ),
            (
                "egret_gateway_connections_cut_total",
                "Connections cut off because their clients took nothing.",
                self.connections_cut.load(Ordering::Relaxed).to_string(),
            ),
        ] {
            family(name, help, vec![(String::new(), value)]);
        }
        text
    }

    fn counts(&self) -> std::sync::MutexGuard<'_, Counts> {
        // Counters are whole after every addition.
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::router::Reason;

    #[test]
    fn text_format() {
        let metrics = Metrics::default();
        let routing = Routing {
            decision_id: String::new(),
            settled: super::super::routing::Settled::Pool,
            reasons: vec![Reason::LowConfidence],
            pool: None,
            confidence: None,
            threshold: None,
            attempts: Vec::new(),
            bytes_up: 12,
        };
        metrics.answered(&routing, Duration::from_millis(500));
        metrics.used(Usage {
            prompt_tokens: 81,
            completion_tokens: 2,
            total_tokens: 83,
        });
        metrics.failed(&ApiError::bad_request("n", "no"));
        insta::assert_snapshot!(metrics.text(), @r#"
        # HELP egret_gateway_answers_total Requests answered, by where and deciding reason.
        # TYPE egret_gateway_answers_total counter
        egret_gateway_answers_total{where="pool",reason="LOW_CONFIDENCE"} 1
        # HELP egret_gateway_errors_total Requests refused or failed, by HTTP status.
        # TYPE egret_gateway_errors_total counter
        egret_gateway_errors_total{status="400"} 1
        # HELP egret_gateway_prompt_tokens_total Tokens read, image tokens included.
        # TYPE egret_gateway_prompt_tokens_total counter
        egret_gateway_prompt_tokens_total 81
        # HELP egret_gateway_completion_tokens_total Tokens written.
        # TYPE egret_gateway_completion_tokens_total counter
        egret_gateway_completion_tokens_total 2
        # HELP egret_gateway_bytes_up_total Request bytes sent to pools.
        # TYPE egret_gateway_bytes_up_total counter
        egret_gateway_bytes_up_total 12
        # HELP egret_gateway_seconds_total Time from a request to its decision.
        # TYPE egret_gateway_seconds_total counter
        egret_gateway_seconds_total 0.5
        # HELP egret_gateway_connections_cut_total Connections cut off because their clients took nothing.
        # TYPE egret_gateway_connections_cut_total counter
        egret_gateway_connections_cut_total 0
        "#);
    }
}
