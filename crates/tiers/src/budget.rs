//! The bytes of host RAM that rows may take: one account for all tables. It does not decide who
//! gets them; `room` does.

use crate::sync::atomic::{AtomicU64, Ordering};

/// What is left of the budget.
pub(crate) struct Budget {
    bytes: u64,
    left: AtomicU64,
}

impl Budget {
    pub(crate) fn new(bytes: u64) -> Self {
        Self { bytes, left: AtomicU64::new(bytes) }
    }

    /// Takes all of `bytes`, or nothing.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }

    /// Gives bytes back that were taken.
    pub(crate) fn give(&self, bytes: u64) {
        let before = self.left.fetch_add(bytes, Ordering::Relaxed);
        assert!(before + bytes <= self.bytes, "more was given back than was taken");
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Ordering::Relaxed)
    }

    pub(crate) fn used(&self) -> u64 {
        self.bytes - self.left()
    }
}
