//! The route of an answer, as a reply shows it: the `routing` object and the `x-router-…` headers.
//! Pure.

use serde::Serialize;
use serde_json::Value;

use crate::reason::Reason;
use crate::settled::AnswerSource;

/// Where an answer was settled, and why.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Routing {
    /// A UUIDv7; also the idempotency key of the pool call.
    pub(super) decision_id: String,
    /// Where the answer was settled.
    #[serde(rename = "where")]
    pub(super) source: AnswerSource,
    /// In order: the first one decided.
    pub(super) reasons: Vec<Reason>,
    /// The pool that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pool: Option<String>,
    /// Confidence of the local answer; absent when the local model was not asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) confidence: Option<Value>,
    /// The confidence that keeps an answer local, 0..=1; absent when the answer was not compared
    /// with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) threshold: Option<f64>,
    /// The models that were asked, in order.
    pub(super) attempts: Vec<ModelAttempt>,
    /// Request bytes sent to pools.
    pub(super) bytes_up: u64,
}

/// One model that was asked.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct ModelAttempt {
    /// The bundle's name or the pool's id.
    pub(super) model: String,
    /// How it ended.
    pub(super) status: AttemptStatus,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    /// Time from asking to the end, in milliseconds.
    pub(super) latency_ms: u64,
    /// Requests sent for it: more than one when it was tried again.
    pub(super) tries: u32,
    /// Request bytes sent for it.
    pub(super) bytes_up: u64,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum AttemptStatus {
    /// With an answer.
    Ok,
    /// Without one.
    Failed,
}

impl Routing {
    /// The same as headers, for clients that ignore extensions of the body. `model` is the one that
    /// answered.
    pub(super) fn headers(&self, model: &str) -> Vec<(&'static str, String)> {
        let mut headers = vec![
            ("x-router-model", model.to_owned()),
            ("x-router-decision-id", self.decision_id.clone()),
            ("x-router-attempts", self.attempts.len().to_string()),
            ("x-router-bytes-up", self.bytes_up.to_string()),
        ];
        headers.extend(
            self.reasons
                .first()
                .map(|reason| ("x-router-reason", reason.as_str().to_owned())),
        );
        let p = self
            .confidence
            .as_ref()
            .and_then(|confidence| confidence["p"].as_f64());
        headers.extend(p.map(|p| ("x-router-confidence", format!("{p:.4}"))));
        headers
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    #[test]
    fn headers_and_object_agree() {
        let routing = Routing {
            decision_id: "0193".into(),
            source: AnswerSource::Local,
            reasons: vec![Reason::Deadline, Reason::LowConfidence],
            pool: None,
            confidence: Some(json!({"p": 0.512, "source": "candidates", "state": "uncertified"})),
            threshold: Some(0.9),
            attempts: vec![ModelAttempt {
                model: "big".into(),
                status: AttemptStatus::Failed,
                error: Some("late".into()),
                latency_ms: 8000,
                tries: 1,
                bytes_up: 900,
            }],
            bytes_up: 900,
        };
        insta::assert_snapshot!(serde_json::to_string(&routing).unwrap(), @r#"{"decision_id":"0193","where":"local","reasons":["DEADLINE","LOW_CONFIDENCE"],"confidence":{"p":0.512,"source":"candidates","state":"uncertified"},"threshold":0.9,"attempts":[{"model":"big","status":"failed","error":"late","latency_ms":8000,"tries":1,"bytes_up":900}],"bytes_up":900}"#);
        let headers: Vec<_> = routing
            .headers("nano")
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        insta::assert_snapshot!(headers.join("\n"), @r"
        x-router-model: nano
        x-router-decision-id: 0193
        x-router-attempts: 1
        x-router-bytes-up: 900
        x-router-reason: DEADLINE
        x-router-confidence: 0.5120
        ");
    }
}
