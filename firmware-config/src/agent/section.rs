//! Tables: reads the keys of one table, and adds a diagnostic for every value that is wrong and
//! every key that was not asked for.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostics::{DIAGNOSTICS_MAX, Diagnostics, Mismatch};
use super::value::{Checked, found, nearest};

/// One table of the file.
pub(super) struct Section<'t> {
    diagnostics: &'t Diagnostics<'t>,
    /// Path of the table, empty for the root.
    path: String,
    at: Range<usize>,
    table: &'t DeTable<'t>,
    /// Keys that were asked for, in the order of the first time: all that the table may have.
    known: RefCell<Vec<&'static str>>,
}

impl<'t> Section<'t> {
    /// The table at `path`, to be read by [`Section::parse`].
    pub(super) fn new(
        diagnostics: &'t Diagnostics<'t>,
        path: String,
        at: Range<usize>,
        table: &'t DeTable<'t>,
    ) -> Self {
        Self {
            diagnostics,
            path,
            at,
            table,
            known: RefCell::default(),
        }
    }

    /// Reads the table with `parse`, which asks for every key that a table of this kind may have,
    /// whether or not the others are right.
    pub(super) fn parse<T>(self, parse: impl FnOnce(&Self) -> T) -> T {
        let parsed = parse(&self);
        self.finish();
        parsed
    }

    /// Adds a diagnostic for every key that was not asked for.
    fn finish(self) {
        let known = self.known.take();
        let mut unknown: Vec<_> = self
            .table
            .keys()
            .filter(|key| !known.contains(&key.get_ref().as_ref()))
            .collect();
        unknown.sort_by_key(|key| key.span().start);
        // Those behind the first DIAGNOSTICS_MAX are never shown, so they need no text.
        let shown = unknown.len().min(DIAGNOSTICS_MAX);
        self.diagnostics.omit(unknown.len() - shown);
        for key in &unknown[..shown] {
            let help = match nearest(key.get_ref(), known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => "remove it".to_owned(),
            };
            let name: String = key.get_ref().chars().take(64).collect();
            self.report(
                key.span(),
                name,
                Mismatch::new(
                    "an unknown key",
                    format!("one of {}", known.join(", ")),
                    help,
                ),
            );
        }
    }

    /// Whether the key is there, valid or not.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// The span of the value of `key`, or of the table if there is none.
    pub(super) fn span_of(&self, key: &'static str) -> Range<usize> {
        self.value(key).map_or(self.at.clone(), Spanned::span)
    }

    /// Adds a diagnostic of one key of this table.
    pub(super) fn report(&self, at: Range<usize>, key: impl Display, mismatch: Mismatch) {
        self.diagnostics.add(at, join(&self.path, key), mismatch);
    }

    /// The value of a key that may be missing; `None` when it is missing or invalid.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        check: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        check(value.get_ref())
            .map_err(|mismatch| self.report(value.span(), key, mismatch))
            .ok()
    }

    /// The value of a key that must be there; `None`, with a diagnostic, when it is missing or
    /// invalid.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        check: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.report(
                self.at.clone(),
                key,
                Mismatch::new("nothing", "this key", format!("add {key} = {example}")),
            );
        }
        self.optional(key, check)
    }

    /// The valid items of an array of at most `max`, with their spans; empty when there is none.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        max: usize,
        check: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Vec<(T, Range<usize>)> {
        let items = self.items(key, max, "an array", "write it in brackets: [\"…\"]");
        let checked = items.enumerate().filter_map(|(index, item)| {
            let diagnostic =
                |mismatch| self.report(item.span(), format_args!("{key}[{index}]"), mismatch);
            Some((check(item.get_ref()).map_err(diagnostic).ok()?, item.span()))
        });
        checked.collect()
    }

    /// The table of `key`, read with `parse`, if it is there.
    pub(super) fn table<T>(
        &self,
        key: &'static str,
        parse: impl FnOnce(&Section<'t>) -> T,
    ) -> Option<T> {
        let value = self.value(key)?;
        let path = join(&self.path, key);
        match value.get_ref() {
            DeValue::Table(table) => {
                let section = Section::new(self.diagnostics, path, value.span(), table);
                Some(section.parse(parse))
            }
            other => {
                let help = format!("write [{path}] once, with its keys below");
                self.report(
                    value.span(),
                    key,
                    Mismatch::new(found(other), "a table", help),
                );
                None
            }
        }
    }

    /// The tables of an array of at most `max` tables, each to be read by [`Section::parse`]; none
    /// when the key is missing.
    pub(super) fn tables(&self, key: &'static str, max: usize) -> Vec<Section<'t>> {
        let header = format!(
            "write [[{}]] for each",
            if key == "rule" { "camera.rule" } else { key }
        );
        let items = self.items(key, max, "an array of tables", &header);
        let sections = items
            .enumerate()
            .filter_map(|(index, item)| match item.get_ref() {
                DeValue::Table(table) => Some(Section::new(
                    self.diagnostics,
                    join(&self.path, format_args!("{key}[{index}]")),
                    item.span(),
                    table,
                )),
                other => {
                    self.report(
                        item.span(),
                        format_args!("{key}[{index}]"),
                        Mismatch::new(found(other), "a table", header.as_str()),
                    );
                    None
                }
            });
        sections.collect()
    }

    /// Reports every id that an earlier section has too.
    pub(super) fn unique(sections: &[Section<'t>], kind: &str) {
        for (index, section) in sections.iter().enumerate() {
            let id = |section: &Section<'t>| {
                section
                    .value("id")
                    .and_then(|id| id.get_ref().as_str().map(str::to_owned))
            };
            let Some(own) = id(section) else { continue };
            if let Some(first) = sections[..index]
                .iter()
                .find(|earlier| id(earlier).as_ref() == Some(&own))
            {
                let line = section.diagnostics.line(first.span_of("id").start);
                let mismatch = Mismatch::new(
                    format!("{own:?} again, first on line {line}"),
                    format!("every {kind} to have its own id"),
                    "rename one",
                );
                section.report(section.span_of("id"), "id", mismatch);
            }
        }
    }

    fn value(&self, key: &'static str) -> Option<&'t Spanned<DeValue<'t>>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        self.table.get(key)
    }

    fn items(
        &self,
        key: &'static str,
        max: usize,
        expected: &str,
        help: &str,
    ) -> impl Iterator<Item = &'t Spanned<DeValue<'t>>> {
        let items = self.value(key).and_then(|value| {
            let array = value.get_ref().as_array();
            match array {
                None => self.report(
                    value.span(),
                    key,
                    Mismatch::new(found(value.get_ref()), expected, help),
                ),
                Some(array) if array.len() > max => {
                    self.report(
                        value.span(),
                        key,
                        Mismatch::new(
                            format!("{} of them", array.len()),
                            format!("at most {max}"),
                            "remove some",
                        ),
                    );
                }
                Some(_) => {}
            }
            array
        });
        items.into_iter().flat_map(|array| array.iter()).take(max)
    }
}

fn join(path: &str, key: impl Display) -> String {
    if path.is_empty() {
        key.to_string()
    } else {
        format!("{path}.{key}")
    }
}
