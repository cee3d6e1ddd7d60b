//! A cache that is run by the store's own policy: slots that a hand sweeps in their order, one byte
//! each. The policy is the store's; only the slots and the hand are simulated.

use tiers::policy::{Policy as StorePolicy, Sweep};

use super::{Policy, hash};

const VACANT: u32 = u32::MAX;

/// Room for so many keys in a row of slots.
pub(crate) struct Swept {
    policy: StorePolicy,
    capacity: usize,
    hand: usize,
    keys: Vec<u32>,  // [slots]
    codes: Vec<u8>,  // [slots]
    slots: Vec<u32>, // [keys]
}

impl Swept {
    /// Room for `capacity` keys, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            policy: StorePolicy::new(capacity),
            capacity,
            hand: 0,
            keys: Vec::with_capacity(capacity),
            codes: Vec::with_capacity(capacity),
            slots: Vec::new(),
        }
    }

    /// Makes a slot vacant.
    fn evict(&mut self) -> usize {
        loop {
            let slot = self.hand;
            self.hand = if slot + 1 == self.capacity { 0 } else { slot + 1 };
            match self.policy.sweep(self.codes[slot]) {
                Sweep::Keep(code) => self.codes[slot] = code,
                Sweep::Evict => {
                    let key = self.keys[slot];
                    self.policy.left(hash(key), self.codes[slot]);
                    self.slots[key as usize] = VACANT;
                    return slot;
                }
            }
        }
    }
}

impl Policy for Swept {
    fn access(&mut self, key: u32) -> bool {
        let first_touch = key as usize >= self.slots.len();
        if first_touch {
            self.slots.resize(key as usize + 1, VACANT);
        }
        let slot = self.slots[key as usize] as usize;
        if slot != VACANT as usize {
            self.codes[slot] = self.policy.hit(hash(key), self.codes[slot]);
            return true;
        }
        // keys are numbered in the order of their first use
        let code = if first_touch {
            self.policy.first_touch()
        } else {
            self.policy.insert(hash(key), None)
        };
        if self.keys.len() < self.capacity {
            self.slots[key as usize] = self.keys.len() as u32;
            self.keys.push(key);
            self.codes.push(code);
        } else {
            let slot = self.evict();
            (self.keys[slot], self.codes[slot]) = (key, code);
            self.slots[key as usize] = slot as u32;
        }
        false
    }
}
