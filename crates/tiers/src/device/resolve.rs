//! A stage whose rows are all in RAM, resolved: each row gets one address, on the device or in the
//! arena, which stands until the stage is over. Rows that are not up come up on the way, and those
//! that were taken longest ago make room. It moves nothing that a live plan has an address of.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use gpu::{DirectLists, PartKeys, SlotKey};
use table::{Key, RowStatus};

use super::DeviceTier;
use super::cache::{Cache, Changed, key_of};
use crate::arena::Row;
use crate::staging::Run;
use crate::store::Inner;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::tally::add;
use crate::{Result, class::Class, store::Table};

/// The addresses of a staged step's rows. Dropping it lets the rows move again; work that is under
/// way with them is waited for first.
pub(crate) struct Resolved {
    pub(super) tier: Arc<DeviceTier>,
    number: u32,
    held: Vec<(u32, Row)>, // class, row: those with an address in the arena
    pub(super) embeddings: Vec<u64>, // [keys], 0: no row
    pub(super) states: Vec<u64>, // [keys]
    pub(super) slots: Vec<(Arc<Changed>, Vec<u32>)>, // on the device, class by class
    pub(super) device_rows: Vec<u64>, // [runs]
    pub(super) lists: OnceLock<DirectLists>, // the addresses on the device, where one wants them
    /// Whether work may be under way with these rows that nobody has waited for.
    pub(super) busy: AtomicBool,
}

impl Drop for Resolved {
    fn drop(&mut self) {
        if self.busy.load(Ordering::Acquire) {
            let _ = self.tier.direct.finish(); // a device that failed does nothing more
        }
        if let Some(lists) = self.lists.take() {
            self.tier.keep_lists(lists);
        }
        self.tier.cache.lock().end(self.number, &self.held);
    }
}

impl Inner {
    /// Resolves a step, where there is a device. Its rows are pinned and none is on its way in.
    pub(crate) fn resolve(
        &self,
        runs: &[Run],
        keys: &[Key],
        rows: &[Row],               // [keys]
        statuses: &mut [RowStatus], // [keys]
    ) -> Result<Option<Resolved>> {
        let Some(tier) = &self.device else { return Ok(None) };
        self.let_go_of_done()?;
        let (classes, tables) = (self.classes_now(), self.tables_now());
        let plan = self.lost(tier.resolve(&classes, &tables, runs, rows, statuses))?;
        if tier.has_places() {
            self.lists_of(&plan, runs, keys)?;
        }
        Ok(Some(plan))
    }
}

impl DeviceTier {
    fn resolve(
        self: &Arc<Self>,
        classes: &[Arc<Class>],
        tables: &[Arc<Table>],
        runs: &[Run],
        rows: &[Row],
        statuses: &mut [RowStatus],
    ) -> gpu::Result<Resolved> {
        let begun = Instant::now();
        let number = {
            let mut cache = self.cache.lock();
            let mut staged_keys = vec![0; classes.len()];
            for run in runs {
                staged_keys[run.table.class.number as usize] += run.range.len();
            }
            cache.divide(classes, tables, &staged_keys)?;
            cache.begin()
        };
        let mut plan = Resolved {
            tier: Arc::clone(self),
            number,
            held: Vec::new(),
            embeddings: vec![0; rows.len()],
            states: vec![0; rows.len()],
            slots: Vec::new(),
            device_rows: vec![0; runs.len()],
            lists: OnceLock::new(),
            busy: AtomicBool::new(false),
        };
        let mut cache = self.cache.lock(); // let go before the plan, which takes it to its end
        self.place(&mut cache, classes, tables, runs, rows, statuses, &mut plan)?;
        drop(cache);
        self.stages.note(begun);
        Ok(plan)
    }

    /// Gives each row its address: one look, one insertion and one move each way for all classes.
    fn place(
        &self,
        cache: &mut Cache,
        classes: &[Arc<Class>],
        tables: &[Arc<Table>],
        runs: &[Run],
        rows: &[Row],
        statuses: &mut [RowStatus],
        plan: &mut Resolved,
    ) -> gpu::Result<()> {
        let Listed { wanted, keys, parts } = self.list(cache, classes, runs, rows)?;
        let mut slots = cache.find(plan.number, &keys, &parts)?;
        slots.resize(wanted.len(), None); // those of classes without a part
        for (wanted, slot) in wanted.iter().zip(&slots) {
            if slot.is_some() && statuses[wanted.at] == RowStatus::Host {
                statuses[wanted.at] = RowStatus::Gpu;
            }
        }
        count(runs, &wanted, &slots, statuses);
        // one that another step has in the arena stays there
        let may = |i: &usize| {
            let Wanted { class, at, .. } = wanted[*i];
            !cache.held.contains_key(&(class, rows[at]))
        };
        let missing: Vec<usize> =
            (0..keys.len()).filter(|&i| slots[i].is_none()).filter(may).collect();
        let ends = |part: &PartKeys| {
            let end = missing.partition_point(|&i| i < part.end);
            PartKeys { end, ..*part }
        };
        let parts: Vec<PartKeys> = parts.iter().map(ends).collect();
        let keys: Vec<SlotKey> = missing.iter().map(|&i| keys[i]).collect();
        let brought = cache.bring_up(plan.number, tables, &keys, &parts)?;
        let mut conflicts = vec![0; runs.len()];
        for (i, slot) in missing.into_iter().zip(brought) {
            slots[i] = slot;
            let Wanted { run, at, .. } = wanted[i];
            conflicts[run] += u64::from(slot.is_none() && statuses[at] != RowStatus::Initialised);
        }
        for (run, conflicts) in runs.iter().zip(conflicts) {
            add(&run.table.tally.conflicts, conflicts);
        }
        let mut on_device = vec![Vec::new(); classes.len()];
        for (wanted, slot) in wanted.iter().zip(slots) {
            let (class, row) = (wanted.class, rows[wanted.at]);
            let place = slot.and_then(|slot| Some((slot, cache.part(class)?)));
            let (embedding, state) = if let Some((slot, part)) = place {
                on_device[class as usize].push(slot);
                plan.device_rows[wanted.run] += 1;
                (part.embedding_address(slot), part.state_address(slot))
            } else {
                *cache.held.entry((class, row)).or_default() += 1;
                plan.held.push((class, row));
                let arena = &classes[class as usize].arena;
                (arena.embedding_address(row), arena.state_address(row))
            };
            (plan.embeddings[wanted.at], plan.states[wanted.at]) = (embedding, state);
        }
        for (class, slots) in (0..).zip(on_device).filter(|(_, slots)| !slots.is_empty()) {
            let part = cache.part(class).expect("a slot is of a part");
            plan.slots.push((Arc::clone(&part.changed), slots));
        }
        Ok(())
    }

    /// The rows of a stage, class by class, and the keys of those whose classes have a part of the
    /// device, which come first. The device reaches all of them.
    fn list(
        &self,
        cache: &Cache,
        classes: &[Arc<Class>],
        runs: &[Run],
        rows: &[Row],
    ) -> gpu::Result<Listed> {
        let mut listed = Listed::default();
        for has_part in [true, false] {
            for class in classes {
                if cache.part(class.number).is_some() != has_part {
                    continue;
                }
                let begin = listed.wanted.len();
                let of_class = |run: &(usize, &Run)| run.1.table.class.number == class.number;
                for (run, of_run) in runs.iter().enumerate().filter(of_class) {
                    let here = of_run.range.clone().filter(|&at| rows[at] != Row::NONE);
                    let wanted = here.map(|at| Wanted { run, class: class.number, at });
                    listed.wanted.extend(wanted);
                    if has_part {
                        let own = &listed.wanted[listed.keys.len()..];
                        let keys =
                            own.iter().map(|wanted| key_of(of_run.table.id, rows[wanted.at]));
                        listed.keys.extend(keys);
                    }
                }
                let own = &listed.wanted[begin..];
                class.arena.reach(&self.device, own.iter().map(|wanted| rows[wanted.at]))?;
                if has_part && !own.is_empty() {
                    let (part, end) = (class.number as usize, listed.keys.len());
                    listed.parts.push(PartKeys { part, end });
                }
            }
        }
        Ok(listed)
    }
}

/// What a stage wants.
#[derive(Default)]
struct Listed {
    wanted: Vec<Wanted>,
    keys: Vec<SlotKey>, // of the first so many that are wanted
    parts: Vec<PartKeys>,
}

/// A row that a stage wants.
#[derive(Clone, Copy)]
struct Wanted {
    run: usize, // among the step's runs
    class: u32,
    at: usize, // among the step's keys
}

/// Counts what was there before the stage; a row that was, and had expired, was not.
fn count(runs: &[Run], wanted: &[Wanted], slots: &[Option<u32>], statuses: &[RowStatus]) {
    let mut found = vec![[0; 2]; runs.len()]; // hits, all
    for (wanted, slot) in wanted.iter().zip(slots) {
        let [hits, all] = &mut found[wanted.run];
        *hits += u64::from(slot.is_some() && statuses[wanted.at] != RowStatus::Initialised);
        *all += 1;
    }
    for (run, [hits, all]) in runs.iter().zip(found) {
        add(&run.table.tally.gpu_hits, hits);
        add(&run.table.tally.gpu_misses, all - hits);
    }
}
