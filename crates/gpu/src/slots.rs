//! The table of a cache as its owner uses it: batches of keys found, inserted and cleared, and rows
//! moved by lists of addresses, in a stream of its own beside all other work. Its sets are divided
//! into parts, one for each length of rows, and a launch serves keys and rows of all parts. A call
//! returns when its work is done. What a key means and what is evicted for it, the kernels and the
//! owner know.
#![allow(unsafe_code)]

use std::sync::Arc;

use table::mix;

use crate::device::{Device, Stream};
use crate::kernels::{WARP, WAYS};
use crate::list::List;
use crate::memory::{Buffer, Memory};
use crate::module::Value;
use crate::{Error, Kernels, Result};

/// Keys or rows of one launch, at most; longer batches take several.
const LAUNCH_ROWS: usize = 64 << 10;
/// Parts of a table, and lengths of rows of one launch, at most.
const PARTS_MAX: usize = 1 << 10;
/// No slot, and no table.
const NONE: u32 = u32::MAX;

/// What a row is called in a cache: a number within a table. No table has the number `u32::MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotKey {
    /// The table.
    pub table: u32,
    /// The number.
    pub number: u64,
}

/// What an insertion brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// The key's slot; none where all of its set are staged.
    pub slot: Option<u32>,
    /// Who had the slot before.
    pub evicted: Option<SlotKey>,
}

/// Keys that belong to one part of a table, among others of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartKeys {
    /// The part, which has slots.
    pub part: usize,
    /// Where its keys end; they begin where those of the part before end.
    pub end: usize,
}

/// Rows of one length that move.
#[derive(Debug, Clone, Copy)]
pub struct RowMoves<'a> {
    /// Floats of each.
    pub floats: u32,
    /// Where they are.
    pub from: &'a [u64],
    /// Where they go.
    pub to: &'a [u64],
}

/// Which key has which slot: sets of 32, in device memory, those of each part side by side.
#[derive(Debug)]
pub struct SlotTable {
    parts: Vec<Sets>,
    sets: u32,       // of all parts
    digests: Buffer, // [slots] u8, 0: vacant
    keys: Buffer,    // [slots] u64
    tables: Buffer,  // [slots] u32
    steps: Buffer,   // [slots] u32
}

/// The sets of a part.
#[derive(Debug, Clone, Copy)]
struct Sets {
    first: u32,
    count: u32,
}

/// As the kernel has it: keys from a place on, and their part's sets.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Span {
    begin: u32,
    set: u32,
    sets: u32,
}

/// As the kernel has it: rows of one length.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Moves {
    begin: u64, // part of a row, of all that move
    row: u32,
    parts: u32, // of a row
    by_four: u32,
    unused: u32,
}

/// What finds, inserts and moves: a stream, and the lists that its kernels read and write.
#[derive(Debug)]
pub struct Mover {
    kernels: Arc<Kernels>,
    stream: Stream,
    keys: List<u64>,
    tables: List<u32>,
    slots: List<u32>,
    starts: List<u32>,
    sets: List<u32>,
    spans: List<Span>,
    moves: List<Moves>,
    evicted_keys: List<u64>,
    evicted_tables: List<u32>,
    from: List<u64>,
    to: List<u64>,
    failed: Option<Error>, // after it the lists may still be in use
}

impl SlotTable {
    /// Bytes of device memory that the table takes for each slot.
    pub const SLOT_BYTES: u64 = 1 + 8 + 4 + 4;
    /// Bytes that it takes beside, at most: its parts begin at multiples.
    pub const EXTRA_BYTES: u64 = 4 * 256;

    /// A table of so many sets of each part, all slots vacant. A part may have none.
    pub fn new(memory: &mut Memory, mover: &Mover, sets: &[u32]) -> Result<Self> {
        let all: u64 = sets.iter().map(|&sets| u64::from(sets)).sum();
        let slots = all * u64::from(WAYS);
        if all == 0 || slots >= u64::from(NONE) {
            let expected = u64::from(NONE);
            return Err(Error::Length { what: "a cache's slots", found: slots, expected });
        }
        if sets.len() > PARTS_MAX {
            let (found, expected) = (sets.len() as u64, PARTS_MAX as u64);
            return Err(Error::Length { what: "parts of a cache", found, expected });
        }
        let mut first = 0;
        let parts = sets.iter().map(|&count| {
            first += count;
            Sets { first: first - count, count }
        });
        let parts = parts.collect();
        let mut kind = |bytes: u64| memory.buffer(slots * bytes);
        let (digests, keys, tables, steps) = (kind(1)?, kind(8)?, kind(4)?, kind(4)?);
        let table = Self { parts, sets: all as u32, digests, keys, tables, steps };
        table.digests.fill(&mover.stream, 0)?;
        mover.stream.finish()?;
        Ok(table)
    }

    /// Slots of the table.
    pub fn slots(&self) -> u32 {
        self.sets * WAYS
    }

    /// Slots of a part.
    pub fn slots_of(&self, part: usize) -> std::ops::Range<u32> {
        let Sets { first, count } = self.parts[part];
        first * WAYS..(first + count) * WAYS
    }

    /// Every slot that is taken, and by whom. Waits for all work before.
    pub fn taken(&self) -> Result<Vec<(u32, SlotKey)>> {
        let slots = self.slots() as usize;
        let (mut digests, mut numbers, mut tables) =
            (vec![0_u8; slots], vec![0_u64; slots], vec![0_u32; slots]);
        self.digests.read(0, &mut digests)?;
        self.keys.read(0, &mut numbers)?;
        self.tables.read(0, &mut tables)?;
        let taken = (0..self.slots()).filter(|&slot| digests[slot as usize] != 0);
        let key = |slot: usize| SlotKey { table: tables[slot], number: numbers[slot] };
        Ok(taken.map(|slot| (slot, key(slot as usize))).collect())
    }

    /// The set that a key of a part belongs to, as in `kernels/cache.cu`.
    fn set_of(&self, part: usize, key: SlotKey) -> u32 {
        let Sets { first, count } = self.parts[part];
        let hash = mix(mix(u64::from(key.table)) ^ key.number);
        first + (((hash >> 32) * u64::from(count)) >> 32) as u32
    }

    /// Checks that each part that keys belong to has slots, and that the keys end where they do.
    fn check(&self, keys: &[SlotKey], parts: &[PartKeys]) -> Result<()> {
        let mut begin = 0;
        for &PartKeys { part, end } in parts {
            if end < begin || self.parts.get(part).is_none_or(|sets| sets.count == 0) {
                let (found, expected) = (end as u64, begin as u64);
                return Err(Error::Length { what: "keys of a part with slots", found, expected });
            }
            begin = end;
        }
        if begin != keys.len() || parts.len() > PARTS_MAX {
            let (found, expected) = (begin as u64, keys.len() as u64);
            return Err(Error::Length { what: "keys of parts", found, expected });
        }
        Ok(())
    }
}

impl Mover {
    /// A mover of a device, with pinned lists of 3.3 MiB.
    pub fn new(device: &Device, kernels: Arc<Kernels>) -> Result<Self> {
        Ok(Self {
            stream: device.stream()?,
            keys: List::new(device, LAUNCH_ROWS)?,
            tables: List::new(device, LAUNCH_ROWS)?,
            slots: List::new(device, LAUNCH_ROWS)?,
            starts: List::new(device, LAUNCH_ROWS + 1)?,
            sets: List::new(device, LAUNCH_ROWS)?,
            spans: List::new(device, PARTS_MAX)?,
            moves: List::new(device, PARTS_MAX)?,
            evicted_keys: List::new(device, LAUNCH_ROWS)?,
            evicted_tables: List::new(device, LAUNCH_ROWS)?,
            from: List::new(device, LAUNCH_ROWS)?,
            to: List::new(device, LAUNCH_ROWS)?,
            kernels,
            failed: None,
        })
    }

    /// Where each key is; what is found counts as taken by step `now`, unless that is 0: a look
    /// that is no use.
    pub fn find(
        &mut self,
        table: &SlotTable,
        now: u32,
        keys: &[SlotKey],
        parts: &[PartKeys],
    ) -> Result<Vec<Option<u32>>> {
        table.check(keys, parts)?;
        let mut found = Vec::with_capacity(keys.len());
        for (chunk, some) in keys.chunks(LAUNCH_ROWS).enumerate() {
            self.sound()?;
            let first = chunk * LAUNCH_ROWS;
            let spans = self.write_spans(table, first..first + some.len(), parts);
            let outcome = self.find_some(table, now, some, spans, &mut found);
            self.noted(outcome)?;
        }
        Ok(found)
    }

    /// Tells the kernel which part the keys of a launch belong to, and how many parts these are.
    fn write_spans(
        &mut self,
        table: &SlotTable,
        keys: std::ops::Range<usize>,
        parts: &[PartKeys],
    ) -> u32 {
        // SAFETY: no work of the mover is under way between its calls.
        let spans = unsafe { self.spans.values() };
        let (mut begin, mut written) = (0, 0);
        for &PartKeys { part, end } in parts {
            let own = begin.max(keys.start)..end.min(keys.end);
            begin = end;
            if own.is_empty() {
                continue;
            }
            let Sets { first, count } = table.parts[part];
            let begin = (own.start - keys.start) as u32;
            spans[written] = Span { begin, set: first, sets: count };
            written += 1;
        }
        written as u32
    }

    fn find_some(
        &mut self,
        table: &SlotTable,
        now: u32,
        keys: &[SlotKey],
        spans: u32,
        found: &mut Vec<Option<u32>>,
    ) -> Result<()> {
        self.write_keys(keys.iter().copied());
        let values = [
            Value::U64(self.keys.address()),
            Value::U64(self.tables.address()),
            Value::U64(keys.len() as u64),
            Value::U64(table.digests.address()),
            Value::U64(table.keys.address()),
            Value::U64(table.tables.address()),
            Value::U64(table.steps.address()),
            Value::U64(self.spans.address()),
            Value::U32(spans),
            Value::U32(now),
            Value::U64(self.slots.address()),
        ];
        // SAFETY: the signature's values; the lists are as long as any launch's batch, the table's
        // buffers as its sets ask for, all spans lie within them, and nobody else has either.
        unsafe { self.run("find_slots", keys.len() as u64 * u64::from(WARP), &values) }?;
        // SAFETY: the work is done.
        let slots = unsafe { self.slots.values() };
        found.extend(slots[..keys.len()].iter().map(|&slot| some(slot)));
        Ok(())
    }

    /// A slot for each key, none of which has one: a vacant one of its set, else that of the row
    /// that was taken longest ago, but before step `floor`. Keys are distinct.
    pub fn insert(
        &mut self,
        table: &SlotTable,
        now: u32,
        floor: u32,
        keys: &[SlotKey],
        parts: &[PartKeys],
    ) -> Result<Vec<Inserted>> {
        table.check(keys, parts)?;
        let mut order: Vec<(u32, u32)> = Vec::with_capacity(keys.len()); // set, place of the key
        for &PartKeys { part, end } in parts {
            let begin = order.len();
            let own = keys[begin..end].iter().zip(begin as u32..);
            order.extend(own.map(|(&key, place)| (table.set_of(part, key), place)));
        }
        order.sort_unstable();
        let mut inserted = vec![Inserted { slot: None, evicted: None }; keys.len()];
        for order in order.chunks(LAUNCH_ROWS) {
            self.sound()?;
            let outcome = self.insert_some(table, now, floor, keys, order, &mut inserted);
            self.noted(outcome)?;
        }
        Ok(inserted)
    }

    fn insert_some(
        &mut self,
        table: &SlotTable,
        now: u32,
        floor: u32,
        keys: &[SlotKey],
        order: &[(u32, u32)],
        inserted: &mut [Inserted],
    ) -> Result<()> {
        self.write_keys(order.iter().map(|&(_, place)| keys[place as usize]));
        // SAFETY: no work of the mover is under way between its calls.
        let (starts, sets) = unsafe { (self.starts.values(), self.sets.values()) };
        let (mut groups, mut end) = (0, 0);
        starts[0] = 0;
        for group in order.chunk_by(|a, b| a.0 == b.0) {
            sets[groups] = group[0].0;
            groups += 1;
            end += group.len() as u32;
            starts[groups] = end;
        }
        let values = [
            Value::U64(self.starts.address()),
            Value::U64(groups as u64),
            Value::U64(self.keys.address()),
            Value::U64(self.tables.address()),
            Value::U64(table.digests.address()),
            Value::U64(table.keys.address()),
            Value::U64(table.tables.address()),
            Value::U64(table.steps.address()),
            Value::U64(self.sets.address()),
            Value::U32(now),
            Value::U32(floor),
            Value::U64(self.slots.address()),
            Value::U64(self.evicted_keys.address()),
            Value::U64(self.evicted_tables.address()),
        ];
        // SAFETY: as in `find_some`; the keys of a set are one group.
        unsafe { self.run("insert_slots", groups as u64 * u64::from(WARP), &values) }?;
        // SAFETY: the work is done.
        let (slots, numbers, tables) = unsafe {
            (self.slots.values(), self.evicted_keys.values(), self.evicted_tables.values())
        };
        for (at, &(_, place)) in order.iter().enumerate() {
            let gone = SlotKey { table: tables[at], number: numbers[at] };
            inserted[place as usize] =
                Inserted { slot: some(slots[at]), evicted: (gone.table != NONE).then_some(gone) };
        }
        Ok(())
    }

    /// Makes slots vacant.
    pub fn clear(&mut self, table: &SlotTable, slots: &[u32]) -> Result<()> {
        for some in slots.chunks(LAUNCH_ROWS) {
            self.sound()?;
            if let Some(row) = some.iter().position(|&slot| slot >= table.slots()) {
                let (offset, bytes) = (u64::from(some[row]), u64::from(table.slots()));
                return Err(Error::RowOutside { row, offset, bytes });
            }
            // SAFETY: no work of the mover is under way between its calls.
            unsafe { self.slots.set(some) };
            let values = [
                Value::U64(self.slots.address()),
                Value::U64(some.len() as u64),
                Value::U64(table.digests.address()),
            ];
            // SAFETY: as in `find_some`; the slots are the table's (checked).
            let outcome = unsafe { self.run("clear_slots", some.len() as u64, &values) };
            self.noted(outcome)?;
        }
        Ok(())
    }

    /// Makes the row at `to[i]` what the row at `from[i]` is, for all i of all lengths.
    ///
    /// # Safety
    /// All addresses lead to rows of so many floats that the device reaches; those at `to` are
    /// distinct and none of `from`, and until this returns nobody else reads or writes them, and
    /// nobody writes those at `from`.
    pub unsafe fn move_rows(&mut self, all: &[RowMoves<'_>]) -> Result<()> {
        for &RowMoves { floats, from, to } in all {
            if from.len() != to.len() || floats as usize * LAUNCH_ROWS > u32::MAX as usize {
                let (found, expected) = (to.len() as u64, from.len() as u64);
                return Err(Error::Length { what: "places of rows that move", found, expected });
            }
        }
        self.sound()?;
        let mut launch = Launch::default();
        for &RowMoves { floats, from, to } in all.iter().filter(|moves| moves.floats > 0) {
            let (mut from, mut to) = (from, to);
            while !from.is_empty() {
                if launch.rows == LAUNCH_ROWS || launch.lengths == PARTS_MAX {
                    // SAFETY: the caller's promises are passed on.
                    unsafe { self.launch_moves(&mut launch) }?;
                }
                let some = from.len().min(LAUNCH_ROWS - launch.rows);
                self.add_moves(&mut launch, floats, &from[..some], &to[..some]);
                (from, to) = (&from[some..], &to[some..]);
            }
        }
        // SAFETY: as above.
        unsafe { self.launch_moves(&mut launch) }
    }

    /// Puts rows of one length behind those that a launch has.
    fn add_moves(&mut self, launch: &mut Launch, floats: u32, from: &[u64], to: &[u64]) {
        let in_vectors = |address: &u64| address.is_multiple_of(16);
        let by_four = floats.is_multiple_of(4) && from.iter().chain(to).all(in_vectors);
        let parts = if by_four { floats / 4 } else { floats };
        let (row, end) = (launch.rows, launch.rows + from.len());
        // SAFETY: no work of the mover is under way between its launches.
        unsafe {
            self.from.values()[row..end].copy_from_slice(from);
            self.to.values()[row..end].copy_from_slice(to);
            let (row, by_four) = (row as u32, u32::from(by_four));
            self.moves.values()[launch.lengths] =
                Moves { begin: launch.parts, row, parts, by_four, unused: 0 };
        }
        launch.parts += from.len() as u64 * u64::from(parts);
        (launch.rows, launch.lengths) = (end, launch.lengths + 1);
    }

    /// Has what a launch has move, and begins the next.
    ///
    /// # Safety
    /// As for [`Self::move_rows`].
    unsafe fn launch_moves(&mut self, launch: &mut Launch) -> Result<()> {
        let Launch { lengths, parts, .. } = std::mem::take(launch);
        if lengths == 0 {
            return Ok(());
        }
        let values = [
            Value::U64(self.from.address()),
            Value::U64(self.to.address()),
            Value::U64(self.moves.address()),
            Value::U32(lengths as u32),
            Value::U64(parts),
        ];
        // SAFETY: the signature's values; for the rows the caller vouches.
        let outcome = unsafe { self.run("move_rows", parts, &values) };
        self.noted(outcome)
    }

    fn write_keys(&mut self, keys: impl Iterator<Item = SlotKey>) {
        // SAFETY: no work of the mover is under way between its calls.
        let (numbers, tables) = unsafe { (self.keys.values(), self.tables.values()) };
        for (at, key) in keys.enumerate() {
            (numbers[at], tables[at]) = (key.number, key.table);
        }
    }

    /// Launches and waits.
    ///
    /// # Safety
    /// As for [`crate::Module::launch`].
    unsafe fn run(&self, kernel: &str, elements: u64, values: &[Value]) -> Result<()> {
        let module = self.kernels.module_of(kernel)?;
        // SAFETY: the caller's promises are passed on.
        unsafe { module.launch(&self.stream, kernel, self.kernels.threads(elements), values) }?;
        self.stream.finish()
    }

    fn sound(&self) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)
    }

    fn noted(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
        }
        outcome
    }
}

/// What is to move in one launch.
#[derive(Default)]
struct Launch {
    lengths: usize,
    rows: usize,
    parts: u64,
}

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}
