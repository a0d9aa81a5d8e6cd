//! From the text of an `egret.toml` to an [`AgentConfig`], or to all diagnostics of the file.

use std::time::Duration;

use toml::de::{DeTable, DeValue};

use super::diagnostics::{ConfigErrors, Diagnostics, Mismatch};
use super::section::Section;
use super::value::{
    Checked, choice, duration, flag, found, id, nearest, number, path, quote, rate, size, string,
    text, whole,
};
use super::{
    AgentConfig, BackendChoice, Camera, ClosedForm, Gate, Gateway, KillSwitch, Model, Mqtt,
    MqttScheme, MqttUrl, Node, Policy, Pool, PoolTransport, RouteMode, Rule, url,
};
use crate::limits::IN_FLIGHT_MAX;

/// Largest configuration text, in bytes.
pub const CONFIG_BYTES_MAX: usize = 1 << 20;

const CAMERAS_MAX: usize = 64;
const RULES_MAX: usize = 32;
const POOLS_MAX: usize = 32;
const ANSWERS_MAX: usize = 64;
const QUESTION_MAX: usize = 2000;
const ANSWER_MAX: usize = 200;
const NAME_MAX: usize = 200;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);
/// Period of 60 frames per second.
const PERIOD_MIN: Duration = Duration::from_nanos(1_000_000_000 / 60);

/// Defaults of keys that are left out; the example file repeats them.
const MOTION: f64 = 0.01;
const MAX_AGE: Duration = Duration::from_secs(30);
const STALL_AFTER: Duration = Duration::from_secs(10);
const MAX_NEW_TOKENS: u32 = 64;
const DEADLINE: Duration = Duration::from_secs(8);
const ATTEMPTS: u32 = 3;
const IN_FLIGHT: u32 = 4;
const OUTBOX_EVENTS: u32 = 10_000;

impl AgentConfig {
    /// Reads the text of a configuration; diagnostics begin with `file_name`. Relative paths are
    /// kept as written.
    ///
    /// # Errors
    /// Everything that is wrong with the text, in its order.
    pub fn parse(text: &str, file_name: &str) -> Result<AgentConfig, ConfigErrors> {
        if text.len() > CONFIG_BYTES_MAX {
            let mismatch = Mismatch::new(
                format!("{} bytes", text.len()),
                format!("at most {CONFIG_BYTES_MAX} bytes"),
                "name an egret.toml",
            );
            return Err(ConfigErrors::whole(file_name, mismatch));
        }
        let diagnostics = Diagnostics::new(text);
        let (table, syntax) = DeTable::parse_recoverable(text);
        for error in &syntax {
            diagnostics.add(
                error.span().unwrap_or(0..0),
                String::new(),
                syntax_error(error.message()),
            );
        }
        // What the parser recovered from broken syntax would give diagnostics of its own.
        let config = if syntax.is_empty() {
            Section::new(&diagnostics, String::new(), 0..0, table.get_ref()).parse(root)
        } else {
            None
        };
        match config {
            Some(config) if diagnostics.is_empty() => Ok(config),
            _ => Err(diagnostics.into_errors(file_name)),
        }
    }
}

fn root(root: &Section<'_>) -> Option<AgentConfig> {
    for (table, example) in [
        ("node", "id = \"gate-01\""),
        ("model", "bundle = \"/var/lib/egret/…\""),
    ] {
        if !root.has(table) {
            root.report(
                0..0,
                table,
                Mismatch::new(
                    "nothing",
                    "this table",
                    format!("add [{table}] with {example}"),
                ),
            );
        }
    }
    let node = root.table("node", node).flatten();
    let model = root.table("model", model).flatten();
    let has_broker = root.has("mqtt");
    let mqtt = root.table("mqtt", mqtt);

    let cameras = root.tables("camera", CAMERAS_MAX);
    Section::unique(&cameras, "camera");
    let pools = root.tables("pool", POOLS_MAX);
    Section::unique(&pools, "pool");
    // Ids of invalid pools count too: a rule that names one is right.
    let pool_ids: Vec<String> = pools
        .iter()
        .filter_map(|pool| {
            pool.optional("id", |value| {
                string(value, "").map(str::to_owned).or(Ok(String::new()))
            })
        })
        .collect();
    let cameras: Vec<Option<Camera>> = cameras
        .into_iter()
        .map(|section| section.parse(|section| camera(section, &pool_ids)))
        .collect();
    let pools: Vec<Option<Pool>> = pools
        .into_iter()
        .map(|section| section.parse(|section| pool(section, has_broker)))
        .collect();

    let policy = root.table("policy", policy).unwrap_or_default();
    let gateway = root.table("gateway", |gateway| Gateway {
        listen: gateway
            .optional("listen", listen)
            .unwrap_or(Gateway::LISTEN),
    });

    Some(AgentConfig {
        node: node?,
        model: model?,
        // An invalid [mqtt] table is an error, not a box without a broker.
        mqtt: mqtt.map_or(Some(None), |mqtt| mqtt.map(Some))?,
        cameras: cameras.into_iter().collect::<Option<_>>()?,
        pools: pools.into_iter().collect::<Option<_>>()?,
        policy,
        gateway,
    })
}

fn node(section: &Section<'_>) -> Option<Node> {
    Some(Node {
        id: section.required("id", "\"gate-01\"", id)?,
    })
}

fn model(section: &Section<'_>) -> Option<Model> {
    const BACKENDS: &[(&str, BackendChoice)] = &[
        ("auto", BackendChoice::Auto),
        ("ort", BackendChoice::Ort),
        ("tract", BackendChoice::Tract),
    ];
    const PROVIDERS: &[(&str, &str)] = &[
        ("cpu", "cpu"),
        ("cuda", "cuda"),
        ("tensorrt", "tensorrt"),
        ("tract", "tract"),
    ];
    let bundle = section.required("bundle", "\"/var/lib/egret/smolvlm2-256m-int8\"", path);
    let model = Model {
        bundle: bundle.clone().unwrap_or_default(),
        backend: section
            .optional("backend", choice(BACKENDS))
            .unwrap_or_default(),
        threads: section.optional("threads", whole(1..=256)).map(count),
        ort_library: section.optional("ort-library", path),
        require_execution_provider: section
            .optional("require-execution-provider", choice(PROVIDERS))
            .map(str::to_owned),
    };
    bundle.map(|_| model)
}

fn mqtt(section: &Section<'_>) -> Option<Mqtt> {
    let url = section.required("url", "\"mqtt://127.0.0.1:1883\"", url::mqtt);
    let username_file = section.optional("username-file", path);
    let password_file = section.optional("password-file", path);
    let ca_file = section.optional("ca-file", path);
    if let (
        Some(MqttUrl {
            scheme: MqttScheme::Tcp | MqttScheme::Websocket,
            ..
        }),
        Some(_),
    ) = (&url, &ca_file)
    {
        let help = "write the url with mqtts:// or wss://, or remove the key";
        section.report(
            section.span_of("ca-file"),
            "ca-file",
            Mismatch::new("a file", "none beside a url without TLS", help),
        );
    }
    let outbox_events_max = count(
        section
            .optional("outbox-events", whole(1..=1_000_000))
            .unwrap_or(OUTBOX_EVENTS),
    );
    Some(Mqtt {
        url: url?,
        username_file,
        password_file,
        ca_file,
        outbox_events_max,
    })
}

fn camera(section: &Section<'_>, pools: &[String]) -> Option<Camera> {
    let id = section.required("id", "\"lobby\"", id);
    let source = section.required("source", "\"rtsp://192.0.2.7/stream2\"", url::source);
    let period = section
        .optional("rate", rate(PERIOD_MIN..=HOUR))
        .unwrap_or(SECOND);
    let gate = section.table("gate", gate).unwrap_or_default();
    let stall_after = section
        .optional("stall-after", duration(SECOND..=HOUR))
        .unwrap_or(STALL_AFTER);
    let rules = section.tables("rule", RULES_MAX);
    Section::unique(&rules, "rule of a camera");
    let rules: Vec<Option<Rule>> = rules
        .into_iter()
        .map(|section| section.parse(|section| rule(section, pools)))
        .collect();
    Some(Camera {
        id: id?,
        source: source?,
        period,
        gate,
        stall_after,
        rules: rules.into_iter().collect::<Option<_>>()?,
    })
}

fn gate(section: &Section<'_>) -> Gate {
    Gate {
        motion: section
            .optional("motion", number(0.0..=1.0))
            .unwrap_or(MOTION),
        max_age: section
            .optional("max-age", duration(100 * MILLISECOND..=7 * DAY))
            .unwrap_or(MAX_AGE),
    }
}

impl Default for Gate {
    /// A hundredth of the pixels, or 30 seconds.
    fn default() -> Self {
        Self {
            motion: MOTION,
            max_age: MAX_AGE,
        }
    }
}

fn rule(section: &Section<'_>, pools: &[String]) -> Option<Rule> {
    const ROUTES: &[(&str, RouteMode)] = &[
        ("auto", RouteMode::Auto),
        ("local", RouteMode::Local),
        ("pool", RouteMode::Pool),
        ("must-escalate", RouteMode::MustEscalate),
    ];
    let rule_id = section.required("id", "\"person\"", id);
    let question = section.required("question", "\"Is there a person?\"", text(QUESTION_MAX));
    let answers = answers(section);
    let alert = alert(section, &answers);
    let threshold = section.optional("threshold", number(0.0..=1.0));
    let route = section
        .optional("route", choice(ROUTES))
        .unwrap_or_default();
    let pool = section.optional("pool", |value| known_pool(value, pools));
    let split = section.optional("split", flag).unwrap_or(false);
    let max_new_tokens = count(
        section
            .optional("max-new-tokens", whole(1..=4096))
            .unwrap_or(MAX_NEW_TOKENS),
    );
    let threshold = threshold.unwrap_or(Rule::default_threshold(!answers.is_empty()));
    Some(Rule {
        id: rule_id?,
        question: question?,
        answers,
        alert,
        threshold,
        route,
        pool,
        split,
        max_new_tokens,
    })
}

/// Trimmed and distinct; at least two.
fn answers(section: &Section<'_>) -> Vec<String> {
    let listed = section.list("answers", ANSWERS_MAX, trimmed);
    let mut answers: Vec<String> = Vec::with_capacity(listed.len());
    for (answer, place) in listed {
        if answers.contains(&answer) {
            let mismatch = Mismatch::new(
                format!("{} twice", quote(&answer)),
                "answers that differ after trimming",
                "remove one",
            );
            section.report(place, "answers", mismatch);
        } else {
            answers.push(answer);
        }
    }
    if section.has("answers")
        && answers.len() < 2
        && section.optional("answers", is_too_short) == Some(true)
    {
        let mismatch = Mismatch::new(
            "fewer than two",
            "at least two answers to choose from",
            "add the others, or remove the key for free text",
        );
        section.report(section.span_of("answers"), "answers", mismatch);
    }
    answers
}

/// Whether it is an array too short to choose from; a value of another type is reported elsewhere.
fn is_too_short(value: &DeValue<'_>) -> Checked<bool> {
    Ok(value.as_array().is_some_and(|array| array.len() < 2))
}

/// A subset of `answers`.
fn alert(section: &Section<'_>, answers: &[String]) -> Vec<String> {
    let mut alert = Vec::new();
    for (answer, place) in section.list("alert", ANSWERS_MAX, trimmed) {
        if !section.has("answers") {
            let mismatch = Mismatch::new(
                quote(&answer),
                "answers to take it from: free text has no alert",
                "add answers = [\"yes\", \"no\"]",
            );
            section.report(place, "alert", mismatch);
        } else if !answers.contains(&answer) {
            let near = nearest(&answer, answers.iter().map(String::as_str))
                .or(answers.first().map(String::as_str))
                .unwrap_or("…");
            let mismatch = Mismatch::new(
                quote(&answer),
                "one of the rule's answers, letter for letter",
                format!("write {near:?}, or add it to answers"),
            );
            section.report(place, "alert", mismatch);
        } else if !alert.contains(&answer) {
            alert.push(answer);
        }
    }
    alert
}

fn trimmed(value: &DeValue<'_>) -> Checked<String> {
    text(ANSWER_MAX)(value).map(|answer| answer.trim().to_owned())
}

fn known_pool(value: &DeValue<'_>, pools: &[String]) -> Checked<String> {
    let id = string(value, "a pool's id")?;
    if pools.iter().any(|pool| pool == id) {
        return Ok(id.to_owned());
    }
    let (expected, help) = match nearest(id, pools.iter().map(String::as_str)) {
        Some(near) => (
            "the id of a [[pool]] of this file",
            format!("did you mean {near:?}?"),
        ),
        None => (
            "the id of a [[pool]] of this file",
            format!("add [[pool]] with id = {}", quote(id)),
        ),
    };
    Err(Mismatch::new(quote(id), expected, help))
}

fn pool(section: &Section<'_>, has_broker: bool) -> Option<Pool> {
    const CLOSED: &[(&str, ClosedForm)] =
        &[("schema", ClosedForm::Schema), ("text", ClosedForm::Text)];
    let id = section.required("id", "\"vlm-large\"", id);
    let transport = transport(section, has_broker);
    let model = section.required("model", "\"some-vlm\"", text(NAME_MAX));
    let deadline = section
        .optional("deadline", duration(100 * MILLISECOND..=10 * MINUTE))
        .unwrap_or(DEADLINE);
    let closed = section
        .optional("closed", choice(CLOSED))
        .unwrap_or_default();
    let images = section.optional("images", flag).unwrap_or(true);
    let attempts = section
        .optional("attempts", whole(1..=10))
        .unwrap_or(ATTEMPTS);
    let usd_per_call = section.optional("usd-per-call", number(0.0..=1000.0));
    Some(Pool {
        id: id?,
        transport: transport?,
        model: model?,
        deadline,
        closed,
        images,
        attempts,
        usd_per_call,
    })
}

/// Either `url` or `mqtt = true`.
fn transport(section: &Section<'_>, has_broker: bool) -> Option<PoolTransport> {
    const EXPECTED: &str = "either url or mqtt = true";
    let url = section.optional("url", url::pool);
    let mqtt = section.optional("mqtt", flag).unwrap_or(false);
    let api_key_file = section.optional("api-key-file", path);
    if section.has("url") && mqtt {
        section.report(
            section.span_of("mqtt"),
            "mqtt",
            Mismatch::new("url and mqtt = true", EXPECTED, "remove one of the two"),
        );
        return None;
    }
    if !mqtt {
        if !section.has("url") {
            section.report(
                section.span_of("mqtt"),
                "url",
                Mismatch::new(
                    "neither",
                    EXPECTED,
                    "add url = \"https://…/v1\", or mqtt = true",
                ),
            );
        }
        return url.map(|url| PoolTransport::Https { url, api_key_file });
    }
    if !has_broker {
        let mismatch = Mismatch::new(
            "no [mqtt] table",
            "a broker for this pool's requests",
            "add [mqtt] with url = \"mqtt://…\"",
        );
        section.report(section.span_of("mqtt"), "mqtt", mismatch);
    }
    if section.has("api-key-file") {
        let mismatch = Mismatch::new(
            "a key file",
            "none on a pool over MQTT: [mqtt] has the credentials",
            "remove it",
        );
        section.report(section.span_of("api-key-file"), "api-key-file", mismatch);
    }
    Some(PoolTransport::Mqtt)
}

/// Every kill switch by its name.
const KILL_SWITCHES: &[(&str, KillSwitch)] = &{
    let [off, local_only, pool_only] = KillSwitch::ALL;
    [
        (off.as_str(), off),
        (local_only.as_str(), local_only),
        (pool_only.as_str(), pool_only),
    ]
};

fn policy(section: &Section<'_>) -> Policy {
    Policy {
        kill_switch: section
            .optional("kill-switch", choice(KILL_SWITCHES))
            .unwrap_or_default(),
        calls_per_minute: section.optional("calls-per-minute", whole(0..=100_000)),
        in_flight_max: count(
            section
                .optional("in-flight", whole(1..=IN_FLIGHT_MAX))
                .unwrap_or(IN_FLIGHT),
        ),
        bytes_per_minute: section.optional("bytes-per-minute", size),
        usd_per_day: section.optional("usd-per-day", number(0.0..=1_000_000.0)),
    }
}

impl Default for Policy {
    /// The policy without a `[policy]` table: four calls at a time, no other limit.
    fn default() -> Self {
        Self {
            kill_switch: KillSwitch::Off,
            calls_per_minute: None,
            in_flight_max: count(IN_FLIGHT),
            bytes_per_minute: None,
            usd_per_day: None,
        }
    }
}

fn listen(value: &DeValue<'_>) -> Checked<std::net::SocketAddr> {
    let text = string(value, "an address and a port")?;
    text.parse().map_err(|_| {
        Mismatch::new(
            found(value),
            "an IP address and a port",
            "write \"127.0.0.1:8080\", or \"0.0.0.0:8080\" for every interface",
        )
    })
}

/// A checked number as `usize`, which has 32 bits or more on every target.
fn count(number: u32) -> usize {
    number as usize
}

/// The TOML parser's message, `found, expected this or that`, on one line.
fn syntax_error(message: &str) -> Mismatch {
    let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    let (found, expected) = line.split_once(", expected ").unwrap_or((&line, "TOML"));
    Mismatch::new(found, expected, "see https://toml.io for how it is written")
}

#[cfg(test)]
mod tests;
