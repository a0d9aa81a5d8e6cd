//! Images as 8-bit RGB, and the decoding of image files into them.
//!
//! File bytes are untrusted: the size is checked in the header before a pixel is decoded. What the
//! model sees is decided here: EXIF orientation is applied, alpha is blended over white, 16-bit
//! samples are cut to their high byte.

use std::io::{Cursor, ErrorKind};

use bytes::Bytes;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

/// The largest picture that is decoded, in pixels.
pub const PIXELS_MAX: u64 = firmware_config::limits::IMAGE_PIXELS_MAX;

/// Bytes that a decoder may allocate: [`PIXELS_MAX`] of the widest pixel (16-bit RGBA), and its
/// tables.
const DECODER_BYTES_MAX: u64 = PIXELS_MAX * 8 + (32 << 20);

/// An 8-bit RGB image, cheap to clone.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Bytes,
}

impl Picture {
    /// A picture of `pixels`, [height, width, RGB] row-major. A `Vec<u8>` or [`Bytes`] is taken
    /// over without a copy.
    ///
    /// # Errors
    /// When a side is zero, the area is above [`PIXELS_MAX`], or the length is not `width * height
    /// * 3`.
    pub fn from_rgb(
        width: u32,
        height: u32,
        pixels: impl Into<Bytes>,
    ) -> Result<Self, PictureError> {
        check_size(width, height)?;
        let pixels = pixels.into();
        let expected = width as usize * height as usize * 3;
        if pixels.len() != expected {
            return Err(PictureError::Length {
                width,
                height,
                expected,
                got: pixels.len(),
            });
        }
        Ok(Picture {
            width,
            height,
            pixels,
        })
    }

    /// Decodes a JPEG, PNG, WebP, BMP or GIF file (its first frame), recognised by its first bytes.
    ///
    /// # Errors
    /// When the bytes are none of these, are cut short or damaged, or the header has more than
    /// [`PIXELS_MAX`] pixels.
    pub fn decode(bytes: &[u8]) -> Result<Self, PictureError> {
        let (mut decoder, format) = decoder(bytes)?;
        // Damaged metadata is no reason to refuse the image.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let decoded = DynamicImage::from_decoder(decoder);
        let mut decoded =
            decoded.map_err(|error| PictureError::from_image(error, format, bytes.len()))?;
        decoded.apply_orientation(orientation);
        Picture::from_rgb(decoded.width(), decoded.height(), rgb(decoded))
    }

    /// Number of pixels that [`Picture::decode`] would return, width times height, from the header
    /// alone.
    ///
    /// # Errors
    /// As [`Picture::decode`], for faults that the header shows.
    pub fn pixels_of(bytes: &[u8]) -> Result<u64, PictureError> {
        let (decoder, _) = decoder(bytes)?;
        let (width, height) = decoder.dimensions();
        Ok(u64::from(width) * u64::from(height))
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

/// A decoder for an image file, after its header has been read and its size checked.
fn decoder(bytes: &[u8]) -> Result<(impl ImageDecoder, ImageFormat), PictureError> {
    if bytes.is_empty() {
        return Err(PictureError::Empty);
    }
    let format = image::guess_format(bytes).map_err(|_| PictureError::unknown(bytes))?;
    if format == ImageFormat::Jpeg && !jpeg_ends(bytes) {
        return Err(PictureError::Truncated {
            format: name(format),
            bytes: bytes.len(),
        });
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(DECODER_BYTES_MAX);
    reader.limits(limits);
    let decoder = reader
        .into_decoder()
        .map_err(|error| PictureError::from_image(error, format, bytes.len()))?;
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    Ok((decoder, format))
}

fn check_size(width: u32, height: u32) -> Result<(), PictureError> {
    let area = u64::from(width) * u64::from(height);
    if area == 0 || area > PIXELS_MAX {
        Err(PictureError::Size { width, height })
    } else {
        Ok(())
    }
}

/// The pixels of a decoded image, [height, width, RGB] row-major.
fn rgb(decoded: DynamicImage) -> Vec<u8> {
    let channels = usize::from(decoded.color().channel_count());
    let samples = match decoded {
        DynamicImage::ImageRgb8(image) => return image.into_raw(),
        DynamicImage::ImageLuma16(image) => high_bytes(&image),
        DynamicImage::ImageLumaA16(image) => high_bytes(&image),
        DynamicImage::ImageRgb16(image) => high_bytes(&image),
        DynamicImage::ImageRgba16(image) => high_bytes(&image),
        eight_bit => eight_bit.into_bytes(),
    };
    let pixels = samples.chunks_exact(channels);
    match channels {
        1 => pixels.flat_map(|p| [p[0]; 3]).collect(),
        2 => pixels.flat_map(|p| [over_white(p[0], p[1]); 3]).collect(),
        3 => samples,
        _ => pixels
            .flat_map(|p| {
                [
                    over_white(p[0], p[3]),
                    over_white(p[1], p[3]),
                    over_white(p[2], p[3]),
                ]
            })
            .collect(),
    }
}

/// 16-bit samples to 8 bits: cut, not rounded, as in the models' training.
fn high_bytes(samples: &[u16]) -> Vec<u8> {
    samples.iter().map(|sample| (sample >> 8) as u8).collect()
}

/// A sample with straight alpha blended over white, rounded to nearest.
fn over_white(sample: u8, alpha: u8) -> u8 {
    let (sample, alpha) = (u32::from(sample), u32::from(alpha));
    ((sample * alpha + 255 * (255 - alpha) + 127) / 255) as u8
}

/// Whether a JPEG's image data has its end marker. The decoder fills missing data with grey and
/// reports no error.
fn jpeg_ends(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        match (bytes.get(at), bytes.get(at + 1)) {
            (None, _) | (_, None) => return false,
            // Fill bytes are allowed before a marker.
            (Some(0xFF), Some(0xFF)) => at += 1,
            // Within image data, FF is followed by 00 or a restart marker, so FF D9 can only be the
            // end.
            (Some(0xFF), Some(0xDA)) => {
                return bytes[at..].windows(2).any(|pair| pair == [0xFF, 0xD9]);
            }
            (Some(0xFF), Some(_)) => match bytes.get(at + 2..at + 4) {
                Some(length) => {
                    at += 2 + usize::from(u16::from_be_bytes([length[0], length[1]])).max(2)
                }
                None => return false,
            },
            // Not a marker: the decoder reports what is wrong.
            _ => return true,
        }
    }
}

/// The format's usual file extension.
fn name(format: ImageFormat) -> &'static str {
    format.extensions_str().first().copied().unwrap_or("image")
}

/// Why bytes are not an image.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// No bytes at all.
    #[error(
        "image: expected the bytes of a jpeg, png, webp, bmp or gif file, got zero bytes; send the whole file"
    )]
    Empty,
    /// The first bytes are of no known format.
    #[error(
        "image: expected a jpeg, png, webp, bmp or gif file, got {bytes} bytes that begin with {head}; convert it first"
    )]
    Format {
        /// Length of the file.
        bytes: usize,
        /// Its first bytes in hex.
        head: String,
    },
    /// A side of zero, or too many pixels.
    #[error(
        "image of {width}x{height}: expected sides of 1 or more and at most {PIXELS_MAX} pixels; scale it first"
    )]
    Size {
        /// From the header.
        width: u32,
        /// From the header.
        height: u32,
    },
    /// The file ends before its image data does.
    #[error(
        "image: {format} file ends after {bytes} bytes, before its last pixel; send the whole file"
    )]
    Truncated {
        /// `jpg`, `png`, ….
        format: &'static str,
        /// Length of the file.
        bytes: usize,
    },
    /// The decoder failed.
    #[error("image: damaged or unsupported {format} file: {message}; convert it first")]
    Decode {
        /// `jpg`, `png`, ….
        format: &'static str,
        /// The decoder's own message.
        message: String,
    },
    /// The length of the pixels is not that of the sides.
    #[error("image of {width}x{height} RGB: expected {expected} bytes, got {got}")]
    Length {
        /// As given.
        width: u32,
        /// As given.
        height: u32,
        /// width x height x 3.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
}

impl PictureError {
    fn unknown(bytes: &[u8]) -> Self {
        let head: Vec<_> = bytes
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        PictureError::Format {
            bytes: bytes.len(),
            head: head.join(" "),
        }
    }

    fn from_image(error: ImageError, format: ImageFormat, bytes: usize) -> Self {
        match error {
            ImageError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
                PictureError::Truncated {
                    format: name(format),
                    bytes,
                }
            }
            other => PictureError::Decode {
                format: name(format),
                message: other.to_string(),
            },
        }
    }
}

#[cfg(test)]
mod tests;
