//! A test hub: a folder served under the hub's URLs, large files from a second host, and injected
//! faults.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as Params, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// The commit that every revision of the served model resolves to.
pub const COMMIT: &str = "7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8";

/// The model that is served.
pub const ID: &str = "tester/tiny";

/// A fault injected into the download of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This HTTP status, for this many requests.
    Status(u16, usize),
    /// The connection closes after half of the body.
    Cut,
    /// The first byte is changed.
    Damaged,
    /// No response.
    Hang,
    /// Half of the body, then no more data on an open connection.
    Stall,
}

/// State shared by the hub and the host of its large files.
struct Shared {
    folder: PathBuf,
    files: String,
    token: Option<&'static str>,
    fault: Mutex<Option<(&'static str, Fault)>>,
    asked: Mutex<Vec<String>>,
    leaked: Mutex<bool>,
}

/// The servers, stopped when dropped.
pub struct HubServer {
    /// The value for `HF_ENDPOINT`.
    pub endpoint: String,
    /// Base URL of the host that serves large files.
    pub files: String,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

impl HubServer {
    /// Serves the files of `folder` as [`ID`], to requests with `token` only if one is given, with
    /// `fault` injected into the file it names.
    ///
    /// # Panics
    /// When loopback cannot be listened on.
    pub fn start(
        folder: &Path,
        token: Option<&'static str>,
        fault: Option<(&'static str, Fault)>,
    ) -> HubServer {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a tokio runtime starts");
        let listen = || {
            runtime
                .block_on(TcpListener::bind("127.0.0.1:0"))
                .expect("loopback can be listened on")
        };
        let (hub, files) = (listen(), listen());
        let address = |listener: &TcpListener| {
            format!(
                "http://{}",
                listener.local_addr().expect("the listener has an address")
            )
        };
        let shared = Arc::new(Shared {
            folder: folder.to_owned(),
            files: address(&files),
            token,
            fault: Mutex::new(fault),
            asked: Mutex::default(),
            leaked: Mutex::default(),
        });
        let endpoint = address(&hub);
        let routes = Router::new()
            .route(
                "/api/models/{owner}/{model}/revision/{revision}",
                get(revision),
            )
            .route("/{owner}/{model}/resolve/{revision}/{file}", get(resolve))
            .route("/small/{file}", get(small))
            .with_state(Arc::clone(&shared));
        let large = Router::new()
            .route("/{file}", get(large))
            .with_state(Arc::clone(&shared));
        runtime.spawn(async move { axum::serve(hub, routes).await });
        runtime.spawn(async move { axum::serve(files, large).await });
        HubServer {
            endpoint,
            files: shared.files.clone(),
            shared,
            _runtime: runtime,
        }
    }

    /// Files requested so far, in order, retries included.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().expect("no handler panics").clone()
    }

    /// Whether the second host ever received a token.
    ///
    /// # Panics
    /// When a handler panicked.
    pub fn leaked(&self) -> bool {
        *self.shared.leaked.lock().expect("no handler panics")
    }
}

impl Shared {
    fn refusal(&self, headers: &HeaderMap) -> Option<Response> {
        let token = self.token?;
        let is_authorized = headers
            .get(AUTHORIZATION)
            .is_some_and(|value| value == &format!("Bearer {token}"));
        (!is_authorized)
            .then(|| (StatusCode::UNAUTHORIZED, [("x-error-code", "RepoNotFound")]).into_response())
    }

    /// The fault of a file, if it is still to be injected.
    fn fault(&self, file: &str) -> Option<Fault> {
        let mut fault = self.fault.lock().expect("no handler panics");
        let (_, found) = fault.as_mut().filter(|(name, _)| *name == file)?;
        let injected = *found;
        if let Fault::Status(_, times) = found {
            *times = times.checked_sub(1)?;
        }
        Some(injected)
    }

    /// A file's bytes, or its injected fault.
    async fn body(&self, file: &str) -> Response {
        let Ok(mut bytes) = std::fs::read(self.folder.join(file)) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let half = bytes[..bytes.len() / 2].to_vec();
        let length = [(CONTENT_LENGTH, bytes.len().to_string())];
        match self.fault(file) {
            None => {}
            Some(Fault::Status(status, _)) => {
                return StatusCode::from_u16(status)
                    .expect("a valid HTTP status")
                    .into_response();
            }
            Some(Fault::Cut) => {
                let pieces = [Ok(half), Err(std::io::Error::other("cut"))];
                return (length, Body::from_stream(stream::iter(pieces))).into_response();
            }
            Some(Fault::Damaged) => bytes[0] ^= 1,
            Some(Fault::Hang) => tokio::time::sleep(Duration::from_secs(3600)).await,
            Some(Fault::Stall) => {
                let pieces = stream::unfold(Some(half), |piece| async {
                    match piece {
                        Some(piece) => Some((Ok::<_, std::io::Error>(piece), None)),
                        None => std::future::pending().await,
                    }
                });
                return (length, Body::from_stream(pieces)).into_response();
            }
        }
        bytes.into_response()
    }
}

async fn revision(
    State(shared): State<Arc<Shared>>,
    Params((owner, model, revision)): Params<(String, String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = shared.refusal(&headers) {
        return refusal;
    }
    if format!("{owner}/{model}") != ID {
        return (StatusCode::NOT_FOUND, [("x-error-code", "RepoNotFound")]).into_response();
    }
    if !["main", "refs/pr/1", COMMIT].contains(&&*revision) {
        return (
            StatusCode::NOT_FOUND,
            [("x-error-code", "RevisionNotFound")],
        )
            .into_response();
    }
    let entries = std::fs::read_dir(&shared.folder).expect("the served folder can be read");
    let names = entries.map(|entry| {
        entry
            .expect("a folder entry can be read")
            .file_name()
            .to_string_lossy()
            .into_owned()
    });
    let siblings: Vec<_> = names
        .chain(["README.md".into(), "onnx/model.onnx".into()])
        .map(|name| json!({ "rfilename": name }))
        .collect();
    axum::Json(json!({ "id": ID, "sha": COMMIT, "siblings": siblings })).into_response()
}

async fn resolve(
    State(shared): State<Arc<Shared>>,
    Params((owner, model, revision, file)): Params<(String, String, String, String)>,
    headers: HeaderMap,
) -> Response {
    if let Some(refusal) = shared.refusal(&headers) {
        return refusal;
    }
    assert_eq!(
        (format!("{owner}/{model}").as_str(), revision.as_str()),
        (ID, COMMIT)
    );
    shared
        .asked
        .lock()
        .expect("no handler panics")
        .push(file.clone());
    let Ok(bytes) = std::fs::read(shared.folder.join(&file)) else {
        return (StatusCode::NOT_FOUND, [("x-error-code", "EntryNotFound")]).into_response();
    };
    if !file.ends_with(".safetensors") {
        // The hub answers small files with a redirect to another path on the same host.
        return (
            StatusCode::TEMPORARY_REDIRECT,
            [(LOCATION, format!("/small/{file}"))],
        )
            .into_response();
    }
    let sha256: String = Sha256::digest(&bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let announced = [
        ("x-repo-commit", COMMIT.to_owned()),
        ("x-linked-size", bytes.len().to_string()),
        ("x-linked-etag", format!("\"{sha256}\"")),
    ];
    (
        StatusCode::FOUND,
        announced,
        [(
            LOCATION,
            format!("{}/{file}?signature=secret", shared.files),
        )],
    )
        .into_response()
}

async fn small(
    State(shared): State<Arc<Shared>>,
    Params(file): Params<String>,
    headers: HeaderMap,
) -> Response {
    match shared.refusal(&headers) {
        Some(refusal) => refusal,
        None => shared.body(&file).await,
    }
}

async fn large(
    State(shared): State<Arc<Shared>>,
    Params(file): Params<String>,
    headers: HeaderMap,
) -> Response {
    *shared.leaked.lock().expect("no handler panics") |= headers.contains_key(AUTHORIZATION);
    shared.body(&file).await
}
