//! Bundles on disk: written aside, hashed while written, renamed when complete.
//!
//! A bundle appears under its name complete or not at all, so a device that watches the folder
//! never loads a partial one.

pub(crate) mod companions;
pub(crate) mod graphs;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use firmware_config::manifest::{FileEntry, Manifest};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use vlm::{MANIFEST, hex};

use crate::interrupt::PartialFolder;

/// Why a bundle was not written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleWriteError {
    /// A file or folder cannot be written.
    #[error("{path}: cannot be written; choose a writable folder with room for the bundle")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The bundle's name is taken.
    #[error("{path}: already exists; choose another name, or give --force to replace a bundle")]
    Exists {
        /// The bundle's folder.
        path: PathBuf,
    },
    /// The bundle's name is taken by something that is not a bundle.
    #[error(
        "{path}: exists and is not a bundle (it has no manifest.json), so --force does not replace it; choose another name"
    )]
    NotABundle {
        /// The folder.
        path: PathBuf,
    },
}

impl BundleWriteError {
    /// Whether a file could not be written, rather than the name being taken.
    pub(crate) fn is_io(&self) -> bool {
        matches!(self, BundleWriteError::Io { .. })
    }
}

/// Checks that a bundle may be made at `target`: nothing is there, or a bundle to be replaced.
///
/// # Errors
/// When the name is taken.
pub fn vacant(target: &Path, replace: bool) -> Result<(), BundleWriteError> {
    let occupied = target.symlink_metadata().is_ok();
    if occupied && !replace {
        return Err(BundleWriteError::Exists {
            path: target.to_owned(),
        });
    }
    if occupied && !target.join(MANIFEST).is_file() {
        return Err(BundleWriteError::NotABundle {
            path: target.to_owned(),
        });
    }
    Ok(())
}

/// A bundle being written, in a folder beside its target.
#[derive(Debug)]
pub struct Draft {
    dir: TempDir,
    /// Removed with the draft on a signal, until it is published.
    _partial: PartialFolder,
    target: PathBuf,
    replace: bool,
    files: BTreeMap<String, FileEntry>,
}

impl Draft {
    /// Starts a bundle that will be at `target`. With `replace`, a bundle that is there is replaced
    /// when this one is published.
    ///
    /// # Errors
    /// When the name is taken or the folder cannot be written.
    pub fn new(target: &Path, replace: bool) -> Result<Self, BundleWriteError> {
        vacant(target, replace)?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let io = |source| BundleWriteError::Io {
            path: parent.to_owned(),
            source,
        };
        fs::create_dir_all(parent).map_err(io)?;
        // Beside the target, so that the rename stays on one file system.
        let dir = tempfile::Builder::new()
            .prefix(".egret-export-")
            .tempdir_in(parent)
            .map_err(io)?;
        let partial = PartialFolder::new(dir.path());
        Ok(Draft {
            dir,
            _partial: partial,
            target: target.to_owned(),
            replace,
            files: BTreeMap::new(),
        })
    }

    /// Where the bundle is until it is published.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Adds a small file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, path: &str, content: &[u8]) -> Result<(), BundleWriteError> {
        let mut file = self.create(path)?;
        file.write_all(content)
            .map_err(|source| BundleWriteError::Io {
                path: self.target.join(path),
                source,
            })?;
        self.close(path, file)
    }

    /// Starts a large file at a bundle-relative path; [`Draft::close`] ends it.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn create(&self, path: &str) -> Result<HashedFile, BundleWriteError> {
        let full = self.dir.path().join(path);
        let io = |source| BundleWriteError::Io {
            path: self.target.join(path),
            source,
        };
        if let Some(folder) = full.parent() {
            fs::create_dir_all(folder).map_err(io)?;
        }
        Ok(HashedFile {
            file: BufWriter::with_capacity(1 << 20, File::create(full).map_err(io)?),
            hash: Sha256::new(),
            bytes: 0,
        })
    }

    /// Ends a file and adds it to the manifest's list.
    ///
    /// # Errors
    /// When its last bytes cannot be written.
    pub fn close(&mut self, path: &str, file: HashedFile) -> Result<(), BundleWriteError> {
        let io = |source: io::Error| BundleWriteError::Io {
            path: self.target.join(path),
            source,
        };
        let entry = FileEntry {
            bytes: file.bytes,
            sha256: hex(&file.hash.finalize()),
        };
        file.file
            .into_inner()
            .map_err(|error| io(error.into_error()))?
            .sync_all()
            .map_err(io)?;
        self.files.insert(path.to_owned(), entry);
        Ok(())
    }

    /// Files closed so far.
    pub fn files(&self) -> &BTreeMap<String, FileEntry> {
        &self.files
    }

    /// Writes the manifest: from here on the draft folder is a complete bundle.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn seal(&self, manifest: &Manifest) -> Result<(), BundleWriteError> {
        self.attach(MANIFEST, manifest.to_json().as_bytes())
    }

    /// Writes a file about the bundle that its manifest does not list, because the same checkpoint
    /// need not give the same bytes: a report holds what this machine measured.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn attach(&self, path: &str, content: &[u8]) -> Result<(), BundleWriteError> {
        let io = |source| BundleWriteError::Io {
            path: self.target.join(path),
            source,
        };
        let mut file = File::create(self.dir.path().join(path)).map_err(io)?;
        file.write_all(content)
            .and_then(|()| file.sync_all())
            .map_err(io)
    }

    /// Renames the bundle to its target.
    ///
    /// # Errors
    /// When it cannot be renamed; the bundle it was to replace is put back.
    pub fn publish(self) -> Result<(), BundleWriteError> {
        let io = |source| BundleWriteError::Io {
            path: self.target.clone(),
            source,
        };
        readable(self.dir.path()).map_err(io)?;
        // A folder cannot be renamed over one that is not empty: the old bundle is first moved into
        // a folder that is removed at the end.
        let mut old = None;
        if self.replace && self.target.exists() {
            let parent = self.dir.path().parent().expect("made inside a folder");
            let aside = tempfile::Builder::new()
                .prefix(".egret-replaced-")
                .tempdir_in(parent)
                .map_err(io)?;
            fs::rename(&self.target, aside.path().join("bundle")).map_err(io)?;
            old = Some(aside);
        }
        if let Err(source) = fs::rename(self.dir.path(), &self.target) {
            if let Some(old) = &old {
                fs::rename(old.path().join("bundle"), &self.target).map_err(io)?;
            }
            return Err(io(source));
        }
        // The folder has been renamed: there is nothing left for its guard to remove.
        let _moved = self.dir.keep();
        Ok(())
    }
}

/// Temporary folders are readable by their owner only; a bundle by anyone who may read its parent.
#[cfg(unix)]
fn readable(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

#[cfg(not(unix))]
fn readable(_: &Path) -> io::Result<()> {
    Ok(())
}

/// A file that is hashed while it is written.
#[derive(Debug)]
pub struct HashedFile {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl Write for HashedFile {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let written = self.file.write(buffer)?;
        self.hash.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_hashed_while_written() {
        let folder = tempfile::tempdir().unwrap();
        let mut draft = Draft::new(&folder.path().join("bundle"), false).unwrap();
        draft.add("onnx/a", b"abc").unwrap();
        let entry = &draft.files()["onnx/a"];
        assert_eq!(entry.bytes, 3);
        assert_eq!(
            entry.sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn a_draft_that_is_dropped_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        drop(Draft::new(&folder.path().join("bundle"), false).unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn only_a_bundle_is_replaced_and_only_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("bundle");
        fs::create_dir(&target).unwrap();
        fs::write(target.join("thesis.txt"), b"years of work").unwrap();
        assert!(matches!(
            Draft::new(&target, false),
            Err(BundleWriteError::Exists { .. })
        ));
        assert!(matches!(
            Draft::new(&target, true),
            Err(BundleWriteError::NotABundle { .. })
        ));

        fs::write(target.join(MANIFEST), b"{}").unwrap();
        let mut draft = Draft::new(&target, true).unwrap();
        draft.add("new", b"").unwrap();
        draft.publish().unwrap();
        assert!(target.join("new").exists() && !target.join("thesis.txt").exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
