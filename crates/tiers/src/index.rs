//! What a section knows of each row that is there: key, table with flags, slot, and the policy's
//! byte, in buckets of nine. A bucket is two neighbouring cache lines, so that a key is found with
//! one access to memory; each bucket counts the rows that had to go on to the next. A row is always
//! found or surely absent; nothing is lost to a full bucket. It does not grow by itself, for its
//! memory comes out of the budget.

use std::io;

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;
use table::{Key, TableId, mix};

use crate::arena::{Kernel, Lanes, MemoryUse, Plain, map, prefetch, run_widest};

/// Rows of a bucket.
pub(crate) const WAYS: usize = 9;
/// Entries of a hundred that may be taken. At 92 a row that comes finds a place some nine buckets
/// on, at 95 it would be some twenty (Knuth, vol. 3, 6.4, for linear probing).
const LOAD_PERCENT: usize = 92;
/// Buckets between asking for one and visiting it, on a walk.
const WALK_AHEAD: usize = 8;
/// Probes between asking for a home bucket and looking into it.
const PROBES_AHEAD: usize = 16;
/// Buckets behind its home that are asked for when a row is not at home.
const BEHIND_AHEAD: usize = 2;
/// A count of rows that passed stays here once it got so far: it costs speed, never a row.
const PASSED_MAX: u16 = u16::MAX;

/// Bytes of a bucket.
pub(crate) const BUCKET_BYTES: usize = size_of::<Bucket>();

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(128))]
struct Bucket {
    keys: [u64; WAYS],
    metas: [u16; WAYS],
    slots: [[u8; 3]; WAYS], // little-endian
    codes: [u8; WAYS],
    passed: u16, // rows whose home is here or before, and that went on
}

const _: () = assert!(size_of::<Bucket>() == 128);

const OCCUPIED: u16 = 1 << 15;
/// The row is being read from SSD.
const LOADING: u16 = 1 << 14;
/// A version of the row is on SSD, or on its way there.
const ON_SSD: u16 = 1 << 13;
const TABLE: u16 = (1 << 12) - 1;

/// Tables that an entry can tell apart.
pub(crate) const TABLES_MAX: u32 = TABLE as u32 + 1;

/// The flags and the table of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(u16);

/// The place of an entry: its bucket and its way. It stands until a row is forgotten or the index
/// grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    bucket: u32,
    way: u32,
}

/// A key on its way through a stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) hash: u64,
    pub(crate) key: Key,
    pub(crate) position: u32, // in the batch
    pub(crate) table: TableId,
}

/// What a row's home bucket says of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Home {
    Here(At),
    /// It may lie in a bucket behind.
    Behind,
    Absent,
}

/// The number of a row's way in its home bucket, or one of the two that follow.
const ABSENT: u8 = WAYS as u8;
const BEHIND: u8 = ABSENT + 1;

/// What home buckets say of rows, for a block of probes.
pub(crate) struct Homes<const N: usize> {
    ways: [u8; N],
}

/// All that is known of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: Key,
    pub(crate) meta: Meta,
    pub(crate) slot: u32,
    pub(crate) code: u8,
}

pub(crate) struct Index {
    map: MmapMut,
    buckets: usize,
    rows: usize,
    stride: usize,  // see `scattered`
    hash_bits: u32, // the high bits of a hash that say nothing here
}

/// Buckets that take this many rows.
pub(crate) fn buckets_for(rows: usize) -> usize {
    (rows * 100).div_ceil(WAYS * LOAD_PERCENT).max(1)
}

/// A row's hash. Its high bits choose section and bucket.
pub(crate) fn hash(table: TableId, key: Key) -> u64 {
    // odd multiples keep tables apart; `mix` is a bijection, so that no two keys of a table share a
    // hash
    mix(key.0 ^ u64::from(table.0).wrapping_mul(0xd6e8_feb8_6659_fd93))
}

impl Meta {
    /// Of a row of `table`.
    pub(crate) fn of(table: TableId) -> Self {
        assert!(table.0 < TABLES_MAX, "{table} is beyond the last that an entry can name");
        Meta(OCCUPIED | table.0 as u16)
    }

    pub(crate) fn loading(self, yes: bool) -> Self {
        Meta(if yes { self.0 | LOADING } else { self.0 & !LOADING })
    }

    pub(crate) fn on_ssd(self, yes: bool) -> Self {
        Meta(if yes { self.0 | ON_SSD } else { self.0 & !ON_SSD })
    }

    pub(crate) fn is_loading(self) -> bool {
        self.0 & LOADING != 0
    }

    pub(crate) fn is_on_ssd(self) -> bool {
        self.0 & ON_SSD != 0
    }

    pub(crate) fn table(self) -> TableId {
        TableId(u32::from(self.0 & TABLE))
    }
}

impl Index {
    /// An empty index that may grow to hold `rows_max` rows.
    pub(crate) fn reserve(rows_max: usize, hash_bits: u32, memory: MemoryUse) -> io::Result<Self> {
        let map = map(buckets_for(rows_max) * BUCKET_BYTES, memory)?;
        Ok(Self { map, buckets: 0, rows: 0, stride: 1, hash_bits })
    }

    pub(crate) fn buckets(&self) -> usize {
        self.buckets
    }

    /// Places for rows, taken or not.
    pub(crate) fn places(&self) -> u32 {
        (self.buckets * WAYS) as u32
    }

    /// The place of this number, and the row there.
    pub(crate) fn nth(&self, place: u32) -> Option<(At, Entry)> {
        let at = At { bucket: place / WAYS as u32, way: place % WAYS as u32 };
        let bucket = &self.all()[at.bucket as usize];
        let meta = bucket.metas[at.way as usize];
        (meta & OCCUPIED != 0).then(|| (at, self.entry(at)))
    }

    /// The place that a walk over all places visits as its `place`-th: bucket by bucket, each far
    /// from the one before. Rows that leave in the order of their buckets would empty one part of
    /// the index while the others overflow.
    pub(crate) fn scattered(&self, place: u32) -> u32 {
        let (bucket, way) = (place as usize / WAYS, place % WAYS as u32);
        if way == 0 {
            let ahead = (bucket + WALK_AHEAD) * self.stride % self.buckets;
            prefetch(&self.all()[ahead].keys);
            prefetch(&self.all()[ahead].passed);
        }
        (bucket * self.stride % self.buckets * WAYS) as u32 + way
    }

    /// Takes the memory of so many buckets, and enters all rows anew.
    pub(crate) fn resize(&mut self, buckets: usize) {
        let rows: Vec<Entry> =
            (0..self.places()).filter_map(|place| self.nth(place)).map(|row| row.1).collect();
        let used = self.buckets.max(buckets) * BUCKET_BYTES;
        self.map[..used].fill(0);
        (self.buckets, self.rows, self.stride) = (buckets, 0, stride_of(buckets));
        for row in rows {
            self.insert(hash(row.meta.table(), row.key), row);
        }
    }

    /// Asks for the home buckets of the first probes of a section, which [`Self::find_at_home`]
    /// looks into first.
    pub(crate) fn ask_first(&self, probes: &[Probe]) {
        probes.iter().take(PROBES_AHEAD).for_each(|probe| self.ask_home(probe));
    }

    /// Asks for a row's home bucket.
    pub(crate) fn ask_home(&self, probe: &Probe) {
        self.ask(self.home(probe.hash));
    }

    /// Looks for up to N rows, from the probe `first` on, in their home buckets alone, and asks for
    /// the home buckets of those that come after them.
    pub(crate) fn find_at_home<const N: usize>(&self, probes: &[Probe], first: usize) -> Homes<N> {
        let mut ways = [ABSENT; N];
        let buckets = self.all();
        if !buckets.is_empty() {
            run_widest(FindAtHome { index: self, buckets, probes, first, ways: &mut ways });
        }
        Homes { ways }
    }

    /// What was found of a probe: the `i`-th of the block.
    #[inline]
    pub(crate) fn home_of<const N: usize>(
        &self,
        homes: &Homes<N>,
        i: usize,
        probe: &Probe,
    ) -> Home {
        match homes.ways[i] {
            ABSENT => Home::Absent,
            BEHIND => Home::Behind,
            way => Home::Here(At { bucket: self.home(probe.hash) as u32, way: u32::from(way) }),
        }
    }

    /// Asks for the buckets right behind the home of a hash.
    #[inline]
    pub(crate) fn ask_behind(&self, hash: u64) {
        let mut at = self.home(hash);
        for _ in 0..BEHIND_AHEAD {
            at = next(at, self.buckets);
            self.ask(at);
        }
    }

    /// Asks for a bucket; of none there are, for nothing.
    #[inline(always)]
    fn ask(&self, bucket: usize) {
        if let Some(bucket) = self.all().get(bucket) {
            bucket.ask();
        }
    }

    /// Where a row is.
    #[inline]
    pub(crate) fn find(&self, hash: u64, table: TableId, key: Key) -> Option<At> {
        let home = self.home(hash);
        let bucket = self.all().get(home)?;
        match bucket.way_of(table, key) {
            Some(way) => Some(At { bucket: home as u32, way }),
            None if bucket.passed > 0 => self.find_behind(hash, table, key),
            None => None,
        }
    }

    /// Where a row is that is not at home.
    #[inline]
    pub(crate) fn find_behind(&self, hash: u64, table: TableId, key: Key) -> Option<At> {
        let buckets = self.all();
        let mut at = self.home(hash);
        for _ in 1..buckets.len() {
            at = next(at, buckets.len());
            let bucket = &buckets[at];
            if let Some(way) = bucket.way_of(table, key) {
                return Some(At { bucket: at as u32, way });
            }
            if bucket.passed == 0 {
                return None;
            }
        }
        None
    }

    /// Enters a row, which must not be there.
    pub(crate) fn insert(&mut self, hash: u64, row: Entry) -> At {
        assert!(self.rows < self.buckets * WAYS, "the index is full with {} rows", self.rows);
        self.rows += 1;
        let mut at = self.home(hash);
        let buckets = self.all_mut();
        loop {
            let bucket = &mut buckets[at];
            if let Some(way) = bucket.metas.iter().position(|meta| meta & OCCUPIED == 0) {
                let place = At { bucket: at as u32, way: way as u32 };
                self.set(place, row);
                return place;
            }
            if bucket.passed < PASSED_MAX {
                bucket.passed += 1;
            }
            at = next(at, buckets.len());
        }
    }

    /// Forgets a row. Rows behind it that passed its bucket move up, one after the other, so that
    /// however many rows come and go, each lies where it would if it had just been entered.
    pub(crate) fn remove(&mut self, at: At) {
        let row = self.entry(at);
        assert!(row.meta.0 & OCCUPIED != 0, "a row is forgotten once");
        self.rows -= 1;
        let home = self.home(hash(row.meta.table(), row.key));
        self.unpass(home, at.bucket as usize);
        let mut hole = at;
        while let Some(from) = self.passer(hole.bucket as usize) {
            let row = self.entry(from);
            self.unpass(hole.bucket as usize, from.bucket as usize);
            self.set(hole, row);
            hole = from;
        }
        self.all_mut()[hole.bucket as usize].metas[hole.way as usize] = 0;
    }

    /// A row passes the buckets from `home` on, up to that before `bucket`, no longer.
    fn unpass(&mut self, home: usize, bucket: usize) {
        let buckets = self.all_mut();
        let mut passing = home;
        while passing != bucket {
            let passed = &mut buckets[passing].passed;
            assert!(*passed > 0, "a row lies behind a bucket that nobody passed");
            if *passed < PASSED_MAX {
                *passed -= 1;
            }
            passing = next(passing, buckets.len());
        }
    }

    /// The nearest row behind `bucket` that passed it.
    fn passer(&self, bucket: usize) -> Option<At> {
        let buckets = self.all();
        let mut at = bucket;
        for distance in 1..buckets.len() {
            if buckets[at].passed == 0 {
                return None;
            }
            at = next(at, buckets.len());
            let passed = |way: &u32| {
                let row = self.entry(At { bucket: at as u32, way: *way });
                let home = self.home(hash(row.meta.table(), row.key));
                let way_come = (at + buckets.len() - home) % buckets.len();
                row.meta.0 & OCCUPIED != 0 && way_come >= distance
            };
            if let Some(way) = (0..WAYS as u32).find(passed) {
                return Some(At { bucket: at as u32, way });
            }
        }
        None
    }

    fn set(&mut self, at: At, row: Entry) {
        let (bucket, way) = (&mut self.all_mut()[at.bucket as usize], at.way as usize);
        bucket.keys[way] = row.key.0;
        bucket.metas[way] = row.meta.0;
        bucket.codes[way] = row.code;
        bucket.set_slot(way, row.slot);
    }

    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn passed_max(&self) -> u16 {
        self.all().iter().map(|bucket| bucket.passed).max().unwrap_or(0)
    }

    #[inline]
    pub(crate) fn entry(&self, at: At) -> Entry {
        let (bucket, way) = (&self.all()[at.bucket as usize], at.way as usize);
        Entry {
            key: Key(bucket.keys[way]),
            meta: Meta(bucket.metas[way]),
            slot: bucket.slot(way),
            code: bucket.codes[way],
        }
    }

    pub(crate) fn set_meta(&mut self, at: At, meta: Meta) {
        self.all_mut()[at.bucket as usize].metas[at.way as usize] = meta.0;
    }

    pub(crate) fn set_code(&mut self, at: At, code: u8) {
        self.all_mut()[at.bucket as usize].codes[at.way as usize] = code;
    }

    pub(crate) fn set_slot(&mut self, at: At, slot: u32) {
        self.all_mut()[at.bucket as usize].set_slot(at.way as usize, slot);
    }

    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash << self.hash_bits) * self.buckets as u128) >> 64) as usize
    }

    #[inline(always)]
    fn all(&self) -> &[Bucket] {
        &bytemuck::cast_slice(&self.map)[..self.buckets]
    }

    fn all_mut(&mut self) -> &mut [Bucket] {
        &mut bytemuck::cast_slice_mut(&mut self.map)[..self.buckets]
    }
}

impl Bucket {
    /// Asks the processor for the bucket's two lines.
    #[inline(always)]
    fn ask(&self) {
        prefetch(&self.keys);
        prefetch(&self.passed);
    }

    /// The way of a row.
    #[inline]
    fn way_of(&self, table: TableId, key: Key) -> Option<u32> {
        let ways = self.ways_of(Plain, table, key);
        (ways != 0).then(|| ways.trailing_zeros())
    }

    /// A bit for the way of a row, if it is here. All nine are compared, without a branch: tables
    /// may share keys, and a vacant way may hold what was there before.
    #[inline(always)]
    fn ways_of(&self, lanes: impl Lanes, table: TableId, key: Key) -> u32 {
        const LAST: usize = WAYS - 1;
        let (mask, wanted) = (OCCUPIED | TABLE, OCCUPIED | table.0 as u16);
        let keys = self.keys.first_chunk().expect("there are nine");
        let metas = self.metas.first_chunk().expect("there are nine");
        let firsts = lanes.equal_u64(keys, key.0) & lanes.equal_u16(metas, mask, wanted);
        let last = self.keys[LAST] == key.0 && self.metas[LAST] & mask == wanted;
        firsts | u32::from(last) << LAST
    }

    fn slot(&self, way: usize) -> u32 {
        let [a, b, c] = self.slots[way];
        u32::from_le_bytes([a, b, c, 0])
    }

    fn set_slot(&mut self, way: usize, slot: u32) {
        let [a, b, c, high] = slot.to_le_bytes();
        assert_eq!(high, 0, "slot {slot} does not fit 24 bits");
        self.slots[way] = [a, b, c];
    }
}

/// The loop over probes, with no branch that depends on what is found: a processor that has guessed
/// such a one wrongly begins anew with all that it had begun behind it.
struct FindAtHome<'a> {
    index: &'a Index,
    buckets: &'a [Bucket],
    probes: &'a [Probe],
    first: usize,
    ways: &'a mut [u8],
}

impl Kernel for FindAtHome<'_> {
    #[inline(always)]
    fn run(self, lanes: impl Lanes) {
        let Self { index, buckets, probes, first, ways } = self;
        for (i, (way, probe)) in ways.iter_mut().zip(&probes[first..]).enumerate() {
            if let Some(ahead) = probes.get(first + i + PROBES_AHEAD) {
                buckets[index.home(ahead.hash)].ask();
            }
            let bucket = &buckets[index.home(probe.hash)];
            let none = 1 << (u32::from(ABSENT) + u32::from(bucket.passed > 0));
            let ways = bucket.ways_of(lanes, probe.table, probe.key);
            *way = (ways | none).trailing_zeros() as u8;
        }
    }
}

/// A stride near the golden section of the buckets that visits each of them once.
fn stride_of(buckets: usize) -> usize {
    let coprime = |stride: &usize| {
        let (mut a, mut b) = (buckets, *stride);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a == 1
    };
    let golden = (buckets as f64 * 0.618_034) as usize;
    (golden.max(1)..).find(coprime).unwrap_or(1)
}

fn next(at: usize, buckets: usize) -> usize {
    if at + 1 == buckets { 0 } else { at + 1 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MEMORY: MemoryUse = MemoryUse { budget_bytes: 0, lock: false };

    fn index(rows: usize) -> Index {
        let mut index = Index::reserve(rows, 0, MEMORY).unwrap();
        index.resize(buckets_for(rows));
        index
    }

    fn entry(table: u32, key: u64, slot: u32) -> Entry {
        Entry { key: Key(key), meta: Meta::of(TableId(table)), slot, code: slot as u8 }
    }

    proptest! {
        #[test]
        fn agrees_with_a_map_whatever_the_hashes(
            rows_max in 1_usize..600,
            ops in prop::collection::vec((0_u8..5, 0_u32..3, 0_u64..250), 0..2000),
            grows_at in 0_usize..2000,
        ) {
            let mut index = Index::reserve(4 * rows_max, 0, MEMORY).unwrap();
            index.resize(buckets_for(rows_max));
            let mut map: BTreeMap<(u32, u64), Entry> = BTreeMap::new();
            for (i, (op, table, key)) in ops.into_iter().enumerate() {
                if i == grows_at {
                    index.resize(buckets_for(3 * rows_max));
                }
                let hash = hash(TableId(table), Key(key));
                let at = index.find(hash, TableId(table), Key(key));
                prop_assert_eq!(at.map(|at| index.entry(at)), map.get(&(table, key)).copied());
                let probe = Probe { hash, key: Key(key), position: 0, table: TableId(table) };
                let homes = index.find_at_home::<1>(&[probe], 0);
                match index.home_of(&homes, 0, &probe) {
                    Home::Here(home) => prop_assert_eq!(Some(home), at),
                    Home::Behind => {
                        let bucket = at.map(|at| at.bucket as usize);
                        prop_assert_ne!(bucket, Some(index.home(hash)));
                        prop_assert_eq!(index.find_behind(hash, TableId(table), Key(key)), at);
                    }
                    Home::Absent => prop_assert_eq!(at, None),
                }
                match (op, at) {
                    (0..=1, None) if map.len() < rows_max => {
                        let row = entry(table, key, i as u32);
                        let at = index.insert(hash, row);
                        prop_assert_eq!(index.entry(at), row);
                        map.insert((table, key), row);
                    }
                    (2, Some(at)) => {
                        index.remove(at);
                        map.remove(&(table, key));
                    }
                    (3, Some(at)) => {
                        index.set_slot(at, i as u32 + 5000);
                        index.set_code(at, 77);
                        let meta = index.entry(at).meta.loading(i % 2 == 0).on_ssd(i % 3 == 0);
                        index.set_meta(at, meta);
                        map.insert((table, key), index.entry(at));
                    }
                    _ => {}
                }
            }
            let found: BTreeMap<(u32, u64), Entry> = (0..index.places())
                .filter_map(|place| index.nth(place))
                .map(|(_, row)| ((row.meta.table().0, row.key.0), row))
                .collect();
            prop_assert_eq!(found, map);
        }
    }

    #[test]
    fn rows_that_share_a_home_are_all_found_and_leave_no_trace() {
        // the worst that an adversary could do: hundreds of rows with one home bucket
        let mut index = index(1000);
        let home = |index: &Index, key: u64| index.home(hash(TableId(0), Key(key)));
        let keys: Vec<u64> = (0..).filter(|&key| home(&index, key) == 7).take(300).collect();
        for (slot, &key) in (0..).zip(&keys) {
            index.insert(hash(TableId(0), Key(key)), entry(0, key, slot));
        }
        for &key in &keys {
            let at = index.find(hash(TableId(0), Key(key)), TableId(0), Key(key)).unwrap();
            assert_eq!(index.entry(at).key, Key(key));
        }
        assert_eq!(index.all()[7].passed, 291);
        for &key in &keys {
            index.remove(index.find(hash(TableId(0), Key(key)), TableId(0), Key(key)).unwrap());
        }
        assert!(index.all().iter().all(|bucket| bucket.passed == 0));
    }

    #[test]
    fn a_scattered_walk_visits_each_place_once() {
        for rows in [1, 8, 100, 5000] {
            let index = index(rows);
            let mut places: Vec<u32> = (0..index.places()).map(|i| index.scattered(i)).collect();
            places.sort_unstable();
            assert!(places.into_iter().eq(0..index.places()));
        }
    }

    #[test]
    fn rows_that_come_and_go_leave_the_index_as_good_as_new() {
        let rows = 20_000;
        let mut index = index(rows as usize);
        let enter = |index: &mut Index, key: u64| {
            index.insert(hash(TableId(0), Key(key)), entry(0, key, key as u32 % 1000));
        };
        (0..rows).for_each(|key| enter(&mut index, key));
        let away = |index: &Index| {
            let all = (0..index.places()).filter_map(|place| index.nth(place));
            all.filter(|(at, row)| at.bucket as usize != index.home(hash(TableId(0), row.key)))
                .count()
        };
        let fresh = away(&index);
        for key in 0..10 * rows {
            let (hash, key_out) = (hash(TableId(0), Key(key)), Key(key));
            index.remove(index.find(hash, TableId(0), key_out).unwrap());
            enter(&mut index, key + rows);
        }
        let worn = away(&index);
        assert!(worn < fresh + fresh / 5, "{fresh} rows away from home at first, {worn} later");
    }

    #[test]
    fn a_full_index_of_adversarial_keys_finds_each_in_few_buckets() {
        for shift in [0, 20, 40] {
            let rows = 20_000;
            let mut index = index(rows);
            for i in 0..rows as u64 {
                let key = i << shift;
                index.insert(hash(TableId(0), Key(key)), entry(0, key, i as u32));
            }
            let longest = index.all().iter().map(|bucket| bucket.passed).max().unwrap();
            assert!(longest < 80, "{longest} rows pass one bucket of nine");
            let away = (0..rows as u64).filter(|&i| {
                let (hash, key) = (hash(TableId(0), Key(i << shift)), Key(i << shift));
                index.find(hash, TableId(0), key).unwrap().bucket as usize != index.home(hash)
            });
            let away = away.count();
            assert!(away < rows / 4, "{away} of {rows} rows are not at home");
        }
    }
}
