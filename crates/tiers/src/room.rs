//! Room for rows that come: a section takes bytes of the budget while there are some; then the rows
//! leave that the policy gives least for, the dirty ones by way of `down`; and a row length whose
//! rows leave quickly takes memory over from one whose rows stay long. Rows that a staged step
//! holds stay. It brings nothing in.

use std::sync::Arc;

use table::TableId;

use crate::Durability;
use crate::class::Class;
use crate::down::Batch;
use crate::expire::Passes;
use crate::gains::Gains;
use crate::index::{At, Entry};
use crate::live::SectionId;
use crate::section::{Section, bytes_for, bytes_per_row};
use crate::store::{Inner, Table};
use crate::stored::encode;
use crate::sync::atomic::Ordering;
use crate::sync::{MutexGuard, RwLockWriteGuard};
use crate::tally::add;

/// A row length gives bytes to one where they save so many times as many misses at least.
const GAIN_RATIO: f64 = 1.1;
/// A section gives one in so many of its bytes at a time, at most.
const GIFT_OF_DONOR_MAX: u64 = 32;
/// And at least, for all places of its index are looked at then.
const GIFT_OF_DONOR_MIN: u64 = 1024;
/// One that takes gets one more for so many that it has at least: its index is built anew then.
const GIFT_OF_TAKER: u64 = 64;
/// Of a section's rows, one in so many at most leaves together with those that must, so that
/// looking for rows that may leave is worth its cost.
const LEAVING_SHARE_MIN: usize = 256;
/// The slots that are vacant for it take so much of each row that stays: a 64th of a byte.
const VACANT_BYTES_SHARE: usize = 64;
/// Rows that leave beyond those that must, at most.
const LEAVING_EXTRA_MAX: usize = 1024;

/// The right to make room and to bring rows in: one stage at a time.
pub(crate) struct Room {
    /// Batches of rows that left and that the writer has yet to be given, in their order.
    sealed: Vec<Arc<Batch>>,
    /// Which rows on SSD are looked at next, whether they expired.
    pub(crate) passes: Passes,
    gains: Gains,
}

/// Memory that a section gives.
#[derive(Debug, Clone, Copy)]
struct Gift {
    from: SectionId,
    bytes: u64,
    keeps: usize, // vacant slots that stay, for rows that come to it too
}

/// Room that a stage wants in one section.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Want {
    pub(crate) id: SectionId,
    pub(crate) slots: usize,
}

impl Room {
    pub(crate) fn new() -> Self {
        Self { sealed: Vec::new(), passes: Passes::default(), gains: Gains::default() }
    }
}

impl Inner {
    /// Gives the writer what left. Called without a section's lock, for it may wait. Where a row is
    /// to be safe once it left, none waits for a batch to be full.
    pub(crate) fn send_down(&self, room: &mut Room) {
        for batch in room.sealed.drain(..) {
            self.down.send(batch);
        }
        if self.config.durability == Durability::Log
            && let Some(batch) = self.down.seal()
        {
            self.down.send(batch);
        }
    }

    /// Sees to it that every section has the vacant slots that are wanted, all at once; false if
    /// the rest of the budget is held.
    pub(crate) fn make_room(&self, room: &mut Room, wants: &[Want]) -> bool {
        let classes = self.classes_now();
        // What one section gives to another, it may want back: a second look settles it.
        for look in 0..3 {
            let mut settled = true;
            for want in wants {
                let class = &classes[want.id.class as usize];
                let vacant = class.sections[want.id.section as usize].lock().vacant();
                if vacant < want.slots {
                    settled = false;
                    if !self.make_room_in(room, &classes, *want, wants, look == 0) {
                        return false;
                    }
                }
            }
            self.send_down(room);
            if settled {
                return true;
            }
        }
        wants.iter().all(|want| {
            let class = &classes[want.id.class as usize];
            class.sections[want.id.section as usize].lock().vacant() >= want.slots
        })
    }

    fn make_room_in(
        &self,
        room: &mut Room,
        classes: &[Arc<Class>],
        want: Want,
        wants: &[Want],
        may_take: bool,
    ) -> bool {
        let class = &classes[want.id.class as usize];
        let missing = |section: &Section| want.slots.saturating_sub(section.vacant());
        let grow = || {
            let mut section = class.sections[want.id.section as usize].lock();
            let missing = missing(&section);
            missing == 0 || section.grow(missing, self.fair_bytes(classes), &self.budget)
        };
        if grow() {
            return true;
        }
        // Another row length gives first, if its memory saves more misses here.
        if may_take
            && let Some(gift) = self.cheapest(room, classes, want, wants)
            && self.take_over(room, classes, gift) > 0
            && grow()
        {
            return true;
        }
        let evicted = {
            let rows = class.sections[want.id.section as usize].lock().rows() as usize;
            let extra = leaving_extra(rows, class.arena.layout().bytes());
            let missing = missing(&class.sections[want.id.section as usize].lock());
            self.evict(room, class, want.id, missing + extra, |_| true) >= missing
        };
        if evicted {
            return true;
        }
        // The last resort: whoever has rows that nobody holds.
        let donors: Vec<SectionId> = self.donors(classes, want.id, wants).collect();
        for donor in donors {
            let bytes = self.missing_bytes(class, want);
            self.take_over(room, classes, Gift { from: donor, bytes, keeps: 0 });
            if grow() {
                return true;
            }
        }
        grow()
    }

    /// Sections that may give memory: of other row lengths, then of this one; those that a stage
    /// wants room in come last.
    fn donors<'a>(
        &self,
        classes: &'a [Arc<Class>],
        taker: SectionId,
        wants: &'a [Want],
    ) -> impl Iterator<Item = SectionId> + 'a {
        let all = classes
            .iter()
            .flat_map(|class| (0..class.sections.len()).map(|section| class.id_of(section)));
        let mut all: Vec<SectionId> = all.filter(|id| *id != taker).collect();
        all.sort_by_key(|id| {
            let wanted = wants.iter().any(|want| want.id == *id);
            (wanted, id.class == taker.class, id.section.abs_diff(taker.section))
        });
        all.into_iter()
    }

    /// What another row length should give to a section that wants room: the one whose bytes save
    /// the least, if they save more here. The nearer the two, the less.
    fn cheapest(
        &self,
        room: &mut Room,
        classes: &[Arc<Class>],
        want: Want,
        wants: &[Want],
    ) -> Option<Gift> {
        if classes.len() == 1 {
            return None;
        }
        let now = self.stages_now();
        if room.gains.is_due(now) {
            let signs = |class: &Arc<Class>| {
                let signs = class.sections.iter().map(|section| section.lock().sign(now));
                (bytes_per_row(class.arena.layout().bytes()) as u64, signs.collect())
            };
            room.gains.look(classes.iter().map(signs), now);
        }
        let taker = &classes[want.id.class as usize];
        let givers = classes.iter().filter(|class| class.number != taker.number);
        let givers = givers.filter(|class| self.may_give(class));
        let lost = givers.map(|class| (room.gains.of_donor(class.number), class));
        let (lost, class) = lost.min_by(|a, b| a.0.total_cmp(&b.0))?;
        let saved = room.gains.of_taker(taker.number);
        if saved <= GAIN_RATIO * lost {
            return None;
        }
        let id = class.id_of(want.id.section as usize);
        let theirs = class.sections[id.section as usize].lock().paid_bytes();
        let own = taker.sections[want.id.section as usize].lock().paid_bytes();
        // what is left of the budget may be too little to grow by
        let wanted = bytes_for(taker.arena.layout().bytes(), want.slots as u64);
        let wanted = wanted.max(own / GIFT_OF_TAKER).max(theirs / GIFT_OF_DONOR_MIN);
        let row_bytes = class.arena.layout().bytes() as u64;
        // two rows, where so few are more than the share of a section: it may have to give its last
        let most = (theirs / GIFT_OF_DONOR_MAX).max(2 * row_bytes) as f64;
        let most = most * (1.0 - GAIN_RATIO * lost / saved);
        let bytes = wanted.min(most as u64);
        let keeps = wants.iter().find(|of| of.id == id).map_or(0, |of| of.slots);
        let least = row_bytes.max(theirs / GIFT_OF_DONOR_MIN);
        (bytes >= least).then_some(Gift { from: id, bytes, keeps })
    }

    /// Whether there are rows of a class that their tables need not keep.
    fn may_give(&self, class: &Class) -> bool {
        self.tables_now().iter().any(|table| {
            let rows = table.tally.rows_host.load(Ordering::Relaxed);
            table.class.number == class.number && rows > table.share_rows.start
        })
    }

    /// Bytes beyond what is left of the budget that a section wants for its rows to come.
    fn missing_bytes(&self, class: &Class, want: Want) -> u64 {
        let missing = {
            let section = class.sections[want.id.section as usize].lock();
            want.slots.saturating_sub(section.vacant())
        };
        let bytes = bytes_for(class.arena.layout().bytes(), missing as u64);
        bytes.saturating_sub(self.budget.left())
    }

    /// Has a section give bytes back to the budget: rows leave there, others move together, and the
    /// memory behind them comes free. Tells how many.
    fn take_over(&self, room: &mut Room, classes: &[Arc<Class>], gift: Gift) -> u64 {
        let Gift { from, bytes, keeps } = gift;
        let class = &classes[from.class as usize];
        let row_bytes = class.arena.layout().bytes() as u64;
        let rows = (bytes.div_ceil(row_bytes) as usize).max(1);
        let section = &class.sections[from.section as usize];
        let vacant = section.lock().vacant();
        self.evict(room, class, from, (rows + keeps).saturating_sub(vacant), |_| true);
        let freed = self.shrink(class, from, bytes);
        // rows of one length want the index again
        let of_index =
            if classes.len() > 1 { section.lock().shrink_index(&self.budget) } else { 0 };
        freed + of_index
    }

    /// What a section may hope to get of the budget yet.
    fn fair_bytes(&self, classes: &[Arc<Class>]) -> u64 {
        let sections: usize = classes.iter().map(|class| class.sections.len()).sum();
        self.budget.left() / sections.max(1) as u64
    }

    /// Lets up to `wanted` rows of a section leave; tells how many left. `may` tables give rows.
    pub(crate) fn evict(
        &self,
        room: &mut Room,
        class: &Class,
        id: SectionId,
        wanted: usize,
        may: impl Fn(TableId) -> bool,
    ) -> usize {
        if wanted == 0 {
            return 0;
        }
        let still = self.pinning.write();
        let mut section = self.settled(&still, class, id);
        let tables = self.tables_now();
        let mut leaving = Vec::with_capacity(wanted);
        let mut left_of = vec![0_u64; tables.len()];
        section.sweep(
            wanted,
            |table| {
                let (at, table) = (table.0 as usize, &tables[table.0 as usize]);
                let rows = table.tally.rows_host.load(Ordering::Relaxed) - left_of[at];
                let goes = may(table.id) && rows > table.share_rows.start;
                left_of[at] += u64::from(goes);
                goes
            },
            &mut leaving,
        );
        if !self.demote(class, &section, &leaving) {
            return 0; // the store is poisoned
        }
        for row in &leaving {
            self.leave(room, class, &mut section, &tables, row);
        }
        leaving.len()
    }

    /// A section that knows which of its rows are held. `_still`: no stage is between finding its
    /// rows and saying that it holds them.
    pub(crate) fn settled<'a>(
        &self,
        _still: &RwLockWriteGuard<'_, ()>,
        class: &'a Class,
        id: SectionId,
    ) -> MutexGuard<'a, Section> {
        let mut section = class.sections[id.section as usize].lock();
        let changes = self.live.changes();
        if section.changes_seen != changes {
            section.changes_seen = changes;
            section.clear_pins();
            self.live.slots_of(id, |slots| section.add_pins(slots));
        }
        section
    }

    /// Lets one row leave that nobody holds. Clean rows cost no write.
    fn leave(
        &self,
        room: &mut Room,
        class: &Class,
        section: &mut MutexGuard<'_, Section>,
        tables: &[Arc<Table>],
        leaving: &Entry,
    ) {
        let Entry { key, meta, slot, code } = *leaving;
        let table = &tables[meta.table().0 as usize];
        let row = section.row(slot);
        if class.arena.take_dirty(row) {
            let history = section.history(code);
            room.sealed.extend(self.put_down(table, key, row, history));
            if !meta.is_on_ssd() {
                add(&table.tally.rows_ssd, 1);
            }
        }
        section.leave(leaving);
        add(&table.tally.evictions, 1);
        table.tally.rows_host.fetch_sub(1, Ordering::Relaxed);
    }

    /// Copies a row to those on their way down.
    fn put_down(
        &self,
        table: &Table,
        key: table::Key,
        row: crate::arena::Row,
        history: u8,
    ) -> Option<Arc<Batch>> {
        let arena = &table.class.arena;
        let stamp = table.stamped().then(|| arena.stamp(row));
        add(&table.tally.writebacks, 1);
        add(&table.tally.ssd_bytes_written, table.layout.bytes() as u64);
        self.down.put(table.id, key, |bytes| {
            arena.read(row, |embedding, state| encode(embedding, state, history, stamp, bytes));
        })
    }

    /// Lets every row go that nobody holds, and gives all memory back.
    pub(crate) fn evict_all(&self, room: &mut Room) {
        for class in self.classes_now().iter() {
            for section in 0..class.sections.len() {
                let id = class.id_of(section);
                let rows = class.sections[section].lock().rows() as usize;
                self.evict(room, class, id, rows, |_| true);
                self.shrink(class, id, u64::MAX / 2);
                self.send_down(room);
            }
        }
    }

    /// Writes every row down that is dirty now, and makes RocksDB write its memtables.
    pub(crate) fn flush(&self) -> crate::Result<()> {
        let flushing = self.flushing.lock();
        self.note_pushes();
        for class in self.classes_now().iter() {
            for section in 0..class.sections.len() {
                self.flush_section(&flushing, class, section)?;
            }
        }
        let written = {
            let mut room = self.room.lock();
            self.send_down(&mut room);
            self.down.drain()
        };
        // an error of the channel means that the writer is gone; the tier says why
        let _ = written.recv();
        self.ssd.check()?;
        crate::meta::write_stages(&self.ssd, self.stages_now())?;
        if let Some(sketch) = self.sketch.lock().as_ref() {
            crate::meta::write_sketch(&self.ssd, sketch)?;
        }
        self.ssd.flush_rows()
    }

    /// Says of the rows of pushes so far that they are dirty: a push leaves that to the release of
    /// its step, or to a flush before.
    fn note_pushes(&self) {
        for set in self.live.sets() {
            self.note_push(&set);
        }
    }

    pub(crate) fn note_push(&self, set: &crate::live::PinSet) {
        if !set.pushed.swap(false, Ordering::AcqRel) {
            return;
        }
        let classes = self.classes_now();
        for (id, slots) in set.groups() {
            let class = &classes[id.class as usize];
            for &slot in slots {
                class.arena.set_dirty(class.row(id.section, slot), true);
            }
        }
    }

    /// A slice of places at a time, so that stages get in between. `_flushing`: one walks at once.
    fn flush_section(
        &self,
        _flushing: &MutexGuard<'_, ()>,
        class: &Class,
        number: usize,
    ) -> crate::Result<()> {
        const SLICE: u32 = if cfg!(feature = "shuttle") { 2 } else { 4096 };
        let (mut next, mut builds) = (0, None);
        loop {
            let mut room = self.room.lock();
            self.ssd.check()?;
            let ended = {
                let mut section = class.sections[number].lock();
                if builds.replace(section.builds()) != Some(section.builds()) {
                    next = 0; // all rows have other places
                }
                let end = (next + SLICE).min(section.places());
                let walked = (next..end).filter_map(|place| section.nth(place)).map(|row| row.0);
                let mut rows: Vec<At> = walked.collect();
                rows.extend(section.overtaken());
                let dirty = dirty_rows(class, &section, rows);
                self.write_down(&mut room, class, &mut section, &dirty)?;
                next = end;
                let ended = next >= section.places();
                section.walk_from((!ended).then_some(next));
                ended
            };
            self.send_down(&mut room);
            if ended {
                return Ok(());
            }
        }
    }

    fn write_down(
        &self,
        room: &mut Room,
        class: &Class,
        section: &mut Section,
        dirty: &[(TableId, At)],
    ) -> crate::Result<()> {
        let tables = self.tables_now();
        for rows in dirty.chunk_by(|a, b| a.0 == b.0) {
            let table = &tables[rows[0].0.0 as usize];
            let _read = table.rows.read(); // a push to this table is whole, or yet to come
            self.quiet()?;
            let slots = rows.iter().map(|&(_, at)| section.mark(at).slot);
            self.bring_down(table, slots.map(|slot| section.row(slot)))?;
            for &(_, at) in rows {
                let Entry { key, meta, slot, code } = section.entry(at);
                let row = section.row(slot);
                if class.arena.take_dirty(row) {
                    let history = section.history(code);
                    room.sealed.extend(self.put_down(table, key, row, history));
                    if !meta.is_on_ssd() {
                        add(&table.tally.rows_ssd, 1);
                        section.set_meta(at, meta.on_ssd(true));
                    }
                }
            }
        }
        Ok(())
    }
}

/// How many of a section's rows leave beyond those that must.
pub(crate) fn leaving_extra(rows: usize, row_bytes: usize) -> usize {
    let share = LEAVING_SHARE_MIN.max(VACANT_BYTES_SHARE * row_bytes);
    (rows / share).min(LEAVING_EXTRA_MAX)
}

/// Those of these rows that are dirty, by table.
fn dirty_rows(class: &Class, section: &Section, rows: Vec<At>) -> Vec<(TableId, At)> {
    let rows = rows.into_iter().map(|at| (at, section.mark(at)));
    let dirty = rows.filter(|(_, row)| class.arena.is_dirty(section.row(row.slot)));
    let mut dirty: Vec<(TableId, At)> = dirty.map(|(at, row)| (row.meta.table(), at)).collect();
    dirty.sort_by_key(|row| row.0);
    dirty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_leave_ahead_of_need_take_a_64th_of_a_byte_of_each_that_stays() {
        for row_bytes in [20, 68, 132, 260, 516, 4100] {
            for rows in [1000, 100_000, 10_000_000] {
                let vacant = leaving_extra(rows, row_bytes) * row_bytes;
                assert!(64 * vacant <= rows, "{rows} rows of {row_bytes}: {vacant} bytes vacant");
            }
        }
        assert_eq!(leaving_extra(256_000, 4), 1000, "short rows: one in 256");
    }
}
