//! Requests to a hub. Only this file and the settings name `reqwest`.

use std::io::Write;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use vlm::hex;

use super::error::HubError;
use super::id::HubId;
use super::progress::Progress;
use super::settings::Settings;
use super::{Revision, create};

/// Longest description of a revision, in bytes; most of it is the list of files.
const REVISION_BYTES_MAX: usize = 16 << 20;

/// Most redirects that are followed: a renamed model, then another host, and some in reserve.
const REDIRECTS_MAX: usize = 5;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of the hub that the settings name.
pub(super) struct Client {
    http: reqwest::Client,
    settings: Settings,
}

/// A response before its body, with the size and hash that were announced.
struct HubResponse {
    url: Url,
    response: Response,
    /// Of a file on another host; small ones have none.
    sha256: Option<String>,
    bytes: Option<u64>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self, HubError> {
        // One that is already installed will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            // Followed by hand: size and hash are announced in the first response, and the token is
            // for the hub only.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(settings.timeout)
            .user_agent(concat!("egret-export/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| HubError::Client {
                message: cause(&error),
            })?;
        Ok(Client { http, settings })
    }

    /// Which commit a revision is, and which files it has.
    pub(super) async fn revision(&self, id: &HubId, revision: &str) -> Result<Revision, HubError> {
        let url = self.url(&["api", "models", &id.owner, &id.model, "revision", revision]);
        let mut answer = self.ask(id, revision, url).await?;
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk(&mut answer).await? {
            if body.len() + chunk.len() > REVISION_BYTES_MAX {
                return Err(HubError::TooLarge {
                    url: answer.url.into(),
                    bytes_max: REVISION_BYTES_MAX as u64,
                });
            }
            body.extend_from_slice(&chunk);
        }
        let not_a_hub = |diagnostic| HubError::NoHub {
            url: answer.url.to_string(),
            diagnostic,
        };
        let found: Revision = serde_json::from_slice(&body).map_err(|error| {
            not_a_hub(format!(
                "the response does not describe a revision: {error}"
            ))
        })?;
        // The commit becomes a folder's name.
        if found.sha.is_empty() || !found.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(not_a_hub(format!(
                "the commit is {:?}, expected hex digits",
                found.sha
            )));
        }
        Ok(found)
    }

    /// Writes a file to `to`, and checks it against the size and sha256 that were announced.
    pub(super) async fn download(
        &self,
        id: &HubId,
        commit: &str,
        file: &str,
        to: &Path,
        bytes_max: u64,
        progress: &mut Progress,
    ) -> Result<(), HubError> {
        let asked = self
            .ask(
                id,
                commit,
                self.url(&[&id.owner, &id.model, "resolve", commit, file]),
            )
            .await;
        let mut answer = asked.map_err(|error| match error {
            // The commit exists, since its files were listed.
            HubError::NotFound { id, revision, .. } => HubError::NoFile {
                id,
                revision,
                file: file.to_owned(),
            },
            error => error,
        })?;
        progress.begin(file, answer.bytes);
        let written = self.write(&mut answer, to, bytes_max, progress).await;
        progress.end();
        written
    }

    async fn write(
        &self,
        answer: &mut HubResponse,
        to: &Path,
        bytes_max: u64,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let io = |source| HubError::Io {
            path: to.to_owned(),
            source,
        };
        let (mut out, mut hash, mut got) = (create(to)?, Sha256::new(), 0);
        while let Some(chunk) = self.chunk(answer).await? {
            got += chunk.len() as u64;
            if got > bytes_max {
                return Err(HubError::TooLarge {
                    url: answer.url.to_string(),
                    bytes_max,
                });
            }
            hash.update(&*chunk);
            out.write_all(&chunk).map_err(io)?;
            progress.add(chunk.len() as u64);
        }
        if let Some(expected) = answer.bytes.filter(|&expected| expected != got) {
            return Err(HubError::Size {
                url: answer.url.to_string(),
                expected,
                got,
            });
        }
        let sha256 = hex(&hash.finalize());
        if let Some(expected) = answer.sha256.take().filter(|expected| *expected != sha256) {
            return Err(HubError::Sha256 {
                url: answer.url.to_string(),
                expected,
                got: sha256,
            });
        }
        out.sync_all().map_err(io)
    }

    /// Below the endpoint, each part encoded: a revision may have slashes.
    fn url(&self, parts: &[&str]) -> Url {
        let mut url = self.settings.endpoint.clone();
        url.path_segments_mut()
            .expect("endpoints are bases")
            .pop_if_empty()
            .extend(parts);
        url
    }

    /// Sends a request and follows redirects to the response.
    async fn ask(&self, id: &HubId, revision: &str, asked: Url) -> Result<HubResponse, HubError> {
        let (mut url, mut sha256, mut bytes) = (asked.clone(), None, None);
        for _ in 0..=REDIRECTS_MAX {
            let mut request = self.http.get(url.clone());
            let is_hub = url.origin() == self.settings.endpoint.origin();
            if let Some(bearer) = self.settings.bearer.as_ref().filter(|_| is_hub) {
                request = request.header(AUTHORIZATION, bearer);
            }
            let response = request
                .send()
                .await
                .map_err(|error| self.failed(&url, &error))?;
            let headers = response.headers();
            if is_hub {
                sha256 = sha256.or_else(|| linked_sha256(headers));
                bytes = bytes.or_else(|| text(headers, "x-linked-size")?.parse().ok());
            }
            let status = response.status();
            if status.is_success() {
                bytes = bytes.or_else(|| response.content_length());
                return Ok(HubResponse {
                    url: asked,
                    response,
                    sha256,
                    bytes,
                });
            }
            let to = text(headers, LOCATION.as_str()).and_then(|location| url.join(location).ok());
            match to.filter(|_| status.is_redirection()) {
                // No redirect from HTTPS to plain HTTP.
                Some(to) if url.scheme() == "https" && to.scheme() != "https" => {
                    return Err(HubError::NoHub {
                        url: asked.into(),
                        diagnostic: format!(
                            "it redirects to {}, which is not encrypted",
                            to.origin().ascii_serialization()
                        ),
                    });
                }
                Some(to) => url = to,
                None => return Err(self.refused(id, revision, &asked, status)),
            }
        }
        Err(HubError::NoHub {
            url: asked.into(),
            diagnostic: format!("it redirects more than {REDIRECTS_MAX} times"),
        })
    }

    async fn chunk(
        &self,
        answer: &mut HubResponse,
    ) -> Result<Option<impl Deref<Target = [u8]> + use<>>, HubError> {
        answer
            .response
            .chunk()
            .await
            .map_err(|error| self.failed(&answer.url, &error))
    }

    fn refused(&self, id: &HubId, revision: &str, asked: &Url, status: StatusCode) -> HubError {
        let endpoint = self
            .settings
            .endpoint
            .as_str()
            .trim_end_matches('/')
            .to_owned();
        match status.as_u16() {
            404 => HubError::NotFound {
                id: id.clone(),
                revision: revision.to_owned(),
                endpoint,
            },
            status @ (401 | 403) => {
                let help = match &self.settings.bearer {
                    None => {
                        "check the spelling, or set HF_TOKEN to the token of an account that may read it"
                    }
                    Some(_) => "check the spelling, or request access for the account of HF_TOKEN",
                };
                HubError::Denied {
                    id: id.clone(),
                    endpoint,
                    status,
                    help,
                }
            }
            status => HubError::Status {
                url: asked.to_string(),
                status,
            },
        }
    }

    fn failed(&self, url: &Url, error: &reqwest::Error) -> HubError {
        // The query of a file's URL on another host holds a signature.
        let mut url = url.clone();
        url.set_query(None);
        if error.is_timeout() && !error.is_connect() {
            return HubError::Silent {
                url: url.into(),
                seconds: self.settings.timeout.as_secs(),
            };
        }
        HubError::Network {
            url: url.into(),
            message: cause(error),
        }
    }
}

/// The sha256 of a file on another host.
fn linked_sha256(headers: &HeaderMap) -> Option<String> {
    let tag = text(headers, "x-linked-etag")?
        .trim_start_matches("W/")
        .trim_matches('"');
    (tag.len() == 64 && tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .then(|| tag.to_ascii_lowercase())
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// The error of the lowest layer; those above add nothing to it.
fn cause(error: &reqwest::Error) -> String {
    let what = if error.is_connect() {
        "cannot connect"
    } else {
        "connection lost"
    };
    match std::iter::successors(std::error::Error::source(error), |cause| cause.source()).last() {
        Some(cause) => format!("{what}: {cause}"),
        None => what.to_owned(),
    }
}
