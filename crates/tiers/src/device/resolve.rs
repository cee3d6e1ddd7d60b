//! A stage whose rows are all in RAM, resolved: each row gets one address, on the device or in the
//! arena, which stands until the stage is over. Rows that are not up come up on the way, and those
//! that were taken longest ago make room. It moves nothing that a live plan has an address of.

use std::sync::Arc;
use std::time::Instant;

use gpu::SlotKey;
use table::RowStatus;

use super::DeviceTier;
use super::cache::{Cache, Changed, key_of};
use crate::arena::Row;
use crate::staging::Run;
use crate::store::Inner;
use crate::tally::add;
use crate::{Result, class::Class, store::Table};

/// The addresses of a staged step's rows. Dropping it lets the rows move again.
pub(crate) struct Resolved {
    tier: Arc<DeviceTier>,
    number: u32,
    held: Vec<(u32, Row)>, // class, row: those with an address in the arena
    pub(super) embeddings: Vec<u64>, // [keys], 0: no row
    pub(super) states: Vec<u64>, // [keys]
    pub(super) slots: Vec<(Arc<Changed>, Vec<u32>)>, // on the device, class by class
    pub(super) device_rows: Vec<u64>, // [runs]
}

impl Drop for Resolved {
    fn drop(&mut self) {
        self.tier.cache.lock().end(self.number, &self.held);
    }
}

impl Inner {
    /// Resolves a step, where there is a device. Its rows are pinned and none is on its way in.
    pub(crate) fn resolve(
        &self,
        runs: &[Run],
        rows: &[Row],               // [keys]
        statuses: &mut [RowStatus], // [keys]
    ) -> Result<Option<Resolved>> {
        let Some(tier) = &self.device else { return Ok(None) };
        let (classes, tables) = (self.classes_now(), self.tables_now());
        self.lost(tier.resolve(&classes, &tables, runs, rows, statuses)).map(Some)
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
        };
        let mut cache = self.cache.lock(); // let go before the plan, which takes it to its end
        for class in classes {
            let of_class = |run: &&(usize, &Run)| run.1.table.class.number == class.number;
            let runs: Vec<(usize, &Run)> =
                runs.iter().enumerate().filter(|run| of_class(&run)).collect();
            if !runs.is_empty() {
                self.resolve_class(&mut cache, class, tables, &runs, rows, statuses, &mut plan)?;
            }
        }
        drop(cache);
        self.note_stage(begun);
        Ok(plan)
    }

    #[allow(clippy::too_many_arguments)] // one stage's state, by class
    fn resolve_class(
        &self,
        cache: &mut Cache,
        class: &Class,
        tables: &[Arc<Table>],
        runs: &[(usize, &Run)],
        rows: &[Row],
        statuses: &mut [RowStatus],
        plan: &mut Resolved,
    ) -> gpu::Result<()> {
        let wanted: Vec<Wanted> = runs
            .iter()
            .flat_map(|(number, run)| run.range.clone().map(move |at| (*number, run.table.id, at)))
            .filter(|&(_, _, at)| rows[at] != Row::NONE)
            .map(|(run, table, at)| Wanted { run, at, key: key_of(table, rows[at]) })
            .collect();
        class.arena.reach(&self.device, wanted.iter().map(|wanted| rows[wanted.at]))?;
        let keys: Vec<SlotKey> = wanted.iter().map(|wanted| wanted.key).collect();
        let mut slots = cache.find(class.number, plan.number, &keys)?;
        for (wanted, slot) in wanted.iter().zip(&slots) {
            if slot.is_some() && statuses[wanted.at] == RowStatus::Host {
                statuses[wanted.at] = RowStatus::Gpu;
            }
        }
        count(runs, &wanted, &slots);
        // one that another step has in the arena stays there
        let may = |i: &usize| !cache.held.contains_key(&(class.number, rows[wanted[*i].at]));
        let missing: Vec<usize> =
            (0..keys.len()).filter(|&i| slots[i].is_none()).filter(may).collect();
        let keys: Vec<SlotKey> = missing.iter().map(|&i| keys[i]).collect();
        let brought = cache.bring_up(class.number, plan.number, tables, &keys)?;
        for (i, slot) in missing.into_iter().zip(brought) {
            slots[i] = slot;
        }
        let mut on_device = Vec::new();
        for (wanted, slot) in wanted.iter().zip(slots) {
            let row = rows[wanted.at];
            let place = slot.and_then(|slot| Some((slot, cache.part(class.number)?.1)));
            let (embedding, state) = if let Some((slot, part)) = place {
                on_device.push(slot);
                plan.device_rows[wanted.run] += 1;
                (part.embedding_address(slot), part.state_address(slot))
            } else {
                *cache.held.entry((class.number, row)).or_default() += 1;
                plan.held.push((class.number, row));
                (class.arena.embedding_address(row), class.arena.state_address(row))
            };
            (plan.embeddings[wanted.at], plan.states[wanted.at]) = (embedding, state);
        }
        if let Some((_, part)) = cache.part(class.number) {
            plan.slots.push((Arc::clone(&part.changed), on_device));
        }
        Ok(())
    }
}

/// A row that a stage wants.
struct Wanted {
    run: usize, // among the step's runs
    at: usize,  // among the step's keys
    key: SlotKey,
}

/// Counts what was there before the stage.
fn count(runs: &[(usize, &Run)], wanted: &[Wanted], slots: &[Option<u32>]) {
    for (number, run) in runs {
        let of_run = wanted.iter().zip(slots).filter(|(wanted, _)| wanted.run == *number);
        let (mut hits, mut all) = (0, 0);
        for (_, slot) in of_run {
            hits += u64::from(slot.is_some());
            all += 1;
        }
        add(&run.table.tally.gpu_hits, hits);
        add(&run.table.tally.gpu_misses, all - hits);
    }
}
