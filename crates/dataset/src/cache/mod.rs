//! A binary file of batches that were parsed once: labels, dense values, the distinct keys of each
//! feature with the place of each value among them, and in how many batches each key is used next.
//! The bytes are in `FORMAT.md` beside this crate. It trains on nothing, and one batch at a time is
//! mapped into memory.

mod format;
mod map;
mod next_use;
mod read;
mod write;

use serde::{Deserialize, Serialize};

use crate::{DenseTransform, RowSelection, Schema, Shuffle};

pub(crate) use read::CachedBatches;
pub use read::cache_card;
pub use write::write_cache;

/// What the batches of a cache are: all that decided their content when it was written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CacheCard {
    /// Where the rows came from, as a command line names it.
    pub source: String,
    /// Which rows of it.
    pub rows: RowSelection,
    /// Rows of a batch; the last one may have fewer.
    pub batch_rows: usize,
    /// The order of the rows.
    pub shuffle: Option<Shuffle>,
    /// The columns.
    pub columns: Schema,
    /// What was done to dense values.
    pub dense_transform: DenseTransform,
    /// Whether each dense column has one beside it that tells where it is missing.
    pub missing_indicator: bool,
    /// Into what range categorical values were folded.
    pub max_ind_range: Option<u64>,
    /// Whether weights of categorical values were read.
    pub weights: bool,
    /// The number of ids of each feature, where the source knew it.
    pub table_rows: Option<Vec<u64>>,
}

impl CacheCard {
    /// Dense values of a row.
    pub fn dense_width(&self) -> usize {
        self.columns.dense.len() * if self.missing_indicator { 2 } else { 1 }
    }
}

/// What a cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSize {
    /// Rows.
    pub rows: u64,
    /// Batches.
    pub batches: u64,
    /// Distinct keys, each feature's counted by themselves.
    pub distinct_keys: u64,
    /// Bad rows that were left out when it was written.
    pub rows_skipped: u64,
    /// Bytes of the file.
    pub file_bytes: u64,
}
