//! Holds the tables of `docs/events.md` to the types and the topics. `EGRET_UPDATE_DOCS=1` writes
//! them anew.

use std::path::Path;

use firmware_config::agent::{ClosedForm, Pool, PoolTransport};
use schemars::generate::{Contract, SchemaSettings};
use schemars::{JsonSchema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::deliver::event::tests::{draft, moment, shown};
use crate::deliver::event::{AttributesPayload, EventPayload, Origin, RuleState};
use crate::deliver::payload::{
    CameraStatusPayload, GapPayload, HealthPayload, InfoPayload, StatusPayload,
};
use crate::deliver::topics::{PublishOptions, Topics};
use crate::json::schema::Probability;
use crate::mqtt::Qos;
use crate::openai::Completion;
use crate::pool::PoolQuestion;
use crate::pool::mqtt::{reply_topic, request_topic};
use crate::pool::question::{body, settle};
use crate::reason::Reason;

/// What a worker finds in a request; [`body`] writes it.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PoolRequest {
    /// `[[pool]] model`.
    model: String,
    /// One message.
    messages: Vec<PoolMessage>,
    /// Longest answer, in tokens.
    max_tokens: u64,
    /// Always 0: the likeliest answer is wanted.
    temperature: u64,
    /// The form of the answer; absent for free text, and where the pool has `closed = "text"`: then
    /// the question ends with the answers to choose from.
    #[serde(skip_serializing_if = "Option::is_none")]
    response_format: Option<PoolResponseFormat>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PoolMessage {
    /// `user`.
    role: String,
    /// The image, then the question.
    content: Vec<PoolPart>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PoolPart {
    /// `image_url` or `text`.
    r#type: String,
    /// In an `image_url` part.
    #[serde(skip_serializing_if = "Option::is_none")]
    image_url: Option<PoolImage>,
    /// In a `text` part: the question.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PoolImage {
    /// The frame's JPEG, as `data:image/jpeg;base64,…`.
    url: String,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PoolResponseFormat {
    /// `json_schema`.
    r#type: String,
    /// The schema by name.
    json_schema: PoolSchema,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct PoolSchema {
    /// `answer`.
    name: String,
    /// `true`.
    strict: bool,
    /// A JSON schema of an object with one required string, `answer`. The rule's `answers` are in
    /// `properties.answer.enum`.
    schema: Map<String, Value>,
}

/// What is read of a worker's reply; [`settle`] reads it.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct PoolReply {
    /// Name of the model that answered; the event's `by.model`. Without it, the pool's id stands
    /// there.
    model: Option<String>,
    /// The first one is read.
    choices: Vec<PoolChoice>,
    /// What the answer took.
    usage: Option<PoolUsage>,
    /// What Egret's own workers and gateways add.
    routing: Option<PoolRouting>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PoolChoice {
    /// The answer's message.
    message: PoolReplyMessage,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PoolReplyMessage {
    /// The answer: an object as `response_format` asks for, in JSON, or one of the answers, or free
    /// text.
    content: String,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PoolUsage {
    /// Tokens written; the event's `by.tokens_out`.
    completion_tokens: u64,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PoolRouting {
    /// `local`: the model that the confidence is about gave the answer. Anything else, and the
    /// confidence is not read.
    r#where: String,
    /// Confidence of the answer.
    confidence: PoolConfidence,
}

#[derive(Debug, Serialize, JsonSchema)]
struct PoolConfidence {
    /// Probability of the answer.
    #[schemars(with = "Probability")]
    p: f64,
}

/// The document's generated blocks: the name between its marks, and what stands there.
fn blocks() -> Vec<(&'static str, String)> {
    vec![
        ("topics", topics()),
        ("event", fields::<EventPayload>(Contract::Serialize)),
        ("event example", example(&event())),
        ("reasons", values::<Reason>()),
        ("state", values::<RuleState>()),
        (
            "attributes",
            fields::<AttributesPayload>(Contract::Serialize),
        ),
        ("status", fields::<StatusPayload>(Contract::Serialize)),
        (
            "camera status",
            fields::<CameraStatusPayload>(Contract::Serialize),
        ),
        ("info", fields::<InfoPayload>(Contract::Serialize)),
        ("health", fields::<HealthPayload>(Contract::Serialize)),
        ("gap", fields::<GapPayload>(Contract::Serialize)),
        ("request", fields::<PoolRequest>(Contract::Deserialize)),
        ("request example", example(&request())),
        ("reply", fields::<PoolReply>(Contract::Deserialize)),
    ]
}

/// Every topic, and how it is published.
fn topics() -> String {
    let of = Topics::new("<node>");
    let published = [
        (
            of.event("<cam>"),
            PublishOptions::EVENT,
            "[event](#event): one step of it",
        ),
        (
            of.rule_state("<cam>", "<rule>"),
            PublishOptions::WORD,
            "[state](#state): one word",
        ),
        (
            of.rule_attributes("<cam>", "<rule>"),
            PublishOptions::OBJECT,
            "[attributes](#attributes)",
        ),
        (
            of.snapshot("<cam>"),
            PublishOptions::SNAPSHOT,
            "[snapshot](#snapshot): the JPEG of the frame that opened the camera's newest event",
        ),
        (
            of.camera_status("<cam>"),
            PublishOptions::OBJECT,
            "[camera status](#camera-status)",
        ),
        (
            of.status(),
            PublishOptions::OBJECT,
            "[status](#status) of the node",
        ),
        (of.info(), PublishOptions::OBJECT, "[info](#info)"),
        (
            of.health(),
            PublishOptions::HEALTH,
            "[health](#health), every 30 s",
        ),
        (of.gap(), PublishOptions::GAP, "[gap](#gap)"),
        (
            of.kill_switch_state(),
            PublishOptions::WORD,
            "[kill switch](#kill-switch) in force",
        ),
    ];
    let mut table = String::from(
        "| topic | payload | QoS | retained | expires after | content type |\n|---|---|---|---|---|---|\n",
    );
    let mut row = |topic: &str, payload: &str, sent: [&str; 4]| {
        table += &format!("| `{topic}` | {payload} | {} |\n", sent.join(" | "));
    };
    for (topic, options, payload) in &published {
        let qos = match options.qos {
            Qos::AtMostOnce => "0",
            Qos::AtLeastOnce => "1",
        };
        let expiry = options.expiry.map_or("never".to_owned(), |expiry| {
            match (expiry.as_secs() / 86_400, expiry.as_secs() / 3600) {
                (0, 0) => format!("{} s", expiry.as_secs()),
                (0, hours) => format!("{hours} h"),
                (days, _) => format!("{days} days"),
            }
        });
        let content = match options.schema {
            Some(schema) => format!("{}, schema `{schema}`", options.content_type),
            None => options.content_type.to_owned(),
        };
        let retained = if options.retain { "yes" } else { "no" };
        row(topic, payload, [qos, retained, &expiry, &content]);
    }
    row(
        &of.kill_switch_set(),
        "to the agent: sets the [kill switch](#kill-switch)",
        ["any", "must not be", "any", "any"],
    );
    row(
        &request_topic("<pool>"),
        "to a worker: a [request](#request)",
        ["1", "no", "the pool's deadline", "application/json"],
    );
    row(
        &reply_topic("<node>"),
        "from a worker: a [reply](#reply)",
        ["any", "must not be", "any", "any"],
    );
    table
}

/// A table of the JSON fields of `T`, those of inner objects below theirs.
fn fields<T: JsonSchema>(contract: Contract) -> String {
    let mut settings = SchemaSettings::draft2020_12();
    settings.contract = contract;
    let mut root = settings.into_generator().into_root_schema_for::<T>();
    let types = root.remove("$defs").unwrap_or(json!({}));
    let mut table = String::from("| field | type | present | meaning |\n|---|---|---|---|\n");
    object(&mut table, "", root.as_value(), &types);
    table
}

/// Adds a row for each property of an object.
fn object(table: &mut String, path: &str, schema: &Value, types: &Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, field) in schema["properties"]
        .as_object()
        .expect("an object's schema")
    {
        let present = required.contains(&Value::from(name.as_str()));
        let (field_type, inner) = type_of(field, types, present);
        let mut meaning = meaning(field);
        // Reason codes have a table of their own, and other values are explained once.
        if field_type == "string" {
            let explained = choices(inner)
                .into_iter()
                .map(|(value, explained)| format!("<br>`{value}`: {explained}"))
                .collect::<String>();
            if !table.contains(&explained) {
                meaning += &explained;
            }
        }
        assert!(!meaning.is_empty(), "{path}{name} has no doc comment");
        let presence = if present { "always" } else { "optional" };
        let line = format!("| `{path}{name}` | {field_type} | {presence} | {meaning} |\n");
        table.push_str(&line);
        if inner["properties"].is_object() {
            let list = if field_type.starts_with("array") {
                "[]"
            } else {
                ""
            };
            object(table, &format!("{path}{name}{list}."), inner, types);
        }
    }
}

/// The type of a field in words, and the schema that describes its values: of an array, that of its
/// items. An optional field is absent instead of `null`.
fn type_of<'a>(schema: &'a Value, types: &'a Value, required: bool) -> (String, &'a Value) {
    let null = |words: String| {
        if required {
            words + " or `null`"
        } else {
            words
        }
    };
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or_default();
        let (words, inner) = type_of(&types[name], types, required);
        let words = match name {
            "Reason" => "[reason code](#reason-codes)".to_owned(),
            _ => words,
        };
        return (words, inner);
    }
    if let Some([value, _]) = schema["anyOf"].as_array().map(Vec::as_slice) {
        let (words, inner) = type_of(value, types, required);
        return (null(words), inner);
    }
    if schema["oneOf"].is_array() || schema["enum"].is_array() {
        return ("string".to_owned(), schema);
    }
    if schema["type"] == "array" {
        let (words, inner) = type_of(&schema["items"], types, true);
        let plural = match words.split_once(']') {
            Some((link, target)) => format!("{link}s]{target}"),
            None => words + "s",
        };
        return (format!("array of {plural}"), inner);
    }
    let (name, nullable) = match &schema["type"] {
        Value::Array(names) => (names[0].as_str(), true),
        name => (name.as_str(), false),
    };
    let mut words = name.expect("a value has a type").to_owned();
    let of_rust = ["uint", "uint16", "uint32", "uint64", "double"];
    if let Some(format) = schema["format"].as_str()
        && !of_rust.contains(&format)
    {
        words += &format!(" ({format})");
    }
    (if nullable { null(words) } else { words }, schema)
}

/// The values of an enum, and what each means.
fn choices(schema: &Value) -> Vec<(&str, String)> {
    let variants = schema["oneOf"].as_array().map(Vec::as_slice);
    variants
        .unwrap_or_default()
        .iter()
        .map(|variant| {
            let name = variant["const"].as_str().expect("a unit variant");
            (name, meaning(variant))
        })
        .collect()
}

/// A table of the values of an enum.
fn values<T: JsonSchema>() -> String {
    let root = SchemaGenerator::default().into_root_schema_for::<T>();
    let rows = choices(root.as_value())
        .into_iter()
        .map(|(value, meaning)| format!("| `{value}` | {meaning} |\n"));
    "| value | meaning |\n|---|---|\n".to_owned() + &rows.collect::<String>()
}

/// A doc comment as the cell of a table.
fn meaning(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.replace('\n', " ").replace('|', "\\|")
}

fn example(json: &[u8]) -> String {
    format!("```json\n{}\n```\n", shown(json))
}

fn event() -> Vec<u8> {
    let origin = Origin {
        node: "gate-01",
        cam: "yard",
    };
    let mut draft = draft();
    draft.id = "019ab1c4-73a2-7c10-9b1e-5d2f0c6e8a47".into();
    draft.frame.sha256 = "d31e".repeat(16);
    draft.opened_on.sha256 = draft.frame.sha256.clone();
    draft.settled.by.model_sha256 = Some("ab12".repeat(16));
    draft.to_json(origin, &moment(), 0x9f3c_2a71_0b5e_d846, 48_213)
}

/// The request for a question with answers.
fn request() -> Vec<u8> {
    let pool = Pool {
        id: "site".into(),
        transport: PoolTransport::Mqtt,
        model: "some-vlm".into(),
        deadline: std::time::Duration::from_secs(8),
        closed: ClosedForm::Schema,
        images: true,
        attempts: 3,
        usd_per_call: None,
    };
    let question = PoolQuestion {
        id: [0; 16],
        question: "Is there a person?".into(),
        answers: vec!["yes".into(), "no".into()],
        jpeg: Some(vec![0xff, 0xd8, 0xff].into()),
        max_tokens: 16,
    };
    body(&question, &pool).into()
}

/// The document with each generated block as it should be.
fn filled(document: &str) -> String {
    let mut filled = document.to_owned();
    for (name, block) in blocks() {
        let begin = format!("<!-- generated: {name} -->\n");
        let (before, rest) = filled
            .split_once(&begin)
            .unwrap_or_else(|| panic!("docs/events.md has no line {begin:?}"));
        let (_, after) = rest
            .split_once("<!-- end -->")
            .unwrap_or_else(|| panic!("docs/events.md: no <!-- end --> behind {begin:?}"));
        filled = format!("{before}{begin}{block}<!-- end -->{after}");
    }
    filled
}

#[test]
fn the_document_describes_every_topic_and_field() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/events.md");
    let document = std::fs::read_to_string(&path).expect("docs/events.md can be read");
    let expected = filled(&document);
    if std::env::var_os("EGRET_UPDATE_DOCS").is_some() {
        return std::fs::write(&path, expected).expect("docs/events.md can be written");
    }
    assert!(
        document == expected,
        "docs/events.md is out of date; run this test with EGRET_UPDATE_DOCS=1"
    );
}

#[test]
fn a_request_has_the_documented_fields_and_no_others() {
    let request: Value = serde_json::from_slice(&request()).expect("JSON");
    let documented: PoolRequest =
        serde_json::from_value(request.clone()).expect("documented fields only");
    assert_eq!(serde_json::to_value(documented).expect("JSON"), request);
}

#[test]
fn the_documented_fields_of_a_reply_are_read() {
    let reply = PoolReply {
        model: Some("some-vlm".into()),
        choices: vec![PoolChoice {
            message: PoolReplyMessage {
                content: r#"{"answer": "yes"}"#.into(),
            },
        }],
        usage: Some(PoolUsage {
            completion_tokens: 5,
        }),
        routing: Some(PoolRouting {
            r#where: "local".into(),
            confidence: PoolConfidence { p: 0.75 },
        }),
    };
    let read = |reply: &PoolReply| {
        let json = serde_json::to_value(reply).expect("JSON");
        let completion: Completion = serde_json::from_value(json).expect("a completion");
        let answers = ["yes".into(), "no".into()];
        settle("big", &completion, &answers, std::time::Duration::ZERO).expect("one of the answers")
    };
    let full = read(&reply);
    assert_eq!(
        (full.text.as_str(), full.by.model.as_str()),
        ("yes", "some-vlm")
    );
    assert_eq!((full.confidence, full.by.tokens_out), (Some(0.75), Some(5)));
}
