//! The verification report: `report.json` for programs, a table for people, a verdict for the exit
//! code.
//!
//! The same bundle on the same backend gives the same bytes: nothing in it is timed. A gate without
//! a limit is written with its value as `not_gated`, so it cannot be mistaken for one that passed.

use std::fmt;

use firmware_config::manifest::{Graphs, Precision};
use serde::Serialize;

/// How close a bundle is to its checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VerificationReport {
    verdict: Verdict,
    /// Model name of the bundle.
    pub name: String,
    /// How its weights are stored.
    pub precision: Precision,
    /// Whether the checkpoint's weight files are those that the manifest names.
    pub source_is_the_same: bool,
    /// What ran the bundle.
    pub backend: Backend,
    /// What the verdict rests on.
    pub gates: Vec<Gate>,
    /// Companion files.
    pub files: FileComparison,
    /// Constants of the graphs.
    pub weights: WeightComparison,
    /// Outputs of the graphs over all probes: image features, embeddings of the whole vocabulary,
    /// logits of every position.
    pub graphs: Graphs<Distance>,
    /// Next-token distributions along the answers.
    pub steps: Steps,
    /// Answers, token by token.
    pub answers: Answers,
}

/// Whether every gate that has a limit was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The bundle is its checkpoint, as near as its precision allows.
    Pass,
    /// The bundle is not its checkpoint.
    Fail,
}

/// What ran the bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// `ort` or `tract`.
    pub name: String,
    /// The execution provider that really ran.
    pub execution_provider: String,
}

/// Companion files against the checkpoint's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileComparison {
    /// Files compared.
    pub compared: usize,
    /// Those that differ in the bundle.
    pub differ: Vec<String>,
}

/// Constants of the graphs against the checkpoint's tensors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightComparison {
    /// Tensors of the checkpoint.
    pub tensors: usize,
    /// Those that are missing from the graphs, or differ there.
    pub differ: Vec<WeightDifference>,
}

/// A tensor that is missing from the graphs, or differs there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WeightDifference {
    /// Name in the checkpoint.
    pub name: String,
    /// What is wrong.
    #[serde(rename = "problem")]
    pub diagnostic: String,
}

/// Distance of a bundle's tensor from the reference's, over everything measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Distance {
    /// Values compared.
    pub values: usize,
    /// Largest absolute difference.
    pub error_max: f64,
    /// Mean absolute difference.
    pub error_mean: f64,
    /// Largest absolute difference over the reference's largest absolute value.
    pub error_relative: f64,
    /// Cosine of the angle between the two, 1 where they point the same way.
    pub cosine: f64,
}

/// Next-token distributions along the answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Steps {
    /// Tokens answered.
    pub count: usize,
    /// Share of them where both sides have the same most likely token, 0..=1.
    pub top1_agreement: f64,
    /// Mean Kullback-Leibler divergence from the reference, in nats.
    pub kl_mean: f64,
    /// The largest.
    pub kl_max: f64,
}

/// Greedy answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answers {
    /// Probes asked.
    pub asked: usize,
    /// Answers that are the reference's, token by token.
    pub equal: usize,
    /// Each of them.
    pub list: Vec<Answer>,
}

/// The greedy answer to one probe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Answer {
    /// The probe.
    pub probe: String,
    /// The bundle's answer.
    pub text: String,
    /// Its length in tokens, the end token included.
    pub tokens: usize,
    /// Whether the reference's answer is the same.
    pub is_equal: bool,
    /// Index of the first token that differs.
    pub first_difference: Option<usize>,
}

/// One condition of the verdict.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Gate {
    /// What is measured.
    pub name: String,
    /// The value measured.
    pub value: f64,
    /// What it must be; `None` where this precision has no limit yet.
    pub limit: Option<Limit>,
    /// Whether it is within the limit.
    pub outcome: Outcome,
}

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

/// Whether a gate was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It passed.
    Pass,
    /// It failed.
    Fail,
    /// It has no limit.
    NotGated,
}

impl Gate {
    fn new(name: impl Into<String>, value: f64, limit: Option<Limit>) -> Self {
        let outcome = match limit {
            None => Outcome::NotGated,
            Some(Limit::AtLeast(limit)) if value >= limit => Outcome::Pass,
            Some(Limit::AtMost(limit)) if value <= limit => Outcome::Pass,
            Some(_) => Outcome::Fail,
        };
        Gate {
            name: name.into(),
            value,
            limit,
            outcome,
        }
    }
}

/// The limits of each precision, in one place.
struct Limits {
    /// Of each graph's outputs.
    cosine: Option<Limit>,
    /// Largest error over the largest value, of each graph's outputs. Shows a single wrong value,
    /// which a cosine over millions does not.
    error_relative: Option<Limit>,
    top1_agreement: Option<Limit>,
    kl_mean: Option<Limit>,
    /// Share of greedy answers that are the reference's.
    answers: Option<Limit>,
}

impl Limits {
    fn of(precision: Precision) -> Self {
        use Limit::{AtLeast, AtMost};
        let none = Limits {
            cosine: None,
            error_relative: None,
            top1_agreement: None,
            kl_mean: None,
            answers: None,
        };
        match precision {
            // Only the order of summation differs.
            Precision::Fp32 => Limits {
                cosine: Some(AtLeast(0.99999)),
                error_relative: Some(AtMost(1e-4)),
                top1_agreement: Some(AtLeast(1.0)),
                kl_mean: Some(AtMost(1e-6)),
                answers: Some(AtLeast(1.0)),
            },
            Precision::Fp16 => Limits {
                cosine: Some(AtLeast(0.9999)),
                ..none
            },
            // Measured and reported only, until the precision is good enough for a limit.
            Precision::Int8 => none,
        }
    }
}

impl VerificationReport {
    /// The report on what was measured, with its verdict.
    #[expect(
        clippy::too_many_arguments,
        reason = "one for each section of the report, made once"
    )]
    pub(crate) fn new(
        (name, precision): (&str, Precision),
        source_is_the_same: bool,
        backend: Backend,
        files: FileComparison,
        weights: WeightComparison,
        graphs: Graphs<Distance>,
        steps: Steps,
        answers: Answers,
    ) -> Self {
        let limits = Limits::of(precision);
        let none = Some(Limit::AtMost(0.0));
        let mut gates = vec![
            Gate::new("files that differ", files.differ.len() as f64, none),
            Gate::new("weights that differ", weights.differ.len() as f64, none),
        ];
        for (part, distance) in graphs.iter() {
            let name = |measure| format!("{} {measure}", part.as_str());
            gates.push(Gate::new(name("cosine"), distance.cosine, limits.cosine));
            gates.push(Gate::new(
                name("relative error"),
                distance.error_relative,
                limits.error_relative,
            ));
        }
        gates.extend([
            Gate::new(
                "top-1 agreement",
                steps.top1_agreement,
                limits.top1_agreement,
            ),
            Gate::new("mean KL divergence", steps.kl_mean, limits.kl_mean),
            Gate::new(
                "equal answers",
                answers.equal as f64 / answers.asked.max(1) as f64,
                limits.answers,
            ),
        ]);
        let failed = gates.iter().any(|gate| gate.outcome == Outcome::Fail);
        VerificationReport {
            verdict: if failed { Verdict::Fail } else { Verdict::Pass },
            name: name.to_owned(),
            precision,
            source_is_the_same,
            backend,
            gates,
            files,
            weights,
            graphs,
            steps,
            answers,
        }
    }

    /// Whether every gate that has a limit was passed.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The bytes of `report.json`.
    ///
    /// # Panics
    /// Never: a report holds only text, finite numbers and lists.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("a report is plain data") + "\n"
    }
}

/// The most lines of one list that are shown to people; the JSON has them all.
const SHOWN: usize = 10;

impl fmt::Display for VerificationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Backend {
            name: backend,
            execution_provider,
        } = &self.backend;
        writeln!(
            f,
            "{} ({}) on {backend} ({execution_provider})",
            self.name,
            self.precision.as_str()
        )?;
        if !self.source_is_the_same {
            writeln!(
                f,
                "the checkpoint's weight files are not those that the bundle was made from"
            )?;
        }
        // The gates.
        writeln!(f)?;
        for gate in &self.gates {
            let (limit, outcome) = (limit_text(gate.limit), outcome_text(gate.outcome));
            writeln!(
                f,
                "  {:<38}{:>12}  {limit:<18}{outcome}",
                gate.name,
                number(gate.value)
            )?;
        }
        // What differs, each list up to a length.
        let Answers { asked, equal, list } = &self.answers;
        writeln!(
            f,
            "\n{equal} of {asked} answers are the reference's, {} tokens in total",
            self.steps.count
        )?;
        for answer in list.iter().filter(|answer| !answer.is_equal).take(SHOWN) {
            writeln!(
                f,
                "  {}: differs from token {} on: {:?}",
                answer.probe,
                answer.first_difference.unwrap_or(0),
                answer.text
            )?;
        }
        for file in self.files.differ.iter().take(SHOWN) {
            writeln!(f, "  {file} differs from the checkpoint's")?;
        }
        for WeightDifference { name, diagnostic } in self.weights.differ.iter().take(SHOWN) {
            writeln!(f, "  {name}: {diagnostic}")?;
        }
        if self.weights.differ.len() > SHOWN {
            writeln!(
                f,
                "  … and {} more weights",
                self.weights.differ.len() - SHOWN
            )?;
        }
        // The verdict.
        write!(
            f,
            "\n{}",
            if self.verdict == Verdict::Pass {
                "pass"
            } else {
                "FAIL"
            }
        )
    }
}

fn limit_text(limit: Option<Limit>) -> String {
    match limit {
        None => String::new(),
        Some(Limit::AtLeast(limit)) => format!("at least {limit}"),
        Some(Limit::AtMost(limit)) => format!("at most {}", number(limit)),
    }
}

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pass => "pass",
        Outcome::Fail => "FAIL",
        Outcome::NotGated => "not gated",
    }
}

/// Whole numbers without digits, small and large ones in scientific notation, shares with enough
/// digits to distinguish 0.99999 from 1.
fn number(value: f64) -> String {
    if value.fract() == 0.0 && value < 1e9 {
        format!("{value}")
    } else if value.abs() < 1e-2 || value >= 1e9 {
        format!("{value:.2e}")
    } else {
        format!("{value:.7}")
    }
}

#[cfg(test)]
mod tests;
