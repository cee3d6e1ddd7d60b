//! How long kinds of work take: histograms with a bucket for each doubling. They time nothing.

use serde::{Deserialize, Serialize};

/// How long one kind of work took, each time, since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Nanoseconds, of all times together.
    pub sum_ns: u64,
    /// How often it took so long. The first counts what took less than a microsecond, each further
    /// one what took less than twice as long as that before, the last one all that took longer.
    pub counts: [u64; Latency::BUCKETS],
}

/// What each tier did, and how long it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latencies {
    /// Stages in host RAM: every key looked up and pinned, room made, slots claimed. What is read
    /// from SSD comes behind it.
    pub host_stage: Latency,
    /// Reads from SSD: some rows of one table in one call, some of them from RocksDB's caches.
    pub ssd_read: Latency,
    /// Rows written back to SSD together.
    pub ssd_write: Latency,
    /// Stages whose rows were resolved in GPU memory, moves included.
    pub gpu_stage: Latency,
    /// Rows moved together between GPU memory and host RAM.
    pub gpu_move: Latency,
}

impl Latency {
    /// Buckets: the last but one ends at 4.2 seconds.
    pub const BUCKETS: usize = 24;

    /// The bucket of what took so long.
    pub fn bucket_of(ns: u64) -> usize {
        let bits = u64::BITS - (ns / 1000).leading_zeros();
        (bits as usize).min(Self::BUCKETS - 1)
    }

    /// Microseconds below which all in a bucket took; the last has no such bound.
    pub fn below_us(bucket: usize) -> Option<u64> {
        (bucket + 1 < Self::BUCKETS).then(|| 1 << bucket)
    }

    /// How often it was done.
    pub fn times(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Nanoseconds that it took on the average; none while it was never done.
    pub fn mean_ns(&self) -> Option<u64> {
        self.sum_ns.checked_div(self.times())
    }

    /// The bucket that the given share of all times, the shortest, ends in.
    pub fn bucket_at(&self, share: f64) -> Option<usize> {
        let times = self.times();
        let wanted = ((times as f64 * share).ceil() as u64).clamp(1, times.max(1));
        let mut sum = 0;
        self.counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        })
    }
}

impl Latencies {
    /// Each with the tier and the work that it is of.
    pub fn named(&self) -> [(&'static str, &'static str, &Latency); 5] {
        [
            ("gpu", "stage", &self.gpu_stage),
            ("gpu", "move", &self.gpu_move),
            ("host", "stage", &self.host_stage),
            ("ssd", "read", &self.ssd_read),
            ("ssd", "write", &self.ssd_write),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_twice_as_long_is_a_bucket_further() {
        let of = [(0, 0), (999, 0), (1000, 1), (1999, 1), (2000, 2), (3999, 2), (4000, 3)];
        for (ns, bucket) in of {
            assert_eq!(Latency::bucket_of(ns), bucket, "{ns} ns");
        }
        for bucket in 0..Latency::BUCKETS - 1 {
            let below_ns = 1000 * Latency::below_us(bucket).unwrap();
            assert_eq!(Latency::bucket_of(below_ns - 1), bucket);
            assert_eq!(Latency::bucket_of(below_ns), bucket + 1);
        }
        assert_eq!(Latency::bucket_of(u64::MAX), Latency::BUCKETS - 1);
        assert_eq!(Latency::below_us(Latency::BUCKETS - 1), None);
    }

    #[test]
    fn shares_of_the_times_end_in_their_buckets() {
        let mut latency = Latency::default();
        assert_eq!((latency.mean_ns(), latency.bucket_at(0.5)), (None, None));
        (latency.counts[3], latency.counts[5], latency.counts[9]) = (50, 49, 1);
        latency.sum_ns = 100_000;
        assert_eq!((latency.times(), latency.mean_ns()), (100, Some(1000)));
        let buckets = [0.0, 0.5, 0.51, 0.99, 0.995, 1.0].map(|share| latency.bucket_at(share));
        assert_eq!(buckets, [3, 3, 5, 5, 9, 9].map(Some));
    }
}
