//! Offline MIN (Belady, 1966): evicts the key whose next use is farthest, never the one that comes
//! in. It must be told the whole stream beforehand.

use std::collections::BinaryHeap;

use super::Policy;

const NEVER: u32 = u32::MAX;

/// The fewest misses that any policy without bypass can have.
pub(crate) struct Min {
    capacity: usize,
    cached: usize,
    next_uses: Vec<u32>,           // [accesses]
    held: Vec<u32>,                // [keys]: the next use of a cached key; 0 is not cached
    order: BinaryHeap<(u32, u32)>, // next use and key; stale where `held` differs
    now: usize,
}

impl Min {
    /// Room for `capacity` keys, at least one, for exactly this stream.
    pub(crate) fn new(capacity: usize, stream: &[u32]) -> Self {
        let keys = stream.iter().max().map_or(0, |&key| key as usize + 1);
        Self {
            capacity: capacity.max(1),
            cached: 0,
            next_uses: next_uses(stream, keys),
            held: vec![0; keys],
            order: BinaryHeap::new(),
            now: 0,
        }
    }

    fn evict(&mut self) {
        while let Some((next, key)) = self.order.pop() {
            if self.held[key as usize] == next {
                self.held[key as usize] = 0;
                self.cached -= 1;
                return;
            }
        }
    }
}

/// For each access the place of the key's next one.
fn next_uses(stream: &[u32], keys: usize) -> Vec<u32> {
    let mut last = vec![NEVER; keys];
    let mut next = vec![NEVER; stream.len()];
    for (place, &key) in stream.iter().enumerate().rev() {
        next[place] = last[key as usize];
        last[key as usize] = place as u32;
    }
    next
}

impl Policy for Min {
    fn access(&mut self, key: u32) -> bool {
        let next = self.next_uses[self.now];
        self.now += 1;
        let hit = self.held[key as usize] != 0;
        if !hit {
            if self.cached == self.capacity {
                self.evict();
            }
            self.cached += 1;
        }
        self.held[key as usize] = next;
        self.order.push((next, key));
        hit
    }
}
