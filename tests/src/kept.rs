//! Test data that is too slow to make for every test: made once for a target folder, and cached.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The folder `name` in [`scratch`], made by `make` if it does not exist yet.
///
/// `make` writes to a temporary path that is renamed when it returns, so a killed test leaves no
/// partial folder; a file lock keeps two test processes from making it at once. `name` must change
/// with what `make` writes.
///
/// # Panics
/// When files cannot be written there.
pub fn kept(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let path = scratch().join(name);
    let aside = path.with_added_extension("partial");
    fs::create_dir_all(path.parent().expect("the name is not empty"))
        .expect("the target folder is writable");
    let lock = File::create(path.with_added_extension("lock")).expect("a lock file can be made");
    lock.lock().expect("the target folder takes file locks");
    if !path.exists() {
        if aside.exists() {
            fs::remove_dir_all(&aside).expect("a partial folder can be removed");
        }
        make(&aside);
        fs::rename(&aside, &path).expect("a finished folder can be renamed");
    }
    path
}

/// `target/tmp`, as in `CARGO_TARGET_TMPDIR`, which cargo sets only for integration tests and not
/// for this library.
///
/// # Panics
/// When the test binary is not in `target/<profile>/deps`, or the folder cannot be made.
pub fn scratch() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the test binary is known");
    let target = test
        .ancestors()
        .nth(3)
        .expect("test binaries are in target/<profile>/deps");
    let scratch = target.join("tmp");
    fs::create_dir_all(&scratch).expect("the target folder is writable");
    scratch
}
