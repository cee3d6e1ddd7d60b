//! What a section knows of each row that is there: table and key, flags, slot, and the policy's
//! byte, in buckets of five. A bucket is one cache line, so that a row is found with one access to
//! memory. A row is always found or surely absent; nothing is lost to a full bucket. It does not
//! grow by itself, for its memory comes out of the budget.
//!
//! **Five in a line.** A hash is a bijection of the key, and a bucket's number says some of its
//! bits, so that a way keeps only the rest. Of an index of B buckets, row y lives in bucket
//! ⌊y B / 2⁶⁴⌋. What is left is y B mod 2⁶⁴. Two rows of one bucket differ by B there at least, so
//! that its bits from ⌊log₂ B⌋ on tell them apart; from bucket and rest y can be had again, and
//! from y the key.
//!
//! **Rows that are not at home** lie in one of the 254 buckets that follow, and a way says how many
//! it is away. A bucket counts the rows that went on to the next. At home a row takes the place of
//! one that is not, which goes on instead; so does one that came 254 buckets of one that is nearer
//! to its home. Where all are as far away, which takes more than a thousand rows with neighbouring
//! homes, the index is built anew under another bijection. With 255 buckets or fewer every row
//! finds a place.

use std::io;

use bytemuck::{Pod, Zeroable};
use memmap2::MmapMut;
use table::{GOLDEN, Key, TableId, mix};

use crate::arena::{Lanes, MemoryUse, give_back_part, lock_part, map, prefetch};

/// Rows of a bucket.
pub(crate) const WAYS: usize = 5;
/// Entries of a hundred that may be taken.
const LOAD_PERCENT: usize = 83;
/// Buckets between asking for one and visiting it, on a walk.
const WALK_AHEAD: usize = 8;
/// Buckets behind its home that are asked for when a row is not at home.
const BEHIND_AHEAD: usize = 2;
/// Buckets in which a row may lie: its home, and those that follow.
const REACH: usize = 255;
/// Bijections that are tried until all rows find a place. Under one where they don't, too many have
/// their homes in 84 % of the buckets or fewer. Of all keys, one in 2^128 does so under each of
/// this many, and there are 2^76.
const BIJECTIONS_MAX: u64 = 512;

/// Bytes of a bucket.
pub(crate) const BUCKET_BYTES: usize = size_of::<Bucket>();

#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Bucket {
    /// From the low bits: one more than the buckets between home and here, 0 where none is; the
    /// table; 44 bits of what the bucket does not say of the hash.
    ids: [u64; WAYS],
    /// From the low bits: the policy's byte; the slot; what is left of the hash.
    rests: [u32; WAYS],
    /// From the low bits: rows whose home is here or before, and that went on; a bit for each way
    /// that is being read from SSD; a bit for each that has a version on SSD.
    state: u32,
}

const _: () = assert!(size_of::<Bucket>() == 64);

const DISTANCE_BITS: u32 = 8;
const TABLE_BITS: u32 = 12;
/// Where the hash begins in an id.
const HASH_FROM: u32 = DISTANCE_BITS + TABLE_BITS;
const CODE_BITS: u32 = 8;
/// A section has no more slots.
const SLOT_BITS_MAX: u32 = 24;
const PASSED: u32 = 0xffff; // (REACH - 1) WAYS at most
const LOADING_FROM: u32 = 16;
const ON_SSD_FROM: u32 = LOADING_FROM + WAYS as u32;

/// Bits of a row's short name that say where its home is; the others are of its id.
const HOME_BITS: u32 = 22;
const HOME_MASK: u32 = (1 << HOME_BITS) - 1;
const _: () = assert!((100 << SLOT_BITS_MAX) / (WAYS * LOAD_PERCENT) < 1 << HOME_BITS);

/// The row is being read from SSD.
const LOADING: u16 = 1 << 14;
/// A version of the row is on SSD, or on its way there.
const ON_SSD: u16 = 1 << 13;
const TABLE: u16 = (1 << TABLE_BITS) - 1;

/// Tables that an entry can tell apart.
pub(crate) const TABLES_MAX: u32 = TABLE as u32 + 1;

/// The flags and the table of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta(u16);

/// The place of an entry: its bucket and its way. It stands until a row enters or is forgotten, or
/// the index grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At {
    bucket: u32,
    way: u32,
}

/// A key on its way through a stage.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Probe {
    pub(crate) hash: u64,
    pub(crate) position: u32, // in the batch
    pub(crate) table: TableId,
}

/// What a row's home bucket says of it.
pub(crate) enum Home<'a> {
    Here(Found<'a>),
    /// It may lie in a bucket behind, or here beside another with the same id.
    Unsure,
    Absent,
}

/// A row that was found.
pub(crate) struct Found<'a> {
    bucket: &'a mut Bucket,
    home: usize,
    way: usize,
    slot_mask: u32,
}

/// The buckets, for a loop that looks for many rows where they are at home.
pub(crate) struct Homes<'a> {
    shape: Shape,
    buckets: &'a mut [Bucket],
}

/// What is known of a row but its key, which takes a division.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) meta: Meta,
    pub(crate) slot: u32,
    pub(crate) code: u8,
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
    memory: MemoryUse,
    rows: usize,
    stride: usize, // see `scattered`
    shape: Shape,
    builds: u64,
    walk: Option<Walk>,
}

/// What an index of so many buckets makes of a hash.
#[derive(Debug, Clone, Copy)]
struct Shape {
    buckets: usize,
    hash_bits: u32,    // the high bits of a hash that say nothing here
    section: u64,      // those bits
    bijection: u64,    // its number; 0 leaves a hash as it is
    factors: [u64; 2], // odd
    rest_from: u32,    // the bit from which on y B mod 2^64 tells rows of one bucket apart
    slot_bits: u32,
}

/// Where a row is looked for, and what for.
#[derive(Debug, Clone, Copy)]
struct Seat {
    home: usize,
    id: u64,   // at home
    high: u32, // of the rest, in its place
}

/// A row as a bucket has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    id: u64,
    rest: u32,
    loading: bool,
    on_ssd: bool,
}

/// A walk over all places in their order, with pauses in which rows come and go.
#[derive(Debug, Default)]
struct Walk {
    next: u32,
    overtaken: Vec<(u64, Mark)>, // rows that moved from places to come to such as are past
}

/// Buckets that take this many rows.
pub(crate) fn buckets_for(rows: usize) -> usize {
    (rows * 100).div_ceil(WAYS * LOAD_PERCENT).max(1)
}

/// Odd multiples keep the hashes of tables apart.
const TABLE_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

/// A row's hash: of all keys of a table each has another. Its high bits choose section and bucket.
pub(crate) fn hash(table: TableId, key: Key) -> u64 {
    mix(key.0 ^ u64::from(table.0).wrapping_mul(TABLE_FACTOR))
}

/// The key that has this hash.
fn key_of(table: TableId, hash: u64) -> Key {
    // what `table::scatter` does, backwards
    const SECOND: u64 = inverse(0x94d0_49bb_1331_11eb);
    const FIRST: u64 = inverse(0xbf58_476d_1ce4_e5b9);
    let mut x = hash;
    x = (x ^ x >> 31 ^ x >> 62).wrapping_mul(SECOND);
    x = (x ^ x >> 27 ^ x >> 54).wrapping_mul(FIRST);
    x = x ^ x >> 30 ^ x >> 60;
    Key(x.wrapping_sub(GOLDEN) ^ u64::from(table.0).wrapping_mul(TABLE_FACTOR))
}

/// Keys whose homes lie in an eighth of the index, however large, of a section that has all keys,
/// under each of so many bijections.
#[cfg(all(test, not(feature = "shuttle")))]
pub(crate) fn crowding_keys(table: TableId, bijections: u64) -> impl Iterator<Item = Key> {
    let shapes: Vec<Shape> = (0..bijections).map(|i| Shape::of(1, 0, 0, i)).collect();
    let crowds = move |&hash: &u64| {
        let at = |shape: &Shape| shape.scrambled(hash) >> (64 - 3);
        shapes.iter().all(|shape| at(shape) == 0)
    };
    (0..).map(mix).filter(crowds).map(move |hash| key_of(table, hash))
}

/// What an odd number times this is 1 modulo 2^64: each of Newton's steps doubles the bits that are
/// right, of which the number itself has three.
const fn inverse(odd: u64) -> u64 {
    let mut x = odd;
    let mut bits = 3;
    while bits < 64 {
        x = x.wrapping_mul(2_u64.wrapping_sub(odd.wrapping_mul(x)));
        bits *= 2;
    }
    x
}

impl Meta {
    /// Of a row of `table`.
    pub(crate) fn of(table: TableId) -> Self {
        assert!(table.0 < TABLES_MAX, "{table} is beyond the last that an entry can name");
        Meta(table.0 as u16)
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

impl Shape {
    fn of(buckets: usize, hash_bits: u32, section: u64, bijection: u64) -> Self {
        let log2 = buckets.max(1).ilog2();
        let first = mix(bijection);
        Self {
            buckets,
            hash_bits,
            section,
            bijection,
            factors: [first | 1, mix(first) | 1],
            rest_from: log2 + hash_bits,
            // places are fewer than 2^(log2 + 4)
            slot_bits: (log2 + 4).min(SLOT_BITS_MAX),
        }
    }

    /// Where a row is looked for.
    #[inline(always)]
    fn seat(&self, hash: u64, table: TableId) -> Seat {
        let product = u128::from(self.scrambled(hash)) * self.buckets as u128;
        let rest = (product as u64).wrapping_shr(self.rest_from);
        let high = (rest >> (64 - HASH_FROM)).wrapping_shl(CODE_BITS + self.slot_bits);
        Seat {
            home: (product >> 64) as usize,
            id: rest << HASH_FROM | u64::from(table.0) << DISTANCE_BITS | 1,
            high: high as u32, // its other bits are 0: there are 76 bits beside the distance's
        }
    }

    /// The home of a hash.
    #[inline(always)]
    fn home(&self, hash: u64) -> usize {
        ((u128::from(self.scrambled(hash)) * self.buckets as u128) >> 64) as usize
    }

    /// What the section does not say of a hash, in the high bits, as the bijection has it.
    #[inline(always)]
    fn scrambled(&self, hash: u64) -> u64 {
        let y = hash.wrapping_shl(self.hash_bits);
        if self.bijection == 0 {
            return y;
        }
        self.fold(y.wrapping_mul(self.factors[0])).wrapping_mul(self.factors[1])
    }

    /// Its own inverse. What is 0 in the low bits, as odd factors leave it, stays so.
    #[inline(always)]
    fn fold(&self, y: u64) -> u64 {
        y ^ (y >> 32 & (u64::MAX << self.hash_bits))
    }

    /// The hash that was seated at `home` with this rest.
    fn hash_of(&self, home: usize, rest: u64) -> u64 {
        // y is j 2^hash_bits, and y B lies in [low, low + 2^rest_from), in which there is but one
        // multiple of B 2^hash_bits
        let low = (home as u128) << 64 | u128::from(rest << self.rest_from);
        let step = (self.buckets as u128) << self.hash_bits;
        let mut y = (low.div_ceil(step) as u64) << self.hash_bits;
        if self.bijection != 0 {
            let [first, second] = self.factors.map(inverse);
            y = self.fold(y.wrapping_mul(second)).wrapping_mul(first);
        }
        y >> self.hash_bits | self.section
    }

    /// Where a rest has what is left of the hash.
    fn high_mask(&self) -> u32 {
        (u64::MAX << (CODE_BITS + self.slot_bits)) as u32
    }

    fn slot_mask(&self) -> u32 {
        (1 << self.slot_bits) - 1
    }

    fn way(&self, seat: &Seat, mark: Mark) -> Way {
        let Mark { meta, slot, code } = mark;
        assert!(slot <= self.slot_mask(), "slot {slot} is beyond {} buckets", self.buckets);
        Way {
            id: seat.id,
            rest: seat.high | slot << CODE_BITS | u32::from(code),
            loading: meta.is_loading(),
            on_ssd: meta.is_on_ssd(),
        }
    }
}

impl Way {
    /// Buckets from home.
    fn distance(&self) -> usize {
        (self.id as u8) as usize - 1
    }

    fn is_taken(&self) -> bool {
        self.id as u8 != 0
    }

    fn mark(&self, shape: &Shape) -> Mark {
        let table = Meta((self.id >> DISTANCE_BITS) as u16 & TABLE);
        Mark {
            meta: table.loading(self.loading).on_ssd(self.on_ssd),
            slot: self.rest >> CODE_BITS & shape.slot_mask(),
            code: self.rest as u8,
        }
    }

    fn hash(&self, bucket: usize, shape: &Shape) -> u64 {
        let home = (bucket + shape.buckets - self.distance()) % shape.buckets;
        let high = u64::from(self.rest & shape.high_mask());
        let high = high.wrapping_shr(CODE_BITS + shape.slot_bits);
        shape.hash_of(home, high << (64 - HASH_FROM) | self.id >> HASH_FROM)
    }
}

impl Index {
    /// An empty index of section `section` that may grow to hold `rows_max` rows.
    pub(crate) fn reserve(
        rows_max: usize,
        hash_bits: u32,
        section: u64,
        memory: MemoryUse,
    ) -> io::Result<Self> {
        let map = map(buckets_for(rows_max) * BUCKET_BYTES, memory)?;
        // a shift by all 64 bits is not one
        let section = if hash_bits == 0 { 0 } else { section << (64 - hash_bits) };
        let shape = Shape::of(0, hash_bits, section, 0);
        Ok(Self { map, memory, rows: 0, stride: 1, shape, builds: 0, walk: None })
    }

    /// Locks the memory of so many buckets, where that is wanted; false if the system locks no
    /// more.
    pub(crate) fn lock(&self, buckets: usize) -> bool {
        let bytes = self.buckets() * BUCKET_BYTES..buckets * BUCKET_BYTES;
        lock_part(&self.map, bytes, self.memory).is_ok()
    }

    /// Where the mapping lies.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn mapping(&self) -> std::ops::Range<usize> {
        let begin = self.map.as_ptr() as usize;
        begin..begin + self.map.len()
    }

    pub(crate) fn buckets(&self) -> usize {
        self.shape.buckets
    }

    /// Places for rows, taken or not.
    pub(crate) fn places(&self) -> u32 {
        (self.buckets() * WAYS) as u32
    }

    /// How often all rows got other places.
    pub(crate) fn builds(&self) -> u64 {
        self.builds
    }

    /// The place of this number, and the row there.
    pub(crate) fn nth(&self, place: u32) -> Option<(At, Mark)> {
        let at = At { bucket: place / WAYS as u32, way: place % WAYS as u32 };
        let way = self.way(at);
        way.is_taken().then(|| (at, way.mark(&self.shape)))
    }

    /// A short name of a row, which stands however the row moves, until the index is built anew:
    /// one in a thousand rows of the same home has the same.
    pub(crate) fn name(&self, at: At) -> u32 {
        let id = self.way(at).id;
        let home = (at.bucket as usize + self.buckets() - self.way(at).distance()) % self.buckets();
        name_of(home, id)
    }

    /// The row of a name, if one is there.
    pub(crate) fn named(&self, name: u32) -> Option<(At, Mark)> {
        let buckets = self.all();
        let home = (name & HOME_MASK) as usize;
        let mut at = home;
        for distance in 0..REACH.min(buckets.len()) {
            let bucket = buckets.get(at)?;
            let is = |id: &u64| *id as u8 as usize == distance + 1 && name_of(home, *id) == name;
            if let Some(way) = bucket.ids.iter().position(is) {
                let at = At { bucket: at as u32, way: way as u32 };
                return Some((at, self.mark(at)));
            }
            if bucket.passed() == 0 {
                return None;
            }
            at = next(at, buckets.len());
        }
        None
    }

    /// Asks for the home of a row of this name.
    pub(crate) fn ask_named(&self, name: u32) {
        self.ask((name & HOME_MASK) as usize);
    }

    /// The place that a walk over all places visits as its `place`-th: bucket by bucket, each far
    /// from the one before. Rows that leave in the order of their buckets would empty one part of
    /// the index while the others overflow.
    pub(crate) fn scattered(&self, place: u32) -> u32 {
        let (bucket, way) = (place as usize / WAYS, place % WAYS as u32);
        if way == 0 {
            self.ask((bucket + WALK_AHEAD) * self.stride % self.buckets());
        }
        (bucket * self.stride % self.buckets() * WAYS) as u32 + way
    }

    /// From now on it is noted which rows move from the places from `next` on to those before;
    /// `None` ends it.
    pub(crate) fn walk_from(&mut self, next: Option<u32>) {
        self.walk = next.map(|next| Walk { next, overtaken: Vec::new() });
    }

    /// Where those are that did, once each unless they left.
    pub(crate) fn overtaken(&self) -> Vec<At> {
        let rows = self.walk.iter().flat_map(|walk| &walk.overtaken);
        let found = rows.filter_map(|(hash, mark)| self.find(*hash, mark.meta.table()));
        let mut found: Vec<At> = found.collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Takes the memory of so many buckets, and enters all rows anew.
    pub(crate) fn resize(&mut self, buckets: usize) {
        let (rows, before) = (self.all_rows(), self.buckets());
        self.build(buckets, self.shape.bijection, &rows);
        if buckets < before {
            let bytes = buckets * BUCKET_BYTES..before * BUCKET_BYTES;
            give_back_part(&mut self.map, bytes, self.memory);
        }
    }

    fn all_rows(&self) -> Vec<(u64, Mark)> {
        let places = (0..self.places()).filter_map(|place| self.nth(place));
        places.map(|(at, mark)| (self.hash_at(at), mark)).collect()
    }

    /// Enters these rows, and none else, in so many buckets, by the first bijection from this one
    /// on under which all find a place.
    fn build(&mut self, buckets: usize, bijection: u64, rows: &[(u64, Mark)]) {
        assert!(rows.len() <= buckets * WAYS, "{} rows do not fit {buckets} buckets", rows.len());
        self.stride = stride_of(buckets);
        self.builds += 1;
        self.walk = None;
        for bijection in bijection..bijection + BIJECTIONS_MAX {
            let used = self.buckets().max(buckets) * BUCKET_BYTES;
            self.map[..used].fill(0);
            let Shape { hash_bits, section, .. } = self.shape;
            (self.shape, self.rows) = (Shape::of(buckets, hash_bits, section, bijection), 0);
            if rows.iter().all(|&(hash, mark)| self.enter(hash, mark).is_ok()) {
                return;
            }
        }
        panic!("{} rows crowd under {BIJECTIONS_MAX} bijections", rows.len());
    }

    /// Asks for a row's home bucket.
    pub(crate) fn ask_home(&self, probe: &Probe) {
        self.ask(self.shape.home(probe.hash));
    }

    /// The buckets, to look for rows at home.
    pub(crate) fn homes(&mut self) -> Homes<'_> {
        Homes { shape: self.shape, buckets: self.all_mut() }
    }

    /// Asks for the buckets right behind the home of a hash.
    #[inline]
    pub(crate) fn ask_behind(&self, hash: u64) {
        let mut at = self.shape.home(hash);
        for _ in 0..BEHIND_AHEAD {
            at = next(at, self.buckets());
            self.ask(at);
        }
    }

    /// Asks for a bucket; of none there are, for nothing.
    #[inline(always)]
    fn ask(&self, bucket: usize) {
        if let Some(bucket) = self.all().get(bucket) {
            prefetch(bucket);
        }
    }

    /// Where a row is.
    #[inline]
    pub(crate) fn find(&self, hash: u64, table: TableId) -> Option<At> {
        let seat = self.shape.seat(hash, table);
        let buckets = self.all();
        let mut at = seat.home;
        for distance in 0..REACH.min(buckets.len()) {
            let bucket = &buckets[at];
            if let Some(way) = bucket.way_of(&self.shape, &seat, distance as u64) {
                return Some(At { bucket: at as u32, way });
            }
            if bucket.passed() == 0 {
                return None;
            }
            at = next(at, buckets.len());
        }
        None
    }

    /// The row of a probe, wherever it lies.
    pub(crate) fn found(&mut self, probe: &Probe) -> Option<Found<'_>> {
        let at = self.find(probe.hash, probe.table)?;
        let (home, slot_mask) = (self.shape.home(probe.hash), self.shape.slot_mask());
        let bucket = &mut self.all_mut()[at.bucket as usize];
        Some(Found { bucket, home, way: at.way as usize, slot_mask })
    }

    /// Enters a row, which must not be there; its place.
    pub(crate) fn insert(&mut self, hash: u64, mark: Mark) -> At {
        assert!(self.rows < self.buckets() * WAYS, "the index is full with {} rows", self.rows);
        match self.enter(hash, mark) {
            Ok(at) => at,
            Err(last) => {
                let mut rows = self.all_rows();
                rows.push(last);
                self.build(self.buckets(), self.shape.bijection + 1, &rows);
                self.find(hash, mark.meta.table()).expect("all rows found a place")
            }
        }
    }

    /// Enters a row; there is a place for it, which it tells. Gives the row back that found none
    /// near enough to its home, this one or another: all others are there, and what buckets count
    /// is wrong.
    fn enter(&mut self, hash: u64, mark: Mark) -> Result<At, (u64, Mark)> {
        let shape = self.shape;
        let seat = shape.seat(hash, mark.meta.table());
        self.rows += 1;
        let (mut row, mut at) = (shape.way(&seat, mark), seat.home);
        let mut from = None; // the place that the row gave away
        let mut first = None; // where the row that enters is
        loop {
            let bucket = &self.all()[at];
            if let Some(way) = bucket.vacant() {
                let to = At { bucket: at as u32, way };
                if let Some(from) = from {
                    self.note_move(from, to, &row);
                }
                self.set(to, row);
                return Ok(first.unwrap_or(to));
            }
            let way = match row.distance() + 1 {
                1 => bucket.guest(),
                REACH => Some(bucket.nearest()),
                _ => None,
            };
            if let Some(way) = way {
                let place = At { bucket: at as u32, way };
                let other = self.way(place);
                if other.distance() + 1 == REACH {
                    return Err((row.hash(at, &shape), row.mark(&shape)));
                }
                if let Some(from) = from {
                    self.note_move(from, place, &row);
                }
                self.set(place, row);
                first.get_or_insert(place);
                (row, from) = (other, Some(place));
            }
            self.all_mut()[at].state += 1; // one more passed
            row.id += 1;
            at = next(at, shape.buckets);
        }
    }

    /// Forgets a row. Rows behind it that passed its bucket move up, one after the other, so that
    /// however many rows come and go, each lies where it would if it had just been entered.
    pub(crate) fn remove(&mut self, at: At) {
        let row = self.way(at);
        assert!(row.is_taken(), "a row is forgotten once");
        self.rows -= 1;
        self.unpass(at, row.distance());
        let mut hole = at;
        while let Some((from, distance)) = self.passer(hole.bucket as usize) {
            let mut row = self.way(from);
            self.unpass(from, distance);
            row.id -= distance as u64;
            self.note_move(from, hole, &row);
            self.set(hole, row);
            hole = from;
        }
        self.set(hole, Way { id: 0, rest: 0, loading: false, on_ssd: false });
    }

    /// A row passes so many buckets before its own no longer.
    fn unpass(&mut self, at: At, distance: usize) {
        let buckets = self.all_mut();
        let mut passing = at.bucket as usize;
        for _ in 0..distance {
            passing = if passing == 0 { buckets.len() - 1 } else { passing - 1 };
            assert!(buckets[passing].passed() > 0, "a row lies behind a bucket that nobody passed");
            buckets[passing].state -= 1;
        }
    }

    /// The nearest row behind `bucket` that passed it, one with its home there first, and how far
    /// behind.
    fn passer(&self, bucket: usize) -> Option<(At, usize)> {
        let buckets = self.all();
        let mut at = bucket;
        for distance in 1..REACH.min(buckets.len()) {
            if buckets[at].passed() == 0 {
                return None;
            }
            at = next(at, buckets.len());
            let ids = buckets[at].ids.map(|id| usize::from(id as u8));
            let at_home = ids.iter().position(|id| *id == distance + 1);
            let far = || ids.iter().position(|id| *id > distance);
            if let Some(way) = at_home.or_else(far) {
                return Some((At { bucket: at as u32, way: way as u32 }, distance));
            }
        }
        None
    }

    /// Notes that a row moves.
    fn note_move(&mut self, from: At, to: At, row: &Way) {
        let Some(walk) = &mut self.walk else { return };
        if from.place() >= walk.next && to.place() < walk.next {
            let hash = row.hash(to.bucket as usize, &self.shape);
            walk.overtaken.push((hash, row.mark(&self.shape)));
        }
    }

    #[inline]
    pub(crate) fn mark(&self, at: At) -> Mark {
        self.way(at).mark(&self.shape)
    }

    pub(crate) fn entry(&self, at: At) -> Entry {
        let Mark { meta, slot, code } = self.mark(at);
        Entry { key: key_of(meta.table(), self.hash_at(at)), meta, slot, code }
    }

    fn hash_at(&self, at: At) -> u64 {
        self.way(at).hash(at.bucket as usize, &self.shape)
    }

    pub(crate) fn set_meta(&mut self, at: At, meta: Meta) {
        let way = self.way(at);
        debug_assert_eq!(meta.table(), way.mark(&self.shape).meta.table(), "a row has one table");
        self.set(at, Way { loading: meta.is_loading(), on_ssd: meta.is_on_ssd(), ..way });
    }

    #[inline]
    pub(crate) fn set_code(&mut self, at: At, code: u8) {
        set_code(&mut self.all_mut()[at.bucket as usize].rests[at.way as usize], code);
    }

    pub(crate) fn set_slot(&mut self, at: At, slot: u32) {
        let shape = self.shape;
        assert!(slot <= shape.slot_mask(), "slot {slot} is beyond {} buckets", shape.buckets);
        let rest = &mut self.all_mut()[at.bucket as usize].rests[at.way as usize];
        *rest = *rest & !(shape.slot_mask() << CODE_BITS) | slot << CODE_BITS;
    }

    #[cfg(test)]
    pub(crate) fn passed_max(&self) -> u32 {
        self.all().iter().map(Bucket::passed).max().unwrap_or(0)
    }

    #[inline]
    fn way(&self, at: At) -> Way {
        let (bucket, way) = (&self.all()[at.bucket as usize], at.way as usize);
        Way {
            id: bucket.ids[way],
            rest: bucket.rests[way],
            loading: bucket.state >> (LOADING_FROM + at.way) & 1 != 0,
            on_ssd: bucket.state >> (ON_SSD_FROM + at.way) & 1 != 0,
        }
    }

    fn set(&mut self, at: At, row: Way) {
        let (bucket, way) = (&mut self.all_mut()[at.bucket as usize], at.way as usize);
        (bucket.ids[way], bucket.rests[way]) = (row.id, row.rest);
        for (from, yes) in [(LOADING_FROM, row.loading), (ON_SSD_FROM, row.on_ssd)] {
            let bit = 1 << (from + at.way);
            bucket.state = if yes { bucket.state | bit } else { bucket.state & !bit };
        }
    }

    #[inline(always)]
    fn all(&self) -> &[Bucket] {
        &bytemuck::cast_slice(&self.map)[..self.shape.buckets]
    }

    #[inline(always)]
    fn all_mut(&mut self) -> &mut [Bucket] {
        &mut bytemuck::cast_slice_mut(&mut self.map)[..self.shape.buckets]
    }
}

impl At {
    fn place(self) -> u32 {
        self.bucket * WAYS as u32 + self.way
    }
}

impl Homes<'_> {
    /// Asks for a row's home bucket.
    #[inline(always)]
    pub(crate) fn ask(&self, probe: &Probe) {
        if let Some(bucket) = self.buckets.get(self.shape.home(probe.hash)) {
            prefetch(bucket);
        }
    }

    /// Looks for a row at home, which was asked for some time ago.
    #[inline(always)]
    pub(crate) fn look(&mut self, probe: &Probe, lanes: impl Lanes) -> Home<'_> {
        let shape = &self.shape;
        let seat = shape.seat(probe.hash, probe.table);
        let Some(bucket) = self.buckets.get_mut(seat.home) else { return Home::Absent };
        let ways = lanes.equal(&bucket.ids, seat.id);
        let way = ways.trailing_zeros() as usize;
        if way < WAYS && bucket.is_high(way, shape.high_mask(), &seat) {
            let slot_mask = shape.slot_mask();
            return Home::Here(Found { bucket, home: seat.home, way, slot_mask });
        }
        if way < WAYS || bucket.passed() > 0 { Home::Unsure } else { Home::Absent }
    }
}

impl Found<'_> {
    #[inline(always)]
    pub(crate) fn slot(&self) -> u32 {
        self.bucket.rests[self.way] >> CODE_BITS & self.slot_mask
    }

    /// The policy's byte.
    #[inline(always)]
    pub(crate) fn code(&self) -> u8 {
        self.bucket.rests[self.way] as u8
    }

    #[inline(always)]
    pub(crate) fn set_code(&mut self, code: u8) {
        set_code(&mut self.bucket.rests[self.way], code);
    }

    #[inline(always)]
    pub(crate) fn is_loading(&self) -> bool {
        self.bucket.state >> (LOADING_FROM as usize + self.way) & 1 != 0
    }

    /// See [`Index::name`].
    #[inline(always)]
    pub(crate) fn name(&self) -> u32 {
        name_of(self.home, self.bucket.ids[self.way])
    }
}

impl Bucket {
    /// Rows whose home is here or before, and that went on.
    #[inline(always)]
    fn passed(&self) -> u32 {
        self.state & PASSED
    }

    /// The way of a row that is so far from its home here.
    #[inline]
    fn way_of(&self, shape: &Shape, seat: &Seat, distance: u64) -> Option<u32> {
        let is = |way: &u32| {
            let way = *way as usize;
            self.ids[way] == seat.id + distance && self.is_high(way, shape.high_mask(), seat)
        };
        (0..WAYS as u32).find(is)
    }

    /// Whether the rest of a way is that of the row.
    #[inline(always)]
    fn is_high(&self, way: usize, high_mask: u32, seat: &Seat) -> bool {
        self.rests[way] & high_mask == seat.high
    }

    /// A way that is not taken.
    fn vacant(&self) -> Option<u32> {
        self.ids.iter().position(|id| *id as u8 == 0).map(|way| way as u32)
    }

    /// The way of the row that is nearest to its home.
    fn nearest(&self) -> u32 {
        (0..WAYS as u32).min_by_key(|way| self.ids[*way as usize] as u8).expect("there are five")
    }

    /// The way of a row that is not at home here and may go on.
    fn guest(&self) -> Option<u32> {
        let goes = |id: &u64| (2..REACH as u8).contains(&(*id as u8));
        self.ids.iter().position(goes).map(|way| way as u32)
    }
}

#[inline(always)]
fn set_code(rest: &mut u32, code: u8) {
    *rest = *rest & !u32::from(u8::MAX) | u32::from(code);
}

/// The short name of a row with this home and id.
fn name_of(home: usize, id: u64) -> u32 {
    ((id >> HASH_FROM) as u32) << HOME_BITS | home as u32
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
    use crate::arena::{Kernel, run_widest};

    const MEMORY: MemoryUse = MemoryUse { budget_bytes: 0, lock: false };
    const TABLE0: TableId = TableId(0);

    fn index(rows: usize) -> Index {
        let mut index = Index::reserve(rows, 0, 0, MEMORY).unwrap();
        index.resize(buckets_for(rows));
        index
    }

    fn mark(table: TableId, slot: u32) -> Mark {
        Mark { meta: Meta::of(table), slot, code: slot as u8 }
    }

    fn hash_of(key: u64) -> u64 {
        hash(TABLE0, Key(key))
    }

    /// The `i`-th hash with this home, of a table's that no bijection has changed.
    fn hash_at_home(index: &Index, home: usize, i: u64) -> u64 {
        let first = ((home as u128) << 64).div_ceil(index.buckets() as u128) as u64;
        assert_eq!(index.shape.home(first + i), home);
        first + i
    }

    /// What a look at a home says, and of a row that is there what is known of it.
    #[derive(Debug, PartialEq)]
    enum Seen {
        Here(Mark, u32),
        Unsure,
        Absent,
    }

    /// Looks a row up at home, with the lanes that this machine has.
    fn look(index: &mut Index, hash: u64, table: TableId) -> Seen {
        struct Look<'a>(Homes<'a>, Probe, &'a mut Seen);
        impl Kernel for Look<'_> {
            #[inline(always)]
            fn run(self, lanes: impl Lanes) {
                let Self(mut homes, probe, found) = self;
                homes.ask(&probe);
                *found = match homes.look(&probe, lanes) {
                    Home::Here(row) => {
                        let meta = Meta::of(probe.table).loading(row.is_loading());
                        Seen::Here(Mark { meta, slot: row.slot(), code: row.code() }, row.name())
                    }
                    Home::Unsure => Seen::Unsure,
                    Home::Absent => Seen::Absent,
                };
            }
        }
        let mut found = Seen::Absent;
        run_widest(Look(index.homes(), Probe { hash, position: 0, table }, &mut found));
        found
    }

    /// Rows that are not at home.
    fn away(index: &Index) -> usize {
        let all = (0..index.places()).filter_map(|place| index.nth(place));
        all.filter(|(at, _)| index.way(*at).distance() > 0).count()
    }

    /// What buckets count is what their rows say.
    fn check_passed(index: &Index) {
        let mut passed = vec![0; index.buckets()];
        for (at, _) in (0..index.places()).filter_map(|place| index.nth(place)) {
            for back in 1..=index.way(at).distance() {
                passed[(at.bucket as usize + index.buckets() - back) % index.buckets()] += 1;
            }
        }
        assert!(index.all().iter().map(Bucket::passed).eq(passed));
        let full = |bucket: &Bucket| bucket.vacant().is_none();
        assert!(index.all().iter().all(|bucket| bucket.passed() == 0 || full(bucket)));
    }

    proptest! {
        #[test]
        fn a_hash_says_the_key(table in 0..TABLES_MAX, key in any::<u64>()) {
            let table = TableId(table);
            prop_assert_eq!(key_of(table, hash(table, Key(key))), Key(key));
        }

        /// Which is to say that no two hashes share bucket and rest.
        #[test]
        fn bucket_and_rest_say_the_hash(
            buckets in
                prop_oneof![1_usize..10, 1_usize..5_000_000, (0_u32..23).prop_map(|x| 1 << x)],
            hash_bits in 0_u32..20,
            hash in any::<u64>(),
            near in 0_u64..4, // hashes that differ little share a bucket
            bijection in 0_u64..4,
            table in 0..TABLES_MAX,
            way in (0_usize..REACH, any::<u32>(), any::<u8>(), any::<bool>(), any::<bool>()),
        ) {
            let hash = hash.wrapping_add(near);
            let section = if hash_bits == 0 { 0 } else { hash & u64::MAX << (64 - hash_bits) };
            let shape = Shape::of(buckets, hash_bits, section, bijection);
            let seat = shape.seat(hash, TableId(table));
            prop_assert!(seat.home < buckets);
            prop_assert_eq!(seat.home, shape.home(hash));
            let (distance, slot, code, loading, on_ssd) = way;
            let distance = distance % buckets;
            let meta = Meta::of(TableId(table)).loading(loading).on_ssd(on_ssd);
            let mark = Mark { meta, slot: slot % (5 * buckets as u32).min(1 << 24), code };
            let mut way = shape.way(&seat, mark);
            way.id += distance as u64;
            prop_assert_eq!(way.distance(), distance);
            prop_assert_eq!(way.mark(&shape), mark);
            prop_assert_eq!(way.hash((seat.home + distance) % buckets, &shape), hash);
        }

        #[test]
        fn agrees_with_a_map_whatever_the_hashes(
            rows_max in 1_usize..600,
            ops in prop::collection::vec((0_u8..5, 0_u32..3, 0_u64..250), 0..2000),
            grows_at in 0_usize..2000,
            bijection in 0_u64..2,
            crowded in any::<bool>(),
        ) {
            let (hash_bits, section) = (3, 5);
            let mut index = Index::reserve(4 * rows_max, hash_bits, section, MEMORY).unwrap();
            index.build(buckets_for(rows_max), bijection, &[]);
            let mut map: BTreeMap<(u32, u64), Entry> = BTreeMap::new();
            for (i, (op, table, number)) in ops.into_iter().enumerate() {
                if i == grows_at {
                    index.resize(buckets_for(3 * rows_max));
                }
                // all of the section; crowded: at the start of its index, unless it is scrambled
                let low = if crowded { number << 40 } else { mix(number) >> hash_bits };
                let hash = section << (64 - hash_bits) | low;
                let (table, key) = (TableId(table), key_of(TableId(table), hash));
                let at = index.find(hash, table);
                let known = map.get(&(table.0, key.0)).copied();
                prop_assert_eq!(at.map(|at| index.entry(at)), known);
                let seat = index.shape.seat(hash, table);
                let at_home = at.filter(|at| at.bucket as usize == seat.home);
                match look(&mut index, hash, table) {
                    Seen::Here(row, name) => {
                        let Mark { meta, slot, code } = index.mark(at_home.unwrap());
                        prop_assert_eq!(row, Mark { meta: meta.on_ssd(false), slot, code });
                        prop_assert_eq!(index.name(at_home.unwrap()), name);
                    }
                    // only what is not at home, or has the id of another that is
                    Seen::Unsure => {
                        let ids = index.all()[seat.home].ids;
                        let same = ids.iter().filter(|id| **id == seat.id).count();
                        prop_assert!(at_home.is_none() || same > 1);
                    }
                    Seen::Absent => prop_assert_eq!(at, None),
                }
                let slot = |i: usize| i as u32 % index.places();
                match (op, at) {
                    (0..=1, None) if map.len() < rows_max => {
                        let row = mark(table, slot(i));
                        index.insert(hash, row);
                        let entry = index.entry(index.find(hash, table).unwrap());
                        let Entry { meta, slot, code, .. } = entry;
                        prop_assert_eq!(Mark { meta, slot, code }, row);
                        map.insert((table.0, key.0), entry);
                    }
                    (2, Some(at)) => {
                        index.remove(at);
                        map.remove(&(table.0, key.0));
                    }
                    (3, Some(at)) => {
                        let slot = slot(i + 5000);
                        index.set_slot(at, slot);
                        index.set_code(at, 77);
                        let meta = index.mark(at).meta.loading(i % 2 == 0).on_ssd(i % 3 == 0);
                        index.set_meta(at, meta);
                        let entry = Entry { key, meta, slot, code: 77 };
                        prop_assert_eq!(index.entry(at), entry);
                        map.insert((table.0, key.0), entry);
                    }
                    _ => {}
                }
            }
            let found: BTreeMap<(u32, u64), Entry> = (0..index.places())
                .filter_map(|place| index.nth(place))
                .map(|(at, _)| index.entry(at))
                .map(|row| ((row.meta.table().0, row.key.0), row))
                .collect();
            prop_assert_eq!(found, map);
            check_passed(&index);
        }

        /// What a flush rests on.
        #[test]
        fn a_walk_with_pauses_sees_every_row_that_stays(
            ops in prop::collection::vec((any::<bool>(), 0_u64..300), 0..1500),
            stay in 1_u64..100,
            slice in 1_u32..40,
            every in 1_usize..50,
            crowded in any::<bool>(),
        ) {
            let mut index = index(300);
            // crowded: in the last bucket, so that they go on in the first
            let hash = |i: u64| if crowded { 0xff << 56 | i << 40 } else { mix(i) };
            (0..300).for_each(|i| {
                index.insert(hash(i), mark(TABLE0, i as u32));
            });
            let (mut next, mut seen) = (0, std::collections::BTreeSet::new());
            let mut ops = ops.into_iter();
            while next < index.places() {
                let overtaken = index.overtaken();
                let end = (next + slice).min(index.places());
                let walked = (next..end).filter_map(|place| index.nth(place)).map(|row| row.0);
                seen.extend(walked.chain(overtaken).map(|at| index.hash_at(at)));
                next = end;
                index.walk_from(Some(next));
                for (enters, i) in ops.by_ref().take(every) {
                    let i = stay + i % (300 - stay);
                    match index.find(hash(i), TABLE0) {
                        Some(at) if !enters => index.remove(at),
                        None if enters => {
                            index.insert(hash(i), mark(TABLE0, i as u32));
                        }
                        _ => {}
                    }
                }
            }
            seen.extend(index.overtaken().into_iter().map(|at| index.hash_at(at)));
            for i in 0..stay {
                prop_assert!(seen.contains(&hash(i)), "row {i} was not seen");
            }
        }
    }

    #[test]
    fn rows_that_share_a_home_are_all_found_and_leave_no_trace() {
        // hundreds of rows with one home bucket
        let mut index = index(1000);
        let hashes: Vec<u64> = (0..300).map(|i| hash_at_home(&index, 7, i)).collect();
        for (slot, &hash) in (0..).zip(&hashes) {
            index.insert(hash, mark(TABLE0, slot));
        }
        for (slot, &hash) in (0..).zip(&hashes) {
            assert_eq!(index.mark(index.find(hash, TABLE0).unwrap()).slot, slot);
        }
        assert_eq!(index.all()[7].passed(), 295);
        for &hash in &hashes {
            index.remove(index.find(hash, TABLE0).unwrap());
        }
        assert!(index.all().iter().all(|bucket| bucket.passed() == 0));
    }

    #[test]
    fn rows_whose_ids_are_the_same_are_told_apart() {
        let mut index = Index::reserve(20, 0, 0, MEMORY).unwrap();
        index.resize(4); // a home is the upper two bits of a hash, an id the lower 44
        let hash_of = |i: u64| i << 44 | 7;
        let id = index.shape.seat(hash_of(0), TABLE0).id;
        let here = 3;
        for i in 0..here {
            assert_eq!(index.shape.seat(hash_of(i), TABLE0).id, id);
            index.insert(hash_of(i), mark(TABLE0, i as u32));
        }
        for i in 0..here {
            let at = index.find(hash_of(i), TABLE0).unwrap();
            assert_eq!((at.bucket, index.mark(at)), (0, mark(TABLE0, i as u32)));
        }
        assert_eq!(index.find(hash_of(here), TABLE0), None);
        let first = Seen::Here(mark(TABLE0, 0), name_of(0, id));
        assert_eq!(look(&mut index, hash_of(0), TABLE0), first);
        for i in 1..=here {
            assert_eq!(look(&mut index, hash_of(i), TABLE0), Seen::Unsure);
        }
    }

    #[test]
    fn a_row_that_would_lie_too_far_takes_the_place_of_one_nearer_to_its_home() {
        let mut index = index(3000);
        let built = index.builds();
        let of_last: Vec<u64> = (0..5).map(|i| hash_at_home(&index, REACH - 1, i)).collect();
        let of_first: Vec<u64> = (0..1273).map(|i| hash_at_home(&index, 0, i)).collect();
        let all = || of_last.iter().chain(&of_first);
        for (slot, &hash) in (0..).zip(all()) {
            index.insert(hash, mark(TABLE0, slot));
        }
        assert_eq!(index.builds(), built);
        for (slot, &hash) in (0..).zip(all()) {
            assert_eq!(index.mark(index.find(hash, TABLE0).unwrap()).slot, slot);
        }
        check_passed(&index);
        // with 1275 of one home all is full that they reach
        for i in 1273..1276 {
            index.insert(hash_at_home(&index, 0, i), mark(TABLE0, i as u32));
            if index.builds() > built {
                break;
            }
        }
        assert_eq!((index.builds(), index.shape.bijection), (built + 1, 1));
        check_passed(&index);
    }

    #[test]
    fn rows_that_crowd_under_the_first_bijections_all_find_a_place() {
        const BIJECTIONS: u64 = 4;
        for (rows, hash_bits) in [(1660, 0), (3000, 2)] {
            let mut index = Index::reserve(2 * rows, hash_bits, 0, MEMORY).unwrap();
            index.resize(buckets_for(rows));
            let shapes: Vec<Shape> = (0..BIJECTIONS)
                .map(|bijection| Shape::of(index.buckets(), hash_bits, 0, bijection))
                .collect();
            // so few homes that the last would lie beyond their reach
            let homes = rows / WAYS - REACH;
            let crowds = |hash: &u64| shapes.iter().all(|shape| shape.home(*hash) < homes);
            let hashes = (0_u64..).map(|i| mix(i) >> hash_bits).filter(crowds);
            let hashes: Vec<u64> = hashes.take(rows).collect();
            for (slot, &hash) in (0..).zip(&hashes) {
                index.insert(hash, mark(TABLE0, slot));
            }
            assert_eq!(index.shape.bijection, BIJECTIONS);
            for (slot, &hash) in (0..).zip(&hashes) {
                let at = index.find(hash, TABLE0).expect("a row is found");
                assert_eq!(index.mark(at).slot, slot);
                assert_eq!(index.entry(at).key, key_of(TABLE0, hash));
            }
            check_passed(&index);
            // they grow, come and go as any others
            index.resize(index.buckets() + 1);
            for &hash in &hashes {
                index.remove(index.find(hash, TABLE0).expect("a row is found"));
            }
            assert!(index.all().iter().all(|bucket| bucket.passed() == 0));
        }
    }

    #[test]
    fn where_every_bucket_is_in_reach_all_places_can_be_taken() {
        for buckets in [1, 2, 3, 254, 255] {
            let mut index = Index::reserve(buckets * WAYS, 0, 0, MEMORY).unwrap();
            index.resize(buckets);
            let built = index.builds();
            let hashes: Vec<u64> =
                (0..index.places()).map(|i| hash_at_home(&index, buckets - 1, i.into())).collect();
            for (slot, &hash) in (0..).zip(&hashes) {
                index.insert(hash, mark(TABLE0, slot));
            }
            for (slot, &hash) in (0..).zip(&hashes) {
                assert_eq!(index.mark(index.find(hash, TABLE0).unwrap()).slot, slot);
            }
            assert_eq!(index.find(hash_at_home(&index, buckets - 1, 1 << 20), TABLE0), None);
            assert_eq!(index.builds(), built);
        }
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
        (0..rows).for_each(|key| {
            index.insert(hash_of(key), mark(TABLE0, key as u32 % 1000));
        });
        let fresh = away(&index);
        for key in 0..10 * rows {
            index.remove(index.find(hash_of(key), TABLE0).unwrap());
            index.insert(hash_of(key + rows), mark(TABLE0, key as u32 % 1000));
        }
        let worn = away(&index);
        assert!(worn < fresh + fresh / 5, "{fresh} rows away from home at first, {worn} later");
    }

    #[test]
    fn a_full_index_of_adversarial_keys_finds_each_in_few_buckets() {
        for shift in [0, 20, 40] {
            let rows = 20_000;
            let mut index = index(rows);
            (0..rows as u64).for_each(|i| {
                index.insert(hash_of(i << shift), mark(TABLE0, i as u32));
            });
            let longest = index.passed_max();
            assert!(longest < 80, "{longest} rows pass one bucket of five");
            let away = away(&index);
            assert!(away < rows / 4, "{away} of {rows} rows are not at home");
        }
    }
}
