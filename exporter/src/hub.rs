//! Checkpoints of the hub: fetched into a folder of its cache, and from there on like any other.
//!
//! | asked | answered |
//! |---|---|
//! | `GET {endpoint}/api/models/{id}/revision/{revision}` | the commit, and which files it has |
//! | `GET {endpoint}/{id}/resolve/{commit}/{file}` | a file; large ones redirect to another host, with their sha256 in a header |
//!
//! Only files that an export reads are fetched, each once: what the cache has is not asked for
//! again. A file gets its name when it is whole and hashed, so whoever finds it may use it. The
//! folder is the one that Python's `huggingface_hub` uses, and either finds what the other fetched.
//!
//! The only part of this crate that is async, since its HTTP client is.

mod cache;
mod client;
mod id;
mod progress;
mod settings;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use vlm::special_tokens::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};

use crate::checkpoint::files::{
    CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, CONFIG, GENERATION_CONFIG, PREPROCESSOR, PROCESSOR,
    TOKENIZER, VIDEO_PREPROCESSOR, WEIGHTS, WEIGHTS_INDEX,
};
use crate::checkpoint::{CheckpointError, shards};

use cache::Cache;
use client::Client;
pub use id::HubId;
use progress::Progress;
use settings::Settings;

/// What an export reads besides weights, and whether it can do without.
const FILES: [(&str, bool); 10] = [
    (CONFIG, true),
    (TOKENIZER, true),
    (TOKENIZER_CONFIG, false),
    (SPECIAL_TOKENS_MAP, false),
    (GENERATION_CONFIG, false),
    (PREPROCESSOR, false),
    (PROCESSOR, false),
    (VIDEO_PREPROCESSOR, false),
    (CHAT_TEMPLATE, false),
    (CHAT_TEMPLATE_JSON, false),
];

/// Largest small file that is fetched, in bytes; the tokenizer has some 4 MB.
const SMALL_BYTES_MAX: u64 = 64 << 20;

/// Largest weight file that is fetched, in bytes; shards of published models have 5 GB.
const WEIGHTS_BYTES_MAX: u64 = 64 << 30;

/// Waits before the second attempt, the third, and so on.
const PAUSES: [Duration; 3] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];

/// A revision, as the hub describes it.
#[derive(Deserialize)]
struct Revision {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// Fetches a checkpoint, or what the cache lacks of it. Returns its folder.
///
/// # Errors
/// When the hub does not have it or does not hand it out, or a file does not arrive whole. Half a
/// file is never left under its name.
pub fn fetch(id: &HubId, revision: &str) -> Result<PathBuf, HubError> {
    let settings = Settings::new(|name| std::env::var(name).ok())?;
    let cache = Cache::new(settings.cache.clone(), id);
    // Two exports of one model at once would write the same files.
    let _locked = cache.lock()?;
    let client = Client::new(settings)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build();
    runtime
        .map_err(|source| HubError::Io {
            path: cache.model().to_owned(),
            source,
        })?
        .block_on(
            Fetch {
                id,
                revision,
                client,
                cache,
            }
            .run(),
        )
}

/// One checkpoint being fetched.
struct Fetch<'a> {
    id: &'a HubId,
    revision: &'a str,
    client: Client,
    cache: Cache,
}

impl Fetch<'_> {
    async fn run(&self) -> Result<PathBuf, HubError> {
        let Revision {
            sha: commit,
            siblings,
        } = patiently(async || self.client.revision(self.id, self.revision).await).await?;
        let has = |file: &str| siblings.iter().any(|sibling| sibling.rfilename == file);
        // Whatever is missing is told before anything is fetched.
        if let Some((file, _)) = FILES
            .iter()
            .find(|(file, is_needed)| *is_needed && !has(file))
        {
            return Err(self.lacks(file));
        }
        if !has(WEIGHTS) && !has(WEIGHTS_INDEX) {
            return Err(self.lacks(WEIGHTS));
        }
        let folder = self.cache.snapshot(&commit)?;
        let mut progress = Progress::new(&format!("{} at {commit:.12}", self.id));
        for (file, _) in FILES.iter().filter(|(file, _)| has(file)) {
            self.file(&commit, file, &folder, SMALL_BYTES_MAX, &mut progress)
                .await?;
        }
        if !has(WEIGHTS) {
            self.file(
                &commit,
                WEIGHTS_INDEX,
                &folder,
                SMALL_BYTES_MAX,
                &mut progress,
            )
            .await?;
        }
        let weights = if has(WEIGHTS) {
            vec![WEIGHTS.to_owned()]
        } else {
            shards::listed(&folder)?
        };
        if let Some(file) = weights.iter().find(|file| !has(file)) {
            return Err(self.lacks(file));
        }
        for file in &weights {
            self.file(&commit, file, &folder, WEIGHTS_BYTES_MAX, &mut progress)
                .await?;
        }
        Ok(folder)
    }

    fn lacks(&self, file: &str) -> HubError {
        HubError::NoFile {
            id: self.id.clone(),
            revision: self.revision.to_owned(),
            file: file.to_owned(),
        }
    }

    /// Fetches one file, unless the cache has it.
    async fn file(
        &self,
        commit: &str,
        file: &str,
        folder: &Path,
        bytes_max: u64,
        progress: &mut Progress,
    ) -> Result<(), HubError> {
        let path = folder.join(file);
        if path.is_file() {
            return Ok(());
        }
        // Under a name of its own until it is whole. One that a killed process left is written
        // over.
        let aside = path.with_added_extension("incomplete");
        let fetched = patiently(async || {
            self.client
                .download(self.id, commit, file, &aside, bytes_max, progress)
                .await
        })
        .await;
        match fetched.and_then(|()| {
            fs::rename(&aside, &path).map_err(|source| HubError::Io {
                path: path.clone(),
                source,
            })
        }) {
            Ok(()) => Ok(()),
            Err(error) => {
                // The error that stopped the fetch is the one to tell.
                let _ = fs::remove_file(&aside);
                Err(error)
            }
        }
    }
}

/// Tries again, after longer and longer waits, what may pass.
async fn patiently<T>(
    mut attempt: impl AsyncFnMut() -> Result<T, HubError>,
) -> Result<T, HubError> {
    for pause in PAUSES {
        match attempt().await {
            Err(error) if error.may_pass() => {
                tracing::warn!("{error}: trying again in {} s", pause.as_secs());
                tokio::time::sleep(pause).await;
            }
            outcome => return outcome,
        }
    }
    attempt().await
}

/// Why a checkpoint was not fetched.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// A setting is not what its name says.
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
        /// The client's words.
        message: String,
    },
    /// Neither here nor there.
    #[error(
        "{id}: no such folder here, and no model of that name with a revision {revision:?} on {endpoint}; mind the spelling, or give \
         --revision"
    )]
    NotFound {
        /// The model.
        id: HubId,
        /// The revision asked for.
        revision: String,
        /// The hub.
        endpoint: String,
    },
    /// The hub does not say, or not to us.
    #[error(
        "{id}: no such folder here, and {endpoint} answers {status}: it has no model of that name, or a private or gated one; {cure}"
    )]
    Denied {
        /// The model.
        id: HubId,
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// What to do about the token.
        cure: &'static str,
    },
    /// The model is there, but without a file.
    #[error(
        "{id} at {revision}: has no {file}, expected a checkpoint as save_pretrained writes it, with safetensors; mind --revision"
    )]
    NoFile {
        /// The model.
        id: HubId,
        /// The revision asked for.
        revision: String,
        /// The file.
        file: String,
    },
    /// The hub answers with an error.
    #[error("{url}: answers {status}; try again later, or set HF_ENDPOINT to another hub")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// What answers is no hub.
    #[error("{url}: {problem}; expected a hub, mind HF_ENDPOINT")]
    NoHub {
        /// What was asked for.
        url: String,
        /// What it says that no hub would.
        problem: String,
    },
    /// The network, or whoever is at its other end, failed.
    #[error(
        "{url}: {message}; see whether this box reaches it (HF_ENDPOINT, HTTPS_PROXY), and try again"
    )]
    Network {
        /// What was asked for.
        url: String,
        /// What went wrong.
        message: String,
    },
    /// Nothing came for a while.
    #[error(
        "{url}: silent for {seconds} s; try again, or set HF_HUB_DOWNLOAD_TIMEOUT to more seconds"
    )]
    Silent {
        /// What was asked for.
        url: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A file ends early, or does not end.
    #[error("{url}: {got} bytes arrived, expected {expected}; try again")]
    Size {
        /// What was asked for.
        url: String,
        /// As announced.
        expected: u64,
        /// As read.
        got: u64,
    },
    /// A file is larger than any real one.
    #[error(
        "{url}: has more than {bytes_max} bytes, which no checkpoint of this family needs; fetch it by other means if it is one"
    )]
    TooLarge {
        /// What was asked for.
        url: String,
        /// What would have been read.
        bytes_max: u64,
    },
    /// A file is another one.
    #[error(
        "{url}: sha256 is {got}, expected {expected}; it was damaged or replaced on its way: try again, or without a mirror"
    )]
    Sha256 {
        /// What was asked for.
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
        /// The system's words.
        source: io::Error,
    },
}

impl HubError {
    /// Whether trying again may help.
    fn may_pass(&self) -> bool {
        match self {
            HubError::Status { status, .. } => *status == 429 || *status >= 500,
            HubError::Network { .. } | HubError::Silent { .. } | HubError::Size { .. } => true,
            _ => false,
        }
    }

    /// Whether it is the question that is wrong, and not the network, the hub or a disk.
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

/// A file of the cache, to be written from its beginning.
fn create(path: &Path) -> Result<File, HubError> {
    File::create(path).map_err(|source| HubError::Io {
        path: path.to_owned(),
        source,
    })
}
