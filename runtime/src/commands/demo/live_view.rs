//! The lines that the demo prints while it runs: one for each local answer, one for the outcome of
//! each pool call.

use super::Out;
use crate::decide::router::Target;
use crate::observe::LocalAnswer;
use crate::pool::EscalationError;
use crate::settled::Settled;

/// Prints lines, in bold where there is a terminal.
#[derive(Debug, Clone)]
pub(super) struct LiveView {
    out: Out,
    bold: bool,
}

impl LiveView {
    pub(super) fn new(out: Out) -> LiveView {
        LiveView {
            out,
            bold: out.is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }

    pub(super) fn line(&self, text: &str) {
        self.out.line(text);
    }

    /// A local answer and its route.
    pub(super) fn answer(&self, answer: &LocalAnswer) {
        let reasons = answer
            .route
            .reasons
            .iter()
            .map(|reason| reason.as_str())
            .collect::<Vec<_>>()
            .join(", ");
        let route = match answer.route.target {
            Target::Local => format!("kept on the box ({reasons})"),
            Target::Escalate => self.in_bold(&format!("asking the pool ({reasons})")),
        };
        self.line(&format!(
            "{cam:<8} {frame:<11} {question:<28} {answer}  {route}",
            cam = answer.cam,
            frame = answer.name.as_deref().unwrap_or_default(),
            question = answer.question,
            answer = with_confidence(&answer.answer),
        ));
    }

    /// The outcome of a pool call.
    pub(super) fn outcome(&self, asked: &LocalAnswer, result: &Result<Settled, EscalationError>) {
        let outcome = match result {
            Ok(pool) => {
                let change = if pool.text == asked.answer.text {
                    "agrees"
                } else {
                    "corrects"
                };
                format!(
                    "{}  {} {change}, {} ms",
                    with_confidence(pool),
                    pool.by.model,
                    pool.by.total.as_millis()
                )
            }
            Err(error) => format!("no answer ({}): the local one stays", error.reason.as_str()),
        };
        let head = format!(
            "{:<8} {:<11} {:<28}",
            asked.cam,
            asked.name.as_deref().unwrap_or_default(),
            format!("  … {}", asked.question)
        );
        self.line(&self.in_bold(&format!("{head} {outcome}")));
    }

    fn in_bold(&self, text: &str) -> String {
        if self.bold {
            format!("\u{1b}[1m{text}\u{1b}[0m")
        } else {
            text.to_owned()
        }
    }
}

fn with_confidence(answer: &Settled) -> String {
    match answer.confidence {
        Some(p) => format!("{:<5} {p:.2}", answer.text),
        None => format!("{:<5}     ", answer.text),
    }
}
