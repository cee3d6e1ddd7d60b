//! Cache policies as references: each is told one key after another and says whether it held it.
//! They hold no rows, know no store, and are written to be right rather than small.

pub(crate) mod held_min;
mod lfu;
mod list;
mod lru;
mod min;
mod s3_fifo;
mod staged;
mod static_top;
mod swept;
#[cfg(test)]
mod tests;
mod w_tiny_lfu;

use table::RowLayout;

pub(crate) use lfu::Lfu;
pub(crate) use lru::Lru;
pub(crate) use min::Min;
pub(crate) use s3_fifo::S3Fifo;
pub(crate) use staged::{Batches, Foresight, Staged};
pub(crate) use static_top::StaticTop;
pub(crate) use swept::Swept;
pub(crate) use w_tiny_lfu::WTinyLfu;

/// Rows of 16 floats and one of state: how long they are says how many leave ahead of need.
const LAYOUT: RowLayout = RowLayout { dim: 16, state: 1 };

/// A cache of so many keys. Keys are small numbers, so that policies may index by them.
pub(crate) trait Policy {
    /// Whether the key was cached; afterwards it may be.
    fn access(&mut self, key: u32) -> bool;
}

/// How many of `keys` are hits.
pub(crate) fn hits<P: Policy + ?Sized>(policy: &mut P, keys: &[u32]) -> u64 {
    keys.iter().map(|&key| u64::from(policy.access(key))).sum()
}

/// A hash of a key.
pub(crate) fn hash(key: u32) -> u64 {
    table::mix(u64::from(key))
}
