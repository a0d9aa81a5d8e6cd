//! SIGINT and SIGTERM during an export: partial files are removed before the program ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Folders to be removed before the program ends.
static PARTIAL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Removing a folder fails while files are still written into it.
const ATTEMPTS: usize = 5;

/// A folder that is removed when the program is interrupted, until this value is dropped.
#[derive(Debug)]
pub(crate) struct PartialFolder(PathBuf);

impl PartialFolder {
    pub(crate) fn new(folder: &Path) -> Self {
        folders().push(folder.to_owned());
        PartialFolder(folder.to_owned())
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        folders().retain(|folder| *folder != self.0);
    }
}

/// From now on SIGINT and SIGTERM end the program with `exit`, after partial folders are removed.
///
/// Where signals cannot be watched, they end the program at once, as they do by default.
pub(crate) fn watch(exit: i32) {
    let Ok(runtime) = Builder::new_current_thread().enable_io().build() else {
        return;
    };
    // Registered here and not on the thread, so that no signal from now on is missed.
    let watched = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt()),
            signal(SignalKind::terminate()),
        )
    };
    let (Ok(mut interrupt), Ok(mut terminate)) = watched else {
        return;
    };
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        for folder in folders().iter() {
            for _ in 0..ATTEMPTS {
                if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
                    break;
                }
            }
        }
        eprintln!("egret-export: interrupted; partial files were removed");
        std::process::exit(exit);
    });
}

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    // A panic elsewhere cannot leave the list inconsistent.
    PARTIAL.lock().unwrap_or_else(PoisonError::into_inner)
}
