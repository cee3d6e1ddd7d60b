//! `ssd`: a table many times larger than its RAM: misses fetched beside the device's own random
//! reads, and what training costs the device, both beside RocksDB as it comes with a Get for each
//! row. No network is trained here; `train` does that.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use optim::update_row;
use rocksdb::{DB, Options, WriteBatch};
use table::KeyBatch;
use tempfile::TempDir;
use testkit::Random;
use tiers::{Staged, Staging, Store, StoreConfig};

use crate::device::{Device, READ_BYTES, process_read_bytes, process_written_bytes};
use crate::measure::{interleaved, rate, rounds};
use crate::report::{Axis, Outcome, Plot, Row, Series, Settings};
use crate::workload::{Batch, Law, Shape, TABLES, ascending, gradients, key, spec, touched};

const DIM: usize = 16;
const ROW_FLOATS: usize = DIM + 1;
const ROW_BYTES: u64 = ROW_FLOATS as u64 * 4;
/// How many times its RAM the table is.
const FACTORS: [u64; 2] = [20, 100];
/// Reads that one of the store's threads may have under way: what RocksDB asks for at once.
const READS_A_THREAD: usize = 32;
/// Threads of the limit, each with one read under way, beyond which they may hinder each other:
/// where the store may have more under way, the limit is the better one of so many and of as many.
const DEPTH_ENOUGH: usize = 128;
/// Threads of the store and of plain RocksDB that read.
const THREADS: [u32; 4] = [1, 4, 16, 32];
/// Batches that are being staged at once.
const AHEAD: usize = 4;
/// The threads with which training is measured: the store's default.
const TRAIN_THREADS: u32 = 16;
const LEARNING_RATE: f32 = 0.01;

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let bench = Bench::new(settings)?;
    let mut outcome = Outcome::default();
    for factor in FACTORS {
        let mut plot = plot_of(factor);
        let wanted = |case: &str| case.contains(&settings.only);
        for threads in THREADS.into_iter().filter(|&threads| wanted(&case(factor, threads))) {
            let [ours, plain, device] = bench.fetch(factor, threads, &mut outcome)?;
            for (series, figure) in plot.series.iter_mut().zip([ours, plain, device]) {
                series.points.push((f64::from(threads), figure));
            }
        }
        outcome.plots.push(plot);
        if wanted(&format!("{factor}x, training")) {
            bench.train(factor, &mut outcome)?;
        }
    }
    let what = format!(
        "{} rows of dim {DIM}, {} MB with their state",
        bench.shape.rows(),
        bench.table_bytes() / 1_000_000
    );
    outcome.notes.push(format!(
        "{what}. The device's reads are O_DIRECT, which keeps the page cache out; plain RocksDB is \
         opened with direct reads for the same reason, and with defaults otherwise. How far caches \
         served the store shows in ssd_device_reads_a_row: 4 KiB reads that the device answered \
         for this process, a row fetched; under 1 some rows came from a cache or shared a read."
    ));
    Ok(outcome)
}

struct Bench<'a> {
    settings: &'a Settings,
    shape: Shape,
    /// How long one figure is taken.
    time: Duration,
    dir: TempDir,
    device: Device,
}

impl<'a> Bench<'a> {
    fn new(settings: &'a Settings) -> Result<Bench<'a>> {
        let full = Shape { table_rows: 1 << 18, draws: 256 };
        let quick = Shape { table_rows: 1 << 11, draws: 4 };
        let (shape, ms, device_bytes) =
            if settings.quick { (quick, 20, 8 << 20) } else { (full, 1000, 4 << 30) };
        let dir = TempDir::new_in(&settings.scratch).context("make a directory")?;
        let device = Device::create(&settings.scratch, device_bytes)?;
        let bench = Bench { settings, shape, time: Duration::from_millis(ms), dir, device };
        for fill in [Bench::fill_ours, Bench::fill_plain] {
            let started = Instant::now();
            fill(&bench)?;
            eprintln!("bench: filled in {:.1} s", started.elapsed().as_secs_f64());
        }
        Ok(bench)
    }

    fn table_bytes(&self) -> u64 {
        self.shape.rows() * ROW_BYTES
    }

    /// Makes every row with ample RAM and writes it down.
    fn fill_ours(&self) -> Result<()> {
        let store = self.open_store(2 * self.table_bytes() + (64 << 20), TRAIN_THREADS)?;
        for table in 0..TABLES {
            store.create_table(&spec(table, DIM as u32)).context("create a table")?;
        }
        self.shape.fill(&store)?;
        store.close().context("write the tables down")
    }

    /// As many rows under the same keys in RocksDB as it comes.
    fn fill_plain(&self) -> Result<()> {
        let plain = self.open_plain()?;
        let mut random = Random::new(9);
        // in order, which spares it merging them: its best case
        let keys = ascending((1..=self.shape.table_rows).map(key));
        for table in 0..TABLES {
            for keys in keys.chunks(4096) {
                let mut batch = WriteBatch::default();
                for key in keys {
                    let row: [f32; ROW_FLOATS] = std::array::from_fn(|_| random.float(0.05));
                    batch.put(name(table, key.0), bytemuck::bytes_of(&row));
                }
                plain.write(batch).context("fill plain RocksDB")?;
            }
        }
        plain.flush().context("flush plain RocksDB")
    }

    fn open_store(&self, host_ram_bytes: u64, threads: u32) -> Result<Store> {
        let mut config = StoreConfig::new(self.dir.path().join("ours"), host_ram_bytes);
        config.ssd_read_threads = threads;
        Store::open(config).context("open the store")
    }

    fn open_plain(&self) -> Result<DB> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_use_direct_reads(true); // else it would read the page cache
        DB::open(&options, self.plain_dir()).context("open plain RocksDB")
    }

    fn plain_dir(&self) -> PathBuf {
        self.dir.path().join("plain")
    }

    fn open_at(&self, factor: u64, threads: u32) -> Result<Store> {
        let least = if self.settings.quick { 1 << 20 } else { 0 };
        self.open_store((self.table_bytes() / factor).max(least), threads)
    }

    /// Rows fetched a second at random, all of them on SSD: ours, plain RocksDB, device.
    fn fetch(&self, factor: u64, threads: u32, outcome: &mut Outcome) -> Result<[f64; 3]> {
        let store = self.open_at(factor, threads)?;
        let plain = self.open_plain()?;
        let batches = self.shape.batches(Law::Uniform, factor + u64::from(threads), 64)?;
        let (next, device_bytes, rows) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let all_s = Cell::new(0.0);
        let depth = threads as usize * READS_A_THREAD;
        let place = Cell::new(0);
        let at = || place.replace(place.get() + 1); // other places each time
        let figures = interleaved(
            rounds(self.settings.quick),
            [
                &mut || {
                    let before = (process_read_bytes()?, fetched(&store));
                    let started = Instant::now();
                    stage_for(&store, &batches, &next, self.time, |_, _| Ok(()))?;
                    let seconds = started.elapsed().as_secs_f64();
                    let got = fetched(&store) - before.1;
                    let read_bytes = process_read_bytes()? - before.0;
                    device_bytes.set(device_bytes.get() + read_bytes);
                    rows.set(rows.get() + got);
                    all_s.set(all_s.get() + seconds);
                    // what a cache gave is no fetch from the device
                    Ok(got.min(read_bytes / READ_BYTES as u64) as f64 / seconds)
                },
                &mut || self.gets(&plain, threads),
                &mut || self.device.random_reads(depth, at(), self.time),
                &mut || match depth > DEPTH_ENOUGH {
                    true => self.device.random_reads(DEPTH_ENOUGH, at(), self.time),
                    false => Ok(0.0),
                },
            ],
        )?;
        let [ours, of_plain, at_depth, at_enough] = figures;
        let device = at_depth.max(at_enough);
        let from_anywhere = rows.get() as f64 / all_s.get(); // caches too, as plain RocksDB has one
        let case = case(factor, threads);
        let k = |ours: f64, limit: f64| (ours / 1e3, limit / 1e3);
        outcome.add([
            Row::at_least("ssd_fetch", case.clone(), "k rows/s", k(ours, device), 0.80),
            Row::shown("ssd_vs_rocksdb", case.clone(), "k rows/s", k(from_anywhere, of_plain)),
            Row::shown(
                "ssd_device_reads_a_row",
                case,
                "4 KiB reads",
                (device_bytes.get() as f64 / READ_BYTES as f64 / rows.get().max(1) as f64, 1.0),
            ),
        ]);
        store.close().context("close the store")?;
        Ok([ours, of_plain, device])
    }

    /// Gets a second of plain RocksDB, keys at random.
    fn gets(&self, plain: &DB, threads: u32) -> Result<f64> {
        rate(0..threads, |thread| {
            let mut random = Random::new(u64::from(thread) << 32);
            let started = Instant::now();
            let mut rows = 0;
            while started.elapsed() < self.time {
                let table = random.below(u64::from(TABLES)) as u32;
                let key = key(1 + random.below(self.shape.table_rows));
                plain.get_pinned(name(table, key.0)).context("get")?.context("a row is missing")?;
                rows += 1;
            }
            Ok(rows)
        })
    }

    /// Stage, pull and push of skewed batches, rows going down as others come: what the device does
    /// for it. Plain RocksDB gets each row, updates it and puts it back.
    fn train(&self, factor: u64, outcome: &mut Outcome) -> Result<()> {
        let store = self.open_at(factor, TRAIN_THREADS)?;
        let plain = self.open_plain()?;
        let batches = self.shape.batches(Law::Zipf, factor, 64)?;
        let longest = batches.iter().map(|batch| batch.keys.len()).max().unwrap_or(0);
        let gradients = gradients(longest * DIM);
        let out = RefCell::new(touched(longest * DIM));
        let samples = |steps: usize| (steps * self.shape.draws) as f64;
        let (next, next_plain) = (Cell::new(0), Cell::new(0));
        let (ours_cost, plain_cost) = (Cell::new(Cost::default()), Cell::new(Cost::default()));
        let [ours, of_plain] = interleaved(
            rounds(self.settings.quick),
            [
                &mut || {
                    let (cost, started) = (Cost::now(Some(&store), 0)?, Instant::now());
                    let steps = stage_for(&store, &batches, &next, self.time, |staged, _| {
                        let floats = staged.rows_floats();
                        store.pull(staged, &mut out.borrow_mut()[..floats]).context("pull")?;
                        store.push(staged, &gradients[..floats], LEARNING_RATE).context("push")
                    })?;
                    let rate = samples(steps) / started.elapsed().as_secs_f64();
                    store.flush().context("flush")?; // what was put off counts too
                    let spent = Cost::now(Some(&store), 0)?.since(cost, samples(steps));
                    ours_cost.set(ours_cost.get().plus(spent));
                    Ok(rate)
                },
                &mut || {
                    let (cost, started) = (Cost::now(None, 0)?, Instant::now());
                    let (mut steps, mut rows) = (0, 0);
                    while started.elapsed() < self.time {
                        let batch = &batches[next_plain.get() % batches.len()];
                        plain_step(&plain, &batch.keys, &gradients)?;
                        next_plain.set(next_plain.get() + 1);
                        (steps, rows) = (steps + 1, rows + batch.keys.len());
                    }
                    let rate = samples(steps) / started.elapsed().as_secs_f64();
                    plain.flush().context("flush plain RocksDB")?;
                    let spent = Cost::now(None, rows as u64)?.since(cost, samples(steps));
                    plain_cost.set(plain_cost.get().plus(spent));
                    Ok(rate)
                },
            ],
        )?;
        let case = format!("table {factor}x its RAM, Zipf 1.05, batches of {}", self.shape.draws);
        let (mine, theirs) = (ours_cost.get(), plain_cost.get());
        let each = |count: fn(&Cost) -> f64| (count(&mine), count(&theirs));
        let shown =
            |id, unit, both| Row::shown(id, format!("{case}, of plain RocksDB"), unit, both);
        outcome.add([
            shown("ssd_train", "samples/s", (ours, of_plain)),
            shown("ssd_rows_read_a_sample", "rows", each(Cost::rows_read_a_sample)),
            shown("ssd_device_read_a_sample", "bytes", each(Cost::read_a_sample)),
            shown("ssd_device_written_a_sample", "bytes", each(Cost::written_a_sample)),
            shown("ssd_write_amplification", "bytes a byte", each(Cost::write_amplification)),
        ]);
        store.close().context("close the store")
    }
}

/// What a stretch of training asked of the device.
#[derive(Debug, Clone, Copy, Default)]
struct Cost {
    samples: f64,
    rows_read: f64,
    rows_written_bytes: f64,
    device_read_bytes: f64,
    /// Written to the device: by the store's own count, for the system writes late; for plain
    /// RocksDB by the system's.
    device_written_bytes: f64,
}

impl Cost {
    /// What has been spent so far. `plain_rows` have been read and written without a store.
    fn now(store: Option<&Store>, plain_rows: u64) -> Result<Cost> {
        let mut cost = Cost {
            device_read_bytes: process_read_bytes()? as f64,
            rows_read: plain_rows as f64,
            rows_written_bytes: (plain_rows * ROW_BYTES) as f64,
            device_written_bytes: process_written_bytes()? as f64,
            samples: 0.0,
        };
        if let Some(store) = store {
            let (status, totals) = (store.status(), store.status().totals());
            cost.rows_read = totals.ssd.hits as f64;
            cost.rows_written_bytes = totals.ssd.bytes_written as f64;
            cost.device_written_bytes = status.ssd_file_bytes_written as f64;
        }
        Ok(cost)
    }

    fn since(self, before: Cost, samples: f64) -> Cost {
        Cost {
            samples,
            rows_read: self.rows_read - before.rows_read,
            rows_written_bytes: self.rows_written_bytes - before.rows_written_bytes,
            device_read_bytes: self.device_read_bytes - before.device_read_bytes,
            device_written_bytes: self.device_written_bytes - before.device_written_bytes,
        }
    }

    fn plus(self, other: Cost) -> Cost {
        Cost {
            samples: self.samples + other.samples,
            rows_read: self.rows_read + other.rows_read,
            rows_written_bytes: self.rows_written_bytes + other.rows_written_bytes,
            device_read_bytes: self.device_read_bytes + other.device_read_bytes,
            device_written_bytes: self.device_written_bytes + other.device_written_bytes,
        }
    }

    fn rows_read_a_sample(&self) -> f64 {
        self.rows_read / self.samples
    }

    fn read_a_sample(&self) -> f64 {
        self.device_read_bytes / self.samples
    }

    fn written_a_sample(&self) -> f64 {
        self.device_written_bytes / self.samples
    }

    fn write_amplification(&self) -> f64 {
        self.device_written_bytes / self.rows_written_bytes
    }
}

/// Rows that the store has fetched from SSD.
fn fetched(store: &Store) -> u64 {
    store.status().totals().ssd.hits
}

/// Stages batch after batch for so long, some ahead of the one that `work` is given, and returns
/// how many. `next` says with which batch to go on.
fn stage_for(
    store: &Store,
    batches: &[Batch],
    next: &Cell<usize>,
    time: Duration,
    work: impl Fn(&Staged, usize) -> Result<()>,
) -> Result<usize> {
    let started = Instant::now();
    let mut staging: VecDeque<Staging> = VecDeque::new();
    let mut steps = 0;
    let finish = |staging: Staging, steps: &mut usize| -> Result<()> {
        let staged = staging.wait().context("wait for rows")?;
        work(&staged, *steps)?;
        *steps += 1;
        Ok(())
    };
    while started.elapsed() < time {
        let keys = &batches[next.get() % batches.len()].keys;
        next.set(next.get() + 1);
        staging.push_back(store.begin_stage(keys).context("stage")?);
        if staging.len() > AHEAD
            && let Some(first) = staging.pop_front()
        {
            finish(first, &mut steps)?;
        }
    }
    staging.into_iter().try_for_each(|last| finish(last, &mut steps))?;
    Ok(steps)
}

fn plain_step(plain: &DB, keys: &KeyBatch, gradients: &[f32]) -> Result<()> {
    let optimizer = spec(0, DIM as u32).optimizer;
    for (table, range) in keys.runs() {
        for (key, gradient) in keys.keys()[range].iter().zip(gradients.chunks_exact(DIM)) {
            let name = name(table.0, key.0);
            let stored = plain.get(name).context("get")?.context("a row is missing")?;
            let mut row: [f32; ROW_FLOATS] = bytemuck::try_pod_read_unaligned(&stored)
                .ok()
                .context("a row of another length")?;
            update_row(&optimizer, &mut row, gradient, LEARNING_RATE);
            plain.put(name, bytemuck::bytes_of(&row)).context("put")?;
        }
    }
    Ok(())
}

fn case(factor: u64, threads: u32) -> String {
    let plural = if threads == 1 { "" } else { "s" };
    format!("table {factor}x its RAM, {threads} reading thread{plural}")
}

fn name(table: u32, key: u64) -> [u8; 12] {
    let mut name = [0; 12];
    name[..4].copy_from_slice(&table.to_be_bytes());
    name[4..].copy_from_slice(&key.to_be_bytes());
    name
}

fn plot_of(factor: u64) -> Plot {
    let series = |name: &str| Series { name: name.to_owned(), points: Vec::new() };
    Plot {
        name: format!("ssd_fetch_{factor}x"),
        title: format!("rows fetched from SSD, table {factor}x its RAM"),
        x: Axis { label: "reading threads".to_owned(), log: true },
        y: Axis { label: "rows a second".to_owned(), log: false },
        series: vec![series("ours"), series("plain RocksDB"), series("device, 4 KiB reads")],
    }
}
