//! What must hold between the values of a manifest, so that its readers can multiply, divide and
//! open files without further checks.

use std::fmt::Debug;

use super::{
    FileEntry, Geometry, ImageRules, Manifest, ManifestError, PromptTokens, QuantizedTensor,
};

/// Longest name, in characters.
const NAME_MAX: usize = 200;
/// Most files, targets or quantized tensors.
const ENTRIES_MAX: usize = 10_000;
/// Widest layer; longest side of an image, in pixels.
const WIDTH_MAX: usize = 1 << 16;
/// Most layers of a tower.
pub const LAYERS_MAX: usize = 1 << 10;
const VOCABULARY_MAX: usize = 1 << 24;
const CONTEXT_MAX: usize = 1 << 24;

type RuleResult = Result<(), ManifestError>;

/// Checks every rule; the error is the first that is broken.
pub(super) fn check(manifest: &Manifest) -> RuleResult {
    let Manifest {
        format,
        name,
        source,
        architecture,
        targets,
        geometry,
        image,
        video,
        prompt,
        graphs,
        quantization,
        files,
        ..
    } = manifest;
    require(*format >= 1, "format", format, "a number from 1")?;
    for (field, name) in [
        ("name", name),
        ("source.name", &source.name),
        ("architecture", architecture),
    ] {
        let fits = !name.trim().is_empty()
            && name.chars().count() <= NAME_MAX
            && !name.chars().any(char::is_control);
        require(fits, field, name, "1 to 200 printable characters")?;
    }
    sha256("source.sha256", &source.sha256)?;
    for target in targets {
        require(
            is_contained(target) && !target.contains('/'),
            "targets",
            target,
            "the name of a folder in the bundle",
        )?;
    }
    require(
        files.len() <= ENTRIES_MAX,
        "files",
        &files.len(),
        "at most 10000",
    )?;
    require(
        quantization.len() <= ENTRIES_MAX,
        "quantization",
        &quantization.len(),
        "at most 10000",
    )?;
    for QuantizedTensor {
        error_max,
        error_relative,
        ..
    } in quantization
    {
        for (field, error) in [
            ("quantization.error_max", error_max),
            ("quantization.error_relative", error_relative),
        ] {
            require(
                error.is_finite() && *error >= 0.0,
                field,
                error,
                "a finite number from 0",
            )?;
        }
    }
    for (path, FileEntry { sha256: hash, .. }) in files {
        require(
            is_contained(path),
            "files",
            path,
            "a relative path inside the bundle, with forward slashes",
        )?;
        sha256(&format!("files.{path}.sha256"), hash)?;
    }
    for (part, path) in graphs.iter() {
        require(
            files.contains_key(path),
            &format!("graphs.{}", part.as_str()),
            path,
            "a path that files lists",
        )?;
    }
    shapes(geometry)?;
    image_rules(image, geometry)?;
    let rate = video.frames_per_second;
    require(
        rate.is_finite() && rate > 0.0,
        "video.frames_per_second",
        &rate,
        "a number above 0",
    )?;
    within("video.frames_max", video.frames_max, 1, 1 << 16)?;
    tokens(prompt, geometry.text.vocab_size)
}

fn shapes(
    Geometry {
        vision,
        text,
        scale_factor,
    }: &Geometry,
) -> RuleResult {
    for (field, value, max) in [
        ("geometry.vision.hidden_size", vision.hidden_size, WIDTH_MAX),
        ("geometry.vision.layers", vision.layers, LAYERS_MAX),
        ("geometry.vision.heads", vision.heads, WIDTH_MAX),
        ("geometry.vision.image_size", vision.image_size, WIDTH_MAX),
        ("geometry.vision.patch_size", vision.patch_size, WIDTH_MAX),
        ("geometry.text.hidden_size", text.hidden_size, WIDTH_MAX),
        ("geometry.text.layers", text.layers, LAYERS_MAX),
        ("geometry.text.heads", text.heads, WIDTH_MAX),
        ("geometry.text.kv_heads", text.kv_heads, WIDTH_MAX),
        ("geometry.text.head_dim", text.head_dim, WIDTH_MAX),
        ("geometry.text.vocab_size", text.vocab_size, VOCABULARY_MAX),
        (
            "geometry.text.context_length",
            text.context_length,
            CONTEXT_MAX,
        ),
        ("geometry.scale_factor", *scale_factor, WIDTH_MAX),
    ] {
        within(field, value, 1, max)?;
    }
    divides(
        "geometry.vision.heads",
        vision.heads,
        vision.hidden_size,
        "vision.hidden_size",
    )?;
    divides(
        "geometry.text.kv_heads",
        text.kv_heads,
        text.heads,
        "text.heads",
    )?;
    // Patches need not fill a tile: the 2.2B model's leave 6 pixels at the right and the bottom.
    within(
        "geometry.vision.patch_size",
        vision.patch_size,
        1,
        vision.image_size,
    )?;
    // Rotary position embedding rotates pairs.
    require(
        text.head_dim.is_multiple_of(2),
        "geometry.text.head_dim",
        &text.head_dim,
        "an even number",
    )?;
    divides(
        "geometry.scale_factor",
        *scale_factor,
        vision.image_size / vision.patch_size,
        "the patches of a tile's side",
    )
}

fn image_rules(image: &ImageRules, geometry: &Geometry) -> RuleResult {
    let vision = geometry.vision;
    let expected = format!("geometry.vision.image_size, {}", vision.image_size);
    require(
        image.tile_size == vision.image_size,
        "image.tile_size",
        &image.tile_size,
        &expected,
    )?;
    within("image.longest_edge", image.longest_edge, 1, WIDTH_MAX)?;
    require(
        image.mean.iter().all(|mean| mean.is_finite()),
        "image.mean",
        &image.mean,
        "finite numbers",
    )?;
    require(
        image.std.iter().all(|std| std.is_finite() && *std > 0.0),
        "image.std",
        &image.std,
        "finite numbers above 0",
    )?;
    let side = vision.image_size / vision.patch_size / geometry.scale_factor;
    let expected = format!("{side} x {side}, from the vision encoder's geometry");
    require(
        image.tokens_per_tile == side * side,
        "image.tokens_per_tile",
        &image.tokens_per_tile,
        &expected,
    )
}

fn tokens(prompt: &PromptTokens, vocab_size: usize) -> RuleResult {
    let single = [
        ("prompt.image", prompt.image),
        (
            "prompt.fake_token_around_image",
            prompt.fake_token_around_image,
        ),
        ("prompt.global_img", prompt.global_img),
    ];
    let places = prompt
        .rows_cols
        .values()
        .map(|id| ("prompt.rows_cols", *id));
    let stops = prompt.stop.iter().map(|id| ("prompt.stop", *id));
    for (field, id) in single.into_iter().chain(places).chain(stops) {
        require(
            (id as usize) < vocab_size,
            field,
            &id,
            &format!("a token id below geometry.text.vocab_size, {vocab_size}"),
        )?;
    }
    require(
        !prompt.stop.is_empty(),
        "prompt.stop",
        &prompt.stop,
        "at least one id: an answer must end",
    )
}

/// Whether a path stays inside the folder it is joined to, on every system.
fn is_contained(path: &str) -> bool {
    let component = |part: &str| !matches!(part, "" | "." | "..");
    path.len() <= 1024
        && !path.contains(['\\', ':'])
        && !path.contains(char::is_control)
        && path.split('/').all(component)
}

fn sha256(field: &str, hash: &str) -> RuleResult {
    let is_hex = hash.len() == 64
        && hash
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    require(is_hex, field, hash, "64 lower-case hex digits")
}

fn within(field: &str, value: usize, min: usize, max: usize) -> RuleResult {
    require(
        (min..=max).contains(&value),
        field,
        &value,
        &format!("a number from {min} to {max}"),
    )
}

fn divides(field: &str, part: usize, whole: usize, name: &str) -> RuleResult {
    require(
        whole.is_multiple_of(part),
        field,
        &part,
        &format!("a divisor of {name}, {whole}"),
    )
}

fn require(holds: bool, field: &str, found: &(impl Debug + ?Sized), expected: &str) -> RuleResult {
    let short = || format!("{found:?}").chars().take(200).collect();
    if holds {
        Ok(())
    } else {
        Err(ManifestError::Invalid {
            field: field.to_owned(),
            found: short(),
            expected: expected.to_owned(),
        })
    }
}
