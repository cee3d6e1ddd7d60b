//! What every store of rows must do, as a suite that runs against any of them. It tests no budget,
//! no eviction and no persistence; the store's own tests do.

// a store that refuses what the contract grants fails the test there and then
#![allow(clippy::unwrap_used)]

use std::error::Error;

use table::{
    Admission, Expiry, Initializer, Key, KeyBatch, Optimizer, RowStatus, TableId, TableSpec,
};

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
    /// Where the rows of a staged step were, in the order of its keys. In which tier is the store's
    /// own; whether one was made anew or kept out is not.
    fn statuses(&self, staged: &Self::Staged) -> Vec<RowStatus>;
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
    a_key_gets_a_row_at_its_third_sight(&make());
    a_row_that_nobody_stages_expires(&make());
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
    let plain = spec("a", 4, Optimizer::Sgd, Initializer::Uniform { bound: 0.5 });
    let strict = Admission::AfterSights(3);
    let brief = Expiry::Steps(BRIEF_STEPS);
    vec![
        plain.clone(),
        spec("b", 3, adagrad, Initializer::Normal { mean: 0.0, std: 0.1 }),
        spec("c", 16, row_wise, Initializer::UniformByRows { rows: 1000 }),
        spec("d", 5, adam, Initializer::Zeros),
        TableSpec { name: "strict".to_owned(), admission: strict, ..plain.clone() },
        TableSpec { name: "brief".to_owned(), expiry: brief, ..plain.clone() },
        TableSpec { name: "both".to_owned(), admission: strict, expiry: brief, ..plain },
    ]
}

/// Stages that a row of the tables that forget may miss.
const BRIEF_STEPS: u32 = 6;

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
    assert_eq!(tables, (0..specs().len() as u32).map(TableId).collect::<Vec<_>>());
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

fn initial(table: usize, key: u64) -> Vec<f32> {
    let spec = &specs()[table];
    let mut row = vec![0.0; spec.dim as usize];
    spec.initial_embedding(Key(key), &mut row);
    row
}

fn a_key_gets_a_row_at_its_third_sight(store: &impl RowStore) {
    let table = create(store)[4];
    let keys = one(table, &[5, 9]);
    let untouched = [initial(4, 5), initial(4, 9)].concat();
    for sight in 1..=2 {
        let staged = store.stage(&keys).unwrap();
        assert_eq!(store.statuses(&staged), [RowStatus::NotAdmitted; 2], "sight {sight}");
        assert_eq!(store.pull(&staged).unwrap(), untouched);
        store.push(&staged, &[1.0; 8], 0.1).unwrap(); // dropped
        let looked_at = (untouched.clone(), vec![RowStatus::Initialised; 2]);
        assert_eq!(store.lookup(&keys).unwrap(), looked_at, "a lookup is no sight");
        assert_eq!(store.row_count(table).unwrap(), 0);
    }
    let staged = store.stage(&keys).unwrap();
    assert_eq!(store.statuses(&staged), [RowStatus::Initialised; 2]);
    store.push(&staged, &[1.0; 8], 0.5).unwrap();
    drop(staged);
    // 7 is new: gradients meet their rows all the same
    let staged = store.stage(&one(table, &[5, 7, 9])).unwrap();
    let there = store.statuses(&staged).into_iter().map(is_there).collect::<Vec<_>>();
    assert_eq!(there, [true, false, true]);
    let gradients: Vec<f32> = [1.0, 2.0, 3.0].iter().flat_map(|x| [*x; 4]).collect();
    store.push(&staged, &gradients, 0.5).unwrap();
    let moved = |key, by| initial(4, key).iter().map(|w| w - 0.5 - by).collect::<Vec<f32>>();
    let expected = [moved(5, 0.5), initial(4, 7), moved(9, 1.5)].concat();
    assert_eq!(store.pull(&staged).unwrap(), expected);
    assert_eq!(store.row_count(table).unwrap(), 2);
}

fn a_row_that_nobody_stages_expires(store: &impl RowStore) {
    let tables = create(store);
    let (other, brief) = (tables[0], tables[5]);
    let keys = one(brief, &[7]);
    let pass = |stages: u32| (0..stages).for_each(|i| drop(store.stage(&one(other, &[i.into()]))));
    let staged = store.stage(&keys).unwrap();
    store.push(&staged, &[1.0; 4], 0.5).unwrap();
    let trained = store.pull(&staged).unwrap();
    drop(staged);
    assert_ne!(trained, initial(5, 7));
    for _ in 0..2 {
        pass(BRIEF_STEPS - 1);
        assert_eq!(store.lookup(&keys).unwrap().0, trained, "so many are not too many");
        let staged = store.stage(&keys).unwrap(); // young again
        assert!(is_there(store.statuses(&staged)[0]));
        assert_eq!(store.pull(&staged).unwrap(), trained);
    }
    pass(BRIEF_STEPS + 1);
    let forgotten = (initial(5, 7), vec![RowStatus::Initialised]);
    assert_eq!(store.lookup(&keys).unwrap(), forgotten);
    let staged = store.stage(&keys).unwrap();
    assert_eq!(store.statuses(&staged), [RowStatus::Initialised]);
    assert_eq!(store.pull(&staged).unwrap(), initial(5, 7));
    assert_eq!(store.row_count(brief).unwrap(), 1);
}

/// Whether a row was there, in whichever tier.
fn is_there(status: RowStatus) -> bool {
    matches!(status, RowStatus::Gpu | RowStatus::Host | RowStatus::Ssd)
}

/// What is the same in every store.
fn told(statuses: Vec<RowStatus>) -> Vec<RowStatus> {
    let told = |status| if is_there(status) { RowStatus::Host } else { status };
    statuses.into_iter().map(told).collect()
}

/// Next uses of any kind: soon, late, never, and wrong ones, for nothing may depend on them.
fn random_next_uses(random: &mut Random, keys: usize) -> Vec<u32> {
    let mut any = || match random.below(4) {
        0 => KeyBatch::NEVER,
        1 => u32::MAX - 1,
        _ => random.below(40) as u32 + 1,
    };
    (0..keys).map(|_| any()).collect()
}

/// Odd seeds tell next uses.
fn a_random_run_agrees_with_the_oracle(store: &impl RowStore, seed: u64) {
    let tables = create(store);
    let oracle = OracleStore::new();
    create(&oracle);
    let mut random = Random::new(seed);
    for step in 0..30 {
        let mut batch = random_key_batch(&mut random, &tables, 120, 30);
        if seed % 2 == 1 && step % 3 > 0 {
            let next_uses = random_next_uses(&mut random, batch.len());
            batch.set_next_uses(next_uses).unwrap();
        }
        let (staged, mirror) = (store.stage(&batch).unwrap(), oracle.stage(&batch).unwrap());
        let statuses = told(store.statuses(&staged));
        assert_eq!(statuses, oracle.statuses(&mirror), "seed {seed}, step {step}");
        let rows = oracle.pull(&mirror).unwrap();
        assert_eq!(store.pull(&staged).unwrap(), rows, "seed {seed}, step {step}");
        let gradients = random_gradients(&mut random, rows.len());
        store.push(&staged, &gradients, 0.1).unwrap();
        oracle.push(&mirror, &gradients, 0.1).unwrap();
        drop(staged);
        let seen = random_key_batch(&mut random, &tables, 150, 30);
        let (rows, statuses) = store.lookup(&seen).unwrap();
        let expected = oracle.lookup(&seen).unwrap();
        assert_eq!((rows, told(statuses)), expected, "seed {seed}, step {step}");
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
