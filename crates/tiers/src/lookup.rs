//! Reading without staging: never inserts, never evicts, marks nothing as referenced. A row is held
//! only while it is copied.

use table::{Key, KeyBatch, RowStatus};

use crate::Result;
use crate::index;
use crate::staging::{Run, check_shape, floats_of};
use crate::store::{Inner, Table};
use crate::stored::StoredRow;
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
                let missed = self.lookup_host(run, keys, rows, statuses)?;
                self.lookup_ssd(run, keys, &missed, rows, statuses)?;
            }
        }
        Ok(())
    }

    /// Copies what is in RAM, or on its way down; tells which keys are not.
    fn lookup_host(
        &self,
        run: &Run,
        keys: &[Key],
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<Vec<usize>> {
        let table = &run.table;
        let (dim, class, now) = (table.layout.dim, &table.class, self.clock_of(table));
        let mut probes: Vec<(u32, u64, usize)> = keys
            .iter()
            .enumerate()
            .map(|(i, &key)| {
                let hash = index::hash(table.id, key);
                (class.section_of(hash), hash, i)
            })
            .collect();
        probes.sort_unstable();
        let (mut missed, mut found) = (Vec::new(), 0);
        for of_section in probes.chunk_by(|a, b| a.0 == b.0) {
            let section = class.sections[of_section[0].0 as usize].lock();
            let _read = table.rows.read();
            self.quiet()?;
            let hashed = of_section.iter().map(|&(_, hash, i)| (hash, keys[i]));
            self.bring_down_found(table, &section, hashed)?;
            for &(_, hash, i) in of_section {
                let out = &mut rows[i * dim..][..dim];
                let entry = section.find(hash, table.id).map(|at| section.entry(at));
                if let Some(entry) = entry.filter(|entry| !entry.meta.is_loading()) {
                    let row = section.row(entry.slot);
                    if table.stamped() && table.is_expired(Some(class.arena.stamp(row)), now) {
                        table.spec.initial_embedding(keys[i], out);
                        statuses[i] = RowStatus::Initialised;
                    } else {
                        class.arena.read(row, |embedding, _| out.copy_from_slice(embedding));
                        let on_device = class.arena.is_on_device(row);
                        statuses[i] = if on_device { RowStatus::Gpu } else { RowStatus::Host };
                        found += 1;
                    }
                    continue;
                }
                let caught = self
                    .down
                    .read(table.id, keys[i], |bytes| read_stored(table, keys[i], bytes, now, out));
                match caught.transpose()? {
                    Some(status) => statuses[i] = status,
                    None => missed.push(i),
                }
            }
        }
        missed.sort_unstable(); // the SSD is read in the order of its keys
        add(&table.tally.host_bytes_read, (found * dim * size_of::<f32>()) as u64);
        Ok(missed)
    }

    /// Reads the others from SSD; one that is not there answers with its initial row.
    fn lookup_ssd(
        &self,
        run: &Run,
        keys: &[Key],
        missed: &[usize],
        rows: &mut [f32],
        statuses: &mut [RowStatus],
    ) -> Result<()> {
        let table = &run.table;
        let (dim, now) = (table.layout.dim, self.clock_of(table));
        let missed_keys = missed.iter().map(|&i| keys[i]);
        let (mut read, mut failed) = (0, 0);
        self.ssd.read(table.id, table.layout.bytes(), missed_keys, |m, key, value| {
            let i = missed[m];
            let out = &mut rows[i * dim..][..dim];
            let found = value.and_then(|value| match value {
                Some(bytes) => {
                    read += bytes.len() as u64;
                    read_stored(table, key, bytes, now, out)
                }
                None => {
                    table.spec.initial_embedding(key, out);
                    Ok(RowStatus::Initialised)
                }
            });
            statuses[i] = found.unwrap_or_else(|error| {
                if failed == 0 {
                    tracing::warn!(table = %table.id, %key, %error, "a row can't be read");
                }
                failed += 1;
                out.fill(f32::NAN);
                RowStatus::Failed
            });
            Ok(())
        })?;
        add(&table.tally.failed, failed);
        add(&table.tally.ssd_bytes_read, read);
        Ok(())
    }
}

fn read_stored(
    table: &Table,
    key: Key,
    bytes: &[u8],
    now: u32,
    out: &mut [f32],
) -> Result<RowStatus> {
    let stored = StoredRow::decode(table, key, bytes)?;
    if table.is_expired(stored.stamp, now) {
        table.spec.initial_embedding(key, out);
        return Ok(RowStatus::Initialised);
    }
    bytemuck::cast_slice_mut::<f32, u8>(out).copy_from_slice(stored.embedding);
    Ok(RowStatus::Ssd)
}
