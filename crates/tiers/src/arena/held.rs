//! Rows in somebody's hands: pinned by a staged step, claimed and not yet published, or held for
//! writing down. Whoever drops them lets go. It does not choose rows; its callers do.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};
use table::Key;

use super::{Arena, Blocks, RowOrigin, RowsLock, Slot};

/// Rows of one batch, each with a pin that goes when this is dropped.
pub(crate) struct Pinned {
    arena: Arc<Arena>,
    runs: Vec<PinnedRun>,
    slots: Vec<Slot>, // [Σ runs], NONE where a row is not (yet) pinned
    counted: bool,
    uncounted_rows: u64,
    quiet: bool,
}

/// One table's share of [`Pinned`].
#[derive(Clone)]
pub(crate) struct PinnedRun {
    pub(crate) rows: Arc<RowsLock>,
    pub(crate) range: Range<usize>,
}

impl Pinned {
    /// Nothing pinned yet, for a batch of these runs. `counted`: whether its pins show in
    /// [`Arena::pinned_rows`], as those of a staged step do and those of a passing lookup don't.
    ///
    /// Pins are counted, not distinct rows: whether a pin is a row's first or last also depends on
    /// lookups and write-backs that pass by, so that a count of rows would drift.
    pub(crate) fn none(arena: &Arc<Arena>, runs: Vec<PinnedRun>, counted: bool) -> Self {
        let rows = runs.last().map_or(0, |run| run.range.end);
        let (arena, slots) = (Arc::clone(arena), vec![Slot::NONE; rows]);
        Self { arena, runs, slots, counted, uncounted_rows: 0, quiet: false }
    }

    /// Pins `slot` as the row at `position` of run `run` if that is what it holds.
    pub(crate) fn pin(&mut self, run: usize, position: usize, slot: Slot, key: Key) -> bool {
        let run = &self.runs[run];
        assert!(run.range.contains(&position) && self.slots[position] == Slot::NONE);
        let pinned = self.arena.pin(slot, &run.rows, key, self.counted);
        if pinned {
            self.slots[position] = slot;
            self.uncounted_rows += 1;
        }
        pinned
    }

    /// Adds what was pinned since the last call to the arena's count.
    pub(crate) fn count(&mut self) {
        if self.counted {
            self.arena.add_pinned(std::mem::take(&mut self.uncounted_rows));
        }
    }

    pub(crate) fn is_pinned(&self, position: usize) -> bool {
        self.slots[position] != Slot::NONE
    }

    pub(crate) fn rows(&self) -> usize {
        self.slots.len()
    }

    /// The key of a pinned row.
    pub(crate) fn key(&self, position: usize) -> Key {
        self.arena.identity(self.slots[position]).1
    }

    /// The rows of a run, to read; waits for a push to the same table.
    pub(crate) fn read(&self, run: usize) -> ReadRows<'_> {
        let run = &self.runs[run];
        let slots = &self.slots[run.range.clone()];
        ReadRows { arena: &self.arena, slots, _guard: run.rows.floats.read() }
    }

    /// The rows of a run, to change; waits for whoever reads the same table.
    pub(crate) fn write(&self, run: usize) -> WriteRows<'_> {
        let run = &self.runs[run];
        let slots = &self.slots[run.range.clone()];
        WriteRows { arena: &self.arena, slots, _guard: run.rows.floats.write() }
    }
}

impl Pinned {
    /// Lets go without waking anyone: for a stage that failed, whose pins nobody else has seen.
    /// Were it to wake the waiting stages, itself among them, none would ever wait.
    pub(crate) fn abandon(mut self) {
        self.quiet = true;
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.count();
        let mut rows = 0;
        for (i, &slot) in self.slots.iter().enumerate() {
            if let Some(&ahead) = self.slots.get(i + 16) {
                self.arena.prefetch_header(ahead);
            }
            if slot != Slot::NONE {
                self.arena.unpin(slot);
                rows += 1;
            }
        }
        if self.counted {
            self.arena.subtract_pinned(rows);
        }
        if rows > 0 && !self.quiet {
            self.arena.tell_released();
        }
    }
}

/// Pinned rows of one table under its lock, shared.
pub(crate) struct ReadRows<'a> {
    arena: &'a Arena,
    slots: &'a [Slot],
    _guard: RwLockReadGuard<'a, ()>,
}

impl ReadRows<'_> {
    /// The floats of the run's row `i`, state included.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        let slot = self.slots[i];
        assert!(slot != Slot::NONE, "row {i} of the run is not pinned");
        let (address, floats) = self.arena.row_address(slot);
        // SAFETY: the slot is pinned, hence occupied by a row of the table whose lock is held
        // shared: nobody writes it while this guard lives, and it stays where it is.
        unsafe { std::slice::from_raw_parts(address, floats) }
    }

    pub(crate) fn prefetch(&self, i: usize) {
        if let Some(&slot) = self.slots.get(i) {
            self.arena.prefetch_row(slot);
        }
    }
}

/// Pinned rows of one table under its lock, exclusive.
pub(crate) struct WriteRows<'a> {
    arena: &'a Arena,
    slots: &'a [Slot],
    _guard: RwLockWriteGuard<'a, ()>,
}

impl WriteRows<'_> {
    /// The floats of the run's row `i`, which is dirty from now on.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let slot = self.slots[i];
        assert!(slot != Slot::NONE, "row {i} of the run is not pinned");
        self.arena.set_dirty(slot);
        let (address, floats) = self.arena.row_address(slot);
        // SAFETY: the slot is pinned, hence occupied by a row of the table whose lock is held
        // exclusively, and `&mut self` lets one of its rows out at a time.
        unsafe { std::slice::from_raw_parts_mut(address, floats) }
    }

    pub(crate) fn prefetch(&self, i: usize) {
        if let Some(&slot) = self.slots.get(i) {
            self.arena.prefetch_header(slot);
            self.arena.prefetch_row(slot);
        }
    }
}

/// Slots taken for rows that are on their way in: nobody else knows of them.
pub(crate) struct Fresh {
    arena: Arc<Arena>,
    slots: Vec<Slot>, // [misses], NONE where none is taken or the row is published
}

impl Fresh {
    pub(crate) fn none(arena: &Arc<Arena>, rows: usize) -> Self {
        Self { arena: Arc::clone(arena), slots: vec![Slot::NONE; rows] }
    }

    /// Takes a vacant slot for row `i`.
    pub(crate) fn claim(&mut self, i: usize, slot: Slot) {
        assert!(self.slots[i] == Slot::NONE);
        self.arena.claim(slot);
        self.slots[i] = slot;
    }

    /// The floats of row `i`, whatever they were before.
    pub(crate) fn row_mut(&mut self, i: usize) -> &mut [f32] {
        let slot = self.slots[i];
        assert!(slot != Slot::NONE, "no slot is claimed for row {i}");
        let (address, floats) = self.arena.row_address(slot);
        // SAFETY: this value claimed the slot by compare-and-swap and has not published it, so that
        // nobody else reaches its floats; `&mut self` lets one of its rows out at a time.
        unsafe { std::slice::from_raw_parts_mut(address, floats) }
    }

    /// Makes row `i` a row of its table, pinned at `position` of `pinned`.
    pub(crate) fn publish(
        &mut self,
        i: usize,
        key: Key,
        origin: RowOrigin,
        pinned: &mut Pinned,
        (run, position): (usize, usize),
    ) -> Slot {
        let slot = std::mem::replace(&mut self.slots[i], Slot::NONE);
        let run = &pinned.runs[run];
        assert!(run.range.contains(&position) && pinned.slots[position] == Slot::NONE);
        self.arena.publish(slot, &run.rows, key, origin);
        pinned.slots[position] = slot;
        pinned.uncounted_rows += 1;
        slot
    }

    /// Gives back every slot that was not published.
    pub(crate) fn give_back(self, blocks: &mut Blocks) {
        for slot in self.slots.into_iter().filter(|&slot| slot != Slot::NONE) {
            self.arena.unclaim(slot);
            blocks.free(slot);
        }
    }
}

/// A row held for writing down or for leaving.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldRow {
    pub(crate) owner: u32,
    pub(crate) key: Key,
    pub(crate) slot: Slot,
}

/// Rows held for writing down, and perhaps for leaving; each has a pin that goes with this.
pub(crate) struct Held {
    arena: Arc<Arena>,
    rows: Vec<HeldRow>,
}

impl Held {
    pub(crate) fn none(arena: &Arc<Arena>) -> Self {
        Self { arena: Arc::clone(arena), rows: Vec::new() }
    }

    /// Takes hold of a row, whoever else holds it.
    pub(crate) fn hold(&mut self, slot: Slot) -> bool {
        let held = self.arena.pin_any(slot, false);
        self.note(slot, held)
    }

    /// Takes hold of a row if nobody else holds it.
    pub(crate) fn hold_idle(&mut self, slot: Slot) -> bool {
        let held = self.arena.pin_idle(slot);
        self.note(slot, held)
    }

    fn note(&mut self, slot: Slot, held: bool) -> bool {
        if held {
            let (owner, key) = self.arena.identity(slot);
            self.rows.push(HeldRow { owner, key, slot });
        }
        held
    }

    /// Brings the rows into the order of the SSD's keys.
    pub(crate) fn sort(&mut self) {
        self.rows.sort_unstable_by_key(|row| (row.owner, row.key));
    }

    pub(crate) fn rows(&self) -> &[HeldRow] {
        &self.rows
    }

    /// The held rows of one table, to read; waits for a push to the same table.
    pub(crate) fn read<'a>(&'a self, rows: &'a RowsLock) -> HeldRows<'a> {
        HeldRows { held: self, owner: rows.owner, _guard: rows.floats.read() }
    }

    pub(crate) fn set_on_ssd(&self, i: usize) {
        self.arena.set_on_ssd(self.rows[i].slot);
    }

    /// Makes the slots vacant. Nobody else may hold the rows and the index may not name them.
    pub(crate) fn vacate(mut self, blocks: &mut Blocks) {
        for row in std::mem::take(&mut self.rows) {
            self.arena.vacate(row.slot);
            blocks.free(row.slot);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for row in &self.rows {
            self.arena.unpin(row.slot);
        }
    }
}

/// Held rows of one table under its lock, shared.
pub(crate) struct HeldRows<'a> {
    held: &'a Held,
    owner: u32,
    _guard: RwLockReadGuard<'a, ()>,
}

impl HeldRows<'_> {
    /// The floats of held row `i`, which must be of this table.
    pub(crate) fn row(&self, i: usize) -> &[f32] {
        let row = self.held.rows[i];
        assert_eq!(row.owner, self.owner, "held row {i} is of another table");
        let (address, floats) = self.held.arena.row_address(row.slot);
        // SAFETY: the slot is pinned, hence occupied by a row of the table whose lock is held
        // shared: nobody writes it while this guard lives, and it stays where it is.
        unsafe { std::slice::from_raw_parts(address, floats) }
    }

    /// Whether held row `i` is dirty; it is clean from now on, until the next push.
    pub(crate) fn take_dirty(&self, i: usize) -> bool {
        assert_eq!(self.held.rows[i].owner, self.owner, "held row {i} is of another table");
        self.held.arena.take_dirty(self.held.rows[i].slot)
    }
}
