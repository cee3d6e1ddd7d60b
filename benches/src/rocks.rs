//! `rocksdb`: the settings of RocksDB that the store could have, one by one beside those that it
//! has: rows loaded in sorted batches, rows overwritten at random, rows read at random by some
//! threads, and what each cost the device. It knows nothing of the store but its settings, which it
//! repeats: `ops/adr/0029-rocksdb-by-measurement.md` says what was chosen by it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ChecksumType, DB, DBCompactionStyle,
    DBCompressionType, DataBlockIndexType, IngestExternalFileOptions, Options, ReadOptions,
    SstFileWriter, UniversalCompactOptions, WriteBatch, WriteOptions,
};
use tempfile::TempDir;
use testkit::Random;

use crate::device::{Device, READ_BYTES, process_read_bytes};
use crate::measure::rate;
use crate::report::{Outcome, Row, Settings};

const THREADS: [usize; 4] = [1, 4, 16, 32];
/// A row of 16 floats, its accumulator and a byte of its past, as the store writes it.
const ROW_BYTES: usize = 17 * 4 + 1;
const NAME_BYTES: usize = 12;
/// Rows written together: the store's megabyte.
const BATCH_ROWS: u64 = 1 << 14;
/// Rows of a file that is taken in as it is: an eighth of the memory, 93 bytes a row.
const FILE_ROWS: u64 = 28 << 10;
/// Keys of one multi-get: the store's reading threads take no more at once.
const READ_KEYS: usize = 32;
/// Looks in a row, 5 ms apart, that find no merge running.
const IDLE_LOOKS: u32 = 20;
/// Merges that take longer are not waited for.
const SETTLE_MAX: Duration = Duration::from_secs(60);
const READERS_AHEAD: u64 = 1 << 32;

type Name = [u8; NAME_BYTES];

/// What differs from the store's settings.
#[derive(Clone, Copy)]
struct Variant {
    name: &'static str,
    by_size: Option<i32>, // percent of the largest run that newer ones may come to; none: levels
    databases: u64,
    ingested: bool,
    log: bool,
    memtables: usize, // times the store's
    block_bytes: usize,
    aligned: bool,
    index: Index,
    index_of_new: Index, // of files that are ingested, until they are merged
    bits: f64,
    ribbon: bool,
    hash_in_block: bool,
    direct: bool,
    fills_cache: bool,
    clock_cache: bool,
    checks: bool,
    in_cache: bool, // index and filters
    hits_expected: bool,
    single_gets: bool,
    statistics: bool,
    level_bytes: u64,
    merged_files: i32, // new files that are merged together
}

#[derive(Clone, Copy, PartialEq)]
enum Index {
    Partitioned,
    Whole,
}

const STORE: Variant = Variant {
    name: "as the store has it",
    by_size: None,
    databases: 1,
    ingested: true,
    log: false,
    memtables: 1,
    block_bytes: 4 << 10,
    aligned: true,
    index: Index::Partitioned,
    index_of_new: Index::Whole,
    bits: 12.0,
    ribbon: false,
    hash_in_block: false,
    direct: true,
    fills_cache: true,
    clock_cache: false,
    checks: true,
    in_cache: true,
    hits_expected: false,
    single_gets: false,
    statistics: true,
    level_bytes: 256 << 20,
    merged_files: 8,
};

fn variants() -> Vec<Variant> {
    let with = |name, set: fn(&mut Variant)| {
        let mut variant = Variant { name, ..STORE };
        set(&mut variant);
        variant
    };
    vec![
        STORE,
        with("by size, up to 25 % beside", |v| v.by_size = Some(25)),
        with("by size, up to 200 % beside", |v| v.by_size = Some(200)),
        with("first level of 64 MiB", |v| v.level_bytes = 64 << 20),
        with("merges of 4 files", |v| v.merged_files = 4),
        with("merges of 16 files", |v| v.merged_files = 16),
        with("new files in parts", |v| v.index_of_new = Index::Partitioned),
        with("filters of 10 bits", |v| v.bits = 10.0),
        with("merges of 4 files, filters of 10 bits", |v| (v.merged_files, v.bits) = (4, 10.0)),
        with("through memtables", |v| v.ingested = false),
        with("4 databases, through memtables", |v| (v.databases, v.ingested) = (4, false)),
        with("write-ahead log", |v| (v.log, v.ingested) = (true, false)),
        with("memtables of 4 times the size", |v| (v.memtables, v.ingested) = (4, false)),
        with("blocks of 2 KiB", |v| v.block_bytes = 2 << 10),
        with("blocks of 8 KiB", |v| v.block_bytes = 8 << 10),
        with("blocks not aligned", |v| v.aligned = false),
        with("whole index", |v| v.index = Index::Whole),
        with("whole index, data not cached", |v| {
            (v.index, v.fills_cache) = (Index::Whole, false);
        }),
        with("whole index outside the cache", |v| {
            (v.index, v.in_cache) = (Index::Whole, false);
        }),
        with("whole index outside the cache, data not cached", |v| {
            (v.index, v.in_cache, v.fills_cache) = (Index::Whole, false, false);
        }),
        with("hash index in blocks", |v| v.hash_in_block = true),
        with("ribbon filter", |v| v.ribbon = true),
        with("no filter at the last level", |v| v.hits_expected = true),
        with("clock cache", |v| v.clock_cache = true),
        with("checksums not looked at", |v| v.checks = false),
        with("no statistics", |v| v.statistics = false),
        with("a Get a row", |v| v.single_gets = true),
        with("through the page cache", |v| v.direct = false),
    ]
}

pub(crate) fn run(settings: &Settings) -> Result<Outcome> {
    let (rows, ms, device_bytes) =
        if settings.quick { (1 << 15, 10, 8 << 20) } else { (2 << 20, 500, 1 << 30) };
    let bench = Bench {
        rows,
        time: Duration::from_millis(ms),
        dir: TempDir::new_in(&settings.scratch).context("make a directory")?,
        device: Device::create(&settings.scratch, device_bytes)?,
    };
    let mut outcome = Outcome::default();
    let wanted = |v: &Variant| settings.only.split('|').any(|name| v.name.contains(name));
    for variant in variants().into_iter().filter(wanted) {
        bench.try_out(&variant, &mut outcome)?;
    }
    outcome.notes.push(format!(
        "{rows} rows of {ROW_BYTES} bytes under 20 MiB for RocksDB, the store's settings but for \
         what a case names. Limits: of loads, overwrites and bytes none (1); of reads the device's \
         own 4 KiB reads by as many threads, right after."
    ));
    Ok(outcome)
}

struct Bench {
    rows: u64,
    time: Duration,
    dir: TempDir,
    device: Device,
}

/// One or several databases, rows shared out by their keys.
struct Opened {
    variant: Variant,
    databases: Vec<DB>,
    options: Vec<Options>,
    folder: PathBuf,
    /// Of files that were taken in, which RocksDB's statistics don't count.
    ingested_bytes: AtomicU64,
}

impl Bench {
    fn try_out(&self, variant: &Variant, outcome: &mut Outcome) -> Result<()> {
        let folder = self.dir.path().join("trial");
        let opened = Opened::new(*variant, &folder)?;
        let mut row = |id, unit, ours, limit| {
            outcome.add([Row::shown(id, variant.name.to_owned(), unit, (ours, limit))]);
        };
        let mut random = Random::new(3);
        // keys in the order of a hash, as rows leave RAM
        let order = |at: u64| scattered(at, self.rows);
        let started = Instant::now();
        opened.put(self.rows, order, &mut random)?;
        opened.settle()?;
        let load_s = started.elapsed().as_secs_f64();
        row("rocksdb_load", "k rows/s", self.rows as f64 / load_s / 1e3, 1.0);
        let (started, before) = (Instant::now(), opened.written());
        let overwritten = self.rows / 2;
        let mut places = Random::new(4);
        opened.put(overwritten, |_| places.below(self.rows), &mut random)?;
        opened.settle()?;
        let seconds = started.elapsed().as_secs_f64();
        row("rocksdb_overwrite", "k rows/s", overwritten as f64 / seconds / 1e3, 1.0);
        let amplified = (opened.written() - before) as f64 / (overwritten * 69) as f64;
        row("rocksdb_write_amplification", "bytes a byte", amplified, 1.0);
        row("rocksdb_bytes_a_row", "bytes", opened.bytes()? as f64 / self.rows as f64, 1.0);
        for threads in THREADS {
            let before = process_read_bytes()?;
            let started = Instant::now();
            let rows_s = self.read(&opened, threads)?;
            let rows = rows_s * started.elapsed().as_secs_f64();
            let reads = (process_read_bytes()? - before) as f64 / READ_BYTES as f64;
            let device = self.device.random_reads(threads, threads as u64, self.time)?;
            let case = match threads {
                1 => "rocksdb_read_1",
                4 => "rocksdb_read_4",
                16 => "rocksdb_read_16",
                _ => "rocksdb_read_32",
            };
            row(case, "k rows/s", rows_s / 1e3, device / 1e3);
            if threads == 16 {
                row("rocksdb_reads_a_row", "4 KiB reads", reads / rows, 1.0);
            }
        }
        drop(opened);
        std::fs::remove_dir_all(&folder).context("remove a trial's files")
    }

    fn read(&self, opened: &Opened, threads: usize) -> Result<f64> {
        let variant = &opened.variant;
        rate(0..threads as u64, |thread| {
            let mut random = Random::new(READERS_AHEAD * thread);
            let mut read = ReadOptions::default();
            read.fill_cache(variant.fills_cache);
            read.set_verify_checksums(variant.checks);
            let (started, mut rows) = (Instant::now(), 0);
            while started.elapsed() < self.time {
                // neighbours of a batch: a stage's misses of one table, cut into tasks
                let database = random.below(variant.databases) as usize;
                let mut names: Vec<Name> = (0..READ_KEYS)
                    .map(|_| {
                        let at = random.below(self.rows / variant.databases) * variant.databases;
                        name(at + database as u64)
                    })
                    .collect();
                names.sort_unstable();
                names.dedup();
                let db = &opened.databases[database];
                if variant.single_gets {
                    for name in &names {
                        let value = db.get_pinned_opt(name, &read).context("get")?;
                        value.context("a row is missing")?;
                    }
                } else {
                    let family = db.cf_handle("default").context("the family is missing")?;
                    for value in db.batched_multi_get_cf_opt(family, &names, true, &read) {
                        value.context("multi-get")?.context("a row is missing")?;
                    }
                }
                rows += names.len();
            }
            Ok(rows)
        })
    }
}

impl Opened {
    fn new(variant: Variant, folder: &Path) -> Result<Opened> {
        let memory_bytes = (20 << 20) / variant.databases as usize;
        let (mut databases, mut options) = (Vec::new(), Vec::new());
        for number in 0..variant.databases {
            let (set, family) = variant.options(memory_bytes)?;
            let path = folder.join(number.to_string());
            let db = DB::open_cf_descriptors(
                &set,
                &path,
                [rocksdb::ColumnFamilyDescriptor::new("default", family)],
            );
            databases.push(db.context("open RocksDB")?);
            options.push(set);
        }
        let (folder, ingested_bytes) = (folder.to_owned(), AtomicU64::new(0));
        Ok(Opened { variant, databases, options, folder, ingested_bytes })
    }

    /// Writes rows as the variant has it, `place` says which.
    fn put(&self, count: u64, place: impl FnMut(u64) -> u64, random: &mut Random) -> Result<()> {
        if self.variant.ingested {
            return self.ingest(count, place, random);
        }
        self.write(count, place, random)
    }

    /// Writes rows in sorted batches.
    fn write(
        &self,
        count: u64,
        mut place: impl FnMut(u64) -> u64,
        random: &mut Random,
    ) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(!self.variant.log);
        for first in (0..count).step_by(BATCH_ROWS as usize) {
            let places = (first..(first + BATCH_ROWS).min(count)).map(&mut place);
            let mut batches: Vec<WriteBatch> =
                self.databases.iter().map(|_| WriteBatch::default()).collect();
            for (at, name) in sorted(places) {
                batches[(at % self.variant.databases) as usize].put(name, value(random));
            }
            for (db, batch) in self.databases.iter().zip(batches) {
                db.write_opt(batch, &options).context("write rows")?;
            }
        }
        Ok(())
    }

    /// Writes rows as sorted files, each of which covers all keys.
    fn ingest(
        &self,
        count: u64,
        mut place: impl FnMut(u64) -> u64,
        random: &mut Random,
    ) -> Result<()> {
        let new = Variant { index: self.variant.index_of_new, ..self.variant };
        let (_, family) = new.options(20 << 20)?;
        for first in (0..count).step_by(FILE_ROWS as usize) {
            let path = self.folder.join("file.sst");
            let mut writer = SstFileWriter::create(&family);
            writer.open(&path).context("open a file to ingest")?;
            for (_, name) in sorted((first..(first + FILE_ROWS).min(count)).map(&mut place)) {
                writer.put(name, value(random)).context("write a file to ingest")?;
            }
            writer.finish().context("end a file to ingest")?;
            self.ingested_bytes.fetch_add(writer.file_size(), Ordering::Relaxed);
            let mut moved = IngestExternalFileOptions::default();
            moved.set_move_files(true);
            self.databases[0].ingest_external_file_opts(&moved, vec![path]).context("ingest")?;
        }
        Ok(())
    }

    /// Waits until memtables are written and no merge has begun for a while: a merge that is due is
    /// not always done.
    fn settle(&self) -> Result<()> {
        for db in &self.databases {
            db.flush().context("flush")?;
            let (started, mut idle) = (Instant::now(), 0);
            while idle < IDLE_LOOKS {
                let running = db.property_int_value("rocksdb.num-running-compactions");
                let running = running.context("ask RocksDB")?.unwrap_or_default();
                idle = if running > 0 { 0 } else { idle + 1 };
                ensure!(started.elapsed() < SETTLE_MAX, "merges don't end");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        let ingested = self.ingested_bytes.load(Ordering::Relaxed);
        let of = |options: &Options| {
            options.get_ticker_count(Ticker::FlushWriteBytes)
                + options.get_ticker_count(Ticker::CompactWriteBytes)
        };
        self.options.iter().map(of).sum::<u64>() + ingested
    }

    fn bytes(&self) -> Result<u64> {
        let of = |db: &DB| db.property_int_value("rocksdb.total-sst-files-size");
        let bytes = self.databases.iter().map(of).collect::<Result<Vec<_>, _>>();
        Ok(bytes.context("ask RocksDB")?.into_iter().flatten().sum())
    }
}

impl Variant {
    /// Options of a database and of its family, as `tiers` has them but for what differs.
    fn options(&self, memory_bytes: usize) -> Result<(Options, Options)> {
        let cache = if self.clock_cache {
            Cache::new_hyper_clock_cache(memory_bytes / 2, self.block_bytes)
        } else {
            Cache::new_lru_cache(memory_bytes / 2)
        };
        let mut set = Options::default();
        set.create_if_missing(true);
        set.set_max_background_jobs(2);
        set.set_max_open_files(256);
        set.set_use_direct_reads(self.direct);
        set.set_use_direct_io_for_flush_and_compaction(self.direct);
        set.set_compaction_readahead_size(1 << 20);
        set.set_writable_file_max_buffer_size(512 << 10);
        if self.statistics {
            set.enable_statistics();
            set.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        }
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_block_size(self.block_bytes);
        if self.ribbon {
            table.set_ribbon_filter(self.bits);
        } else {
            table.set_bloom_filter(self.bits, false);
        }
        table.set_checksum_type(ChecksumType::XXH3);
        table.set_cache_index_and_filter_blocks(self.in_cache);
        table.set_pin_l0_filter_and_index_blocks_in_cache(self.in_cache);
        if self.index == Index::Partitioned {
            table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
            table.set_partition_filters(true);
            table.set_pin_top_level_index_and_filter(true);
        }
        if self.hash_in_block {
            table.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
            table.set_data_block_hash_ratio(0.75);
        }
        table.set_format_version(6);
        let mut family = Options::default();
        family.set_block_based_table_factory(&table);
        family.set_compression_type(DBCompressionType::None);
        family.set_write_buffer_size(self.memtables * memory_bytes / 8);
        family.set_max_write_buffer_number(3);
        family.set_target_file_size_base(32 << 20);
        family.set_max_bytes_for_level_base(self.level_bytes);
        family.set_level_zero_file_num_compaction_trigger(self.merged_files);
        family.set_optimize_filters_for_hits(self.hits_expected);
        if let Some(percent) = self.by_size {
            let mut merges = UniversalCompactOptions::default();
            merges.set_max_size_amplification_percent(percent);
            family.set_compaction_style(DBCompactionStyle::Universal);
            family.set_universal_compaction_options(&merges);
        }
        let alignment = format!("block_based_table_factory={{block_align={};}}", self.aligned);
        let family = family.get_options_from_string(alignment).context("align blocks")?;
        Ok((set, family))
    }
}

/// Numbers below `count`, each once, in no order.
fn scattered(at: u64, count: u64) -> u64 {
    (at * 0x9e37_79b1) % count // 2,654,435,761 is prime and divides no count that is used
}

fn name(at: u64) -> Name {
    let mut name = [0; NAME_BYTES];
    name[4..].copy_from_slice(&table::mix(at).to_be_bytes());
    name
}

/// The names of these places, ascending, each once.
fn sorted(places: impl Iterator<Item = u64>) -> Vec<(u64, Name)> {
    let mut names: Vec<(u64, Name)> = places.map(|at| (at, name(at))).collect();
    names.sort_unstable_by_key(|(_, name)| *name);
    names.dedup();
    names
}

/// Bytes of a row that nothing compresses.
fn value(random: &mut Random) -> [u8; ROW_BYTES] {
    let mut row = [0; ROW_BYTES];
    for part in row.chunks_mut(8) {
        part.copy_from_slice(&random.next_u64().to_le_bytes()[..part.len()]);
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_scattered_each_once() {
        let count = 3 << 10;
        let mut places: Vec<u64> = (0..count).map(|at| scattered(at, count)).collect();
        places.sort_unstable();
        assert_eq!(places, (0..count).collect::<Vec<_>>());
    }
}
