//! Labelled images: one JSON object per line,
//! `{"image":"rel/path.jpg","question":"…","answer":"yes"}`.
//!
//! `candidates`, `family` and `camera` are optional, several rows may share an image, unknown keys
//! are ignored. Bad rows do not stop the good ones: they are listed with their line numbers.

use serde::Deserialize;

/// Rows read from one file at most.
pub const ROWS_MAX: usize = 1_000_000;

/// The right answer to one question about one image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Label {
    /// Path of the image below the images folder, with forward slashes.
    pub image: String,
    /// The question asked about it.
    pub question: String,
    /// The right answer.
    pub answer: String,
    /// The answers to choose from; empty for free text.
    #[serde(default)]
    pub candidates: Vec<String>,
    /// Kind of question (`yes_no`, `count`, …).
    #[serde(default)]
    pub family: Option<String>,
    /// Camera that took the image.
    #[serde(default)]
    pub camera: Option<String>,
}

/// A row that could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadRow {
    /// 1-based line number.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// Reads labels from JSON lines; empty lines are skipped.
pub fn parse(text: &str) -> (Vec<Label>, Vec<BadRow>) {
    let mut labels = Vec::new();
    let mut bad = Vec::new();
    for (index, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
    {
        let line_number = index + 1;
        if labels.len() + bad.len() == ROWS_MAX {
            bad.push(BadRow {
                line: line_number,
                reason: format!("more than {ROWS_MAX} rows; the rest is not read"),
            });
            break;
        }
        match serde_json::from_str::<Label>(line)
            .map_err(|error| error.to_string())
            .and_then(check)
        {
            Ok(label) => labels.push(label),
            Err(reason) => bad.push(BadRow {
                line: line_number,
                reason,
            }),
        }
    }
    (labels, bad)
}

fn check(label: Label) -> Result<Label, String> {
    let Label {
        image,
        question,
        answer,
        candidates,
        ..
    } = &label;
    for (name, text) in [("image", image), ("question", question), ("answer", answer)] {
        if text.trim().is_empty() {
            return Err(format!("`{name}` is empty"));
        }
    }
    if !candidates.is_empty() && !candidates.contains(answer) {
        return Err(format!(
            "answer {answer:?} is not one of the candidates {candidates:?}"
        ));
    }
    Ok(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_rows_are_read_and_bad_rows_are_listed_with_their_lines() {
        let text = r#"{"image":"a.jpg","question":"q?","answer":"yes","candidates":["yes","no"],"extra":1}

{"image":"a.jpg","question":"q?"}
{"image":"a.jpg","question":"q?","answer":"maybe","candidates":["yes","no"]}
{"image":"","question":"q?","answer":"yes"}
not json
{"image":"b.jpg","question":"free?","answer":"a red car"}"#;
        let (labels, bad) = parse(text);
        assert_eq!(
            labels
                .iter()
                .map(|label| label.image.as_str())
                .collect::<Vec<_>>(),
            ["a.jpg", "b.jpg"]
        );
        assert_eq!(
            bad.iter().map(|row| row.line).collect::<Vec<_>>(),
            [3, 4, 5, 6]
        );
        assert!(bad[1].reason.contains("maybe"), "{:?}", bad[1]);
    }
}
