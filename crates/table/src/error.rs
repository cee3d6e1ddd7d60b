//! What can be wrong with the words themselves. It does not know of storage or the wire.

use crate::{Key, TableId};

/// A [`std::result::Result`] with this crate's [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// A specification or a batch of keys that breaks the rules of its type.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field of a table's specification is outside its range.
    #[error("table {table:?}: {field} is {found}, expected {expected}")]
    Spec {
        /// The table's name as given.
        table: String,
        /// The offending field.
        field: &'static str,
        /// What was given.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The keys of one table are not strictly ascending.
    #[error("{table}: key {next} follows key {previous}; keys of a table are unique and ascend")]
    KeysNotAscending {
        /// The table whose run is out of order.
        table: TableId,
        /// The earlier key.
        previous: Key,
        /// The key that is not greater than it.
        next: Key,
    },
    /// The tables of a batch are not strictly ascending.
    #[error("{next} follows {previous}; a batch names each table once, in ascending order")]
    TablesNotAscending {
        /// The earlier table.
        previous: TableId,
        /// The table that is not greater than it.
        next: TableId,
    },
    /// A size or a time that does not read as one.
    #[error("{found:?} is not {expected}")]
    Quantity {
        /// What was given.
        found: String,
        /// What would have been accepted.
        expected: String,
    },
    /// The next uses of a batch are not one for each key.
    #[error("{found} next uses for {expected} keys")]
    NextUses {
        /// How many were given.
        found: u64,
        /// Keys of the batch.
        expected: u64,
    },
    /// The run lengths of a batch do not add up to its keys.
    #[error("runs name {runs} keys, the batch carries {keys}")]
    RunsDisagree {
        /// Sum of the runs' lengths.
        runs: u64,
        /// Number of keys that came.
        keys: u64,
    },
}
