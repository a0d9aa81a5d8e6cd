//! Limits that several crates must agree on: on images from cameras, files and requests, and on
//! pool calls.

/// Most pixels of an image that is decoded, width times height.
pub const IMAGE_PIXELS_MAX: u64 = 64_000_000;

/// Largest image file that is read from a folder, in bytes.
pub const IMAGE_FILE_BYTES_MAX: u64 = 64 << 20;

/// Most pool calls in flight that a configuration may allow.
pub const IN_FLIGHT_MAX: u32 = 256;
