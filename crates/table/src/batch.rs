//! The keys of one step: for each table a run of unique keys in ascending order. Rows and gradients
//! travel in the same order. It does not find the unique keys; `dataset` does.

use std::ops::Range;
use std::sync::Arc;

use crate::{Error, Key, Result, TableId};

/// One table's share of a [`KeyBatch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyRun {
    /// The table.
    pub table: TableId,
    /// How many keys of the batch belong to it.
    pub rows: u32,
}

/// Unique keys grouped by table: tables strictly ascending, keys strictly ascending within a table.
///
/// The order is part of the contract: it fixes the order of every sum and makes a run repeatable.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyBatch {
    runs: Vec<KeyRun>,
    keys: Arc<Vec<Key>>, // [Σ runs.rows], shared with steps that were staged from it
    next_uses: Vec<u32>, // [Σ runs.rows] or empty: not known
}

impl KeyBatch {
    /// The next use of a key that is not used again as far as is known.
    pub const NEVER: u32 = u32::MAX;

    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// A batch from its parts, as they come off the wire; every rule is checked.
    pub fn from_parts(runs: Vec<KeyRun>, keys: Vec<Key>) -> Result<Self> {
        let named: u64 = runs.iter().map(|run| u64::from(run.rows)).sum();
        if named != keys.len() as u64 {
            return Err(Error::RunsDisagree { runs: named, keys: keys.len() as u64 });
        }
        let batch = Self { runs, keys: Arc::new(keys), next_uses: Vec::new() };
        for pair in batch.runs.windows(2) {
            if pair[1].table <= pair[0].table {
                let (previous, next) = (pair[0].table, pair[1].table);
                return Err(Error::TablesNotAscending { previous, next });
            }
        }
        for (table, range) in batch.runs() {
            check_ascending(table, &batch.keys[range])?;
        }
        Ok(batch)
    }

    /// Appends the keys of one table. `table` must be greater than every table before it and `keys`
    /// strictly ascending; otherwise nothing is appended. An empty run is left out.
    pub fn push_run(&mut self, table: TableId, keys: &[Key]) -> Result<()> {
        if let Some(last) = self.runs.last()
            && table <= last.table
        {
            return Err(Error::TablesNotAscending { previous: last.table, next: table });
        }
        check_ascending(table, keys)?;
        if !keys.is_empty() {
            self.next_uses.clear(); // they were those of other keys
            let rows = u32::try_from(keys.len()).map_err(|_| Error::RunsDisagree {
                runs: u64::from(u32::MAX),
                keys: keys.len() as u64,
            })?;
            self.runs.push(KeyRun { table, rows });
            Arc::make_mut(&mut self.keys).extend_from_slice(keys);
        }
        Ok(())
    }

    /// Says in how many steps from this one each key is used next: 1 for the step after this, or
    /// [`Self::NEVER`]. It changes no result; it tells the store which rows to keep. An empty list
    /// takes the knowledge back.
    pub fn set_next_uses(&mut self, next_uses: Vec<u32>) -> Result<()> {
        if !next_uses.is_empty() && next_uses.len() != self.keys.len() {
            let (found, expected) = (next_uses.len() as u64, self.keys.len() as u64);
            return Err(Error::NextUses { found, expected });
        }
        self.next_uses = next_uses;
        Ok(())
    }

    /// In how many steps each key is used next, where that is known.
    pub fn next_uses(&self) -> Option<&[u32]> {
        (!self.next_uses.is_empty()).then_some(&self.next_uses)
    }

    /// Forgets the keys and keeps the memory; others of the same size, where somebody shares it.
    pub fn clear(&mut self) {
        self.runs.clear();
        match Arc::get_mut(&mut self.keys) {
            Some(keys) => keys.clear(),
            None => self.keys = Arc::new(Vec::with_capacity(self.keys.len())),
        }
        self.next_uses.clear();
    }

    /// Number of keys, which is the number of rows a pull returns.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no key is named.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All keys, table after table.
    pub fn keys(&self) -> &[Key] {
        &self.keys
    }

    /// The keys for somebody who needs them for longer: no key is copied, and they stand whatever
    /// becomes of the batch.
    pub fn shared_keys(&self) -> Arc<Vec<Key>> {
        Arc::clone(&self.keys)
    }

    /// The tables with the number of their keys.
    pub fn key_runs(&self) -> &[KeyRun] {
        &self.runs
    }

    /// Each table with the range of its keys in [`Self::keys`].
    pub fn runs(&self) -> impl Iterator<Item = (TableId, Range<usize>)> + '_ {
        let mut start = 0;
        self.runs.iter().map(move |run| {
            let range = start..start + run.rows as usize;
            start = range.end;
            (run.table, range)
        })
    }
}

fn check_ascending(table: TableId, keys: &[Key]) -> Result<()> {
    match keys.windows(2).find(|pair| pair[1] <= pair[0]) {
        Some(pair) => Err(Error::KeysNotAscending { table, previous: pair[0], next: pair[1] }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(values: &[u64]) -> Vec<Key> {
        values.iter().copied().map(Key).collect()
    }

    #[test]
    fn shared_keys_stand_whatever_becomes_of_the_batch() {
        let mut batch = KeyBatch::new();
        batch.push_run(TableId(1), &keys(&[3, 5])).unwrap();
        let shared = batch.shared_keys();
        batch.push_run(TableId(2), &keys(&[4])).unwrap();
        assert_eq!((&shared[..], batch.keys()), (&keys(&[3, 5])[..], &keys(&[3, 5, 4])[..]));
        let shared = batch.shared_keys();
        batch.clear();
        batch.push_run(TableId(1), &keys(&[9])).unwrap();
        assert_eq!((&shared[..], batch.keys()), (&keys(&[3, 5, 4])[..], &keys(&[9])[..]));
    }

    #[test]
    fn runs_give_each_table_its_range() {
        let mut batch = KeyBatch::new();
        batch.push_run(TableId(1), &keys(&[0, 7, u64::MAX])).unwrap();
        batch.push_run(TableId(4), &[]).unwrap();
        batch.push_run(TableId(9), &keys(&[3])).unwrap();
        let runs: Vec<_> = batch.runs().collect();
        assert_eq!(runs, vec![(TableId(1), 0..3), (TableId(9), 3..4)]);
        assert_eq!(
            KeyBatch::from_parts(batch.key_runs().to_vec(), batch.keys().to_vec()).unwrap(),
            batch
        );
    }

    #[test]
    fn a_duplicate_or_descending_key_is_refused_and_nothing_is_appended() {
        let mut batch = KeyBatch::new();
        for bad in [&[5, 5][..], &[6, 5]] {
            let error = batch.push_run(TableId(0), &keys(bad)).unwrap_err();
            assert!(matches!(error, Error::KeysNotAscending { .. }), "{error}");
            assert!(batch.is_empty());
        }
    }

    #[test]
    fn a_table_named_twice_is_refused() {
        let mut batch = KeyBatch::new();
        batch.push_run(TableId(2), &keys(&[1])).unwrap();
        let error = batch.push_run(TableId(2), &keys(&[2])).unwrap_err();
        assert!(matches!(error, Error::TablesNotAscending { .. }), "{error}");
    }

    #[test]
    fn run_lengths_that_do_not_add_up_are_refused() {
        let runs = vec![KeyRun { table: TableId(0), rows: 3 }];
        let error = KeyBatch::from_parts(runs, keys(&[1, 2])).unwrap_err();
        assert_eq!(error, Error::RunsDisagree { runs: 3, keys: 2 });
    }
}
