//! Least recently used, by the `lru` crate.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::Policy;

/// Evicts the key that was not used for the longest time.
pub(crate) struct Lru(LruCache<u32, ()>);

impl Lru {
    /// Room for `capacity` keys, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self(LruCache::new(NonZeroUsize::new(capacity).unwrap_or(NonZeroUsize::MIN)))
    }
}

impl Policy for Lru {
    fn access(&mut self, key: u32) -> bool {
        self.0.put(key, ()).is_some()
    }
}
