//! What is too large to make for every test: made once for a target folder, and kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The folder `name` beside the build's own files, made by `make` if it is not there yet.
///
/// `make` is given another path, renamed when it returns, so a killed test leaves nothing half done
/// behind; a file lock keeps two test processes from making it at once. Whoever changes what `make`
/// writes changes `name`.
///
/// # Panics
/// When files cannot be made there.
pub fn kept(name: &str, make: impl FnOnce(&Path)) -> PathBuf {
    let path = scratch().join(name);
    let aside = path.with_added_extension("partial");
    fs::create_dir_all(path.parent().expect("the name is not empty"))
        .expect("the target folder is writable");
    let lock = File::create(path.with_added_extension("lock")).expect("a lock file can be made");
    lock.lock().expect("the target folder takes file locks");
    if !path.exists() {
        if aside.exists() {
            fs::remove_dir_all(&aside).expect("what a killed test left can be removed");
        }
        make(&aside);
        fs::rename(&aside, &path).expect("a finished folder can be renamed");
    }
    path
}

/// `target/tmp`, which cargo keeps for integration tests but names only to them: this library is
/// not one.
///
/// # Panics
/// When the test binary lies elsewhere, or the folder cannot be made.
pub fn scratch() -> PathBuf {
    let test = std::env::current_exe().expect("a test knows its own path");
    let target = test
        .ancestors()
        .nth(3)
        .expect("tests lie in target/<profile>/deps");
    let scratch = target.join("tmp");
    fs::create_dir_all(&scratch).expect("the target folder is writable");
    scratch
}
