//! Images out of a stream of binary PPM files, which is how ffmpeg writes them: lossless, and each
//! one says its size.
//!
//! Only what `ffmpeg -c:v ppm -pix_fmt rgb24` writes is read: `P6`, width, height, 255, one white
//! space, pixels; no comments.

use std::io::{self, BufRead, BufReader, Read};

use firmware_config::limits::IMAGE_PIXELS_MAX;

/// Decoded pixels.
#[derive(Debug, PartialEq, Eq)]
pub struct RgbImage {
    /// Columns, 1 or more.
    pub width: u32,
    /// Rows, 1 or more.
    pub height: u32,
    /// `height` · `width` · 3 bytes: rows from the top, red first.
    pub data: Vec<u8>,
}

/// What is wrong with a stream of images.
#[derive(Debug, thiserror::Error)]
pub enum PpmError {
    /// The pipe failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The stream ended inside an image.
    #[error("ended inside an image, after {got} of {expected} bytes of pixels")]
    Cut {
        /// Bytes that came.
        got: u64,
        /// Bytes of the image; 0 when its header was not complete.
        expected: u64,
    },
    /// No PPM header.
    #[error("no PPM header (P6, width, height, 255)")]
    Header,
    /// More pixels than are read.
    #[error(
        "an image of {width} x {height}, at most {IMAGE_PIXELS_MAX} pixels are read; set a smaller resolution on the camera"
    )]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
}

/// Reads images out of a stream.
pub struct PpmReader<R> {
    stream: BufReader<R>,
}

impl<R: Read> PpmReader<R> {
    /// A reader that has read nothing yet.
    pub fn new(stream: R) -> Self {
        Self {
            stream: BufReader::with_capacity(64 << 10, stream),
        }
    }

    /// The next image; `None` when the stream ends after a whole one.
    ///
    /// # Errors
    /// When the pipe fails, or the stream is not one of images, or ends inside one.
    pub fn next_image(&mut self) -> Result<Option<RgbImage>, PpmError> {
        if self.stream.fill_buf()?.is_empty() {
            return Ok(None);
        }
        if [self.byte()?, self.byte()?] != *b"P6" || !self.byte()?.is_ascii_whitespace() {
            return Err(PpmError::Header);
        }
        let (width, height) = (self.number()?, self.number()?);
        if self.number()? != 255 || width == 0 || height == 0 {
            return Err(PpmError::Header);
        }
        let pixels = u64::from(width) * u64::from(height);
        if pixels > IMAGE_PIXELS_MAX {
            return Err(PpmError::TooLarge { width, height });
        }
        let expected = pixels * 3;
        // Grows with what is read: a header alone reserves no memory.
        let mut data = Vec::new();
        let got = (&mut self.stream).take(expected).read_to_end(&mut data)? as u64;
        if got < expected {
            return Err(PpmError::Cut { got, expected });
        }
        Ok(Some(RgbImage {
            width,
            height,
            data,
        }))
    }

    /// Digits, and the one white space after them.
    fn number(&mut self) -> Result<u32, PpmError> {
        let mut number: Option<u32> = None;
        loop {
            match self.byte()? {
                digit @ b'0'..=b'9' => {
                    let grown = number
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|tens| tens.checked_add(u32::from(digit - b'0')));
                    number = Some(grown.ok_or(PpmError::Header)?);
                }
                space if space.is_ascii_whitespace() => return number.ok_or(PpmError::Header),
                _ => return Err(PpmError::Header),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, PpmError> {
        let mut byte = [0];
        self.stream
            .read_exact(&mut byte)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => PpmError::Cut {
                    got: 0,
                    expected: 0,
                },
                _ => PpmError::Io(error),
            })?;
        Ok(byte[0])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(stream: impl Read) -> Result<Vec<RgbImage>, PpmError> {
        let mut reader = PpmReader::new(stream);
        std::iter::from_fn(|| reader.next_image().transpose()).collect()
    }

    /// Gives at most `step` bytes for each read, as pipes do.
    struct Trickle<'b>(&'b [u8], usize);

    impl Read for Trickle<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let step = self.1.min(buffer.len()).min(self.0.len());
            let (now, later) = self.0.split_at(step);
            buffer[..step].copy_from_slice(now);
            self.0 = later;
            Ok(step)
        }
    }

    #[test]
    fn a_stream_of_anything_else_is_refused() {
        for (stream, expected) in [
            (&b"P5\n1 1\n255\nx"[..], "no PPM header"),
            (b"P6\n0 1\n255\n", "no PPM header"),
            (b"P6\n1 1\n65535\nxxxxxx", "no PPM header"),
            (b"P6\n# comment\n1 1\n255\nxxx", "no PPM header"),
            (b"P6\n99999999999 1\n255\n", "no PPM header"),
            (b"P6\n-1 1\n255\n", "no PPM header"),
            (
                b"P6\n4294967295 4294967295\n255\n",
                "4294967295 x 4294967295",
            ),
            (b"P6\n8000 8001\n255\n", "8000 x 8001"),
            (b"P6\n8000 8000\n255\nabc", "after 3 of 192000000 bytes"),
            (b"P6\n1 1\n255", "ended inside"),
            (b"P", "ended inside"),
            (b"garbage of some length", "no PPM header"),
        ] {
            let error = all(stream).expect_err("refused").to_string();
            assert!(error.contains(expected), "{stream:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn images_come_back_however_the_pipe_cuts_them(sizes in prop::collection::vec((1_u32..9, 1_u32..9), 0..5), step in 1_usize..40) {
            let images: Vec<RgbImage> = sizes
                .into_iter()
                .map(|(width, height)| RgbImage { width, height, data: (0..width * height * 3).map(|i| i as u8).collect() })
                .collect();
            let mut stream = Vec::new();
            for RgbImage { width, height, data } in &images {
                stream.extend(format!("P6\n{width} {height}\n255\n").bytes());
                stream.extend(data);
            }
            prop_assert_eq!(all(Trickle(&stream, step)).expect("whole images"), images);
        }

        #[test]
        fn no_stream_panics(header in "P6\n[0-9]{0,11} [0-9]{0,11}\n[0-9]{0,4}\n", bytes in prop::collection::vec(any::<u8>(), 0..200), raw in any::<bool>()) {
            let stream = if raw { bytes } else { header.into_bytes().into_iter().chain(bytes).collect() };
            let _ = all(&stream[..]);
        }
    }
}
