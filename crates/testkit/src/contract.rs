//! What every store of rows must do, as a suite that runs against any of them. It tests no budget,
//! no eviction and no persistence; the store's own tests do.

// a store that refuses what the contract grants fails the test there and then
#![allow(clippy::unwrap_used)]

use std::error::Error;

use table::{Initializer, Key, KeyBatch, Optimizer, RowStatus, TableId, TableSpec};

use crate::{OracleStore, Random, adversarial_key, random_gradients, random_key_batch};

/// What a store answers; the suite asks only whether, not why, it refused.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// A store of rows as tests see it.
///
/// The caller guarantees that shapes fit the staged keys unless it tests for the refusal. The store
/// MUST answer bit for bit as [`OracleStore`] does.
pub trait RowStore {
    /// A staged step; dropping it releases its rows.
    type Staged;

    /// Makes a table or finds the equal one; refuses another specification under a known name.
    fn create_table(&self, spec: &TableSpec) -> Outcome<TableId>;
    /// Resolves and pins the rows of a step; creates those never touched.
    fn stage(&self, keys: &KeyBatch) -> Outcome<Self::Staged>;
    /// The embeddings of a staged step, in the order of its keys.
    fn pull(&self, staged: &Self::Staged) -> Outcome<Vec<f32>>;
    /// Applies a gradient to each row, or to none.
    fn push(&self, staged: &Self::Staged, gradients: &[f32], learning_rate: f32) -> Outcome<()>;
    /// Reads without creating.
    fn lookup(&self, keys: &KeyBatch) -> Outcome<(Vec<f32>, Vec<RowStatus>)>;
    /// Sets embeddings; optimizer state starts anew.
    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Outcome<()>;
    /// Rows of a table that exist.
    fn row_count(&self, table: TableId) -> Outcome<u64>;
}

/// Runs the suite; `make` gives an empty store each time.
pub fn check_contract<S: RowStore>(make: impl Fn() -> S) {
    tables_are_found_again_and_never_redefined(&make());
    a_lookup_leaves_no_trace(&make());
    a_refused_push_changes_nothing(&make());
    zeros_are_a_value(&make());
    every_key_is_usable(&make());
    for seed in 0..4 {
        a_random_run_agrees_with_the_oracle(&make(), seed);
    }
}

fn specs() -> Vec<TableSpec> {
    let spec = |name: &str, dim, optimizer, initializer| {
        TableSpec::new(name, dim, optimizer, initializer, 11)
    };
    let adagrad = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 };
    let row_wise = Optimizer::RowWiseAdagrad { eps: 1e-8, initial_accumulator: 0.0 };
    let adam = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
    vec![
        spec("a", 4, Optimizer::Sgd, Initializer::Uniform { bound: 0.5 }),
        spec("b", 3, adagrad, Initializer::Normal { mean: 0.0, std: 0.1 }),
        spec("c", 16, row_wise, Initializer::UniformByRows { rows: 1000 }),
        spec("d", 5, adam, Initializer::Zeros),
    ]
}

fn create(store: &impl RowStore) -> Vec<TableId> {
    specs().iter().map(|spec| store.create_table(spec).unwrap()).collect()
}

fn one(table: TableId, keys: &[u64]) -> KeyBatch {
    let keys: Vec<Key> = keys.iter().copied().map(Key).collect();
    let mut batch = KeyBatch::new();
    batch.push_run(table, &keys).unwrap();
    batch
}

fn tables_are_found_again_and_never_redefined(store: &impl RowStore) {
    let tables = create(store);
    assert_eq!(tables, (0..4).map(TableId).collect::<Vec<_>>());
    assert_eq!(tables, create(store));
    let other = TableSpec { dim: 8, ..specs()[0].clone() };
    assert!(store.create_table(&other).is_err(), "a change of dim was taken");
    assert!(store.stage(&one(TableId(9), &[1])).is_err(), "an unknown table was taken");
    assert!(store.lookup(&one(TableId(9), &[1])).is_err(), "an unknown table was taken");
}

fn a_lookup_leaves_no_trace(store: &impl RowStore) {
    let table = create(store)[0];
    let batch = one(table, &[3, 9]);
    let (before, statuses) = store.lookup(&batch).unwrap();
    assert_eq!(statuses, [RowStatus::Initialised; 2]);
    assert_eq!(store.row_count(table).unwrap(), 0);
    let staged = store.stage(&batch).unwrap();
    assert_eq!(store.pull(&staged).unwrap(), before, "the first touch makes what the lookup told");
    assert_eq!(store.row_count(table).unwrap(), 2);
}

fn a_refused_push_changes_nothing(store: &impl RowStore) {
    let tables = create(store);
    let mut batch = one(tables[0], &[1, 2]);
    batch.push_run(tables[3], &[Key(7)]).unwrap();
    let staged = store.stage(&batch).unwrap();
    let before = store.pull(&staged).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 7, before.len() - 1] {
            let mut gradients = vec![1.0; before.len()];
            gradients[at] = bad;
            assert!(store.push(&staged, &gradients, 0.1).is_err(), "{bad} at {at} was taken");
        }
    }
    let gradients = vec![1.0; before.len()];
    assert!(store.push(&staged, &gradients, f32::NAN).is_err(), "a rate of NaN was taken");
    assert!(store.push(&staged, &gradients[1..], 0.1).is_err(), "a short push was taken");
    assert_eq!(store.pull(&staged).unwrap(), before);
}

fn zeros_are_a_value(store: &impl RowStore) {
    let table = create(store)[0];
    let batch = one(table, &[5]);
    store.assign(&batch, &[0.0; 4]).unwrap();
    let (rows, statuses) = store.lookup(&batch).unwrap();
    assert_eq!(rows, [0.0; 4]);
    assert_ne!(statuses, [RowStatus::Initialised]);
    assert_eq!(store.pull(&store.stage(&batch).unwrap()).unwrap(), [0.0; 4]);
}

fn every_key_is_usable(store: &impl RowStore) {
    let table = create(store)[1];
    let mut keys: Vec<u64> = (0..200).map(|i| adversarial_key(i).0).collect();
    keys.sort_unstable();
    keys.dedup();
    let batch = one(table, &keys);
    let staged = store.stage(&batch).unwrap();
    let gradients: Vec<f32> = (0..keys.len() * 3).map(|i| i as f32).collect();
    let oracle = OracleStore::new();
    create(&oracle);
    let mirror = oracle.stage(&batch).unwrap();
    store.push(&staged, &gradients, 0.5).unwrap();
    oracle.push(&mirror, &gradients, 0.5).unwrap();
    assert_eq!(store.pull(&staged).unwrap(), oracle.pull(&mirror).unwrap());
    assert_eq!(store.row_count(table).unwrap(), keys.len() as u64);
}

fn a_random_run_agrees_with_the_oracle(store: &impl RowStore, seed: u64) {
    let tables = create(store);
    let oracle = OracleStore::new();
    create(&oracle);
    let mut random = Random::new(seed);
    for step in 0..30 {
        let batch = random_key_batch(&mut random, &tables, 120, 30);
        let (staged, mirror) = (store.stage(&batch).unwrap(), oracle.stage(&batch).unwrap());
        let rows = oracle.pull(&mirror).unwrap();
        assert_eq!(store.pull(&staged).unwrap(), rows, "seed {seed}, step {step}");
        let gradients = random_gradients(&mut random, rows.len());
        store.push(&staged, &gradients, 0.1).unwrap();
        oracle.push(&mirror, &gradients, 0.1).unwrap();
        drop(staged);
        let seen = random_key_batch(&mut random, &tables, 150, 30);
        let found = store.lookup(&seen).unwrap();
        assert_eq!(found.0, oracle.lookup(&seen).unwrap().0, "seed {seed}, step {step}");
    }
    for table in tables {
        assert_eq!(store.row_count(table).unwrap(), oracle.row_count(table).unwrap());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_keeps_its_own_contract() {
        check_contract(OracleStore::new);
    }
}
