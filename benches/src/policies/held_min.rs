//! Offline MIN under the store's own rule that rows of staged steps stay: of the rows that no step
//! holds, the one leaves whose next use is farthest. What it re-reads beyond [`super::Min`] is the
//! price of holding; what the store's policy re-reads beyond it, that of its byte and its hand.

use std::collections::BinaryHeap;

use super::Batches;

const GONE: u32 = u32::MAX;

/// Re-reads with room for `capacity` rows, each step staged `depth` steps before it is released.
pub(crate) fn rereads(batches: &Batches, capacity: usize, depth: usize) -> u64 {
    let mut cached = vec![false; batches.distinct];
    let mut held_by = vec![GONE; batches.distinct]; // the latest step that holds a key
    let mut next_step = vec![GONE; batches.distinct]; // of a key that was staged before
    let mut free: BinaryHeap<(u32, u32)> = BinaryHeap::new(); // next step and key; stale if held
    let (mut rows, mut held, mut created, mut rereads) = (0, 0, 0, 0);
    let (mut start, mut released) = (0, 0);
    for (step, &end) in batches.ends.iter().enumerate() {
        while released < step && (step - released >= depth || held + (end - start) > capacity) {
            let first = if released == 0 { 0 } else { batches.ends[released - 1] };
            for &key in &batches.keys[first..batches.ends[released]] {
                if held_by[key as usize] == released as u32 {
                    held_by[key as usize] = GONE;
                    held -= 1;
                    free.push((next_step[key as usize], key));
                }
            }
            released += 1;
        }
        for place in start..end {
            let key = batches.keys[place];
            let at = key as usize;
            held += usize::from(held_by[at] == GONE);
            held_by[at] = step as u32;
            next_step[at] = (step as u32).saturating_add(batches.next_uses[place]);
            if cached[at] {
                continue;
            }
            rereads += u64::from(key < created);
            created = created.max(key + 1);
            cached[at] = true;
            rows += 1;
            while rows > capacity {
                let (next, key) = free.pop().expect("a step is staged only where not all is held");
                let key = key as usize;
                if held_by[key] == GONE && cached[key] && next_step[key] == next {
                    cached[key] = false;
                    rows -= 1;
                }
            }
        }
        start = end;
    }
    rereads
}
