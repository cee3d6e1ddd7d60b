//! What is on the device: of each class a table of slots, and the rows in them. Rows go up and down
//! here, and nowhere else; who asks for it has seen to it that nobody uses them.
#![allow(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use gpu::kernels::WAYS;
use gpu::{Buffer, Device, Inserted, Kernels, Memory, Mover, SlotKey, SlotTable};
use table::{RowLayout, TableId};

use crate::arena::{Arena, Layout, Row};
use crate::class::Class;
use crate::store::Table;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::tally::add;

use super::shares::Shares;

const FLOAT_BYTES: u64 = size_of::<f32>() as u64;
/// What the parts of a class's share are rounded up by, at most.
const EXTRA_BYTES: u64 = SlotTable::EXTRA_BYTES + 2 * 256;

/// All that is on the device.
pub(super) struct Cache {
    pub(super) mover: Mover,
    memory: Memory,
    budget_bytes: u64,
    shares: Shares,
    parts: Vec<Option<Part>>, // [classes], as the memory was divided last
    clock: u32,               // stages so far; the tables' steps
    live: BTreeMap<u32, u32>, // stages that are not over, and how many have the number
    /// How many live plans have a row's address in the arena: it must not go up meanwhile.
    pub(super) held: HashMap<(u32, Row), u32>,
}

/// One class on the device.
pub(super) struct Part {
    pub(super) arena: Arc<Arena>,
    table: SlotTable,
    embeddings: Buffer,     // [slots, dim] f32
    states: Option<Buffer>, // [slots, state] f32
    pub(super) changed: Arc<Changed>,
}

/// Which rows changed on the device since they came up: a bit for each slot.
pub(super) struct Changed(Box<[AtomicU64]>);

/// Rows on their way between the device and the arena.
#[derive(Default)]
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
    ) -> gpu::Result<Self> {
        Ok(Self {
            mover: Mover::new(device, Arc::clone(kernels))?,
            memory: Memory::take(device, budget_bytes)?,
            budget_bytes,
            shares: Shares::default(),
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

    pub(super) fn part(&mut self, class: u32) -> Option<(&mut Mover, &Part)> {
        let Self { mover, parts, .. } = self;
        Some((mover, parts.get(class as usize)?.as_ref()?))
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
        for part in self.parts.iter().flatten() {
            let rows = part.table.taken()?;
            part.down(&mut self.mover, tables, &rows)?;
            part.gone(&mut self.mover, tables, &rows)?;
        }
        self.parts.clear();
        self.memory.clear().expect("the parts were all that had buffers");
        for (class, &share_bytes) in classes.iter().zip(shares) {
            let part = Part::new(&mut self.memory, &self.mover, &class.arena, share_bytes)?;
            self.parts.push(part);
        }
        Ok(())
    }

    /// Which of these rows of a class are on the device. What is found counts as staged by `now`.
    pub(super) fn find(
        &mut self,
        class: u32,
        now: u32,
        keys: &[SlotKey],
    ) -> gpu::Result<Vec<Option<u32>>> {
        match self.part(class) {
            Some((mover, part)) => mover.find(&part.table, now, keys),
            None => Ok(vec![None; keys.len()]),
        }
    }

    /// Brings rows of a class up that are not, as far as there is room beside what is staged; tells
    /// their slots. Who makes room goes down.
    pub(super) fn bring_up(
        &mut self,
        class: u32,
        now: u32,
        tables: &[Arc<Table>],
        keys: &[SlotKey],
    ) -> gpu::Result<Vec<Option<u32>>> {
        let floor = self.floor();
        let Some((mover, part)) = self.part(class) else { return Ok(vec![None; keys.len()]) };
        let inserted: Vec<Inserted> = mover.insert(&part.table, now, floor, keys)?;
        let left = |inserted: &Inserted| inserted.slot.zip(inserted.evicted);
        let leaving: Vec<(u32, SlotKey)> = inserted.iter().filter_map(left).collect();
        part.down(mover, tables, &leaving)?;
        let come = |(inserted, key): (&Inserted, &SlotKey)| inserted.slot.map(|slot| (slot, *key));
        let coming: Vec<(u32, SlotKey)> = inserted.iter().zip(keys).filter_map(come).collect();
        part.up(mover, tables, &coming)?;
        part.left(tables, &leaving);
        for &(_, key) in &coming {
            part.arena.set_on_device(Row::new(key.number), true);
            add(&table_of(tables, key).tally.rows_gpu, 1);
            add(&table_of(tables, key).tally.promotions, 1);
        }
        Ok(inserted.iter().map(|inserted| inserted.slot).collect())
    }
}

impl Part {
    /// A class's share of the memory; none where not even a set fits.
    fn new(
        memory: &mut Memory,
        mover: &Mover,
        arena: &Arc<Arena>,
        share_bytes: u64,
    ) -> gpu::Result<Option<Self>> {
        let Layout { dim, state, .. } = arena.layout();
        let row_bytes = (dim + state) as u64 * FLOAT_BYTES;
        let set_bytes = u64::from(WAYS) * (row_bytes + SlotTable::SLOT_BYTES);
        let sets = share_bytes.saturating_sub(EXTRA_BYTES) / set_bytes;
        let sets = sets.min(u64::from(u32::MAX / WAYS - 1)) as u32;
        if sets == 0 {
            return Ok(None);
        }
        let table = SlotTable::new(memory, mover, sets)?;
        let slots = u64::from(table.slots());
        let buffer =
            |memory: &mut Memory, floats: usize| memory.buffer(slots * floats as u64 * FLOAT_BYTES);
        let embeddings = buffer(memory, dim)?;
        let states = (state > 0).then(|| buffer(memory, state)).transpose()?;
        let words = (0..slots.div_ceil(64)).map(|_| AtomicU64::new(0));
        let changed = Arc::new(Changed(words.collect()));
        Ok(Some(Self { arena: Arc::clone(arena), table, embeddings, states, changed }))
    }

    /// Where the row in a slot is.
    pub(super) fn embedding_address(&self, slot: u32) -> u64 {
        let bytes = self.arena.layout().dim as u64 * FLOAT_BYTES;
        self.embeddings.address() + u64::from(slot) * bytes
    }

    /// And its state, 0 where the class has none.
    pub(super) fn state_address(&self, slot: u32) -> u64 {
        let bytes = self.arena.layout().state as u64 * FLOAT_BYTES;
        self.states.as_ref().map_or(0, |states| states.address() + u64::from(slot) * bytes)
    }

    /// Copies what changed in these slots to the rows' places in the arena. The caller sees to it
    /// that no push is under way there.
    pub(super) fn down(
        &self,
        mover: &mut Mover,
        tables: &[Arc<Table>],
        rows: &[(u32, SlotKey)],
    ) -> gpu::Result<()> {
        let mut moves = Moves::default();
        for &(slot, key) in rows.iter().filter(|(slot, _)| self.changed.take(*slot)) {
            let (here, there) = self.places(slot, key);
            moves.add(here, there);
            let tally = &table_of(tables, key).tally;
            add(&tally.gpu_bytes_read, self.row_bytes());
            add(&tally.host_bytes_written, self.row_bytes());
        }
        moves.run(mover, self.arena.layout())
    }

    /// Copies rows from the arena into their slots.
    pub(super) fn up(
        &self,
        mover: &mut Mover,
        tables: &[Arc<Table>],
        rows: &[(u32, SlotKey)],
    ) -> gpu::Result<()> {
        let mut moves = Moves::default();
        for &(slot, key) in rows {
            let (here, there) = self.places(slot, key);
            moves.add(there, here);
            self.changed.take(slot);
            let tally = &table_of(tables, key).tally;
            add(&tally.gpu_bytes_written, self.row_bytes());
            add(&tally.host_bytes_read, self.row_bytes());
        }
        moves.run(mover, self.arena.layout())
    }

    /// Forgets rows, which are down.
    pub(super) fn gone(
        &self,
        mover: &mut Mover,
        tables: &[Arc<Table>],
        rows: &[(u32, SlotKey)],
    ) -> gpu::Result<()> {
        let slots: Vec<u32> = rows.iter().map(|row| row.0).collect();
        mover.clear(&self.table, &slots)?;
        self.left(tables, rows);
        Ok(())
    }

    fn left(&self, tables: &[Arc<Table>], rows: &[(u32, SlotKey)]) {
        for &(_, key) in rows {
            self.arena.set_on_device(Row::new(key.number), false);
            let tally = &table_of(tables, key).tally;
            tally.rows_gpu.fetch_sub(1, Ordering::Relaxed);
            add(&tally.demotions, 1);
        }
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
        self.0[slot as usize / 64].fetch_or(1 << (slot % 64), Ordering::Relaxed);
    }

    /// Whether the row changed; it has not from now on.
    fn take(&self, slot: u32) -> bool {
        let (word, bit) = (&self.0[slot as usize / 64], 1 << (slot % 64));
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

    fn run(&self, mover: &mut Mover, layout: Layout) -> gpu::Result<()> {
        let ([from, to], [states_from, states_to]) = (&self.embeddings, &self.states);
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the addresses are of slots of the class's buffers and of rows of its arena, which
        // were reached when their stage was resolved; one side is all device, the other all host,
        // so that none is read that is written; rows are distinct. No live plan has a row that
        // moves, or the mover's caller holds its table's lock; and all moves are under one lock.
        unsafe {
            mover.move_rows(layout.dim as u32, from, to)?;
            if layout.state > 0 {
                mover.move_rows(layout.state as u32, states_from, states_to)?;
            }
        }
        Ok(())
    }
}

fn table_of(tables: &[Arc<Table>], key: SlotKey) -> &Table {
    &tables[key.table as usize]
}
