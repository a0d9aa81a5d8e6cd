//! What is said to a hub. The only file, with the settings, that names `reqwest`.

use std::io::Write;
use std::ops::Deref;
use std::path::Path;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, LOCATION};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest, Sha256};
use vlm::hex;

use super::progress::Progress;
use super::settings::Settings;
use super::{HubError, HubId, Revision, create};

/// Longest description of a revision, in bytes; most of it is the list of files.
const REVISION_BYTES_MAX: usize = 16 << 20;

/// Most redirects that are followed: a renamed model, then another host, and some to spare.
const REDIRECTS_MAX: usize = 5;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A hub, asked as the settings say.
pub(super) struct Client {
    http: reqwest::Client,
    settings: Settings,
}

/// A body about to come, and what was announced of it.
struct Answer {
    url: Url,
    response: Response,
    /// Of a file that lies elsewhere; small ones come without.
    sha256: Option<String>,
    bytes: Option<u64>,
}

impl Client {
    pub(super) fn new(settings: Settings) -> Result<Self, HubError> {
        // Already installed by somebody else is just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            // Followed by hand: what is announced stands in the first answer, and the token is for
            // the hub alone.
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
        while let Some(piece) = self.piece(&mut answer).await? {
            if body.len() + piece.len() > REVISION_BYTES_MAX {
                return Err(HubError::TooLarge {
                    url: answer.url.into(),
                    bytes_max: REVISION_BYTES_MAX as u64,
                });
            }
            body.extend_from_slice(&piece);
        }
        let no_hub = |problem| HubError::NoHub {
            url: answer.url.to_string(),
            problem,
        };
        let found: Revision = serde_json::from_slice(&body)
            .map_err(|error| no_hub(format!("describes no revision: {error}")))?;
        // It becomes a folder's name.
        if found.sha.is_empty() || !found.sha.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(no_hub(format!("names commit {:?}", found.sha)));
        }
        Ok(found)
    }

    /// Writes a file to `to`, and holds it to the size and sha256 that were announced.
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
            // The commit is there, or it would not have a list of files.
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
        answer: &mut Answer,
        to: &Path,
        bytes_max: u64,
        progress: &Progress,
    ) -> Result<(), HubError> {
        let io = |source| HubError::Io {
            path: to.to_owned(),
            source,
        };
        let (mut out, mut hash, mut got) = (create(to)?, Sha256::new(), 0);
        while let Some(piece) = self.piece(answer).await? {
            got += piece.len() as u64;
            if got > bytes_max {
                return Err(HubError::TooLarge {
                    url: answer.url.to_string(),
                    bytes_max,
                });
            }
            hash.update(&*piece);
            out.write_all(&piece).map_err(io)?;
            progress.add(piece.len() as u64);
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

    /// Asks, and follows redirects to the answer.
    async fn ask(&self, id: &HubId, revision: &str, asked: Url) -> Result<Answer, HubError> {
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
                return Ok(Answer {
                    url: asked,
                    response,
                    sha256,
                    bytes,
                });
            }
            let to = text(headers, LOCATION.as_str()).and_then(|location| url.join(location).ok());
            match to.filter(|_| status.is_redirection()) {
                // Nothing that came encrypted goes on in the open.
                Some(to) if url.scheme() == "https" && to.scheme() != "https" => {
                    return Err(HubError::NoHub {
                        url: asked.into(),
                        problem: format!(
                            "redirects to {}, which is not encrypted",
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
            problem: format!("redirects more than {REDIRECTS_MAX} times"),
        })
    }

    async fn piece(
        &self,
        answer: &mut Answer,
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
                let cure = match &self.settings.bearer {
                    None => {
                        "mind the spelling, or set HF_TOKEN to the token of somebody who may read it"
                    }
                    Some(_) => "mind the spelling, or let the owner of HF_TOKEN ask for access",
                };
                HubError::Denied {
                    id: id.clone(),
                    endpoint,
                    status,
                    cure,
                }
            }
            status => HubError::Status {
                url: asked.to_string(),
                status,
            },
        }
    }

    fn failed(&self, url: &Url, error: &reqwest::Error) -> HubError {
        // The address of a host that files are fetched from holds a signature.
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

/// The sha256 of a file that lies elsewhere.
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

/// What went wrong, as the lowest layer says it; those above say only that something did.
fn cause(error: &reqwest::Error) -> String {
    let what = if error.is_connect() {
        "cannot connect"
    } else {
        "connection broke"
    };
    match std::iter::successors(std::error::Error::source(error), |cause| cause.source()).last() {
        Some(cause) => format!("{what}: {cause}"),
        None => what.to_owned(),
    }
}
