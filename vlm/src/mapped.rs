//! Memory-mapped files: bundles and checkpoints are larger than the memory of the devices that read
//! them.
//!
//! The only unsafe code of the workspace.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// A whole file as bytes; pages are loaded when touched.
#[derive(Debug)]
pub struct MappedFile(Mmap);

impl MappedFile {
    /// Maps a file for reading.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped, or is a folder or another special file.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        #[expect(
            unsafe_code,
            reason = "mapping is what lets a checkpoint exceed memory"
        )]
        // SAFETY: the bytes are only read. A file that another process writes to would change under
        // us, so published bundles and checkpoints are never written to: they are replaced whole,
        // by rename.
        let map = unsafe { Mmap::map(&file)? };
        Ok(MappedFile(map))
    }

    /// The file's content.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weights");
        std::fs::write(&path, b"abc").unwrap();
        assert_eq!(MappedFile::open(&path).unwrap().as_bytes(), b"abc");
    }

    #[test]
    fn an_empty_file_is_an_empty_slice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert!(MappedFile::open(&path).unwrap().as_bytes().is_empty());
    }

    #[test]
    fn a_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(MappedFile::open(folder.path()).is_err());
    }
}
