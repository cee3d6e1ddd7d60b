//! What a store is given at open. It reads no file and no flag; `server` does.

use std::path::PathBuf;
use std::time::Duration;

use crate::arena::BLOCK_BYTES;
use crate::{Error, Result};

/// Where a store lives and what it may use.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The directory of the store. It is created if it is missing; one that holds anything else is
    /// refused.
    pub data_dir: PathBuf,
    /// Bytes of host RAM for rows, their bookkeeping and the index. On top come the plans of staged
    /// steps (8 bytes a key, and 13 for each missing key while it is staged) and the batches on
    /// their way to and from SSD (3 MiB).
    pub host_ram_bytes: u64,
    /// Bytes of RAM for RocksDB: block cache with index and filter blocks, and memtables.
    pub ssd_memory_bytes: u64,
    /// How long a stage waits for pinned rows to be freed before it answers "slow down".
    pub stage_wait: Duration,
    /// Tables that the store holds at most.
    pub tables_max: u32,
}

impl StoreConfig {
    /// The smallest budget of host RAM: a block for each of three row lengths, and the index.
    pub const HOST_RAM_BYTES_MIN: u64 = 4 * BLOCK_BYTES as u64;
    /// The largest: what a slot number can name.
    pub const HOST_RAM_BYTES_MAX: u64 = 1 << 43;
    /// The least that RocksDB works with.
    pub const SSD_MEMORY_BYTES_MIN: u64 = 4 << 20;

    /// A configuration with the usual limits: 64 MiB for RocksDB, ten seconds' patience, 4,096
    /// tables.
    pub fn new(data_dir: impl Into<PathBuf>, host_ram_bytes: u64) -> Self {
        Self {
            data_dir: data_dir.into(),
            host_ram_bytes,
            ssd_memory_bytes: 64 << 20,
            stage_wait: Duration::from_secs(10),
            tables_max: 4096,
        }
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let in_range = |field, found: u64, min: u64, max: u64| {
            if (min..=max).contains(&found) {
                return Ok(());
            }
            Err(Error::Config { field, found, min, max })
        };
        let (min, max) = (Self::HOST_RAM_BYTES_MIN, Self::HOST_RAM_BYTES_MAX);
        in_range("host_ram_bytes", self.host_ram_bytes, min, max)?;
        in_range("ssd_memory_bytes", self.ssd_memory_bytes, Self::SSD_MEMORY_BYTES_MIN, max)?;
        in_range("tables_max", u64::from(self.tables_max), 1, u64::from(u32::MAX - 1))
    }
}
