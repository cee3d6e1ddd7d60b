//! Counts of one table: rows in each tier, hits, bytes. It prints nothing.

use std::sync::atomic::{AtomicU64, Ordering};

use table::{Counters, TierCounters};

/// Atomics that are added to once a batch. Hits and misses count staged keys; bytes count lookups
/// too.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) rows: AtomicU64,
    pub(crate) rows_gpu: AtomicU64,
    pub(crate) rows_host: AtomicU64,
    pub(crate) rows_ssd: AtomicU64,
    pub(crate) gpu_hits: AtomicU64,
    pub(crate) gpu_misses: AtomicU64,
    pub(crate) gpu_bytes_read: AtomicU64,
    pub(crate) gpu_bytes_written: AtomicU64,
    pub(crate) promotions: AtomicU64,
    pub(crate) demotions: AtomicU64,
    pub(crate) host_hits: AtomicU64,
    pub(crate) host_misses: AtomicU64,
    pub(crate) host_bytes_read: AtomicU64,
    pub(crate) host_bytes_written: AtomicU64,
    pub(crate) ssd_hits: AtomicU64,
    pub(crate) ssd_misses: AtomicU64,
    pub(crate) ssd_bytes_read: AtomicU64,
    pub(crate) ssd_bytes_written: AtomicU64,
    pub(crate) first_touch: AtomicU64,
    pub(crate) ssd_rereads: AtomicU64,
    pub(crate) evictions: AtomicU64,
    pub(crate) writebacks: AtomicU64,
    pub(crate) not_admitted: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) dropped: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) conflicts: AtomicU64,
}

/// Adds to a count.
pub(crate) fn add(count: &AtomicU64, n: u64) {
    count.fetch_add(n, Ordering::Relaxed);
}

impl Tally {
    /// The tally of a table that has this many rows on SSD and none in RAM.
    pub(crate) fn of_rows(rows: u64) -> Self {
        Self { rows: AtomicU64::new(rows), rows_ssd: AtomicU64::new(rows), ..Self::default() }
    }

    pub(crate) fn counters(&self) -> Counters {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Counters {
            gpu: TierCounters {
                hits: get(&self.gpu_hits),
                misses: get(&self.gpu_misses),
                bytes_read: get(&self.gpu_bytes_read),
                bytes_written: get(&self.gpu_bytes_written),
            },
            host: TierCounters {
                hits: get(&self.host_hits),
                misses: get(&self.host_misses),
                bytes_read: get(&self.host_bytes_read),
                bytes_written: get(&self.host_bytes_written),
            },
            ssd: TierCounters {
                hits: get(&self.ssd_hits),
                misses: get(&self.ssd_misses),
                bytes_read: get(&self.ssd_bytes_read),
                bytes_written: get(&self.ssd_bytes_written),
            },
            first_touch: get(&self.first_touch),
            ssd_rereads: get(&self.ssd_rereads),
            evictions: get(&self.evictions),
            writebacks: get(&self.writebacks),
            not_admitted: get(&self.not_admitted),
            expired: get(&self.expired),
            promotions: get(&self.promotions),
            demotions: get(&self.demotions),
            dropped: get(&self.dropped),
            failed: get(&self.failed),
            conflicts: get(&self.conflicts),
        }
    }
}
