//! A step's rows: a stage resolves every key once and pins its row; what is on SSD comes in behind
//! it (`reads`). Pull gathers and push updates at the rows that the stage found, with no key hashed
//! and no index touched.
//!
//! A stage has two parts. *Probing* looks all keys up, section by section, and pins the hits; any
//! number of stages do so at once. *Bringing in* the misses is done by one stage at a time, under
//! the room lock: it makes room, looks again, and claims a slot for each row that is still missing.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use table::{Admission, Key, KeyBatch, RowStatus, TableId};

use crate::arena::{Row, all_finite};
use crate::class::Class;
use crate::device;
use crate::index::{Meta, Probe};
use crate::live::{PinSet, SectionId};
use crate::reads::{Failure, Load, Missing};
use crate::room::{Room, Want};
use crate::section::{Finder, Hit, Past, bytes_for};
use crate::spare::{Plan, Probes};
use crate::store::{Inner, Table};
use crate::stored::StoredRow;
use crate::sync::MutexGuard;
use crate::sync::atomic::Ordering;
use crate::tally::add;
use crate::{Error, Result, index};

/// Rows between asking for the place of one in the index and entering it.
const CLAIMS_AHEAD: usize = 8;

/// The rows of one staged step, pinned in RAM. Dropping it unpins them and wakes waiting stages.
pub struct Staged {
    step: Step,
}

/// A step whose rows are on their way in. Dropping it lets go of them.
pub struct Staging {
    step: Step,
    own: Option<Arc<Load>>,
    others: Vec<Arc<Load>>, // that other stages began, of rows that this one wants too
    claims_seen: u64,       // when the probe began
}

/// A batch resolved: where each row is, and what keeps it there.
struct Step {
    /// Where there is a device, once the rows are there; lets go before the pins.
    on_device: Option<device::Resolved>,
    inner: Arc<Inner>,
    runs: Vec<Run>,
    keys: Arc<Vec<Key>>, // the batch's own
    plan: Plan,
    floats: usize,
    claimed: Vec<u64>,     // [runs], rows that were not in RAM
    renewed: Vec<u64>,     // [runs], rows that were, and had expired
    failed: Option<Error>, // why there are rows that could not be had
    pins: Vec<Pins>,
}

/// Slots that are held until this is dropped.
struct Pins {
    inner: Arc<Inner>,
    set: Arc<PinSet>,
    number: u64,
    quietly: bool,
}

/// One table's share of a batch.
pub(crate) struct Run {
    pub(crate) table: Arc<Table>,
    pub(crate) range: Range<usize>,
}

/// A key that the probe did not find.
#[derive(Clone, Copy)]
struct Miss {
    id: SectionId,
    probe: Probe,
}

/// What a probe of one section found.
struct Looked<'a> {
    id: SectionId,
    rows: &'a mut [Row], // [keys of the batch]
    set: &'a mut PinSet,
    absent: &'a mut Vec<Miss>,
    loading: Vec<Row>, // rows that others are reading
}

impl<'a> Looked<'a> {
    fn new(
        id: SectionId,
        rows: &'a mut [Row],
        set: &'a mut PinSet,
        absent: &'a mut Vec<Miss>,
    ) -> Self {
        Self { id, rows, set, absent, loading: Vec::new() }
    }
}

impl Finder for Looked<'_> {
    #[inline(always)]
    fn found(&mut self, probe: &Probe, hit: Option<Hit>) {
        let row = &mut self.rows[probe.position as usize];
        let Some(Hit { slot, row: here, loading }) = hit else {
            *row = Row::NONE;
            self.absent.push(Miss { id: self.id, probe: *probe });
            return;
        };
        *row = here;
        self.set.push(slot);
        if loading {
            self.loading.push(here);
        }
    }
}

impl Staged {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.step.plan.rows.len()
    }

    /// Floats of a pull's rows and of a push's gradients: Σ rows x dim.
    pub fn rows_floats(&self) -> usize {
        self.step.floats
    }

    /// Where each row came from, in the order of the batch's keys.
    pub fn statuses(&self) -> &[RowStatus] {
        &self.step.plan.statuses
    }

    /// Refuses a step of which some rows could not be had: a model that is trained without them, or
    /// with others in their place, is another model.
    pub(crate) fn check_whole(&self) -> Result<()> {
        self.step.failed.as_ref().map_or(Ok(()), |error| Err(error.again()))
    }

    /// Its addresses, where there is a device.
    pub(crate) fn resolved(&self) -> Option<&device::Resolved> {
        self.step.on_device.as_ref()
    }

    pub(crate) fn runs(&self) -> &[Run] {
        &self.step.runs
    }

    pub(crate) fn keys(&self) -> &[Key] {
        &self.step.keys
    }

    pub(crate) fn is_of(&self, inner: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.step.inner, inner)
    }

    /// Sets the embeddings of the rows; the optimizer's state starts anew.
    pub(crate) fn set_rows(&self, embeddings: &[f32]) -> Result<()> {
        self.check_whole()?;
        let mut rest = embeddings;
        for run in &self.step.runs {
            let table = &run.table;
            let dim = table.layout.dim;
            let (embeddings, after) = rest.split_at(run.range.len() * dim);
            rest = after;
            let _write = table.rows.write();
            self.step.inner.quiet()?;
            let rows = &self.step.plan.rows[run.range.clone()];
            for (&row, new) in rows.iter().zip(embeddings.chunks_exact(dim)) {
                table.class.arena.write(row, |embedding, state| {
                    embedding.copy_from_slice(new);
                    state.fill(table.spec.optimizer.initial_state());
                });
            }
            self.step.inner.take_up(table, rows)?;
            add(&table.tally.host_bytes_written, (rows.len() * table.layout.bytes()) as u64);
        }
        self.note_pushed();
        Ok(())
    }

    pub(crate) fn note_pushed(&self) {
        for pins in &self.step.pins {
            pins.set.pushed.store(true, Ordering::Release);
        }
    }
}

impl Staging {
    /// Floats of the step's rows, known before they are there.
    pub fn rows_floats(&self) -> usize {
        self.step.floats
    }

    /// Waits until every row is there, or can't be had: [`Staged::statuses`] says which those are.
    pub fn wait(self) -> Result<Staged> {
        let Staging { mut step, own, others, .. } = self;
        for load in own.iter().chain(&others) {
            if let Some(failure) = load.wait() {
                step.fail(failure);
            }
        }
        if let Some(load) = own {
            for (position, status) in load.take_statuses() {
                step.plan.statuses[position as usize] = status;
            }
        }
        let Step { inner, runs, keys, plan, .. } = &mut step;
        step.on_device = inner.resolve(runs, keys, &plan.rows, &mut plan.statuses)?;
        Ok(Staged { step })
    }
}

impl Staging {
    /// Lets go of all rows, and gives back what is needed to try again.
    fn let_go(&mut self) -> Vec<Run> {
        self.step.pins.iter_mut().for_each(|pins| pins.quietly = true);
        self.step.pins.clear();
        self.others.clear();
        std::mem::take(&mut self.step.runs)
    }
}

impl Step {
    fn note_claim(&mut self, position: usize, row: Row) {
        self.plan.rows[position] = row;
        let run = self.runs.partition_point(|run| run.range.end <= position);
        self.claimed[run] += 1;
    }

    /// Notes rows that could not be had. Their slots are others' from now on.
    fn fail(&mut self, failure: Failure) {
        let Failure { rows: failed, error } = failure;
        for run in &self.runs {
            let class = run.table.class.number;
            for position in run.range.clone() {
                if failed.binary_search(&(class, self.plan.rows[position])).is_ok() {
                    self.plan.rows[position] = Row::NONE;
                    self.plan.statuses[position] = RowStatus::Failed;
                }
            }
        }
        self.failed.get_or_insert(error);
    }

    /// Counts what was there already.
    fn count(&self) {
        let missed = self.claimed.iter().zip(&self.renewed);
        for (run, (claimed, renewed)) in self.runs.iter().zip(missed) {
            let statuses = &self.plan.statuses[run.range.clone()];
            let refused = match run.table.spec.admission {
                Admission::FirstSight => 0,
                Admission::AfterSights(_) => {
                    statuses.iter().filter(|status| **status == RowStatus::NotAdmitted).count()
                }
            };
            let hits = (run.range.len() - refused) as u64 - claimed - renewed;
            add(&run.table.tally.host_hits, hits);
            // an expired row is nowhere, wherever it is
            add(&run.table.tally.host_misses, *renewed);
            add(&run.table.tally.ssd_misses, *renewed);
        }
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.inner.note_push(&self.set); // before the rows may leave
        self.inner.live.remove(self.number, self.quietly);
        // an eviction or a flush may be reading it yet
        if let Some(set) = Arc::get_mut(&mut self.set) {
            self.inner.spare.keep_slots(set.take_buffer());
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.inner.spare.keep_plan(std::mem::take(&mut self.plan));
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
        self.begin_stage(keys)?.wait()
    }

    /// See [`crate::Store::begin_stage`].
    pub(crate) fn begin_stage(self: &Arc<Self>, keys: &KeyBatch) -> Result<Staging> {
        self.begin(keys, true)
    }

    /// `sift`: whether tables' admission rules hold.
    pub(crate) fn begin(self: &Arc<Self>, keys: &KeyBatch, sift: bool) -> Result<Staging> {
        let begun = Instant::now();
        let runs = self.runs_of(keys)?;
        let _gate = self.enter()?;
        self.drop_expired(keys.len())?;
        let now = self.intake.stages.fetch_add(1, Ordering::Relaxed) + 1;
        let deadline = Instant::now() + self.config.stage_wait;
        let mut staging = self.probe(keys, runs, now);
        if staging.1.is_empty() {
            staging.0.step.count();
            self.stage_times.note(begun);
            return Ok(staging.0);
        }
        self.check_fits(&staging.0.step.runs)?;
        if sift {
            self.sift(&mut staging.0, &mut staging.1)?;
        }
        loop {
            let seen = self.live.releases();
            let (step, misses) = (&mut staging.0, &staging.1);
            if self.bring(keys, step, misses, now)? {
                step.step.count();
                self.stage_times.note(begun);
                return Ok(staging.0);
            }
            // Nothing is held while waiting: two stages that wait for each other's rows would wait
            // for ever.
            let runs = staging.0.let_go();
            // a push that is under way holds rows and is sure to end
            if !self.let_go_of_one()?
                && (Instant::now() >= deadline || !self.live.wait_release(seen, deadline))
            {
                return Err(Error::SlowDown {
                    pinned_rows: self.live.rows(),
                    budget_bytes: self.config.host_ram_bytes,
                });
            }
            let refused: Vec<bool> = refused(&staging.0.step.plan.statuses);
            staging = self.probe(keys, runs, now);
            keep_refused(&mut staging.0.step.plan.statuses, &mut staging.1, &refused);
        }
    }

    fn check_fits(&self, runs: &[Run]) -> Result<()> {
        for Run { table, range } in runs {
            let (rows, rows_max) = (range.len() as u64, table.share_rows.end);
            if rows > rows_max {
                let table = table.spec.name.clone();
                return Err(Error::ShareTooSmall { table, rows_max, rows });
            }
        }
        let mut rows_of: Vec<(u32, u64, usize, u64)> = Vec::new(); // class, rows, bytes, sections
        for run in runs {
            let class = &run.table.class;
            let rows = run.range.len() as u64;
            match rows_of.iter_mut().find(|of| of.0 == class.number) {
                Some(of) => of.1 += rows,
                None => {
                    let row_bytes = class.arena.layout().bytes();
                    rows_of.push((class.number, rows, row_bytes, class.sections.len() as u64));
                }
            }
        }
        let needed: u64 = rows_of
            .iter()
            .map(|&(_, rows, bytes, sections)| bytes_for(bytes, rows.div_ceil(sections)) * sections)
            .sum();
        let budget_bytes = self.config.host_ram_bytes;
        if needed <= budget_bytes {
            return Ok(());
        }
        Err(Error::BatchTooLarge { needed_bytes: needed, budget_bytes })
    }

    /// Looks every key up once and pins those that are in RAM.
    fn probe(self: &Arc<Self>, keys: &KeyBatch, runs: Vec<Run>, now: u64) -> (Staging, Vec<Miss>) {
        let Plan { mut rows, mut statuses } = self.spare.plan();
        rows.resize(keys.len(), Row::NONE); // each is set below
        statuses.clear();
        statuses.resize(keys.len(), RowStatus::Host);
        let mut misses = Vec::new();
        let mut loads = Vec::new();
        let mut set = PinSet::in_buffer(self.spare.slots(), keys.len());
        let mut probes = self.spare.probes();
        let claims_seen = self.claims.load(Ordering::Acquire);
        let pinning = self.pinning.read();
        for (class, runs) in by_class(&runs) {
            sort_probes(&class, &runs, keys, &mut probes);
            let mut start = 0;
            for (number, &end) in probes.ends.iter().enumerate() {
                let id = class.id_of(number);
                let probes = &probes.sorted[start..end];
                start = end;
                if probes.is_empty() {
                    continue;
                }
                let mut section = class.sections[number].lock();
                let mut looked = Looked::new(id, &mut rows, &mut set, &mut misses);
                section.probe(probes, keys.next_uses(), now, &mut looked);
                self.join_loads(&class, &looked.loading, &mut loads);
                drop(section);
                set.end_group(id);
            }
        }
        let pins = vec![self.hold(set)];
        drop(pinning);
        self.spare.keep_probes(probes);
        let mut renewed = vec![0; runs.len()];
        for position in self.renew(&runs, &rows, keys) {
            statuses[position] = RowStatus::Initialised;
            renewed[runs.partition_point(|run| run.range.end <= position)] += 1;
        }
        let floats = floats_of(&runs);
        let claimed = vec![0; runs.len()];
        let step = Step {
            on_device: None,
            inner: Arc::clone(self),
            runs,
            keys: keys.shared_keys(),
            plan: Plan { rows, statuses },
            floats,
            claimed,
            renewed,
            failed: None,
            pins,
        };
        (Staging { step, own: None, others: loads, claims_seen }, misses)
    }

    fn hold(self: &Arc<Self>, set: PinSet) -> Pins {
        let set = Arc::new(set);
        let number = self.live.add(Arc::clone(&set));
        Pins { inner: Arc::clone(self), set, number, quietly: false }
    }

    /// Rows that another stage is loading: their loads are waited for.
    fn join_loads(&self, class: &Class, rows: &[Row], loads: &mut Vec<Arc<Load>>) {
        for &row in rows {
            let load = self.intake.loads.get(&(class.number, row));
            let load = Arc::clone(&load.expect("a row on its way in has a load"));
            if !loads.iter().any(|known| Arc::ptr_eq(known, &load)) {
                loads.push(load);
            }
        }
    }

    /// Stamps the hits of tables whose rows expire; those that have are made anew. Tells which.
    fn renew(&self, runs: &[Run], rows: &[Row], keys: &KeyBatch) -> Vec<usize> {
        let mut expired = Vec::new();
        for run in runs.iter().filter(|run| run.table.stamped()) {
            let (table, now) = (&run.table, self.clock_of(&run.table));
            let arena = &table.class.arena;
            let _write = table.rows.write();
            let still = self.hold_still(); // a row that is made anew must not go down meanwhile
            let before = expired.len();
            for position in run.range.clone().filter(|&at| rows[at] != Row::NONE) {
                let row = rows[position];
                let stamp = arena.stamp(row);
                if stamp == now {
                    continue;
                }
                if table.is_expired(Some(stamp), now) {
                    // if the device fails, the store is poisoned and the stage's end says so
                    let _ = self.quiet();
                    let key = keys.keys()[position];
                    arena.write(row, |embedding, state| table.initialise(key, embedding, state));
                    expired.push(position);
                }
                arena.set_stamp(row, now);
                arena.set_dirty(row, true); // the stamp has to reach SSD, or the row ages there
            }
            add(&table.tally.expired, (expired.len() - before) as u64);
            if let Some(still) = still {
                let anew: Vec<Row> = expired[before..].iter().map(|&at| rows[at]).collect();
                // if the device fails, the store is poisoned and the stage's end says so
                let _ = self.take_up_still(still, table, &anew);
            }
        }
        expired
    }

    /// Takes out the keys that their tables' admission rules keep out.
    fn sift(&self, step: &mut Staging, misses: &mut Vec<Miss>) -> Result<()> {
        let runs = &step.step.runs;
        if runs.iter().all(|run| run.table.spec.admission == Admission::FirstSight) {
            return Ok(());
        }
        let tables = self.tables_now();
        let mut few: Vec<Miss> = Vec::new(); // seen too seldom
        {
            let mut sketch = self.sketch.lock();
            let sketch = sketch.get_or_insert_with(crate::admission::Sketch::new);
            for miss in &*misses {
                let table = &tables[miss.probe.table.0 as usize];
                if let Admission::AfterSights(sights) = table.spec.admission
                    && sketch.see(miss.probe.hash) < sights
                {
                    few.push(*miss);
                }
            }
        }
        // A row that was admitted once stays so, whatever the sketch has forgotten since.
        few.sort_unstable_by_key(|miss| miss.probe.position);
        let statuses = &mut step.step.plan.statuses;
        for of_table in few.chunk_by(|a, b| a.probe.table == b.probe.table) {
            let table = &tables[of_table[0].probe.table.0 as usize];
            let keys = &step.step.keys;
            let key_of = |miss: &Miss| keys[miss.probe.position as usize];
            let mut out = 0;
            let on_the_way = |key| self.down.read(table.id, key, |_| ()).is_some();
            self.ssd.read(
                table.id,
                table.layout.bytes(),
                of_table.iter().map(key_of),
                |i, key, value| {
                    // one that can't be read is a row all the same, and its load says so
                    if matches!(value, Ok(None)) && !on_the_way(key) {
                        let position = of_table[i].probe.position as usize;
                        statuses[position] = RowStatus::NotAdmitted;
                        out += 1;
                    }
                    Ok(())
                },
            )?;
            add(&table.tally.not_admitted, out);
        }
        let admitted =
            |miss: &Miss| statuses[miss.probe.position as usize] != RowStatus::NotAdmitted;
        misses.retain(admitted);
        Ok(())
    }

    /// Makes room for the misses, claims a slot for each and starts their load; false if held rows
    /// leave no room.
    fn bring(
        self: &Arc<Self>,
        keys: &KeyBatch,
        staging: &mut Staging,
        misses: &[Miss],
        now: u64,
    ) -> Result<bool> {
        if misses.is_empty() {
            return Ok(true);
        }
        let mut room = self.room.lock();
        self.ssd.check()?;
        let wants = wants_of(misses);
        if !self.keep_shares(&mut room, misses) || !self.make_room(&mut room, &wants) {
            self.send_down(&mut room); // what left on the way
            self.ssd.check()?; // a device that failed lets no row leave
            let own: usize = staging.step.pins.iter().map(|pins| pins.set.len()).sum();
            if self.live.rows() > own as u64 {
                return Ok(false);
            }
            // Nobody but this batch is in its own way: its hits lie where memory can't be given
            // back. It fits an empty budget, so it gets one.
            return self.bring_alone(room, keys, staging, now).map(|()| true);
        }
        let missing = self.claim(&mut room, keys, staging, misses, now)?;
        drop(room);
        if let Some(load) = &staging.own {
            self.readers.lock().load(load, missing);
        }
        Ok(true)
    }

    /// Everything leaves, this batch's hits too; then it is staged as if it were the first.
    fn bring_alone(
        self: &Arc<Self>,
        mut room: MutexGuard<'_, Room>,
        keys: &KeyBatch,
        staging: &mut Staging,
        now: u64,
    ) -> Result<()> {
        let runs = staging.let_go();
        let refused = refused(&staging.step.plan.statuses);
        self.evict_all(&mut room);
        let (again, mut misses) = self.probe(keys, runs, now);
        *staging = again;
        keep_refused(&mut staging.step.plan.statuses, &mut misses, &refused);
        if !self.make_room(&mut room, &wants_of(&misses)) {
            let budget_bytes = self.config.host_ram_bytes;
            return Err(Error::BatchTooLarge { needed_bytes: budget_bytes + 1, budget_bytes });
        }
        let missing = self.claim(&mut room, keys, staging, &misses, now)?;
        drop(room);
        if let Some(load) = &staging.own {
            self.readers.lock().load(load, missing);
        }
        Ok(())
    }

    /// Takes rows of tables with an upper bound from themselves; false if they are all held.
    fn keep_shares(&self, room: &mut Room, misses: &[Miss]) -> bool {
        let tables = self.tables_now();
        if tables.iter().all(|table| table.share_rows.end == u64::MAX) {
            return true;
        }
        let mut sorted: Vec<(TableId, SectionId)> =
            misses.iter().map(|miss| (miss.probe.table, miss.id)).collect();
        sorted.sort_unstable();
        for of_table in sorted.chunk_by(|a, b| a.0 == b.0) {
            let table = &tables[of_table[0].0.0 as usize];
            let rows = table.tally.rows_host.load(Ordering::Relaxed) + of_table.len() as u64;
            let mut over = rows.saturating_sub(table.share_rows.end) as usize;
            for number in 0..table.class.sections.len() {
                let id = table.class.id_of(number);
                over -= self.evict(room, &table.class, id, over, |id| id == table.id);
            }
            self.send_down(room);
            if over > 0 {
                return false;
            }
        }
        true
    }

    /// Claims a slot for each miss that is still one; gives back what is to be read.
    fn claim(
        self: &Arc<Self>,
        room: &mut Room,
        keys: &KeyBatch,
        staging: &mut Staging,
        misses: &[Miss],
        now: u64,
    ) -> Result<Vec<Missing>> {
        let tables = self.tables_now();
        let classes = self.classes_now();
        let load = Load::new();
        let mut missing = Vec::new();
        let mut set = PinSet::in_buffer(Vec::new(), misses.len());
        let claims = self.claims.fetch_add(1, Ordering::AcqRel);
        // counted when it begins and when it ends: a probe that falls between must look again
        #[cfg(test)]
        if let Some(pause) = self.claim_pause.lock().take() {
            pause();
        }
        for of_section in misses.chunk_by(|a, b| a.id == b.id) {
            let id = of_section[0].id;
            let class = &classes[id.class as usize];
            let mut section = class.sections[id.section as usize].lock();
            let mut absent = Vec::with_capacity(of_section.len());
            if claims == staging.claims_seen {
                absent.extend_from_slice(of_section);
            } else {
                // what another stage may have brought in meanwhile is looked for
                let probes: Vec<Probe> = of_section.iter().map(|miss| miss.probe).collect();
                let rows = &mut staging.step.plan.rows;
                let mut looked = Looked::new(id, rows, &mut set, &mut absent);
                section.probe(&probes, keys.next_uses(), now, &mut looked);
                self.join_loads(class, &looked.loading, &mut staging.others);
            }
            for (i, Miss { probe, .. }) in absent.iter().enumerate() {
                if let Some(ahead) = absent.get(i + CLAIMS_AHEAD) {
                    section.ask(&ahead.probe);
                }
                let table = &tables[probe.table.0 as usize];
                let (hit, status) = self.claim_one(&mut section, table, probe, keys, now)?;
                staging.step.note_claim(probe.position as usize, hit.row);
                set.push(hit.slot);
                if hit.loading {
                    self.intake.loads.insert((class.number, hit.row), Arc::clone(&load));
                    missing.push(Missing {
                        table: Arc::clone(table),
                        key: keys.keys()[probe.position as usize],
                        hash: probe.hash,
                        row: hit.row,
                        position: probe.position,
                        foreseen: keys.next_uses().is_some(),
                    });
                }
                staging.step.plan.statuses[probe.position as usize] = status;
            }
            drop(section);
            set.end_group(id);
        }
        self.claims.fetch_add(1, Ordering::AcqRel);
        staging.step.pins.push(self.hold(set));
        self.send_down(room);
        missing.sort_unstable_by_key(|row: &Missing| row.position);
        staging.own = (!missing.is_empty()).then_some(load);
        Ok(missing)
    }

    /// A slot for one row. Its floats come at once if no read is needed: from among the rows on
    /// their way down, or from its seed where the table has nothing on SSD.
    fn claim_one(
        &self,
        section: &mut crate::section::Section,
        table: &Table,
        probe: &Probe,
        keys: &KeyBatch,
        now: u64,
    ) -> Result<(Hit, RowStatus)> {
        let key = keys.keys()[probe.position as usize];
        let next_use = keys.next_uses().map(|uses| uses[probe.position as usize]);
        let (meta, arena) = (Meta::of(table.id), &table.class.arena);
        let clock = self.clock_of(table);
        let mut claim = |meta, past| section.claim(probe, meta, past, next_use, now);
        let caught = self.down.read(table.id, key, |bytes| {
            let stored = StoredRow::decode(table, key, bytes)?;
            let hit = claim(meta.on_ssd(true), Past::Known(stored.history));
            let expired = table.is_expired(stored.stamp, clock);
            arena.write(hit.row, |embedding, state| {
                if expired {
                    table.initialise(key, embedding, state);
                } else {
                    stored.copy_to(embedding, state);
                }
            });
            arena.set_dirty(hit.row, expired || table.stamped());
            let found = if expired { &table.tally.ssd_misses } else { &table.tally.ssd_hits };
            add(found, 1);
            add(&table.tally.ssd_rereads, u64::from(!expired));
            add(&table.tally.expired, u64::from(expired));
            let status = if expired { RowStatus::Initialised } else { RowStatus::Ssd };
            Ok::<_, Error>((hit, status))
        });
        let (hit, status) = if let Some(caught) = caught.transpose()? {
            caught
        } else if table.tally.rows_ssd.load(Ordering::Relaxed) == 0 {
            let hit = claim(meta, Past::None);
            arena.write(hit.row, |embedding, state| table.initialise(key, embedding, state));
            arena.set_dirty(hit.row, true);
            add(&table.tally.ssd_misses, 1);
            add(&table.tally.first_touch, 1);
            add(&table.tally.rows, 1);
            (hit, RowStatus::Initialised)
        } else {
            (claim(meta.loading(true), Past::Unknown), RowStatus::Failed) // until it is read
        };
        if !hit.loading {
            add(&table.tally.host_misses, 1);
            add(&table.tally.rows_host, 1);
        }
        if table.stamped() {
            arena.set_stamp(hit.row, clock);
        }
        Ok((hit, status))
    }

    /// See [`crate::Store::pull`].
    pub(crate) fn pull(&self, staged: &Staged, rows: &mut [f32]) -> Result<()> {
        staged.check_whole()?;
        self.pull_some(staged, rows)
    }

    /// See [`crate::Store::pull_some`].
    pub(crate) fn pull_some(&self, staged: &Staged, rows: &mut [f32]) -> Result<()> {
        let _gate = self.enter()?;
        let step = &staged.step;
        check_shape("the buffer of the rows", rows.len(), step.floats)?;
        if let Some(plan) = &step.on_device {
            self.pull_resolved(plan, &step.runs, rows)?;
        }
        let mut rest = rows;
        for (i, run) in step.runs.iter().enumerate() {
            let table = &run.table;
            let dim = table.layout.dim;
            let (out, after) = rest.split_at_mut(run.range.len() * dim);
            rest = after;
            let rows = &step.plan.rows[run.range.clone()];
            if step.on_device.is_none() {
                let beside = |next: &&Run| next.table.class.number == table.class.number;
                let next = step.runs.get(i + 1).filter(beside);
                let next = next.map_or(&[][..], |run| &step.plan.rows[run.range.clone()]);
                let read = table.rows.read();
                table.class.arena.gather(rows, next, &read, out);
                add(&table.tally.host_bytes_read, size_of_val(out) as u64);
            }
            if table.spec.admission != Admission::FirstSight || step.failed.is_some() {
                for (i, _) in rows.iter().enumerate().filter(|(_, row)| **row == Row::NONE) {
                    let (at, out) = (run.range.start + i, &mut out[i * dim..][..dim]);
                    if step.plan.statuses[at] == RowStatus::Failed {
                        out.fill(f32::NAN);
                    } else {
                        table.spec.initial_embedding(step.keys[at], out);
                    }
                }
            }
        }
        Ok(())
    }

    /// See [`crate::Store::push`].
    pub(crate) fn push(&self, staged: &Staged, gradients: &[f32], rate: f32) -> Result<()> {
        let _gate = self.enter()?;
        staged.check_whole()?;
        let step = &staged.step;
        check_shape("the gradients", gradients.len(), step.floats)?;
        if !rate.is_finite() {
            return Err(Error::LearningRate { found: rate });
        }
        check_finite(&step.runs, gradients, &step.keys)?;
        if let Some(plan) = &step.on_device {
            // on a fault too: what changed is for nobody to say, and the store is poisoned
            let pushed = self.push_resolved(plan, &step.runs, gradients, rate);
            staged.note_pushed();
            return pushed;
        }
        let mut rest = gradients;
        for run in &step.runs {
            let table = &run.table;
            let (gradients, after) = rest.split_at(run.range.len() * table.layout.dim);
            rest = after;
            let rows = &step.plan.rows[run.range.clone()];
            {
                let write = table.rows.write();
                let optimizer = &table.spec.optimizer;
                table.class.arena.update(rows, &write, optimizer, gradients, rate);
            }
            let bytes = run.range.len() * table.layout.bytes();
            add(&table.tally.host_bytes_written, bytes as u64);
        }
        staged.note_pushed();
        Ok(())
    }
}

/// The runs of each class, classes in the order in which the runs name them.
fn by_class(runs: &[Run]) -> Vec<(Arc<Class>, Vec<&Run>)> {
    let mut classes: Vec<(Arc<Class>, Vec<&Run>)> = Vec::new();
    for run in runs {
        match classes.iter_mut().find(|(class, _)| class.number == run.table.class.number) {
            Some((_, of_class)) => of_class.push(run),
            None => classes.push((Arc::clone(&run.table.class), vec![run])),
        }
    }
    classes
}

/// Sorts the keys of these runs by section, with one pass of counting, and tells where each
/// section's end.
fn sort_probes(class: &Class, runs: &[&Run], keys: &KeyBatch, into: &mut Probes) {
    let Probes { hashes, sorted, ends } = into;
    ends.clear();
    ends.resize(class.sections.len(), 0);
    hashes.clear();
    for run in runs {
        hashes.extend(keys.keys()[run.range.clone()].iter().map(|&key| {
            let hash = index::hash(run.table.id, key);
            ends[class.section_of(hash) as usize] += 1;
            hash
        }));
    }
    let mut start = 0;
    for end in &mut *ends {
        (start, *end) = (start + *end, start);
    }
    if sorted.len() < hashes.len() {
        let none = Probe { hash: 0, position: 0, table: TableId(0) };
        sorted.resize(hashes.len(), none);
    }
    let mut hashes = hashes.iter();
    for run in runs {
        let table = run.table.id;
        for (position, &hash) in run.range.clone().zip(&mut hashes) {
            let at = &mut ends[class.section_of(hash) as usize];
            sorted[*at] = Probe { hash, position: position as u32, table };
            *at += 1;
        }
    }
}

/// The slots that these misses want, section by section.
fn wants_of(misses: &[Miss]) -> Vec<Want> {
    let want = |of: &[Miss]| Want { id: of[0].id, slots: of.len() };
    misses.chunk_by(|a, b| a.id == b.id).map(want).collect()
}

/// Which keys are not admitted.
fn refused(statuses: &[RowStatus]) -> Vec<bool> {
    statuses.iter().map(|status| *status == RowStatus::NotAdmitted).collect()
}

/// What was refused once stays refused when a batch is probed again: its sights are counted.
fn keep_refused(statuses: &mut [RowStatus], misses: &mut Vec<Miss>, refused: &[bool]) {
    misses.retain(|miss| {
        let position = miss.probe.position as usize;
        if refused[position] {
            statuses[position] = RowStatus::NotAdmitted;
        }
        !refused[position]
    });
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

/// Refuses a value that is not finite and names its row.
pub(crate) fn check_finite(runs: &[Run], values: &[f32], keys: &[Key]) -> Result<()> {
    // one pass for the usual case; the culprit is looked for afterwards
    if all_finite(values) {
        return Ok(());
    }
    let mut start = 0;
    for run in runs {
        let dim = run.table.layout.dim;
        let end = start + run.range.len() * dim;
        if let Some(bad) = values[start..end].iter().position(|x| !x.is_finite()) {
            let key = keys[run.range.start + bad / dim];
            return Err(Error::NotFinite { table: run.table.id, key, position: bad % dim });
        }
        start = end;
    }
    Ok(())
}
