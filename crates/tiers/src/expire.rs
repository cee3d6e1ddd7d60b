//! Rows on SSD that expired are dropped there: stages pay for it, a slice of a table's rows for so
//! many keys staged, so that nothing is looked at while nothing happens. A row that is in RAM or on
//! its way is left alone, and what a read would not call expired stays. It makes no row anew.

use table::{Admission, Key};

use crate::index;
use crate::store::{Inner, Table};
use crate::stored::StoredRow;
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::tally::add;
use crate::{Result, room::Room};

/// Keys staged for each look at a slice; under a scheduler so few that a test sees looks.
const KEYS_PER_LOOK: u64 = if cfg!(feature = "shuttle") { 2 } else { 1 << 15 };
/// Rows of a slice, at most.
const SLICE_ROWS: usize = 4096;
/// Bytes of a slice, about, at most.
const SLICE_BYTES: usize = 256 << 10;
/// When a pass over a table has ended, the next begins once its oldest row has been expired for so
/// many-th a part of a row's life, so that it finds more than one.
const LATE_SHARE: u32 = 8;

/// How far the looks at each table have come.
#[derive(Default)]
pub(crate) struct Passes {
    of_tables: Vec<Pass>,
    turn: usize, // the table that is looked at
}

#[derive(Clone, Copy, Default)]
struct Pass {
    from: Option<Key>, // the next key; none: the pass has yet to begin
    oldest: u32,       // the oldest stamp of those that stayed
    rests: bool,
}

/// What is there of a slice.
struct Slice {
    expired: Vec<Key>,
    next: Option<Key>,
    oldest: u32,
}

impl Inner {
    /// Counts keys that are staged, and looks for expired rows when it is time.
    pub(crate) fn drop_expired(&self, keys: usize) -> Result<()> {
        let before = self.keys_staged.fetch_add(keys as u64, Ordering::Relaxed);
        let after = before + keys as u64;
        for _ in before / KEYS_PER_LOOK..after / KEYS_PER_LOOK {
            let mut room = self.room.lock();
            if !self.look(&mut room)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Looks at one slice; false if no table needs it now. The room is held: no row comes in or
    /// goes down meanwhile.
    fn look(&self, room: &mut MutexGuard<'_, Room>) -> Result<bool> {
        let tables = self.tables_now();
        let passes = &mut room.passes;
        passes.of_tables.resize(tables.len(), Pass::default());
        for _ in 0..tables.len() {
            let at = passes.turn % tables.len();
            let (table, pass) = (&tables[at], &mut passes.of_tables[at]);
            if pass.is_due(table, self.clock_of(table)) {
                self.look_at(table, pass)?;
                if pass.rests {
                    passes.turn = at + 1;
                }
                return Ok(true);
            }
            passes.turn = at + 1;
        }
        Ok(false)
    }

    fn look_at(&self, table: &Table, pass: &mut Pass) -> Result<()> {
        let now = self.clock_of(table);
        let (from, oldest) = pass.from.map_or((Key(0), now), |from| (from, pass.oldest));
        // A row that the writer has just finished with is newer than what this slice saw of it.
        let written = self.down.batches_written();
        let Slice { mut expired, next, oldest } = self.slice(table, from, oldest, now)?;
        expired.retain(|key| !self.is_near(table, *key));
        if written != self.down.batches_written() {
            return Ok(()); // it is looked at again
        }
        self.ssd.delete_rows(table.id, &expired)?;
        if !expired.is_empty() {
            self.down.forget_written();
        }
        let dropped = expired.len() as u64;
        table.tally.rows.fetch_sub(dropped, Ordering::Relaxed);
        table.tally.rows_ssd.fetch_sub(dropped, Ordering::Relaxed);
        add(&table.tally.expired, dropped);
        add(&table.tally.dropped, dropped);
        *pass = Pass { from: next, oldest, rests: next.is_none() };
        Ok(())
    }

    fn slice(&self, table: &Table, from: Key, oldest: u32, now: u32) -> Result<Slice> {
        let rows = (SLICE_BYTES / table.layout.bytes()).clamp(1, SLICE_ROWS);
        let mut slice = Slice { expired: Vec::new(), next: None, oldest };
        slice.next = self.ssd.scan(table.id, from, rows, |key, bytes| {
            // one that can't be read stays, for whoever stages it to be told
            let Ok(stored) = StoredRow::decode(table, key, bytes) else { return Ok(()) };
            if table.is_expired(stored.stamp, now) {
                slice.expired.push(key);
            } else if let Some(stamp) = stored.stamp
                && now.wrapping_sub(stamp) as i32 > now.wrapping_sub(slice.oldest) as i32
            {
                slice.oldest = stamp;
            }
            Ok(())
        })?;
        Ok(slice)
    }

    /// Whether the row is in RAM, on its way in or on its way down.
    fn is_near(&self, table: &Table, key: Key) -> bool {
        let hash = index::hash(table.id, key);
        let section = table.class.sections[table.class.section_of(hash) as usize].lock();
        let in_ram = section.find(hash, table.id).is_some();
        drop(section);
        in_ram || self.down.is_on_its_way(table.id, key)
    }
}

impl Pass {
    /// Where rows enter only after some sights, an expired row is still one that was admitted: it
    /// stays.
    fn is_due(&self, table: &Table, now: u32) -> bool {
        let drops = table.stamped() && table.spec.admission == Admission::FirstSight;
        drops && (!self.rests || table.is_expired_long(self.oldest, now, LATE_SHARE))
    }
}
