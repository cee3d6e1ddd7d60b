//! When each key of a pass over the data is used next. Batches are noted forwards while they are
//! parsed, and asked backwards. It holds an entry for each distinct key and no batch: a feature, a
//! key, two numbers and the map's own byte are 25 bytes, 58 at most with the free places of the
//! map, and half as many again while it grows.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use table::Key;

use super::format::NextUse;

/// The uses of every key of a pass.
#[derive(Default)]
pub(super) struct Uses {
    keys: HashMap<(u32, u64), Use, BuildHasherDefault<Scatter>>,
}

#[derive(Clone, Copy)]
struct Use {
    /// The first batch of the pass that names the key.
    first: u32,
    /// While asked backwards: the earliest batch so far. Before: none.
    next: Option<std::num::NonZeroU32>, // a batch's number plus one
}

impl Uses {
    /// Distinct keys so far.
    pub(super) fn len(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Notes that a batch names a key. Batches ascend.
    pub(super) fn note(&mut self, batch: u32, feature: usize, key: Key) {
        self.keys.entry((feature as u32, key.0)).or_insert(Use { first: batch, next: None });
    }

    /// When a key that `batch` names is used next, in a pass of `batches`. Batches descend, and the
    /// caller guarantees that the key was noted.
    pub(super) fn next_use(
        &mut self,
        batch: u32,
        batches: u32,
        feature: usize,
        key: Key,
    ) -> Option<NextUse> {
        let found = self.keys.get_mut(&(feature as u32, key.0))?;
        let next = match found.next {
            Some(next) => NextUse::ThisPass(next.get() - 1 - batch),
            None => NextUse::NextPass(batches - batch + found.first),
        };
        found.next = std::num::NonZeroU32::MIN.checked_add(batch);
        Some(next)
    }
}

/// Keys are ids or hashes already: a product with the golden ratio spreads both.
#[derive(Default)]
struct Scatter(u64);

impl Hasher for Scatter {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word ^ 0x243f_6a88_85a3_08d3)
            * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};

    use super::*;

    proptest::proptest! {
        #[test]
        fn agrees_with_a_search_through_two_passes(
            pass in vec(btree_set(0_u64..12, 0..6), 1..20))
        {
            let (mut uses, batches) = (Uses::default(), pass.len() as u32);
            for (batch, keys) in (0..).zip(&pass) {
                keys.iter().for_each(|&key| uses.note(batch, (key % 2) as usize, Key(key)));
            }
            for (batch, keys) in pass.iter().enumerate().rev() {
                for &key in keys {
                    let (now, feature) = (batch as u32, (key % 2) as usize);
                    let found = uses.next_use(now, batches, feature, Key(key)).unwrap();
                    let twice = pass.iter().chain(&pass).skip(batch + 1);
                    let later = 1 + twice.take_while(|keys| !keys.contains(&key)).count();
                    let expected = if batch + later < pass.len() {
                        NextUse::ThisPass(later as u32)
                    } else {
                        NextUse::NextPass(later as u32)
                    };
                    assert_eq!(found, expected);
                    assert_eq!(NextUse::decode(found.encode()), found);
                }
            }
        }
    }
}
