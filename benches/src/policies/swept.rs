//! A cache that is run as the store runs its rows: its index, its hand and its policy, for one key
//! at a time of which nothing is known beforehand.

use tiers::rehearsal::Rehearsal;

use super::{LAYOUT, Policy};

/// Room for so many keys.
pub(crate) struct Swept(Rehearsal);

impl Swept {
    /// Room for `capacity` keys, at least one.
    pub(crate) fn new(capacity: usize) -> Self {
        let rows = u32::try_from(capacity.max(1)).expect("keys are numbered by u32");
        Self(Rehearsal::new(rows, LAYOUT).expect("addresses are to be had"))
    }
}

impl Policy for Swept {
    fn access(&mut self, key: u32) -> bool {
        let was_there = self.0.stage(&[key], None)[0];
        self.0.release();
        was_there
    }
}
