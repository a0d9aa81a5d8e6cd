//! An answer as the JSON object of `egret ask --json`.

use std::time::Duration;

use serde_json::{Map, Value, json};
use vlm::answer::{Answer, Timings, Trace};
use vlm::model::ModelError;
use vlm::{Identity, LogitsRow};

/// The object, including the trace if the answer has one.
///
/// # Errors
/// When the trace's logits contain NaN or infinity.
pub(super) fn record(
    answer: &Answer,
    identity: &Identity,
    peak_rss_bytes: Option<u64>,
) -> Result<Value, ModelError> {
    let tokens: Vec<Value> = answer
        .tokens
        .iter()
        .map(|token| json!({"id": token.id, "text": token.text, "logprob": token.logprob}))
        .collect();
    let candidates: Vec<Value> = answer
        .candidates
        .iter()
        .map(|candidate| json!({"text": candidate.text, "probability": candidate.probability, "score": candidate.score}))
        .collect();
    let mut record = json!({
        "answer": answer.text,
        "finish_reason": answer.finish_reason.as_str(),
        "tokens": tokens,
        "candidates": candidates,
        "confidence": answer.confidence,
        "prompt_tokens": answer.prompt_tokens,
        "timings_ms": timings_ms(&answer.timings, identity.load),
        "model": identity,
        "peak_rss_bytes": peak_rss_bytes,
    });
    if let (Some(trace), Value::Object(record)) = (&answer.trace, &mut record) {
        record.extend(trace_fields(trace)?);
    }
    Ok(record)
}

fn timings_ms(timings: &Timings, load: Duration) -> Value {
    // Rounded down to whole microseconds: more digits would be noise.
    let ms = |duration: Duration| duration.as_micros() as f64 / 1000.0;
    json!({
        "load": ms(load),
        "preprocess": ms(timings.preprocess),
        "vision": ms(timings.vision),
        "prefill": ms(timings.prefill),
        "first_token": ms(timings.first_token),
        "decode": ms(timings.decode),
        "total": ms(timings.total),
    })
}

fn trace_fields(trace: &Trace) -> Result<Map<String, Value>, ModelError> {
    let row = LogitsRow::new(&trace.logits)?;
    let top5: Vec<Value> = row
        .top_n(5)
        .into_iter()
        .map(|(id, logit)| json!([id, f64::from(logit)]))
        .collect();
    let mut fields = Map::new();
    fields.insert("prompt".into(), json!(trace.prompt));
    fields.insert("input_ids".into(), json!(trace.input_ids));
    if let (Some(shape), Some(sha256)) = (&trace.pixel_shape, &trace.pixel_sha256) {
        fields.insert(
            "pixel_values".into(),
            json!({"shape": shape, "u8_sha256": sha256}),
        );
    }
    fields.insert(
        "logits".into(),
        json!({"top5": top5, "logsumexp": row.logsumexp()}),
    );
    Ok(fields)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use vlm::answer::{Candidate, Confidence, ConfidenceSource, FinishReason, Token};

    use super::*;

    fn answer(trace: Option<Trace>) -> Answer {
        Answer {
            text: "yes".into(),
            finish_reason: FinishReason::Stop,
            tokens: vec![Token {
                id: 7,
                text: " yes".into(),
                logprob: -0.25,
                top: Vec::new(),
            }],
            candidates: vec![
                Candidate {
                    text: "yes".into(),
                    score: -0.25,
                    probability: 0.75,
                },
                Candidate {
                    text: "no".into(),
                    score: -1.5,
                    probability: 0.25,
                },
            ],
            confidence: Confidence {
                p: 0.75,
                source: ConfidenceSource::Candidates,
            },
            prompt_tokens: 81,
            timings: Timings {
                preprocess: Duration::from_micros(1500),
                ..Timings::default()
            },
            trace,
        }
    }

    fn identity() -> Identity {
        Identity {
            name: "nano".into(),
            sha256: "ab".into(),
            precision: "fp32".into(),
            backend: "tract".into(),
            execution_provider: "tract".into(),
            load: Duration::from_millis(20),
        }
    }

    #[test]
    fn a_record_is_one_line_with_its_fields_in_order() {
        let line = record(&answer(None), &identity(), Some(1024))
            .unwrap()
            .to_string();
        insta::assert_snapshot!(line, @r#"{"answer":"yes","finish_reason":"stop","tokens":[{"id":7,"text":" yes","logprob":-0.25}],"candidates":[{"text":"yes","probability":0.75,"score":-0.25},{"text":"no","probability":0.25,"score":-1.5}],"confidence":{"p":0.75,"source":"candidates","state":"uncertified"},"prompt_tokens":81,"timings_ms":{"load":20.0,"preprocess":1.5,"vision":0.0,"prefill":0.0,"first_token":0.0,"decode":0.0,"total":0.0},"model":{"name":"nano","sha256":"ab","precision":"fp32","backend":"tract","execution_provider":"tract"},"peak_rss_bytes":1024}"#);
    }

    #[test]
    fn a_trace_has_the_fields_of_a_reference_record() {
        let trace = Trace {
            prompt: "User:<image>Is it?".into(),
            input_ids: vec![1, 2],
            pixel_shape: Some([1, 1, 3, 4, 4]),
            pixel_sha256: Some("cd".into()),
            image_features: None,
            logits: vec![0.0, 0.0, 1.0],
        };
        let fields = Value::Object(trace_fields(&trace).unwrap()).to_string();
        insta::assert_snapshot!(fields, @r#"{"prompt":"User:<image>Is it?","input_ids":[1,2],"pixel_values":{"shape":[1,1,3,4,4],"u8_sha256":"cd"},"logits":{"top5":[[2,1.0],[0,0.0],[1,0.0]],"logsumexp":1.551444713932051}}"#);
    }
}
