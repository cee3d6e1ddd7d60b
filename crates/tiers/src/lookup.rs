//! Reading without staging: never inserts, never evicts, marks nothing as referenced. A row is held
//! only while it is copied.

use table::{KeyBatch, RowStatus};

use crate::Result;
use crate::arena::{Pinned, PinnedRun};
use crate::index;
use crate::staging::{Run, check_shape, floats_of};
use crate::store::Inner;
use crate::tally::add;

/// Keys that are looked up under one hold of the index.
const LOOKUP_KEYS: usize = 4096;

impl Inner {
    /// See [`crate::Store::lookup`].
    pub(crate) fn lookup(
        &self,
        keys: &KeyBatch,
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<()> {
        let _gate = self.enter()?;
        let runs = self.runs_of(keys)?;
        check_shape("the buffer of the rows", rows.len(), floats_of(&runs))?;
        check_shape("the buffer of the statuses", statuses.len(), keys.len())?;
        let mut rest = rows;
        for run in &runs {
            let dim = run.table.layout.dim;
            let (rows, after) = rest.split_at_mut(run.range.len() * dim);
            rest = after;
            let keys = &keys.keys()[run.range.clone()];
            let statuses = &mut statuses[run.range.clone()];
            for ((keys, rows), statuses) in keys
                .chunks(LOOKUP_KEYS)
                .zip(rows.chunks_mut(LOOKUP_KEYS * dim))
                .zip(statuses.chunks_mut(LOOKUP_KEYS))
            {
                let missed = self.lookup_host(run, keys, rows, statuses);
                self.lookup_ssd(run, keys, &missed, rows, statuses)?;
            }
        }
        Ok(())
    }

    /// Copies what is in RAM; tells which keys are not.
    fn lookup_host(
        &self,
        run: &Run,
        keys: &[table::Key],
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Vec<usize> {
        let dim = run.table.layout.dim;
        let index = self.index.read(); // an eviction waits for it, so that a row found stays
        let whole = PinnedRun { rows: run.table.rows.clone(), range: 0..keys.len() };
        let mut held = Pinned::none(&self.arena, vec![whole], false);
        for (i, &key) in keys.iter().enumerate() {
            let hash = index::hash(run.table.rows.owner(), key);
            index.find(hash, |slot| held.pin(0, i, slot, key));
        }
        let mut missed = Vec::new();
        {
            let found = held.read(0);
            for (i, out) in rows.chunks_exact_mut(dim).enumerate() {
                if held.is_pinned(i) {
                    out.copy_from_slice(&found.row(i)[..dim]);
                    statuses[i] = RowStatus::Host;
                } else {
                    missed.push(i);
                }
            }
        }
        drop(held); // before the index is let go
        drop(index);
        let found = (keys.len() - missed.len()) * dim * size_of::<f32>();
        add(&run.table.tally.host_bytes_read, found as u64);
        missed
    }

    /// Reads the others from SSD; one that is not there answers with its initial row.
    fn lookup_ssd(
        &self,
        run: &Run,
        keys: &[table::Key],
        missed: &[usize],
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<()> {
        let table = &run.table;
        let dim = table.layout.dim;
        let missed_keys = missed.iter().map(|&i| keys[i]);
        let mut read = 0;
        self.ssd.read(table.id, table.layout.bytes(), missed_keys, |m, key, value| {
            let i = missed[m];
            let out = &mut rows[i * dim..][..dim];
            statuses[i] = match value {
                Some(bytes) => {
                    table.check_row_bytes(key, bytes)?;
                    let embedding = &bytes[..size_of_val(out)];
                    bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(embedding);
                    read += bytes.len() as u64;
                    RowStatus::Ssd
                }
                None => {
                    table.spec.initial_embedding(key, out);
                    RowStatus::Initialised
                }
            };
            Ok(())
        })?;
        add(&table.tally.ssd_bytes_read, read);
        Ok(())
    }
}
