//! `egret.toml` for the tests: a node, an optional broker, and cameras with one rule each.

use std::path::Path;

use firmware_config::agent::Mqtt;

/// The broker at `url`, without authentication.
///
/// # Panics
/// When `url` is not the URL of a broker.
pub fn mqtt(url: &str) -> Mqtt {
    Mqtt {
        url: url.parse().unwrap(),
        username_file: None,
        password_file: None,
        ca_file: None,
        outbox_events_max: 1,
    }
}

/// A configuration of node `gate-01` with a bundle path that does not exist, followed by
/// `sections`.
pub fn config(broker: Option<&str>, sections: &[String]) -> String {
    let broker = broker
        .map(|url| format!("[mqtt]\nurl = \"{url}\"\n"))
        .unwrap_or_default();
    format!(
        "[node]\nid = \"gate-01\"\n[model]\nbundle = \"/nowhere\"\nbackend = \"tract\"\n{broker}{}",
        sections.concat()
    )
}

/// A camera that asks about every frame whether there is a person. Keys appended to it belong to
/// its rule.
pub fn camera(id: &str, source: &str) -> String {
    format!(
        r#"
[[camera]]
id = "{id}"
source = "{source}"
rate = "25/s"
gate = {{ motion = 0, max-age = "30s" }}
[[camera.rule]]
id = "person"
question = "is there a person?"
answers = ["yes", "no"]
alert = ["yes"]
"#
    )
}

/// A camera that reads the images of a folder.
pub fn folder_camera(id: &str, folder: &Path) -> String {
    camera(id, &format!("dir://{}", folder.display()))
}
