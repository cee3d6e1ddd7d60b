//! Vectors of the cache table's kernels: random steps of a model, whose state before and after each
//! is what a launch finds and leaves. The model is this file's, and a test holds it to a map. Rows
//! that move from slots of one memory to slots of another.

use std::collections::BTreeMap;

use table::mix;

use crate::kernels::{BLOCK, WARP, WAYS, grid};
use crate::vectors::{Argument, Case, buffer, floats, memory_of, offsets};

/// No slot, and no table.
const NONE: u32 = u32::MAX;

/// A table of sets, by the rules of `kernels/cache.cu`.
#[derive(Debug, Clone)]
struct Model {
    sets: u32,
    digests: Vec<u8>, // all: [sets, WAYS]
    keys: Vec<u64>,
    tables: Vec<u32>,
    steps: Vec<u32>,
}

/// What an insertion brought for one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Inserted {
    slot: Option<u32>,
    evicted: Option<(u32, u64)>, // table, key
    left: u64,                   // the key that the slot's place said before, evicted or not
}

impl Model {
    fn new(sets: u32) -> Self {
        let slots = (sets * WAYS) as usize;
        let (digests, keys) = (vec![0; slots], vec![0; slots]);
        Self { sets, digests, keys, tables: vec![0; slots], steps: vec![0; slots] }
    }

    fn hash(table: u32, key: u64) -> u64 {
        mix(mix(u64::from(table)) ^ key)
    }

    fn set(&self, (table, key): (u32, u64)) -> u32 {
        (((Self::hash(table, key) >> 32) * u64::from(self.sets)) >> 32) as u32
    }

    fn digest((table, key): (u32, u64)) -> u8 {
        1 + ((Self::hash(table, key) & 0xffff_ffff) % 255) as u8
    }

    fn ways(&self, key: (u32, u64)) -> std::ops::Range<usize> {
        let first = (self.set(key) * WAYS) as usize;
        first..first + WAYS as usize
    }

    fn find(&mut self, key: (u32, u64), now: u32) -> Option<u32> {
        let is =
            |&slot: &usize| self.digests[slot] != 0 && (self.tables[slot], self.keys[slot]) == key;
        let slot = self.ways(key).find(is)?;
        if now != 0 {
            self.steps[slot] = now;
        }
        Some(slot as u32)
    }

    fn insert(&mut self, key: (u32, u64), now: u32, floor: u32) -> Inserted {
        let vacant = self.ways(key).find(|&slot| self.digests[slot] == 0);
        let oldest = || {
            let free = self.ways(key).filter(|&slot| self.steps[slot] < floor);
            free.min_by_key(|&slot| (self.steps[slot], slot))
        };
        let Some(slot) = vacant.or_else(oldest) else {
            return Inserted { slot: None, evicted: None, left: 0 };
        };
        let left = self.keys[slot];
        let evicted = vacant.is_none().then_some((self.tables[slot], left));
        self.digests[slot] = Self::digest(key);
        (self.tables[slot], self.keys[slot]) = key;
        self.steps[slot] = now;
        Inserted { slot: Some(slot as u32), evicted, left }
    }

    fn clear(&mut self, slot: u32) {
        self.digests[slot as usize] = 0;
    }
}

/// Random steps over tables of one set and of several: keys found, those that were not inserted,
/// some slots cleared. There are more keys than slots, and now and then all of a set is staged.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, sets, keys_of_a_step, blocks_max) in [(1, 1, 30, 2), (2, 3, 70, 1), (3, 8, 150, 9)] {
        let mut model = Model::new(sets);
        for step in 1..=12 {
            let chosen = step_keys(seed, step, sets, keys_of_a_step);
            let floor = step.saturating_sub(if seed == 2 { 4 } else { 1 });
            cases.push(find(&mut model, &chosen, 0, blocks_max));
            cases.push(find(&mut model, &chosen, step, blocks_max));
            let missing: Vec<(u32, u64)> = {
                let mut looked = model.clone();
                chosen.into_iter().filter(|&key| looked.find(key, step).is_none()).collect()
            };
            cases.push(insert(&mut model, &missing, step, floor, blocks_max));
            if step % 3 == 0 {
                cases.push(clear(&mut model, seed * 100 + u64::from(step)));
            }
        }
    }
    let mut empty = Model::new(2);
    cases.extend([find(&mut empty, &[], 1, 1), insert(&mut empty, &[], 1, 1, 1)]);
    for (seed, (width, n, blocks_max)) in
        [(16, 700, 2), (1, 33, 7), (17, 50, 1), (128, 37, 132), (4, 1, 1), (8, 0, 1)]
            .into_iter()
            .enumerate()
    {
        cases.push(move_rows(seed as u64, width, n, blocks_max, "move_rows"));
        if width.is_multiple_of(4) {
            cases.push(move_rows(seed as u64, width, n, blocks_max, "move_rows_by_four"));
        }
    }
    cases
}

/// Rows of one memory to slots of another, all in no order.
fn move_rows(seed: u64, width: usize, n: usize, blocks_max: u32, kernel: &str) -> Case {
    let slots = n + n / 3 + 1;
    let some = |stream: u64| -> Vec<usize> {
        let mut all: Vec<usize> = (0..slots).collect();
        all.sort_by_key(|&slot| mix(seed << 40 | stream << 32 | slot as u64));
        all.truncate(n);
        all
    };
    let (from, to) = (some(0), some(1));
    let (source, target) = (floats(seed, 0, slots * width), floats(seed, 1, slots * width));
    let mut after = target.clone();
    for (&from, &to) in from.iter().zip(&to) {
        after[to * width..][..width].copy_from_slice(&source[from * width..][..width]);
    }
    let all = |slots: &[usize]| -> Vec<Option<usize>> { slots.iter().copied().map(Some).collect() };
    let arguments = vec![
        memory_of(&source, &source),
        offsets(0, &all(&from), width),
        memory_of(&target, &after),
        offsets(1, &all(&to), width),
        Argument::U32(width as u32),
        Argument::U64(n as u64),
    ];
    let parts = if kernel.ends_with("by_four") { width / 4 } else { width };
    case(kernel, grid((n * parts) as u64, blocks_max), arguments)
}

/// Keys of one step, none twice: of three tables, some of them the same in all.
fn step_keys(seed: u64, step: u32, sets: u32, count: u64) -> Vec<(u32, u64)> {
    let range = u64::from(sets * WAYS); // three times as many keys as slots
    let chosen = (0..count).map(|i| {
        let random = mix(seed << 40 | u64::from(step) << 20 | i);
        ((random % 3) as u32, (random >> 8) % range)
    });
    let unique: std::collections::BTreeSet<(u32, u64)> = chosen.collect();
    unique.into_iter().collect()
}

fn find(model: &mut Model, keys: &[(u32, u64)], now: u32, blocks_max: u32) -> Case {
    let before = model.clone();
    let slots: Vec<u32> = keys.iter().map(|&key| model.find(key, now).unwrap_or(NONE)).collect();
    let (tables, numbers): (Vec<u32>, Vec<u64>) = keys.iter().copied().unzip();
    let arguments = vec![
        buffer(&numbers, &numbers),
        buffer(&tables, &tables),
        Argument::U64(keys.len() as u64),
        buffer(&before.digests, &model.digests),
        buffer(&before.keys, &model.keys),
        buffer(&before.tables, &model.tables),
        buffer(&before.steps, &model.steps),
        Argument::U32(model.sets),
        Argument::U32(now),
        buffer(&vec![7_u32; keys.len()], &slots),
    ];
    case("find_slots", grid(keys.len() as u64 * u64::from(WARP), blocks_max), arguments)
}

fn insert(model: &mut Model, keys: &[(u32, u64)], now: u32, floor: u32, blocks_max: u32) -> Case {
    let before = model.clone();
    let mut groups: BTreeMap<u32, Vec<(u32, u64)>> = BTreeMap::new();
    keys.iter().for_each(|&key| groups.entry(model.set(key)).or_default().push(key));
    let mut starts = vec![0_u32];
    starts.extend(groups.values().scan(0, |end, group| {
        *end += group.len() as u32;
        Some(*end)
    }));
    let keys: Vec<(u32, u64)> = groups.into_values().flatten().collect();
    let inserted: Vec<Inserted> = keys.iter().map(|&key| model.insert(key, now, floor)).collect();
    let slots: Vec<u32> = inserted.iter().map(|found| found.slot.unwrap_or(NONE)).collect();
    // the key of a slot that was vacant is written too: it means nothing, and is what was there
    let evicted_keys: Vec<u64> = inserted.iter().map(|found| found.left).collect();
    let evicted_tables: Vec<u32> =
        inserted.iter().map(|found| found.evicted.map_or(NONE, |(table, _)| table)).collect();
    let (tables, numbers): (Vec<u32>, Vec<u64>) = keys.iter().copied().unzip();
    let groups = starts.len() as u64 - 1;
    let arguments = vec![
        buffer(&starts, &starts),
        Argument::U64(groups),
        buffer(&numbers, &numbers),
        buffer(&tables, &tables),
        buffer(&before.digests, &model.digests),
        buffer(&before.keys, &model.keys),
        buffer(&before.tables, &model.tables),
        buffer(&before.steps, &model.steps),
        Argument::U32(model.sets),
        Argument::U32(now),
        Argument::U32(floor),
        buffer(&vec![7_u32; keys.len()], &slots),
        buffer(&vec![0_u64; keys.len()], &evicted_keys),
        buffer(&vec![7_u32; keys.len()], &evicted_tables),
    ];
    case("insert_slots", grid(groups * u64::from(WARP), blocks_max), arguments)
}

fn clear(model: &mut Model, seed: u64) -> Case {
    let before = model.digests.clone();
    let random = |slot: u32| mix(seed << 32 | u64::from(slot));
    let slots: Vec<u32> = (0..model.sets * WAYS)
        .filter(|&slot| random(slot) % 4 == 0)
        .map(|slot| if random(slot) % 8 == 0 { NONE } else { slot })
        .collect();
    slots.iter().filter(|&&slot| slot != NONE).for_each(|&slot| model.clear(slot));
    let arguments = vec![
        buffer(&slots, &slots),
        Argument::U64(slots.len() as u64),
        buffer(&before, &model.digests),
    ];
    case("clear_slots", 1, arguments)
}

fn case(kernel: &str, grid: u32, arguments: Vec<Argument>) -> Case {
    Case { kernel: kernel.to_owned(), grid, block: BLOCK, shared_bytes: 0, arguments }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_agrees_with_a_map_and_keeps_what_is_staged() {
        let mut model = Model::new(3);
        let mut map: BTreeMap<(u32, u64), (u32, u32)> = BTreeMap::new(); // slot, step
        let (mut evictions, mut refusals) = (0, 0);
        for step in 1..200 {
            let floor = step - step.min(4);
            for key in step_keys(9, step, 3, 60) {
                let found = model.find(key, step);
                assert_eq!(found, map.get(&key).map(|&(slot, _)| slot), "{key:?} at {step}");
                if let Some(slot) = found {
                    map.insert(key, (slot, step));
                    continue;
                }
                let inserted = model.insert(key, step, floor);
                if let Some(gone) = inserted.evicted {
                    evictions += 1;
                    let (slot, taken) = map.remove(&gone).expect("a key that was there");
                    assert_eq!(Some(slot), inserted.slot);
                    assert!(taken < floor, "{gone:?} was staged");
                }
                match inserted.slot {
                    Some(slot) => {
                        assert!(map.values().all(|&(other, _)| other != slot), "a slot twice");
                        map.insert(key, (slot, step));
                    }
                    None => refusals += 1,
                }
            }
        }
        assert!(evictions > 1000 && refusals > 100, "{evictions} evictions, {refusals} refusals");
    }
}
