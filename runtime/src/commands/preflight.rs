//! What a configuration names outside itself and is not there. None of it stops the agent: a folder
//! may be mounted later, a key written later. But it is told before it is missed.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use firmware_config::agent::{AgentConfig, PoolTransport, RouteMode, Source};

/// Something that is named and missing, or cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{who}: {what}; {cure}")]
pub struct Absence {
    /// Whose it is: `camera yard`, `pool big`.
    who: String,
    /// The thing, and what the system says of it.
    what: String,
    cure: &'static str,
}

/// Looks for everything that `config` names, but the bundle.
pub fn absences(config: &AgentConfig) -> Vec<Absence> {
    let mut absences = Vec::new();
    let mut miss = |who: &str, what: String, cure| {
        absences.push(Absence {
            who: who.to_owned(),
            what,
            cure,
        })
    };

    if let Some(Err(what)) = config.model.ort_library.as_deref().map(file) {
        miss("model", what, "change [model] ort-library");
    }
    if let Some(mqtt) = &config.mqtt {
        for (path, cure) in [
            (&mqtt.username_file, "change [mqtt] username-file"),
            (&mqtt.password_file, "change [mqtt] password-file"),
            (&mqtt.ca_file, "change [mqtt] ca-file"),
        ] {
            if let Some(Err(what)) = path.as_deref().map(file) {
                miss("broker", what, cure);
            }
        }
    }
    for camera in &config.cameras {
        let who = format!("camera {}", camera.id);
        match &camera.source {
            Source::Folder(path) => {
                if let Err(error) = path.read_dir() {
                    miss(&who, told(path, &error), "create it, or change its source");
                }
            }
            Source::File(path) => {
                if let Err(what) = file(path) {
                    miss(&who, what, "create it, or change its source");
                }
            }
            Source::Rtsp(_) => {}
        }
        if camera.rules.is_empty() {
            miss(
                &who,
                "it has no rule, so nothing is asked about its frames".into(),
                "add a [[camera.rule]]",
            );
        }
        for rule in &camera.rules {
            if matches!(rule.route, RouteMode::Pool | RouteMode::MustEscalate)
                && config.pool_for(rule).is_none()
            {
                miss(
                    &format!("{who}, rule {}", rule.id),
                    "it needs a pool, and no [[pool]] takes images".into(),
                    "add a [[pool]]",
                );
            }
        }
    }
    if config
        .cameras
        .iter()
        .any(|camera| !matches!(camera.source, Source::Folder(_)))
        && !in_path("ffmpeg")
    {
        miss(
            "cameras",
            "no ffmpeg in PATH, which decodes video".into(),
            "install it (apt install ffmpeg)",
        );
    }
    for pool in &config.pools {
        if let PoolTransport::Https {
            api_key_file: Some(path),
            ..
        } = &pool.transport
            && let Err(what) = file(path)
        {
            miss(
                &format!("pool {}", pool.id),
                what,
                "write the key there, or change its api-key-file",
            );
        }
    }
    absences
}

/// Whether a file can be read and holds anything.
fn file(path: &Path) -> Result<(), String> {
    let mut byte = [0];
    match File::open(path).and_then(|mut file| file.read(&mut byte)) {
        Ok(0) => Err(format!("{} is empty", path.display())),
        Ok(_) => Ok(()),
        Err(error) => Err(told(path, &error)),
    }
}

fn told(path: &Path, error: &io::Error) -> String {
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
    fn what_is_not_there_is_told_with_a_cure() {
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
        let told: Vec<String> = absences(&config)
            .iter()
            .map(|absence| {
                absence
                    .to_string()
                    .replace(folder.path().to_str().unwrap(), "…")
            })
            .collect();
        insta::assert_snapshot!(told.join("\n"), @r"
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
            let absences = absences(&config);
            assert_eq!(absences.len(), 1);
            insta::assert_snapshot!(absences[0], @"camera c, rule r: it needs a pool, and no [[pool]] takes images; add a [[pool]]");
        }
    }
}
