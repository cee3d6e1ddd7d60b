//! Rows on their way down: the dirty among held rows go to SSD in ordered batches; a flush takes
//! every dirty row while the store goes on. It frees no memory; `eviction` does.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::arena::{Held, HeldRow};
use crate::ssd::RowBatch;
use crate::store::{Inner, Table};
use crate::tally::add;
use crate::{Error, Result};

/// Bytes after which a batch is written.
const BATCH_BYTES: usize = 1 << 20;
/// Blocks that a flush looks through before it lets stages in between.
const FLUSH_BLOCKS: u32 = 16;

impl Inner {
    /// Writes the dirty rows among `held` and marks them clean. The rows' lock is not held while
    /// RocksDB writes, for a write may stall.
    pub(crate) fn write_dirty(&self, held: &mut Held, tables: &[Arc<Table>]) -> Result<()> {
        held.sort();
        let mut batch = self.ssd.batch();
        let mut i = 0;
        while let Some(first) = held.rows().get(i) {
            let table = &tables[first.owner as usize];
            {
                let rows = held.read(&table.rows);
                while let Some(row) = held.rows().get(i)
                    && row.owner == first.owner
                    && batch.bytes() < BATCH_BYTES
                {
                    if rows.take_dirty(i) {
                        self.put(&mut batch, table, row, rows.row(i));
                        held.set_on_ssd(i);
                    }
                    i += 1;
                }
            }
            if batch.bytes() >= BATCH_BYTES {
                self.ssd.write(&mut batch)?;
            }
        }
        self.ssd.write(&mut batch)
    }

    fn put(&self, batch: &mut RowBatch<'_>, table: &Table, row: &HeldRow, floats: &[f32]) {
        assert_eq!(floats.len(), table.layout.floats(), "{}, key {}", table.id, row.key);
        batch.put(table.id, row.key, floats);
        let tally = &table.tally;
        add(&tally.writebacks, 1);
        add(&tally.ssd_bytes_written, table.layout.bytes() as u64);
        if !self.arena.is_on_ssd(row.slot) {
            add(&tally.rows_ssd, 1);
        }
    }

    /// Writes every row down that is dirty now, and makes RocksDB write its memtables.
    pub(crate) fn flush(&self) -> Result<()> {
        let mut next = 0;
        loop {
            let room = self.room.lock();
            self.ssd.check()?;
            let tables = self.tables_now();
            let end = (next + FLUSH_BLOCKS).min(room.blocks.len() as u32);
            for block in next..end {
                let mut held = Held::none(&self.arena);
                for slot in room.blocks.slots_of(block) {
                    let state = self.arena.state(slot);
                    if state.is_occupied() && state.is_dirty() {
                        held.hold(slot);
                    }
                }
                self.write_dirty(&mut held, &tables)?;
            }
            if end == room.blocks.len() as u32 {
                break;
            }
            next = end;
        }
        self.ssd.flush_rows()
    }

    /// Writes everything down and marks the store clean. No push may be under way: the caller holds
    /// the gate.
    pub(crate) fn write_clean(&self) -> Result<()> {
        self.flush()?;
        let tables = self.tables_now();
        let mut rows = Vec::with_capacity(tables.len());
        for table in tables.iter() {
            let (all, ssd) = (
                table.tally.rows.load(Ordering::Relaxed),
                table.tally.rows_ssd.load(Ordering::Relaxed),
            );
            if all != ssd {
                let record = format!("row count of {}", table.id);
                let reason = format!("{all} rows exist, {ssd} are on SSD after a flush");
                return Err(Error::CorruptMeta { record, reason });
            }
            rows.push((table.id, all));
        }
        crate::meta::write_clean(&self.ssd, &rows)
    }
}
