//! The store: embedding rows in host RAM of a byte budget over RocksDB on SSD. It resolves, pins,
//! gathers and updates rows for its callers; threads of its own read from SSD and write to it. It
//! knows no step numbers and speaks no protocol.
//!
//! Data flow of a step: [`Store::begin_stage`] probes the `index` of each `section`, makes `room`,
//! and claims slots in the `arena`; what is on SSD comes in by the threads of `reads`. What leaves
//! goes `down` by a thread of its own. [`Store::pull`] and [`Store::push`] then work on known rows;
//! dropping [`Staged`] unpins.
//!
//! Locks, in the order in which they may be taken: gate, sketch, room, pinning, section, rows of a
//! table, the device's rows; then those that are held for moments and under which nothing else is
//! taken.

mod admission;
mod arena;
mod assign;
mod budget;
mod class;
mod config;
mod device;
mod down;
mod error;
mod expire;
mod gains;
mod index;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod interleavings;
mod latency;
mod live;
mod lookup;
mod meta;
#[doc(hidden)] // for the benchmark that compares it with others
pub mod policy;
mod reads;
#[doc(hidden)] // for the same benchmark
pub mod rehearsal;
mod room;
mod section;
mod spare;
mod ssd;
mod staging;
mod store;
mod stored;
mod sync;
mod tally;
#[cfg(test)]
#[cfg(not(feature = "shuttle"))]
mod tests;

pub use config::{Clock, Durability, StoreConfig, TableShare};
pub use device::Places;
pub use error::{Error, Result};
pub use gpu::usual_code_dir;
#[doc(hidden)] // decoders, for the fuzzer
pub use meta::{decode_any, record_seeds};
pub use section::host_bytes_per_row;
pub use staging::{Staged, Staging};
pub use store::Store;

// Rows are stored as little-endian floats and copied as they lie in memory.
const _: () = assert!(cfg!(target_endian = "little"));
