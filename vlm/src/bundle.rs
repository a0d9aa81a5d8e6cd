//! A bundle folder, checked: no file in it is used before its size and sha256 match the manifest.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use firmware_config::manifest::{FileEntry, Manifest, ManifestError};
use sha2::{Digest, Sha256};

use crate::hash::hex;
use crate::mapped::MappedFile;

/// The manifest's file name.
pub const MANIFEST: &str = "manifest.json";

/// Largest manifest that is read. A real one is some 100 KiB.
const MANIFEST_BYTES_MAX: u64 = 16 << 20;

/// A bundle in which every listed file matches the manifest.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    sha256: String,
}

impl Bundle {
    /// Reads the manifest of the bundle in `dir` and checks every file it lists.
    ///
    /// # Errors
    /// When the manifest is missing, malformed or newer than this build, or a file is missing, cut
    /// short or changed.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST);
        let json = read_manifest(&path)?;
        let manifest = Manifest::from_json(&json).map_err(|error| BundleError::Manifest {
            path: path.clone(),
            error,
        })?;
        let bundle = Bundle {
            dir: dir.to_owned(),
            manifest,
            sha256: hex(&Sha256::digest(&json)),
        };
        for (name, entry) in &bundle.manifest.files {
            check(&bundle.path(name), entry)?;
        }
        Ok(bundle)
    }

    /// What the bundle holds and how its model is fed.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The bundle's identity: hex sha256 of `manifest.json`, which itself holds the hash of every
    /// other file.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The path of a file of the bundle.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A small file's content.
    ///
    /// # Errors
    /// When the manifest does not list it, so that it was not checked, or it cannot be read.
    pub fn read(&self, name: &str) -> Result<Vec<u8>, BundleError> {
        let path = self.path(name);
        if !self.manifest.files.contains_key(name) {
            return Err(BundleError::Unlisted { path });
        }
        fs::read(&path).map_err(|source| BundleError::Read { path, source })
    }
}

fn read_manifest(path: &Path) -> Result<Vec<u8>, BundleError> {
    let bytes = fs::metadata(path)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => BundleError::NoManifest {
                path: path.to_owned(),
            },
            _ => BundleError::Read {
                path: path.to_owned(),
                source,
            },
        })?
        .len();
    if bytes > MANIFEST_BYTES_MAX {
        return Err(BundleError::ManifestSize {
            path: path.to_owned(),
            bytes,
        });
    }
    fs::read(path).map_err(|source| BundleError::Read {
        path: path.to_owned(),
        source,
    })
}

/// Compares a file with its entry: the size first, which is cheap, then the hash of every byte.
fn check(path: &Path, entry: &FileEntry) -> Result<(), BundleError> {
    let file = MappedFile::open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BundleError::Missing {
            path: path.to_owned(),
        },
        _ => BundleError::Read {
            path: path.to_owned(),
            source,
        },
    })?;
    let bytes = file.len() as u64;
    if bytes != entry.bytes {
        return Err(BundleError::Size {
            path: path.to_owned(),
            expected: entry.bytes,
            got: bytes,
        });
    }
    let sha256 = hex(&Sha256::digest(file.as_bytes()));
    if sha256 != entry.sha256 {
        return Err(BundleError::Sha256 {
            path: path.to_owned(),
            expected: entry.sha256.clone(),
            got: sha256,
        });
    }
    Ok(())
}

/// Why a folder cannot be used as a bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// No manifest.
    #[error("{path}: no such file; a bundle is the folder that `egret-export` wrote", path = .path.display())]
    NoManifest {
        /// The path where it was expected.
        path: PathBuf,
    },
    /// A manifest that is too large.
    #[error("{path} is {bytes} bytes: expected at most {MANIFEST_BYTES_MAX}; export the bundle again", path = .path.display())]
    ManifestSize {
        /// The manifest.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A manifest of a newer format, or malformed.
    #[error("{path}: {error}", path = .path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// The parser's error.
        error: ManifestError,
    },
    /// A listed file is missing.
    #[error("{path}: no such file, but the manifest lists it; copy the whole bundle again", path = .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A file that the manifest does not list.
    #[error("{path} is not listed in the manifest: expected its size and sha256 there; export the bundle again", path = .path.display())]
    Unlisted {
        /// The file.
        path: PathBuf,
    },
    /// A file was cut short or replaced.
    #[error("{path} is {got} bytes: expected {expected}; copy the bundle again", path = .path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// From the manifest.
        expected: u64,
        /// On disk.
        got: u64,
    },
    /// A file was changed.
    #[error("{path} has sha256 {got}: expected {expected}; copy the bundle again", path = .path.display())]
    Sha256 {
        /// The file.
        path: PathBuf,
        /// From the manifest.
        expected: String,
        /// On disk.
        got: String,
    },
    /// The file system failed.
    #[error("{path} cannot be read", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl BundleError {
    /// Whether the bundle exists but differs from what was exported: files are missing, cut short
    /// or changed.
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            BundleError::Missing { .. } | BundleError::Size { .. } | BundleError::Sha256 { .. }
        )
    }
}
