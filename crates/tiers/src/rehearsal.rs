//! Which rows a store would have in RAM: a section's index, hand and policy, worked as a stage
//! works them, for the benchmark that sets the policy beside others. It has no floats, no SSD and
//! no threads. A test holds it to the store.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use table::{Key, RowLayout, TableId};

use crate::arena::{Arena, Layout, MemoryUse};
use crate::budget::Budget;
use crate::index::{self, Meta, Probe};
use crate::room::leaving_extra;
use crate::section::{Finder, Hit, Past, Place, Section};

const TABLE: TableId = TableId(0);

/// The rows of one table in one section, without their floats.
pub struct Rehearsal {
    section: Section,
    budget: Budget,
    row_bytes: usize,
    stages: u64,
    held: VecDeque<Vec<u32>>, // the slots of each stage that is not released, the oldest first
    histories: Vec<Option<u8>>, // [keys] what was stored with a row that left
    there: Vec<bool>,         // [keys of the last batch]
    left: u64,
}

/// What a stage found.
struct Looked {
    slots: Vec<u32>,
    misses: Vec<Probe>,
}

impl Finder for Looked {
    #[inline(always)]
    fn found(&mut self, probe: &Probe, hit: Option<Hit>) {
        match hit {
            Some(hit) => self.slots.push(hit.slot),
            None => self.misses.push(*probe),
        }
    }
}

impl Rehearsal {
    /// Room for exactly so many rows.
    pub fn new(rows: u32, layout: RowLayout) -> io::Result<Self> {
        let mut rehearsal = Self::reserve(rows, layout)?;
        let grown = rehearsal.section.grow_to(rows, 0, &Budget::new(u64::MAX));
        assert!(grown, "there is no limit to the budget");
        Ok(rehearsal)
    }

    /// Room for what a store of one table has room for under this budget.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn with_budget(bytes: u64, layout: RowLayout) -> io::Result<Self> {
        let slots = crate::section::slots_max(layout.bytes(), bytes);
        Ok(Self { budget: Budget::new(bytes), ..Self::reserve(slots, layout)? })
    }

    fn reserve(slots_max: u32, layout: RowLayout) -> io::Result<Self> {
        let RowLayout { dim, state } = layout;
        let layout = Layout { dim, state, stamped: false };
        let memory = MemoryUse { budget_bytes: 0, lock: false };
        let arena = Arc::new(Arena::reserve(layout, u64::from(slots_max), memory)?);
        let place = Place { number: 0, base: 0, slots_max, hash_bits: 0 };
        Ok(Self {
            section: Section::reserve(arena, place, memory)?,
            budget: Budget::new(0),
            row_bytes: layout.bytes(),
            stages: 0,
            held: VecDeque::new(),
            histories: Vec::new(),
            there: Vec::new(),
            left: 0,
        })
    }

    /// Stages a batch in which each key is once, and holds its rows; `next_uses` tells of each in
    /// how many stages it is used again. Which of the rows were there.
    ///
    /// It panics where a store would have the caller wait: too many rows are held.
    pub fn stage(&mut self, keys: &[u32], next_uses: Option<&[u32]>) -> &[bool] {
        self.stages += 1;
        let probe = |(position, &key): (usize, &u32)| Probe {
            hash: index::hash(TABLE, Key(u64::from(key))),
            position: position as u32,
            table: TABLE,
        };
        let probes: Vec<Probe> = keys.iter().enumerate().map(probe).collect();
        self.there.clear();
        self.there.resize(keys.len(), true);
        let mut looked = Looked { slots: Vec::with_capacity(keys.len()), misses: Vec::new() };
        self.section.probe(&probes, next_uses, self.stages, &mut looked);
        let Looked { slots, misses } = looked;
        self.held.push_back(slots);
        self.make_room(misses.len());
        let mut read = Vec::new(); // slot, place of the key
        for probe in &misses {
            self.there[probe.position as usize] = false;
            let key = keys[probe.position as usize] as usize;
            let next_use = next_uses.map(|uses| uses[probe.position as usize]);
            let past = if self.left == 0 { Past::None } else { Past::Unknown };
            let hit = self.section.claim(probe, Meta::of(TABLE), past, next_use, self.stages);
            self.held.back_mut().expect("this stage's is there").push(hit.slot);
            if next_use.is_none()
                && let Some(Some(history)) = self.histories.get(key)
            {
                read.push((hit.slot, probe.hash, *history));
            }
        }
        // rows that were read are taken note of in the order of their slots
        read.sort_unstable();
        for (_, hash, history) in read {
            let at = self.section.find(hash, TABLE).expect("it was claimed");
            self.section.recall(at, history);
        }
        &self.there
    }

    /// Lets go of the rows of the oldest stage that holds some.
    pub fn release(&mut self) {
        self.held.pop_front();
    }

    /// Rows that left.
    pub fn left(&self) -> u64 {
        self.left
    }

    /// Rows that the hand looked at.
    pub fn swept(&self) -> u64 {
        self.section.swept()
    }

    fn make_room(&mut self, wanted: usize) {
        let missing = |section: &Section| wanted.saturating_sub(section.vacant());
        let wants = missing(&self.section);
        if wants == 0 || self.section.grow(wants, self.budget.left(), &self.budget) {
            return;
        }
        self.section.clear_pins();
        self.held.iter().for_each(|slots| self.section.add_pins(slots));
        let extra = leaving_extra(self.section.rows() as usize, self.row_bytes);
        let missing = missing(&self.section);
        let mut leaving = Vec::new();
        self.section.sweep(missing + extra, |_| true, &mut leaving);
        assert!(leaving.len() >= missing, "all rows but {} are held", leaving.len());
        for row in &leaving {
            let key = row.key.0 as usize;
            if key >= self.histories.len() {
                self.histories.resize(key + 1, None);
            }
            self.histories[key] = Some(self.section.history(row.code));
            self.section.leave(row);
        }
        self.left += leaving.len() as u64;
    }
}

#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests {
    use std::collections::BTreeMap;

    use table::{KeyBatch, Optimizer, RowStatus};
    use testkit::{Random, RowStore, ZipfKeys};

    use super::*;
    use crate::tests::{Scratch, TINY, batch, spec};

    const LAYOUT: RowLayout = RowLayout { dim: 16, state: 0 };

    /// Batches of ascending keys, each with its next uses.
    fn batches(steps: usize, draws: usize) -> Vec<(Vec<u32>, Vec<u32>)> {
        let mut zipf = ZipfKeys::new(3, 100_000, 0.9);
        let mut batch = |_| {
            let mut keys: Vec<u32> = (0..draws).map(|_| zipf.next_rank() as u32).collect();
            keys.sort_unstable();
            keys.dedup();
            (keys, Vec::new())
        };
        let mut batches: Vec<(Vec<u32>, Vec<u32>)> = (0..steps).map(&mut batch).collect();
        let mut next = BTreeMap::new();
        for (step, (keys, uses)) in batches.iter_mut().enumerate().rev() {
            let after =
                |key: &u32| next.insert(*key, step).map_or(u32::MAX, |at| (at - step) as u32);
            *uses = keys.iter().map(after).collect();
        }
        batches
    }

    /// Stages all batches in a store and in a rehearsal, three held at a time. How many rows were
    /// there in each, and of how many the two disagree.
    fn beside_the_store(told: bool) -> [usize; 3] {
        let scratch = Scratch::new(TINY);
        let spec = spec("t", 16, Optimizer::Sgd);
        assert_eq!(spec.layout(), LAYOUT);
        let table = scratch.create_table(&spec).unwrap();
        assert_eq!(table, TABLE, "keys have the same places");
        let mut rehearsal = Rehearsal::with_budget(TINY, LAYOUT).unwrap();
        let mut held = VecDeque::new();
        let mut counts = [0; 3];
        for (keys, next_uses) in batches(400, 200) {
            let mut named: KeyBatch = batch(table, keys.iter().map(|&key| u64::from(key)));
            if told {
                named.set_next_uses(next_uses.clone()).unwrap();
            }
            let staged = scratch.store().stage(&named).unwrap();
            let there = rehearsal.stage(&keys, told.then_some(&next_uses[..]));
            for (status, &there) in staged.statuses().iter().zip(there) {
                let in_store = *status == RowStatus::Host;
                counts[0] += usize::from(in_store);
                counts[1] += usize::from(there);
                counts[2] += usize::from(in_store != there);
            }
            held.push_back(staged);
            if held.len() == 3 {
                held.pop_front();
                rehearsal.release();
            }
        }
        let evictions = scratch.store().status().totals().evictions;
        assert!(evictions > 20_000, "{evictions} rows left");
        counts
    }

    #[test]
    fn with_next_uses_the_same_rows_stay_as_in_a_store() {
        let [store, rehearsal, others] = beside_the_store(true);
        assert_eq!((store, others), (rehearsal, 0));
    }

    #[test]
    fn without_next_uses_as_many_rows_stay_as_in_a_store() {
        // A row that comes back while it is on its way down is known at once, others when they are
        // read: the policy hears of them in another order, which the writer's pace decides.
        let [store, rehearsal, others] = beside_the_store(false);
        let most = store / 50;
        assert!(store.abs_diff(rehearsal) < most, "{rehearsal} rows, {store} in the store");
        assert!(others < 3 * most, "{others} of {store}");
    }

    #[test]
    fn rows_that_are_used_never_again_leave_before_all_others() {
        const ROWS: u32 = 10_000;
        let mut rehearsal = Rehearsal::new(ROWS, LAYOUT).unwrap();
        let mut random = Random::new(5);
        // fewer than one in so many as the hand lets leave
        let is_done: Vec<bool> = (0..ROWS).map(|_| random.below(300) == 0).collect();
        let (done, kept): (Vec<u32>, Vec<u32>) = (0..ROWS).partition(|&key| is_done[key as usize]);
        let uses: Vec<u32> = (0..ROWS).map(|key| 5000 + key % 7).collect();
        rehearsal.stage(&(0..ROWS).collect::<Vec<_>>(), Some(&uses));
        rehearsal.release();
        rehearsal.stage(&done, Some(&vec![u32::MAX; done.len()]));
        rehearsal.release();
        // as many come as are done, less those that leave ahead of need
        let extra = leaving_extra(ROWS as usize, LAYOUT.bytes());
        let new: Vec<u32> = (ROWS..ROWS + (done.len() - extra) as u32).collect();
        rehearsal.stage(&new, Some(&vec![1; new.len()]));
        rehearsal.release();
        assert_eq!((rehearsal.left(), rehearsal.swept()), (done.len() as u64, 0), "no hand moves");
        let there = rehearsal.stage(&kept, Some(&vec![1; kept.len()]));
        assert!(there.iter().all(|there| *there));
    }

    #[test]
    fn a_row_that_was_done_and_is_used_again_stays() {
        let mut rehearsal = Rehearsal::new(1000, LAYOUT).unwrap();
        let keys: Vec<u32> = (0..1000).collect();
        let uses = |key: &u32| if *key < 300 { u32::MAX } else { 50 };
        rehearsal.stage(&keys, Some(&keys.iter().map(uses).collect::<Vec<_>>()));
        rehearsal.release();
        rehearsal.stage(&keys[..100], Some(&[9; 100]));
        rehearsal.release();
        rehearsal.stage(&(1000..1150).collect::<Vec<_>>(), Some(&[9; 150]));
        rehearsal.release();
        assert_eq!((rehearsal.left(), rehearsal.swept()), (150, 0));
        assert!(rehearsal.stage(&keys[..100], Some(&[9; 100])).iter().all(|there| *there));
    }
}
