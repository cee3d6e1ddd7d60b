//! The store held to its contract, to the oracle and to its limits, on a real RocksDB in a
//! temporary directory. Tests of many processes and of the wire are elsewhere.

mod admission;
mod limits;
mod memory;
mod persistence;
mod pressure;
mod property;
mod threads;
mod traps;
mod writes;

use std::time::Duration;

use table::{Initializer, Key, KeyBatch, Optimizer, RowStatus, TableId, TableSpec};
use tempfile::TempDir;
use testkit::{Outcome, RowStore};

use crate::{Staged, Store, StoreConfig};

pub(crate) const ADAM: Optimizer = Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 };
pub(crate) const ADAGRAD: Optimizer = Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 };
pub(crate) const ROW_WISE: Optimizer =
    Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.0 };
/// A budget of three or four blocks.
pub(crate) const TINY: u64 = StoreConfig::HOST_RAM_BYTES_MIN;
/// A budget that nothing here fills.
pub(crate) const HUGE: u64 = 256 << 20;

/// A store in a directory of its own.
pub(crate) struct Scratch {
    pub(crate) store: Option<Store>,
    config: StoreConfig,
    dir: TempDir,
}

impl Scratch {
    pub(crate) fn new(host_ram_bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut config = StoreConfig::new(dir.path().join("store"), host_ram_bytes);
        config.ssd_memory_bytes = 8 << 20;
        config.stage_wait = Duration::ZERO;
        let store = Some(Store::open(config.clone()).unwrap());
        Self { store, config, dir }
    }

    pub(crate) fn patient(host_ram_bytes: u64) -> Self {
        let mut scratch = Self::new(host_ram_bytes);
        scratch.config.stage_wait = Duration::from_secs(60);
        scratch.store().close().unwrap();
        scratch.reopen();
        scratch
    }

    pub(crate) fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    /// Drops the store, closed or not, and opens the directory again.
    pub(crate) fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.config.clone()).unwrap());
    }

    pub(crate) fn close_and_reopen(&mut self) {
        self.store().close().unwrap();
        self.reopen();
    }
}

impl RowStore for Scratch {
    type Staged = Staged;

    fn create_table(&self, spec: &TableSpec) -> Outcome<TableId> {
        Ok(self.store().create_table(spec)?)
    }

    fn stage(&self, keys: &KeyBatch) -> Outcome<Staged> {
        Ok(self.store().stage(keys)?)
    }

    fn statuses(&self, staged: &Staged) -> Vec<RowStatus> {
        staged.statuses().to_vec()
    }

    fn pull(&self, staged: &Staged) -> Outcome<Vec<f32>> {
        let mut rows = vec![f32::NAN; staged.rows_floats()];
        self.store().pull(staged, &mut rows)?;
        Ok(rows)
    }

    fn push(&self, staged: &Staged, gradients: &[f32], learning_rate: f32) -> Outcome<()> {
        Ok(self.store().push(staged, gradients, learning_rate)?)
    }

    fn lookup(&self, keys: &KeyBatch) -> Outcome<(Vec<f32>, Vec<RowStatus>)> {
        let mut rows = vec![f32::NAN; self.store().rows_floats(keys)?];
        let mut statuses = vec![RowStatus::Failed; keys.len()];
        self.store().lookup(keys, &mut rows, &mut statuses)?;
        Ok((rows, statuses))
    }

    fn assign(&self, keys: &KeyBatch, rows: &[f32]) -> Outcome<()> {
        Ok(self.store().assign(keys, rows)?)
    }

    fn row_count(&self, table: TableId) -> Outcome<u64> {
        Ok(self.store().status().tables[table.0 as usize].rows)
    }
}

pub(crate) fn spec(name: &str, dim: u32, optimizer: Optimizer) -> TableSpec {
    let initializer = Initializer::Uniform { bound: 0.5 };
    TableSpec::new(name, dim, optimizer, initializer, 3)
}

pub(crate) fn batch(table: TableId, keys: impl IntoIterator<Item = u64>) -> KeyBatch {
    let keys: Vec<Key> = keys.into_iter().map(Key).collect();
    let mut batch = KeyBatch::new();
    batch.push_run(table, &keys).unwrap();
    batch
}

/// Stages, pushes gradients of one value and lets go.
pub(crate) fn step(store: &Store, keys: &KeyBatch, gradient: f32) {
    let staged = store.stage(keys).unwrap();
    store.push(&staged, &vec![gradient; staged.rows_floats()], 0.1).unwrap();
}

#[test]
fn the_store_keeps_the_contract_when_all_fits() {
    testkit::check_contract(|| Scratch::new(HUGE));
}

#[test]
fn the_store_keeps_the_contract_when_rows_come_and_go() {
    // four row lengths need a block each
    testkit::check_contract(|| Scratch::new(2 * TINY));
}
