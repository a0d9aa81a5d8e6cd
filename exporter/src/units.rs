//! Sizes as people read them.

/// Decimal megabytes, as file managers and download pages count.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
