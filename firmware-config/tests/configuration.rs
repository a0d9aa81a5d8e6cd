//! `docs/configuration.md` is generated here, from what the parser reports and the texts of
//! [`TABLES`]. Rewrite it with `EGRET_UPDATE_DOCS=1 cargo test -p firmware-config --test configuration`.

use std::fmt::Write as _;

use firmware_config::agent::{AgentConfig, Diagnostic};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
const EXAMPLE: &str = include_str!("../agent.example.toml");

/// What no check of the parser says: what a table or a key is for, and what holds without it.
struct TableText {
    /// Path without indices; empty for the top level.
    name: &'static str,
    /// What the table is.
    text: &'static str,
    keys: &'static [(&'static str, WithoutKey, &'static str)],
}

/// What holds when a key is left out.
#[derive(Clone, Copy)]
enum WithoutKey {
    /// It may not be left out.
    Required,
    /// A TOML value that means the same.
    Value(&'static str),
    /// No single value; in words.
    Words(&'static str),
}

use WithoutKey::{Required, Value, Words};

const TABLES: &[TableText] = &[
    TableText {
        name: "",
        text: "The tables of the file.",
        keys: &[
            ("node", Required, "The box itself."),
            ("model", Required, "The model that answers on the box."),
            (
                "mqtt",
                Words("events are only logged, and no pool can be reached over MQTT"),
                "The broker.",
            ),
            (
                "camera",
                Words("no cameras; then `[gateway]` is needed"),
                "A camera and the questions about its frames. At most 64.",
            ),
            (
                "pool",
                Words("nothing is escalated"),
                "A larger model elsewhere that can be asked. At most 32.",
            ),
            (
                "policy",
                Words("the defaults of its keys"),
                "What may be escalated, and how much of it.",
            ),
            (
                "gateway",
                Words("no endpoint"),
                "An OpenAI-compatible endpoint on the box.",
            ),
        ],
    },
    TableText {
        name: "node",
        text: "The box itself.",
        keys: &[(
            "id",
            Required,
            "Name of the box; its topics are `egret/<id>/…`.",
        )],
    },
    TableText {
        name: "model",
        text: "The model that answers on the box.",
        keys: &[
            (
                "bundle",
                Required,
                "Folder of the bundle, as `egret-export` wrote it.",
            ),
            (
                "backend",
                Value("\"auto\""),
                "Inference engine; `auto` is ONNX Runtime when its library is found, else tract.",
            ),
            ("threads", Words("the engine chooses"), "Inference threads."),
            (
                "ort-library",
                Words("the folder of the program"),
                "Shared library of ONNX Runtime. The environment's `ORT_DYLIB_PATH` precedes it.",
            ),
            (
                "require-execution-provider",
                Words("any"),
                "Start-up fails unless this execution provider really runs.",
            ),
        ],
    },
    TableText {
        name: "mqtt",
        text: "The broker that events and requests of MQTT pools go through.",
        keys: &[
            (
                "url",
                Required,
                "Address of the broker, without user and password. The port defaults to 1883 \
                 (`mqtt`), 8883 (`mqtts`), 80 (`ws`) or 443 (`wss`).",
            ),
            (
                "username-file",
                Words("no user name"),
                "File that holds the user name; a trailing newline is ignored.",
            ),
            (
                "password-file",
                Words("no password"),
                "File that holds the password; a trailing newline is ignored.",
            ),
            (
                "ca-file",
                Words("the system's authorities"),
                "PEM file of the certificate authorities to trust; with `mqtts` and `wss` only.",
            ),
            (
                "outbox-events",
                Value("10000"),
                "Most events kept while the broker is away, and 64 MiB at most; past either the \
                 oldest is dropped, and the gap is declared.",
            ),
        ],
    },
    TableText {
        name: "camera",
        text: "A camera and the questions about its frames.",
        keys: &[
            ("id", Required, "Name of the camera, unique in the file."),
            (
                "source",
                Required,
                "A stream (`rtsp`, `rtsps`), a video file, or a folder of image files. Files and \
                 folders are read once and without loss, a folder in the order of its names.",
            ),
            ("rate", Value("\"1/s\""), "Frames that are looked at."),
            (
                "gate",
                Words("the defaults of its keys"),
                "Which frames are admitted to the model.",
            ),
            (
                "stall-after",
                Value("\"10s\""),
                "A stream that delivers nothing for this long is stalled, and opened again; its \
                 first frame has 10 seconds at least.",
            ),
            (
                "rule",
                Words("nothing is asked about its frames"),
                "A question about every admitted frame. At most 32 per camera.",
            ),
        ],
    },
    TableText {
        name: "camera.gate",
        text: "Which frames of a camera are admitted to the model.",
        keys: &[
            (
                "motion",
                Value("0.01"),
                "Share of changed pixels that admits a frame; 0 admits every frame.",
            ),
            (
                "max-age",
                Value("\"30s\""),
                "A frame of an unchanged scene is admitted after this long.",
            ),
        ],
    },
    TableText {
        name: "camera.rule",
        text: "One question about a camera's frames.",
        keys: &[
            ("id", Required, "Name of the rule, unique in its camera."),
            (
                "question",
                Required,
                "The question; at most 2000 characters.",
            ),
            (
                "answers",
                Words("free text"),
                "The answers to choose from, 2 to 64 of at most 200 characters.",
            ),
            ("alert", Value("[]"), "Those of `answers` that mean ON."),
            (
                "threshold",
                Words("`0.9` with `answers`, `0.5` without"),
                "The local answer is kept at or above this confidence.",
            ),
            (
                "route",
                Value("\"auto\""),
                "`auto`: the pool is asked below `threshold`. `local`: never. `pool`: always. \
                 `must-escalate`: always, and only the pool's answer settles the state.",
            ),
            (
                "pool",
                Words("the first pool that takes images"),
                "The pool that is asked.",
            ),
            (
                "split",
                Value("false"),
                "Whether the image is split into tiles for small text, at 13 to 17 times the work.",
            ),
            (
                "max-new-tokens",
                Value("64"),
                "Longest free-text answer, in tokens.",
            ),
        ],
    },
    TableText {
        name: "pool",
        text: "A larger model elsewhere, reached by `url` or by `mqtt = true`.",
        keys: &[
            ("id", Required, "Name of the pool, unique in the file."),
            (
                "url",
                Words("needed without `mqtt = true`"),
                "`http` or `https`; `/chat/completions` is added to it.",
            ),
            (
                "mqtt",
                Value("false"),
                "Whether requests go to `egret/pool/<id>/req` on the broker of `[mqtt]`.",
            ),
            (
                "api-key-file",
                Words("no key"),
                "File that holds the bearer token; a trailing newline is ignored. With `url` only.",
            ),
            (
                "model",
                Required,
                "`model` of the request; at most 200 characters.",
            ),
            (
                "deadline",
                Value("\"8s\""),
                "An answer that takes longer is discarded.",
            ),
            (
                "closed",
                Value("\"schema\""),
                "How a question with answers is sent: `schema` asks for JSON by \
                 `response_format`, `text` for plain text.",
            ),
            (
                "images",
                Value("true"),
                "Whether the pool takes images; one that does not is never asked about any.",
            ),
            (
                "attempts",
                Value("3"),
                "Attempts for one question, the first included.",
            ),
            (
                "usd-per-call",
                Words("unknown, and not counted"),
                "Price in US dollars of one attempt that the pool may charge for; counts against `usd-per-day`.",
            ),
        ],
    },
    TableText {
        name: "policy",
        text: "What may be escalated, and how much of it.",
        keys: &[
            (
                "kill-switch",
                Value("\"off\""),
                "`local-only`: no pool is asked. `pool-only`: everything is asked of the pool. \
                 Also set over MQTT, until `egret run` ends.",
            ),
            (
                "calls-per-minute",
                Words("no limit"),
                "Pool calls in any 60 seconds.",
            ),
            (
                "in-flight",
                Value("4"),
                "Pool calls that wait for an answer at one time.",
            ),
            (
                "bytes-per-minute",
                Words("no limit"),
                "Bytes of pool requests in any 60 seconds.",
            ),
            (
                "usd-per-day",
                Words("no limit"),
                "US dollars of pool calls in any 24 hours; counts pools with `usd-per-call`.",
            ),
        ],
    },
    TableText {
        name: "gateway",
        text: "An OpenAI-compatible endpoint on the box.",
        keys: &[(
            "listen",
            Value("\"127.0.0.1:8080\""),
            "Where it listens. It has no authentication: whoever reaches the address may use it.",
        )],
    },
];

/// The smallest file that has every table.
const SMALLEST: &str = "\
[node]
id = \"n\"
[model]
bundle = \"b\"
[mqtt]
url = \"mqtt://h\"
[[camera]]
id = \"c\"
source = \"dir://f\"
[camera.gate]
[[camera.rule]]
id = \"r\"
question = \"?\"
answers = [\"yes\", \"no\"]
[[pool]]
id = \"p\"
url = \"http://h\"
model = \"m\"
[policy]
[gateway]
";

/// One table as the parser reports it.
#[derive(Debug)]
struct Table {
    /// Path without indices; empty for the top level.
    name: String,
    /// How it is begun, such as `[[camera]]`; empty for the top level.
    header: String,
    /// In the order in which they are read.
    keys: Vec<Key>,
}

/// One key as the parser reports it.
#[derive(Debug)]
struct Key {
    name: String,
    /// What its value must be.
    expected: String,
    is_required: bool,
}

/// The diagnostics of `text`, none where it is valid.
fn diagnostics(text: &str) -> Vec<Diagnostic> {
    match AgentConfig::parse(text, "egret.toml") {
        Ok(_) => Vec::new(),
        Err(errors) => errors.diagnostics().to_vec(),
    }
}

/// Asks the parser for the tables of the file: which keys it knows by an unknown one, what it
/// expects of each by a value that none accepts, and what it requires by leaving all out.
fn tables() -> Vec<Table> {
    let mut found = Vec::new();
    add_tables(&mut found, String::new(), String::new(), "", String::new());
    found
}

/// Adds one table and those inside it. `before` has the headers that come before its own, and
/// `path` is its path in diagnostics, with a trailing dot.
fn add_tables(found: &mut Vec<Table>, name: String, header: String, before: &str, path: String) {
    const UNKNOWN: &str = "unknown-key-of-a-test";
    const DATE: &str = "1979-05-27";
    let headers = format!("{before}{header}\n");
    let about = |text: &str, key: &str| {
        let path = format!("{path}{key}");
        let mut all = diagnostics(&format!("{headers}{text}\n")).into_iter();
        all.find(|diagnostic| diagnostic.key == path)
    };
    let unknown = about(&format!("{UNKNOWN} = 0"), UNKNOWN).expect("an unknown key is reported");
    let names = unknown
        .expected
        .strip_prefix("one of ")
        .expect("the known keys");

    let index = found.len();
    found.push(Table {
        name: name.clone(),
        header: header.clone(),
        keys: Vec::new(),
    });
    for key in names.split(", ") {
        let expected = about(&format!("{key} = {DATE}"), key)
            .unwrap_or_else(|| panic!("{name}.{key} accepts a date"))
            .expected;
        let is_required = about("", key).is_some_and(|diagnostic| diagnostic.found == "nothing");
        let inner = format!("{name}.{key}").trim_start_matches('.').to_owned();
        match expected.as_str() {
            "a table" => {
                let header = format!("[{inner}]");
                add_tables(found, inner, header, &headers, format!("{path}{key}."));
            }
            "an array of tables" => {
                let header = format!("[[{inner}]]");
                add_tables(found, inner, header, &headers, format!("{path}{key}[0]."));
            }
            _ => {}
        }
        found[index].keys.push(Key {
            name: key.to_owned(),
            expected,
            is_required,
        });
    }
}

/// The texts of a table.
fn text_of(table: &Table) -> &'static TableText {
    TABLES
        .iter()
        .find(|text| text.name == table.name)
        .unwrap_or_else(|| panic!("TABLES has no table {:?}", table.name))
}

/// The document.
fn document() -> String {
    let mut text = "\
# Configuration

Every table and key of `egret.toml`. A key that is not listed here is an error. A commented example
is [`agent.example.toml`](../firmware-config/agent.example.toml); check a file without running it
with `egret run --config egret.toml --check`.

- An *id* is 1 to 64 of `a-z`, `0-9`, `_` and `-`.
- A *duration* is a string of a whole number and a unit: `\"250ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"`, `\"7d\"`.
- A *rate* is a string of a number per time: `\"4/s\"`, `\"30/min\"`, `\"1/5s\"` (once in five seconds).
- A *size* is a string of a whole number and a unit: `\"64KiB\"`, `\"512MiB\"`, `\"10MB\"`, `\"100B\"`.
- A *path* is a string of 1 to 4096 bytes; relative paths start at the working directory.

This file is generated from the parser by `firmware-config/tests/configuration.rs`.
"
    .to_owned();
    for table in tables() {
        let texts = text_of(&table);
        // Writing to a string does not fail.
        let _ = match table.header.as_str() {
            "" => write!(text, "\n## Top level\n\n{}\n\n", texts.text),
            header => write!(text, "\n## `{header}`\n\n{}\n\n", texts.text),
        };
        text += "| key | value | default | meaning |\n|---|---|---|---|\n";
        for Key { name, expected, .. } in &table.keys {
            let (_, default, meaning) = texts
                .keys
                .iter()
                .find(|(key, ..)| key == name)
                .unwrap_or_else(|| panic!("TABLES has no key {name} in {:?}", table.name));
            let value = expected.trim_end_matches(" in quotes");
            let default = match default {
                Required => "**required**".to_owned(),
                Value(value) => format!("`{value}`"),
                Words(words) => (*words).to_owned(),
            };
            let _ = writeln!(text, "| `{name}` | {value} | {default} | {meaning} |");
        }
    }
    text
}

#[test]
fn the_document_is_up_to_date() {
    let document = document();
    if std::env::var_os("EGRET_UPDATE_DOCS").is_some() {
        std::fs::write(DOCUMENT, &document).expect("docs/configuration.md can be written");
    }
    let found = std::fs::read_to_string(DOCUMENT).expect("docs/configuration.md can be read");
    let differs = found
        .lines()
        .zip(document.lines())
        .find(|(found, expected)| found != expected);
    assert!(
        found == document,
        "docs/configuration.md is out of date, first at {differs:?}; run \
         EGRET_UPDATE_DOCS=1 cargo test -p firmware-config --test configuration"
    );
}

#[test]
fn the_texts_are_of_the_keys_that_the_parser_reads() {
    let tables = tables();
    let mut read: Vec<String> = tables
        .iter()
        .flat_map(|table| {
            table
                .keys
                .iter()
                .map(move |key| format!("{}.{} {}", table.name, key.name, key.is_required))
        })
        .collect();
    let mut described: Vec<String> = TABLES
        .iter()
        .flat_map(|table| {
            table.keys.iter().map(move |(key, default, _)| {
                format!("{}.{key} {}", table.name, matches!(default, Required))
            })
        })
        .collect();
    read.sort();
    described.sort();
    assert_eq!(
        read, described,
        "keys of the parser and of TABLES, and whether each is required"
    );
}

#[test]
fn the_defaults_are_what_the_parser_takes() {
    let parse = |text: &str| AgentConfig::parse(text, "egret.toml");
    let expected = parse(SMALLEST).expect("the smallest file is valid");
    let tables = tables();
    for table in &tables {
        for (key, default, _) in text_of(table).keys {
            if let Value(value) = default {
                let header = format!("{}\n", table.header);
                let text = SMALLEST.replace(&header, &format!("{header}{key} = {value}\n"));
                assert_ne!(text, SMALLEST, "{header} is in the smallest file");
                assert_eq!(parse(&text).as_ref(), Ok(&expected), "{}.{key}", table.name);
            }
        }
    }
}

#[test]
fn the_example_shows_every_key() {
    for table in tables() {
        for key in table.keys {
            let (name, header) = (&key.name, format!("{}.{}", table.name, key.name));
            let header = header.trim_start_matches('.');
            let forms = [
                format!("\n{name} = "),
                format!(" {name} = "),
                format!("\n[{header}]\n"),
                format!("\n[[{header}]]\n"),
            ];
            assert!(
                forms.iter().any(|form| EXAMPLE.contains(form)),
                "agent.example.toml does not show {header}"
            );
        }
    }
}
