//! Vectors of the cache table's kernels: random steps of a model, whose state before and after each
//! is what a launch finds and leaves. The model is this file's, and a test holds it to a map. Rows
//! that move from slots of one memory to slots of another.

use std::collections::BTreeMap;

use table::mix;

use crate::kernels::{BLOCK, WARP, WAYS, grid};
use crate::vectors::{Argument, Case, buffer, floats, memory_of};

/// No slot, and no table.
const NONE: u32 = u32::MAX;

/// A table of sets, by the rules of `kernels/cache.cu`.
#[derive(Debug, Clone)]
struct Model {
    parts: Vec<[u32; 2]>, // the first set, and how many; table t is of part t modulo their number
    digests: Vec<u8>,     // all: [sets, WAYS]
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
    fn new(sets: &[u32]) -> Self {
        let slots = (sets.iter().sum::<u32>() * WAYS) as usize;
        let (digests, keys) = (vec![0; slots], vec![0; slots]);
        let parts = sets.iter().scan(0, |first, &count| {
            *first += count;
            Some([*first - count, count])
        });
        let parts = parts.collect();
        Self { parts, digests, keys, tables: vec![0; slots], steps: vec![0; slots] }
    }

    fn part(&self, table: u32) -> [u32; 2] {
        self.parts[table as usize % self.parts.len()]
    }

    /// The keys of each table as the kernel is told of them: where they begin, and their sets.
    fn spans(&self, keys: &[(u32, u64)]) -> Vec<u32> {
        let mut spans = Vec::new();
        let mut begin = 0;
        for of_table in keys.chunk_by(|a, b| a.0 == b.0) {
            spans.push(begin);
            spans.extend(self.part(of_table[0].0));
            begin += of_table.len() as u32;
        }
        spans
    }

    fn hash(table: u32, key: u64) -> u64 {
        mix(mix(u64::from(table)) ^ key)
    }

    fn set(&self, (table, key): (u32, u64)) -> u32 {
        let [first, count] = self.part(table);
        first + (((Self::hash(table, key) >> 32) * u64::from(count)) >> 32) as u32
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

/// Random steps over tables of one set and of several, in one part and in several: keys found,
/// those that were not inserted, some slots cleared. There are more keys than slots, and now and
/// then all of a set is staged.
pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, sets, keys_of_a_step, blocks_max) in [
        (1, &[1][..], 30, 2),
        (2, &[3], 70, 1),
        (3, &[8], 150, 9),
        (4, &[2, 5], 120, 2),
        (5, &[1, 3, 1], 90, 3),
    ] {
        let mut model = Model::new(sets);
        let sets = sets.iter().sum();
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
    let mut empty = Model::new(&[2]);
    cases.extend([find(&mut empty, &[], 1, 1), insert(&mut empty, &[], 1, 1, 1)]);
    for (seed, (lengths, blocks_max)) in [
        (&[(16, 700)][..], 2),
        (&[(1, 33)], 7),
        (&[(17, 50), (16, 50)], 1),
        (&[(128, 37), (1, 37), (64, 9), (33, 90), (4, 1)], 132),
        (&[(8, 1), (8, 400), (7, 1), (2, 3)], 1),
        (&[], 1),
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(move_rows(seed as u64, lengths, blocks_max));
    }
    cases
}

/// Rows of one memory to slots of another, all in no order: so many of each length, of which those
/// of a multiple of four floats move in fours.
fn move_rows(seed: u64, lengths: &[(usize, usize)], blocks_max: u32) -> Case {
    let (mut source, mut target, mut after) = (Vec::new(), Vec::new(), Vec::new());
    let (mut from, mut to): (Vec<Option<u64>>, Vec<Option<u64>>) = (Vec::new(), Vec::new());
    let (mut moves, mut begin) = (Vec::<u32>::new(), 0);
    for (l, &(width, n)) in lengths.iter().enumerate() {
        let (slots, number) = (n + n / 3 + 1, seed * 16 + l as u64);
        let some = |stream: u64| -> Vec<usize> {
            let mut all: Vec<usize> = (0..slots).collect();
            all.sort_by_key(|&slot| mix(number << 40 | stream << 32 | slot as u64));
            all.truncate(n);
            all
        };
        let by_four = width.is_multiple_of(4);
        let parts = if by_four { width / 4 } else { width };
        moves.extend([begin as u32, 0, from.len() as u32, parts as u32, u32::from(by_four), 0]);
        begin += parts * n;
        let floats_of = |stream| floats(number, stream, (slots * width).next_multiple_of(4));
        let first = source.len();
        source.extend(floats_of(0));
        target.extend(floats_of(1));
        after.extend(floats_of(1));
        for (here, there) in some(0).into_iter().zip(some(1)) {
            let (here, there) = (first + here * width, first + there * width);
            after[there..there + width].copy_from_slice(&source[here..here + width]);
            from.push(Some(4 * here as u64));
            to.push(Some(4 * there as u64));
        }
    }
    let arguments = vec![
        memory_of(&source, &source),
        Argument::Rows { buffer: 0, offsets: from },
        memory_of(&target, &after),
        Argument::Rows { buffer: 1, offsets: to },
        buffer(&moves, &moves),
        Argument::U32(lengths.len() as u32),
        Argument::U64(begin as u64),
    ];
    case("move_rows", grid(begin as u64, blocks_max), arguments)
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
    let spans = model.spans(keys);
    let arguments = vec![
        buffer(&numbers, &numbers),
        buffer(&tables, &tables),
        Argument::U64(keys.len() as u64),
        buffer(&before.digests, &model.digests),
        buffer(&before.keys, &model.keys),
        buffer(&before.tables, &model.tables),
        buffer(&before.steps, &model.steps),
        buffer(&spans, &spans),
        Argument::U32(spans.len() as u32 / 3),
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
    let sets: Vec<u32> = groups.keys().copied().collect();
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
        buffer(&sets, &sets),
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
    let slots: Vec<u32> = (0..model.digests.len() as u32)
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
        let mut model = Model::new(&[1, 2]);
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
