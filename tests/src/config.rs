//! `egret.toml` as the tests need it: a node, a broker if there is one, cameras that ask one
//! question.

use std::path::Path;

use firmware_config::agent::Mqtt;

/// The broker at `url`, which takes anybody.
///
/// # Panics
/// When it is no URL of a broker.
pub fn mqtt(url: &str) -> Mqtt {
    Mqtt {
        url: url.parse().unwrap(),
        username_file: None,
        password_file: None,
        ca_file: None,
        outbox_events_max: 1,
    }
}

/// A configuration of node `gate-01`, with more sections behind it. Its bundle is not there.
pub fn config(broker: Option<&str>, sections: &[String]) -> String {
    let broker = broker
        .map(|url| format!("[mqtt]\nurl = \"{url}\"\n"))
        .unwrap_or_default();
    format!(
        "[node]\nid = \"gate-01\"\n[model]\nbundle = \"/nowhere\"\nbackend = \"tract\"\n{broker}{}",
        sections.concat()
    )
}

/// A camera whose every frame is asked whether there is a person. Keys that follow belong to its
/// rule.
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

/// A camera that shows the pictures of a folder.
pub fn folder_camera(id: &str, folder: &Path) -> String {
    camera(id, &format!("dir://{}", folder.display()))
}
