//! The demo's `egret.toml`: an ordinary configuration, written where it can be read, changed and
//! run again with `egret run`.

use std::net::SocketAddr;
use std::path::Path;

use super::assets::Assets;

/// Node id of the demo.
pub(crate) const NODE: &str = "demo";
/// Pool id of the demo's worker.
pub(crate) const POOL: &str = "nano-pool";

/// The text of the demo's configuration, with `broker` on loopback.
pub(crate) fn text(assets: &Assets, broker: SocketAddr) -> String {
    format!(
        r#"# Written by `egret demo`. Run it again with: egret run --config THIS_FILE
# (the demo's broker and pool worker run only while the demo does)
# The thresholds were set by eye for these two cameras; nothing is calibrated yet.

[node]
id = "{NODE}"

[model]
bundle = {bundle}
backend = "tract"

[mqtt]
url = "mqtt://{broker}"

[[camera]]
id = "lobby"
source = {lobby}
rate = "4/s"
gate = {{ motion = 0.01, max-age = "2s" }}

[[camera.rule]]
id = "person"
question = "is there a person?"
answers = ["yes", "no"]
alert = ["yes"]
threshold = 0.7

[[camera.rule]]
id = "empty"
question = "is the room empty?"
answers = ["yes", "no"]
threshold = 0.65

[[camera]]
id = "carpark"
source = {carpark}
rate = "4/s"
gate = {{ motion = 0.01, max-age = "2s" }}

[[camera.rule]]
id = "car"
question = "is there a car?"
answers = ["yes", "no"]
alert = ["yes"]

[[camera.rule]]
id = "count"
question = "how many cars are there?"
answers = ["0", "1", "2", "3", "4", "many"]

[[pool]]
id = "{POOL}"
mqtt = true
model = "nano-pool"
deadline = "5s"
"#,
        bundle = quoted(&assets.edge_bundle()),
        lobby = folder_url(&assets.frames("lobby")),
        carpark = folder_url(&assets.frames("carpark")),
    )
}

fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

fn folder_url(path: &Path) -> String {
    toml::Value::String(format!("dir://{}", path.display())).to_string()
}
