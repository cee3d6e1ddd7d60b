//! The keys with the most uses in the whole stream, cached for good: what knowing every frequency
//! beforehand is worth. It never adapts.

use super::Policy;

/// Holds the most used keys; the first use of each is a miss all the same.
pub(crate) struct StaticTop {
    chosen: Vec<bool>,  // [keys]
    present: Vec<bool>, // [keys]
}

impl StaticTop {
    /// Chooses `capacity` of the keys of a stream; of equal counts the smaller key.
    pub(crate) fn new(capacity: usize, stream: &[u32]) -> Self {
        let keys = stream.iter().max().map_or(0, |&key| key as usize + 1);
        let mut counts = vec![0_u32; keys];
        for &key in stream {
            counts[key as usize] += 1;
        }
        let mut order: Vec<u32> = (0..keys as u32).collect();
        order.sort_by_key(|&key| std::cmp::Reverse(counts[key as usize]));
        let mut chosen = vec![false; keys];
        for &key in order.iter().take(capacity) {
            chosen[key as usize] = true;
        }
        Self { chosen, present: vec![false; keys] }
    }
}

impl Policy for StaticTop {
    fn access(&mut self, key: u32) -> bool {
        let present = &mut self.present[key as usize];
        let hit = *present;
        *present = self.chosen[key as usize];
        hit
    }
}
