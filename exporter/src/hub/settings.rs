//! The hub's address, cache and access token, from the environment variables that Python's
//! `huggingface_hub` reads.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderValue;

use super::error::HubError;

const ENDPOINT: &str = "https://huggingface.co";
/// How long a hub may send nothing, in seconds.
const TIMEOUT_SECONDS: u64 = 10;

/// Settings from the environment.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) endpoint: Url,
    /// The `Authorization` header.
    pub(super) bearer: Option<HeaderValue>,
    pub(super) cache: PathBuf,
    pub(super) timeout: Duration,
}

impl Settings {
    /// Reads them; `variable` is the environment.
    pub(super) fn new(variable: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let wrong = |name, found: &str, expected| HubError::Setting {
            name,
            found: found.to_owned(),
            expected,
        };

        let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.into());
        let url = Url::parse(&endpoint)
            .ok()
            .filter(|url| matches!(url.scheme(), "http" | "https") && !url.cannot_be_a_base());
        let endpoint = url.ok_or_else(|| {
            wrong(
                "HF_ENDPOINT",
                &endpoint,
                "a URL such as https://huggingface.co",
            )
        })?;

        let bearer = |token: String| -> Result<HeaderValue, HubError> {
            // The token itself must not be shown.
            let unprintable = || wrong("HF_TOKEN", "…", "one line of printable text");
            let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
                .map_err(|_| unprintable())?;
            value.set_sensitive(true);
            Ok(value)
        };
        let seconds = |text: String| {
            let is_number = text.parse().ok().filter(|&seconds: &u64| seconds > 0);
            is_number.ok_or_else(|| {
                wrong(
                    "HF_HUB_DOWNLOAD_TIMEOUT",
                    &text,
                    "a number of seconds above 0",
                )
            })
        };
        let path = |name: &str| variable(name).map(PathBuf::from);
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| path("XDG_CACHE_HOME").map(|caches| caches.join("huggingface/hub")))
            .or_else(|| path("HOME").map(|home| home.join(".cache/huggingface/hub")));
        Ok(Settings {
            endpoint,
            bearer: variable("HF_TOKEN").map(bearer).transpose()?,
            cache: cache
                .filter(|path| path != Path::new(""))
                .ok_or_else(|| wrong("HF_HUB_CACHE", "", "a folder, since HOME is not set"))?,
            timeout: Duration::from_secs(
                variable("HF_HUB_DOWNLOAD_TIMEOUT")
                    .map(seconds)
                    .transpose()?
                    .unwrap_or(TIMEOUT_SECONDS),
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Settings, HubError> {
        Settings::new(|name| {
            variables
                .iter()
                .find(|(found, _)| *found == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_cache_is_named_by_the_first_of_four_variables() {
        let all = [
            ("HF_HUB_CACHE", "/a"),
            ("HF_HOME", "/b"),
            ("XDG_CACHE_HOME", "/c"),
            ("HOME", "/d"),
        ];
        for (from, cache) in [
            (0, "/a"),
            (1, "/b/hub"),
            (2, "/c/huggingface/hub"),
            (3, "/d/.cache/huggingface/hub"),
        ] {
            assert_eq!(settings(&all[from..]).unwrap().cache, Path::new(cache));
        }
    }

    #[test]
    fn an_invalid_setting_is_reported() {
        let home = ("HOME", "/d");
        let refusal = |variables: &[(&str, &str)]| settings(variables).unwrap_err().to_string();
        insta::assert_snapshot!(refusal(&[home, ("HF_ENDPOINT", "hub.example")]), @r#"HF_ENDPOINT is "hub.example", expected a URL such as https://huggingface.co"#);
        insta::assert_snapshot!(refusal(&[home, ("HF_TOKEN", "hf_one\ntwo")]), @r#"HF_TOKEN is "…", expected one line of printable text"#);
        insta::assert_snapshot!(refusal(&[home, ("HF_HUB_DOWNLOAD_TIMEOUT", "0")]), @r#"HF_HUB_DOWNLOAD_TIMEOUT is "0", expected a number of seconds above 0"#);
        insta::assert_snapshot!(refusal(&[]), @r#"HF_HUB_CACHE is "", expected a folder, since HOME is not set"#);
    }
}
