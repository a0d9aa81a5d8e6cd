//! Checks before the start: what a configuration names and is missing or unusable. None of it stops
//! the agent, since a folder may be mounted later and a key written later; each is a warning.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use firmware_config::agent::{AgentConfig, Camera, Mqtt, Pool, PoolTransport, RouteMode, Source};

/// Something that is missing or unusable.
#[derive(Debug, thiserror::Error)]
#[error("{part}: {problem}; {help}")]
pub struct Finding {
    /// The part of the configuration that needs it: `camera yard`, `pool big`.
    part: String,
    problem: String,
    help: &'static str,
}

impl Finding {
    fn new(part: impl Into<String>, problem: impl Into<String>, help: &'static str) -> Self {
        Finding {
            part: part.into(),
            problem: problem.into(),
            help,
        }
    }
}

/// Checks everything that `config` names, except for the bundle.
pub fn check(config: &AgentConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(check_library(config));
    findings.extend(config.mqtt.iter().flat_map(check_broker));
    for camera in &config.cameras {
        findings.extend(check_camera(config, camera));
    }
    findings.extend(check_ffmpeg(config));
    findings.extend(config.pools.iter().filter_map(check_pool));
    findings
}

fn check_library(config: &AgentConfig) -> Option<Finding> {
    let problem = check_file(config.model.ort_library.as_deref()?).err()?;
    Some(Finding::new("model", problem, "change [model] ort-library"))
}

fn check_broker(mqtt: &Mqtt) -> impl Iterator<Item = Finding> {
    [
        (&mqtt.username_file, "change [mqtt] username-file"),
        (&mqtt.password_file, "change [mqtt] password-file"),
        (&mqtt.ca_file, "change [mqtt] ca-file"),
    ]
    .into_iter()
    .filter_map(|(path, help)| {
        let problem = check_file(path.as_deref()?).err()?;
        Some(Finding::new("broker", problem, help))
    })
}

fn check_camera(config: &AgentConfig, camera: &Camera) -> Vec<Finding> {
    let part = format!("camera {}", camera.id);
    let source = match &camera.source {
        Source::Folder(path) => path.read_dir().err().map(|error| named(path, &error)),
        Source::File(path) => check_file(path).err(),
        Source::Rtsp(_) => None,
    };
    let mut findings: Vec<_> = source
        .map(|problem| Finding::new(&part, problem, "create it, or change its source"))
        .into_iter()
        .collect();
    if camera.rules.is_empty() {
        let problem = "it has no rule, so nothing is asked about its frames";
        findings.push(Finding::new(&part, problem, "add a [[camera.rule]]"));
    }
    for rule in &camera.rules {
        let needs_pool = matches!(rule.route, RouteMode::Pool | RouteMode::MustEscalate);
        if needs_pool && config.pool_for(rule).is_none() {
            let part = format!("{part}, rule {}", rule.id);
            let problem = "it needs a pool, and no [[pool]] takes images";
            findings.push(Finding::new(part, problem, "add a [[pool]]"));
        }
    }
    findings
}

fn check_ffmpeg(config: &AgentConfig) -> Option<Finding> {
    let mut sources = config.cameras.iter().map(|camera| &camera.source);
    let is_missing = sources.any(Source::needs_ffmpeg) && !in_path("ffmpeg");
    is_missing.then(|| {
        let problem = "no ffmpeg in PATH, which decodes video";
        Finding::new("cameras", problem, "install it (apt install ffmpeg)")
    })
}

fn check_pool(pool: &Pool) -> Option<Finding> {
    let PoolTransport::Https { api_key_file, .. } = &pool.transport else {
        return None;
    };
    let problem = check_file(api_key_file.as_deref()?).err()?;
    let help = "write the key there, or change its api-key-file";
    Some(Finding::new(format!("pool {}", pool.id), problem, help))
}

/// Checks that a file can be read and is not empty.
fn check_file(path: &Path) -> Result<(), String> {
    let mut byte = [0];
    match File::open(path).and_then(|mut file| file.read(&mut byte)) {
        Ok(0) => Err(format!("{} is empty", path.display())),
        Ok(_) => Ok(()),
        Err(error) => Err(named(path, &error)),
    }
}

fn named(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn in_path(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_missing_is_reported_with_help() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("empty.key"), "").unwrap();
        std::fs::write(folder.path().join("some.key"), "secret").unwrap();
        let text = format!(
            r#"
            [node]
            id = "gate-01"
            [model]
            bundle = "/nowhere/bundle"
            [mqtt]
            url = "mqtt://127.0.0.1"
            password-file = "/nowhere/password"
            [[camera]]
            id = "yard"
            source = "dir:///nowhere/frames"
            [[camera.rule]]
            id = "person"
            question = "?"
            [[camera]]
            id = "here"
            source = "dir://{here}"
            [[pool]]
            id = "a"
            url = "https://127.0.0.1/v1"
            model = "m"
            api-key-file = "{here}/empty.key"
            [[pool]]
            id = "b"
            url = "https://127.0.0.1/v1"
            model = "m"
            api-key-file = "{here}/some.key"
            "#,
            here = folder.path().display()
        );
        let config = AgentConfig::parse(&text, "egret.toml").unwrap();
        let findings: Vec<String> = check(&config)
            .iter()
            .map(|finding| {
                finding
                    .to_string()
                    .replace(folder.path().to_str().unwrap(), "…")
            })
            .collect();
        insta::assert_snapshot!(findings.join("\n"), @r"
        broker: /nowhere/password: No such file or directory (os error 2); change [mqtt] password-file
        camera yard: /nowhere/frames: No such file or directory (os error 2); create it, or change its source
        camera here: it has no rule, so nothing is asked about its frames; add a [[camera.rule]]
        pool a: …/empty.key is empty; write the key there, or change its api-key-file
        ");
    }

    #[test]
    fn a_rule_that_needs_a_pool_that_takes_images_is_reported_without_one() {
        const TEXT: &str = "[node]\nid = \"n\"\n[model]\nbundle = \"/b\"\n[[camera]]\nid = \"c\"\nsource = \"dir:///\"\n\
                    [[camera.rule]]\nid = \"r\"\nquestion = \"?\"\nroute = \"must-escalate\"\n";
        let words = "[[pool]]\nid = \"p\"\nurl = \"http://h/v1\"\nmodel = \"m\"\nimages = false\n";
        for pools in ["", words] {
            let config = AgentConfig::parse(&format!("{TEXT}{pools}"), "egret.toml").unwrap();
            let findings = check(&config);
            assert_eq!(findings.len(), 1);
            assert_eq!(
                findings[0].to_string(),
                "camera c, rule r: it needs a pool, and no [[pool]] takes images; add a [[pool]]"
            );
        }
    }
}
