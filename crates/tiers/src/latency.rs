//! Times that a kind of work took, counted as they end: once a batch, never a row. It tells no one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use table::Latency;

use crate::tally::add;

/// How long one kind of work took, each time.
#[derive(Debug, Default)]
pub(crate) struct Times {
    sum_ns: AtomicU64,
    counts: [AtomicU64; Latency::BUCKETS],
}

impl Times {
    /// Counts what began then and has just ended.
    pub(crate) fn note(&self, begun: Instant) {
        let ns = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        add(&self.sum_ns, ns);
        add(&self.counts[Latency::bucket_of(ns)], 1);
    }

    /// What was counted so far.
    pub(crate) fn told(&self) -> Latency {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Latency { sum_ns: get(&self.sum_ns), counts: self.counts.each_ref().map(get) }
    }
}
