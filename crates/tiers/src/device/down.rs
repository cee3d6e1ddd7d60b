//! What the host tier asks of the device before it reads a row's floats, or after it set them: that
//! the newest bits are in the arena, that a row leaves the device, or that it takes what was set.
//! Each is a batch, and does nothing where none of its rows is on the device.

use gpu::PartKeys;
use table::Key;

use super::cache::{Cache, key_of};
use crate::Result;
use crate::arena::Row;
use crate::class::Class;
use crate::index::Entry;
use crate::live::SectionId;
use crate::section::Section;
use crate::store::{Inner, Table};
use crate::sync::MutexGuard;

/// The right to move rows: nobody else moves any while it is held.
pub(crate) struct Still<'a>(MutexGuard<'a, Cache>);

/// A row by its table.
type Named = (table::TableId, Row);

impl Inner {
    /// Keeps rows where they are, on the device or not.
    pub(crate) fn hold_still(&self) -> Option<Still<'_>> {
        self.device.as_ref().map(|tier| Still(tier.cache.lock()))
    }

    /// Has the newest bits of these rows of a table in the arena. The caller holds the table's
    /// lock, so that they stay so.
    pub(crate) fn bring_down(&self, table: &Table, rows: impl Iterator<Item = Row>) -> Result<()> {
        let Some(tier) = &self.device else { return Ok(()) };
        let class = &table.class;
        let rows: Vec<Named> =
            rows.filter(|&row| class.arena.is_on_device(row)).map(|row| (table.id, row)).collect();
        if rows.is_empty() {
            return Ok(());
        }
        let mut cache = tier.cache.lock();
        self.lost(self.with_slots(&mut cache, class, &rows, Wish::Down))
    }

    /// The same of those keys of a table that are in this section.
    pub(crate) fn bring_down_found(
        &self,
        table: &Table,
        section: &Section,
        keys: impl Iterator<Item = (u64, Key)>, // with their hashes
    ) -> Result<()> {
        if self.device.is_none() {
            return Ok(());
        }
        let found = keys.filter_map(|(hash, _)| section.find(hash, table.id));
        let there = found.map(|at| section.entry(at)).filter(|row| !row.meta.is_loading());
        self.bring_down(table, there.map(|row| section.row(row.slot)))
    }

    /// Has rows that nobody holds leave the device, because their place in the arena is wanted;
    /// false if the device failed, and then they may not leave.
    pub(crate) fn demote(&self, class: &Class, section: &Section, leaving: &[Entry]) -> bool {
        let Some(tier) = &self.device else { return true };
        let rows = leaving.iter().map(|row| (row.meta.table(), section.row(row.slot)));
        let rows: Vec<Named> = rows.filter(|row| class.arena.is_on_device(row.1)).collect();
        if rows.is_empty() {
            return true;
        }
        let mut cache = tier.cache.lock();
        self.lost(self.with_slots(&mut cache, class, &rows, Wish::Away)).is_ok()
    }

    /// Makes a section smaller, whose rows move to other places, which those that nobody holds do
    /// from RAM. Tells how many bytes came free.
    pub(crate) fn shrink(&self, class: &Class, id: SectionId, bytes: u64) -> u64 {
        let still = self.pinning.write();
        let mut section = self.settled(&still, class, id);
        if self.device.is_some() {
            let rows: Vec<Entry> = section.unheld().collect();
            if !self.demote(class, &section, &rows) {
                return 0;
            }
        }
        section.shrink(bytes, &self.budget)
    }

    /// Has the device take what was set in the arena, for those of these rows of a table that it
    /// has. The caller holds the table's lock exclusively.
    pub(crate) fn take_up(&self, table: &Table, rows: &[Row]) -> Result<()> {
        match self.hold_still() {
            Some(still) => self.take_up_still(still, table, rows),
            None => Ok(()),
        }
    }

    /// The same under a hold that began before the rows were set.
    pub(crate) fn take_up_still(
        &self,
        mut still: Still<'_>,
        table: &Table,
        rows: &[Row],
    ) -> Result<()> {
        let class = &table.class;
        let there = rows.iter().filter(|&&row| row != Row::NONE && class.arena.is_on_device(row));
        let rows: Vec<Named> = there.map(|&row| (table.id, row)).collect();
        self.lost(self.with_slots(&mut still.0, class, &rows, Wish::Up))
    }

    fn with_slots(
        &self,
        cache: &mut Cache,
        class: &Class,
        rows: &[Named],
        wish: Wish,
    ) -> gpu::Result<()> {
        let tables = self.tables_now();
        let keys: Vec<_> = rows.iter().map(|&(table, row)| key_of(table, row)).collect();
        if cache.part(class.number).is_none() {
            return Ok(());
        }
        let all_of_class = [PartKeys { part: class.number as usize, end: keys.len() }];
        let slots = cache.find(0, &keys, &all_of_class)?; // a look, which is no use
        let found: Vec<_> =
            slots.into_iter().zip(keys).filter_map(|(slot, key)| Some((slot?, key))).collect();
        match wish {
            Wish::Up => cache.up(&tables, &found),
            Wish::Down => cache.down(&tables, &found),
            Wish::Away => {
                cache.down(&tables, &found)?;
                cache.gone(&tables, &found)
            }
        }
    }
}

#[derive(Clone, Copy)]
enum Wish {
    /// From the arena to the device.
    Up,
    /// From the device to the arena.
    Down,
    /// The same, and then off the device.
    Away,
}
