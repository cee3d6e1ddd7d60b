//! Training on a cache that is run as the store runs its rows: batches are staged some steps before
//! they compute and their rows are held from then on. It counts re-reads and moves no rows.

use tiers::rehearsal::Rehearsal;

use super::LAYOUT;

const FREE: u32 = u32::MAX;

/// Batches of keys, each key once a batch, numbered by first appearance.
pub(crate) struct Batches {
    pub(crate) keys: Vec<u32>,      // [accesses]
    pub(crate) ends: Vec<usize>,    // [steps]
    pub(crate) next_uses: Vec<u32>, // [accesses] steps; u32::MAX is never
    pub(crate) distinct: usize,
}

impl Batches {
    /// Batches that end at `ends`, of keys that are below `distinct`.
    pub(crate) fn new(keys: Vec<u32>, ends: Vec<usize>, distinct: usize) -> Self {
        let mut next_uses = vec![u32::MAX; keys.len()];
        let mut next_step = vec![u32::MAX; distinct]; // [keys]
        let mut end = keys.len();
        for step in (0..ends.len()).rev() {
            let start = if step == 0 { 0 } else { ends[step - 1] };
            for place in start..end {
                let next = &mut next_step[keys[place] as usize];
                if *next != u32::MAX {
                    next_uses[place] = *next - step as u32;
                }
                *next = step as u32;
            }
            end = start;
        }
        Self { keys, ends, next_uses, distinct }
    }

    /// The keys of each step.
    #[cfg(test)]
    pub(crate) fn steps(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.keys[start..end])
    }
}

/// What a stage tells of the time after it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Foresight {
    /// Nothing but the batch itself.
    Batch,
    /// The next use of each key.
    NextUses,
}

/// Rows that steps hold, and the others.
pub(crate) struct Staged {
    rehearsal: Rehearsal,
    foresight: Foresight,
    depth: usize,
    capacity: usize,
    held_by: Vec<u32>, // [keys] the latest step that holds it
    held: usize,
    /// Rows read from SSD although they had been cached before.
    pub(crate) rereads: u64,
}

impl Staged {
    /// Room for `capacity` rows; a step is staged `depth` steps before it computes.
    pub(crate) fn new(capacity: usize, depth: usize, foresight: Foresight) -> Self {
        let rows = u32::try_from(capacity).expect("keys are numbered by u32");
        Self {
            rehearsal: Rehearsal::new(rows, LAYOUT).expect("addresses are to be had"),
            foresight,
            depth,
            capacity,
            held_by: Vec::new(),
            held: 0,
            rereads: 0,
        }
    }

    /// Trains on all of it.
    pub(crate) fn run(&mut self, batches: &Batches) {
        self.held_by = vec![FREE; batches.distinct];
        let mut created = 0;
        let (mut start, mut released) = (0, 0);
        for (step, &end) in batches.ends.iter().enumerate() {
            while released < step
                && (step - released >= self.depth || self.held + (end - start) > self.capacity)
            {
                let first = if released == 0 { 0 } else { batches.ends[released - 1] };
                self.release(released as u32, &batches.keys[first..batches.ends[released]]);
                released += 1;
            }
            let keys = &batches.keys[start..end];
            let next_uses = match self.foresight {
                Foresight::NextUses => Some(&batches.next_uses[start..end]),
                Foresight::Batch => None,
            };
            let there = self.rehearsal.stage(keys, next_uses);
            for (&key, &there) in keys.iter().zip(there) {
                self.rereads += u64::from(!there && key < created);
                created = created.max(key + 1);
                self.held += usize::from(self.held_by[key as usize] == FREE);
                self.held_by[key as usize] = step as u32;
            }
            start = end;
        }
    }

    /// Rows that the hand passed for each that left.
    pub(crate) fn passed_per_leaving(&self) -> f64 {
        self.rehearsal.swept() as f64 / self.rehearsal.left().max(1) as f64
    }

    fn release(&mut self, step: u32, keys: &[u32]) {
        self.rehearsal.release();
        for &key in keys {
            if self.held_by[key as usize] == step {
                self.held_by[key as usize] = FREE;
                self.held -= 1;
            }
        }
    }
}
