//! The distinct keys of a batch, table by table, and for each value its place among them. Features
//! that share a table share its keys. It does not pull rows.

use table::{Key, KeyBatch, TableId};

use crate::{Batch, Distinct, Error, Result};

/// The distinct keys of a batch. Its memory is kept from one batch to the next.
#[derive(Debug, Default)]
pub struct Unique {
    /// Tables ascending, keys of a table strictly ascending: what a session stages.
    pub keys: KeyBatch,
    /// For each feature, for each of its values, the place of its key in `keys.keys()`: the row of
    /// the pull, counted over all tables. [features][values]
    pub inverse: Vec<Vec<u32>>,
    order: Vec<(TableId, usize)>, // features by table
    slots: Vec<u32>,              // open addressing: place in `found` plus one, 0 is free
    found: Vec<(Key, u32)>,       // distinct keys of one table with the order of their first sight
    rank: Vec<u32>,               // order of first sight -> place in `keys`
    sorted: Vec<Key>,
    bucket_ends: Vec<u32>,
    scattered: Vec<(Key, u32)>,
}

/// Finds the distinct keys of `batch`, where `tables[f]` is the table of feature f.
///
/// The result depends on the batch and the tables alone: keys come out sorted, and no order of a
/// hash table shows. Where the source knows the distinct keys and no features share a table, they
/// are taken over, with the next uses of the keys.
pub fn unique(batch: &Batch, tables: &[TableId], out: &mut Unique) -> Result<()> {
    let features = &batch.features;
    if tables.len() != features.len() {
        return Err(Error::TablesDisagree { features: features.len(), tables: tables.len() });
    }
    let values: u64 = features.iter().map(|feature| feature.values.len() as u64).sum();
    if values >= u64::from(u32::MAX) {
        return Err(Error::TooManyValues { values });
    }
    let Unique { keys, inverse, order, slots, found, rank, sorted, bucket_ends, scattered } = out;
    keys.clear();
    inverse.resize_with(features.len(), Vec::new);
    order.clear();
    order.extend(tables.iter().copied().zip(0..));
    order.sort_unstable();
    let shared = order.windows(2).any(|pair| pair[0].0 == pair[1].0);
    if !shared && batch.distinct.counts.len() == features.len() {
        place_distinct(&batch.distinct, order, keys, inverse);
        return Ok(());
    }
    for group in order.chunk_by(|a, b| a.0 == b.0) {
        let values: usize = group.iter().map(|&(_, f)| features[f].values.len()).sum();
        slots.clear();
        slots.resize((2 * values).next_power_of_two(), 0);
        found.clear();
        for &(_, f) in group {
            inverse[f].clear();
            first_sights(&features[f].values, slots, found, &mut inverse[f]);
        }
        sort_by_key(found, bucket_ends, scattered);
        rank.resize(found.len(), 0);
        sorted.clear();
        for (place, &(key, sight)) in (keys.len() as u32..).zip(&*found) {
            rank[sight as usize] = place;
            sorted.push(key);
        }
        for &(_, f) in group {
            inverse[f].iter_mut().for_each(|sight| *sight = rank[*sight as usize]);
        }
        let in_order = keys.push_run(group[0].0, sorted);
        assert!(in_order.is_ok(), "sorted distinct keys were refused: {in_order:?}");
    }
    Ok(())
}

/// Takes over the distinct keys that the source knows, and their next uses: no feature shares its
/// table, so only the order of the tables is left to settle.
fn place_distinct(
    distinct: &Distinct,
    order: &[(TableId, usize)],
    keys: &mut KeyBatch,
    inverse: &mut [Vec<u32>],
) {
    let mut starts = vec![0];
    starts.extend(distinct.counts.iter().scan(0, |end, &count| {
        *end += count as usize;
        Some(*end)
    }));
    let mut next_uses = Vec::with_capacity(distinct.keys.len());
    for &(table, f) in order {
        let (base, run) = (keys.len() as u32, starts[f]..starts[f + 1]);
        inverse[f].clear();
        inverse[f].extend(distinct.inverse[f].iter().map(|place| base + place));
        next_uses.extend_from_slice(&distinct.next_uses[run.clone()]);
        let in_order = keys.push_run(table, &distinct.keys[run]);
        assert!(in_order.is_ok(), "sorted distinct keys were refused: {in_order:?}");
    }
    let matched = keys.set_next_uses(next_uses);
    assert!(matched.is_ok(), "a next use for each key was refused: {matched:?}");
}

/// Appends to `sights`, for each value, the number of distinct keys seen before its own first
/// sight. `slots` has a power of two of places, at least twice the values that will ever come.
fn first_sights(
    values: &[Key],
    slots: &mut [u32],
    found: &mut Vec<(Key, u32)>,
    sights: &mut Vec<u32>,
) {
    let mask = slots.len() - 1;
    sights.extend(values.iter().map(|&key| {
        let mut at = scatter(key) as usize & mask;
        loop {
            match slots[at] {
                0 => {
                    let sight = found.len() as u32;
                    slots[at] = sight + 1;
                    found.push((key, sight));
                    return sight;
                }
                taken if found[taken as usize - 1].0 == key => return taken - 1,
                _ => at = (at + 1) & mask,
            }
        }
    }));
}

/// Sorts distinct keys: by their upper bits into about as many buckets as there are keys, then
/// within each bucket. Hashes lie evenly, so that buckets hold one or two; keys that do not lie
/// evenly are sorted all the same, at the speed of a comparing sort.
fn sort_by_key(found: &mut [(Key, u32)], ends: &mut Vec<u32>, scattered: &mut Vec<(Key, u32)>) {
    const PLAIN_MAX: usize = 32; // so few are sorted faster where they are
    if found.len() <= PLAIN_MAX {
        return found.sort_unstable();
    }
    let range = found
        .iter()
        .fold((u64::MAX, 0), |(low, high), &(Key(key), _)| (low.min(key), high.max(key)));
    let (low, spread) = (range.0, range.1 - range.0);
    let bits = found.len().next_power_of_two().trailing_zeros();
    let shift = (64 - spread.leading_zeros()).saturating_sub(bits);
    let bucket = |key: Key| ((key.0 - low) >> shift) as usize;
    ends.clear();
    ends.resize(bucket(Key(range.1)) + 1, 0);
    found.iter().for_each(|&(key, _)| ends[bucket(key)] += 1);
    let mut start = 0;
    for end in ends.iter_mut() {
        (*end, start) = (start, start + *end); // each becomes its bucket's end while it is filled
    }
    scattered.resize(found.len(), (Key(0), 0));
    for &entry in found.iter() {
        let place = &mut ends[bucket(entry.0)];
        scattered[*place as usize] = entry;
        *place += 1;
    }
    let mut start = 0;
    for &end in ends.iter() {
        scattered[start..end as usize].sort_unstable();
        start = end as usize;
    }
    found.copy_from_slice(&scattered[..found.len()]);
}

/// Keys may be dense ids or hashes: the upper half of a product with the golden ratio serves both.
fn scatter(key: Key) -> u32 {
    let x = (key.0 ^ (key.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (x >> 32) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::Jagged;

    fn batch(features: &[Vec<Vec<u64>>]) -> Batch {
        let mut batch = Batch::new();
        for feature in features {
            let mut jagged = Jagged::default();
            for row in feature {
                jagged.values.extend(row.iter().copied().map(Key));
                jagged.end_row();
            }
            batch.features.push(jagged);
        }
        batch
    }

    /// The slow way: all (table, key) pairs in a tree, numbered in order.
    fn oracle(batch: &Batch, tables: &[TableId]) -> (KeyBatch, Vec<Vec<u32>>) {
        let mut places = BTreeMap::new();
        for (feature, &table) in batch.features.iter().zip(tables) {
            for &key in &feature.values {
                places.insert((table, key), 0);
            }
        }
        places.values_mut().zip(0..).for_each(|(place, n)| *place = n);
        let mut keys = KeyBatch::new();
        let distinct: Vec<(TableId, Key)> = places.keys().copied().collect();
        for run in distinct.chunk_by(|a, b| a.0 == b.0) {
            keys.push_run(run[0].0, &run.iter().map(|&(_, key)| key).collect::<Vec<_>>()).unwrap();
        }
        let inverse = batch.features.iter().zip(tables).map(|(feature, &table)| {
            feature.values.iter().map(|&key| places[&(table, key)]).collect()
        });
        (keys, inverse.collect())
    }

    #[test]
    fn features_of_one_table_share_its_keys() {
        let batch = batch(&[
            vec![vec![7], vec![9, 7]],
            vec![vec![7], vec![7]],
            vec![vec![u64::MAX], vec![7, 0]],
        ]);
        let mut out = Unique::default();
        unique(&batch, &[TableId(5), TableId(2), TableId(5)], &mut out).unwrap();
        let runs: Vec<_> = out.keys.runs().collect();
        assert_eq!(runs, [(TableId(2), 0..1), (TableId(5), 1..5)]);
        assert_eq!(out.keys.keys(), [7, 0, 7, 9, u64::MAX].map(Key));
        assert_eq!(out.inverse, [vec![2, 3, 2], vec![0, 0], vec![4, 2, 1]]);
    }

    #[test]
    fn a_wrong_number_of_tables_is_refused() {
        let error = unique(&batch(&[vec![]]), &[], &mut Unique::default()).unwrap_err();
        assert!(matches!(error, Error::TablesDisagree { features: 1, tables: 0 }), "{error}");
    }

    fn any_features() -> impl Strategy<Value = Vec<(u32, Vec<Vec<u64>>)>> {
        let key = prop_oneof![0..20_u64, any::<u64>(), (0..9_u64).prop_map(|x| x << 61)];
        let rows = prop::collection::vec(prop::collection::vec(key, 0..4), 0..40);
        prop::collection::vec((0..4_u32, rows), 0..6)
    }

    fn any_keys() -> impl Strategy<Value = Vec<u64>> {
        prop_oneof![
            prop::collection::vec(any::<u64>(), 0..3000),
            prop::collection::vec(0..5000_u64, 0..3000),
            prop::collection::vec((0..200_u64).prop_map(|x| u64::MAX - x * x), 0..400),
            prop::collection::vec((0..64_u32, 0..9_u64).prop_map(|(n, x)| x << n), 0..900),
        ]
    }

    proptest! {
        #[test]
        fn keys_of_any_spread_are_sorted(lists in prop::collection::vec(any_keys(), 1..4)) {
            let (mut ends, mut scattered) = (Vec::new(), Vec::new()); // reused, as in `unique`
            for keys in lists {
                let distinct: std::collections::BTreeSet<u64> = keys.iter().copied().collect();
                let mut seen = std::collections::BTreeSet::new();
                let firsts = keys.into_iter().filter(|&key| seen.insert(key));
                let mut found: Vec<_> = firsts.map(Key).zip(0..).collect();
                let by_comparing = {
                    let mut found = found.clone();
                    found.sort_unstable();
                    found
                };
                sort_by_key(&mut found, &mut ends, &mut scattered);
                prop_assert_eq!(found.len(), distinct.len());
                prop_assert_eq!(found, by_comparing);
            }
        }

        #[test]
        fn agrees_with_a_tree(first in any_features(), second in any_features()) {
            let mut out = Unique::default(); // reused: a batch must not show in the next one
            for features in [first, second] {
                let (tables, features): (Vec<_>, Vec<_>) =
                    features.into_iter().map(|(t, f)| (TableId(t), f)).unzip();
                let batch = batch(&features);
                unique(&batch, &tables, &mut out).unwrap();
                let (keys, inverse) = oracle(&batch, &tables);
                prop_assert_eq!(&out.keys, &keys);
                prop_assert_eq!(&out.inverse, &inverse);
            }
        }
    }
}
