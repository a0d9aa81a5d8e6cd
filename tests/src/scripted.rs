//! A model with scripted answers, and images to ask it about.

use std::path::Path;
use std::time::Duration;

use runtime::infer::Answerer;
use vlm::answer::{Candidate, Confidence, ConfidenceSource, FinishReason, Timings};
use vlm::{Answer, Identity, Request, Sink, VlmError};

/// Answers from a script instead of a graph.
pub struct Scripted {
    identity: Identity,
    script: Script,
}

type Script = Box<dyn FnMut(&Request) -> (String, f64) + Send>;

impl Scripted {
    /// A model that answers each request with the text and confidence that `script` returns.
    pub fn new(script: impl FnMut(&Request) -> (String, f64) + Send + 'static) -> Self {
        let identity = Identity {
            name: "scripted".into(),
            sha256: "00".into(),
            precision: "fp32".into(),
            backend: "tract".into(),
            execution_provider: "tract".into(),
            load: Duration::ZERO,
        };
        Scripted {
            identity,
            script: Box::new(script),
        }
    }

    /// A model that answers yes and no alternately, so that every answer ends one event and
    /// begins another.
    pub fn flapping(confidence: f64) -> Self {
        let mut yes = false;
        Scripted::new(move |_| {
            yes = !yes;
            ((if yes { "yes" } else { "no" }).into(), confidence)
        })
    }
}

impl Answerer for Scripted {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn answer(&mut self, request: &Request, _: &mut dyn Sink) -> Result<Answer, VlmError> {
        let (text, p) = (self.script)(request);
        Ok(Answer {
            text: text.clone(),
            finish_reason: FinishReason::Stop,
            tokens: Vec::new(),
            candidates: vec![Candidate {
                text,
                score: p.ln(),
                probability: p,
            }],
            confidence: Confidence {
                p,
                source: ConfidenceSource::Candidates,
            },
            prompt_tokens: 81,
            timings: Timings::default(),
            trace: None,
        })
    }
}

/// Writes `count` images of 64 x 48 pixels in two alternating greys, named in order.
///
/// # Panics
/// When an image cannot be written.
pub fn pictures(folder: &Path, count: usize) {
    std::fs::create_dir_all(folder).expect("a folder can be made");
    for i in 0..count {
        let grey = if i % 2 == 0 { 40 } else { 200 };
        image::RgbImage::from_pixel(64, 48, image::Rgb([grey; 3]))
            .save(folder.join(format!("{i:05}.png")))
            .expect("an image can be written");
    }
}
