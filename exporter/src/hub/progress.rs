//! Progress of a fetch on stderr: a bar for each file on a terminal, else a line for each.

use std::io::{self, IsTerminal};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::units::megabytes;

/// Files below this many bytes are shown without their size.
const LARGE: u64 = 100_000;

/// Shows the progress of fetching one model.
pub(super) struct Progress {
    what: String,
    bar: ProgressBar,
    has_terminal: bool,
}

impl Progress {
    pub(super) fn new(what: &str) -> Self {
        Progress {
            what: what.to_owned(),
            bar: ProgressBar::hidden(),
            has_terminal: io::stderr().is_terminal(),
        }
    }

    /// Starts a file of as many bytes as were announced.
    pub(super) fn begin(&mut self, file: &str, bytes: Option<u64>) {
        let size = bytes
            .filter(|&bytes| bytes >= LARGE)
            .map(|bytes| format!(", {}", megabytes(bytes)))
            .unwrap_or_default();
        if !self.has_terminal {
            tracing::info!("fetching {}: {file}{size}", self.what);
            return;
        }
        let style = ProgressStyle::with_template(
            "{msg}  {bar:24} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left",
        );
        self.bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::stderr())
            .with_style(style.expect("the template is sound"))
            .with_message(format!("{}: {file}", self.what));
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }

    /// Ends the file, complete or not.
    pub(super) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_counts_with_and_without_a_size() {
        for bytes in [Some(2_000_000), None] {
            let mut progress = Progress {
                has_terminal: true,
                ..Progress::new("owner/model")
            };
            progress.begin("model.safetensors", bytes);
            progress.add(500_000);
            assert_eq!(
                (progress.bar.position(), progress.bar.length()),
                (500_000, bytes)
            );
            progress.end();
        }
    }
}
