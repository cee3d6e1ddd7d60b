//! What a store is given at open. It reads no file and no flag; `server` does.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::{Error, Result};

/// Where a store lives and what it may use.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// The directory of the store. It is created if it is missing; one that holds anything else is
    /// refused.
    pub data_dir: PathBuf,
    /// Bytes of host RAM for rows, their bookkeeping and the index. On top come the plans of staged
    /// steps (21 bytes a key, with a device 20 more, and 32 while it is looked up), of which those
    /// of 32 steps are kept for later ones, and the rows on their way to and from SSD: a part of
    /// RocksDB's memory or, where writes are logged or held to a rate, 3 MiB.
    pub host_ram_bytes: u64,
    /// Bytes of device memory for rows and their bookkeeping; 0: no device is opened. On top come 8
    /// MiB of pinned host memory and, once a worker shares places on the device, 24 bytes of both
    /// for each key of a staged step.
    pub gpu_cache_bytes: u64,
    /// The number of the device.
    pub gpu_device: u32,
    /// A folder that keeps the code that is compiled for the device; without one it is compiled at
    /// each open, which takes about a second.
    pub gpu_code_dir: Option<PathBuf>,
    /// Bytes of RAM for RocksDB: block cache with index and filter blocks, and the rows that went
    /// down last.
    pub ssd_memory_bytes: u64,
    /// How long a stage waits for pinned rows to be freed before it answers "slow down".
    pub stage_wait: Duration,
    /// Tables that the store holds at most, up to [`StoreConfig::TABLES_MAX`].
    pub tables_max: u32,
    /// Bytes a second that the SSD tier may write to its files, compactions included; `None`: as
    /// fast as the device takes them. What [`Durability::Log`] writes comes on top.
    pub ssd_write_bytes_per_s: Option<u64>,
    /// Threads that read rows from SSD: the depth of the device's queue.
    pub ssd_read_threads: u32,
    /// When a row that left RAM is safe.
    pub durability: Durability,
    /// Whether rows and their index are locked in physical memory, as they come, so that the system
    /// can't swap them out. It has to allow for `host_ram_bytes`, and what is taken for rows of
    /// several lengths by rounding: a page for each.
    pub lock_memory: bool,
    /// Tables whose share of the host RAM is bounded; the others take what serves best.
    pub shares: Vec<TableShare>,
    /// What tells the time to tables whose rows expire by seconds.
    pub clock: Clock,
}

/// What tells the time.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> Duration + Send + Sync>);

/// When a row that was written back is safe from a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// From the next flush or clean close on.
    Flush,
    /// Once it is written, a moment after it left: each write-back goes through RocksDB's
    /// write-ahead log. It is not waited for until the device has it: it outlives the process, not
    /// the machine.
    Log,
}

/// Bounds on one table's rows in host RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableShare {
    /// The table's name.
    pub table: String,
    /// Bytes below which no other table takes rows away from it.
    pub host_bytes_min: u64,
    /// Bytes above which it takes rows only from itself.
    pub host_bytes_max: u64,
}

impl Clock {
    /// The system's: seconds since 1970.
    pub fn system() -> Self {
        // before 1970 no time passes
        Self::of(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
    }

    /// One that says what `now` says. It may stand still; when it is put back, rows are young.
    pub fn of(now: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// What a row is stamped with: an age is a difference of two, right as long as it is below 2^31
    /// seconds.
    pub(crate) fn stamp(&self) -> u32 {
        (self.0)().as_secs() as u32
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clock({:?})", (self.0)())
    }
}

impl StoreConfig {
    /// The smallest budget of host RAM: a few of the longest rows.
    pub const HOST_RAM_BYTES_MIN: u64 = 256 << 10;
    /// The largest: what a slot number can name.
    pub const HOST_RAM_BYTES_MAX: u64 = 1 << 43;
    /// The most tables that a store can number.
    pub const TABLES_MAX: u32 = crate::index::TABLES_MAX;
    /// The smallest cache in device memory, where there is one: a few sets of short rows.
    pub const GPU_CACHE_BYTES_MIN: u64 = 64 << 10;
    /// The least that RocksDB works with.
    pub const SSD_MEMORY_BYTES_MIN: u64 = 4 << 20;

    /// A configuration with the usual limits: 64 MiB for RocksDB, ten seconds' patience, 4,096
    /// tables.
    pub fn new(data_dir: impl Into<PathBuf>, host_ram_bytes: u64) -> Self {
        Self {
            data_dir: data_dir.into(),
            host_ram_bytes,
            gpu_cache_bytes: 0,
            gpu_device: 0,
            gpu_code_dir: None,
            ssd_memory_bytes: 64 << 20,
            stage_wait: Duration::from_secs(10),
            tables_max: 4096,
            ssd_write_bytes_per_s: None,
            ssd_read_threads: 16,
            durability: Durability::Flush,
            lock_memory: false,
            shares: Vec::new(),
            clock: Clock::system(),
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
        if self.gpu_cache_bytes > 0 {
            in_range("gpu_cache_bytes", self.gpu_cache_bytes, Self::GPU_CACHE_BYTES_MIN, max)?;
        }
        in_range("ssd_memory_bytes", self.ssd_memory_bytes, Self::SSD_MEMORY_BYTES_MIN, max)?;
        in_range("tables_max", u64::from(self.tables_max), 1, u64::from(Self::TABLES_MAX))?;
        in_range("ssd_read_threads", u64::from(self.ssd_read_threads), 1, 1024)
    }
}
