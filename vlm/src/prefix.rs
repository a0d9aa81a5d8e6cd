//! Prompt prefixes with their KV caches: every question about an image begins with the same tokens
//! and the same pixels.

use std::collections::VecDeque;

use crate::model::KvCache;

/// Prefixes kept: the frame being asked about, and one before it. One tile costs 81 tokens of
/// cache, some 4 MB on the 256M model.
const PREFIXES_MAX: usize = 2;

/// What makes two prefixes the same to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrefixKey {
    /// Token ids up to and including the last image token.
    pub(crate) input_ids: Vec<u32>,
    /// Hex sha256 of the pixels that the image tokens stand for.
    pub(crate) pixel_sha256: String,
}

/// The last few prefixes, the most recently used first.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    kept: VecDeque<(PrefixKey, KvCache)>,
}

impl Prefixes {
    /// The cache of a kept prefix, which counts as used now.
    pub(crate) fn find(&mut self, key: &PrefixKey) -> Option<KvCache> {
        let index = self.kept.iter().position(|(kept, _)| kept == key)?;
        let entry = self.kept.remove(index)?;
        let cache = entry.1.clone();
        self.kept.push_front(entry);
        Some(cache)
    }

    /// Drops what the next [`Prefixes::keep`] would, before memory for its successor is allocated.
    pub(crate) fn make_room(&mut self) {
        self.kept.truncate(PREFIXES_MAX - 1);
    }

    /// Keeps a prefix in place of the least recently used one.
    pub(crate) fn keep(&mut self, key: PrefixKey, cache: KvCache) {
        self.kept.retain(|(kept, _)| *kept != key);
        self.make_room();
        self.kept.push_front((key, cache));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: u32) -> PrefixKey {
        PrefixKey {
            input_ids: vec![id],
            pixel_sha256: "00".into(),
        }
    }

    fn cache(tokens: usize) -> KvCache {
        KvCache {
            tokens,
            state: None,
        }
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        let mut prefixes = Prefixes::default();
        prefixes.keep(key(1), cache(1));
        prefixes.keep(key(2), cache(2));
        assert_eq!(prefixes.find(&key(1)).map(|cache| cache.tokens), Some(1));
        prefixes.keep(key(3), cache(3));
        assert!(prefixes.find(&key(2)).is_none());
        assert!(prefixes.find(&key(1)).is_some() && prefixes.find(&key(3)).is_some());
    }

    #[test]
    fn other_pixels_are_another_prefix() {
        let mut prefixes = Prefixes::default();
        prefixes.keep(key(1), cache(1));
        assert!(
            prefixes
                .find(&PrefixKey {
                    pixel_sha256: "01".into(),
                    ..key(1)
                })
                .is_none()
        );
    }
}
