//! The rows that staged steps hold: a list of slots for each step, which stands until the step is
//! pushed or released. What is pinned follows from the lists; a row keeps no count. It finds no
//! row and moves none.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};

/// A section: its class and its place among the class's sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct SectionId {
    pub(crate) class: u32,
    pub(crate) section: u32,
}

/// Slots that one step holds, section after section.
#[derive(Debug, Default)]
pub(crate) struct PinSet {
    groups: Vec<(SectionId, Range<usize>)>, // ascending
    slots: Vec<u32>,
    /// Whether the rows changed since somebody last noted it.
    pub(crate) pushed: AtomicBool,
}

impl PinSet {
    /// An empty set, in a buffer for so many slots.
    pub(crate) fn in_buffer(mut buffer: Vec<u32>, slots: usize) -> Self {
        buffer.clear();
        buffer.reserve(slots);
        Self { slots: buffer, ..Self::default() }
    }

    /// The buffer, for another set.
    pub(crate) fn take_buffer(&mut self) -> Vec<u32> {
        self.groups.clear();
        std::mem::take(&mut self.slots)
    }

    /// Adds a slot of the group that is being built.
    pub(crate) fn push(&mut self, slot: u32) {
        self.slots.push(slot);
    }

    /// Ends the group of a section, which comes after all before it.
    pub(crate) fn end_group(&mut self, id: SectionId) {
        let start = self.groups.last().map_or(0, |(_, range)| range.end);
        if start < self.slots.len() {
            self.groups.push((id, start..self.slots.len()));
        }
    }

    /// The slots of one section.
    fn of(&self, id: SectionId) -> &[u32] {
        match self.groups.binary_search_by_key(&id, |group| group.0) {
            Ok(at) => &self.slots[self.groups[at].1.clone()],
            Err(_) => &[],
        }
    }

    /// Every section with its slots.
    pub(crate) fn groups(&self) -> impl Iterator<Item = (SectionId, &[u32])> {
        self.groups.iter().map(|(id, range)| (*id, &self.slots[range.clone()]))
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }
}

/// The lists of all steps that are staged now.
#[derive(Default)]
pub(crate) struct Live {
    /// Guards: the lists. Held for moments.
    sets: Mutex<HashMap<u64, Arc<PinSet>>>,
    numbers: AtomicU64,
    rows: AtomicU64,
    changes: AtomicU64,
    releases: Mutex<u64>, // counts releases, so that none is missed between a try and a wait
    released: Condvar,
}

impl Live {
    /// Notes that a step holds these slots; the number that releases them.
    pub(crate) fn add(&self, set: Arc<PinSet>) -> u64 {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.rows.fetch_add(set.len() as u64, Ordering::Relaxed);
        self.sets.lock().insert(number, set);
        self.changes.fetch_add(1, Ordering::Release);
        number
    }

    /// Forgets a list. `quietly`: without waking who waits, for a stage that failed and itself
    /// waits next; were it to wake the waiting stages, itself among them, none would ever wait.
    pub(crate) fn remove(&self, number: u64, quietly: bool) {
        let set = self.sets.lock().remove(&number).expect("a list is removed once");
        self.rows.fetch_sub(set.len() as u64, Ordering::Relaxed);
        self.changes.fetch_add(1, Ordering::Release);
        if set.len() > 0 && !quietly {
            *self.releases.lock() += 1;
            self.released.notify_all();
        }
    }

    /// Wakes who waits for rows, because some will be released that they can wait for themselves.
    pub(crate) fn announce(&self) {
        *self.releases.lock() += 1;
        self.released.notify_all();
    }

    /// Rows that steps hold; one that two steps hold counts twice.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// How many lists came and went so far: as long as this stands, so does what is pinned.
    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// All lists as they are now.
    pub(crate) fn sets(&self) -> Vec<Arc<PinSet>> {
        self.sets.lock().values().cloned().collect()
    }

    /// Calls `each` with the slots of one section that some step holds, list by list.
    pub(crate) fn slots_of(&self, id: SectionId, mut each: impl FnMut(&[u32])) {
        for set in self.sets() {
            each(set.of(id));
        }
    }

    /// How often held rows were released so far; see [`Self::wait_release`].
    pub(crate) fn releases(&self) -> u64 {
        *self.releases.lock()
    }

    /// Waits until rows are released after the count `seen` was read; false at the deadline.
    pub(crate) fn wait_release(&self, seen: u64, deadline: Instant) -> bool {
        let mut releases = self.releases.lock();
        while *releases == seen {
            if self.released.wait_until(&mut releases, deadline).timed_out() {
                return *releases != seen;
            }
        }
        true
    }
}
