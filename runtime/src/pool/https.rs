//! One attempt over HTTPS: `POST {url}/chat/completions`.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};

use super::question::start_of;
use super::retry::{Class, Failure};
use super::{PoolsError, REPLY_BYTES_MAX};
use crate::serve::openai::error::ErrorBody;

/// A pool behind a URL.
#[derive(Debug)]
pub(super) struct Https {
    client: reqwest::Client,
    url: String,
    api_key_file: Option<PathBuf>,
}

/// The connections that all HTTPS pools share.
pub(super) fn client() -> Result<reqwest::Client, PoolsError> {
    static RING: Once = Once::new();
    RING.call_once(|| {
        // Already installed by somebody else is just as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder()
        // The key and the picture go to the configured host and nowhere else.
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .user_agent(concat!("egret/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| PoolsError::Https {
            message: causes(&error),
        })
}

impl Https {
    pub(super) fn new(client: reqwest::Client, base: &str, api_key_file: Option<PathBuf>) -> Self {
        Https {
            client,
            url: format!("{}/chat/completions", base.trim_end_matches('/')),
            api_key_file,
        }
    }

    /// Posts `body` and returns the reply's body.
    pub(super) async fn attempt(&self, id: uuid::Uuid, body: Bytes) -> Result<Bytes, Failure> {
        let mut request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", id.to_string());
        if let Some(file) = &self.api_key_file {
            request = request.header(AUTHORIZATION, bearer(file).await?);
        }
        let mut response = request
            .body(body)
            .send()
            .await
            .map_err(|error| unsent(&error))?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let reply = collect(&mut response).await?;
        match status {
            200..=299 => Ok(reply),
            _ => Err(Failure::status(
                status,
                retry_after.as_deref(),
                &message(&reply),
            )),
        }
    }
}

/// A request that got no reply.
fn unsent(error: &reqwest::Error) -> Failure {
    match error.is_connect() || error.is_builder() {
        true => Failure::unreachable(Class::Unwell { wait: None }, causes(error)),
        false => Failure::unwell(causes(error)),
    }
}

/// The `Authorization` header. Read for every attempt, so that a key can be rotated under a running
/// agent.
async fn bearer(file: &Path) -> Result<HeaderValue, Failure> {
    let unusable = |what: String| {
        Failure::unreachable(
            Class::Refused,
            format!("api-key-file {}: {what}", file.display()),
        )
    };
    let key = tokio::fs::read_to_string(file)
        .await
        .map_err(|error| unusable(error.to_string()))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", key.trim_end()))
        .map_err(|_| unusable("expected one line of printable text".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

async fn collect(response: &mut reqwest::Response) -> Result<Bytes, Failure> {
    let mut body = BytesMut::new();
    while let Some(piece) = response
        .chunk()
        .await
        .map_err(|error| Failure::unwell(format!("reply cut short: {}", causes(&error))))?
    {
        if body.len() + piece.len() > REPLY_BYTES_MAX {
            return Err(Failure::useless(format!(
                "the reply is over {REPLY_BYTES_MAX} bytes"
            )));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// What an error reply says, for people.
pub(super) fn message(reply: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(reply) {
        Ok(body) => start_of(&body.error.message),
        Err(_) => start_of(String::from_utf8_lossy(reply).trim()),
    }
}

/// An error with its causes on one line; reqwest's own text hides why a connection failed. The URL
/// is left out: it may hold a key.
fn causes(error: &reqwest::Error) -> String {
    let mut text = match (error.is_connect(), error.is_timeout()) {
        (true, _) => "cannot connect".to_owned(),
        (_, true) => "timed out".to_owned(),
        _ if error.is_builder() => "cannot be set up".to_owned(),
        _ => "connection broke".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
