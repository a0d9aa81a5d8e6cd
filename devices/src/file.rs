//! Files named by people: whether one can be read at all, before anything waits for it.

use std::fs::{self, File, Metadata};
use std::io;
use std::path::Path;

/// The metadata of a regular file.
///
/// # Errors
/// When there is no such file, or it is something else: opening a named pipe would block until
/// another process writes to it.
pub(crate) fn regular(path: &Path) -> io::Result<Metadata> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() {
        Ok(metadata)
    } else {
        Err(io::Error::other("not a regular file"))
    }
}

/// Checks that there is a regular file at `path` and that this user may read it.
///
/// # Errors
/// When there is none, or it may not be read.
pub fn readable(path: &Path) -> io::Result<()> {
    regular(path)?;
    File::open(path).map(drop)
}
