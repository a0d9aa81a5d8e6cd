//! The modules of a crate import each other one way: no cycle between those at its top.

use std::collections::{BTreeMap, BTreeSet};

use super::{code_lines, sources, without_tests};

/// The crates that are held to it.
const HELD: [&str; 5] = [
    "firmware-config/src",
    "devices/src",
    "vlm/src",
    "runtime/src",
    "exporter/src",
];

/// For each top-level module, the others that it imports, each with a file that does.
type Imports = BTreeMap<String, BTreeMap<String, String>>;

#[test]
fn modules_import_each_other_without_cycles() {
    for folder in HELD {
        let imports = imports(folder);
        assert!(
            imports.values().any(|imported| !imported.is_empty()),
            "{folder}: no imports found"
        );
        if let Some(cycle) = cycle(&imports) {
            panic!("{folder}: modules import each other in a cycle: {cycle}");
        }
    }
}

/// The imports of a crate's top-level modules, tests beside the code aside. A name that `lib.rs`
/// re-exports counts as its module's.
fn imports(folder: &str) -> Imports {
    let sources = sources(folder);
    let root = format!("{folder}/lib.rs");
    let (_, lib) = sources
        .iter()
        .find(|(name, _)| *name == root)
        .expect("a crate has a lib.rs");
    let lib = code(lib);
    let modules = declared(&lib);
    let reexports = reexports(&lib);
    let mut imports: Imports = modules
        .iter()
        .map(|module| (module.clone(), BTreeMap::new()))
        .collect();
    for (name, text) in &sources {
        let path = name[folder.len() + 1..].trim_end_matches(".rs");
        let path: Vec<&str> = path.split('/').collect();
        // Modules that only tests have are not declared in what is left of `lib.rs`.
        let Some(of_module) = imports
            .get_mut(path[0])
            .filter(|_| !path.contains(&"tests"))
        else {
            continue;
        };
        for item in imported(&code(text), path.len()) {
            let module = match reexports.get(&item) {
                Some(module) if !modules.contains(&item) => module.clone(),
                _ => item,
            };
            if module != path[0] && modules.contains(&module) {
                of_module.entry(module).or_insert_with(|| name.clone());
            }
        }
    }
    imports
}

/// The code of a file on one line: without comments, line breaks and what only tests have.
fn code(text: &str) -> String {
    let text = without_tests(text);
    let lines: Vec<&str> = code_lines(&text).collect();
    lines.join(" ")
}

/// The modules that `lib.rs` declares.
fn declared(lib: &str) -> BTreeSet<String> {
    lib.split(';')
        .filter_map(|item| item.rsplit_once("mod "))
        .map(|(_, name)| name.trim().to_owned())
        .collect()
}

/// The names that `lib.rs` re-exports, each with its module.
fn reexports(lib: &str) -> BTreeMap<String, String> {
    let mut names = BTreeMap::new();
    for item in lib.split(';') {
        let Some((module, items)) = item
            .rsplit_once("pub use ")
            .and_then(|(_, path)| path.split_once("::"))
        else {
            continue;
        };
        for name in items.trim_matches(['{', '}']).split(',') {
            names.insert(name.trim().to_owned(), module.to_owned());
        }
    }
    names
}

/// The first names after `crate::`, and after as many `super::` as lead to the root from a file
/// `depth` modules below it.
fn imported(code: &str, depth: usize) -> BTreeSet<String> {
    let up = "super::".repeat(depth);
    let roots = ["crate::", &up];
    let mut names = BTreeSet::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            // `pub(crate)` has no path, and a longer name may end in the word.
            if !code[..at].ends_with(|before: char| before.is_alphanumeric() || before == '_') {
                names.extend(first_names(&code[at + root.len()..]));
            }
        }
    }
    names
}

/// The name a path begins with; all of them where it begins with a group.
fn first_names(path: &str) -> Vec<String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let name = |text: &str| -> String { text.trim().chars().take_while(|&c| is_name(c)).collect() };
    let Some(group) = path.strip_prefix('{') else {
        return vec![name(path)];
    };
    let (mut names, mut depth, mut from) = (Vec::new(), 0, 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            ',' if depth == 0 => {
                names.push(name(&group[from..at]));
                from = at + 1;
            }
            '}' if depth == 0 => {
                names.push(name(&group[from..at]));
                break;
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
    names
}

/// One cycle, with the file that makes each step; `None` if there is none.
fn cycle(imports: &Imports) -> Option<String> {
    // A module that is done leads to no cycle.
    let mut done = BTreeSet::new();
    imports
        .keys()
        .find_map(|module| walk(module, imports, &mut Vec::new(), &mut done))
}

fn walk<'a>(
    module: &'a str,
    imports: &'a Imports,
    path: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(from) = path.iter().position(|&passed| passed == module) {
        path.push(module);
        let steps = path[from..].windows(2).map(|step| {
            format!(
                "{} imports {} ({})",
                step[0], step[1], imports[step[0]][step[1]]
            )
        });
        return Some(steps.collect::<Vec<_>>().join(", "));
    }
    if done.contains(module) {
        return None;
    }
    path.push(module);
    let found = imports[module]
        .keys()
        .find_map(|imported| walk(imported, imports, path, done));
    path.pop();
    done.insert(module);
    found
}

#[test]
fn a_cycle_is_reported_with_its_files() {
    let edge = |to: &str, file: &str| BTreeMap::from([(to.to_owned(), file.to_owned())]);
    let mut imports = Imports::from([
        ("a".into(), edge("b", "a.rs")),
        ("b".into(), edge("c", "b/x.rs")),
        ("c".into(), BTreeMap::new()),
    ]);
    assert_eq!(cycle(&imports), None);
    imports.insert("c".into(), edge("b", "c.rs"));
    assert_eq!(
        cycle(&imports).as_deref(),
        Some("b imports c (b/x.rs), c imports b (c.rs)")
    );
}

#[test]
fn imports_are_read_in_every_form() {
    let read = |text: &str, depth| imported(&code(text), depth).into_iter().collect::<Vec<_>>();
    let below_root = "use crate::{a::{b, c}, d};\nuse super::e::F;\npub(crate) fn f() -> crate::H {}\n\
         // crate::not_this\n#[cfg(test)]\nmod tests {\n    use crate::nor_this;\n}\n";
    assert_eq!(read(below_root, 1), ["H", "a", "d", "e"]);
    let deeper = "use super::sibling;\nuse super::super::g::G;\n";
    assert_eq!(read(deeper, 2), ["g"]);
    let lib = "pub mod a; mod b; pub use a::{A, B}; pub use b::C;";
    assert_eq!(declared(lib), BTreeSet::from(["a".into(), "b".into()]));
    assert_eq!(reexports(lib)["B"], "a");
    assert_eq!(reexports(lib)["C"], "b");
}
