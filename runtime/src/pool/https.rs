//! One attempt over HTTPS: `POST {url}/chat/completions`.

use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use uuid::Uuid;

use super::question::start_of;
use super::retry::{AttemptFailure, Class};
use super::transport::{Attempt, Connector, Transport};
use super::{PoolsError, REPLY_BYTES_MAX};
use crate::serve::openai::error::ErrorBody;

/// Connects over HTTP and HTTPS.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpsConnector;

impl Connector for HttpsConnector {
    fn connect(
        &self,
        url: &str,
        api_key_file: Option<&Path>,
    ) -> Result<Box<dyn Transport>, PoolsError> {
        Ok(Box::new(Https {
            client: client()?,
            url: format!("{}/chat/completions", url.trim_end_matches('/')),
            api_key_file: api_key_file.map(Path::to_owned),
        }))
    }
}

/// A pool behind a URL.
#[derive(Debug)]
struct Https {
    client: reqwest::Client,
    url: String,
    api_key_file: Option<PathBuf>,
}

fn client() -> Result<reqwest::Client, PoolsError> {
    static RING: Once = Once::new();
    RING.call_once(|| {
        // One that is installed already is just as good.
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

impl Transport for Https {
    fn attempt<'a>(&'a self, attempt: Attempt<'a>) -> BoxFuture<'a, Result<Bytes, AttemptFailure>> {
        self.post(Uuid::from_bytes(attempt.question), attempt.body.clone())
            .boxed()
    }
}

impl Https {
    /// Posts `body` and returns the reply's body.
    async fn post(&self, id: Uuid, body: Bytes) -> Result<Bytes, AttemptFailure> {
        let mut request = self
            .client
            .post(&self.url)
            .header(CONTENT_TYPE, "application/json")
            .header("Idempotency-Key", id.to_string());
        if let Some(file) = &self.api_key_file {
            request = request.header(AUTHORIZATION, bearer(file).await?);
        }
        let sent = request.body(body).send().await;
        let mut response = sent.map_err(|error| unsent(&error))?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let reply = collect(&mut response).await?;
        match status {
            200..=299 => Ok(reply),
            _ => Err(AttemptFailure::status(
                status,
                retry_after.as_deref(),
                &message(&reply),
            )),
        }
    }
}

/// A request that got no reply.
fn unsent(error: &reqwest::Error) -> AttemptFailure {
    match error.is_connect() || error.is_builder() {
        true => AttemptFailure::unreachable(Class::Unhealthy { wait: None }, causes(error)),
        false => AttemptFailure::interrupted(causes(error)),
    }
}

/// The `Authorization` header. Read for every attempt, so that a key can be rotated under a running
/// agent.
async fn bearer(file: &Path) -> Result<HeaderValue, AttemptFailure> {
    let unusable = |what: String| {
        AttemptFailure::unreachable(
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

async fn collect(response: &mut reqwest::Response) -> Result<Bytes, AttemptFailure> {
    let mut body = BytesMut::new();
    while let Some(piece) = response.chunk().await.map_err(|error| {
        AttemptFailure::interrupted(format!("reply cut short: {}", causes(&error)))
    })? {
        if body.len() + piece.len() > REPLY_BYTES_MAX {
            return Err(AttemptFailure::unusable(format!(
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
