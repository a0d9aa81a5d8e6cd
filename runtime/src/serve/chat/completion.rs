//! The model's answer as a chat completion, or as the chunks of one. Pure: the id and the time are
//! passed in.

use serde_json::{Value, json};
use vlm::Answer;
use vlm::answer::{Token, TopToken};

use super::question::ChatQuestion;
use crate::openai::reply::{
    Choice, Chunk, ChunkChoice, Completion, Delta, Logprobs, ReplyMessage, TokenLogprob,
    TopLogprob, Usage,
};

/// What all parts of one reply share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// `chatcmpl-…`
    pub id: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The model that answers.
    pub model: String,
}

/// The content of a reply: the answer, or the object that holds it.
pub fn content(question: &ChatQuestion, answer: &Answer) -> String {
    match &question.form {
        Some(form) => form.content(winner(question, answer)),
        None => answer.text.clone(),
    }
}

/// The winning candidate as the request has it, byte for byte, so that the object fits its schema.
fn winner<'a>(question: &'a ChatQuestion, answer: &'a Answer) -> &'a str {
    let likeliest = answer
        .candidates
        .iter()
        .zip(&question.request.candidates)
        .max_by(|(a, _), (b, _)| a.probability.total_cmp(&b.probability));
    likeliest.map_or(&answer.text, |(_, text)| text)
}

/// A whole completion.
pub fn completion(
    head: Head,
    question: &ChatQuestion,
    answer: &Answer,
    routing: Value,
) -> Completion {
    let choice = Choice {
        index: 0,
        message: ReplyMessage {
            role: "assistant".into(),
            content: Some(content(question, answer)),
            refusal: None,
        },
        logprobs: question.logprobs.then(|| logprobs(&answer.tokens)),
        finish_reason: Some(answer.finish_reason.as_str().into()),
    };
    Completion {
        id: head.id,
        object: "chat.completion".into(),
        created: head.created,
        model: head.model,
        choices: vec![choice],
        usage: Some(usage(answer)),
        routing: Some(routing),
    }
}

/// Token counts of an answer.
pub fn usage(answer: &Answer) -> Usage {
    let (prompt_tokens, completion_tokens) =
        (answer.prompt_tokens as u64, answer.tokens.len() as u64);
    Usage {
        prompt_tokens,
        completion_tokens,
        total_tokens: prompt_tokens + completion_tokens,
    }
}

/// `{p, source, state}` of an answer, with every candidate's probability where there are any.
pub fn confidence(answer: &Answer) -> Value {
    let mut confidence = json!(answer.confidence);
    if !answer.candidates.is_empty() {
        let candidates = answer
            .candidates
            .iter()
            .map(|candidate| json!({"text": candidate.text, "probability": candidate.probability}));
        confidence["candidates"] = candidates.collect();
    }
    confidence
}

/// The log-probability of each token, and of the most likely alternatives.
pub fn logprobs(tokens: &[Token]) -> Logprobs {
    let top = |top: &TopToken| TopLogprob {
        token: top.text.clone(),
        logprob: f64::from(top.logprob),
        bytes: Some(top.text.clone().into_bytes()),
    };
    let entry = |token: &Token| TokenLogprob {
        token: token.text.clone(),
        logprob: f64::from(token.logprob),
        bytes: Some(token.text.clone().into_bytes()),
        top_logprobs: token.top.iter().map(top).collect(),
    };
    Logprobs {
        content: Some(tokens.iter().map(entry).collect()),
        refusal: None,
    }
}

impl Head {
    /// The first chunk: the role.
    pub fn opening(&self) -> Chunk {
        self.chunk(
            Delta {
                role: Some("assistant"),
                content: Some(String::new()),
            },
            None,
            None,
        )
    }

    /// More of the answer.
    pub fn addition(&self, content: String, logprobs: Option<Logprobs>) -> Chunk {
        self.chunk(
            Delta {
                role: None,
                content: Some(content),
            },
            logprobs,
            None,
        )
    }

    /// The last chunk of the answer: the finish reason and the `routing` object.
    pub fn finish(&self, finish_reason: &str, routing: Option<Value>) -> Chunk {
        Chunk {
            routing,
            ..self.chunk(Delta::default(), None, Some(finish_reason.to_owned()))
        }
    }

    /// The chunk after the answer: its token counts.
    pub fn usage(&self, usage: Usage) -> Chunk {
        Chunk {
            choices: Vec::new(),
            usage: Some(usage),
            ..self.opening()
        }
    }

    fn chunk(
        &self,
        delta: Delta,
        logprobs: Option<Logprobs>,
        finish_reason: Option<String>,
    ) -> Chunk {
        Chunk {
            id: self.id.clone(),
            object: "chat.completion.chunk",
            created: self.created,
            model: self.model.clone(),
            choices: vec![ChunkChoice {
                index: 0,
                delta,
                logprobs,
                finish_reason,
            }],
            usage: None,
            routing: None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use vlm::answer::{Candidate, Confidence, ConfidenceSource, FinishReason, Timings};

    use super::*;
    use crate::serve::chat;

    fn head() -> Head {
        Head {
            id: "chatcmpl-1".into(),
            created: 1_700_000_000,
            model: "nano".into(),
        }
    }

    fn question(fields: Value) -> ChatQuestion {
        let mut request = json!({"messages": [{"role": "user", "content": "Is it?"}]});
        request
            .as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        chat::read(request.to_string().as_bytes()).unwrap()
    }

    fn answer(candidates: &[(&str, f64)]) -> Answer {
        Answer {
            text: "yes".into(),
            finish_reason: FinishReason::Stop,
            tokens: vec![Token {
                id: 5,
                text: " yes".into(),
                logprob: -0.25,
                top: vec![TopToken {
                    id: 5,
                    text: " yes".into(),
                    logprob: -0.25,
                }],
            }],
            candidates: candidates
                .iter()
                .map(|&(text, probability)| Candidate {
                    text: text.into(),
                    score: -1.0,
                    probability,
                })
                .collect(),
            confidence: Confidence {
                p: 0.75,
                source: ConfidenceSource::Candidates,
            },
            prompt_tokens: 81,
            timings: Timings::default(),
            trace: None,
        }
    }

    #[test]
    fn a_scored_answer_is_given_in_its_object() {
        let schema = json!({"type": "object", "properties": {"verdict": {"type": "string", "enum": ["no", " yes"]}}, "required": ["verdict"]});
        let question = question(
            json!({"logprobs": true, "top_logprobs": 1, "response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        );
        let answer = answer(&[("no", 0.25), ("yes", 0.75)]);
        let reply = completion(
            head(),
            &question,
            &answer,
            json!({"where": "local", "confidence": confidence(&answer)}),
        );
        insta::assert_snapshot!(serde_json::to_string(&reply).unwrap(), @r#"{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"nano","choices":[{"index":0,"message":{"role":"assistant","content":"{\"verdict\":\" yes\"}","refusal":null},"logprobs":{"content":[{"token":" yes","logprob":-0.25,"bytes":[32,121,101,115],"top_logprobs":[{"token":" yes","logprob":-0.25,"bytes":[32,121,101,115]}]}],"refusal":null},"finish_reason":"stop"}],"usage":{"prompt_tokens":81,"completion_tokens":1,"total_tokens":82},"routing":{"where":"local","confidence":{"p":0.75,"source":"candidates","state":"uncertified","candidates":[{"text":"no","probability":0.25},{"text":"yes","probability":0.75}]}}}"#);
    }

    #[test]
    fn chunks_carry_the_same_head() {
        let chunks = [
            head().opening(),
            head().addition("yes".into(), None),
            head().finish("stop", Some(json!({"where": "local"}))),
            head().usage(usage(&answer(&[]))),
        ];
        let lines: Vec<_> = chunks
            .iter()
            .map(|chunk| serde_json::to_string(chunk).unwrap())
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"nano","choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}
        {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"nano","choices":[{"index":0,"delta":{"content":"yes"},"logprobs":null,"finish_reason":null}]}
        {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"nano","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"routing":{"where":"local"}}
        {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"nano","choices":[],"usage":{"prompt_tokens":81,"completion_tokens":1,"total_tokens":82}}
        "#);
    }
}
