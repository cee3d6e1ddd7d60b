//! Files and generators become batches of labels, dense values and keys; a batch becomes unique
//! keys with the place of each value among them. It does not pull a row or train on one.
//!
//! The way of the data is the order of the modules: a [`Source`] is opened with [`ReadOptions`],
//! its [`Reader`] fills one [`Batch`] after another with bounded memory, and [`unique`] turns a
//! batch into the `KeyBatch` that a session stages.

mod source;

mod options;

mod transform;

mod lines;

mod text;

mod columnar;

mod shuffle;

mod reader;

mod batch;

mod unique;

mod cache;

mod synthetic;

mod write;

mod error;

pub use batch::{Batch, Distinct, Jagged};
pub use cache::{CacheCard, CacheSize, cache_card, write_cache};
pub use error::{Error, Place, Result};
pub use options::{BadRows, DenseColumns, Labels, ReadOptions, RowSelection, Schema};
pub use reader::{Reader, fit_standardisation, fit_transform, open};
pub use shuffle::Shuffle;
pub use source::Source;
pub use synthetic::{Bayes, Generator, Lookups, RowBlock, SyntheticSpec};
pub use text::{LINE_BYTES_MAX, token_key};
pub use transform::{DenseTransform, Standardisation, TransformKind};
pub use unique::{Unique, unique};
pub use write::{write, write_criteo_tsv, write_parquet};
