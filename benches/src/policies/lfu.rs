//! Least frequently used among the cached: a key that leaves forgets its count. Of equal counts the
//! least recently used goes.

use std::collections::HashMap;

use super::Policy;
use super::list::{Links, List};

/// Evicts the key with the fewest uses since it came in.
pub(crate) struct Lfu {
    capacity: usize,
    cached: usize,
    links: Links,
    counts: Vec<u32>,          // [keys]: 0 is not cached
    lists: HashMap<u32, List>, // by count
    count_min: u32,
}

impl Lfu {
    /// Room for `capacity` keys, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            cached: 0,
            links: Links::default(),
            counts: Vec::new(),
            lists: HashMap::new(),
            count_min: 1,
        }
    }

    /// Takes the key out of the list of its count; whether that is empty now.
    fn leave(&mut self, key: u32, count: u32) -> bool {
        let list = self.lists.get_mut(&count).expect("a cached key is in the list of its count");
        self.links.remove(list, key);
        let empty = list.len() == 0;
        if empty {
            self.lists.remove(&count);
        }
        empty
    }

    fn enter(&mut self, key: u32, count: u32) {
        let list = self.lists.entry(count).or_insert(List::EMPTY);
        self.links.push_front(list, key);
        self.counts[key as usize] = count;
    }
}

impl Policy for Lfu {
    fn access(&mut self, key: u32) -> bool {
        if key as usize >= self.counts.len() {
            self.counts.resize(key as usize + 1, 0);
        }
        let count = self.counts[key as usize];
        if count > 0 {
            if self.leave(key, count) && self.count_min == count {
                self.count_min = count + 1;
            }
            self.enter(key, count + 1);
            return true;
        }
        if self.cached == self.capacity {
            let victim = self.lists[&self.count_min].back().expect("a kept list is not empty");
            self.leave(victim, self.count_min);
            self.counts[victim as usize] = 0;
        } else {
            self.cached += 1;
        }
        self.enter(key, 1);
        self.count_min = 1;
        false
    }
}
