//! `structures`: the same work (find or create the row of each key of a batch, read it out, update
//! it) through our store and through what parameter servers commonly use. All rows are there before
//! the clock runs, so that nothing waits for SSD.

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};

use anyhow::{Context, Result};
use dashmap::DashMap;
use lru::LruCache;
use optim::update_row;
use parking_lot::{Mutex, RwLock};
use table::{Key, KeyBatch, TableSpec};
use tiers::Store;

use crate::measure::{interleaved, rate, rounds};
use crate::report::{Outcome, Row, Settings};
use crate::workload::{Batch, Law, Shape, TABLES, ascending, gradients, key, spec, touched};

const DIM: usize = 16;
const THREADS: [usize; 2] = [1, 2];
const LEARNING_RATE: f32 = 0.01;
/// How many times DashMap + Vec the store must do.
const DASHMAP_TIMES: f64 = 8.0;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    // 6.8 M rows at full size: 464 MB of floats with their state
    let full = Shape { table_rows: 1 << 18, draws: 2048 };
    let quick = Shape { table_rows: 1 << 8, draws: 64 };
    let (shape, batches) = if settings.quick { (quick, 2) } else { (full, 16) };
    let filled = shape.filled_store(&settings.scratch, DIM as u32)?;
    let dashmap = Sharded::filled(&shape, RandomState::new());
    let fast = Sharded::filled(&shape, BuildHasherDefault::<Mixed>::default());
    let locked = Locked::filled(&shape);
    let mut outcome = Outcome::default();
    for law in Law::ALL {
        for threads in THREADS {
            let plural = if threads == 1 { "" } else { "s" };
            let name = format!("dim {DIM}, {}, {threads} thread{plural}", law.name());
            if !name.contains(&settings.only) {
                continue;
            }
            let works: Vec<Vec<Batch>> = (0..threads)
                .map(|thread| shape.batches(law, 200 + thread as u64, batches))
                .collect::<Result<_>>()?;
            let [ours, dashmap, fast, locked] = interleaved(
                rounds(settings.quick),
                [
                    &mut || rows_a_second(&works, &filled.store),
                    &mut || rows_a_second(&works, &dashmap),
                    &mut || rows_a_second(&works, &fast),
                    &mut || rows_a_second(&works, &locked),
                ],
            )?;
            let case = |what: &str| format!("against {what}: {name}");
            let m = |limit: f64| (ours / 1e6, limit / 1e6);
            outcome.add([Row {
                id: "vs_dashmap",
                case: case("DashMap + Vec"),
                unit: "M rows/s",
                ours: ours / 1e6,
                limit: dashmap / 1e6,
                goal: format!("at least {DASHMAP_TIMES} times limit"),
                holds: ours >= DASHMAP_TIMES * dashmap,
            }]);
            let shown = |id, what: &str, limit| Row::shown(id, case(what), "M rows/s", m(limit));
            outcome.add([shown("vs_dashmap_fast", "the same, a faster hash", fast)]);
            outcome.add([shown("vs_lru", "RwLock<HashMap> + lru", locked)]);
        }
    }
    outcome.notes.push(
        "Work: stage, pull, push (row-wise Adagrad) and unpin of batches of unique keys; the \
         others look each key up to read it and again to update it. The lock of \
         RwLock<HashMap> + lru is taken once a batch."
            .to_owned(),
    );
    Ok(outcome)
}

/// What holds rows and does a step's work on them.
trait Rows: Sync {
    /// Finds or creates the row of each key, writes the embeddings to `rows`, and updates each with
    /// its gradient.
    fn step(
        &self,
        keys: &KeyBatch,
        rows: &mut [f32],  // [keys, DIM]
        gradients: &[f32], // [keys, DIM]
    ) -> Result<()>;
}

fn rows_a_second(works: &[Vec<Batch>], rows: &impl Rows) -> Result<f64> {
    let longest = works.iter().flatten().map(|batch| batch.keys.len()).max().unwrap_or(0);
    let gradients = gradients(longest * DIM);
    let shares = works.iter().map(|work| (work, touched(longest * DIM)));
    rate(shares, |(work, mut out)| {
        let mut count = 0;
        for batch in work {
            let floats = batch.keys.len() * DIM;
            rows.step(&batch.keys, &mut out[..floats], &gradients[..floats])?;
            count += batch.keys.len();
        }
        Ok(count)
    })
}

impl Rows for Store {
    fn step(&self, keys: &KeyBatch, rows: &mut [f32], gradients: &[f32]) -> Result<()> {
        let staged = self.stage(keys).context("stage")?;
        self.pull(&staged, rows).context("pull")?;
        self.push(&staged, gradients, LEARNING_RATE).context("push")
    }
}

/// A row of a table by name, as such servers key it.
type RowName = (u32, u64);

/// DashMap + Vec.
struct Sharded<S: BuildHasher + Clone> {
    spec: TableSpec,
    rows: DashMap<RowName, Vec<f32>, S>,
}

impl<S: BuildHasher + Clone> Sharded<S> {
    fn filled(shape: &Shape, hasher: S) -> Self {
        let rows = DashMap::with_capacity_and_hasher(shape.rows() as usize, hasher);
        let sharded = Sharded { spec: spec(0, DIM as u32), rows };
        for name in names(shape) {
            sharded.rows.insert(name, first_row(&sharded.spec, name));
        }
        sharded
    }
}

impl<S: BuildHasher + Clone + Send + Sync> Rows for Sharded<S> {
    fn step(&self, keys: &KeyBatch, rows: &mut [f32], gradients: &[f32]) -> Result<()> {
        for (name, out) in named(keys).zip(rows.chunks_exact_mut(DIM)) {
            let row = self.rows.entry(name).or_insert_with(|| first_row(&self.spec, name));
            out.copy_from_slice(&row[..DIM]);
        }
        for (name, gradient) in named(keys).zip(gradients.chunks_exact(DIM)) {
            let mut row = self.rows.get_mut(&name).context("a row that was just read is gone")?;
            update_row(&self.spec.optimizer, &mut row, gradient, LEARNING_RATE);
        }
        Ok(())
    }
}

/// RwLock<HashMap> for the rows, lru for who is used.
struct Locked {
    spec: TableSpec,
    /// Guards: the rows. A step's reads and its updates each take it once.
    rows: RwLock<HashMap<RowName, Vec<f32>>>,
    /// Guards: the order of use. Taken inside `rows`.
    used: Mutex<LruCache<RowName, ()>>,
}

impl Locked {
    fn filled(shape: &Shape) -> Self {
        let spec = spec(0, DIM as u32);
        let rows = names(shape).map(|name| (name, first_row(&spec, name))).collect();
        let mut used = LruCache::unbounded();
        names(shape).for_each(|name| {
            used.put(name, ());
        });
        Locked { spec, rows: RwLock::new(rows), used: Mutex::new(used) }
    }
}

impl Rows for Locked {
    fn step(&self, keys: &KeyBatch, rows: &mut [f32], gradients: &[f32]) -> Result<()> {
        let mut missing = Vec::new();
        {
            let there = self.rows.read();
            for (name, out) in named(keys).zip(rows.chunks_exact_mut(DIM)) {
                match there.get(&name) {
                    Some(row) => out.copy_from_slice(&row[..DIM]),
                    None => {
                        let row = first_row(&self.spec, name);
                        out.copy_from_slice(&row[..DIM]);
                        missing.push((name, row));
                    }
                }
            }
            let mut used = self.used.lock();
            named(keys).for_each(|name| {
                used.put(name, ());
            });
        }
        let mut there = self.rows.write();
        there.extend(missing);
        for (name, gradient) in named(keys).zip(gradients.chunks_exact(DIM)) {
            let row = there.get_mut(&name).context("a row that was just read is gone")?;
            update_row(&self.spec.optimizer, row, gradient, LEARNING_RATE);
        }
        Ok(())
    }
}

/// Every row's name, in the order in which the store is filled.
fn names(shape: &Shape) -> impl Iterator<Item = RowName> + use<> {
    let keys = ascending((1..=shape.table_rows).map(key));
    (0..TABLES).flat_map(move |table| keys.iter().map(|key| (table, key.0)).collect::<Vec<_>>())
}

fn named(keys: &KeyBatch) -> impl Iterator<Item = RowName> + '_ {
    keys.runs()
        .flat_map(|(table, range)| keys.keys()[range].iter().map(move |&Key(key)| (table.0, key)))
}

fn first_row(spec: &TableSpec, (_, key): RowName) -> Vec<f32> {
    let mut row = vec![0.0; DIM + 1];
    spec.initializer.fill(key, &mut row[..DIM]);
    row
}

/// A hash for keys that nobody chooses to do harm: one multiplication a word.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u32(&mut self, word: u32) {
        self.write_u64(u64::from(word));
    }

    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ (product >> 64) as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_structures_hold_the_same_rows_after_the_same_steps() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { table_rows: 1 << 6, draws: 20 };
        let filled = shape.filled_store(dir.path(), DIM as u32).unwrap();
        let dashmap = Sharded::filled(&shape, BuildHasherDefault::<Mixed>::default());
        let locked = Locked::filled(&shape);
        let structures: [&dyn Rows; 3] = [&filled.store, &dashmap, &locked];
        let batches = shape.batches(Law::Zipf, 1, 6).unwrap();
        let changes = structures.map(|rows| {
            let (mut first, mut last) = (Vec::new(), Vec::new());
            for (i, batch) in batches.iter().chain(&batches).enumerate() {
                let mut out = vec![0.0; batch.keys.len() * DIM];
                rows.step(&batch.keys, &mut out, &gradients(batch.keys.len() * DIM)).unwrap();
                if i < batches.len() { &mut first } else { &mut last }.extend(out);
            }
            // rows begin differently in the store, so what the pushes did is compared
            last.iter().zip(&first).map(|(last, first)| last - first).collect::<Vec<f32>>()
        });
        for other in &changes[1..] {
            assert!(changes[0].iter().zip(other).all(|(a, b)| (a - b).abs() < 1e-6));
        }
        assert!(changes[0].iter().any(|change| change.abs() > 1e-3));
    }
}
