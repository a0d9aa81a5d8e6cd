//! The clip that a question is about: the frames of a video file, as the model takes them.

use std::path::Path;

use anyhow::anyhow;
use devices::clip;
use firmware_config::manifest::VideoRules;
use vlm::Picture;
use vlm::video::{Clip, ClipFrame};

use crate::commands::exit::{Exit, Failure, OrExit};

/// Reads the frames of a video file that `rules` sample.
pub(super) fn read(path: &Path, rules: &VideoRules) -> Result<Clip, Failure> {
    let named = |error: anyhow::Error| error.context(format!("cannot show {}", path.display()));
    let clip = clip::read(path, rules).map_err(|error| Failure {
        // A file that is no video is a wrong argument: reading it again will not help.
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
