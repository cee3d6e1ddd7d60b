//! What is on the device: a table of slots, of which each class has a part, and the rows in them.
//! Rows go up and down here, and nowhere else; who asks for it has seen to it that nobody uses
//! them. A launch serves all classes.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use gpu::kernels::WAYS;
use gpu::{
    Buffer, Device, Inserted, Kernels, Memory, Mover, PartKeys, RowMoves, SlotKey, SlotTable,
};
use table::{RowLayout, TableId};

use super::shares::Shares;
use crate::arena::{Arena, Layout, Row};
use crate::class::Class;
use crate::latency::Times;
use crate::store::Table;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::tally::add;

const FLOAT_BYTES: u64 = size_of::<f32>() as u64;
/// What the buffers of a class's share are rounded up by, at most.
const EXTRA_BYTES: u64 = 2 * 256;

/// All that is on the device.
pub(super) struct Cache {
    mover: Mover,
    moves: Arc<Times>, // of rows, each launch and its end
    memory: Memory,
    budget_bytes: u64,
    shares: Shares,
    slots: Option<SlotTable>, // of all parts; none where there is no part
    parts: Vec<Option<Part>>, // [classes], as the memory was divided last
    clock: u32,               // stages so far; the tables' steps
    live: BTreeMap<u32, u32>, // stages that are not over, and how many have the number
    /// How many live plans have a row's address in the arena: it must not go up meanwhile.
    pub(super) held: HashMap<(u32, Row), u32>,
}

/// One class on the device.
pub(super) struct Part {
    arena: Arc<Arena>,
    first_slot: u32, // of the part, in the table; a slot is counted from the table's first
    embeddings: Buffer, // [slots, dim] f32
    states: Option<Buffer>, // [slots, state] f32
    pub(super) changed: Arc<Changed>,
}

/// Which rows of a part changed on the device since they came up.
pub(super) struct Changed {
    first_slot: u32,
    bits: Box<[AtomicU64]>, // one for each slot
}

/// A slot and the row in it.
type Placed = (u32, SlotKey);

/// Rows of a class on their way between the device and the arena.
#[derive(Clone, Default)]
struct Moves {
    embeddings: [Vec<u64>; 2], // from, to
    states: [Vec<u64>; 2],
}

/// Bytes of device memory that a row takes with all bookkeeping.
pub(crate) fn device_bytes_per_row(layout: RowLayout) -> u64 {
    layout.bytes() as u64 + SlotTable::SLOT_BYTES
}

/// A row's name on the device: its number in the class's arena, where it keeps its place.
pub(super) fn key_of(table: TableId, row: Row) -> SlotKey {
    SlotKey { table: table.0, number: row.number() }
}

impl Cache {
    pub(super) fn take(
        device: &Device,
        kernels: &Arc<Kernels>,
        budget_bytes: u64,
        moves: Arc<Times>,
    ) -> gpu::Result<Self> {
        Ok(Self {
            mover: Mover::new(device, Arc::clone(kernels))?,
            moves,
            memory: Memory::take(device, budget_bytes)?,
            budget_bytes,
            shares: Shares::default(),
            slots: None,
            parts: Vec::new(),
            clock: 0,
            live: BTreeMap::new(),
            held: HashMap::new(),
        })
    }

    /// A number for a stage that begins: no row that it finds or brings up goes before it is over.
    pub(super) fn begin(&mut self) -> u32 {
        // a number that stands still holds what is staged all the same; it only tells no ages
        self.clock = self.clock.saturating_add(1).min(u32::MAX - 1);
        *self.live.entry(self.clock).or_default() += 1;
        self.clock
    }

    pub(super) fn end(&mut self, number: u32, held: &[(u32, Row)]) {
        let count = self.live.get_mut(&number).expect("a stage ends once");
        *count -= 1;
        if *count == 0 {
            self.live.remove(&number);
        }
        for row in held {
            let count = self.held.get_mut(row).expect("a held row is let go once");
            *count -= 1;
            if *count == 0 {
                self.held.remove(row);
            }
        }
    }

    /// Rows taken by this stage or a later one are staged.
    fn floor(&self) -> u32 {
        self.live.first_key_value().map_or(self.clock, |(&first, _)| first)
    }

    pub(super) fn part(&self, class: u32) -> Option<&Part> {
        self.parts.get(class as usize)?.as_ref()
    }

    /// Divides the memory anew where classes came since, or much is staged of others than before
    /// with the stage that begins; not while any stage has addresses in it.
    pub(super) fn divide(
        &mut self,
        classes: &[Arc<Class>],
        tables: &[Arc<Table>],
        staged_keys: &[usize], // [classes]
    ) -> gpu::Result<()> {
        let bytes = |(class, &keys): (&Arc<Class>, &usize)| {
            let Layout { dim, state, .. } = class.arena.layout();
            keys as u64 * ((dim + state) as u64 * FLOAT_BYTES + SlotTable::SLOT_BYTES)
        };
        let staged_bytes: Vec<u64> = classes.iter().zip(staged_keys).map(bytes).collect();
        self.shares.note(&staged_bytes);
        if !self.live.is_empty() {
            return Ok(());
        }
        let Some(shares) = self.shares.anew(self.budget_bytes) else { return Ok(()) };
        let shares = shares.to_vec();
        if let Some(slots) = &self.slots {
            let rows = slots.taken()?;
            self.down(tables, &rows)?;
            self.gone(tables, &rows)?;
        }
        self.parts.clear();
        self.slots = None;
        self.memory.clear().expect("the parts and their slots were all that had buffers");
        // the first class's share pays for what the table's own buffers are rounded up by
        let rounded = |c: usize| if c == 0 { SlotTable::EXTRA_BYTES } else { 0 };
        let sets = classes.iter().zip(&shares).enumerate().map(|(c, (class, share_bytes))| {
            sets_of(&class.arena, share_bytes.saturating_sub(rounded(c)))
        });
        let sets: Vec<u32> = sets.collect();
        if sets.iter().all(|&sets| sets == 0) {
            self.parts.resize_with(classes.len(), || None);
            return Ok(());
        }
        let slots = SlotTable::new(&mut self.memory, &self.mover, &sets)?;
        for (c, class) in classes.iter().enumerate() {
            let own = slots.slots_of(c);
            let part = (!own.is_empty()).then(|| Part::new(&mut self.memory, &class.arena, own));
            self.parts.push(part.transpose()?);
        }
        self.slots = Some(slots);
        Ok(())
    }

    /// Which of these rows are on the device, of classes that have a part of it. What is found
    /// counts as staged by `now`.
    pub(super) fn find(
        &mut self,
        now: u32,
        keys: &[SlotKey],
        classes: &[PartKeys],
    ) -> gpu::Result<Vec<Option<u32>>> {
        match &self.slots {
            Some(slots) => self.mover.find(slots, now, keys, classes),
            None => Ok(vec![None; keys.len()]),
        }
    }

    /// Brings rows up that are not, of classes that have a part of the device, as far as there is
    /// room beside what is staged; tells their slots. Who makes room goes down.
    pub(super) fn bring_up(
        &mut self,
        now: u32,
        tables: &[Arc<Table>],
        keys: &[SlotKey],
        classes: &[PartKeys],
    ) -> gpu::Result<Vec<Option<u32>>> {
        let floor = self.floor();
        let Some(slots) = &self.slots else { return Ok(vec![None; keys.len()]) };
        let inserted: Vec<Inserted> = self.mover.insert(slots, now, floor, keys, classes)?;
        let left = |inserted: &Inserted| inserted.slot.zip(inserted.evicted);
        let leaving: Vec<Placed> = inserted.iter().filter_map(left).collect();
        self.down(tables, &leaving)?;
        let come = |(inserted, key): (&Inserted, &SlotKey)| inserted.slot.map(|slot| (slot, *key));
        let coming: Vec<Placed> = inserted.iter().zip(keys).filter_map(come).collect();
        self.up(tables, &coming)?;
        left_the_device(tables, &leaving);
        for &(_, key) in &coming {
            let table = table_of(tables, key);
            table.class.arena.set_on_device(Row::new(key.number), true);
            add(&table.tally.rows_gpu, 1);
            add(&table.tally.promotions, 1);
        }
        Ok(inserted.iter().map(|inserted| inserted.slot).collect())
    }

    /// Copies what changed in these slots to the rows' places in the arena. The caller sees to it
    /// that no push is under way there.
    pub(super) fn down(&mut self, tables: &[Arc<Table>], rows: &[Placed]) -> gpu::Result<()> {
        self.move_rows(tables, rows, |part, table, slot, key| {
            if !part.changed.take(slot) {
                return None;
            }
            add(&table.tally.gpu_bytes_read, part.row_bytes());
            add(&table.tally.host_bytes_written, part.row_bytes());
            Some(part.places(slot, key))
        })
    }

    /// Copies rows from the arena into their slots.
    pub(super) fn up(&mut self, tables: &[Arc<Table>], rows: &[Placed]) -> gpu::Result<()> {
        self.move_rows(tables, rows, |part, table, slot, key| {
            part.changed.take(slot);
            add(&table.tally.gpu_bytes_written, part.row_bytes());
            add(&table.tally.host_bytes_read, part.row_bytes());
            let (here, there) = part.places(slot, key);
            Some((there, here))
        })
    }

    /// Forgets rows, which are down.
    pub(super) fn gone(&mut self, tables: &[Arc<Table>], rows: &[Placed]) -> gpu::Result<()> {
        let Some(slots) = &self.slots else { return Ok(()) };
        let taken: Vec<u32> = rows.iter().map(|row| row.0).collect();
        self.mover.clear(slots, &taken)?;
        left_the_device(tables, rows);
        Ok(())
    }

    /// Moves rows of any classes from the first of two places to the second, in one launch; those
    /// that have none stay.
    fn move_rows(
        &mut self,
        tables: &[Arc<Table>],
        rows: &[Placed],
        places: impl Fn(&Part, &Table, u32, SlotKey) -> Option<([u64; 2], [u64; 2])>,
    ) -> gpu::Result<()> {
        let mut by_class = vec![Moves::default(); self.parts.len()];
        for &(slot, key) in rows {
            let table = table_of(tables, key);
            let class = table.class.number as usize;
            let part = self.parts[class].as_ref().expect("a slot is of a part");
            if let Some((from, to)) = places(part, table, slot, key) {
                by_class[class].add(from, to);
            }
        }
        let mut all = Vec::new();
        for (part, moves) in self.parts.iter().zip(&by_class) {
            let Some(Layout { dim, state, .. }) = part.as_ref().map(|part| part.arena.layout())
            else {
                continue;
            };
            for (floats, [from, to]) in [(dim, &moves.embeddings), (state, &moves.states)] {
                if floats > 0 && !from.is_empty() {
                    all.push(RowMoves { floats: floats as u32, from, to });
                }
            }
        }
        if all.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        // SAFETY: the addresses are of slots of the parts' buffers and of rows of their arenas,
        // which were reached when their stage was resolved; one side is all device, the other all
        // host, so that none is read that is written; rows are distinct. No live plan has a row
        // that moves, or the caller holds its table's lock; and all moves are under one lock.
        unsafe { self.mover.move_rows(&all) }?;
        self.moves.note(begun);
        Ok(())
    }
}

/// How many sets of a class's rows a share has room for.
fn sets_of(arena: &Arena, share_bytes: u64) -> u32 {
    let Layout { dim, state, .. } = arena.layout();
    let row_bytes = (dim + state) as u64 * FLOAT_BYTES;
    let set_bytes = u64::from(WAYS) * (row_bytes + SlotTable::SLOT_BYTES);
    let sets = share_bytes.saturating_sub(EXTRA_BYTES) / set_bytes;
    sets.min(u64::from(u32::MAX / WAYS - 1)) as u32
}

impl Part {
    /// A class's rows in slots of its own.
    fn new(memory: &mut Memory, arena: &Arc<Arena>, slots: Range<u32>) -> gpu::Result<Self> {
        let Layout { dim, state, .. } = arena.layout();
        let (first_slot, count) = (slots.start, slots.len() as u64);
        let mut buffer = |floats: usize| memory.buffer(count * floats as u64 * FLOAT_BYTES);
        let embeddings = buffer(dim)?;
        let states = (state > 0).then(|| buffer(state)).transpose()?;
        let bits = (0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let changed = Arc::new(Changed { first_slot, bits });
        Ok(Self { arena: Arc::clone(arena), first_slot, embeddings, states, changed })
    }

    /// Where the row in a slot is.
    pub(super) fn embedding_address(&self, slot: u32) -> u64 {
        let bytes = self.arena.layout().dim as u64 * FLOAT_BYTES;
        self.embeddings.address() + u64::from(slot - self.first_slot) * bytes
    }

    /// And its state, 0 where the class has none.
    pub(super) fn state_address(&self, slot: u32) -> u64 {
        let bytes = self.arena.layout().state as u64 * FLOAT_BYTES;
        let at = u64::from(slot - self.first_slot) * bytes;
        self.states.as_ref().map_or(0, |states| states.address() + at)
    }

    /// A row's embedding and state on the device, and in the arena.
    fn places(&self, slot: u32, key: SlotKey) -> ([u64; 2], [u64; 2]) {
        let row = Row::new(key.number);
        let here = [self.embedding_address(slot), self.state_address(slot)];
        (here, [self.arena.embedding_address(row), self.arena.state_address(row)])
    }

    fn row_bytes(&self) -> u64 {
        let Layout { dim, state, .. } = self.arena.layout();
        (dim + state) as u64 * FLOAT_BYTES
    }
}

impl Changed {
    pub(super) fn set(&self, slot: u32) {
        let slot = slot - self.first_slot;
        self.bits[slot as usize / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
    }

    /// Whether the row changed; it has not from now on.
    fn take(&self, slot: u32) -> bool {
        let slot = slot - self.first_slot;
        let (word, bit) = (&self.bits[slot as usize / 64], 1 << (slot % 64));
        word.load(Ordering::Relaxed) & bit != 0
            && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
    }
}

impl Moves {
    fn add(&mut self, from: [u64; 2], to: [u64; 2]) {
        for (at, of_embeddings, of_states) in [(0, from[0], from[1]), (1, to[0], to[1])] {
            self.embeddings[at].push(of_embeddings);
            self.states[at].push(of_states);
        }
    }
}

/// Notes of rows that they are no longer on the device.
fn left_the_device(tables: &[Arc<Table>], rows: &[Placed]) {
    for &(_, key) in rows {
        let table = table_of(tables, key);
        table.class.arena.set_on_device(Row::new(key.number), false);
        table.tally.rows_gpu.fetch_sub(1, Ordering::Relaxed);
        add(&table.tally.demotions, 1);
    }
}

fn table_of(tables: &[Arc<Table>], key: SlotKey) -> &Table {
    &tables[key.table as usize]
}
