//! What can go wrong in a store. It does not map to codes of the wire; `server` does.

use std::path::PathBuf;

use table::{Key, TableId};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, where, and what was expected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of the configuration is outside its range.
    #[error("{field} is {found}, expected {min} to {max}")]
    Config {
        /// The offending field.
        field: &'static str,
        /// What was given.
        found: u64,
        /// The least accepted.
        min: u64,
        /// The most accepted.
        max: u64,
    },
    /// A specification or a batch breaks the rules of its type.
    #[error(transparent)]
    Table(#[from] table::Error),
    /// No table of that number.
    #[error("{table} does not exist; the store has {tables} tables")]
    UnknownTable {
        /// The number that was named.
        table: TableId,
        /// How many tables there are.
        tables: u32,
    },
    /// A table of that name exists with another specification.
    #[error("table {table:?} exists with {field} {existing}, requested was {requested}")]
    AlreadyExists {
        /// The table's name.
        table: String,
        /// The first field that differs.
        field: &'static str,
        /// Its value in the store.
        existing: String,
        /// Its value in the request.
        requested: String,
    },
    /// The store holds as many tables as it may.
    #[error("table {table:?} would be one too many: the limit is {tables_max} tables")]
    TooManyTables {
        /// The table that was asked for.
        table: String,
        /// The limit.
        tables_max: u32,
    },
    /// A buffer has the wrong shape.
    #[error("{what} has {found} elements, expected {expected}")]
    InvalidArgument {
        /// The buffer.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length that its keys ask for.
        expected: usize,
    },
    /// A value that must be finite is not.
    #[error("{table}, key {key}: element {position} is not finite; no row was changed")]
    NotFinite {
        /// The row's table.
        table: TableId,
        /// The row's key.
        key: Key,
        /// The element within the row.
        position: usize,
    },
    /// The learning rate is not finite.
    #[error("the learning rate is {found}, expected a finite number; no row was changed")]
    LearningRate {
        /// What was given.
        found: f32,
    },
    /// The batch does not fit the budget even when it has it to itself.
    #[error(
        "the batch needs {needed_bytes} bytes of host RAM, the budget is {budget_bytes}: \
         raise host_ram_bytes or make the batch smaller"
    )]
    BatchTooLarge {
        /// Bytes that its rows take with their bookkeeping.
        needed_bytes: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// The batch does not fit the share of host RAM that one of its tables may take.
    #[error(
        "table {table:?} may have {rows_max} rows in host RAM, the batch names {rows}: \
         raise its maximum or make the batch smaller"
    )]
    ShareTooSmall {
        /// The table's name.
        table: String,
        /// Rows that its share holds.
        rows_max: u64,
        /// Rows that the batch names of it.
        rows: u64,
    },
    /// The budget is full of pinned rows; the same batch may pass later.
    #[error(
        "{pinned_rows} rows are pinned and leave no room in {budget_bytes} bytes of host RAM: \
         push or release a staged step first"
    )]
    SlowDown {
        /// Rows that staged steps hold.
        pinned_rows: u64,
        /// The budget.
        budget_bytes: u64,
    },
    /// A durable write, or the device, failed earlier; the store must be opened again.
    #[error("the store refuses work since it failed ({cause}); open it again")]
    Poisoned {
        /// What failed.
        cause: String,
    },
    /// A cache in device memory is wanted, and there is no device.
    #[error("no device for a cache in its memory: {0}")]
    NoDevice(gpu::NoDevice),
    /// Or nothing that makes code for it.
    #[error("no code for the device: {0}")]
    NoDeviceCode(gpu::NoCode),
    /// A worker's places are on another device than the rows.
    #[error("the worker's places are on {found}, the rows on {}", rows_on(*.expected))]
    OtherDevice {
        /// The places' device.
        found: table::DeviceId,
        /// The rows'; none where they are in host RAM alone.
        expected: Option<table::DeviceId>,
    },
    /// The device refused a call.
    #[error("device memory: {0}")]
    Device(#[from] gpu::Error),
    /// The slots of a worker in another process can't be opened.
    #[error("slots of another process: {0}")]
    Slots(gpu::Error),
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// Stored bytes are not what they must be.
    #[error("{table}, key {key}: the stored row has {found} bytes, expected {expected}")]
    Corrupt {
        /// The row's table.
        table: TableId,
        /// The row's key.
        key: Key,
        /// Bytes found.
        found: usize,
        /// Bytes of the table's rows.
        expected: usize,
    },
    /// The store's own records are not what they must be.
    #[error("{record} of the store is damaged: {reason}")]
    CorruptMeta {
        /// Which record.
        record: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory was written by a newer program.
    #[error("{} has format {found}, this program reads up to {supported}", dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// The newest that is understood.
        supported: u32,
    },
    /// The directory holds something else.
    #[error(
        "{} is not empty and not a store ({found:?} is there): nothing was touched",
        dir.display()
    )]
    NotAStore {
        /// The directory.
        dir: PathBuf,
        /// A file in it.
        found: String,
    },
    /// Another process, or this one, has the store open.
    #[error("{} is open elsewhere: {cause}", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// What RocksDB said.
        cause: String,
    },
    /// RocksDB failed.
    #[error("{context}: {source}")]
    Ssd {
        /// What was being done.
        context: &'static str,
        /// What RocksDB said.
        source: rocksdb::Error,
    },
    /// The file system or the memory failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Error {
    /// Whether RocksDB read something else than was written.
    pub fn is_damage(&self) -> bool {
        matches!(self, Error::Ssd { source, .. }
            if source.kind() == rocksdb::ErrorKind::Corruption)
    }

    /// The same error once more: two steps may wait for one read.
    pub(crate) fn again(&self) -> Error {
        if let Error::Corrupt { table, key, found, expected } = *self {
            return Error::Corrupt { table, key, found, expected };
        }
        if let Error::Ssd { context, source } = self {
            return Error::Ssd { context, source: source.clone() };
        }
        if let Error::Poisoned { cause } = self {
            return Error::Poisoned { cause: cause.clone() };
        }
        Error::CorruptMeta { record: "read of rows".to_owned(), reason: self.to_string() }
    }
}

fn rows_on(device: Option<table::DeviceId>) -> String {
    device.map_or("no device".to_owned(), |device| device.to_string())
}
