//! Tables with places: reads keys out of one table, adds what is wrong to the file's list of
//! problems, and in the end every key that was not asked for.

use std::cell::RefCell;
use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problems::{Complaint, Problems};
use super::value::{Checked, found, nearest};

/// One table of the file.
pub(super) struct Section<'t> {
    problems: &'t Problems<'t>,
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
        problems: &'t Problems<'t>,
        path: String,
        at: Range<usize>,
        table: &'t DeTable<'t>,
    ) -> Self {
        Self {
            problems,
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

    /// Adds a problem for every key that was not asked for.
    fn finish(self) {
        let known = self.known.take();
        for key in self.table.keys() {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let cure = match nearest(key.get_ref(), known.iter().copied()) {
                Some(near) => format!("did you mean {near}?"),
                None => "remove it".to_owned(),
            };
            let name: String = key.get_ref().chars().take(64).collect();
            self.complain(
                key.span(),
                name,
                Complaint::new(
                    "an unknown key",
                    format!("one of {}", known.join(", ")),
                    cure,
                ),
            );
        }
    }

    /// Whether the key is there, right or wrong.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Where the value of `key` stands; where the table starts if there is none.
    pub(super) fn place(&self, key: &'static str) -> Range<usize> {
        self.value(key).map_or(self.at.clone(), Spanned::span)
    }

    /// Adds a problem with one key of this table.
    pub(super) fn complain(&self, at: Range<usize>, key: impl Display, complaint: Complaint) {
        self.problems.add(at, join(&self.path, key), complaint);
    }

    /// The value of a key that may be missing; `None` when it is, or is wrong.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        check: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Option<T> {
        let value = self.value(key)?;
        check(value.get_ref())
            .map_err(|complaint| self.complain(value.span(), key, complaint))
            .ok()
    }

    /// The value of a key that must be there; `None` when it is not, or is wrong: either way the
    /// file has a problem.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        check: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Option<T> {
        if !self.has(key) {
            self.complain(
                self.at.clone(),
                key,
                Complaint::new("nothing", "this key", format!("add {key} = {example}")),
            );
        }
        self.optional(key, check)
    }

    /// The checked items of an array of at most `max`, with their places; empty when there is none.
    pub(super) fn list<T>(
        &self,
        key: &'static str,
        max: usize,
        check: impl Fn(&DeValue<'_>) -> Checked<T>,
    ) -> Vec<(T, Range<usize>)> {
        let items = self.items(key, max, "an array", "write it in brackets: [\"…\"]");
        let checked = items.enumerate().filter_map(|(index, item)| {
            let problem =
                |complaint| self.complain(item.span(), format_args!("{key}[{index}]"), complaint);
            Some((check(item.get_ref()).map_err(problem).ok()?, item.span()))
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
                let section = Section::new(self.problems, path, value.span(), table);
                Some(section.parse(parse))
            }
            other => {
                let cure = format!("write [{path}] once, with its keys below");
                self.complain(
                    value.span(),
                    key,
                    Complaint::new(found(other), "a table", cure),
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
                    self.problems,
                    join(&self.path, format_args!("{key}[{index}]")),
                    item.span(),
                    table,
                )),
                other => {
                    self.complain(
                        item.span(),
                        format_args!("{key}[{index}]"),
                        Complaint::new(found(other), "a table", header.as_str()),
                    );
                    None
                }
            });
        sections.collect()
    }

    /// Complains of every id that an earlier section has too.
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
                let line = section.problems.line(first.place("id").start);
                let complaint = Complaint::new(
                    format!("{own:?} again, first on line {line}"),
                    format!("every {kind} to have its own id"),
                    "rename one",
                );
                section.complain(section.place("id"), "id", complaint);
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
        cure: &str,
    ) -> impl Iterator<Item = &'t Spanned<DeValue<'t>>> {
        let items = self.value(key).and_then(|value| {
            let array = value.get_ref().as_array();
            match array {
                None => self.complain(
                    value.span(),
                    key,
                    Complaint::new(found(value.get_ref()), expected, cure),
                ),
                Some(array) if array.len() > max => {
                    self.complain(
                        value.span(),
                        key,
                        Complaint::new(
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
