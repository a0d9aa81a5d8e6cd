//! `egret.toml`: what one box watches, asks, escalates and publishes.

mod diagnostics;
mod parse;
mod section;
pub mod units;
mod url;
mod value;

use std::path::PathBuf;
use std::time::Duration;

pub use diagnostics::{ConfigErrors, Diagnostic};
pub use parse::CONFIG_BYTES_MAX;

/// A complete, valid configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentConfig {
    /// The box that runs this configuration.
    pub node: Node,
    /// The model that answers on the box.
    pub model: Model,
    /// The broker that events and MQTT pools go through; `None` when no `[mqtt]` table is given.
    pub mqtt: Option<Mqtt>,
    /// Cameras, in the order of the file; ids are unique.
    pub cameras: Vec<Camera>,
    /// Pools, in the order of the file; ids are unique.
    pub pools: Vec<Pool>,
    /// What may be escalated, and how much of it.
    pub policy: Policy,
    /// The OpenAI-compatible endpoint; `None` when no `[gateway]` table is given.
    pub gateway: Option<Gateway>,
}

impl AgentConfig {
    /// The pool that a camera's rule is escalated to: the one it names, else the first of the file
    /// that takes images.
    #[must_use]
    pub fn pool_for(&self, rule: &Rule) -> Option<&Pool> {
        match &rule.pool {
            Some(id) => self.pools.iter().find(|pool| pool.id == *id),
            None => default_pool(&self.pools, true),
        }
    }
}

/// The pool that is asked where none is named: the first that takes the request, with images or
/// without.
#[must_use]
pub fn default_pool<'p>(
    pools: impl IntoIterator<Item = &'p Pool>,
    with_images: bool,
) -> Option<&'p Pool> {
    pools.into_iter().find(|pool| pool.images || !with_images)
}

/// The box that runs this configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `[a-z0-9_-]{1,64}`; topics are `egret/<id>/…`.
    pub id: String,
}

/// The model that answers on the box.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Bundle folder.
    pub bundle: PathBuf,
    /// Which inference engine runs it.
    pub backend: BackendChoice,
    /// Inference threads; `None` leaves the choice to the backend.
    pub threads: Option<usize>,
    /// ONNX Runtime's shared library; `ORT_DYLIB_PATH` precedes it, and it precedes the library
    /// beside the binary.
    pub ort_library: Option<PathBuf>,
    /// Start-up fails unless this execution provider really runs (`cpu`, `cuda`, `tensorrt`,
    /// `tract`).
    pub require_execution_provider: Option<String>,
}

/// Which inference engine runs a bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BackendChoice {
    /// ONNX Runtime when its library is found, else tract.
    #[default]
    Auto,
    /// ONNX Runtime, or an error.
    Ort,
    /// tract, always built in.
    Tract,
}

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mqtt {
    /// Its address.
    pub url: MqttUrl,
    /// File that holds the user name (trailing newline ignored).
    pub username_file: Option<PathBuf>,
    /// File that holds the password (trailing newline ignored).
    pub password_file: Option<PathBuf>,
    /// PEM file of the certificate authorities to trust instead of the system's (`mqtts`, `wss`).
    pub ca_file: Option<PathBuf>,
    /// Most events kept while the broker is away; past it the oldest that is not in flight is
    /// dropped, counted and declared.
    pub outbox_events_max: usize,
}

/// A broker's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttUrl {
    /// The transport.
    pub scheme: MqttScheme,
    /// Host name or address.
    pub host: String,
    /// TCP port; 1883, 8883, 80 or 443 where the URL names none.
    pub port: u16,
    /// Path of a websocket URL, with its leading slash; empty otherwise.
    pub path: String,
}

/// The transport of MQTT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MqttScheme {
    /// `mqtt://`
    Tcp,
    /// `mqtts://`
    Tls,
    /// `ws://`
    Websocket,
    /// `wss://`
    WebsocketTls,
}

/// One camera and the questions asked about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Camera {
    /// `[a-z0-9_-]{1,64}`, unique.
    pub id: String,
    /// Where frames come from.
    pub source: Source,
    /// Time between two frames handed to the gate.
    pub period: Duration,
    /// What admits a frame.
    pub gate: Gate,
    /// A camera that delivers nothing for this long is `stalled` and reconnected.
    pub stall_after: Duration,
    /// Questions, in the order of the file; ids are unique within the camera.
    pub rules: Vec<Rule>,
}

/// Where frames come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `dir:///frames`: every image file in name order, once, lossless, paced by the camera's rate.
    Folder(PathBuf),
    /// `file:///clip.mp4`: a video file, once.
    File(PathBuf),
    /// `rtsp://…` or `rtsps://…`, as written.
    Rtsp(String),
}

impl Source {
    /// Whether the source comes to an end, and must not lose a frame before it.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        match self {
            Source::Folder(_) | Source::File(_) => true,
            Source::Rtsp(_) => false,
        }
    }

    /// Whether reading the source takes the program `ffmpeg`.
    #[must_use]
    pub fn needs_ffmpeg(&self) -> bool {
        match self {
            Source::Folder(_) => false,
            Source::File(_) | Source::Rtsp(_) => true,
        }
    }
}

impl std::fmt::Display for Source {
    /// As in the configuration, without user and password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Folder(path) => write!(f, "dir://{}", path.display()),
            Source::File(path) => write!(f, "file://{}", path.display()),
            Source::Rtsp(url) => f.write_str(&crate::redact::redact(url)),
        }
    }
}

/// What admits a frame to the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gate {
    /// Share of the cells of a small copy that have to change to admit a frame, 0..=1; 0 admits
    /// every frame.
    pub motion: f64,
    /// An unchanged scene is admitted again after this long.
    pub max_age: Duration,
}

/// One question asked about a camera's frames.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// `[a-z0-9_-]{1,64}`, unique within its camera.
    pub id: String,
    /// The question, as put to the model.
    pub question: String,
    /// The answers to choose from; empty for free text. Trimmed, distinct, at least two when not
    /// empty.
    pub answers: Vec<String>,
    /// Answers that mean ON; a subset of `answers`.
    pub alert: Vec<String>,
    /// The local answer is kept at or above this confidence.
    pub threshold: f64,
    /// Which model may answer.
    pub route: RouteMode,
    /// Pool asked when the answer is escalated; `None` leaves it to [`AgentConfig::pool_for`].
    pub pool: Option<String>,
    /// Whether the image is split into tiles for small text (13 to 17 times the work).
    pub split: bool,
    /// Longest free-text answer, in tokens.
    pub max_new_tokens: usize,
}

impl Rule {
    /// The threshold where none is configured. Answers to choose from come with a probability over
    /// all of them; free text does not, and is trusted sooner.
    #[must_use]
    pub const fn default_threshold(has_answers: bool) -> f64 {
        if has_answers { 0.9 } else { 0.5 }
    }
}

/// Which model may answer a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteMode {
    /// The router decides by confidence.
    #[default]
    Auto,
    /// No pool is asked. Events, with their images, still go to the broker.
    Local,
    /// Always asked of the pool.
    Pool,
    /// Only the pool's answer settles it; without one the state is `unknown`.
    MustEscalate,
}

/// A larger model that can be asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    /// `[a-z0-9_-]{1,64}`, unique.
    pub id: String,
    /// The transport of requests.
    pub transport: PoolTransport,
    /// `model` of the request.
    pub model: String,
    /// An answer that takes longer is discarded.
    pub deadline: Duration,
    /// How a question with answers is sent.
    pub closed: ClosedForm,
    /// Whether the pool takes images.
    pub images: bool,
    /// Attempts for one question, the first included.
    pub attempts: u32,
    /// Price of one attempt that the pool may charge for, in US dollars, if known.
    pub usd_per_call: Option<f64>,
}

/// The transport of requests to a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolTransport {
    /// `POST {url}/chat/completions`.
    Https {
        /// Base URL, `http://` or `https://`, without the trailing slash.
        url: String,
        /// File that holds the bearer token (trailing newline ignored).
        api_key_file: Option<PathBuf>,
    },
    /// `egret/pool/<id>/req` on the broker of `[mqtt]`.
    Mqtt,
}

/// How a question with answers is sent to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClosedForm {
    /// `response_format` json_schema with an enum.
    #[default]
    Schema,
    /// Plain text.
    Text,
}

/// What may be escalated, and how much of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// In force at start; also set over MQTT.
    pub kill_switch: KillSwitch,
    /// Pool calls allowed in any 60 seconds; `None` is no limit.
    pub calls_per_minute: Option<u32>,
    /// Pool calls waiting for an answer at one time.
    pub in_flight_max: usize,
    /// Bytes of pool requests allowed in any 60 seconds; `None` is no limit.
    pub bytes_per_minute: Option<u64>,
    /// US dollars of pool calls allowed in any 24 hours; `None` is no limit. Counts calls of pools
    /// with a price.
    pub usd_per_day: Option<f64>,
}

/// The switch that overrides every other routing rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KillSwitch {
    /// The router decides.
    #[default]
    Off,
    /// No pool is asked. Events, with their images, still go to the broker.
    LocalOnly,
    /// Everything is asked of the pool.
    PoolOnly,
}

impl KillSwitch {
    /// Every position.
    pub const ALL: [KillSwitch; 3] = [KillSwitch::Off, KillSwitch::LocalOnly, KillSwitch::PoolOnly];

    /// As it is written in the configuration and over MQTT.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            KillSwitch::Off => "off",
            KillSwitch::LocalOnly => "local-only",
            KillSwitch::PoolOnly => "pool-only",
        }
    }
}

impl std::str::FromStr for KillSwitch {
    type Err = UnknownKillSwitch;

    /// The opposite of [`KillSwitch::as_str`], to the letter: a command that turns a switch is not
    /// guessed at.
    fn from_str(text: &str) -> Result<Self, UnknownKillSwitch> {
        KillSwitch::ALL
            .into_iter()
            .find(|switch| switch.as_str() == text)
            .ok_or(UnknownKillSwitch)
    }
}

/// A text that is not the name of a kill switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected {}, {} or {}", KillSwitch::ALL[0].as_str(), KillSwitch::ALL[1].as_str(), KillSwitch::ALL[2].as_str())]
pub struct UnknownKillSwitch;

/// The OpenAI-compatible endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Address to listen on.
    pub listen: std::net::SocketAddr,
}

impl Gateway {
    /// Where it listens unless another address is configured: this host alone.
    pub const LISTEN: std::net::SocketAddr =
        std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_without_a_pool_takes_the_first_that_takes_images() {
        const TEXT: &str = r#"
            node.id = "n"
            model.bundle = "b"
            [[camera]]
            id = "a"
            source = "dir://frames"
            [[camera.rule]]
            id = "named"
            question = "?"
            pool = "words"
            [[camera.rule]]
            id = "open"
            question = "?"
        "#;
        let pool = |id: &str, images: bool| {
            format!(
                "[[pool]]\nid = \"{id}\"\nurl = \"http://h/v1\"\nmodel = \"m\"\nimages = {images}\n"
            )
        };
        let chosen = |pools: &[String]| {
            let text = format!("{TEXT}\n{}", pools.concat());
            let config = AgentConfig::parse(&text, "egret.toml").expect("a configuration");
            let rules = config.cameras[0].rules.iter();
            rules
                .map(|rule| config.pool_for(rule).map(|pool| pool.id.clone()))
                .collect::<Vec<_>>()
        };
        let (words, images) = (pool("words", false), pool("images", true));
        let id = |id: &str| Some(id.to_owned());
        assert_eq!(
            chosen(&[words.clone(), images]),
            [id("words"), id("images")]
        );
        assert_eq!(chosen(&[words]), [id("words"), None]);
    }

    #[test]
    fn a_request_without_images_goes_to_the_first_pool() {
        let pool = |id: &str, images| Pool {
            id: id.to_owned(),
            transport: PoolTransport::Mqtt,
            model: "m".to_owned(),
            deadline: Duration::from_secs(1),
            closed: ClosedForm::Schema,
            images,
            attempts: 1,
            usd_per_call: None,
        };
        let pools = [pool("words", false), pool("images", true)];
        let id = |with_images| default_pool(&pools, with_images).map(|pool| pool.id.as_str());
        assert_eq!((id(false), id(true)), (Some("words"), Some("images")));
        assert_eq!(default_pool(&pools[..1], true), None);
    }

    #[test]
    fn a_kill_switch_is_read_as_it_is_written() {
        for switch in KillSwitch::ALL {
            assert_eq!(switch.as_str().parse(), Ok(switch));
        }
        for text in ["", "OFF", " off", "local"] {
            assert_eq!(
                text.parse::<KillSwitch>(),
                Err(UnknownKillSwitch),
                "{text:?}"
            );
        }
    }
}
