//! The store as its callers see it: open, tables, stage, pull, push, lookup, assign, status, close.
//! Each operation lives in a file of its own; here they meet.

use std::ops::Range;
use std::sync::Arc;

use dashmap::DashMap;
use table::{
    DeviceId, DevicePlaces, Expiry, Key, KeyBatch, Latencies, RowLayout, RowStatus, StoreStatus,
    TableId, TableSpec, TableStatus, TierStatus,
};

use crate::admission::Sketch;
use crate::arena::{Layout, MemoryUse, RowsLock};
use crate::budget::Budget;
use crate::class::Class;
use crate::config::Clock;
use crate::device::{DeviceTier, Places};
use crate::down::Down;
use crate::latency::Times;
use crate::live::Live;
use crate::reads::{Intake, Readers};
use crate::room::Room;
use crate::section::host_bytes_per_row;
use crate::spare::Spare;
use crate::ssd::Ssd;
use crate::staging::{Staged, Staging, floats_of};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock, RwLockReadGuard};
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
    /// Guards: whether the store is open. Shared by every stage, pull, push, lookup; exclusive for
    /// a close, so that no update falls between the last flush and the clean mark. First in the
    /// lock order.
    gate: RwLock<Gate>,
    /// Guards: that one flush walks over the rows at a time. Before the room.
    pub(crate) flushing: Mutex<()>,
    /// Guards: the right to make room and to bring rows in. Held by one stage at a time while it
    /// works, never while it waits for rows to be released.
    pub(crate) room: Mutex<Room>,
    /// Guards: that no stage is between pinning rows and saying so. Shared by probes, exclusive for
    /// an eviction.
    pub(crate) pinning: RwLock<()>,
    /// Guards: the list of tables, which only grows. Held for moments.
    tables: RwLock<Arc<[Arc<Table>]>>,
    /// Guards: the list of classes, which only grows. Held for moments.
    classes: RwLock<Arc<[Arc<Class>]>>,
    /// Guards: the sights of keys without a row. Held for moments, before the room.
    pub(crate) sketch: Mutex<Option<Sketch>>,
    pub(crate) live: Live,
    pub(crate) spare: Spare,
    /// Twice the stages that claimed slots so far, and one more while one does; changes under the
    /// room lock.
    pub(crate) claims: AtomicU64,
    pub(crate) budget: Budget,
    pub(crate) device: Option<Arc<DeviceTier>>,
    /// Of stages, until every key is resolved and pinned.
    pub(crate) stage_times: Times,
    /// Keys of all stages so far, for the looks at rows on SSD that may have expired.
    pub(crate) keys_staged: AtomicU64,
    /// What a test does when the next claim has begun.
    #[cfg(test)]
    pub(crate) claim_pause: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    pub(crate) intake: Arc<Intake>,
    pub(crate) ssd: Arc<Ssd>,
    pub(crate) down: Down,
    pub(crate) readers: Mutex<Readers>,
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
    pub(crate) rows: RowsLock,
    pub(crate) class: Arc<Class>,
    /// Rows in RAM: below the first no other table takes them, above the second only its own go.
    pub(crate) share_rows: Range<u64>,
    pub(crate) tally: Tally,
    time: Clock,
}

impl Store {
    /// Opens the store in the configured directory, or makes one in an empty directory.
    ///
    /// One store has a directory at a time. After an unclean end this warns, counts the rows that
    /// are on SSD, and goes on with those.
    pub fn open(config: StoreConfig) -> Result<Store> {
        config.validate()?;
        let device = DeviceTier::open(&config)?; // before a directory is made
        let database = meta::open_dir(&config.data_dir)?;
        let ssd = Ssd::open(&database, &config)?;
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
        let inner = Inner::new(config, Arc::new(ssd), device, opened_clean)?;
        inner.add_tables(specs, &counts)?;
        Ok(Store { inner: Arc::new(inner) })
    }

    /// Makes a table, or finds the one of that name and the same specification. When this returns,
    /// the table lasts.
    pub fn create_table(&self, spec: &TableSpec) -> Result<TableId> {
        spec.validate()?;
        let inner = &self.inner;
        let _gate = inner.enter()?;
        let _room = inner.room.lock();
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
        inner.add_table(spec.clone(), 0)?;
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
    ///
    /// A row whose record on SSD can't be read is [`RowStatus::Failed`] and not replaced: the step
    /// is pulled with [`Self::pull_some`], and refuses to be pulled otherwise, or pushed.
    pub fn stage(&self, keys: &KeyBatch) -> Result<Staged> {
        self.inner.stage(keys)
    }

    /// Begins a stage: resolves and pins, and lets the rows that are on SSD come in behind the
    /// caller, who may begin the next stage meanwhile. Otherwise as [`Self::stage`].
    pub fn begin_stage(&self, keys: &KeyBatch) -> Result<Staging> {
        self.inner.begin_stage(keys)
    }

    /// Gathers the embeddings of a staged step, in the order of its keys.
    ///
    /// `rows` has [`Staged::rows_floats`] floats. It panics if another store staged the step.
    pub fn pull(&self, staged: &Staged, rows: &mut [f32]) -> Result<()> {
        self.check_own(staged);
        self.inner.pull(staged, rows)
    }

    /// As [`Self::pull`], also of a step with rows that could not be read: where
    /// [`Staged::statuses`] says [`RowStatus::Failed`] all floats are NaN.
    pub fn pull_some(&self, staged: &Staged, rows: &mut [f32]) -> Result<()> {
        self.check_own(staged);
        self.inner.pull_some(staged, rows)
    }

    /// Applies one gradient to each row of a staged step with its table's optimizer.
    ///
    /// `gradients` is shaped as the pull's `rows`. All of it, and the rate, is checked to be finite
    /// before any row changes. The rows stay pinned. It panics if another store staged the step.
    pub fn push(&self, staged: &Staged, gradients: &[f32], learning_rate: f32) -> Result<()> {
        self.check_own(staged);
        self.inner.push(staged, gradients, learning_rate)
    }

    /// The device that rows are on, as far as they find room there.
    pub fn device(&self) -> Option<DeviceId> {
        self.inner.device.as_ref().map(|tier| tier.id())
    }

    /// The same, where other processes may share places on it.
    pub fn device_for_others(&self) -> Option<DeviceId> {
        self.inner.device.as_ref().filter(|tier| tier.shares()).map(|tier| tier.id())
    }

    /// Takes a worker's places on the device; [`table::DevicePlaces`] has the rules. From here on
    /// addresses of staged rows go up when a step is staged.
    pub fn lend_places(&self, places: &DevicePlaces) -> Result<Places> {
        self.inner.lend_places(places)
    }

    /// As [`Self::pull`], into the rows of a slot of places on the device. It orders the work and
    /// does not wait for it.
    pub fn pull_on_device(&self, staged: &Arc<Staged>, places: &Places, slot: u32) -> Result<()> {
        self.check_own(staged);
        self.inner.pull_on_device(staged, places, slot)
    }

    /// As [`Self::push`], of the gradients of a slot of places on the device. It orders the work
    /// and does not wait for it; the rows stay pinned until it is done. Whether a gradient was not
    /// finite, and so no row changed, is told by the first call with these places that finds the
    /// work done. A step is pushed there once.
    pub fn push_on_device(
        &self,
        staged: &Arc<Staged>,
        places: &Places,
        slot: u32,
        learning_rate: f32,
    ) -> Result<()> {
        self.check_own(staged);
        self.inner.push_on_device(staged, places, slot, learning_rate)
    }

    /// Looks until a worker in another process has done in a slot what it said it had ordered;
    /// false if it is given up, and then no work may be ordered there.
    pub fn look_for_worker(
        &self,
        places: &Places,
        slot: u32,
        given_up: impl FnMut() -> bool,
    ) -> Result<bool> {
        self.inner.look_for_worker(places, slot, given_up)
    }

    /// Waits until what was ordered in a slot is done.
    pub fn finish_slot(&self, places: &Places, slot: u32) -> Result<()> {
        self.inner.finish_slot(places, slot)
    }

    /// Waits until all pushes from these places are done, and tells the first error among them.
    pub fn settle_on_device(&self, places: &Places) -> Result<()> {
        self.inner.settle_on_device(places)
    }

    /// Reads embeddings without staging: never creates, never evicts. A key never touched answers
    /// with the row that its first touch would create and [`RowStatus::Initialised`]; one whose
    /// record on SSD can't be read, with NaN and [`RowStatus::Failed`].
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
        while self.inner.let_go_of_one()? {}
        self.inner.write_clean()?;
        *gate = Gate::Closed;
        Ok(())
    }

    #[cfg(test)]
    #[cfg(feature = "shuttle")]
    pub(crate) fn of(inner: Inner) -> Store {
        Store { inner: Arc::new(inner) }
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
        // steps whose push is under way hold the store
        while self.inner.let_go_of_one().is_ok_and(|one| one) {}
        if *self.inner.gate.read() == Gate::Open {
            let dir = self.inner.config.data_dir.display();
            tracing::warn!(%dir, "the store was dropped without a close; dirty rows are lost");
        }
    }
}

impl Inner {
    pub(crate) fn new(
        config: StoreConfig,
        ssd: Arc<Ssd>,
        device: Option<Arc<DeviceTier>>,
        opened_clean: bool,
    ) -> Result<Inner> {
        let stages = AtomicU64::new(meta::read_stages(&ssd)?);
        let intake = Arc::new(Intake { ssd: Arc::clone(&ssd), loads: DashMap::new(), stages });
        Ok(Inner {
            gate: RwLock::new(Gate::Open),
            flushing: Mutex::new(()),
            room: Mutex::new(Room::new()),
            pinning: RwLock::new(()),
            tables: RwLock::new(Arc::from([])),
            classes: RwLock::new(Arc::from([])),
            sketch: Mutex::new(meta::read_sketch(&ssd)?),
            live: Live::default(),
            spare: Spare::default(),
            claims: AtomicU64::new(0),
            stage_times: Times::default(),
            keys_staged: AtomicU64::new(0),
            budget: Budget::new(config.host_ram_bytes),
            device,
            #[cfg(test)]
            claim_pause: Mutex::new(None),
            down: Down::start(Arc::clone(&ssd), &config)?,
            readers: Mutex::new(Readers::start(config.ssd_read_threads, &intake)?),
            intake,
            ssd,
            config,
            opened_clean,
        })
    }

    pub(crate) fn add_tables(
        &self,
        specs: Vec<TableSpec>,
        counts: &[(TableId, u64)],
    ) -> Result<()> {
        if let Some((stray, rows)) = counts.iter().find(|(id, _)| id.0 as usize >= specs.len()) {
            let reason = format!("{rows} rows are there, the table is not");
            return Err(Error::CorruptMeta { record: stray.to_string(), reason });
        }
        for (id, spec) in (0..).map(TableId).zip(specs) {
            let rows = counts.iter().find(|count| count.0 == id).map_or(0, |count| count.1);
            self.add_table(spec, rows)?;
        }
        Ok(())
    }

    fn add_table(&self, spec: TableSpec, rows_ssd: u64) -> Result<()> {
        let layout = spec.layout();
        let stamped = spec.expiry != Expiry::Never;
        let class = self.class_of(Layout { dim: layout.dim, state: layout.state, stamped })?;
        let share = self.config.shares.iter().find(|share| share.table == spec.name);
        let share_rows = share.map_or(0..u64::MAX, |share| {
            let row_bytes = host_bytes_per_row(layout);
            share.host_bytes_min / row_bytes..share.host_bytes_max / row_bytes
        });
        let mut tables = self.tables.write();
        let id = TableId(tables.len() as u32);
        let (rows, tally) = (RowsLock::default(), Tally::of_rows(rows_ssd));
        let time = self.config.clock.clone();
        let table = Table { id, spec, layout, rows, class, share_rows, tally, time };
        *tables = tables.iter().cloned().chain([Arc::new(table)]).collect();
        Ok(())
    }

    /// The class of rows of this layout, made if it is new.
    fn class_of(&self, layout: Layout) -> Result<Arc<Class>> {
        let mut classes = self.classes.write();
        if let Some(class) = classes.iter().find(|class| class.arena.layout() == layout) {
            return Ok(Arc::clone(class));
        }
        let budget_bytes = self.config.host_ram_bytes as usize;
        let memory = MemoryUse { budget_bytes, lock: self.config.lock_memory };
        let class = Class::reserve(classes.len() as u32, layout, memory).map_err(|source| {
            let lock = if memory.lock { " and lock" } else { "" };
            Error::Io { context: format!("map{lock} the host RAM"), source }
        })?;
        let class = Arc::new(class);
        *classes = classes.iter().cloned().chain([Arc::clone(&class)]).collect();
        Ok(class)
    }

    /// The classes as they are now.
    pub(crate) fn classes_now(&self) -> Arc<[Arc<Class>]> {
        Arc::clone(&self.classes.read())
    }

    /// What a table's rows are stamped with now.
    pub(crate) fn clock_of(&self, table: &Table) -> u32 {
        table.clock(&self.intake.stages)
    }

    /// Stages begun so far.
    pub(crate) fn stages_now(&self) -> u64 {
        self.intake.stages.load(Ordering::Relaxed)
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

    /// Writes everything down and marks the store clean. No push may be under way: the caller holds
    /// the gate.
    fn write_clean(&self) -> Result<()> {
        self.flush()?;
        let tables = self.tables_now();
        let mut rows = Vec::with_capacity(tables.len());
        for table in tables.iter() {
            let all = table.tally.rows.load(Ordering::Relaxed);
            let ssd = table.tally.rows_ssd.load(Ordering::Relaxed);
            if all != ssd {
                let record = format!("row count of {}", table.id);
                let reason = format!("{all} rows exist, {ssd} are on SSD after a flush");
                return Err(Error::CorruptMeta { record, reason });
            }
            rows.push((table.id, all));
        }
        meta::write_clean(&self.ssd, &rows)
    }

    fn status(&self) -> StoreStatus {
        let (written, merged) = self.ssd.file_bytes();
        let device = self.device.as_ref().map(|device| device.status()).unwrap_or_default();
        StoreStatus {
            tables: self.tables_now().iter().map(|table| table.status()).collect(),
            host_ram_budget_bytes: self.config.host_ram_bytes,
            host_ram_used_bytes: self.budget.used(),
            gpu_cache_bytes: device.budget_bytes,
            gpu_stages: device.stages.times(),
            gpu_stages_us: device.stages.sum_ns / 1000,
            pinned_rows: self.live.rows(),
            going_down_rows: self.down.waiting(),
            ssd_file_bytes_written: written,
            ssd_file_bytes_merged: merged,
            latencies: Latencies {
                host_stage: self.stage_times.told(),
                ssd_read: self.ssd.reads.told(),
                ssd_write: self.ssd.writes.told(),
                gpu_stage: device.stages,
                gpu_move: device.moves,
            },
            opened_clean: self.opened_clean,
        }
    }
}

impl Table {
    /// Whether the table's rows carry a stamp.
    pub(crate) fn stamped(&self) -> bool {
        self.class.arena.layout().stamped
    }

    /// What the table's rows are stamped with now.
    pub(crate) fn clock(&self, stages: &AtomicU64) -> u32 {
        match self.spec.expiry {
            Expiry::Never => 0,
            // a row's age is a difference of stamps, right as long as it is below 2^31 stages
            Expiry::Steps(_) => stages.load(Ordering::Relaxed) as u32,
            Expiry::Seconds(_) => self.time.stamp(),
        }
    }

    /// Whether a row that was stamped then counts as forgotten now. Rows without a stamp, of a
    /// store that was written before rows could expire, never do.
    pub(crate) fn is_expired(&self, stamp: Option<u32>, now: u32) -> bool {
        let (Expiry::Steps(most) | Expiry::Seconds(most)) = self.spec.expiry else { return false };
        // after a crash, or with a clock put back, a stamp may lie ahead: such a row is young
        let age = |stamp: u32| now.wrapping_sub(stamp) as i32;
        stamp.is_some_and(|stamp| i64::from(age(stamp)) > i64::from(most))
    }

    /// Whether a row that was stamped then has been expired for a `share`-th of a row's life.
    pub(crate) fn is_expired_long(&self, stamp: u32, now: u32, share: u32) -> bool {
        let (Expiry::Steps(most) | Expiry::Seconds(most)) = self.spec.expiry else { return false };
        let age = now.wrapping_sub(stamp) as i32;
        i64::from(age) > i64::from(most) + i64::from(most / share)
    }

    /// Writes the row that `key` has before its first update.
    pub(crate) fn initialise(&self, key: Key, embedding: &mut [f32], state: &mut [f32]) {
        self.spec.initial_embedding(key, embedding);
        state.fill(self.spec.optimizer.initial_state());
    }

    fn status(&self) -> TableStatus {
        let rows_gpu = self.tally.rows_gpu.load(Ordering::Relaxed);
        let rows_host = self.tally.rows_host.load(Ordering::Relaxed);
        let rows_ssd = self.tally.rows_ssd.load(Ordering::Relaxed);
        TableStatus {
            id: self.id,
            spec: self.spec.clone(),
            rows: self.tally.rows.load(Ordering::Relaxed),
            gpu: TierStatus {
                rows: rows_gpu,
                bytes: rows_gpu * crate::device::device_bytes_per_row(self.layout),
            },
            host: TierStatus {
                rows: rows_host,
                bytes: rows_host * host_bytes_per_row(self.layout),
            },
            ssd: TierStatus { rows: rows_ssd, bytes: rows_ssd * (13 + self.layout.bytes() as u64) },
            counters: self.tally.counters(),
        }
    }
}

fn same_spec(existing: &TableSpec, requested: &TableSpec) -> Result<()> {
    let TableSpec { name, dim, optimizer, initializer, seed, admission, expiry } = existing;
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
    if *admission != requested.admission {
        return differs(
            "admission",
            format!("{admission:?}"),
            format!("{:?}", requested.admission),
        );
    }
    if *expiry != requested.expiry {
        return differs("expiry", format!("{expiry:?}"), format!("{:?}", requested.expiry));
    }
    Ok(())
}
