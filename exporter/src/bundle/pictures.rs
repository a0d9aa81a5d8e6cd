//! Image and video rules, read from the processor's configs and checked against the geometry.

use std::path::Path;

use firmware_config::manifest::{Geometry, ImageRules, VideoRules};
use serde::Deserialize;

use crate::ExportError;
use crate::checkpoint::CheckpointError;
use crate::checkpoint::config::read_json;

/// `resample` of the only filter that is built: Pillow's LANCZOS.
const LANCZOS: u32 = 1;
/// `rescale_factor` that brings u8 to 0..=1.
const RESCALE: f64 = 1.0 / 255.0;

/// `preprocessor_config.json`; every field is optional, as in transformers.
#[derive(Debug, Deserialize, Default)]
struct Preprocessor {
    do_image_splitting: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    image_mean: Option<[f32; 3]>,
    image_std: Option<[f32; 3]>,
    max_image_size: Option<Edge>,
    size: Option<Edge>,
    resample: Option<u32>,
    rescale_factor: Option<f64>,
    video_sampling: Option<Sampling>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    longest_edge: usize,
}

#[derive(Debug, Deserialize)]
struct Sampling {
    fps: Option<f64>,
    max_frames: Option<usize>,
}

/// `processor_config.json`; newer transformers put the image processor's config inside it.
#[derive(Debug, Deserialize, Default)]
struct Processor {
    image_seq_len: Option<usize>,
    image_processor: Option<Preprocessor>,
}

/// Reads the rules of a checkpoint folder; a file that is missing stands for its defaults.
pub(crate) fn rules(dir: &Path, geometry: &Geometry, tokens_per_tile: usize) -> Result<(ImageRules, VideoRules), ExportError> {
    let processor: Processor = read_or_default(&dir.join("processor_config.json"))?;
    let preprocessor = match processor.image_processor {
        Some(nested) if !dir.join("preprocessor_config.json").exists() => nested,
        _ => read_or_default(&dir.join("preprocessor_config.json"))?,
    };
    if let Some(found) = processor.image_seq_len.filter(|&found| found != tokens_per_tile) {
        let path = dir.join("processor_config.json");
        let problem = format!("image_seq_len is {found}, the vision encoder gives {tokens_per_tile} tokens a tile");
        return Err(CheckpointError::Json { path, problem }.into());
    }
    check(preprocessor, geometry, tokens_per_tile)
        .map_err(|problem| CheckpointError::Json { path: dir.join("preprocessor_config.json"), problem }.into())
}

fn check(found: Preprocessor, geometry: &Geometry, tokens_per_tile: usize) -> Result<(ImageRules, VideoRules), String> {
    let side = geometry.vision.image_size;
    let tile_size = found.max_image_size.map_or(side, |edge| edge.longest_edge);
    if tile_size != side {
        return Err(format!("max_image_size.longest_edge is {tile_size}, the vision encoder takes tiles of {side}"));
    }
    let longest_edge = found.size.map_or(4 * side, |edge| edge.longest_edge);
    if !(1..=1 << 14).contains(&longest_edge) {
        return Err(format!("size.longest_edge is {longest_edge}, expected 1 to 16384"));
    }
    if let Some(filter) = found.resample.filter(|&filter| filter != LANCZOS) {
        return Err(format!("resample is {filter}, expected 1 (LANCZOS): nothing else is built"));
    }
    if found.do_rescale == Some(false) || found.do_normalize == Some(false) {
        return Err("do_rescale or do_normalize is false, expected true: nothing else is built".into());
    }
    if let Some(factor) = found.rescale_factor.filter(|factor| (factor - RESCALE).abs() > 1e-9) {
        return Err(format!("rescale_factor is {factor}, expected 1/255: nothing else is built"));
    }
    let (mean, std) = (found.image_mean.unwrap_or([0.5; 3]), found.image_std.unwrap_or([0.5; 3]));
    if !mean.iter().all(|value| value.is_finite()) || !std.iter().all(|&value| value.is_finite() && value > 0.0) {
        return Err(format!("image_mean is {mean:?} and image_std {std:?}, expected numbers, the latter above zero"));
    }
    let splits_by_default = found.do_image_splitting.unwrap_or(true);
    let image = ImageRules { tile_size, longest_edge, mean, std, splits_by_default, tokens_per_tile };
    let (fps, max_frames) = found.video_sampling.map_or((None, None), |sampling| (sampling.fps, sampling.max_frames));
    let video = VideoRules { frames_per_second: fps.unwrap_or(1.0), frames_max: max_frames.unwrap_or(64) };
    let is_rate = video.frames_per_second > 0.0 && video.frames_per_second <= 1000.0;
    if !is_rate || !(1..=4096).contains(&video.frames_max) {
        return Err(format!("video_sampling is {video:?}, expected up to 1000 frames a second and 1 to 4096 frames"));
    }
    Ok((image, video))
}

fn read_or_default<T: serde::de::DeserializeOwned + Default>(path: &Path) -> Result<T, ExportError> {
    if path.exists() { Ok(read_json(path)?) } else { Ok(T::default()) }
}

#[cfg(test)]
mod tests {
    use firmware_config::manifest::{TextGeometry, VisionGeometry};
    use serde_json::json;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        vision: VisionGeometry { hidden_size: 768, layers: 12, heads: 12, image_size: 512, patch_size: 16 },
        text: TextGeometry { hidden_size: 576, layers: 30, heads: 9, kv_heads: 3, head_dim: 64, vocab_size: 49280, context_length: 8192 },
        scale_factor: 4,
    };

    fn rules(json: serde_json::Value) -> Result<(ImageRules, VideoRules), String> {
        check(serde_json::from_value(json).unwrap(), &GEOMETRY, 64)
    }

    #[test]
    fn missing_fields_are_the_familys_defaults() {
        let (image, video) = rules(json!({})).unwrap();
        assert_eq!((image.tile_size, image.longest_edge, image.splits_by_default), (512, 2048, true));
        assert_eq!((image.mean, image.std), ([0.5; 3], [0.5; 3]));
        assert_eq!(video, VideoRules { frames_per_second: 1.0, frames_max: 64 });
    }

    #[test]
    fn what_is_given_is_taken_or_refused() {
        let (image, video) = rules(json!({
            "do_image_splitting": false, "size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512},
            "image_mean": [0.1, 0.2, 0.3], "video_sampling": {"fps": 2, "max_frames": 8}
        }))
        .unwrap();
        assert_eq!((image.longest_edge, image.splits_by_default, image.mean), (1024, false, [0.1, 0.2, 0.3]));
        assert_eq!(video, VideoRules { frames_per_second: 2.0, frames_max: 8 });
        for (json, says) in [
            (json!({"max_image_size": {"longest_edge": 384}}), "is 384, the vision encoder takes tiles of 512"),
            (json!({"size": {"longest_edge": 20000}}), "size.longest_edge is 20000, expected 1 to 16384"),
            (json!({"resample": 3}), "resample is 3, expected 1"),
            (json!({"rescale_factor": 1.0}), "rescale_factor is 1"),
            (json!({"do_normalize": false}), "expected true"),
            (json!({"image_std": [0.5, 0.0, 0.5]}), "the latter above zero"),
            (json!({"video_sampling": {"fps": 0}}), "expected up to 1000 frames a second"),
        ] {
            let error = rules(json).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
