//! What the store is given to do: key batches like those of training, and the numbers that the same
//! rows have in a flat array. It measures nothing.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use table::{Initializer, Key, KeyBatch, Optimizer, TableId, TableSpec};
use tempfile::TempDir;
use testkit::{Random, ZipfKeys};
use tiers::{Store, StoreConfig};

/// Tables of a model, as Criteo's data has them.
pub(crate) const TABLES: u32 = 26;
/// The exponent of the skewed law.
const ZIPF_EXPONENT: f64 = 1.05;
/// Rows made with one stage while tables are filled.
const FILL_ROWS: u64 = 1 << 14;
/// The most that a row may take beside its floats, for budgets in which all rows have to fit.
const BESIDE_ROW_BYTES_MAX: u64 = 64;
/// What a store may take whatever it holds.
const FIXED_BYTES_MAX: u64 = 64 << 20;

/// How often each row is named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Law {
    Uniform,
    Zipf,
}

/// Tables of one length, and batches over them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Rows of each table, a power of two.
    pub(crate) table_rows: u64,
    /// Draws for each table and batch.
    pub(crate) draws: usize,
}

/// One step's keys, and the same rows in a flat array.
pub(crate) struct Batch {
    pub(crate) keys: KeyBatch,
    pub(crate) indices: Vec<u32>, // [keys]
}

/// A store with its directory, which is gone when this is.
pub(crate) struct Filled {
    pub(crate) store: Store,
    _dir: TempDir,
}

impl Law {
    pub(crate) const ALL: [Law; 2] = [Law::Uniform, Law::Zipf];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Law::Uniform => "uniform",
            Law::Zipf => "Zipf 1.05",
        }
    }
}

impl Shape {
    pub(crate) fn rows(&self) -> u64 {
        self.table_rows * u64::from(TABLES)
    }

    /// So many batches; the same for the same seed.
    pub(crate) fn batches(&self, law: Law, seed: u64, count: usize) -> Result<Vec<Batch>> {
        let mut random = Random::new(seed);
        let mut zipf = ZipfKeys::new(seed, self.table_rows, ZIPF_EXPONENT);
        let mut rank = || match law {
            Law::Uniform => 1 + random.below(self.table_rows),
            Law::Zipf => zipf.next_rank(),
        };
        (0..count).map(|_| self.batch(&mut rank)).collect()
    }

    fn batch(&self, rank: &mut impl FnMut() -> u64) -> Result<Batch> {
        let mut batch = Batch { keys: KeyBatch::new(), indices: Vec::new() };
        for table in 0..TABLES {
            let mut drawn: Vec<(Key, u64)> = (0..self.draws)
                .map(|_| {
                    let rank = rank();
                    (key(rank), rank)
                })
                .collect();
            drawn.sort_unstable();
            drawn.dedup();
            let keys: Vec<Key> = drawn.iter().map(|(key, _)| *key).collect();
            batch.keys.push_run(TableId(table), &keys).context("make a batch")?;
            batch.indices.extend(drawn.iter().map(|(_, rank)| self.index(table, *rank)));
        }
        Ok(batch)
    }

    /// Where a row lies in a flat array: scattered, so that frequent rows are no neighbours.
    fn index(&self, table: u32, rank: u64) -> u32 {
        let scattered = rank.wrapping_mul(0x9e37_79b9_7f4a_7c15) & (self.table_rows - 1);
        u32::try_from(u64::from(table) * self.table_rows + scattered).expect("below 2^32 rows")
    }

    /// A store with every row of every table in RAM.
    pub(crate) fn filled_store(&self, scratch: &Path, dim: u32) -> Result<Filled> {
        let row_bytes = u64::from(dim + 1) * 4 + BESIDE_ROW_BYTES_MAX;
        let budget_bytes = self.rows() * row_bytes + FIXED_BYTES_MAX;
        let filled = open(scratch, |config| config.host_ram_bytes = budget_bytes)?;
        for table in 0..TABLES {
            filled.store.create_table(&spec(table, dim)).context("create a table")?;
        }
        self.fill(&filled.store)?;
        let evictions = filled.store.status().totals().evictions;
        ensure!(evictions == 0, "{evictions} rows left RAM though all should fit {budget_bytes} B");
        Ok(filled)
    }

    /// Makes every row of every table.
    pub(crate) fn fill(&self, store: &Store) -> Result<()> {
        for table in 0..TABLES {
            for first in (1..=self.table_rows).step_by(FILL_ROWS as usize) {
                let last = (first + FILL_ROWS - 1).min(self.table_rows);
                let keys = ascending((first..=last).map(key));
                let mut batch = KeyBatch::new();
                batch.push_run(TableId(table), &keys).context("make a batch")?;
                store.stage(&batch).context("fill a table")?;
            }
        }
        Ok(())
    }
}

/// Opens a store in a directory of its own; `set` has the last word on its configuration.
pub(crate) fn open(scratch: &Path, set: impl FnOnce(&mut StoreConfig)) -> Result<Filled> {
    let dir = TempDir::new_in(scratch).context("make a store's directory")?;
    let mut config = StoreConfig::new(dir.path().join("store"), 64 << 20);
    set(&mut config);
    Ok(Filled { store: Store::open(config).context("open a store")?, _dir: dir })
}

/// A table of the model: row-wise Adagrad, so that a row has its embedding and one float more.
pub(crate) fn spec(table: u32, dim: u32) -> TableSpec {
    let optimizer = Optimizer::RowWiseAdagrad { eps: 1e-8, initial_accumulator: 0.0 };
    let initializer = Initializer::Uniform { bound: 0.05 };
    TableSpec::new(format!("table_{table}"), dim, optimizer, initializer, 1)
}

/// The key of a rank, as [`ZipfKeys`] scatters it.
pub(crate) fn key(rank: u64) -> Key {
    Key(Random::new(rank).next_u64())
}

/// Keys in the order that batches want, each once.
pub(crate) fn ascending(keys: impl IntoIterator<Item = Key>) -> Vec<Key> {
    let mut keys: Vec<Key> = keys.into_iter().collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// A buffer whose pages are all there: not zeros, which the system would hand out only when used.
pub(crate) fn touched(floats: usize) -> Vec<f32> {
    vec![1.0; floats]
}

/// Small gradients, none of them zero.
pub(crate) fn gradients(floats: usize) -> Vec<f32> {
    let mut random = Random::new(5);
    (0..floats).map(|_| random.float(0.01)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_names_the_same_rows_twice_over() {
        let shape = Shape { table_rows: 1 << 10, draws: 100 };
        for law in Law::ALL {
            let batch = &shape.batches(law, 3, 1).unwrap()[0];
            assert_eq!(batch.keys.len(), batch.indices.len());
            let unique: std::collections::BTreeSet<_> = batch.indices.iter().collect();
            assert_eq!(unique.len(), batch.indices.len());
            assert!(batch.indices.iter().all(|&index| u64::from(index) < shape.rows()));
        }
    }
}
