//! What a person sees while the demo runs: one line for each answer, one for each word of the pool.

use super::Out;
use crate::decide::router::Target;
use crate::deliver::event::Settled;
use crate::observe::LocalAnswer;
use crate::pool::EscalationError;

/// Prints lines, with emphasis where there is a terminal.
#[derive(Debug, Clone)]
pub(super) struct View {
    out: Out,
    emphasis: bool,
}

impl View {
    pub(super) fn new(out: Out) -> View {
        View {
            out,
            emphasis: out.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    pub(super) fn line(&self, text: &str) {
        self.out.line(text);
    }

    /// A local answer, and where it goes.
    pub(super) fn answer(&self, answer: &LocalAnswer) {
        let reasons = answer
            .route
            .reasons
            .iter()
            .map(|reason| reason.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let goes = match answer.route.target {
            Target::Local => format!("kept on the box ({reasons})"),
            Target::Escalate => self.strong(&format!("asking the pool ({reasons})")),
        };
        self.line(&format!(
            "{cam:<8} {frame:<11} {question:<28} {answer}  {goes}",
            cam = answer.cam,
            frame = answer.name.as_deref().unwrap_or_default(),
            question = answer.question,
            answer = said(&answer.answer),
        ));
    }

    /// What came of an escalation.
    pub(super) fn outcome(&self, asked: &LocalAnswer, result: &Result<Settled, EscalationError>) {
        let heard = match result {
            Ok(pool) => {
                let change = if pool.text == asked.answer.text {
                    "agrees"
                } else {
                    "corrects"
                };
                format!(
                    "{}  {} {change}, {} ms",
                    said(pool),
                    pool.by.model,
                    pool.by.total.as_millis()
                )
            }
            Err(error) => format!("no answer ({}): the box's stands", error.reason.as_str()),
        };
        let head = format!(
            "{:<8} {:<11} {:<28}",
            asked.cam,
            asked.name.as_deref().unwrap_or_default(),
            format!("  … {}", asked.question)
        );
        self.line(&self.strong(&format!("{head} {heard}")));
    }

    fn strong(&self, text: &str) -> String {
        if self.emphasis {
            format!("\u{1b}[1m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

fn said(answer: &Settled) -> String {
    match answer.confidence {
        Some(p) => format!("{:<5} {p:.2}", answer.text),
        None => format!("{:<5}     ", answer.text),
    }
}
