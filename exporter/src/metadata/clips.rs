//! How a clip becomes frames: read from the video processor's config.
//!
//! Frames are then prepared by the rules for images; a video processor that differs is reported.

use firmware_config::manifest::{ImageRules, VideoRules};
use serde::Deserialize;

use super::images::{CHANNELS, Channels, EDGE_SIZE, EdgeSize};
use super::processor::Section;
use crate::checkpoint::CheckpointError;

/// `video_sampling` of older configs; it takes precedence over the fields beside it.
#[derive(Debug, Deserialize)]
struct Sampling {
    fps: Option<f64>,
    max_frames: Option<usize>,
    video_size: Option<EdgeSize>,
}

/// How [`Sampling`] is written.
const SAMPLING: &str = "{\"fps\": N, \"max_frames\": N, \"video_size\": {\"longest_edge\": N}}";

/// Reads the rules; the family's default replaces a missing field.
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
            "video sampling is {frames_max} frames at {frames_per_second} per second, expected 1 to 4096 frames at up to 1000 per second"
        )));
    }
    Ok(video)
}

/// Where this config prepares frames differently from `images`.
pub(crate) fn differences(
    found: &Section,
    images: &ImageRules,
) -> Result<Vec<String>, CheckpointError> {
    let mut differences = Vec::new();
    let sampled = found
        .field("video_sampling", SAMPLING)?
        .and_then(|Sampling { video_size, .. }| video_size);
    let longest_edge = found
        .field("size", EDGE_SIZE)?
        .or(sampled)
        .map(|edge: EdgeSize| edge.longest_edge);
    let tile_size = found
        .field("max_image_size", EDGE_SIZE)?
        .map(|edge: EdgeSize| edge.longest_edge);
    for (field, clips, images) in [
        ("size.longest_edge", longest_edge, images.longest_edge),
        ("max_image_size.longest_edge", tile_size, images.tile_size),
    ] {
        differences.extend(
            clips
                .filter(|&clips| clips != images)
                .map(|clips| format!("{field} is {clips}, for images {images}")),
        );
    }
    for (field, images) in [("image_mean", images.mean), ("image_std", images.std)] {
        let clips = found.field(field, CHANNELS)?.map(Channels::values);
        differences.extend(
            clips
                .filter(|&clips| clips != images)
                .map(|clips| format!("{field} is {clips:?}, for images {images:?}")),
        );
    }
    Ok(differences)
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
    fn sampling_is_read_in_the_form_of_every_version() {
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
                "video sampling is 8 frames at 0 per second, expected 1 to 4096",
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
    fn frames_prepared_differently_are_reported() {
        let images = ImageRules {
            tile_size: 64,
            longest_edge: 128,
            mean: [0.5; 3],
            std: [0.5; 3],
            splits_by_default: true,
            tokens_per_tile: 4,
        };
        let found = |json| differences(&Section::of(json), &images).unwrap();
        let sampling = json!({"fps": 1, "max_frames": 8, "video_size": {"longest_edge": 64}});
        assert_eq!(
            found(
                json!({"video_sampling": sampling, "size": {"longest_edge": 128}, "image_mean": 0.5})
            ),
            [""; 0]
        );
        assert_eq!(
            found(json!({"video_sampling": sampling})),
            ["size.longest_edge is 64, for images 128"]
        );
        assert_eq!(
            found(json!({"image_std": 0.25})),
            ["image_std is [0.25, 0.25, 0.25], for images [0.5, 0.5, 0.5]"]
        );
    }
}
