//! Every crate in the build has a licence that `deny.toml` allows. `cargo deny check` checks the
//! same, where it is installed.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::path::Path;
use std::process::Command;

use serde::Deserialize;
use toml::{Table, Value};

/// The fields of `cargo metadata` that are read here.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    version: String,
    license: Option<String>,
}

fn deny_toml() -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deny.toml");
    std::fs::read_to_string(path).unwrap().parse().unwrap()
}

fn strings(list: &Value) -> BTreeSet<&str> {
    list.as_array()
        .unwrap()
        .iter()
        .map(|item| item.as_str().unwrap())
        .collect()
}

/// The packages built for the targets of `deny.toml`, tests and build scripts included.
fn packages(deny: &Table) -> Vec<Package> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    for target in strings(&deny["graph"]["targets"]) {
        cargo.args(["--filter-platform", target]);
    }
    let output = cargo.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice::<Metadata>(&output.stdout)
        .unwrap()
        .packages
}

#[test]
fn every_crate_has_an_allowed_licence() {
    let deny = deny_toml();
    let allowed = strings(&deny["licenses"]["allow"]);
    let mut needed = BTreeSet::new();
    for Package {
        name,
        version,
        license,
    } in packages(&deny)
    {
        let license = license.unwrap_or_else(|| panic!("{name} {version} declares no licence"));
        let chosen = permitted(&license, &allowed);
        needed.extend(
            chosen
                .unwrap_or_else(|| panic!("{name} {version}: {license} is not among {allowed:?}")),
        );
    }
    assert_eq!(
        needed.into_iter().collect::<BTreeSet<_>>(),
        allowed.into_iter().map(str::to_owned).collect(),
        "deny.toml must allow only licences that a crate needs"
    );
}

#[test]
fn expressions_are_parsed_as_spdx_defines() {
    let allowed = BTreeSet::from(["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]);
    for (expression, chosen) in [
        ("MIT", Some("MIT")),
        ("GPL-3.0", None),
        ("Apache-2.0", None),
        (
            "Apache-2.0 WITH LLVM-exception",
            Some("Apache-2.0 WITH LLVM-exception"),
        ),
        ("GPL-3.0 OR MIT", Some("MIT")),
        ("GPL-3.0/MIT", Some("MIT")),
        ("MIT AND ISC", Some("MIT, ISC")),
        ("MIT AND GPL-3.0", None),
        ("(GPL-3.0 OR MIT) AND ISC", Some("MIT, ISC")),
        ("GPL-3.0 OR MIT AND ISC", Some("MIT, ISC")),
        ("ISC AND (GPL-3.0 OR (BSL-1.0 OR Zlib))", None),
    ] {
        let found = permitted(expression, &allowed).map(|chosen| chosen.join(", "));
        assert_eq!(found.as_deref(), chosen, "{expression}");
    }
}

/// The allowed licences that satisfy this SPDX expression, if there are any. A slash is the older
/// form of OR.
fn permitted(expression: &str, allowed: &BTreeSet<&str>) -> Option<Vec<String>> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let chosen = any(&mut words, allowed);
    assert_eq!(words.next(), None, "{expression} is not an SPDX expression");
    chosen
}

fn any<'a>(
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    allowed: &BTreeSet<&str>,
) -> Option<Vec<String>> {
    let mut chosen = all(words, allowed);
    while words.next_if_eq(&"OR").is_some() {
        let other = all(words, allowed);
        chosen = chosen.or(other);
    }
    chosen
}

fn all<'a>(
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    allowed: &BTreeSet<&str>,
) -> Option<Vec<String>> {
    let mut chosen = one(words, allowed);
    while words.next_if_eq(&"AND").is_some() {
        let other = one(words, allowed);
        chosen = chosen
            .zip(other)
            .map(|(chosen, other)| [chosen, other].concat());
    }
    chosen
}

fn one<'a>(
    words: &mut Peekable<impl Iterator<Item = &'a str>>,
    allowed: &BTreeSet<&str>,
) -> Option<Vec<String>> {
    let mut name = words
        .next()
        .expect("an operator is followed by an expression")
        .to_owned();
    if name == "(" {
        let chosen = any(words, allowed);
        assert_eq!(words.next(), Some(")"));
        return chosen;
    }
    if words.next_if_eq(&"WITH").is_some() {
        name = format!(
            "{name} WITH {}",
            words.next().expect("WITH is followed by an exception")
        );
    }
    allowed.contains(name.as_str()).then(|| vec![name])
}
