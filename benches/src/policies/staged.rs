//! Training on a cache that is run by the store's own policy: batches are staged some steps before
//! they compute and their rows are held from then on. It counts re-reads and moves no rows.

use tiers::policy::{Policy as StorePolicy, Sweep};

use super::hash;

const VACANT: u32 = u32::MAX;
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

/// Slots, a hand, and rows that steps hold.
pub(crate) struct Staged {
    policy: StorePolicy,
    foresight: Foresight,
    depth: usize,
    capacity: usize,
    hand: usize,
    keys: Vec<u32>,     // [slots]
    codes: Vec<u8>,     // [slots]
    slots: Vec<u32>,    // [keys]
    held_by: Vec<u32>,  // [keys] the latest step that holds it
    histories: Vec<u8>, // [keys] as stored on SSD
    vacant: Vec<u32>,
    held: usize,
    /// Rows read from SSD although they had been cached before.
    pub(crate) rereads: u64,
}

impl Staged {
    /// Room for `capacity` rows; a step is staged `depth` steps before it computes.
    pub(crate) fn new(capacity: usize, depth: usize, foresight: Foresight) -> Self {
        Self {
            policy: StorePolicy::new(capacity),
            foresight,
            depth,
            capacity,
            hand: 0,
            keys: vec![VACANT; capacity],
            codes: vec![0; capacity],
            slots: Vec::new(),
            held_by: Vec::new(),
            histories: Vec::new(),
            vacant: (0..capacity as u32).rev().collect(),
            held: 0,
            rereads: 0,
        }
    }

    /// Trains on all of it.
    pub(crate) fn run(&mut self, batches: &Batches) {
        self.slots = vec![VACANT; batches.distinct];
        self.held_by = vec![FREE; batches.distinct];
        self.histories = vec![0; batches.distinct];
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
            for place in start..end {
                let key = batches.keys[place];
                self.stage(step as u32, key, batches.next_uses[place], &mut created);
            }
            start = end;
        }
    }

    fn release(&mut self, step: u32, keys: &[u32]) {
        for &key in keys {
            if self.held_by[key as usize] == step {
                self.held_by[key as usize] = FREE;
                self.held -= 1;
            }
        }
    }

    fn stage(&mut self, step: u32, key: u32, next_use: u32, created: &mut u32) {
        let at = key as usize;
        self.held += usize::from(self.held_by[at] == FREE);
        self.held_by[at] = step;
        let mut slot = self.slots[at];
        let known = slot != VACANT;
        if !known {
            let first_touch = key >= *created;
            self.rereads += u64::from(!first_touch);
            slot = self.vacant.pop().unwrap_or_else(|| self.evict());
            self.slots[at] = slot;
            self.keys[slot as usize] = key;
            self.codes[slot as usize] = if first_touch {
                *created = key + 1;
                self.policy.first_touch()
            } else {
                self.policy.insert(hash(key), Some(self.histories[at]))
            };
        }
        let code = &mut self.codes[slot as usize];
        match self.foresight {
            Foresight::NextUses => *code = self.policy.foreseen(u64::from(step), next_use),
            Foresight::Batch if known => *code = self.policy.hit(hash(key), *code),
            Foresight::Batch => {}
        }
    }

    /// Makes a slot vacant: one turn as the policy says, then the least worth of those passed.
    fn evict(&mut self) -> u32 {
        let mut least: Option<(u8, usize)> = None;
        for _ in 0..self.capacity {
            let slot = self.hand;
            self.hand = if slot + 1 == self.capacity { 0 } else { slot + 1 };
            if self.held_by[self.keys[slot] as usize] != FREE {
                continue;
            }
            match self.policy.sweep(self.codes[slot]) {
                Sweep::Keep(code) => {
                    self.codes[slot] = code;
                    let worth = self.policy.worth(code);
                    if least.is_none_or(|least| worth < least.0) {
                        least = Some((worth, slot));
                    }
                }
                Sweep::Evict => return self.leave(slot),
            }
        }
        let (_, slot) = least.expect("a step is staged only where not all rows are held");
        self.leave(slot)
    }

    fn leave(&mut self, slot: usize) -> u32 {
        let key = self.keys[slot];
        self.policy.left(hash(key), self.codes[slot]);
        self.histories[key as usize] = self.policy.history(self.codes[slot]);
        self.slots[key as usize] = VACANT;
        slot as u32
    }
}
