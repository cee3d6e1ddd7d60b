//! The SSD tier: one RocksDB with a column family of rows and one of the store's own records. The
//! only door to RocksDB. It caches no row of its own and knows no layout; it poisons itself when a
//! durable write fails. Why its settings are what they are: `ops/adr/0010-rocksdb-settings.md`,
//! `0041-rows-go-down-as-files.md` and `0049-merges-of-eight-files.md`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use rocksdb::statistics::{StatsLevel, Ticker};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB,
    DBCompressionType, IngestExternalFileOptions, IteratorMode, Options, ReadOptions,
    SstFileWriter, WriteBatch, WriteBufferManager, WriteOptions,
};
use table::{Key, TableId};

use crate::latency::Times;
use crate::{Durability, Error, Result, StoreConfig};

const ROWS: &str = "rows";
const META: &str = "meta";
/// Keys that one multi-get names, at most: each may hold a block of 4 KiB in the cache meanwhile.
const READ_KEYS: usize = 256;
/// Bytes of rows that one multi-get asks for, unless a single row is longer.
const READ_BYTES: usize = 1 << 20;
const ROW_KEY_BYTES: usize = 12;

/// New files of rows that are merged together: with fewer, merges move a row again and again; with
/// more, a read looks into more filters.
const FILES_A_MERGE: i32 = 8;
/// Bits of a row in its file's filter: one row in 250 that is not in the file is looked for there.
const FILTER_BITS: f64 = 12.0;
/// A new file that comes in ready has no more bytes of rows; under a scheduler so few that rows go
/// down while little else happens.
pub(crate) const FILE_BYTES_MAX: u64 = if cfg!(feature = "shuttle") { 2 << 10 } else { 64 << 20 };
/// What RocksDB's first level has at least before it is merged into the next: as much as the new
/// files together, and no less than by default.
const FIRST_LEVEL_BYTES_MIN: u64 = 256 << 20;

/// The file that is being written before RocksDB takes it in.
const INCOMING: &str = "incoming.sst";

/// A row's key on SSD: table and key big-endian, so that the order of bytes is that of the numbers.
type RowKey = [u8; ROW_KEY_BYTES];

/// The name and the value of a record of the store's own.
pub(crate) type Record = (Box<[u8]>, Box<[u8]>);

pub(crate) struct Ssd {
    db: DB,
    options: Options,      // holds the statistics
    file_options: Options, // of files that come in ready
    incoming: PathBuf,
    /// Bytes of files that RocksDB took in, which its statistics don't count.
    incoming_bytes: AtomicU64,
    bytes_a_file: Option<u64>, // if rows are written as files
    durability: Durability,
    poison: OnceLock<String>,
    /// Of calls that read rows by their keys.
    pub(crate) reads: Times,
    /// Of rows that were written together.
    pub(crate) writes: Times,
    #[cfg(test)]
    pub(crate) fail_writes: std::sync::atomic::AtomicBool,
}

impl Ssd {
    /// Opens the database in `dir`, or makes it. Exclusive: a second open fails.
    pub(crate) fn open(dir: &Path, config: &StoreConfig) -> Result<Self> {
        let memory_bytes = config.ssd_memory_bytes;
        // Half for the block cache; three eighths for rows that come: in batches of `down`, or,
        // where these go through RocksDB's log or limiter, in its memtables; the last eighth is
        // left to table readers and compactions.
        let cache = Cache::new_lru_cache((memory_bytes / 2) as usize);
        let eighth = (memory_bytes / 8) as usize;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_background_jobs(2);
        options.set_max_open_files(256);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_stats_dump_period_sec(0);
        // A log that is full writes all memtables down: that of the store's own records is short,
        // that of rows takes as much as their memtables.
        options.set_max_total_wal_size(match config.durability {
            Durability::Flush => 1 << 20,
            Durability::Log => 3 * eighth as u64,
        });
        options.set_write_buffer_manager(&WriteBufferManager::new_write_buffer_manager(
            3 * eighth,
            false, // a full memtable slows a write down; it must not stop one for good
        ));
        options.set_use_direct_reads(true);
        options.set_use_direct_io_for_flush_and_compaction(true);
        // Direct I/O reads and writes through buffers of its own, one for each file of a merge.
        let buffer_bytes = (memory_bytes / 64).clamp(64 << 10, 1 << 20);
        options.set_compaction_readahead_size(2 * buffer_bytes as usize);
        options.set_writable_file_max_buffer_size(buffer_bytes);
        options.enable_statistics();
        options.set_statistics_level(StatsLevel::ExceptHistogramOrTimers);
        if let Some(bytes_per_s) = config.ssd_write_bytes_per_s {
            let bytes_per_s = i64::try_from(bytes_per_s).unwrap_or(i64::MAX);
            options.set_ratelimiter(bytes_per_s, 100_000, 10); // refilled every 100 ms
        }
        let mut rows = family_options(&cache, eighth, Lookup::InParts);
        // Deleted rows take their place until a merge meets them: files full of them ask for one.
        rows.add_compact_on_deletion_collector_factory(1024, 512, 0.5);
        rows.set_level_zero_file_num_compaction_trigger(FILES_A_MERGE);
        // a file that comes in ready is neither logged nor held to a rate
        let writes_files =
            config.durability == Durability::Flush && config.ssd_write_bytes_per_s.is_none();
        let bytes_a_file = writes_files.then(|| FILE_BYTES_MAX.min(eighth as u64));
        let first_level_bytes = FILES_A_MERGE as u64 * bytes_a_file.unwrap_or(eighth as u64);
        rows.set_max_bytes_for_level_base(first_level_bytes.max(FIRST_LEVEL_BYTES_MIN));
        let rows = aligned(rows)?;
        let file_options = aligned(family_options(&cache, eighth, Lookup::Whole))?;
        let families = [
            ColumnFamilyDescriptor::new(ROWS, rows),
            ColumnFamilyDescriptor::new(META, family_options(&cache, 64 << 10, Lookup::InParts)),
        ];
        let db = DB::open_cf_descriptors(&options, dir, families).map_err(|source| {
            let cause = source.to_string();
            if cause.contains("lock") || cause.contains("LOCK") {
                return Error::Locked { dir: dir.to_owned(), cause };
            }
            Error::Ssd { context: "open the database", source }
        })?;
        Ok(Self {
            db,
            options,
            file_options,
            incoming: dir.join(INCOMING),
            incoming_bytes: AtomicU64::new(0),
            bytes_a_file,
            durability: config.durability,
            poison: OnceLock::new(),
            reads: Times::default(),
            writes: Times::default(),
            #[cfg(test)]
            fail_writes: std::sync::atomic::AtomicBool::new(false),
        })
    }

    /// Bytes of rows that are written as one file, at most, where they are written as files: then
    /// large batches cost least.
    pub(crate) fn bytes_a_file(&self) -> Option<u64> {
        self.bytes_a_file
    }

    /// Whether the tier still takes work.
    pub(crate) fn check(&self) -> Result<()> {
        match self.poison.get() {
            Some(cause) => Err(Error::Poisoned { cause: cause.clone() }),
            None => Ok(()),
        }
    }

    /// Takes no more work, because rows may be lost; the first cause stands.
    pub(crate) fn poison(&self, cause: String) {
        tracing::error!(cause, "the store refuses work");
        self.poison.get_or_init(|| cause);
    }

    /// Reads rows of one table, of about `row_bytes` bytes, keys ascending: `found` is called for
    /// each with its place among `keys` and its bytes, if it has any, or why they can't be had.
    pub(crate) fn read(
        &self,
        table: TableId,
        row_bytes: usize,
        keys: impl Iterator<Item = Key>,
        mut found: impl FnMut(usize, Key, Result<Option<&[u8]>>) -> Result<()>,
    ) -> Result<()> {
        let rows = self.family(ROWS)?;
        let read = ReadOptions::default(); // verifies checksums, fills the block cache
        let mut keys = keys.peekable();
        let at_once = (READ_BYTES / row_bytes).clamp(1, READ_KEYS);
        let mut names: Vec<RowKey> = Vec::with_capacity(at_once);
        let mut start = 0;
        while keys.peek().is_some() {
            names.clear();
            names.extend(keys.by_ref().take(at_once).map(|key| row_key(table, key)));
            let begun = Instant::now();
            let values = self.db.batched_multi_get_cf_opt(rows, &names, true, &read);
            self.reads.note(begun);
            for (i, (value, name)) in values.into_iter().zip(&names).enumerate() {
                let value = value
                    .as_ref()
                    .map(Option::as_deref)
                    .map_err(|source| Error::Ssd { context: "read rows", source: source.clone() });
                found(start + i, key_of(name), value)?;
            }
            start += names.len();
        }
        Ok(())
    }

    /// Writes rows together, keys ascending, each once. Unless the store logs its writes, they last
    /// from a flush on.
    pub(crate) fn write_rows(&self, rows: &[(TableId, Key, &[u8])]) -> Result<()> {
        self.check()?;
        if rows.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        // A scheduler tries hundreds of orders, each with many batches: a file each takes minutes.
        if self.bytes_a_file.is_some() && !cfg!(feature = "shuttle") {
            self.write_file(rows)?;
        } else {
            let family = self.family(ROWS)?;
            let mut batch = WriteBatch::default();
            for (table, key, value) in rows {
                batch.put_cf(family, row_key(*table, *key), value);
            }
            self.durable("write rows", || self.db.write_opt(batch, &self.write_options()))?;
        }
        self.writes.note(begun);
        Ok(())
    }

    /// Writes rows as a file of RocksDB's, which takes it in as it is: no memtable, and no reader
    /// that has to look through one.
    fn write_file(&self, rows: &[(TableId, Key, &[u8])]) -> Result<()> {
        let family = self.family(ROWS)?;
        // A write waits while merges are too far behind; a file that comes in ready would not.
        let nothing = WriteBatch::default();
        self.durable("write rows", || self.db.write_opt(nothing, &self.write_options()))?;
        self.clear_incoming()?;
        let mut moved = IngestExternalFileOptions::default();
        moved.set_move_files(true);
        self.durable("write rows", || {
            let mut file = SstFileWriter::create(&self.file_options);
            file.open(&self.incoming)?;
            for (table, key, value) in rows {
                file.put(row_key(*table, *key), value)?;
            }
            file.finish()?;
            self.incoming_bytes.fetch_add(file.file_size(), Ordering::Relaxed);
            self.db.ingest_external_file_cf_opts(family, &moved, vec![&self.incoming])
        })
    }

    /// A crash can leave the file under both names: to write to it would be to write to RocksDB's.
    fn clear_incoming(&self) -> Result<()> {
        match std::fs::remove_file(&self.incoming) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                self.poison(format!("remove {}: {error}", self.incoming.display()));
                self.check()
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn write_options(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.disable_wal(self.durability == Durability::Flush);
        options
    }

    /// Reads up to `rows` rows of a table, from a key on in their order; the key after them, if the
    /// table may have more.
    pub(crate) fn scan(
        &self,
        table: TableId,
        from: Key,
        rows: usize,
        mut found: impl FnMut(Key, &[u8]) -> Result<()>,
    ) -> Result<Option<Key>> {
        let mut read = ReadOptions::default();
        read.fill_cache(false); // what nobody asks for must not push out what somebody does
        if let Some(next) = table.0.checked_add(1) {
            read.set_iterate_upper_bound(row_key(TableId(next), Key(0)));
        }
        let mut entries = self.db.raw_iterator_cf_opt(self.family(ROWS)?, read);
        entries.seek(row_key(table, from));
        for _ in 0..rows {
            let Some((name, value)) = entries.item() else { break };
            table_of(name)?;
            let mut whole = RowKey::default();
            whole.copy_from_slice(name);
            found(key_of(&whole), value)?;
            entries.next();
        }
        let next = entries.key().and_then(|name| name.last_chunk::<8>());
        let next = next.map(|key| Key(u64::from_be_bytes(*key)));
        entries.status().map_err(|source| Error::Ssd { context: "look at rows", source })?;
        Ok(next)
    }

    /// Deletes rows of a table, keys ascending.
    pub(crate) fn delete_rows(&self, table: TableId, keys: &[Key]) -> Result<()> {
        self.check()?;
        if keys.is_empty() {
            return Ok(());
        }
        let family = self.family(ROWS)?;
        let mut batch = WriteBatch::default();
        keys.iter().for_each(|key| batch.delete_cf(family, row_key(table, *key)));
        self.durable("delete rows", || self.db.write_opt(batch, &self.write_options()))
    }

    /// Bytes written to files, the log's among them, and bytes read from files to merge them, since
    /// the open.
    pub(crate) fn file_bytes(&self) -> (u64, u64) {
        let ticker = |ticker| self.options.get_ticker_count(ticker);
        let written = [Ticker::FlushWriteBytes, Ticker::CompactWriteBytes, Ticker::WalFileBytes];
        let written: u64 = written.into_iter().map(ticker).sum();
        let written = written + self.incoming_bytes.load(Ordering::Relaxed);
        (written, ticker(Ticker::CompactReadBytes))
    }

    /// Brings every row written so far to the disk.
    pub(crate) fn flush_rows(&self) -> Result<()> {
        let rows = self.family(ROWS)?;
        self.durable("flush rows", || self.db.flush_cf(rows))
    }

    /// Counts the rows of every table that has any, by reading all keys.
    pub(crate) fn count_rows(&self) -> Result<Vec<(TableId, u64)>> {
        let mut read = ReadOptions::default();
        read.fill_cache(false);
        read.set_readahead_size(1 << 20);
        let rows = self.family(ROWS)?;
        let mut counts: Vec<(TableId, u64)> = Vec::new();
        for entry in self.db.iterator_cf_opt(rows, read, IteratorMode::Start) {
            let (name, _) = entry.map_err(|source| Error::Ssd { context: "count rows", source })?;
            let table = table_of(&name)?;
            match counts.last_mut() {
                Some((last, count)) if *last == table => *count += 1,
                Some(_) | None => counts.push((table, 1)),
            }
        }
        Ok(counts)
    }

    /// Bytes of the files that rows lie in now.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn live_bytes(&self) -> u64 {
        let rows = self.family(ROWS).unwrap();
        self.db.property_int_value_cf(rows, "rocksdb.live-sst-files-size").unwrap().unwrap()
    }

    /// Blocks that were not in the cache and so were read, since the open: of rows, and of filters
    /// and indexes.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn blocks_read(&self) -> [u64; 2] {
        let missed = |ticker| self.options.get_ticker_count(ticker);
        let beside = [Ticker::BlockCacheFilterMiss, Ticker::BlockCacheIndexMiss].map(missed);
        [missed(Ticker::BlockCacheDataMiss), beside.into_iter().sum()]
    }

    /// Whether files are being merged or are about to be.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn is_merging(&self) -> bool {
        let rows = self.family(ROWS).unwrap();
        let names = ["compaction-pending", "num-running-compactions", "num-running-flushes"];
        let value = |name| self.db.property_int_value_cf(rows, &format!("rocksdb.{name}")).unwrap();
        names.into_iter().any(|name| value(name) != Some(0))
    }

    /// Bytes that the cache of blocks may take.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn cache_bytes(&self) -> u64 {
        let rows = self.family(ROWS).unwrap();
        self.db.property_int_value_cf(rows, "rocksdb.block-cache-capacity").unwrap().unwrap()
    }

    /// A record of the store's own.
    pub(crate) fn record(&self, name: &[u8]) -> Result<Option<Vec<u8>>> {
        let read = self.db.get_cf(self.family(META)?, name);
        read.map_err(|source| Error::Ssd { context: "read a record", source })
    }

    /// All records whose names start with `prefix`, in the order of their names.
    pub(crate) fn records(&self, prefix: &[u8]) -> Result<Vec<Record>> {
        let all = self.db.iterator_cf(self.family(META)?, IteratorMode::Start);
        let found = all.filter(|entry| match entry {
            Ok((name, _)) => name.starts_with(prefix),
            Err(_) => true,
        });
        let found: std::result::Result<Vec<_>, _> = found.collect();
        found.map_err(|source| Error::Ssd { context: "read the records", source })
    }

    /// Writes a record and waits until it lasts; `None` deletes it.
    pub(crate) fn set_record(&self, name: &[u8], value: Option<&[u8]>) -> Result<()> {
        self.check()?;
        let meta = self.family(META)?;
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.durable("write a record", || match value {
            Some(value) => self.db.put_cf_opt(meta, name, value, &options),
            None => self.db.delete_cf_opt(meta, name, &options),
        })
    }

    /// Runs a durable write; when it fails, nothing is accepted from then on.
    fn durable(
        &self,
        context: &'static str,
        write: impl FnOnce() -> std::result::Result<(), rocksdb::Error>,
    ) -> Result<()> {
        #[cfg(test)]
        if self.fail_writes.load(std::sync::atomic::Ordering::Relaxed) {
            self.poison.get_or_init(|| format!("{context}: told to fail"));
            return self.check();
        }
        let Err(source) = write() else { return Ok(()) };
        self.poison.get_or_init(|| format!("{context}: {source}"));
        tracing::error!(context, %source, "a durable write failed; the store refuses work");
        self.check()
    }

    fn family(&self, name: &'static str) -> Result<&ColumnFamily> {
        self.db.cf_handle(name).ok_or_else(|| Error::CorruptMeta {
            record: format!("column family {name}"),
            reason: "it is missing".to_owned(),
        })
    }
}

/// How a file's index and filter lie in it.
#[derive(Clone, Copy, PartialEq)]
enum Lookup {
    /// In blocks of their own that are found by an index of theirs: of a file of any size only what
    /// is asked for has to be in the cache.
    InParts,
    /// One block each: of a small file, which each read looks into until it is merged, they are
    /// found with one access for all rows of a call.
    Whole,
}

/// Blocks of rows that lie in one block of the device.
fn aligned(mut rows: Options) -> Result<Options> {
    rows.get_options_from_string("block_based_table_factory={block_align=true;}")
        .map_err(|source| Error::Ssd { context: "set the options of rows", source })
}

fn family_options(cache: &Cache, memtable_bytes: usize, lookup: Lookup) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(4 << 10);
    table.set_bloom_filter(FILTER_BITS, false);
    table.set_whole_key_filtering(true);
    // The index and the filters of a terabyte would not fit the budget: they live in the cache.
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if lookup == Lookup::InParts {
        table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        table.set_partition_filters(true);
        table.set_pin_top_level_index_and_filter(true);
    }
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::None); // floats of trained rows don't compress
    options.set_write_buffer_size(memtable_bytes.max(64 << 10));
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(32 << 20);
    options
}

fn row_key(table: TableId, key: Key) -> RowKey {
    let mut name = [0; ROW_KEY_BYTES];
    name[..4].copy_from_slice(&table.0.to_be_bytes());
    name[4..].copy_from_slice(&key.0.to_be_bytes());
    name
}

fn key_of(name: &RowKey) -> Key {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&name[4..]);
    Key(u64::from_be_bytes(bytes))
}

fn table_of(name: &[u8]) -> Result<TableId> {
    match name.first_chunk::<4>() {
        Some(table) if name.len() == ROW_KEY_BYTES => Ok(TableId(u32::from_be_bytes(*table))),
        Some(_) | None => Err(Error::CorruptMeta {
            record: format!("row key {name:02x?}"),
            reason: format!("it has {} bytes, expected {ROW_KEY_BYTES}", name.len()),
        }),
    }
}
