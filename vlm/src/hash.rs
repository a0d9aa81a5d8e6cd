//! Hashes as text.

/// A hash in lower-case hex, as in manifests.
pub fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
