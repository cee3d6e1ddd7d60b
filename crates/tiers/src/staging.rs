//! A step's rows: stage resolves every key once and pins its row; pull gathers and push updates at
//! the slots that the stage found, with no key hashed and no index touched. One stage works at a
//! time.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use table::{KeyBatch, TableId};

use crate::arena::{Blocks, Fresh, Pinned, PinnedRun, RowOrigin};
use crate::eviction::Clock;
use crate::index;
use crate::store::{Inner, Table};
use crate::tally::add;
use crate::{Error, Result};

/// Keys between a bucket's prefetch and its use.
const PROBE_AHEAD: usize = 8;
/// Rows between a row's prefetch and its use.
const ROWS_AHEAD: usize = 8;

/// The rows of one staged step, pinned in RAM. Dropping it unpins them and wakes waiting stages.
pub struct Staged {
    inner: Arc<Inner>,
    runs: Vec<Run>,
    pinned: Pinned,
    floats: usize,
}

/// What stages work on, one at a time.
pub(crate) struct Room {
    pub(crate) blocks: Blocks,
    pub(crate) clock: Clock,
}

/// One table's share of a batch.
pub(crate) struct Run {
    pub(crate) table: Arc<Table>,
    pub(crate) range: Range<usize>,
}

/// The keys of a batch that are not in RAM.
struct Misses {
    positions: Vec<u32>,     // [misses], ascending
    runs: Vec<Range<usize>>, // for each run of the batch, its share of `positions`
}

impl Staged {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.pinned.rows()
    }

    /// Floats of a pull's rows and of a push's gradients: Σ rows x dim.
    pub fn rows_floats(&self) -> usize {
        self.floats
    }

    pub(crate) fn is_of(&self, inner: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.inner, inner)
    }

    /// Sets the embeddings of a batch of one table; the optimizer's state starts anew.
    pub(crate) fn set_rows(&self, embeddings: &[f32]) {
        let table = &self.runs[0].table;
        let mut rows = self.pinned.write(0);
        for (i, embedding) in embeddings.chunks_exact(table.layout.dim).enumerate() {
            let (row, state) = rows.row_mut(i).split_at_mut(table.layout.dim);
            row.copy_from_slice(embedding);
            state.fill(table.spec.optimizer.initial_state());
        }
        drop(rows);
        add(&table.tally.host_bytes_written, (self.rows() * table.layout.bytes()) as u64);
    }
}

impl Inner {
    /// Resolves the batch's tables.
    pub(crate) fn runs_of(&self, keys: &KeyBatch) -> Result<Vec<Run>> {
        let tables = self.tables_now();
        let run = |(id, range): (TableId, Range<usize>)| match tables.get(id.0 as usize) {
            Some(table) => Ok(Run { table: Arc::clone(table), range }),
            None => Err(Error::UnknownTable { table: id, tables: tables.len() as u32 }),
        };
        keys.runs().map(run).collect()
    }

    /// See [`crate::Store::stage`].
    pub(crate) fn stage(self: &Arc<Self>, keys: &KeyBatch) -> Result<Staged> {
        let runs = self.runs_of(keys)?;
        let deadline = Instant::now() + self.config.stage_wait;
        loop {
            let seen = self.arena.releases();
            if let Some(pinned) = self.try_stage(keys, &runs)? {
                let floats = floats_of(&runs);
                return Ok(Staged { inner: Arc::clone(self), runs, pinned, floats });
            }
            // Nothing is held while waiting: two stages that wait for each other's rows would wait
            // for ever.
            if Instant::now() >= deadline || !self.arena.wait_release(seen, deadline) {
                return Err(Error::SlowDown {
                    pinned_rows: self.arena.pinned_rows(),
                    budget_bytes: self.config.host_ram_bytes,
                });
            }
        }
    }

    fn try_stage(&self, keys: &KeyBatch, runs: &[Run]) -> Result<Option<Pinned>> {
        let _gate = self.enter()?;
        let mut room = self.room.lock();
        self.ssd.check()?;
        self.check_fits(&room.blocks, runs)?;
        if let Some(pinned) = self.stage_once(&mut room, keys, runs)? {
            return Ok(Some(pinned));
        }
        if self.arena.pinned_rows() > 0 {
            return Ok(None);
        }
        // Nobody but this batch was in its own way: its hits were spread over too many blocks. It
        // fits an empty arena, so it gets one.
        self.evict_all(&mut room)?;
        self.stage_once(&mut room, keys, runs)
    }

    fn check_fits(&self, blocks: &Blocks, runs: &[Run]) -> Result<()> {
        let needed = blocks.bytes_for(&rows_by_class(runs, |run| run.range.len()));
        if needed as u64 <= self.config.host_ram_bytes {
            return Ok(());
        }
        let budget_bytes = self.config.host_ram_bytes;
        Err(Error::BatchTooLarge { needed_bytes: needed as u64, budget_bytes })
    }

    /// One try: probe, make room, fetch, publish. `None` if held rows leave no room.
    fn stage_once(&self, room: &mut Room, keys: &KeyBatch, runs: &[Run]) -> Result<Option<Pinned>> {
        let pinned_run =
            |run: &Run| PinnedRun { rows: Arc::clone(&run.table.rows), range: run.range.clone() };
        let mut pinned = Pinned::none(&self.arena, runs.iter().map(pinned_run).collect(), true);
        let misses = self.probe(keys, runs, &mut pinned);
        let mut fresh = Fresh::none(&self.arena, misses.positions.len());
        match self.fill(room, keys, runs, &misses, &mut fresh) {
            Ok(Some(origins)) => {
                self.publish(keys, runs, &misses, &origins, fresh, &mut pinned);
                pinned.count();
                Ok(Some(pinned))
            }
            other => {
                fresh.give_back(&mut room.blocks);
                pinned.abandon();
                other.map(|_| None)
            }
        }
    }

    /// Looks every key up once and pins those that are in RAM.
    fn probe(&self, keys: &KeyBatch, runs: &[Run], pinned: &mut Pinned) -> Misses {
        let mut misses = Misses { positions: Vec::new(), runs: Vec::with_capacity(runs.len()) };
        let index = self.index.read();
        for (r, run) in runs.iter().enumerate() {
            let first = misses.positions.len();
            let owner = run.table.rows.owner();
            for i in run.range.clone() {
                let key = keys.keys()[i];
                if i + PROBE_AHEAD < run.range.end {
                    index.prefetch(index::hash(owner, keys.keys()[i + PROBE_AHEAD]));
                }
                let hash = index::hash(owner, key);
                if index.find(hash, |slot| pinned.pin(r, i, slot, key)).is_none() {
                    misses.positions.push(i as u32);
                }
            }
            misses.runs.push(first..misses.positions.len());
        }
        drop(index);
        pinned.count();
        misses
    }

    /// Takes a slot for every miss and brings its floats in. `None` if there is no room.
    fn fill(
        &self,
        room: &mut Room,
        keys: &KeyBatch,
        runs: &[Run],
        misses: &Misses,
        fresh: &mut Fresh,
    ) -> Result<Option<Vec<RowOrigin>>> {
        // Slots are claimed class by class: what one class has claimed, the next can't take away.
        let mut run_of = misses.runs.iter();
        let wanted = rows_by_class(runs, |_| run_of.next().map_or(0, |missed| missed.len()));
        for (class, wanted) in wanted {
            if !self.make_room(room, class, wanted)? {
                return Ok(None);
            }
            for (run, missed) in runs.iter().zip(&misses.runs) {
                for m in missed.clone().filter(|_| run.table.class == class) {
                    let slot = room.blocks.take(class).expect("there is room for every miss");
                    fresh.claim(m, slot);
                }
            }
        }
        let mut origins = Vec::with_capacity(misses.positions.len());
        for (run, missed) in runs.iter().zip(&misses.runs) {
            let missed_keys =
                misses.positions[missed.clone()].iter().map(|&i| keys.keys()[i as usize]);
            self.fetch(&run.table, missed_keys, missed.start, fresh, &mut origins)?;
        }
        Ok(Some(origins))
    }

    /// Reads one table's misses from SSD, and makes the rows that are not there. Whatever left RAM
    /// before was written before, so that the newest is read.
    fn fetch(
        &self,
        table: &Table,
        keys: impl ExactSizeIterator<Item = table::Key>,
        first: usize,
        fresh: &mut Fresh,
        origins: &mut Vec<RowOrigin>,
    ) -> Result<()> {
        if table.tally.rows_ssd.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            for (i, key) in keys.enumerate() {
                table.spec.initial_row(key, fresh.row_mut(first + i));
                origins.push(RowOrigin::FirstTouch);
            }
            return Ok(());
        }
        self.ssd.read(table.id, table.layout.bytes(), keys, |i, key, value| {
            let row = fresh.row_mut(first + i);
            match value {
                Some(bytes) => {
                    table.check_row_bytes(key, bytes)?;
                    bytemuck::cast_slice_mut::<f32, u8>(row).copy_from_slice(bytes);
                    origins.push(RowOrigin::Ssd);
                }
                None => {
                    table.spec.initial_row(key, row);
                    origins.push(RowOrigin::FirstTouch);
                }
            }
            Ok(())
        })
    }

    /// Enters the new rows into the index, pinned, and counts.
    fn publish(
        &self,
        keys: &KeyBatch,
        runs: &[Run],
        misses: &Misses,
        origins: &[RowOrigin],
        mut fresh: Fresh,
        pinned: &mut Pinned,
    ) {
        let mut index = self.index.write();
        for (r, (run, missed)) in runs.iter().zip(&misses.runs).enumerate() {
            let owner = run.table.rows.owner();
            for m in missed.clone() {
                let i = misses.positions[m] as usize;
                let key = keys.keys()[i];
                let slot = fresh.publish(m, key, origins[m], pinned, (r, i));
                index.insert(index::hash(owner, key), slot);
            }
            let from_ssd = origins[missed.clone()].iter().filter(|o| **o == RowOrigin::Ssd);
            count_stage(run, missed.len() as u64, from_ssd.count() as u64);
        }
    }

    /// See [`crate::Store::pull`].
    pub(crate) fn pull(&self, staged: &Staged, rows: &mut [f32]) -> Result<()> {
        let _gate = self.enter()?;
        check_shape("the buffer of the rows", rows.len(), staged.floats)?;
        let mut rest = rows;
        for (r, run) in staged.runs.iter().enumerate() {
            let dim = run.table.layout.dim;
            let (out, after) = rest.split_at_mut(run.range.len() * dim);
            rest = after;
            let rows = staged.pinned.read(r);
            for (i, out) in out.chunks_exact_mut(dim).enumerate() {
                rows.prefetch(i + ROWS_AHEAD);
                out.copy_from_slice(&rows.row(i)[..dim]);
            }
            add(&run.table.tally.host_bytes_read, size_of_val(out) as u64);
        }
        Ok(())
    }

    /// See [`crate::Store::push`].
    pub(crate) fn push(&self, staged: &Staged, gradients: &[f32], rate: f32) -> Result<()> {
        let _gate = self.enter()?;
        check_shape("the gradients", gradients.len(), staged.floats)?;
        if !rate.is_finite() {
            return Err(Error::LearningRate { found: rate });
        }
        check_finite(&staged.runs, gradients, |i| staged.pinned.key(i))?;
        let mut rest = gradients;
        for (r, run) in staged.runs.iter().enumerate() {
            let table = &run.table;
            let (gradients, after) = rest.split_at(run.range.len() * table.layout.dim);
            rest = after;
            let mut rows = staged.pinned.write(r);
            for (i, gradient) in gradients.chunks_exact(table.layout.dim).enumerate() {
                rows.prefetch(i + ROWS_AHEAD);
                optim::update_row(&table.spec.optimizer, rows.row_mut(i), gradient, rate);
            }
            let bytes = run.range.len() * table.layout.bytes();
            add(&table.tally.host_bytes_written, bytes as u64);
        }
        Ok(())
    }
}

/// Floats of the embeddings of these runs.
pub(crate) fn floats_of(runs: &[Run]) -> usize {
    runs.iter().map(|run| run.range.len() * run.table.layout.dim).sum()
}

pub(crate) fn check_shape(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::InvalidArgument { what, found, expected })
}

/// Refuses a value that is not finite and names its row. `key_at`: the key at a batch position.
pub(crate) fn check_finite(
    runs: &[Run],
    values: &[f32],
    key_at: impl Fn(usize) -> table::Key,
) -> Result<()> {
    // one pass without branches for the usual case; the culprit is looked for afterwards
    if values.iter().fold(true, |sound, x| sound & x.is_finite()) {
        return Ok(());
    }
    let mut start = 0;
    for run in runs {
        let dim = run.table.layout.dim;
        let end = start + run.range.len() * dim;
        if let Some(bad) = values[start..end].iter().position(|x| !x.is_finite()) {
            let key = key_at(run.range.start + bad / dim);
            return Err(Error::NotFinite { table: run.table.id, key, position: bad % dim });
        }
        start = end;
    }
    Ok(())
}

/// Rows of each class, classes in the order in which the runs name them.
fn rows_by_class(runs: &[Run], mut rows: impl FnMut(&Run) -> usize) -> Vec<(usize, usize)> {
    let mut by_class: Vec<(usize, usize)> = Vec::new();
    for run in runs {
        let rows = rows(run);
        match by_class.iter_mut().find(|(class, _)| *class == run.table.class) {
            Some((_, sum)) => *sum += rows,
            None => by_class.push((run.table.class, rows)),
        }
    }
    by_class
}

fn count_stage(run: &Run, missed: u64, from_ssd: u64) {
    let tally = &run.table.tally;
    let first_touches = missed - from_ssd;
    add(&tally.host_hits, run.range.len() as u64 - missed);
    add(&tally.host_misses, missed);
    add(&tally.ssd_hits, from_ssd);
    add(&tally.ssd_rereads, from_ssd);
    add(&tally.ssd_misses, first_touches);
    add(&tally.ssd_bytes_read, from_ssd * run.table.layout.bytes() as u64);
    add(&tally.first_touch, first_touches);
    add(&tally.rows, first_touches);
    add(&tally.rows_host, missed);
}
