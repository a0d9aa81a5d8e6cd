//! How an image is prepared: read from the image processor's config and checked against the
//! geometry.

use firmware_config::manifest::{Geometry, ImageRules};
use serde::Deserialize;

use super::processor::Section;
use crate::checkpoint::CheckpointError;

/// `resample` of the only filter that is supported: Pillow's LANCZOS.
const LANCZOS: u32 = 1;
/// `rescale_factor` that maps u8 to 0..=1.
const RESCALE: f64 = 1.0 / 255.0;

/// A size by its longest edge; other forms are refused.
#[derive(Debug, Deserialize)]
pub(super) struct EdgeSize {
    pub(super) longest_edge: usize,
}

/// How [`EdgeSize`] is written.
pub(super) const EDGE_SIZE: &str =
    "{\"longest_edge\": N}: images are resized by their longest edge, no other form is supported";

/// One number for each channel, or the same for all.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
pub(super) enum Channels {
    Each([f32; 3]),
    All(f32),
}

impl Channels {
    pub(super) fn values(self) -> [f32; 3] {
        match self {
            Channels::Each(values) => values,
            Channels::All(value) => [value; 3],
        }
    }
}

/// How [`Channels`] are written.
pub(super) const CHANNELS: &str = "a number for each of three channels, or one for all";

/// Reads the rules; the family's default replaces a missing field.
pub(crate) fn rules(
    found: &Section,
    geometry: &Geometry,
    tokens_per_tile: usize,
) -> Result<ImageRules, CheckpointError> {
    // Sizes.
    let side = geometry.vision.image_size;
    let tile_size = found
        .field("max_image_size", EDGE_SIZE)?
        .map_or(side, |edge: EdgeSize| edge.longest_edge);
    if tile_size != side {
        let diagnostic = format!(
            "max_image_size.longest_edge is {tile_size}, expected {side}, the tile of the vision encoder"
        );
        return Err(found.diagnostic(diagnostic));
    }
    let longest_edge = found
        .field("size", EDGE_SIZE)?
        .map_or(4 * side, |edge: EdgeSize| edge.longest_edge);
    if !(1..=1 << 14).contains(&longest_edge) {
        return Err(found.diagnostic(format!(
            "size.longest_edge is {longest_edge}, expected 1 to 16384"
        )));
    }
    // Steps that are always made, and in one way only.
    if let Some(filter) = found
        .field("resample", "1 (LANCZOS)")?
        .filter(|&filter: &u32| filter != LANCZOS)
    {
        return Err(found.diagnostic(format!(
            "resample is {filter}, expected 1 (LANCZOS): no other filter is supported"
        )));
    }
    for step in ["do_resize", "do_rescale", "do_normalize"] {
        if found.field(step, "true")? == Some(false) {
            return Err(found.diagnostic(format!(
                "{step} is false, expected true: the step cannot be left out"
            )));
        }
    }
    if let Some(factor) = found
        .field("rescale_factor", "1/255")?
        .filter(|factor: &f64| (factor - RESCALE).abs() > 1e-9)
    {
        return Err(found.diagnostic(format!(
            "rescale_factor is {factor}, expected 1/255: no other value is supported"
        )));
    }
    // Normalisation.
    let channels = |name| {
        Ok(found
            .field(name, CHANNELS)?
            .map_or([0.5; 3], Channels::values))
    };
    let (mean, std) = (channels("image_mean")?, channels("image_std")?);
    if !mean.iter().all(|value| value.is_finite())
        || !std.iter().all(|&value| value.is_finite() && value > 0.0)
    {
        return Err(found.diagnostic(format!(
            "image_mean is {mean:?} and image_std is {std:?}, expected finite numbers, and those of image_std above zero"
        )));
    }
    let splits_by_default = found
        .field("do_image_splitting", "true or false")?
        .unwrap_or(true);
    Ok(ImageRules {
        tile_size,
        longest_edge,
        mean,
        std,
        splits_by_default,
        tokens_per_tile,
    })
}

#[cfg(test)]
mod tests {
    use firmware_config::manifest::{TextGeometry, VisionGeometry};
    use serde_json::json;

    use super::*;

    const GEOMETRY: Geometry = Geometry {
        vision: VisionGeometry {
            hidden_size: 768,
            layers: 12,
            heads: 12,
            image_size: 512,
            patch_size: 16,
        },
        text: TextGeometry {
            hidden_size: 576,
            layers: 30,
            heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocab_size: 49280,
            context_length: 8192,
        },
        scale_factor: 4,
    };

    fn read(json: serde_json::Value) -> Result<ImageRules, String> {
        rules(&Section::of(json), &GEOMETRY, 64).map_err(|error| error.to_string())
    }

    #[test]
    fn missing_fields_take_the_family_defaults() {
        let image = rules(&Section::default(), &GEOMETRY, 64).unwrap();
        assert_eq!(
            (image.tile_size, image.longest_edge, image.splits_by_default),
            (512, 2048, true)
        );
        assert_eq!((image.mean, image.std), ([0.5; 3], [0.5; 3]));
    }

    #[test]
    fn given_fields_are_used_or_refused() {
        let image = read(json!({
            "do_image_splitting": false, "size": {"longest_edge": 1024}, "max_image_size": {"longest_edge": 512},
            "image_mean": [0.1, 0.2, 0.3], "image_std": 0.25, "resample": null
        }))
        .unwrap();
        assert_eq!((image.longest_edge, image.splits_by_default), (1024, false));
        assert_eq!((image.mean, image.std), ([0.1, 0.2, 0.3], [0.25; 3]));
        for (json, says) in [
            (
                json!({"max_image_size": {"longest_edge": 384}}),
                "is 384, expected 512, the tile of the vision encoder",
            ),
            (
                json!({"size": {"longest_edge": 20000}}),
                "size.longest_edge is 20000, expected 1 to 16384",
            ),
            (
                json!({"size": {"height": 64, "width": 64}}),
                r#"size is {"height":64,"width":64}, expected {"longest_edge": N}: images are"#,
            ),
            (json!({"resample": 3}), "resample is 3, expected 1"),
            (json!({"rescale_factor": 1.0}), "rescale_factor is 1"),
            (
                json!({"do_resize": false}),
                "do_resize is false, expected true",
            ),
            (
                json!({"do_normalize": false}),
                "do_normalize is false, expected true",
            ),
            (
                json!({"image_std": [0.5, 0.0, 0.5]}),
                "and those of image_std above zero",
            ),
            (
                json!({"image_mean": [0.5]}),
                "image_mean is [0.5], expected a number for each of three channels, or one for all",
            ),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
