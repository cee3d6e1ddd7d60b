//! What a store says of itself: where each row was found, and counters for each table and tier.
//! It does not count; `tiers` does.

use serde::{Deserialize, Serialize};

use crate::{Latencies, TableId, TableSpec};

/// Where a row of a lookup came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum RowStatus {
    /// Found in GPU memory.
    Gpu = 1,
    /// Found in host RAM.
    Host = 2,
    /// Read from SSD.
    Ssd = 3,
    /// Touched for the first time; by a lookup: never touched, the value is what its first touch
    /// would create, and nothing was stored.
    Initialised = 4,
    /// The table's admission keeps the key out; the floats are those of its initial row.
    NotAdmitted = 5,
    /// The row's record could not be read. Its floats are NaN, and a step that has it can't be
    /// pushed.
    Failed = 6,
}

/// Counters of one tier since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierCounters {
    /// Keys found in this tier.
    pub hits: u64,
    /// Keys looked for here and not found.
    pub misses: u64,
    /// Bytes of rows read from this tier.
    pub bytes_read: u64,
    /// Bytes of rows written to this tier.
    pub bytes_written: u64,
}

/// Everything counted for a table, or summed over all tables, since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// GPU memory: a key whose row is there when its stage's rows are resolved is a hit, unless the
    /// row expired. Rows on
    /// their way up are written to it, rows on their way down read from it, beside pulls and
    /// pushes.
    pub gpu: TierCounters,
    /// Host RAM: a staged key that is there is a hit; pulls read its bytes and pushes write them.
    /// One whose row expired is a miss, in every tier: it begins anew.
    pub host: TierCounters,
    /// SSD: a key missed in RAM that has a row there is a hit; one that has none is a first touch.
    pub ssd: TierCounters,
    /// Rows created because their key was touched for the first time.
    pub first_touch: u64,
    /// Rows fetched from SSD again after they had left RAM.
    pub ssd_rereads: u64,
    /// Rows that left RAM, clean or dirty.
    pub evictions: u64,
    /// Rows written to SSD because they were dirty.
    pub writebacks: u64,
    /// Keys staged that the table's admission rule kept out.
    pub not_admitted: u64,
    /// Rows forgotten because nobody had staged them for too long.
    pub expired: u64,
    /// Rows that came up into GPU memory.
    pub promotions: u64,
    /// Rows that left GPU memory; those that had changed there were copied down.
    pub demotions: u64,
    /// Of those, rows that were dropped on SSD before anybody staged them again.
    pub dropped: u64,
    /// Keys missed in GPU memory whose rows found no place there, because their sets were full of
    /// staged rows: they are used in host RAM.
    pub conflicts: u64,
    /// Keys that were staged or looked up and whose record on SSD could not be read: neither hits
    /// nor misses.
    pub failed: u64,
}

/// One tier of one table, as it is now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TierStatus {
    /// Rows present in this tier.
    pub rows: u64,
    /// Bytes that they take, state and bookkeeping included.
    pub bytes: u64,
}

/// One table, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableStatus {
    /// Its number.
    pub id: TableId,
    /// Its specification.
    pub spec: TableSpec,
    /// Rows that exist, each counted once wherever it is.
    pub rows: u64,
    /// In GPU memory.
    pub gpu: TierStatus,
    /// In host RAM.
    pub host: TierStatus,
    /// On SSD; a row may be in RAM too, newer.
    pub ssd: TierStatus,
    /// Its counters.
    pub counters: Counters,
}

/// A whole store, as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The tables in the order of their numbers.
    pub tables: Vec<TableStatus>,
    /// Bytes of host RAM that rows and their index may take.
    pub host_ram_budget_bytes: u64,
    /// Bytes of it in use.
    pub host_ram_used_bytes: u64,
    /// Bytes of GPU memory that rows may take; 0 where there is no cache there.
    pub gpu_cache_bytes: u64,
    /// Stages whose rows were resolved to places in GPU memory or host RAM.
    pub gpu_stages: u64,
    /// Microseconds that this took, all of them together, moves of rows included.
    pub gpu_stages_us: u64,
    /// Rows in RAM that staged steps hold; a row that two steps hold counts twice.
    pub pinned_rows: u64,
    /// Rows that left RAM or are flushed, and are not written yet. While there is none, all that
    /// left RAM is as safe as the store's durability makes it.
    pub going_down_rows: u64,
    /// Bytes that the SSD tier wrote to its files since the store was opened: rows once when they
    /// come, again whenever files are merged, and what goes through its log. Over the rows' bytes
    /// written, this is the write amplification.
    pub ssd_file_bytes_written: u64,
    /// Bytes that the SSD tier read from its files to merge them, since the store was opened.
    pub ssd_file_bytes_merged: u64,
    /// What each tier did, and how long it took.
    pub latencies: Latencies,
    /// Whether the store had been closed cleanly before it was opened.
    pub opened_clean: bool,
}

impl StoreStatus {
    /// Bytes written to the SSD tier's files over the rows' bytes written there, since the store
    /// was opened; `None` while no row was.
    pub fn write_amplification(&self) -> Option<f64> {
        let rows_bytes = self.totals().ssd.bytes_written;
        (rows_bytes > 0).then(|| self.ssd_file_bytes_written as f64 / rows_bytes as f64)
    }

    /// The counters of all tables together.
    pub fn totals(&self) -> Counters {
        self.tables.iter().fold(Counters::default(), |sum, table| sum.plus(&table.counters))
    }
}

impl Counters {
    /// Keys that were staged, those kept out included: what the topmost tier was asked for. A
    /// tier's hits over this is its overall hit rate; over its own hits and misses, the conditional
    /// one.
    pub fn keys_staged(&self) -> u64 {
        let asked = |tier: &TierCounters| tier.hits + tier.misses;
        asked(&self.gpu).max(asked(&self.host)) + self.not_admitted
    }

    /// Keys that were staged and whose row had expired: missed in every tier, for no other reason.
    pub fn expired_misses(&self) -> u64 {
        self.expired - self.dropped.min(self.expired) // counted at other moments
    }

    /// The sum, counter by counter.
    pub fn plus(&self, other: &Counters) -> Counters {
        Counters {
            gpu: self.gpu.plus(&other.gpu),
            host: self.host.plus(&other.host),
            ssd: self.ssd.plus(&other.ssd),
            first_touch: self.first_touch + other.first_touch,
            ssd_rereads: self.ssd_rereads + other.ssd_rereads,
            evictions: self.evictions + other.evictions,
            writebacks: self.writebacks + other.writebacks,
            not_admitted: self.not_admitted + other.not_admitted,
            expired: self.expired + other.expired,
            promotions: self.promotions + other.promotions,
            demotions: self.demotions + other.demotions,
            dropped: self.dropped + other.dropped,
            failed: self.failed + other.failed,
            conflicts: self.conflicts + other.conflicts,
        }
    }
}

impl TierCounters {
    fn plus(&self, other: &TierCounters) -> TierCounters {
        TierCounters {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            bytes_read: self.bytes_read + other.bytes_read,
            bytes_written: self.bytes_written + other.bytes_written,
        }
    }
}

impl RowStatus {
    /// The status that a byte of the wire stands for, if any.
    pub fn from_byte(byte: u8) -> Option<RowStatus> {
        use RowStatus::{Failed, Gpu, Host, Initialised, NotAdmitted, Ssd};
        [Gpu, Host, Ssd, Initialised, NotAdmitted, Failed].into_iter().find(|s| *s as u8 == byte)
    }
}
