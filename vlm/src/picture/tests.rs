use image::{GrayAlphaImage, ImageBuffer, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use proptest::prelude::*;

use super::*;
use crate::reference;

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).expect("encodes");
    bytes.into_inner()
}

fn png(image: impl Into<DynamicImage>) -> Vec<u8> {
    encoded(image, ImageFormat::Png)
}

fn decoded(bytes: &[u8]) -> Picture {
    Picture::decode(bytes).expect("decodes")
}

fn refused(bytes: &[u8]) -> String {
    Picture::decode(bytes).expect_err("refused").to_string()
}

fn at(picture: &Picture, x: u32, y: u32) -> [u8; 3] {
    let first = (y * picture.width() + x) as usize * 3;
    picture.pixels()[first..first + 3]
        .try_into()
        .expect("three samples")
}

fn assert_near(got: [u8; 3], expected: [u8; 3]) {
    assert!(
        got.iter()
            .zip(expected)
            .all(|(&got, expected)| got.abs_diff(expected) <= 3),
        "{got:?}, expected {expected:?}"
    );
}

/// An image that compresses to more than a header.
fn noise() -> RgbImage {
    RgbImage::from_fn(40, 30, |x, y| {
        Rgb([(x * 37 + y * 11) as u8, (x * y) as u8, (x ^ (y * 5)) as u8])
    })
}

#[test]
fn every_lossless_format_keeps_its_pixels() {
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP] {
        let picture = decoded(&encoded(noise(), format));
        assert_eq!(
            (picture.width(), picture.height(), picture.pixels()),
            (40, 30, noise().as_raw().as_slice()),
            "{format:?}"
        );
    }
    let gif = decoded(&encoded(
        RgbaImage::from_pixel(5, 4, Rgba([10, 200, 30, 255])),
        ImageFormat::Gif,
    ));
    assert_eq!(at(&gif, 4, 3), [10, 200, 30]);
}

#[test]
fn sixteen_bits_keep_their_high_byte() {
    let wide = ImageBuffer::from_pixel(2, 2, Rgb([0x01FF_u16, 0x80FF, 0xFFFF]));
    assert_eq!(at(&decoded(&png(wide)), 1, 1), [0x01, 0x80, 0xFF]);
    let grey = ImageBuffer::from_pixel(2, 2, Luma([0x7FFF_u16]));
    assert_eq!(at(&decoded(&png(grey)), 1, 1), [0x7F; 3]);
    let glass = ImageBuffer::from_pixel(2, 2, Rgba([0x64FF_u16, 0, 0, 0x80FF]));
    assert_eq!(
        at(&decoded(&png(glass)), 1, 1),
        [over_white(0x64, 0x80), 127, 127]
    );
}

#[test]
fn alpha_is_blended_over_white() {
    let glass = RgbaImage::from_fn(3, 1, |x, _| Rgba([100, 0, 255, [0, 128, 255][x as usize]]));
    let picture = decoded(&png(glass));
    assert_eq!(
        [at(&picture, 0, 0), at(&picture, 1, 0), at(&picture, 2, 0)],
        [[255; 3], [177, 127, 255], [100, 0, 255]]
    );
    let grey = GrayAlphaImage::from_pixel(1, 1, image::LumaA([0, 51]));
    assert_eq!(at(&decoded(&png(grey)), 0, 0), [204; 3]);
}

#[test]
fn grey_is_three_equal_channels() {
    assert_eq!(
        at(&decoded(&reference::picture_file("grey.jpg")), 4, 4),
        [77; 3]
    );
}

/// What Pillow's `convert("RGB")` gives.
#[test]
fn cmyk_becomes_rgb() {
    let picture = decoded(&reference::picture_file("cmyk.jpg"));
    assert_near(at(&picture, 4, 8), [235, 51, 69]);
    assert_near(at(&picture, 28, 8), [30, 164, 215]);
}

#[test]
fn exif_orientation_is_applied() {
    let picture = decoded(&reference::picture_file("exif_rotated.jpg"));
    assert_eq!(
        (picture.width(), picture.height()),
        (16, 24),
        "stored as 24x16"
    );
    assert_near(at(&picture, 8, 4), [200, 30, 30]);
    assert_near(at(&picture, 8, 20), [30, 30, 200]);
}

#[test]
fn truncated_files_are_refused() {
    let whole = [
        png(noise()),
        encoded(noise(), ImageFormat::Bmp),
        encoded(noise(), ImageFormat::WebP),
        encoded(DynamicImage::from(noise()).to_rgba8(), ImageFormat::Gif),
        encoded(noise(), ImageFormat::Jpeg),
        reference::picture_file("progressive.jpg"),
        reference::picture_file("exif_rotated.jpg"),
    ];
    for file in whole {
        decoded(&file);
        for cut in [file.len() / 10, file.len() / 2, file.len() * 9 / 10] {
            assert!(
                Picture::decode(&file[..cut]).is_err(),
                "{cut} of {} bytes, {:02x?}",
                file.len(),
                &file[..4]
            );
        }
    }
}

#[test]
fn pixels_are_taken_over_without_a_copy() {
    // Spare capacity, as a reader of a pipe leaves it.
    let mut pixels = Vec::with_capacity(1000);
    pixels.extend([7; 27]);
    let address = pixels.as_ptr();
    let picture = Picture::from_rgb(3, 3, pixels).expect("27 bytes");
    assert_eq!(picture.pixels().as_ptr(), address);

    let shared = Bytes::from(vec![7; 27]);
    let picture = Picture::from_rgb(3, 3, shared.clone()).expect("27 bytes");
    assert_eq!(picture.pixels().as_ptr(), shared.as_ptr());
    assert_eq!(picture.clone().pixels().as_ptr(), shared.as_ptr());
}

/// A PNG header alone: the size is judged before anything is decoded.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = png(RgbImage::new(1, 1));
    file[16..20].copy_from_slice(&width.to_be_bytes());
    file[20..24].copy_from_slice(&height.to_be_bytes());
    let checksum = crc32(&file[12..29]);
    file[29..33].copy_from_slice(&checksum.to_be_bytes());
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 {
                (crc >> 1) ^ 0xEDB8_8320
            } else {
                crc >> 1
            }
        })
    })
}

#[test]
fn the_header_alone_gives_the_number_of_pixels() {
    assert_eq!(
        Picture::pixels_of(&png_header(8_000, 8_000)).expect("the largest allowed"),
        64_000_000
    );
    assert!(matches!(
        Picture::pixels_of(&png_header(8_000, 8_001)),
        Err(PictureError::Size { .. })
    ));
    for format in [
        ImageFormat::Png,
        ImageFormat::Bmp,
        ImageFormat::WebP,
        ImageFormat::Jpeg,
    ] {
        assert_eq!(
            Picture::pixels_of(&encoded(noise(), format)).expect("a header"),
            40 * 30,
            "{format:?}"
        );
    }
    assert_eq!(
        Picture::pixels_of(&reference::picture_file("exif_rotated.jpg")).expect("a header"),
        16 * 24
    );
}

#[test]
fn errors_name_what_was_found_and_what_was_expected() {
    let jpeg = encoded(noise(), ImageFormat::Jpeg);
    let mut bad = png(noise());
    bad[50] ^= 0xFF;
    let messages = [
        refused(&[]),
        refused(b"%PDF-1.7 and so on"),
        refused(&png_header(30_000, 30_000)),
        refused(&png_header(8_001, 8_000)),
        refused(&jpeg[..jpeg.len() / 2]),
        refused(&bad),
        Picture::from_rgb(0, 4, Vec::new())
            .expect_err("no pixels")
            .to_string(),
        Picture::from_rgb(2, 2, vec![0; 11])
            .expect_err("a byte short")
            .to_string(),
    ];
    insta::assert_snapshot!(messages.join("\n"), @r"
    image: expected the bytes of a jpeg, png, webp, bmp or gif file, got zero bytes; send the whole file
    image: expected a jpeg, png, webp, bmp or gif file, got 18 bytes that begin with 25 50 44 46 2d 31 2e 37; convert it first
    image of 30000x30000: expected sides of 1 or more and at most 64000000 pixels; scale it first
    image of 8001x8000: expected sides of 1 or more and at most 64000000 pixels; scale it first
    image: jpg file ends after 870 bytes, before its last pixel; send the whole file
    image: damaged or unsupported png file: Format error decoding Png: Corrupt deflate stream. BadCodeLengthHuffmanTree; convert it first
    image of 0x4: expected sides of 1 or more and at most 64000000 pixels; scale it first
    image of 2x2 RGB: expected 12 bytes, got 11
    ");
}

proptest! {
    #[test]
    fn any_bytes_are_an_image_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Picture::decode(&bytes);
    }

    #[test]
    fn a_damaged_file_is_an_image_or_an_error(which in 0usize..5, damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let format = [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Jpeg, ImageFormat::Gif][which];
        let image = DynamicImage::from(noise());
        let mut file = if format == ImageFormat::Gif { encoded(image.to_rgba8(), format) } else { encoded(image, format) };
        // After the header: a damaged size is refused or allocates, which other tests cover.
        for (place, byte) in damage {
            let place = 40 + place.index(file.len() - 40);
            file[place] = byte;
        }
        let _ = Picture::decode(&file);
    }
}
