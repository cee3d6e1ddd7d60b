//! The bytes of a cache: its header, and a block for each batch. Every byte that is read is checked
//! here, and whatever the bytes are, no code here panics. It opens no file.

use std::ops::Range;

use table::Key;
use xxhash_rust::xxh3::Xxh3Default;

use super::CacheSize;
use crate::Batch;

pub(super) const MAGIC: [u8; 8] = *b"EPSCACHE";
pub(super) const VERSION: u32 = 2;
pub(super) const HEADER_BYTES: usize = 64;
/// The longest card that is read: a column's name takes some tens of bytes.
pub(super) const CARD_BYTES_MAX: u32 = 16 << 20;
/// The length and number of a block, its counts and its checksum.
pub(super) const BLOCK_HEADER_BYTES: usize = 40;
/// Where in a block its checksum stands; everything else is summed.
const BLOCK_SUM_AT: usize = 32;
/// Counts of one feature.
const FEATURE_BYTES: usize = 12;
/// Of a feature's kind: offsets are stored, for not every row has one value.
const JAGGED: u32 = 1;
/// Of a feature's kind: each value has a weight.
const WEIGHTED: u32 = 2;
/// Of a next use: it lies in the pass after this one.
const NEXT_PASS: u32 = 1 << 31;
/// Batches of a cache: a next use has 31 bits.
pub(super) const BATCHES_MAX: u64 = (NEXT_PASS - 1) as u64;

/// What is wrong with bytes: where, what is there, what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    /// Bytes from where the reading began.
    pub(super) at: u64,
    pub(super) found: String,
    pub(super) expected: String,
}

type Result<T> = std::result::Result<T, Fault>;

fn fault<T>(at: usize, found: impl Into<String>, expected: impl Into<String>) -> Result<T> {
    Err(Fault { at: at as u64, found: found.into(), expected: expected.into() })
}

/// The header: what the file holds, and how long its card is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) card_bytes: u32,
    pub(super) size: CacheSize,
}

impl Header {
    pub(super) fn encode(&self, card: &[u8]) -> [u8; HEADER_BYTES] {
        let Header { card_bytes, size } = *self;
        let CacheSize { rows, batches, distinct_keys, rows_skipped, file_bytes } = size;
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&card_bytes.to_le_bytes());
        let counts = [rows, batches, distinct_keys, file_bytes, rows_skipped];
        for (place, count) in bytes[16..56].chunks_exact_mut(8).zip(counts) {
            place.copy_from_slice(&count.to_le_bytes());
        }
        let sum = header_sum(&bytes, card);
        bytes[56..].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads a header; its checksum is looked at once the card is there, by [`check_header`].
    pub(super) fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header> {
        let mut from = Cursor { bytes, at: 0 };
        let magic = from.array::<8>()?;
        if magic != MAGIC {
            return fault(0, crate::error::shown(&magic), "\"EPSCACHE\": this is not a cache");
        }
        let version = from.u32()?;
        if version != VERSION {
            let expected = format!("version {VERSION}: write the cache anew with this program");
            return fault(8, format!("version {version}"), expected);
        }
        let card_bytes = from.u32()?;
        if card_bytes > CARD_BYTES_MAX {
            let expected = format!("at most {CARD_BYTES_MAX}");
            return fault(12, format!("a card of {card_bytes} bytes"), expected);
        }
        let (rows, batches, distinct_keys) = (from.u64()?, from.u64()?, from.u64()?);
        let (file_bytes, rows_skipped) = (from.u64()?, from.u64()?);
        if batches > BATCHES_MAX {
            return fault(24, format!("{batches} batches"), format!("at most {BATCHES_MAX}"));
        }
        let size = CacheSize { rows, batches, distinct_keys, rows_skipped, file_bytes };
        Ok(Header { card_bytes, size })
    }
}

pub(super) fn check_header(bytes: &[u8; HEADER_BYTES], card: &[u8]) -> Result<()> {
    let (found, stored) = (header_sum(bytes, card), Cursor { bytes, at: 56 }.u64()?);
    if found != stored {
        return fault(56, format!("checksum {stored:016x}"), format!("{found:016x}: corrupt"));
    }
    Ok(())
}

fn header_sum(bytes: &[u8; HEADER_BYTES], card: &[u8]) -> u64 {
    let mut sum = Xxh3Default::new();
    sum.update(&bytes[..56]);
    sum.update(card);
    sum.digest()
}

/// When a key is used next after a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextUse {
    /// So many batches later, in the same pass.
    ThisPass(u32),
    /// So many batches later, in the pass that follows.
    NextPass(u32),
}

impl NextUse {
    pub(super) fn encode(self) -> u32 {
        match self {
            NextUse::ThisPass(batches) => batches,
            NextUse::NextPass(batches) => batches | NEXT_PASS,
        }
    }

    pub(super) fn decode(bits: u32) -> NextUse {
        match bits & NEXT_PASS {
            0 => NextUse::ThisPass(bits),
            _ => NextUse::NextPass(bits ^ NEXT_PASS),
        }
    }
}

/// What every block of a cache has in common, and where in the cache a block stands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) features: usize,
    pub(super) dense_width: usize,
    pub(super) batch_rows: usize,
    /// Batches of the cache.
    pub(super) batches: u64,
}

/// Bytes of a block from its header.
pub(super) fn block_bytes(header: &[u8; BLOCK_HEADER_BYTES]) -> u64 {
    let mut length = [0; 8];
    length.copy_from_slice(&header[..8]);
    u64::from_le_bytes(length)
}

/// Appends the block of a batch whose distinct keys are known, its next uses as they stand.
pub(super) fn encode_block(number: u64, batch: &Batch, out: &mut Vec<u8>) {
    let start = out.len();
    let distinct = &batch.distinct;
    let narrow = distinct.counts.iter().all(|&count| count <= 1 << 16);
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(&number.to_le_bytes());
    out.extend_from_slice(&batch.first_row.to_le_bytes());
    out.extend_from_slice(&(batch.rows() as u32).to_le_bytes()); // at most 2^24; see `reader`
    out.extend_from_slice(&(if narrow { 2_u32 } else { 4 }).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    let singles: Vec<bool> = batch
        .features
        .iter()
        .map(|f| f.offsets.iter().enumerate().all(|(r, &o)| r == o as usize))
        .collect();
    for ((feature, count), single) in batch.features.iter().zip(&distinct.counts).zip(&singles) {
        let values = feature.values.len() as u32; // `unique` refuses more
        let jagged = if *single { 0 } else { JAGGED };
        let weighted = if feature.weights.is_empty() { 0 } else { WEIGHTED };
        for word in [*count, values, jagged | weighted] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }
    extend(out, &batch.labels, |x| x.to_le_bytes());
    extend(out, &batch.dense, |x| x.to_le_bytes());
    extend(out, &distinct.keys, |key| key.0.to_le_bytes());
    extend(out, &distinct.next_uses, |bits| bits.to_le_bytes());
    for ((feature, inverse), single) in batch.features.iter().zip(&distinct.inverse).zip(singles) {
        if !single {
            extend(out, &feature.offsets, |offset| offset.to_le_bytes());
        }
        if narrow {
            extend(out, inverse, |place| (place as u16).to_le_bytes());
        } else {
            extend(out, inverse, |place| place.to_le_bytes());
        }
        extend(out, &feature.weights, |weight| weight.to_le_bytes());
    }
    let length = (out.len() - start) as u64;
    out[start..start + 8].copy_from_slice(&length.to_le_bytes());
    seal(&mut out[start..]);
}

/// Writes the checksum of a block into it.
pub(super) fn seal(block: &mut [u8]) {
    let sum = block_sum(block);
    block[BLOCK_SUM_AT..BLOCK_HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
}

fn block_sum(block: &[u8]) -> u64 {
    let mut sum = Xxh3Default::new();
    sum.update(&block[..BLOCK_SUM_AT]);
    sum.update(&block[BLOCK_HEADER_BYTES..]);
    sum.digest()
}

fn extend<T: Copy, const N: usize>(out: &mut Vec<u8>, items: &[T], bytes: impl Fn(T) -> [u8; N]) {
    out.reserve(items.len() * N);
    out.extend(items.iter().flat_map(|&item| bytes(item)));
}

/// Reads the block of batch `number` into `batch`, next uses as they are stored.
pub(super) fn decode_block(
    block: &[u8],
    number: u64,
    shape: &Shape,
    batch: &mut Batch,
) -> Result<()> {
    let Some(stored) = block.get(BLOCK_SUM_AT..BLOCK_HEADER_BYTES) else {
        let expected = format!("a block of at least {BLOCK_HEADER_BYTES}");
        return fault(0, format!("{} bytes", block.len()), expected);
    };
    let (stored, found) = (u64_of(stored), block_sum(block));
    if stored != found {
        let expected = format!("{found:016x}: corrupt");
        return fault(BLOCK_SUM_AT, format!("checksum {stored:016x}"), expected);
    }
    decode_summed(block, number, shape, batch)
}

/// The same without a look at the checksum: sums can be right and counts wrong all the same.
fn decode_summed(block: &[u8], number: u64, shape: &Shape, batch: &mut Batch) -> Result<()> {
    let mut from = Cursor { bytes: block, at: 0 };
    let (length, found_number) = (from.u64()?, from.u64()?);
    if length != block.len() as u64 {
        return fault(0, format!("a block of {length} bytes"), format!("{}", block.len()));
    }
    if found_number != number {
        return fault(8, format!("batch {found_number}"), format!("batch {number}"));
    }
    batch.reset(shape.dense_width, shape.features);
    batch.first_row = from.u64()?;
    let (rows, place_bytes) = (from.u32()?, from.u32()?);
    if rows == 0 || rows as usize > shape.batch_rows {
        return fault(24, format!("{rows} rows"), format!("1 to {}", shape.batch_rows));
    }
    if place_bytes != 2 && place_bytes != 4 {
        return fault(28, format!("places of {place_bytes} bytes"), "2 or 4");
    }
    from.take(8)?; // the checksum
    let rows = rows as usize;
    let counts_at = from.at;
    let counts = from.take(shape.features * FEATURE_BYTES)?;
    let words = |feature: usize| {
        let place = &counts[feature * FEATURE_BYTES..][..FEATURE_BYTES];
        [u32_of(&place[..4]), u32_of(&place[4..8]), u32_of(&place[8..])]
    };
    // the sum of all parts before any is made: what is allocated is never more than the block
    let mut expected = (from.at + 4 * rows * (1 + shape.dense_width)) as u64;
    for feature in 0..shape.features {
        let [distinct, values, kind] = words(feature);
        let at = counts_at + feature * FEATURE_BYTES;
        if distinct > values || (values > 0 && distinct == 0) {
            let found = format!("{distinct} distinct keys of {values} values");
            return fault(at, found, "1 to as many as there are values");
        }
        let sound = kind & JAGGED != 0 || values as usize == rows;
        if kind > (JAGGED | WEIGHTED) || !sound || (kind & WEIGHTED != 0 && values == 0) {
            let found = format!("{values} values, kind {kind}");
            let expected = format!("{rows} values of kind 0 or 2, or kind 1 or 3; weights of some");
            return fault(at, found, expected);
        }
        expected += u64::from(distinct) * 12 + u64::from(values) * u64::from(place_bytes);
        expected += if kind & JAGGED != 0 { 4 * (rows as u64 + 1) } else { 0 };
        expected += if kind & WEIGHTED != 0 { 4 * u64::from(values) } else { 0 };
    }
    if expected != length {
        return fault(0, format!("a block of {length} bytes"), format!("{expected} by its counts"));
    }
    from.floats(rows, &mut batch.labels)?;
    if let Some(row) = batch.labels.iter().position(|label| !(0.0..=1.0).contains(label)) {
        return fault(from.at, format!("label {}", batch.labels[row]), "0 to 1");
    }
    from.floats(rows * shape.dense_width, &mut batch.dense)?;
    if let Some(place) = batch.dense.iter().position(|x| !x.is_finite()) {
        return fault(from.at, format!("a dense value {}", batch.dense[place]), "a finite one");
    }
    let distinct = &mut batch.distinct;
    distinct.counts.extend((0..shape.features).map(|feature| words(feature)[0]));
    let total: usize = distinct.counts.iter().map(|&count| count as usize).sum();
    let at = from.at;
    let (keys, _) = from.take(total * 8)?.as_chunks::<8>();
    distinct.keys.extend(keys.iter().map(|bytes| Key(u64::from_le_bytes(*bytes))));
    let mut start = 0;
    for &count in &distinct.counts {
        let run = &distinct.keys[start..start + count as usize];
        if !run.is_sorted_by(|a, b| a < b) {
            return fault(at + 8 * start, "keys out of order", "strictly ascending ones");
        }
        start += count as usize;
    }
    let at = from.at;
    let (bits, _) = from.take(total * 4)?.as_chunks::<4>();
    distinct.next_uses.extend(bits.iter().map(|bytes| u32::from_le_bytes(*bytes)));
    let left = shape.batches.saturating_sub(number); // of this pass, this batch included
    let sound = |&bits: &u32| match NextUse::decode(bits) {
        NextUse::ThisPass(later) => later > 0 && u64::from(later) < left,
        NextUse::NextPass(later) => later > 0 && u64::from(later) <= shape.batches,
    };
    if let Some(place) = distinct.next_uses.iter().position(|bits| !sound(bits)) {
        let found = format!("next use {:#010x}", distinct.next_uses[place]);
        return fault(at + 4 * place, found, "one within this pass or the next");
    }
    let mut start = 0;
    for feature in 0..shape.features {
        let [count, values, kind] = words(feature);
        let (count, values) = (count as usize, values as usize);
        let into = &mut batch.features[feature];
        into.offsets.clear();
        if kind & JAGGED != 0 {
            let at = from.at;
            let (offsets, _) = from.take(4 * (rows + 1))?.as_chunks::<4>();
            into.offsets.extend(offsets.iter().map(|bytes| u32::from_le_bytes(*bytes)));
            let (first, last) = (into.offsets[0], into.offsets[rows]);
            if first != 0 || last as usize != values || !into.offsets.is_sorted() {
                return fault(at, "offsets out of order", format!("0 up to {values}"));
            }
        } else {
            into.offsets.extend(0..=rows as u32);
        }
        let at = from.at;
        let inverse = &mut batch.distinct.inverse[feature];
        let places = from.take(values * place_bytes as usize)?;
        if place_bytes == 2 {
            let (places, _) = places.as_chunks::<2>();
            inverse.extend(places.iter().map(|bytes| u32::from(u16::from_le_bytes(*bytes))));
        } else {
            let (places, _) = places.as_chunks::<4>();
            inverse.extend(places.iter().map(|bytes| u32::from_le_bytes(*bytes)));
        }
        if inverse.iter().any(|&place| place as usize >= count) {
            return fault(at, "the place of a value beyond the keys", format!("below {count}"));
        }
        let keys = &batch.distinct.keys[start..start + count];
        into.values.extend(inverse.iter().map(|&place| keys[place as usize]));
        start += count;
        if kind & WEIGHTED != 0 {
            let at = from.at;
            from.floats(values, &mut into.weights)?;
            if let Some(place) = into.weights.iter().position(|weight| !weight.is_finite()) {
                let found = format!("a weight {}", into.weights[place]);
                return fault(at + 4 * place, found, "a finite one");
            }
        }
    }
    Ok(())
}

/// What is needed of a block to fill its next uses in.
pub(super) struct OpenUses {
    /// The distinct keys with their features, feature after feature.
    pub(super) keys: Vec<(usize, Key)>,
    /// Where the next uses of them stand in the block.
    pub(super) places: Range<usize>,
}

/// The keys of a block that this program has just written; its checksum is not looked at.
pub(super) fn open_uses(block: &[u8], shape: &Shape) -> Result<OpenUses> {
    let mut from = Cursor { bytes: block, at: 24 };
    let rows = from.u32()? as usize;
    from.at = BLOCK_HEADER_BYTES;
    let mut counts = Vec::with_capacity(shape.features);
    for _ in 0..shape.features {
        counts.push(from.u32()? as usize);
        from.take(8)?;
    }
    from.take(4 * rows * (1 + shape.dense_width))?;
    let total: usize = counts.iter().sum();
    let (words, _) = from.take(8 * total)?.as_chunks::<8>();
    let features = counts.iter().enumerate().flat_map(|(f, &n)| std::iter::repeat_n(f, n));
    let keys = features.zip(words.iter().map(|bytes| Key(u64::from_le_bytes(*bytes)))).collect();
    let start = from.at;
    from.take(4 * total)?;
    Ok(OpenUses { keys, places: start..from.at })
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let left = self.bytes.get(self.at..).unwrap_or_default();
        let Some(taken) = left.get(..bytes) else {
            return fault(self.at, format!("{} bytes", left.len()), format!("{bytes}: truncated"));
        };
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn floats(&mut self, count: usize, out: &mut Vec<f32>) -> Result<()> {
        let (words, _) = self.take(4 * count)?.as_chunks::<4>();
        out.extend(words.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        Ok(())
    }
}

/// `bytes` are 4.
fn u32_of(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte))
}

/// `bytes` are 8.
fn u64_of(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Jagged, Unique, unique};

    const SHAPE: Shape = Shape { features: 3, dense_width: 2, batch_rows: 64, batches: 9 };

    /// A batch of any shape that a source can have, its distinct keys known.
    fn batches() -> impl Strategy<Value = Batch> {
        let key = prop_oneof![0..5_u64, any::<u64>()];
        let values = prop::collection::vec(key, 0..3);
        let features = prop::collection::vec(values, 3);
        let row = (0.0_f32..=1.0, prop::array::uniform2(-9.0_f32..9.0), features, any::<bool>());
        prop::collection::vec(row, 1..40).prop_map(|rows| {
            let mut batch = Batch::new();
            batch.reset(2, 3);
            batch.first_row = 7;
            for (label, dense, features, _) in rows {
                batch.labels.push(label);
                batch.dense.extend(dense);
                for (f, values) in features.into_iter().enumerate() {
                    let into: &mut Jagged = &mut batch.features[f];
                    // the first feature has one value in each row, as Criteo's have
                    let values =
                        if f == 0 { vec![values.first().map_or(1, |k| *k)] } else { values };
                    if f == 2 {
                        into.weights.extend(values.iter().map(|key| 0.5 * (key % 7) as f32 - 1.0));
                    }
                    into.values.extend(values.into_iter().map(Key));
                    into.end_row();
                }
            }
            let mut found = Unique::default();
            unique(&batch, &[0, 1, 2].map(table::TableId), &mut found).unwrap();
            super::super::write::keep_distinct(&found, &mut batch);
            let next = |place: usize| match place % 2 {
                0 => NextUse::ThisPass(1 + place as u32 % 3),
                _ => NextUse::NextPass(1 + place as u32 % 9),
            };
            let next_uses = &mut batch.distinct.next_uses;
            next_uses.iter_mut().enumerate().for_each(|(i, bits)| *bits = next(i).encode());
            batch
        })
    }

    proptest! {
        #[test]
        fn a_block_comes_back(batch in batches(), number in 0_u64..5) {
            let mut block = vec![];
            encode_block(number, &batch, &mut block);
            let length = block_bytes(block[..BLOCK_HEADER_BYTES].try_into().unwrap());
            prop_assert_eq!(length, block.len() as u64);
            let mut back = Batch::new();
            decode_block(&block, number, &SHAPE, &mut back).unwrap();
            prop_assert_eq!(&back, &batch);
            let OpenUses { keys, places } = open_uses(&block, &SHAPE).unwrap();
            prop_assert!(keys.iter().map(|(_, key)| key).eq(&batch.distinct.keys));
            prop_assert_eq!(places.len(), 4 * keys.len());
            prop_assert!(decode_block(&block, number + 1, &SHAPE, &mut back).is_err());
        }

        #[test]
        fn a_flipped_bit_is_told(batch in batches(), at: prop::sample::Index, bit in 0_u32..8) {
            let mut block = vec![];
            encode_block(3, &batch, &mut block);
            let at = at.index(block.len());
            block[at] ^= 1 << bit;
            prop_assert!(decode_block(&block, 3, &SHAPE, &mut Batch::new()).is_err());
        }

        /// Whoever can write a checksum can write anything else: still nothing panics, and what is
        /// accepted is a batch by all its rules.
        #[test]
        fn bytes_with_a_right_checksum_are_refused_or_a_sound_batch(
            batch in batches(),
            at: prop::sample::Index,
            word: u32,
            cut in prop::option::of(any::<prop::sample::Index>()))
        {
            let mut block = vec![];
            encode_block(3, &batch, &mut block);
            let at = at.index(block.len() - 3);
            block[at..at + 4].copy_from_slice(&word.to_le_bytes());
            if let Some(cut) = cut {
                block.truncate(cut.index(block.len()));
            }
            let mut back = Batch::new();
            if decode_summed(&block, 3, &SHAPE, &mut back).is_ok() {
                let mut out = Unique::default();
                unique(&back, &[4, 2, 3].map(table::TableId), &mut out).unwrap();
                let mut slow = Unique::default();
                back.distinct.clear(3);
                unique(&back, &[4, 2, 3].map(table::TableId), &mut slow).unwrap();
                // keys that no value has may stand among the distinct ones, but never fewer
                prop_assert!(out.keys.len() >= slow.keys.len());
            }
        }

        #[test]
        fn any_bytes_are_refused_or_read_and_never_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..400))
        {
            let mut batch = Batch::new();
            let _ = decode_block(&bytes, 0, &SHAPE, &mut batch);
            let _ = decode_summed(&bytes, 0, &SHAPE, &mut batch);
            let _ = open_uses(&bytes, &SHAPE);
            if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
                let _ = Header::decode(header);
                let _ = check_header(header, &bytes);
            }
        }

        #[test]
        fn a_header_comes_back(n in prop::array::uniform4(any::<u64>()), batches in 0..BATCHES_MAX,
            card in prop::collection::vec(any::<u8>(), 0..50), flip in 0..HEADER_BYTES * 8)
        {
            let size = CacheSize {
                rows: n[0], batches, distinct_keys: n[1], rows_skipped: n[2], file_bytes: n[3],
            };
            let header = Header { card_bytes: card.len() as u32, size };
            let mut bytes = header.encode(&card);
            check_header(&bytes, &card).unwrap();
            prop_assert_eq!(Header::decode(&bytes), Ok(header));
            bytes[flip / 8] ^= 1 << (flip % 8);
            prop_assert!(Header::decode(&bytes).and_then(|_| check_header(&bytes, &card)).is_err());
        }
    }
}
