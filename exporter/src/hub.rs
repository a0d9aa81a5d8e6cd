//! Checkpoints on a model hub: fetched into a folder of its cache, and then used like any other.
//!
//! | request | response |
//! |---|---|
//! | `GET {endpoint}/api/models/{id}/revision/{revision}` | the commit, and which files it has |
//! | `GET {endpoint}/{id}/resolve/{commit}/{file}` | a file; large ones redirect to another host, with their sha256 in a header |
//!
//! Only files that an export reads are fetched, each once: what the cache has is not requested
//! again. A file gets its name when it is complete and its hash is checked, so a file that is found
//! can be used. The folder is the one that Python's `huggingface_hub` uses, and either finds what
//! the other fetched.
//!
//! The only part of this crate that is async, since its HTTP client is.

mod cache;
mod client;
mod error;
mod id;
mod progress;
mod settings;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use vlm::special_tokens::{SPECIAL_TOKENS_MAP, TOKENIZER_CONFIG};

use crate::checkpoint::files::{
    CHAT_TEMPLATE, CHAT_TEMPLATE_JSON, CONFIG, GENERATION_CONFIG, PREPROCESSOR, PROCESSOR,
    TOKENIZER, VIDEO_PREPROCESSOR, WEIGHTS, WEIGHTS_INDEX,
};
use crate::checkpoint::shards;

use cache::Cache;
use client::Client;
pub use error::HubError;
pub use id::HubId;
use progress::Progress;
use settings::Settings;

/// The files that an export reads besides weights, and whether each is required.
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

/// Largest file besides weights that is fetched, in bytes; a tokenizer has some 4 MB.
const SMALL_BYTES_MAX: u64 = 64 << 20;

/// Largest weight file that is fetched, in bytes; shards of published models have 5 GB.
const WEIGHTS_BYTES_MAX: u64 = 64 << 30;

/// Delays before the second attempt, the third, and so on.
const RETRY_DELAYS: [Duration; 3] = [
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
/// When the hub does not have it or denies access, or a file does not arrive complete. A partial
/// file is never left under its name.
pub fn fetch(id: &HubId, revision: &str) -> Result<PathBuf, HubError> {
    let settings = Settings::new(|name| std::env::var(name).ok())?;
    let cache = Cache::new(settings.cache.clone(), id);
    // Two exports of one model at the same time would write the same files.
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
        // Which commit it is, and which files it has.
        let Revision {
            sha: commit,
            siblings,
        } = retried(async || self.client.revision(self.id, self.revision).await).await?;
        let has = |file: &str| siblings.iter().any(|sibling| sibling.rfilename == file);
        // Missing files are reported before anything is fetched.
        if let Some((file, _)) = FILES
            .iter()
            .find(|(file, is_required)| *is_required && !has(file))
        {
            return Err(self.lacks(file));
        }
        if !has(WEIGHTS) && !has(WEIGHTS_INDEX) {
            return Err(self.lacks(WEIGHTS));
        }
        // Small files first: the index among them lists the shards.
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
        // Then the weights.
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
        // Under a temporary name until it is complete; one that a killed process left is
        // overwritten.
        let aside = path.with_added_extension("incomplete");
        let fetched = retried(async || {
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
                // The error that stopped the fetch is the one to report.
                let _ = fs::remove_file(&aside);
                Err(error)
            }
        }
    }
}

/// Repeats an attempt whose error is temporary, after increasing delays.
async fn retried<T>(mut attempt: impl AsyncFnMut() -> Result<T, HubError>) -> Result<T, HubError> {
    for delay in RETRY_DELAYS {
        match attempt().await {
            Err(error) if error.is_temporary() => {
                tracing::warn!("{error}: trying again in {} s", delay.as_secs());
                tokio::time::sleep(delay).await;
            }
            outcome => return outcome,
        }
    }
    attempt().await
}

/// A file of the cache, to be written from its beginning.
fn create(path: &Path) -> Result<File, HubError> {
    File::create(path).map_err(|source| HubError::Io {
        path: path.to_owned(),
        source,
    })
}
