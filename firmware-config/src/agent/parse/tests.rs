#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::agent::{MqttScheme, MqttUrl, Source};

fn parse(text: &str) -> Result<AgentConfig, String> {
    AgentConfig::parse(text, "egret.toml").map_err(|errors| errors.to_string())
}

const SMALLEST: &str = "[node]\nid = \"gate-01\"\n[model]\nbundle = \"bundle\"\n";

#[test]
fn what_is_left_out_has_a_default() {
    let config = parse(&format!(
        "{SMALLEST}[mqtt]\nurl = \"mqtt://broker\"\n[gateway]\n[[camera]]\nid = \"a\"\nsource = \"dir://frames\"\n\
         [[camera.rule]]\nid = \"open\"\nquestion = \"What is there?\"\n\
         [[camera.rule]]\nid = \"closed\"\nquestion = \"Cat?\"\nanswers = [\" yes \", \"no\"]\n\
         [[pool]]\nid = \"p\"\nmqtt = true\nmodel = \"m\"\n"
    ))
    .unwrap();
    let camera = &config.cameras[0];
    assert_eq!(camera.source, Source::Folder("frames".into()));
    assert_eq!(
        (camera.period, camera.stall_after, camera.gate),
        (SECOND, Duration::from_secs(10), Gate { motion: 0.01, max_age: Duration::from_secs(30) })
    );
    let [open, closed] = camera.rules.as_slice() else { panic!("two rules") };
    assert_eq!((open.threshold, open.max_new_tokens, open.route, open.split, &open.pool), (0.5, 64, RouteMode::Auto, false, &None));
    assert_eq!((closed.threshold, closed.answers.as_slice()), (0.9, ["yes".to_owned(), "no".to_owned()].as_slice()));
    let pool = &config.pools[0];
    assert_eq!(
        (&pool.transport, pool.deadline, pool.closed, pool.images, pool.attempts),
        (&PoolTransport::Mqtt, Duration::from_secs(8), ClosedForm::Schema, true, 3)
    );
    assert_eq!(config.policy, Policy::default());
    assert_eq!((config.policy.in_flight_max, config.policy.calls_per_minute), (4, None));
    assert_eq!(config.mqtt.unwrap().outbox_events_max, 10_000);
    assert_eq!(config.gateway.unwrap().listen.to_string(), "127.0.0.1:8080");
    assert_eq!((config.model.backend, config.model.threads), (BackendChoice::Auto, None));

    let config = parse(SMALLEST).unwrap();
    assert_eq!((config.mqtt, config.gateway, config.cameras.len()), (None, None, 0));
}

/// The example of the documentation, as written there.
#[test]
fn the_documented_example_is_accepted() {
    let config = parse(
        r#"[node]
id = "gate-01"                          # [a-z0-9_-]{1,64}; topics are egret/<id>/…
[model]
bundle = "/var/lib/egret/smolvlm2-256m-int8"
backend = "auto"                        # auto | ort | tract
threads = 2
[mqtt]
url = "mqtt://127.0.0.1:1883"           # mqtts://, ws://, wss://; user and password from files or credentials, never here
[[camera]]
id = "lobby"
source = "rtsp://192.0.2.7/stream2"     # rtsp:// http(s):// v4l2:// file:///clip.mp4 dir:///frames (lossless, paced by `rate`)
rate = "1/s"
gate = { motion = 0.01, max-age = "30s" }   # share of changed pixels that admits a frame; an unchanged scene is asked again after max-age
[[camera.rule]]
id = "person"
question = "Is there a person?"
answers = ["yes", "no"]                 # omit for free text
alert = ["yes"]                         # answers that mean ON
threshold = 0.9                         # keep the local answer at or above this confidence (default 0.9 with answers, 0.5 without)
route = "auto"                          # auto | local | pool (pinned) | must-escalate
pool = "vlm-large"
[[pool]]
id = "vlm-large"
url = "https://api.example.org/v1"      # or: mqtt = true (requests go to egret/pool/vlm-large/req on [mqtt])
model = "some-vlm"
api-key-file = "/run/credentials/pool.key"
deadline = "8s"
closed = "schema"                       # schema | text: how a question with answers is put to this pool
[policy]
kill-switch = "off"                     # off | local-only | pool-only; also over MQTT
calls-per-minute = 30
[gateway]
listen = "127.0.0.1:8080"
"#,
    )
    .unwrap();
    assert_eq!(config.mqtt.unwrap().url, MqttUrl { scheme: MqttScheme::Tcp, host: "127.0.0.1".into(), port: 1883, path: String::new() });
    assert_eq!(config.cameras[0].rules[0].pool.as_deref(), Some("vlm-large"));
    assert_eq!(config.policy.calls_per_minute, Some(30));
}

#[test]
fn the_example_file_names_every_key() {
    let example = include_str!("../../../agent.example.toml");
    let config = parse(example).unwrap();
    assert_eq!(config.cameras.len(), 2);
    assert_eq!(config.pools.len(), 2);
}

/// The keys of every table, as [`Section`] knows them, must all be in the example.
#[test]
fn the_example_file_leaves_no_key_out() {
    let example = include_str!("../../../agent.example.toml");
    let source = include_str!("../parse.rs");
    let lists = source.match_indices("&[\"").map(|(at, _)| &source[at..]).map(|list| &list[..list.find(']').unwrap()]);
    for key in lists.flat_map(|list| list.split('"').skip(1).step_by(2)) {
        let written = [format!("\n{key} = "), format!("{key} = "), format!("[{key}]"), format!(".{key}]]")];
        assert!(written.iter().any(|form| example.contains(form.as_str())), "agent.example.toml does not show {key}");
    }
}

#[test]
fn every_problem_is_told_at_once() {
    let errors = parse(
        r#"[node]
id = "Gate 01"
[model]
bundel = "/b"
threads = "2"
[mqtt]
url = "mqtt://me:secret@broker"
[[camera]]
id = "lobby"
source = "v4l2:///dev/video0"
rate = "1"
gate = { motion = 1.5, max-age = 30 }
[[camera.rule]]
id = "person"
question = "  "
answers = ["yes", " yes", 3]
alert = ["Yes"]
threshold = 2
route = "cloud"
pool = "vlm-larg"
[[camera.rule]]
id = "person"
question = "Who?"
alert = ["me"]
[[camera]]
id = "lobby"
source = "rtsp://"
rules = []
[[pool]]
id = "vlm-large"
url = "https://api.example.org/v1"
mqtt = true
model = "m"
[[pool]]
id = "x"
model = "m"
deadline = "8 s"
[policy]
bytes-per-minute = 1000000
[gateway]
listen = "localhost"
"#,
    )
    .unwrap_err();
    insta::assert_snapshot!(errors, @"");
}

#[test]
fn broken_syntax_is_told_alone() {
    let errors = parse("[node\nid = gate\n").unwrap_err();
    insta::assert_snapshot!(errors, @"");
}

#[test]
fn a_pool_over_mqtt_needs_a_broker() {
    let errors = parse(&format!("{SMALLEST}[[pool]]\nid = \"p\"\nmqtt = true\nmodel = \"m\"\napi-key-file = \"k\"\n")).unwrap_err();
    insta::assert_snapshot!(errors, @"");
}

#[test]
fn an_empty_file_is_told_what_it_needs() {
    insta::assert_snapshot!(parse("").unwrap_err(), @"");
}

#[test]
fn limits_are_kept() {
    let cameras = "[[camera]]\nid = \"a\"\nsource = \"dir://f\"\n".repeat(65);
    assert!(parse(&format!("{SMALLEST}{cameras}")).unwrap_err().contains("65 of them, expected at most 64"));
    assert!(parse(&"#".repeat(CONFIG_BYTES_MAX + 1)).unwrap_err().contains("expected at most 1048576 bytes"));
    let wrong: String = (0..500).map(|index| format!("key-{index} = 1\n")).collect();
    let errors = parse(&wrong).unwrap_err();
    assert!(errors.ends_with("egret.toml: and 402 more"), "{errors}");
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = parse(&text);
    }

    /// Texts that get past the syntax: the example with one value or key replaced.
    #[test]
    fn no_change_of_the_example_panics(line in 0_usize..80, change in "[ -~]{0,20}", value_only in any::<bool>()) {
        let mut lines: Vec<String> = include_str!("../../../agent.example.toml").lines().map(str::to_owned).collect();
        let line = line % lines.len();
        lines[line] = match lines[line].split_once(" = ") {
            Some((key, _)) if value_only => format!("{key} = {change}"),
            _ => change,
        };
        if let Err(errors) = AgentConfig::parse(&lines.join("\n"), "egret.toml") {
            prop_assert!(!errors.problems().is_empty());
        }
    }
}
