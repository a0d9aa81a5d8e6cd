//! A scene's data in other forms: what the local model is asked, what is published. Pure.

use bytes::Bytes;
use firmware_config::agent;
use vlm::{Answer, Content, Identity, Picture, Request, Role, Split, Turn};

use crate::capture::admitted::AdmittedFrame;
use crate::capture::status::CameraStatus;
use crate::deliver::event::FrameInfo;
use crate::deliver::payload::CameraStatusPayload;
use crate::settled::{AnswerSource, By, Settled};

/// What the local model is asked about `picture` on behalf of `rule`.
pub(super) fn local(rule: &agent::Rule, picture: &Picture) -> Request {
    Request {
        // Image first: the prefix up to it is the same for every rule, and computed once.
        turns: vec![Turn {
            role: Role::User,
            content: vec![
                Content::Picture(picture.clone()),
                Content::Text(rule.question.clone()),
            ],
        }],
        candidates: rule.answers.clone(),
        split: if rule.split { Split::On } else { Split::Off },
        max_new_tokens: rule.max_new_tokens,
        top_logprobs: 0,
        trace: false,
    }
}

/// An answer of the local model, as it is published.
pub(super) fn settled(answer: &Answer, model: &Identity) -> Settled {
    Settled {
        text: answer.text.trim().to_owned(),
        confidence: Some(answer.confidence.p),
        confidence_kind: answer.confidence.source.into(),
        by: By {
            source: AnswerSource::Local,
            pool: None,
            model: model.name.clone(),
            model_sha256: Some(model.sha256.clone()),
            backend: Some(model.backend.clone()),
            ep: model.execution_provider.clone(),
            total: answer.timings.total,
            prefill: Some(answer.timings.prefill),
            decode: Some(answer.timings.decode),
            tokens_out: Some(answer.tokens.len() as u64),
        },
    }
}

/// The frame, as its events name it.
pub(super) fn frame_info(frame: &AdmittedFrame) -> FrameInfo {
    FrameInfo {
        time: frame.time,
        w: frame.picture.width(),
        h: frame.picture.height(),
        sha256: frame.sha256.clone(),
        jpeg_bytes: frame.jpeg.len(),
    }
}

/// A camera's status, as it is published.
pub(super) fn camera_json(status: &CameraStatus) -> Bytes {
    let payload = CameraStatusPayload {
        state: status.state.as_str(),
        reason: &status.reason,
        since: status.since,
    };
    payload.to_json().into()
}
