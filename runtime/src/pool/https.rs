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
use crate::openai::error::ErrorBody;

/// Connects over HTTP and HTTPS.
#[derive(Debug, Clone, Copy, Default)]
pub struct HttpsConnector;

impl Connector for HttpsConnector {
    fn connect(
        &self,
        url: &str,
        api_key_file: Option<&Path>,
    ) -> Result<Box<dyn Transport>, PoolsError> {
        Ok(Box::new(Https::new(url, api_key_file)?))
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
        // A provider that is installed already will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    reqwest::Client::builder()
        // The API key and the image are sent to the configured host only.
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
    fn new(url: &str, api_key_file: Option<&Path>) -> Result<Self, PoolsError> {
        Ok(Https {
            client: client()?,
            url: format!("{}/chat/completions", url.trim_end_matches('/')),
            api_key_file: api_key_file.map(Path::to_owned),
        })
    }

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
        let mut response = sent.map_err(|error| no_response(&error))?;
        let status = response.status().as_u16();
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let reply = read_body(&mut response).await?;
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

/// The failure of a request without a response.
fn no_response(error: &reqwest::Error) -> AttemptFailure {
    match error.is_connect() || error.is_builder() {
        true => AttemptFailure::unreachable(Class::Unhealthy { wait: None }, causes(error)),
        false => AttemptFailure::interrupted(causes(error)),
    }
}

/// The `Authorization` header. The file is read for every attempt, so that the key can be rotated
/// while the agent runs.
///
/// # Errors
/// When the file cannot be read, or is not a valid header value.
async fn bearer(file: &Path) -> Result<HeaderValue, AttemptFailure> {
    let unusable = |message: String| {
        AttemptFailure::unreachable(
            Class::Refused,
            format!("api-key-file {}: {message}", file.display()),
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

/// Reads the response's body, up to [`REPLY_BYTES_MAX`].
async fn read_body(response: &mut reqwest::Response) -> Result<Bytes, AttemptFailure> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| {
        AttemptFailure::interrupted(format!("the reply was cut short: {}", causes(&error)))
    })? {
        if body.len() + chunk.len() > REPLY_BYTES_MAX {
            return Err(AttemptFailure::unusable(format!(
                "the reply is over {REPLY_BYTES_MAX} bytes"
            )));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// The message of an error reply: of OpenAI's error object, else the start of the text.
pub(super) fn message(reply: &[u8]) -> String {
    match serde_json::from_slice::<ErrorBody>(reply) {
        Ok(body) => start_of(&body.error.message),
        Err(_) => start_of(String::from_utf8_lossy(reply).trim()),
    }
}

/// An error with its causes on one line; reqwest's own text omits why a connection failed. The URL
/// is left out: it may contain a key.
fn causes(error: &reqwest::Error) -> String {
    let mut text = match (error.is_connect(), error.is_timeout()) {
        (true, _) => "cannot connect".to_owned(),
        (_, true) => "timed out".to_owned(),
        _ if error.is_builder() => "cannot build the request".to_owned(),
        _ => "the connection broke".to_owned(),
    };
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const ID: [u8; 16] = [7; 16];

    /// Posts `{}` to a server on loopback, which receives one request and answers with `reply`.
    /// Returns the request as text, and the outcome of the attempt.
    async fn post(
        api_key_file: Option<&Path>,
        reply: &[u8],
    ) -> (String, Result<Bytes, AttemptFailure>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let https = Https::new(&format!("http://{address}/secret/v1"), api_key_file)
            .expect("the client starts");
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n{}") {
                let read = stream.read_buf(&mut request).await.expect("a request");
                assert!(read > 0, "the request ended early: {request:?}");
            }
            // Fails where the client has stopped reading.
            let _ = stream.write_all(reply).await;
            String::from_utf8(request).expect("a request of text")
        };
        let body = Bytes::from_static(b"{}");
        let attempt = https.attempt(Attempt {
            question: ID,
            body: &body,
            remaining: Duration::from_secs(60),
            resend: None,
        });
        tokio::join!(server, attempt)
    }

    fn reply(head: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\n\r\n{body}").into_bytes()
    }

    fn failed(result: Result<Bytes, AttemptFailure>) -> AttemptFailure {
        result.expect_err("the attempt fails")
    }

    fn key_file(content: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), content).expect("the file is written");
        file
    }

    /// The failure of reading an API key file with `content`, its path replaced.
    async fn key_failure(content: &[u8]) -> AttemptFailure {
        let file = key_file(content);
        let mut failure = bearer(file.path()).await.expect_err("an unusable key");
        failure.detail = failure
            .detail
            .replace(&file.path().display().to_string(), "KEY");
        failure
    }

    #[test]
    fn the_endpoint_is_joined_to_the_url_with_one_slash() {
        for url in [
            "https://pool.example/v1",
            "https://pool.example/v1/",
            "https://pool.example/v1//",
        ] {
            let https = Https::new(url, None).expect("the client starts");
            assert_eq!(https.url, "https://pool.example/v1/chat/completions");
        }
    }

    #[tokio::test]
    async fn a_request_has_the_headers_of_a_chat_completion() {
        let key = key_file(b"k-123\n");
        let (request, result) = post(Some(key.path()), &reply("200 OK", r#"{"a":1}"#)).await;
        assert_eq!(result, Ok(Bytes::from_static(br#"{"a":1}"#)));
        let mut lines = request.split("\r\n");
        assert_eq!(
            lines.next(),
            Some("POST /secret/v1/chat/completions HTTP/1.1")
        );
        let headers: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        let value = |name: &str| {
            let found = headers.iter().find_map(|line| {
                let (key, value) = line.split_once(": ")?;
                key.eq_ignore_ascii_case(name).then_some(value)
            });
            found.unwrap_or_else(|| panic!("no header {name} in {headers:?}"))
        };
        assert_eq!(value("authorization"), "Bearer k-123");
        assert_eq!(value("content-type"), "application/json");
        assert_eq!(
            value("idempotency-key"),
            "07070707-0707-0707-0707-070707070707"
        );
        assert_eq!(
            value("user-agent"),
            concat!("egret/", env!("CARGO_PKG_VERSION"))
        );
        assert_eq!(value("content-length"), "2");
    }

    #[tokio::test]
    async fn without_a_key_file_no_authorization_is_sent() {
        let (request, result) = post(None, &reply("200 OK", "{}")).await;
        assert_eq!(result, Ok(Bytes::from_static(b"{}")));
        assert!(
            !request.to_ascii_lowercase().contains("authorization"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn the_api_key_is_read_without_its_line_break_and_kept_out_of_logs() {
        for content in [&b"k-123"[..], b"k-123\n", b"k-123\r\n", b"k-123 \n\n"] {
            let file = key_file(content);
            let value = bearer(file.path()).await.expect("a usable key");
            assert_eq!(value, "Bearer k-123", "{content:?}");
            assert_eq!(format!("{value:?}"), "Sensitive", "{content:?}");
        }
    }

    #[tokio::test]
    async fn an_unusable_key_file_is_named_and_nothing_is_sent() {
        let missing = bearer(Path::new("/nowhere/key")).await;
        let failures = [
            missing.expect_err("no such file"),
            key_failure(b"\xff\xfe").await,
            key_failure(b"k-123\nk-124\n").await,
        ];
        for failure in &failures {
            assert_eq!(
                (failure.class, failure.charged, failure.reached),
                (Class::Refused, false, false),
                "{failure:?}"
            );
        }
        let details = failures.map(|failure| failure.detail).join("\n");
        insta::assert_snapshot!(details, @"
        api-key-file /nowhere/key: No such file or directory (os error 2)
        api-key-file KEY: stream did not contain valid UTF-8
        api-key-file KEY: expected one line of printable text
        ");
    }

    #[test]
    fn the_message_of_an_error_reply_is_short() {
        for (reply, expected) in [
            (
                r#"{"error": {"message": "no such model", "type": "invalid_request_error"}}"#,
                "no such model",
            ),
            ("upstream timed out\n", "upstream timed out"),
            (
                "<html><body>Bad Gateway</body></html>",
                "<html><body>Bad Gateway</body></html>",
            ),
            ("", ""),
            (" \r\n", ""),
        ] {
            assert_eq!(message(reply.as_bytes()), expected);
        }
        assert_eq!(message(b"caf\xe9"), "caf\u{fffd}");
        let page = format!("<html>{}</html>", "x".repeat(10_000));
        let message = message(page.as_bytes());
        assert!(message.starts_with("<html>xxx") && message.ends_with("x…"));
        assert_eq!(message.chars().count(), 121);
    }

    #[tokio::test]
    async fn an_overloaded_pool_is_retried_after_the_wait_it_asks_for() {
        let overloaded = reply(
            "503 Service Unavailable\r\nretry-after: 7",
            r#"{"error": {"message": "overloaded"}}"#,
        );
        let (_, result) = post(None, &overloaded).await;
        assert_eq!(
            failed(result),
            AttemptFailure {
                class: Class::Unhealthy {
                    wait: Some(Duration::from_secs(7))
                },
                detail: "status 503: overloaded".into(),
                charged: false,
                reached: true,
            }
        );
    }

    #[tokio::test]
    async fn a_redirect_is_not_followed() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        other.set_nonblocking(true).expect("a listener");
        let location = other.local_addr().expect("an address");
        let redirect = reply(
            &format!("307 Temporary Redirect\r\nlocation: http://{location}/v1/chat/completions"),
            "",
        );
        let (_, result) = post(None, &redirect).await;
        let failure = failed(result);
        assert_eq!(
            (failure.class, failure.detail.as_str()),
            (Class::Refused, "status 307")
        );
        let connection = other.accept().map_err(|error| error.kind());
        assert!(
            matches!(connection, Err(std::io::ErrorKind::WouldBlock)),
            "{connection:?}"
        );
    }

    #[tokio::test]
    async fn a_reply_over_the_limit_is_refused() {
        let (_, result) = post(None, &reply("200 OK", &"x".repeat(REPLY_BYTES_MAX))).await;
        assert_eq!(result.expect("a reply at the limit").len(), REPLY_BYTES_MAX);
        let (_, result) = post(None, &reply("200 OK", &"x".repeat(REPLY_BYTES_MAX + 1))).await;
        assert_eq!(
            failed(result),
            AttemptFailure::unusable("the reply is over 1048576 bytes")
        );
    }

    #[tokio::test]
    async fn a_reply_that_is_cut_short_may_be_charged_and_is_retried() {
        let half = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices\":";
        let (_, result) = post(None, half).await;
        let failure = failed(result);
        assert_eq!(
            (failure.class, failure.charged, failure.reached),
            (Class::Unhealthy { wait: None }, true, true)
        );
        let expected = "the reply was cut short: the connection broke: ";
        assert!(failure.detail.starts_with(expected), "{}", failure.detail);
        assert!(!failure.detail.contains("secret"), "{}", failure.detail);
    }

    #[tokio::test]
    async fn errors_without_a_response_do_not_contain_the_url() {
        // A port on which nothing listens any more.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        drop(listener);
        let closed_port = format!("http://user:secret@{address}/secret/v1");
        for (url, expected) in [
            (closed_port.as_str(), "cannot connect: "),
            ("secret/v1", "cannot build the request: "),
            ("ftp://secret/v1", "cannot build the request: "),
        ] {
            let https = Https::new(url, None).expect("the client starts");
            let failure = failed(https.post(Uuid::from_bytes(ID), Bytes::new()).await);
            assert_eq!(
                (failure.class, failure.charged, failure.reached),
                (Class::Unhealthy { wait: None }, false, false),
                "{failure:?}"
            );
            let detail = &failure.detail;
            assert!(detail.starts_with(expected), "{detail}");
            assert!(
                !detail.contains("secret") && !detail.contains("chat/completions"),
                "{detail}"
            );
        }
        // The server closes the connection without a response.
        let (_, result) = post(None, b"").await;
        let failure = failed(result);
        assert!(failure.charged && failure.reached, "{failure:?}");
        assert!(failure.detail.starts_with("the connection broke: "));
        assert!(!failure.detail.contains("secret"), "{}", failure.detail);
    }
}
