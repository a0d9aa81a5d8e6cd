//! How a clip becomes frames: read off the video processor's config.
//!
//! Frames are then prepared by the pictures' rules; a video processor that would prepare them
//! otherwise is told.

use firmware_config::manifest::{ImageRules, VideoRules};
use serde::Deserialize;

use super::pictures::{CHANNELS, Channels, EDGE, Edge};
use super::processor::Section;
use crate::checkpoint::CheckpointError;

/// `video_sampling` of older configs; it counts before the fields beside it.
#[derive(Debug, Deserialize)]
struct Sampling {
    fps: Option<f64>,
    max_frames: Option<usize>,
    video_size: Option<Edge>,
}

/// How [`Sampling`] is written.
const SAMPLING: &str = "{\"fps\": N, \"max_frames\": N, \"video_size\": {\"longest_edge\": N}}";

/// Reads the rules; a field that is missing stands for the family's default.
pub(crate) fn rules(found: &Section) -> Result<VideoRules, CheckpointError> {
    let (fps, frames_max) = match found.field("video_sampling", SAMPLING)? {
        Some(Sampling {
            fps, max_frames, ..
        }) => (fps, max_frames),
        None => (
            found.field("fps", "a number")?,
            found.field("num_frames", "a whole number")?,
        ),
    };
    let video = VideoRules {
        frames_per_second: fps.unwrap_or(1.0),
        frames_max: frames_max.unwrap_or(64),
    };
    let is_rate = video.frames_per_second > 0.0 && video.frames_per_second <= 1000.0;
    if !is_rate || !(1..=4096).contains(&video.frames_max) {
        let VideoRules {
            frames_per_second,
            frames_max,
        } = video;
        return Err(found.diagnostic(format!(
            "video sampling is {frames_max} frames at {frames_per_second} a second, expected 1 to 4096 frames and up to 1000 a second"
        )));
    }
    Ok(video)
}

/// What this config says of a frame's preparation that is not what `pictures` say.
pub(crate) fn differences(
    found: &Section,
    pictures: &ImageRules,
) -> Result<Vec<String>, CheckpointError> {
    let mut told = Vec::new();
    let sampled = found
        .field("video_sampling", SAMPLING)?
        .and_then(|Sampling { video_size, .. }| video_size);
    let longest_edge = found
        .field("size", EDGE)?
        .or(sampled)
        .map(|edge: Edge| edge.longest_edge);
    let tile_size = found
        .field("max_image_size", EDGE)?
        .map(|edge: Edge| edge.longest_edge);
    for (field, clips, pictures) in [
        ("size.longest_edge", longest_edge, pictures.longest_edge),
        ("max_image_size.longest_edge", tile_size, pictures.tile_size),
    ] {
        told.extend(
            clips
                .filter(|&clips| clips != pictures)
                .map(|clips| format!("{field} is {clips}, the pictures' {pictures}")),
        );
    }
    for (field, pictures) in [("image_mean", pictures.mean), ("image_std", pictures.std)] {
        let clips = found.field(field, CHANNELS)?.map(Channels::values);
        told.extend(
            clips
                .filter(|&clips| clips != pictures)
                .map(|clips| format!("{field} is {clips:?}, the pictures' {pictures:?}")),
        );
    }
    Ok(told)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<(f64, usize), String> {
        let rules = rules(&Section::of(json)).map_err(|error| error.to_string())?;
        Ok((rules.frames_per_second, rules.frames_max))
    }

    #[test]
    fn sampling_is_read_in_the_spelling_of_every_version() {
        for (json, expected) in [
            (json!({}), (1.0, 64)),
            (
                json!({"video_sampling": {"fps": 2, "max_frames": 8}}),
                (2.0, 8),
            ),
            (json!({"fps": 2, "num_frames": 7}), (2.0, 7)),
            (
                json!({"fps": 2, "num_frames": 7, "video_sampling": {"fps": 3, "max_frames": 9}}),
                (3.0, 9),
            ),
            (json!({"fps": null, "num_frames": null}), (1.0, 64)),
        ] {
            assert_eq!(read(json.clone()).unwrap(), expected, "{json}");
        }
        for (json, says) in [
            (
                json!({"video_sampling": {"fps": 0, "max_frames": 8}}),
                "video sampling is 8 frames at 0 a second, expected 1 to 4096",
            ),
            (json!({"fps": "two"}), "fps is \"two\", expected a number"),
            (
                json!({"video_sampling": 3}),
                "video_sampling is 3, expected {\"fps\": N",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn frames_prepared_unlike_pictures_are_told() {
        let pictures = ImageRules {
            tile_size: 64,
            longest_edge: 128,
            mean: [0.5; 3],
            std: [0.5; 3],
            splits_by_default: true,
            tokens_per_tile: 4,
        };
        let told = |json| differences(&Section::of(json), &pictures).unwrap();
        let sampling = json!({"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 64}});
        assert_eq!(
            told(
                json!({"video_sampling": sampling, "size": {"longest_edge": 128}, "image_mean": 0.5})
            ),
            [""; 0]
        );
        assert_eq!(
            told(json!({"video_sampling": sampling})),
            ["size.longest_edge is 64, the pictures' 128"]
        );
        assert_eq!(
            told(json!({"image_std": 0.25})),
            ["image_std is [0.25, 0.25, 0.25], the pictures' [0.5, 0.5, 0.5]"]
        );
    }
}
