//! The words that every other crate speaks: tables, keys, rows, batches of keys, limits, counters,
//! places on a device.
//!
//! It does not store a row, read a file or send a message.

mod batch;
mod device;
mod error;
mod id;
mod initializer;
mod latency;
mod lifetime;
mod limits;
mod spec;
mod status;
pub mod units;

pub use batch::{KeyBatch, KeyRun};
pub use device::{
    DeviceHandle, DeviceId, DevicePlaces, DeviceSlot, DeviceSlots, SharedBytes, SharedSlot,
};
pub use error::{Error, Result};
pub use id::{Key, Step, TableId};
pub use initializer::Initializer;
pub use latency::{Latencies, Latency};
pub use limits::Limits;
pub use spec::{Admission, Expiry, GOLDEN, Optimizer, RowLayout, TableSpec, mix, scatter};
pub use status::{Counters, RowStatus, StoreStatus, TableStatus, TierCounters, TierStatus};
