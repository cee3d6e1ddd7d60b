//! The store: embedding rows in host RAM of a byte budget over RocksDB on SSD. It resolves, pins,
//! gathers and updates rows for its callers' threads; it has no threads of its own, knows no step
//! numbers and speaks no protocol.
//!
//! Data flow of a step: [`Store::stage`] probes the `index`, makes room in the `arena`
//! (`eviction`), fetches what is missing from the `ssd`, and pins all; [`Store::pull`] and
//! [`Store::push`] then work on known slots; dropping [`Staged`] unpins.
//!
//! Locks, in the order in which they may be taken: gate, blocks (one stage at a time), index, rows
//! of a table. Pull and push take the gate and their tables' rows, nothing else.

mod arena;
mod assign;
mod config;
mod error;
mod eviction;
mod index;
mod lookup;
mod meta;
mod ssd;
mod staging;
mod store;
mod tally;
#[cfg(test)]
mod tests;
mod write_back;

pub use arena::host_bytes_per_row;
pub use config::StoreConfig;
pub use error::{Error, Result};
pub use staging::Staged;
pub use store::Store;

// Rows are stored as little-endian floats and copied as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));
