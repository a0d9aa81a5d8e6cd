//! Images and frames of clips to square u8 tiles, and tiles to `pixel_values`.
//!
//! Pure arithmetic over Lanczos resampling; every step rounds to u8, as in the models' training.
//! Images are squashed into squares, never padded: a whole image becomes one tile of T x T; a split
//! one becomes rows x cols tiles of T x T and then the whole image as one more.

use sha2::{Digest, Sha256};

use firmware_config::manifest::ImageRules;

use crate::hash::hex;
use crate::picture::Picture;
use crate::request::{Content, Turn};
use crate::resample::{Size, lanczos};

/// Longest side before tiling, in pixels, whatever the rules say.
const SIDE_MAX: usize = 4096;

/// The grid of tiles that an image is split into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Tiles from top to bottom; 0 when not split.
    pub rows: usize,
    /// Tiles from left to right; 0 when not split.
    pub cols: usize,
}

impl Layout {
    /// Not split: one tile holds the whole image.
    pub const WHOLE: Layout = Layout { rows: 0, cols: 0 };

    /// Number of tiles, the whole image's included.
    pub fn frames(self) -> usize {
        self.rows * self.cols + 1
    }
}

/// An image as the model sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tiles {
    /// Side of a tile in pixels, T.
    pub side: usize,
    /// The grid of the tiles.
    pub layout: Layout,
    /// [frames, T, T, RGB]: tiles row-major, the whole image last.
    pub pixels: Vec<u8>,
}

impl Tiles {
    /// Number of tiles, the whole image's included.
    pub fn frames(&self) -> usize {
        self.layout.frames()
    }
}

/// The layout that [`tiles`] gives an image of `width` x `height` pixels, without touching a pixel.
pub(crate) fn layout(width: u32, height: u32, rules: &ImageRules, split: bool) -> Layout {
    let grid = grid(
        scaled(size(width, height), rules.longest_edge),
        rules.tile_size,
    );
    match (grid.height / rules.tile_size, grid.width / rules.tile_size) {
        (1, 1) => Layout::WHOLE,
        (rows, cols) if split => Layout { rows, cols },
        _ => Layout::WHOLE,
    }
}

/// The tiles of one image. Frames of a clip are never split.
pub fn tiles(picture: &Picture, rules: &ImageRules, split: bool) -> Tiles {
    let side = rules.tile_size;
    let square = Size {
        width: side,
        height: side,
    };
    let from = size(picture.width(), picture.height());
    let scaled_to = scaled(from, rules.longest_edge);
    let scaled = lanczos(picture.pixels(), from, scaled_to);
    let layout = layout(picture.width(), picture.height(), rules, split);
    if !split {
        return Tiles {
            side,
            layout,
            pixels: lanczos(&scaled, scaled_to, square),
        };
    }
    // Stretched to whole tiles, then cut row by row.
    let grid = grid(scaled_to, side);
    let stretched = lanczos(&scaled, scaled_to, grid);
    let mut pixels = Vec::with_capacity(layout.frames() * side * side * 3);
    for row in 0..layout.rows {
        for col in 0..layout.cols {
            for line in stretched
                .chunks_exact(grid.width * 3)
                .skip(row * side)
                .take(side)
            {
                pixels.extend_from_slice(&line[col * side * 3..][..side * 3]);
            }
        }
    }
    // The whole image is made of the stretched one, not of the original, as in training.
    pixels.extend(lanczos(&stretched, grid, square));
    Tiles {
        side,
        layout,
        pixels,
    }
}

/// The tiles of every image and clip frame of a conversation, in the order of their image tokens.
pub fn tiles_of_turns(turns: &[Turn], rules: &ImageRules, split: bool) -> Vec<Tiles> {
    let mut all = Vec::new();
    for content in turns.iter().flat_map(|turn| &turn.content) {
        match content {
            Content::Text(_) => {}
            Content::Picture(picture) => all.push(tiles(picture, rules, split)),
            Content::Clip(clip) => {
                // Frames are scaled to the limit at once, images beyond it and back: each as in
                // training.
                let rules = ImageRules {
                    longest_edge: rules.longest_edge.min(SIDE_MAX),
                    ..*rules
                };
                all.extend(
                    clip.frames
                        .iter()
                        .map(|frame| tiles(&frame.picture, &rules, false)),
                );
            }
        }
    }
    all
}

/// `pixel_values`: [frames, 3, T, T] f32, row-major, (u8 / 255 - mean) / std.
pub fn pixel_values(tiles: &Tiles, rules: &ImageRules) -> Vec<f32> {
    let plane = tiles.side * tiles.side;
    let mut values = Vec::with_capacity(tiles.pixels.len());
    // A u8 has 256 values: one table of them for each channel.
    let tables: [[f32; 256]; 3] = std::array::from_fn(|channel| {
        std::array::from_fn(|sample| {
            ((sample as f64 * (1.0 / 255.0)) as f32 - rules.mean[channel]) / rules.std[channel]
        })
    });
    for frame in tiles.pixels.chunks_exact(plane * 3) {
        for (channel, table) in tables.iter().enumerate() {
            values.extend(
                frame
                    .chunks_exact(3)
                    .map(|pixel| table[usize::from(pixel[channel])]),
            );
        }
    }
    values
}

/// Lower-case hex sha256 of the tiles' pixels, one after the other.
pub(crate) fn u8_sha256(tiles: &[Tiles]) -> String {
    let mut hash = Sha256::new();
    for tiles in tiles {
        hash.update(&tiles.pixels);
    }
    hex(&hash.finalize())
}

fn size(width: u32, height: u32) -> Size {
    Size {
        width: width as usize,
        height: height as usize,
    }
}

/// `from` with its longest edge at `longest`, up or down. The other edge truncates and is then made
/// even; beyond [`SIDE_MAX`] the result is scaled back once more.
fn scaled(from: Size, longest: usize) -> Size {
    let longest = longest.max(1);
    let ratio = from.width as f64 / from.height as f64;
    let even = |side: f64| (side as usize).next_multiple_of(2).max(1);
    let size = if from.width >= from.height {
        Size {
            width: longest,
            height: even(longest as f64 / ratio),
        }
    } else {
        Size {
            width: even(longest as f64 * ratio),
            height: longest,
        }
    };
    if longest <= SIDE_MAX {
        return size;
    }
    let ratio = size.width as f64 / size.height as f64;
    if size.width >= size.height {
        Size {
            width: SIDE_MAX,
            height: ((SIDE_MAX as f64 / ratio) as usize).max(1),
        }
    } else {
        Size {
            width: ((SIDE_MAX as f64 * ratio) as usize).max(1),
            height: SIDE_MAX,
        }
    }
}

/// `from` stretched up to whole tiles: the long side first, the short one by the same ratio and
/// then up again.
fn grid(from: Size, tile: usize) -> Size {
    let ratio = from.width as f64 / from.height as f64;
    let up = |side: usize| side.max(1).next_multiple_of(tile);
    if from.width >= from.height {
        let width = up(from.width);
        Size {
            width,
            height: up((width as f64 / ratio) as usize),
        }
    } else {
        let height = up(from.height);
        Size {
            width: up((height as f64 * ratio) as usize),
            height,
        }
    }
}

#[cfg(test)]
mod tests;
