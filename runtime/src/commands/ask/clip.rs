//! Reads the clip that a question is about: the sampled frames of a video file.

use std::path::Path;

use anyhow::anyhow;
use devices::clip;
use firmware_config::manifest::VideoRules;
use vlm::Picture;
use vlm::video::{Clip, ClipFrame};

use crate::commands::exit::{Exit, Failure, OrExit};

/// Reads the frames of a video file that `rules` sample.
///
/// # Errors
/// When the file cannot be read, or is not a video with usable frames.
pub(super) fn read(path: &Path, rules: &VideoRules) -> Result<Clip, Failure> {
    let named = |error: anyhow::Error| error.context(format!("cannot show {}", path.display()));
    let clip = clip::read(path, rules).map_err(|error| Failure {
        // A file that is not a video is a usage error: reading it again will not help.
        exit: if error.is_io() { Exit::Io } else { Exit::Usage },
        error: named(anyhow!(error)),
    })?;
    let frames = clip
        .frames
        .into_iter()
        .map(|clip::ClipFrame { image, at }| {
            let picture = Picture::from_rgb(image.width, image.height, image.data)?;
            Ok(ClipFrame { picture, at })
        });
    Ok(Clip {
        frames: frames
            .collect::<anyhow::Result<_>>()
            .map_err(named)
            .or_exit(Exit::Usage)?,
        duration: clip.duration,
    })
}
