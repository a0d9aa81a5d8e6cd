//! Pictures as 8-bit RGB, and the decoding of picture files into them.

use std::sync::Arc;

/// An 8-bit RGB picture, cheap to clone.
#[derive(Clone)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Arc<[u8]>,
}

impl Picture {
    /// A picture of `pixels`, [height, width, RGB] row-major.
    ///
    /// # Errors
    /// When a side is zero, the area is above [`PIXELS_MAX`], or the length is not `width * height * 3`.
    pub fn from_rgb(width: u32, height: u32, pixels: impl Into<Arc<[u8]>>) -> Result<Self, PictureError> {
        let pixels = pixels.into();
        let area = check_size(width, height)?;
        if pixels.len() != area * 3 {
            return Err(PictureError::Length { width, height, expected: area * 3, got: pixels.len() });
        }
        Ok(Picture { width, height, pixels })
    }

    /// Pixels from left to right, 1 or more.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Pixels from top to bottom, 1 or more.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// [height, width, RGB] row-major.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }
}

impl std::fmt::Debug for Picture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Picture({}x{})", self.width, self.height)
    }
}

/// The largest picture that is decoded, in pixels.
pub const PIXELS_MAX: usize = 64 << 20;

fn check_size(width: u32, height: u32) -> Result<usize, PictureError> {
    let area = u64::from(width) * u64::from(height);
    if area == 0 || area > PIXELS_MAX as u64 {
        return Err(PictureError::Size { width, height });
    }
    Ok(area as usize)
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// A side of zero, or too many pixels.
    #[error("picture of {width}x{height}: expected both sides above zero and at most 64 Mpixel; scale it down first")]
    Size {
        /// From the header.
        width: u32,
        /// From the header.
        height: u32,
    },
    /// The pixels do not fill the sides.
    #[error("picture of {width}x{height} RGB: expected {expected} bytes, got {got}")]
    Length {
        /// As told.
        width: u32,
        /// As told.
        height: u32,
        /// width x height x 3.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}
