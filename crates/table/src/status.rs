//! What a store says of itself: where each row was found, and counters for each table and tier.
//! It does not count; `tiers` does.

use serde::{Deserialize, Serialize};

use crate::{TableId, TableSpec};

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
    /// Never touched: the value is what its first touch would create; nothing was stored.
    Initialised = 4,
    /// An admission rule keeps the key out; the row's floats mean nothing.
    NotAdmitted = 5,
    /// The row could not be had; the row's floats mean nothing.
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
    /// GPU memory.
    pub gpu: TierCounters,
    /// Host RAM: a staged key that is there is a hit; pulls read its bytes and pushes write them.
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
    /// Rows in RAM that staged steps hold; a row that two steps hold counts twice.
    pub pinned_rows: u64,
    /// Whether the store had been closed cleanly before it was opened.
    pub opened_clean: bool,
}

impl StoreStatus {
    /// The counters of all tables together.
    pub fn totals(&self) -> Counters {
        self.tables.iter().fold(Counters::default(), |sum, table| sum.plus(&table.counters))
    }
}

impl Counters {
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
