//! A folder of image files: each once, in name order, as fast as the rate allows.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use firmware_config::limits::IMAGE_FILE_BYTES_MAX;

use super::schedule::Schedule;
use super::{Camera, CaptureError};
use crate::{Frame, FrameImage, Stop, file};

/// Most image files of a folder: their names are kept in memory.
const FILES_MAX: usize = 1_000_000;
const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

pub(super) struct Folder {
    files: std::vec::IntoIter<PathBuf>,
    schedule: Schedule,
    stop: Stop,
}

impl Folder {
    pub(super) fn open(path: &Path, period: Duration, stop: &Stop) -> Result<Self, CaptureError> {
        let camera = || format!("dir://{}", path.display());
        let cannot_open = |error| CaptureError::CannotOpen {
            camera: camera(),
            error,
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(cannot_open)? {
            let file = entry.map_err(cannot_open)?.path();
            if is_image(&file) {
                if files.len() == FILES_MAX {
                    return Err(CaptureError::FolderTooLarge {
                        camera: camera(),
                        max: FILES_MAX,
                    });
                }
                files.push(file);
            }
        }
        if files.is_empty() {
            return Err(CaptureError::EmptyFolder { camera: camera() });
        }
        files.sort_unstable();
        Ok(Self {
            files: files.into_iter(),
            schedule: Schedule::new(period),
            stop: stop.clone(),
        })
    }
}

impl Camera for Folder {
    fn next_frame(&mut self) -> Result<Option<Frame>, CaptureError> {
        let Some(path) = self.files.next() else {
            return Ok(None);
        };
        if self.stop.wait(self.schedule.wait(Instant::now())) {
            return Err(CaptureError::Stopped);
        }
        self.schedule.advance(Instant::now());
        let image = FrameImage::Encoded(read(&path)?.into());
        let name = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        Ok(Some(Frame {
            captured_at: SystemTime::now(),
            name,
            image,
        }))
    }
}

fn is_image(path: &Path) -> bool {
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    EXTENSIONS
        .iter()
        .any(|known| known.eq_ignore_ascii_case(extension))
}

fn read(path: &Path) -> Result<Vec<u8>, CaptureError> {
    let unreadable = |error| CaptureError::Unreadable {
        path: path.to_owned(),
        error,
    };
    let found = file::regular(path).map_err(unreadable)?;
    let mut bytes =
        Vec::with_capacity(usize::try_from(found.len().min(IMAGE_FILE_BYTES_MAX)).unwrap_or(0));
    File::open(path)
        .and_then(|file| file.take(IMAGE_FILE_BYTES_MAX + 1).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    if bytes.len() as u64 > IMAGE_FILE_BYTES_MAX {
        return Err(CaptureError::FrameTooLarge {
            path: path.to_owned(),
            bytes: found.len(),
            max: IMAGE_FILE_BYTES_MAX,
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_too_large_is_skipped() {
        let folder = tempfile::tempdir().expect("a folder");
        let large = File::create(folder.path().join("a.jpg")).expect("a file");
        large
            .set_len(IMAGE_FILE_BYTES_MAX + 1)
            .expect("a sparse file");
        fs::write(folder.path().join("b.PNG"), b"b").expect("a file");
        let mut folder =
            Folder::open(folder.path(), Duration::ZERO, &Stop::new()).expect("two images");
        let error = folder.next_frame().expect_err("too large");
        assert!(
            matches!(error, CaptureError::FrameTooLarge { .. }) && error.costs_one_frame(),
            "{error}"
        );
        let next = folder.next_frame();
        assert!(
            matches!(&next, Ok(Some(frame)) if frame.name.as_deref() == Some("b.PNG")),
            "{next:?}"
        );
        assert!(matches!(folder.next_frame(), Ok(None)));
    }
}
