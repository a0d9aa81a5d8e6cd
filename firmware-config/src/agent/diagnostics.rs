//! Diagnostics: everything that is wrong with a configuration, in the order of the file.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;

/// Most diagnostics that are kept of one file; the rest are counted.
pub(super) const DIAGNOSTICS_MAX: usize = 100;

/// Everything that is wrong with one `egret.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    diagnostics: Vec<Diagnostic>,
    omitted: usize,
}

/// One thing that is wrong, where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Path of the key, such as `camera[0].rule[1].threshold`; empty for the whole file.
    pub key: String,
    /// What the file has there.
    pub found: String,
    /// What it should have.
    pub expected: String,
    /// What to write or do.
    pub help: String,
}

impl ConfigErrors {
    /// One diagnostic of the whole file, which was not parsed.
    pub(super) fn whole(file: &str, mismatch: Mismatch) -> Self {
        let diagnostics = Diagnostics::new("");
        diagnostics.add(0..0, String::new(), mismatch);
        diagnostics.into_errors(file)
    }

    /// The diagnostics, in the order of the file. Never empty.
    #[must_use]
    pub fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, diagnostic) in self.diagnostics.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let Diagnostic {
                line,
                column,
                key,
                found,
                expected,
                help,
            } = diagnostic;
            let colon = if key.is_empty() { "" } else { ": " };
            write!(
                f,
                "{}:{line}:{column}: {key}{colon}found {found}, expected {expected}\n    help: {help}",
                self.file
            )?;
        }
        if self.omitted > 0 {
            write!(f, "\n{}: and {} more", self.file, self.omitted)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A [`Diagnostic`] without its position and key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) found: String,
    pub(super) expected: String,
    pub(super) help: String,
}

impl Mismatch {
    pub(super) fn new(
        found: impl Into<String>,
        expected: impl Into<String>,
        help: impl Into<String>,
    ) -> Self {
        Self {
            found: found.into(),
            expected: expected.into(),
            help: help.into(),
        }
    }
}

/// Collects the diagnostics of a file while it is parsed.
pub(super) struct Diagnostics<'t> {
    text: &'t str,
    list: RefCell<Vec<(usize, String, Mismatch)>>,
    omitted: Cell<usize>,
}

impl<'t> Diagnostics<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            list: RefCell::default(),
            omitted: Cell::default(),
        }
    }

    pub(super) fn add(&self, at: Range<usize>, key: String, mismatch: Mismatch) {
        self.list.borrow_mut().push((at.start, key, mismatch));
    }

    /// Counts `count` diagnostics that come after [`DIAGNOSTICS_MAX`] others of the file.
    pub(super) fn omit(&self, count: usize) {
        self.omitted.set(self.omitted.get() + count);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.position(offset).0
    }

    pub(super) fn into_errors(self, file: &str) -> ConfigErrors {
        let mut list = self.list.take();
        list.sort_by_key(|(offset, ..)| *offset);
        let omitted = self.omitted.get() + list.len().saturating_sub(DIAGNOSTICS_MAX);
        // Positions are computed for the kept ones alone: each takes a walk through the file.
        let kept = list.into_iter().take(DIAGNOSTICS_MAX).map(
            |(
                offset,
                key,
                Mismatch {
                    found,
                    expected,
                    help,
                },
            )| {
                let (line, column) = self.position(offset);
                Diagnostic {
                    line,
                    column,
                    key,
                    found,
                    expected,
                    help,
                }
            },
        );
        let diagnostics = kept.collect();
        ConfigErrors {
            file: file.to_owned(),
            diagnostics,
            omitted,
        }
    }

    /// Line and column of a byte offset, both from 1.
    fn position(&self, offset: usize) -> (usize, usize) {
        let mut end = offset.min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        (
            before.matches('\n').count() + 1,
            before[line_start..].chars().count() + 1,
        )
    }
}
