//! Why a checkpoint was not fetched.

use std::io;
use std::path::PathBuf;

use super::id::HubId;
use crate::checkpoint::CheckpointError;

/// Why a checkpoint was not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// An environment variable cannot be used.
    #[error("{name} is {found:?}, expected {expected}")]
    Setting {
        /// The environment variable.
        name: &'static str,
        /// Its value.
        found: String,
        /// What it should be.
        expected: &'static str,
    },
    /// The client cannot be set up.
    #[error("HTTPS cannot be set up: {message}")]
    Client {
        /// The client's error.
        message: String,
    },
    /// Neither a folder nor a model of the hub.
    #[error(
        "{id}: no such folder, and no model of that name with a revision {revision:?} on {endpoint}; check the spelling, or give \
         --revision"
    )]
    NotFound {
        /// The model.
        id: HubId,
        /// The revision requested.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub denies access, which it also does where there is no such model.
    #[error(
        "{id}: no such folder, and {endpoint} answers {status}: it has no model of that name, or a private or gated one; {help}"
    )]
    Denied {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What to do about the token.
        help: &'static str,
    },
    /// The model lacks a required file.
    #[error(
        "{id} at {revision}: no {file}, expected a checkpoint as save_pretrained writes it, with safetensors; check --revision"
    )]
    NoFile {
        /// The model.
        id: HubId,
        /// The revision requested.
        revision: String,
        /// The file.
        file: String,
    },
    /// The hub answers with an error.
    #[error("{url}: HTTP status {status}; try again later, or set HF_ENDPOINT to another hub")]
    Status {
        /// The address requested.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The response is not a hub's.
    #[error("{url}: {diagnostic}; expected a hub, check HF_ENDPOINT")]
    NoHub {
        /// The address requested.
        url: String,
        /// What is wrong with the response.
        diagnostic: String,
    },
    /// The network or the server failed.
    #[error(
        "{url}: {message}; check that this box can reach it (HF_ENDPOINT, HTTPS_PROXY), and try again"
    )]
    Network {
        /// The address requested.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// The server sent nothing for too long.
    #[error(
        "{url}: no data for {seconds} s; try again, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
    )]
    Silent {
        /// The address requested.
        url: String,
        /// The timeout.
        seconds: u64,
    },
    /// A file has another size than announced.
    #[error("{url}: {got} bytes arrived, expected {expected}; try again")]
    Size {
        /// The address requested.
        url: String,
        /// As announced.
        expected: u64,
        /// As read.
        got: u64,
    },
    /// A file is larger than the limit.
    #[error(
        "{url}: more than {bytes_max} bytes, which no checkpoint of this family needs; download it by other means if it is one"
    )]
    TooLarge {
        /// The address requested.
        url: String,
        /// The limit.
        bytes_max: u64,
    },
    /// A file has another hash than announced.
    #[error(
        "{url}: sha256 is {got}, expected {expected}; it was damaged or replaced in transit: try again, or without a mirror"
    )]
    Sha256 {
        /// The address requested.
        url: String,
        /// As announced.
        expected: String,
        /// Of what arrived.
        got: String,
    },
    /// The index of the shards, as it was fetched, cannot be used.
    #[error(transparent)]
    Index(#[from] CheckpointError),
    /// The cache cannot be written.
    #[error("{path}: cannot be written; set HF_HUB_CACHE to a folder with room for the model", path = .path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl HubError {
    /// Whether a new attempt may succeed.
    pub(super) fn is_temporary(&self) -> bool {
        match self {
            HubError::Status { status, .. } => *status == 429 || *status >= 500,
            HubError::Network { .. } | HubError::Silent { .. } | HubError::Size { .. } => true,
            _ => false,
        }
    }

    /// Whether the request is wrong, and not the network, the hub or the disk.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            HubError::Setting { .. }
            | HubError::NotFound { .. }
            | HubError::Denied { .. }
            | HubError::NoFile { .. }
            | HubError::NoHub { .. } => true,
            HubError::Index(error) => !error.is_io(),
            _ => false,
        }
    }
}
