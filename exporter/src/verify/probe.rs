//! What both sides are asked: images and prompts that are the same on every machine.

use std::fs;
use std::path::{Path, PathBuf};

use firmware_config::limits::IMAGE_FILE_BYTES_MAX;
use vlm::{Content, Picture, Request, Role, Split, Turn};

use super::VerifyError;

/// Longest answer compared, in tokens.
const ANSWER_TOKENS: usize = 12;

/// The probe that does not fit into a short context.
pub(super) const LONG: &str = "long text";

/// Most images taken from a folder.
const IMAGES_MAX: usize = 256;

/// One question put to both sides.
#[derive(Debug)]
pub(super) struct Probe {
    /// Its name in the report.
    pub(super) name: String,
    pub(super) request: Request,
}

/// The probes of every verification: wide and tall images, two at once, text alone, and a text long
/// enough to reach far into the rotary table.
pub(super) fn built_in() -> Vec<Probe> {
    let (gradient, blocks) = (gradient(320, 240), blocks(200, 300));
    let long = "The gate was opened at 6:05 and closed again at 6:20. ".repeat(12);
    vec![
        probe(
            "gradient",
            vec![gradient.clone()],
            "Can you describe this image?",
        ),
        probe(
            "blocks",
            vec![blocks.clone()],
            "Is there a person? Answer yes or no.",
        ),
        probe(
            "two pictures",
            vec![blocks, gradient],
            "What changed between the two images?",
        ),
        probe(
            "text",
            Vec::new(),
            "How many vehicles are there? 12.5 cars?",
        ),
        probe(LONG, Vec::new(), long.trim_end()),
    ]
}

/// A probe for every image of a folder, in the order of their names.
pub(super) fn of_folder(folder: &Path) -> Result<Vec<Probe>, VerifyError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| VerifyError::Io { path, source }
    };
    let entries = fs::read_dir(folder).map_err(io(folder))?;
    let mut paths = entries
        .map(|entry| Ok(entry.map_err(io(folder))?.path()))
        .collect::<Result<Vec<PathBuf>, VerifyError>>()?;
    paths.retain(|path| {
        path.is_file()
            && !path
                .file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with('.'))
    });
    paths.sort();
    if paths.is_empty() || paths.len() > IMAGES_MAX {
        return Err(VerifyError::ImageCount {
            folder: folder.to_owned(),
            got: paths.len(),
        });
    }
    let of_file = |path: PathBuf| {
        let bytes = fs::metadata(&path).map_err(io(&path))?.len();
        if bytes > IMAGE_FILE_BYTES_MAX {
            return Err(VerifyError::ImageBytes { path, bytes });
        }
        let picture = fs::read(&path).map_err(io(&path))?;
        let picture = Picture::decode(&picture).map_err(|source| VerifyError::Image {
            path: path.clone(),
            source,
        })?;
        let name = path
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        Ok(probe(&name, vec![picture], "Can you describe this image?"))
    };
    paths.into_iter().map(of_file).collect()
}

fn probe(name: &str, pictures: Vec<Picture>, question: &str) -> Probe {
    let mut content: Vec<Content> = pictures.into_iter().map(Content::Picture).collect();
    content.push(Content::Text(question.into()));
    let request = Request {
        turns: vec![Turn {
            role: Role::User,
            content,
        }],
        candidates: Vec::new(),
        split: Split::Off,
        max_new_tokens: ANSWER_TOKENS,
        top_logprobs: 0,
        trace: true,
    };
    Probe {
        name: name.into(),
        request,
    }
}

/// Every channel is a gradient in its own direction.
fn gradient(width: u32, height: u32) -> Picture {
    paint(width, height, |x, y| {
        [
            x * 255 / width,
            y * 255 / height,
            (x + y) * 255 / (width + height),
        ]
    })
}

/// Cells of 25 pixels, each of another color.
fn blocks(width: u32, height: u32) -> Picture {
    paint(width, height, |x, y| {
        let cell = (x / 25 * 31 + y / 25 * 17 + 7).wrapping_mul(2_654_435_761);
        [cell >> 24, cell >> 16 & 0xFF, cell >> 8 & 0xFF]
    })
}

fn paint(width: u32, height: u32, color: impl Fn(u32, u32) -> [u32; 3]) -> Picture {
    let at = |i: u32| color(i % width, i / width).map(|sample| sample as u8);
    let pixels: Vec<u8> = (0..width * height).flat_map(at).collect();
    Picture::from_rgb(width, height, pixels).expect("built-in images are small and complete")
}
