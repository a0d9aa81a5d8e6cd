//! What is wrong with a configuration, all of it at once, with places.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// Problems told of one file. Past it the rest is counted: a file this wrong is another kind of
/// file.
const PROBLEMS_MAX: usize = 100;

/// Everything that is wrong with one `egret.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    file: String,
    problems: Vec<Problem>,
    untold: usize,
}

/// One thing that is wrong, where it is, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
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
    pub cure: String,
}

impl ConfigErrors {
    /// One problem of the whole file, which could not be looked into.
    pub(super) fn whole(file: &str, complaint: Complaint) -> Self {
        let problems = Problems::new("");
        problems.add(0..0, String::new(), complaint);
        problems.into_errors(file)
    }

    /// The problems, in the order of the file. Never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            let Problem {
                line,
                column,
                key,
                found,
                expected,
                cure,
            } = problem;
            let colon = if key.is_empty() { "" } else { ": " };
            write!(
                f,
                "{}:{line}:{column}: {key}{colon}found {found}, expected {expected}\n    cure: {cure}",
                self.file
            )?;
        }
        if self.untold > 0 {
            write!(f, "\n{}: and {} more", self.file, self.untold)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

/// A [`Problem`] that does not know its place yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Complaint {
    pub(super) found: String,
    pub(super) expected: String,
    pub(super) cure: String,
}

impl Complaint {
    pub(super) fn new(
        found: impl Into<String>,
        expected: impl Into<String>,
        cure: impl Into<String>,
    ) -> Self {
        Self {
            found: found.into(),
            expected: expected.into(),
            cure: cure.into(),
        }
    }
}

/// The problems of a file while it is walked.
pub(super) struct Problems<'t> {
    text: &'t str,
    list: RefCell<Vec<(usize, String, Complaint)>>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            list: RefCell::default(),
        }
    }

    pub(super) fn add(&self, at: Range<usize>, key: String, complaint: Complaint) {
        self.list.borrow_mut().push((at.start, key, complaint));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.list.borrow().is_empty()
    }

    /// Line of a byte offset, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.place(offset).0
    }

    pub(super) fn into_errors(self, file: &str) -> ConfigErrors {
        let mut list = self.list.take();
        list.sort_by_key(|(offset, ..)| *offset);
        let untold = list.len().saturating_sub(PROBLEMS_MAX);
        // Places are looked for in those that are told alone: each is a walk through the file.
        let told = list.into_iter().take(PROBLEMS_MAX).map(
            |(
                offset,
                key,
                Complaint {
                    found,
                    expected,
                    cure,
                },
            )| {
                let (line, column) = self.place(offset);
                Problem {
                    line,
                    column,
                    key,
                    found,
                    expected,
                    cure,
                }
            },
        );
        let problems = told.collect();
        ConfigErrors {
            file: file.to_owned(),
            problems,
            untold,
        }
    }

    fn place(&self, offset: usize) -> (usize, usize) {
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
