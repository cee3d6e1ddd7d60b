//! The table of a cache as its owner uses it: batches of keys found, inserted and cleared, and rows
//! moved by lists of addresses, in a stream of its own beside all other work. A call returns when
//! its work is done. What a key means and what is evicted for it, the kernels and the owner know.
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

/// Which key has which slot: sets of 32, in device memory.
#[derive(Debug)]
pub struct SlotTable {
    sets: u32,
    digests: Buffer, // [slots] u8, 0: vacant
    keys: Buffer,    // [slots] u64
    tables: Buffer,  // [slots] u32
    steps: Buffer,   // [slots] u32
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

    /// A table of so many sets, all slots vacant.
    pub fn new(memory: &mut Memory, mover: &Mover, sets: u32) -> Result<Self> {
        let slots = u64::from(sets) * u64::from(WAYS);
        if sets == 0 || slots >= u64::from(NONE) {
            let expected = u64::from(NONE);
            return Err(Error::Length { what: "a cache's slots", found: slots, expected });
        }
        let mut part = |bytes: u64| memory.buffer(slots * bytes);
        let table =
            Self { sets, digests: part(1)?, keys: part(8)?, tables: part(4)?, steps: part(4)? };
        table.digests.fill(&mover.stream, 0)?;
        mover.stream.finish()?;
        Ok(table)
    }

    /// Slots of the table.
    pub fn slots(&self) -> u32 {
        self.sets * WAYS
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

    /// The set that a key belongs to, as in `kernels/cache.cu`.
    fn set_of(&self, key: SlotKey) -> u32 {
        let hash = mix(mix(u64::from(key.table)) ^ key.number);
        (((hash >> 32) * u64::from(self.sets)) >> 32) as u32
    }
}

impl Mover {
    /// A mover of a device, with pinned lists of 3 MiB.
    pub fn new(device: &Device, kernels: Arc<Kernels>) -> Result<Self> {
        Ok(Self {
            stream: device.stream()?,
            keys: List::new(device, LAUNCH_ROWS)?,
            tables: List::new(device, LAUNCH_ROWS)?,
            slots: List::new(device, LAUNCH_ROWS)?,
            starts: List::new(device, LAUNCH_ROWS + 1)?,
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
    ) -> Result<Vec<Option<u32>>> {
        let mut found = Vec::with_capacity(keys.len());
        for keys in keys.chunks(LAUNCH_ROWS) {
            self.sound()?;
            let outcome = self.find_some(table, now, keys, &mut found);
            self.noted(outcome)?;
        }
        Ok(found)
    }

    fn find_some(
        &mut self,
        table: &SlotTable,
        now: u32,
        keys: &[SlotKey],
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
            Value::U32(table.sets),
            Value::U32(now),
            Value::U64(self.slots.address()),
        ];
        // SAFETY: the signature's values; the lists are as long as any launch's batch, the table's
        // parts as its sets ask for, and nobody else has either.
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
    ) -> Result<Vec<Inserted>> {
        let mut order: Vec<(u32, u32)> = // set, place among the keys
            keys.iter().zip(0..).map(|(&key, place)| (table.set_of(key), place)).collect();
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
        let starts = unsafe { self.starts.values() };
        let (mut groups, mut end) = (0, 0);
        starts[0] = 0;
        for group in order.chunk_by(|a, b| a.0 == b.0) {
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
            Value::U32(table.sets),
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

    /// Makes the row at `to[i]` what the row at `from[i]` is, for all i.
    ///
    /// # Safety
    /// All addresses lead to rows of so many floats that the device reaches; those at `to` are
    /// distinct and none of `from`, and until this returns nobody else reads or writes them, and
    /// nobody writes those at `from`.
    pub unsafe fn move_rows(&mut self, floats: u32, from: &[u64], to: &[u64]) -> Result<()> {
        if from.len() != to.len() {
            let (found, expected) = (to.len() as u64, from.len() as u64);
            return Err(Error::Length { what: "places of rows that move", found, expected });
        }
        for (from, to) in from.chunks(LAUNCH_ROWS).zip(to.chunks(LAUNCH_ROWS)) {
            self.sound()?;
            // SAFETY: no work of the mover is under way between its calls.
            unsafe {
                self.from.set(from);
                self.to.set(to);
            }
            let in_vectors = |address: &u64| address.is_multiple_of(16);
            let by_four = floats.is_multiple_of(4) && from.iter().chain(to).all(in_vectors);
            let kernel = if by_four { "move_rows_by_four" } else { "move_rows" };
            let parts = if by_four { floats / 4 } else { floats };
            let values = [
                Value::U64(self.from.address()),
                Value::U64(self.to.address()),
                Value::U32(floats),
                Value::U64(from.len() as u64),
            ];
            // SAFETY: the signature's values; for the rows the caller vouches.
            let outcome =
                unsafe { self.run(kernel, from.len() as u64 * u64::from(parts), &values) };
            self.noted(outcome)?;
        }
        Ok(())
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

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}
