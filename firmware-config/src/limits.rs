//! Limits on images from cameras, files and requests.

/// Most pixels of an image that is decoded, width times height.
pub const IMAGE_PIXELS_MAX: u64 = 64_000_000;

/// Largest image file that is read from a folder, in bytes.
pub const IMAGE_FILE_BYTES_MAX: u64 = 64 << 20;
