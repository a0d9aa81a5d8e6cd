//! Ctrl-C in the middle of an export: what is half-written goes before the program does.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

/// Folders that nobody may find when the program is gone.
static HALF_WRITTEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

/// Files may still be written while their folder is removed, which then fails.
const TRIES: usize = 5;

/// A folder that is removed when the program is interrupted; dropped, it is left alone.
#[derive(Debug)]
pub(crate) struct HalfWritten(PathBuf);

impl HalfWritten {
    pub(crate) fn new(folder: &Path) -> Self {
        folders().push(folder.to_owned());
        HalfWritten(folder.to_owned())
    }
}

impl Drop for HalfWritten {
    fn drop(&mut self) {
        folders().retain(|folder| *folder != self.0);
    }
}

/// From now on SIGINT and SIGTERM end the program with `exit`, after what is half-written has been
/// removed.
///
/// Where the system does not let us watch, they end it at once, as they do by default.
pub(crate) fn watch(exit: i32) {
    let Ok(runtime) = Builder::new_current_thread().enable_io().build() else {
        return;
    };
    // Here and not on the thread: what is interrupted from now on is already watched.
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
            for _ in 0..TRIES {
                if fs::remove_dir_all(folder).is_ok() || !folder.exists() {
                    break;
                }
            }
        }
        eprintln!("egret-export: interrupted; nothing half-written is left");
        std::process::exit(exit);
    });
}

fn folders() -> MutexGuard<'static, Vec<PathBuf>> {
    // A list of paths is whole between any two of its operations.
    HALF_WRITTEN.lock().unwrap_or_else(PoisonError::into_inner)
}
