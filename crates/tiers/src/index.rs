//! Which slot holds a row: a hash table in buckets of one cache line, seven entries of a tag and a
//! slot number each, with a count of the rows that had to go on to the next bucket. A row is always
//! found or surely absent; nothing is lost to a full bucket. It holds no keys (the slot headers
//! do), and it does not grow by itself, for its memory comes out of the budget.

use std::io;

use memmap2::MmapMut;
use table::Key;

use crate::arena::{Slot, prefetch};

const WAYS: usize = 7;
const OCCUPIED: u64 = 1 << 63;
const SLOT_MASK: u64 = (1 << Slot::BITS) - 1;
const PAGE_BYTES: usize = 4096;

/// Bytes of index that a row takes when the index is as full as it may get: 64 bytes for 5.5 rows.
pub(crate) const BYTES_PER_ROW: u64 = (64_u64 * 2).div_ceil(11);

/// One cache line.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    passed: u64,          // rows whose search goes on behind this bucket
    entries: [u64; WAYS], // occupied (1 bit), tag (23), slot (40); 0: empty
}

/// The hash table over every cached row.
pub(crate) struct Index {
    map: MmapMut,
    rows: usize,
}

/// Where to look for a row. All 64 bits depend on owner and key, so that keys which differ in their
/// low or their high bits alone scatter as well as any.
pub(crate) fn hash(owner: u32, key: Key) -> u64 {
    mix(key.0 ^ mix(u64::from(owner)))
}

/// Bytes that an index for this many rows takes.
pub(crate) fn bytes_for(rows_max: usize) -> usize {
    ((rows_max * 2).div_ceil(11) * size_of::<Bucket>()).next_multiple_of(PAGE_BYTES)
}

impl Index {
    /// An empty index with room for `rows_max` rows.
    pub(crate) fn new(rows_max: usize) -> io::Result<Self> {
        Ok(Self { map: MmapMut::map_anon(bytes_for(rows_max.max(1)))?, rows: 0 })
    }

    /// Forgets every row and takes memory for `rows_max`; the old memory goes before the new is
    /// used.
    pub(crate) fn reset(&mut self, rows_max: usize) -> io::Result<()> {
        *self = Self::new(rows_max)?;
        Ok(())
    }

    pub(crate) fn bytes(&self) -> usize {
        self.map.len()
    }

    /// Rows that there is room for.
    pub(crate) fn rows_max(&self) -> usize {
        self.map.len() / size_of::<Bucket>() * 11 / 2
    }

    /// Asks for the bucket of a row that is looked for soon.
    pub(crate) fn prefetch(&self, hash: u64) {
        let buckets = self.buckets();
        prefetch(&buckets[home(hash, buckets.len())]);
    }

    /// The slot among this hash's candidates that `accept` takes.
    pub(crate) fn find(&self, hash: u64, mut accept: impl FnMut(Slot) -> bool) -> Option<Slot> {
        let buckets = self.buckets();
        let tag = tag(hash);
        let mut at = home(hash, buckets.len());
        for _ in 0..buckets.len() {
            let bucket = &buckets[at];
            for &entry in &bucket.entries {
                if entry & !SLOT_MASK == tag && accept(Slot::from_bits(entry & SLOT_MASK)) {
                    return Some(Slot::from_bits(entry & SLOT_MASK));
                }
            }
            if bucket.passed == 0 {
                return None;
            }
            at = next(at, buckets.len());
        }
        None
    }

    /// Enters a row. There must be room, and the row must not be there.
    pub(crate) fn insert(&mut self, hash: u64, slot: Slot) {
        assert!(self.rows < self.rows_max(), "the index is full with {} rows", self.rows);
        self.rows += 1;
        let buckets = self.buckets_mut();
        let mut at = home(hash, buckets.len());
        loop {
            let bucket = &mut buckets[at];
            if let Some(entry) = bucket.entries.iter_mut().find(|entry| **entry == 0) {
                *entry = tag(hash) | slot.bits();
                return;
            }
            bucket.passed += 1;
            at = next(at, buckets.len());
        }
    }

    /// Forgets a row, which must be there.
    pub(crate) fn remove(&mut self, hash: u64, slot: Slot) {
        self.rows -= 1;
        let buckets = self.buckets_mut();
        let wanted = tag(hash) | slot.bits();
        let mut at = home(hash, buckets.len());
        loop {
            let bucket = &mut buckets[at];
            if let Some(entry) = bucket.entries.iter_mut().find(|entry| **entry == wanted) {
                *entry = 0;
                return;
            }
            // The row went on behind this bucket when it was entered; a bucket that nobody passed
            // means that it never was.
            assert!(bucket.passed > 0, "slot {slot:?} is not in the index");
            bucket.passed -= 1;
            at = next(at, buckets.len());
        }
    }

    fn buckets(&self) -> &[Bucket] {
        bytemuck::cast_slice(&self.map)
    }

    fn buckets_mut(&mut self) -> &mut [Bucket] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

fn home(hash: u64, buckets: usize) -> usize {
    ((u128::from(hash) * buckets as u128) >> 64) as usize
}

fn next(at: usize, buckets: usize) -> usize {
    if at + 1 == buckets { 0 } else { at + 1 }
}

/// The low bits of the hash; its high bits chose the bucket.
fn tag(hash: u64) -> u64 {
    OCCUPIED | (hash << Slot::BITS)
}

/// The finaliser of splitmix64 (Steele et al., 2014): a bijection that scatters every bit.
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn agrees_with_a_map_whatever_the_hashes(
            rows_max in 1_usize..600,
            ops in prop::collection::vec((any::<bool>(), 0_u64..700, any::<bool>()), 0..2000),
        ) {
            // half of the rows share one hash, the worst that an adversary could do
            let hash_of = |id: u64| if id & 1 == 0 { u64::MAX } else { hash(3, Key(id)) };
            let mut index = Index::new(rows_max).unwrap();
            let mut map = BTreeMap::new();
            for (enter, id, _) in ops {
                let slot = Slot::from_bits(id);
                if enter && !map.contains_key(&id) && map.len() < index.rows_max() {
                    index.insert(hash_of(id), slot);
                    map.insert(id, ());
                } else if !enter && map.remove(&id).is_some() {
                    index.remove(hash_of(id), slot);
                }
                let found = index.find(hash_of(id), |found| found == slot);
                prop_assert_eq!(found.is_some(), map.contains_key(&id));
            }
            for id in 0..700 {
                let found = index.find(hash_of(id), |found| found.bits() == id);
                prop_assert_eq!(found.is_some(), map.contains_key(&id));
            }
        }
    }

    #[test]
    fn a_full_index_of_adversarial_keys_finds_each_in_few_buckets() {
        for shift in [0, 20, 40] {
            let mut index = Index::new(10_000).unwrap();
            let rows = index.rows_max() as u64;
            for i in 0..rows {
                index.insert(hash(0, Key(i << shift)), Slot::from_bits(i));
            }
            let longest = index.buckets().iter().map(|bucket| bucket.passed).max().unwrap();
            assert!(longest < 40, "{longest} rows pass one bucket of 7");
            for i in 0..rows {
                assert!(index.find(hash(0, Key(i << shift)), |slot| slot.bits() == i).is_some());
            }
        }
    }
}
