//! A stand-in for the hub: a folder behind the hub's addresses, its large files on a host of their
//! own, and faults as told.

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

/// The commit that every revision of the served model is.
pub const COMMIT: &str = "7f1ad0c4e2b85a6939d2c8b01f4e7a6055c3d9b8";

/// The model that is served.
pub const ID: &str = "tester/tiny";

/// What goes wrong with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This status, so many times.
    Status(u16, usize),
    /// The connection breaks halfway.
    Cut,
    /// The first byte is another.
    Damaged,
    /// No answer at all.
    Hang,
    /// Half of it, and then silence.
    Stall,
}

/// What the hub and the host of its large files share.
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
    /// What `HF_ENDPOINT` is set to.
    pub endpoint: String,
    /// The host that its large files are on.
    pub files: String,
    shared: Arc<Shared>,
    _runtime: Runtime,
}

impl HubServer {
    /// Serves the files of `folder` as [`ID`] to whoever has `token`, if there is one; `fault`
    /// befalls the file it names.
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
            .expect("a runtime starts");
        let listen = || {
            runtime
                .block_on(TcpListener::bind("127.0.0.1:0"))
                .expect("loopback can be listened on")
        };
        let (hub, files) = (listen(), listen());
        let address = |listener: &TcpListener| {
            format!("http://{}", listener.local_addr().expect("it listens"))
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

    /// Files asked for so far, in order, retries included.
    ///
    /// # Panics
    /// When a handler did.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().expect("no handler panics").clone()
    }

    /// Whether the other host was ever shown a token.
    ///
    /// # Panics
    /// When a handler did.
    pub fn leaked(&self) -> bool {
        *self.shared.leaked.lock().expect("no handler panics")
    }
}

impl Shared {
    fn refuses(&self, headers: &HeaderMap) -> Option<Response> {
        let token = self.token?;
        let is_let_in = headers
            .get(AUTHORIZATION)
            .is_some_and(|value| value == &format!("Bearer {token}"));
        (!is_let_in)
            .then(|| (StatusCode::UNAUTHORIZED, [("x-error-code", "RepoNotFound")]).into_response())
    }

    /// The fault of a file, if it is still to happen.
    fn fault(&self, file: &str) -> Option<Fault> {
        let mut fault = self.fault.lock().expect("no handler panics");
        let (_, found) = fault.as_mut().filter(|(name, _)| *name == file)?;
        let told = *found;
        if let Fault::Status(_, times) = found {
            *times = times.checked_sub(1)?;
        }
        Some(told)
    }

    /// A file's bytes, or what goes wrong with them.
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
                    .expect("a status")
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
    if let Some(refusal) = shared.refuses(&headers) {
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
    let entries = std::fs::read_dir(&shared.folder).expect("the folder is there");
    let names = entries.map(|entry| {
        entry
            .expect("an entry")
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
    if let Some(refusal) = shared.refuses(&headers) {
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
        // As the hub does since it keeps small files apart: a redirect that stays on it.
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
    match shared.refuses(&headers) {
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
