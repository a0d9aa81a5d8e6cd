#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;
use crate::agent::{MqttScheme, MqttUrl, Source};

fn parse(text: &str) -> Result<AgentConfig, String> {
    AgentConfig::parse(text, "egret.toml").map_err(|errors| errors.to_string())
}

const SMALLEST: &str = "[node]\nid = \"gate-01\"\n[model]\nbundle = \"bundle\"\n";

#[test]
fn keys_that_are_left_out_have_defaults() {
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
        (
            SECOND,
            Duration::from_secs(10),
            Gate {
                motion: 0.01,
                max_age: Duration::from_secs(30)
            }
        )
    );
    let [open, closed] = camera.rules.as_slice() else {
        panic!("two rules")
    };
    assert_eq!(
        (
            open.threshold,
            open.max_new_tokens,
            open.route,
            open.split,
            &open.pool
        ),
        (0.5, 64, RouteMode::Auto, false, &None)
    );
    assert_eq!(
        (closed.threshold, closed.answers.as_slice()),
        (0.9, ["yes".to_owned(), "no".to_owned()].as_slice())
    );
    let pool = &config.pools[0];
    assert_eq!(
        (
            &pool.transport,
            pool.deadline,
            pool.closed,
            pool.images,
            pool.attempts
        ),
        (
            &PoolTransport::Mqtt,
            Duration::from_secs(8),
            ClosedForm::Schema,
            true,
            3
        )
    );
    assert_eq!(config.policy, Policy::default());
    assert_eq!(
        (config.policy.in_flight_max, config.policy.calls_per_minute),
        (4, None)
    );
    assert_eq!(config.mqtt.unwrap().outbox_events_max, 10_000);
    assert_eq!(config.gateway.unwrap().listen.to_string(), "127.0.0.1:8080");
    assert_eq!(
        (config.model.backend, config.model.threads),
        (BackendChoice::Auto, None)
    );

    let config = parse(SMALLEST).unwrap();
    assert_eq!(
        (config.mqtt, config.gateway, config.cameras.len()),
        (None, None, 0)
    );
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
    assert_eq!(
        config.mqtt.unwrap().url,
        MqttUrl {
            scheme: MqttScheme::Tcp,
            host: "127.0.0.1".into(),
            port: 1883,
            path: String::new()
        }
    );
    assert_eq!(
        config.cameras[0].rules[0].pool.as_deref(),
        Some("vlm-large")
    );
    assert_eq!(config.policy.calls_per_minute, Some(30));
}

#[test]
fn the_example_file_is_accepted() {
    let example = include_str!("../../../agent.example.toml");
    let config = parse(example).unwrap();
    assert_eq!(config.cameras.len(), 2);
    assert_eq!(config.pools.len(), 2);
}

#[test]
fn every_diagnostic_is_reported_at_once() {
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
    insta::assert_snapshot!(errors, @r#"
    egret.toml:2:6: node.id: found "Gate 01", expected 1 to 64 of a-z, 0-9, _ and -: ids become MQTT topics
        help: write "gate-01"
    egret.toml:3:1: model.bundle: found nothing, expected this key
        help: add bundle = "/var/lib/egret/smolvlm2-256m-int8"
    egret.toml:4:1: model.bundel: found an unknown key, expected one of bundle, backend, threads, ort-library, require-execution-provider
        help: did you mean bundle?
    egret.toml:5:11: model.threads: found "2", expected a whole number from 1 to 256
        help: write digits without quotes
    egret.toml:7:7: mqtt.url: found "mqtt://***@broker", expected mqtt://, mqtts://, ws:// or wss://, host and port
        help: name the files that hold them instead: username-file and password-file
    egret.toml:10:10: camera[0].source: found "v4l2:///dev/video0", expected rtsp://, file:///clip.mp4 or dir:///frames
        help: USB and CSI cameras are not built in yet: serve the camera over RTSP (for example with MediaMTX) and name that URL
    egret.toml:11:8: camera[0].rate: found "1", expected a rate from 1/h to 60/s
        help: write a unit, in quotes, such as "1/s" (per ms, s, m, h, d, or several of them: 1/5s)
    egret.toml:12:19: camera[0].gate.motion: found float 1.5, expected a number from 0 to 1
        help: choose a number within these limits
    egret.toml:12:34: camera[0].gate.max-age: found integer 30, expected a duration from 100ms to 7d
        help: write a unit, in quotes, such as "30s" (ms, s, m, h, d)
    egret.toml:15:12: camera[0].rule[0].question: found "  ", expected text
        help: write something between the quotes
    egret.toml:16:19: camera[0].rule[0].answers: found "yes" twice, expected answers that differ after trimming
        help: remove one
    egret.toml:16:27: camera[0].rule[0].answers[2]: found integer 3, expected text in quotes
        help: write it as a string: "…"
    egret.toml:17:10: camera[0].rule[0].alert: found "Yes", expected one of the rule's answers, letter for letter
        help: write "yes", or add it to answers
    egret.toml:18:13: camera[0].rule[0].threshold: found integer 2, expected a number from 0 to 1
        help: choose a number within these limits
    egret.toml:19:9: camera[0].rule[0].route: found "cloud", expected one of auto, local, pool, must-escalate
        help: choose one of them, in quotes
    egret.toml:20:8: camera[0].rule[0].pool: found "vlm-larg", expected the id of a [[pool]] of this file
        help: did you mean "vlm-large"?
    egret.toml:22:6: camera[0].rule[1].id: found "person" again, first on line 14, expected every rule of a camera to have its own id
        help: rename one
    egret.toml:24:10: camera[0].rule[1].alert: found "me", expected answers to take it from: free text has no alert
        help: add answers = ["yes", "no"]
    egret.toml:26:6: camera[1].id: found "lobby" again, first on line 9, expected every camera to have its own id
        help: rename one
    egret.toml:27:10: camera[1].source: found "rtsp://", expected rtsp://, file:///clip.mp4 or dir:///frames
        help: write it as "rtsp://192.0.2.7:554/stream2"; escape / @ and : in a password (%2F %40 %3A)
    egret.toml:28:1: camera[1].rules: found an unknown key, expected one of id, source, rate, gate, stall-after, rule
        help: did you mean rule?
    egret.toml:32:8: pool[0].mqtt: found url and mqtt = true, expected either url or mqtt = true
        help: remove one of the two
    egret.toml:34:1: pool[1].url: found neither, expected either url or mqtt = true
        help: add url = "https://…/v1", or mqtt = true
    egret.toml:37:12: pool[1].deadline: found "8 s", expected a duration from 100ms to 10m
        help: write a unit, in quotes, such as "8s" (ms, s, m, h, d)
    egret.toml:39:20: policy.bytes-per-minute: found integer 1000000, expected a size
        help: write a unit, in quotes, such as "1000000B" (B, KiB, MiB, GiB, kB, MB, GB)
    egret.toml:41:10: gateway.listen: found "localhost", expected an IP address and a port
        help: write "127.0.0.1:8080", or "0.0.0.0:8080" for every interface
    "#);
}

#[test]
fn broken_syntax_is_reported_alone() {
    let errors = parse("[node\nid = gate\n").unwrap_err();
    insta::assert_snapshot!(errors, @r#"
    egret.toml:1:6: found unclosed table, expected `]`
        help: see https://toml.io for how it is written
    "#);
}

#[test]
fn a_pool_over_mqtt_needs_a_broker() {
    let errors = parse(&format!(
        "{SMALLEST}[[pool]]\nid = \"p\"\nmqtt = true\nmodel = \"m\"\napi-key-file = \"k\"\n"
    ))
    .unwrap_err();
    insta::assert_snapshot!(errors, @r#"
    egret.toml:7:8: pool[0].mqtt: found no [mqtt] table, expected a broker for this pool's requests
        help: add [mqtt] with url = "mqtt://…"
    egret.toml:9:16: pool[0].api-key-file: found a key file, expected none on a pool over MQTT: [mqtt] has the credentials
        help: remove it
    "#);
}

#[test]
fn an_empty_file_is_reported_with_what_it_needs() {
    insta::assert_snapshot!(parse("").unwrap_err(), @r#"
    egret.toml:1:1: node: found nothing, expected this table
        help: add [node] with id = "gate-01"
    egret.toml:1:1: model: found nothing, expected this table
        help: add [model] with bundle = "/var/lib/egret/…"
    "#);
}

#[test]
fn limits_are_enforced() {
    let cameras = "[[camera]]\nid = \"a\"\nsource = \"dir://f\"\n".repeat(65);
    assert!(
        parse(&format!("{SMALLEST}{cameras}"))
            .unwrap_err()
            .contains("65 of them, expected at most 64")
    );
    assert!(
        parse(&"#".repeat(CONFIG_BYTES_MAX + 1))
            .unwrap_err()
            .contains("expected at most 1048576 bytes")
    );
    let wrong: String = (0..500).map(|index| format!("key-{index} = 1\n")).collect();
    let errors = parse(&wrong).unwrap_err();
    assert!(errors.ends_with("egret.toml: and 402 more"), "{errors}");
}

#[test]
fn a_megabyte_of_mistakes_is_reported_in_seconds() {
    let text: String = (0..90_000).map(|n| format!("x{n:x} = 1\n")).collect();
    let started = std::time::Instant::now();
    let errors = AgentConfig::parse(&text, "egret.toml").expect_err("unknown keys");
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    assert_eq!(errors.diagnostics().len(), 100);
    assert!(errors.to_string().ends_with("and 89902 more"));
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
            prop_assert!(!errors.diagnostics().is_empty());
        }
    }
}

#[test]
fn no_switch_is_suggested_the_wrong_way() {
    for (written, help) in [
        ("on", "choose one of them"),
        ("true", "choose one of them"),
        ("local", "write \"local-only\""),
        ("local_only", "write \"local-only\""),
    ] {
        let text = format!("{SMALLEST}\n[policy]\nkill-switch = {written:?}\n");
        let errors = parse(&text).unwrap_err();
        assert!(errors.contains(help), "{written}: {errors}");
    }
    let text = format!("{SMALLEST}\n[mqtt]\nurl = \"mqtt://127.0.0.1\"\nca-file = \"/ca.pem\"\n");
    let errors = parse(&text).unwrap_err();
    assert!(
        errors.contains("mqtt.ca-file") && errors.contains("mqtts://"),
        "{errors}"
    );
}
