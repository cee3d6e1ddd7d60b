//! The store as its callers see it: open, tables, stage, pull, push, lookup, assign, status, close.
//! Each operation lives in a file of its own; here they meet.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use table::{
    KeyBatch, RowLayout, RowStatus, StoreStatus, TableId, TableSpec, TableStatus, TierStatus,
};

use crate::arena::{Arena, Blocks, RowsLock, host_bytes_per_row};
use crate::eviction::Clock;
use crate::index::Index;
use crate::ssd::Ssd;
use crate::staging::{Room, Staged, floats_of};
use crate::tally::Tally;
use crate::{Error, Result, StoreConfig, meta};

/// Embedding rows in host RAM of a byte budget over RocksDB on SSD.
///
/// Every operation is exact: what a pull or lookup returns depends on the tables, the pushes and
/// the assigns before it, and on nothing else; not on the budget, the order of stages or the
/// threads.
///
/// Rows last from a [`Store::flush`] or [`Store::close`] on. A store dropped without a close has
/// lost what was dirty in RAM; the next open says so.
pub struct Store {
    inner: Arc<Inner>,
}

/// What a store and the steps staged in it share.
pub(crate) struct Inner {
    pub(crate) config: StoreConfig,
    /// Guards: whether the store is open. Shared by every pull, push, lookup; exclusive for a
    /// close, so that no update falls between the last flush and the clean mark. First in the lock
    /// order.
    gate: RwLock<Gate>,
    /// Guards: which slots are taken, the clock's hand, and the right to change the index. Held by
    /// a stage while it works, never while it waits.
    pub(crate) room: Mutex<Room>,
    /// Guards: the index. Stages and lookups share it to probe; publishing and evicting change it.
    pub(crate) index: RwLock<Index>,
    /// Guards: the list of tables, which only grows. Held for moments.
    tables: RwLock<Arc<[Arc<Table>]>>,
    pub(crate) arena: Arc<Arena>,
    pub(crate) ssd: Ssd,
    used_bytes: Arc<AtomicU64>,
    opened_clean: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    Closed,
}

/// One table: its words, the lock over its cached rows, its counts.
pub(crate) struct Table {
    pub(crate) id: TableId,
    pub(crate) spec: TableSpec,
    pub(crate) layout: RowLayout,
    pub(crate) rows: Arc<RowsLock>,
    pub(crate) class: usize,
    pub(crate) tally: Tally,
}

impl Store {
    /// Opens the store in the configured directory, or makes one in an empty directory.
    ///
    /// One store has a directory at a time. After an unclean end this warns, counts the rows that
    /// are on SSD, and goes on with those.
    pub fn open(config: StoreConfig) -> Result<Store> {
        config.validate()?;
        let database = meta::open_dir(&config.data_dir)?;
        let ssd = Ssd::open(&database, config.ssd_memory_bytes)?;
        let specs = meta::read_tables(&ssd)?;
        let clean = meta::take_clean(&ssd)?;
        let opened_clean = clean.is_some() || specs.is_empty();
        let counts = match clean {
            Some(counts) => counts,
            None => ssd.count_rows()?,
        };
        if !opened_clean {
            tracing::warn!(
                dir = %config.data_dir.display(),
                rows = counts.iter().map(|(_, rows)| rows).sum::<u64>(),
                "the store was not closed cleanly; rows that were only in memory are lost"
            );
        }
        let inner = Inner::new(config, ssd, opened_clean)?;
        inner.add_tables(specs, &counts)?;
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Makes a table, or finds the one of that name and the same specification. When this returns,
    /// the table lasts.
    pub fn create_table(&self, spec: &TableSpec) -> Result<TableId> {
        spec.validate()?;
        let inner = &self.inner;
        let _gate = inner.enter()?;
        let mut room = inner.room.lock();
        let tables = inner.tables_now();
        if let Some(table) = tables.iter().find(|table| table.spec.name == spec.name) {
            return same_spec(&table.spec, spec).map(|()| table.id);
        }
        if tables.len() as u32 >= inner.config.tables_max {
            let (table, tables_max) = (spec.name.clone(), inner.config.tables_max);
            return Err(Error::TooManyTables { table, tables_max });
        }
        let id = TableId(tables.len() as u32);
        meta::write_table(&inner.ssd, id, spec)?;
        inner.add_table(&mut room.blocks, spec.clone(), 0);
        Ok(id)
    }

    /// Every table, in the order of their numbers.
    pub fn tables(&self) -> Vec<(TableId, TableSpec)> {
        let tables = self.inner.tables_now();
        tables.iter().map(|table| (table.id, table.spec.clone())).collect()
    }

    /// Floats of the embeddings that the batch names: Σ run x dim.
    pub fn rows_floats(&self, keys: &KeyBatch) -> Result<usize> {
        Ok(floats_of(&self.inner.runs_of(keys)?))
    }

    /// Resolves every key of the batch once (in RAM, from SSD, or made anew) and pins its row until
    /// the returned value is dropped.
    ///
    /// Blocks while the budget is full of rows that other steps hold, up to
    /// [`StoreConfig::stage_wait`]; then it answers [`Error::SlowDown`]. A batch that would not fit
    /// the empty budget answers [`Error::BatchTooLarge`] at once. After an error nothing is pinned.
    pub fn stage(&self, keys: &KeyBatch) -> Result<Staged> {
        self.inner.stage(keys)
    }

    /// Gathers the embeddings of a staged step, in the order of its keys.
    ///
    /// `rows` has [`Staged::rows_floats`] floats. It panics if another store staged the step.
    pub fn pull(&self, staged: &Staged, rows: &mut [f32]) -> Result<()> {
        self.check_own(staged);
        self.inner.pull(staged, rows)
    }

    /// Applies one gradient to each row of a staged step with its table's optimizer.
    ///
    /// `gradients` is shaped as the pull's `rows`. All of it, and the rate, is checked to be finite
    /// before any row changes. The rows stay pinned. It panics if another store staged the step.
    pub fn push(&self, staged: &Staged, gradients: &[f32], learning_rate: f32) -> Result<()> {
        self.check_own(staged);
        self.inner.push(staged, gradients, learning_rate)
    }

    /// Reads embeddings without staging: never creates, never evicts. A key never touched answers
    /// with the row that its first touch would create and [`RowStatus::Initialised`].
    ///
    /// `rows` is shaped as for a pull, `statuses` has a place for each key. After an error what is
    /// in them means nothing.
    pub fn lookup(
        &self,
        keys: &KeyBatch,
        rows: &mut [f32],           // [Σ runs, dim of the run's table]
        statuses: &mut [RowStatus], // [Σ runs]
    ) -> Result<()> {
        self.inner.lookup(keys, rows, statuses)
    }

    /// Sets embeddings; the rows' optimizer state starts anew, whether they were there or not. It
    /// works in small chunks, so that any number of rows may be given; after an error some may be
    /// set. Values that are not finite are refused before any row changes.
    pub fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Result<()> {
        self.inner.assign(keys, rows)
    }

    /// Rows, bytes and counters of every table and tier. Waits for no stage.
    pub fn status(&self) -> StoreStatus {
        self.inner.status()
    }

    /// Writes every row down that is dirty now and waits until it lasts. Stages, pulls and pushes
    /// go on meanwhile.
    pub fn flush(&self) -> Result<()> {
        let _gate = self.inner.enter()?;
        self.inner.flush()
    }

    /// Writes everything down and marks the store as cleanly closed. Every later operation answers
    /// [`Error::Closed`]; the directory is free when the store and its staged steps are dropped.
    pub fn close(&self) -> Result<()> {
        let mut gate = self.inner.gate.write();
        if *gate == Gate::Closed {
            return Err(Error::Closed);
        }
        self.inner.write_clean()?;
        *gate = Gate::Closed;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    fn check_own(&self, staged: &Staged) {
        assert!(staged.is_of(&self.inner), "the step was staged in another store");
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if *self.inner.gate.read() == Gate::Open {
            let dir = self.inner.config.data_dir.display();
            tracing::warn!(%dir, "the store was dropped without a close; dirty rows are lost");
        }
    }
}

impl Inner {
    fn new(config: StoreConfig, ssd: Ssd, opened_clean: bool) -> Result<Inner> {
        let no_memory = |source| Error::Io { context: "map the host RAM".to_owned(), source };
        let budget_bytes = config.host_ram_bytes as usize;
        let arena = Arc::new(Arena::map(Blocks::of_budget(budget_bytes)).map_err(no_memory)?);
        let used_bytes = Arc::new(AtomicU64::new(0));
        let blocks = Blocks::new(Arc::clone(&arena), budget_bytes, Arc::clone(&used_bytes));
        Ok(Inner {
            config,
            gate: RwLock::new(Gate::Open),
            room: Mutex::new(Room { blocks, clock: Clock::default() }),
            index: RwLock::new(Index::new(1).map_err(no_memory)?),
            tables: RwLock::new(Arc::from([])),
            arena,
            ssd,
            used_bytes,
            opened_clean,
        })
    }

    fn add_tables(&self, specs: Vec<TableSpec>, counts: &[(TableId, u64)]) -> Result<()> {
        if let Some((stray, rows)) = counts.iter().find(|(id, _)| id.0 as usize >= specs.len()) {
            let reason = format!("{rows} rows are there, the table is not");
            return Err(Error::CorruptMeta { record: stray.to_string(), reason });
        }
        let mut room = self.room.lock();
        for (id, spec) in (0..).map(TableId).zip(specs) {
            let rows = counts.iter().find(|count| count.0 == id).map_or(0, |count| count.1);
            self.add_table(&mut room.blocks, spec, rows);
        }
        Ok(())
    }

    fn add_table(&self, blocks: &mut Blocks, spec: TableSpec, rows_ssd: u64) {
        let mut tables = self.tables.write();
        let layout = spec.layout();
        let rows = self.arena.add_owner(layout.floats());
        let id = TableId(tables.len() as u32);
        assert_eq!(rows.owner(), id.0, "owners and tables are numbered alike");
        let class = blocks.class_of(rows.geometry());
        let tally = Tally::of_rows(rows_ssd);
        let table = Table { id, spec, layout, rows: Arc::new(rows), class, tally };
        *tables = tables.iter().cloned().chain([Arc::new(table)]).collect();
    }

    /// The tables as they are now.
    pub(crate) fn tables_now(&self) -> Arc<[Arc<Table>]> {
        Arc::clone(&self.tables.read())
    }

    /// Lets an operation in, if the store is open and sound; it is in until the guard is dropped.
    pub(crate) fn enter(&self) -> Result<RwLockReadGuard<'_, Gate>> {
        let gate = self.gate.read();
        match *gate {
            Gate::Open => self.ssd.check().map(|()| gate),
            Gate::Closed => Err(Error::Closed),
        }
    }

    fn status(&self) -> StoreStatus {
        StoreStatus {
            tables: self.tables_now().iter().map(|table| table.status()).collect(),
            host_ram_budget_bytes: self.config.host_ram_bytes,
            host_ram_used_bytes: self.used_bytes.load(Ordering::Relaxed),
            pinned_rows: self.arena.pinned_rows(),
            opened_clean: self.opened_clean,
        }
    }
}

impl Table {
    /// Refuses stored bytes that can't be a row of this table.
    pub(crate) fn check_row_bytes(&self, key: table::Key, bytes: &[u8]) -> Result<()> {
        let (found, expected) = (bytes.len(), self.layout.bytes());
        if found == expected {
            return Ok(());
        }
        Err(Error::Corrupt { table: self.id, key, found, expected })
    }

    fn status(&self) -> TableStatus {
        let rows_host = self.tally.rows_host.load(Ordering::Relaxed);
        let rows_ssd = self.tally.rows_ssd.load(Ordering::Relaxed);
        TableStatus {
            id: self.id,
            spec: self.spec.clone(),
            rows: self.tally.rows.load(Ordering::Relaxed),
            gpu: TierStatus::default(),
            host: TierStatus {
                rows: rows_host,
                bytes: rows_host * host_bytes_per_row(self.layout),
            },
            ssd: TierStatus { rows: rows_ssd, bytes: rows_ssd * (12 + self.layout.bytes() as u64) },
            counters: self.tally.counters(),
        }
    }
}

fn same_spec(existing: &TableSpec, requested: &TableSpec) -> Result<()> {
    let TableSpec { name, dim, optimizer, initializer, seed } = existing;
    let differs = |field, existing: String, requested: String| {
        Err(Error::AlreadyExists { table: name.clone(), field, existing, requested })
    };
    if *dim != requested.dim {
        return differs("dim", dim.to_string(), requested.dim.to_string());
    }
    if *optimizer != requested.optimizer {
        return differs(
            "optimizer",
            format!("{optimizer:?}"),
            format!("{:?}", requested.optimizer),
        );
    }
    if *initializer != requested.initializer {
        let (existing, requested) =
            (format!("{initializer:?}"), format!("{:?}", requested.initializer));
        return differs("initializer", existing, requested);
    }
    if *seed != requested.seed {
        return differs("seed", seed.to_string(), requested.seed.to_string());
    }
    Ok(())
}
