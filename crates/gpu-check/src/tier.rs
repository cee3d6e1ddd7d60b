//! The tier in device memory as servers use it, a whole store over it: caches that hold all rows, a
//! twentieth and next to none pull the bits that the host's memory alone does; and what a step
//! takes when all its rows are on the device, beside the same without a device. It trains no model.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use table::{Initializer, Key, KeyBatch, Optimizer, TableId, TableSpec, mix};
use tiers::{Store, StoreConfig};

use crate::report::{CASES, Report, Row};

/// How large the stores are.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows of the table that is measured.
    pub rows: u64,
    /// Keys of one of its steps: those of a large batch.
    pub keys: u64,
    /// Steps of each comparison.
    pub steps: u64,
}

impl Sizes {
    /// Sizes at which figures say something.
    pub const FULL: Self = Self { rows: 4 << 20, keys: 300_000, steps: 200 };
    /// Sizes that show whether everything runs.
    pub const QUICK: Self = Self { rows: 4096, keys: 512, steps: 12 };
}

/// Which device, and where its code is kept.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The device's number.
    pub device: u32,
    /// The folder of compiled kernels, if there is one.
    pub code: Option<&'a Path>,
}

/// A folder for stores, removed at the end.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn make() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("gpu-check-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Self(path))
    }

    fn open(&self, name: &str, place: Place<'_>, gpu_cache_bytes: u64) -> Result<Store> {
        self.open_with(name, place, 1 << 30, gpu_cache_bytes)
    }

    pub(crate) fn open_with(
        &self,
        name: &str,
        place: Place<'_>,
        host_ram_bytes: u64,
        gpu_cache_bytes: u64,
    ) -> Result<Store> {
        let mut config = StoreConfig::new(self.0.join(name), host_ram_bytes);
        config.gpu_cache_bytes = gpu_cache_bytes;
        config.gpu_device = place.device;
        config.gpu_code_dir = place.code.map(Path::to_owned);
        Store::open(config).with_context(|| format!("open the store {name}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0); // a folder for what is temporary
    }
}

const OPTIMIZERS: [(&str, Optimizer); 4] = [
    ("sgd", Optimizer::Sgd),
    ("adagrad", Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 }),
    ("rwsadagrad", Optimizer::RowWiseAdagrad { eps: 1e-8, initial_accumulator: 0.0 }),
    ("adam", Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 }),
];

/// Steps over four tables of four optimizers: every pull's bits, and every row's at the end, beside
/// those of a store without a device.
pub fn bits(sizes: Sizes, place: Place<'_>, report: &Report) -> Result<()> {
    let folder = Folder::make()?;
    let expected = trained(&folder.open("plain", place, 0)?, sizes)?;
    for (name, gpu_cache_bytes) in [("all", 256 << 20), ("part", 1 << 20), ("least", 64 << 10)] {
        let store = folder.open(name, place, gpu_cache_bytes)?;
        let found = trained(&store, sizes)?;
        let totals = store.status().totals();
        ensure!(totals.gpu.hits > 0, "no row was found on the device: {totals:?}");
        let right = found.iter().zip(&expected).filter(|(found, expected)| found == expected);
        let (up, down) = (totals.promotions, totals.demotions);
        report.add(Row {
            id: format!("tier.bits_{name}"),
            case: format!("{} KiB, {up} rows up, {down} down", gpu_cache_bytes >> 10),
            unit: CASES,
            ours: right.count() as f64,
            limit: expected.len() as f64,
            goal: Some(1.0),
        });
        store.close().context("close the store")?;
    }
    Ok(())
}

/// The bits of each step's pull, then those of all rows.
fn trained(store: &Store, sizes: Sizes) -> Result<Vec<Vec<u32>>> {
    let mut tables = Vec::new();
    for (name, optimizer) in OPTIMIZERS {
        tables.push(store.create_table(&spec(name, optimizer))?);
    }
    let mut all = Vec::new();
    let mut ahead = std::collections::VecDeque::new();
    for step in 0..sizes.steps {
        let mut keys = KeyBatch::new();
        for &table in &tables {
            // squares of what is uniform: few keys come often
            let draw = |i: u64| {
                let part = mix(step << 32 | u64::from(table.0) << 24 | i) >> 40;
                (((part * part) >> 24) * 20_000) >> 24
            };
            push_run(&mut keys, table, (0..500).map(draw))?;
        }
        ahead.push_back(store.stage(&keys)?);
        if ahead.len() < 4 {
            continue;
        }
        let Some(staged) = ahead.pop_front() else { continue };
        let mut rows = vec![0.0_f32; staged.rows_floats()];
        store.pull(&staged, &mut rows)?;
        let gradients: Vec<f32> = rows.iter().map(|x| x * 0.5 + 0.01).collect();
        store.push(&staged, &gradients, 0.05)?;
        all.push(rows.iter().map(|x| x.to_bits()).collect());
    }
    drop(ahead);
    let mut keys = KeyBatch::new();
    for &table in &tables {
        push_run(&mut keys, table, 0..20_000)?;
    }
    let mut rows = vec![0.0_f32; store.rows_floats(&keys)?];
    let mut statuses = vec![table::RowStatus::Failed; keys.len()];
    store.lookup(&keys, &mut rows, &mut statuses)?;
    all.push(rows.iter().map(|x| x.to_bits()).collect());
    Ok(all)
}

/// What stage, pull and push of a step take whose rows are all on the device, by a caller whose
/// floats are in the host's memory, beside the same store without a device.
pub fn hits(sizes: Sizes, place: Place<'_>, report: &Report) -> Result<()> {
    let folder = Folder::make()?;
    let with = hit_seconds(&folder.open("with", place, 1 << 30)?, sizes)?;
    let without = hit_seconds(&folder.open("without", place, 0)?, sizes)?;
    for (name, with, without) in [
        ("stage", with[0], without[0]),
        ("pull", with[1], without[1]),
        ("push", with[2], without[2]),
    ] {
        report.add(Row {
            id: format!("tier.{name}_hits"),
            case: format!("{} rows of 64 B, beside host RAM", sizes.keys),
            unit: "M rows/s",
            ours: sizes.keys as f64 / with / 1e6,
            limit: sizes.keys as f64 / without / 1e6,
            goal: None,
        });
    }
    Ok(())
}

/// The median seconds of stage, pull and push.
fn hit_seconds(store: &Store, sizes: Sizes) -> Result<[f64; 3]> {
    const ROUNDS: u64 = 7;
    let table = store.create_table(&spec("measured", OPTIMIZERS[2].1))?;
    let every = |stride: u64, first: u64| -> Result<KeyBatch> {
        let mut keys = KeyBatch::new();
        push_run(&mut keys, table, (0..sizes.keys).map(|i| (first + i * stride) % sizes.rows))?;
        Ok(keys)
    };
    for first in (0..sizes.rows).step_by(sizes.keys as usize) {
        drop(store.stage(&every(1, first)?)?); // each row's first touch
    }
    let mut seconds: [Vec<f64>; 3] = Default::default();
    for round in 0..ROUNDS {
        let keys = every((sizes.rows / sizes.keys).max(1), round)?;
        let mut rows = vec![0.0; store.rows_floats(&keys)?];
        let begun = Instant::now();
        let staged = store.stage(&keys)?;
        seconds[0].push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        store.pull(&staged, &mut rows)?;
        seconds[1].push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        store.push(&staged, &rows, 0.01)?;
        seconds[2].push(begun.elapsed().as_secs_f64());
    }
    store.close().context("close the store")?;
    Ok(seconds.map(|mut seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2].max(1e-9)
    }))
}

fn spec(name: &str, optimizer: Optimizer) -> TableSpec {
    TableSpec::new(name, 16, optimizer, Initializer::Uniform { bound: 0.5 }, 7)
}

fn push_run(batch: &mut KeyBatch, table: TableId, keys: impl Iterator<Item = u64>) -> Result<()> {
    let mut keys: Vec<Key> = keys.map(Key).collect();
    keys.sort_unstable();
    keys.dedup();
    Ok(batch.push_run(table, &keys)?)
}
