//! Buffers of steps that are over, kept for steps to come: memory that is had anew for each stage
//! would have to be zeroed by the system each time. It knows nothing of what lies in them.

use table::RowStatus;

use crate::arena::Row;
use crate::index::Probe;
use crate::sync::Mutex;

/// Steps whose buffers are kept: what several lookaheads hold. What is beyond goes back to the
/// system.
const STEPS_MAX: usize = 32;

/// Buffers for one stage's probes while it looks them up.
#[derive(Default)]
pub(crate) struct Probes {
    pub(crate) hashes: Vec<u64>,   // in the order of the batch
    pub(crate) sorted: Vec<Probe>, // by section; what is behind the last is old
    pub(crate) ends: Vec<usize>,   // [sections]
}

/// What a step has for each key.
#[derive(Default)]
pub(crate) struct Plan {
    pub(crate) rows: Vec<Row>,           // [keys]
    pub(crate) statuses: Vec<RowStatus>, // [keys]
}

/// Each list guards the buffers of its kind and is held for moments.
#[derive(Default)]
pub(crate) struct Spare {
    probes: Mutex<Vec<Probes>>,
    plans: Mutex<Vec<Plan>>,
    slots: Mutex<Vec<Vec<u32>>>,
}

impl Spare {
    pub(crate) fn probes(&self) -> Probes {
        take(&self.probes)
    }

    pub(crate) fn keep_probes(&self, probes: Probes) {
        keep(&self.probes, probes);
    }

    pub(crate) fn plan(&self) -> Plan {
        take(&self.plans)
    }

    pub(crate) fn keep_plan(&self, plan: Plan) {
        keep(&self.plans, plan);
    }

    /// An empty list of slots.
    pub(crate) fn slots(&self) -> Vec<u32> {
        take(&self.slots)
    }

    pub(crate) fn keep_slots(&self, mut slots: Vec<u32>) {
        slots.clear();
        keep(&self.slots, slots);
    }
}

fn take<T: Default>(kept: &Mutex<Vec<T>>) -> T {
    kept.lock().pop().unwrap_or_default()
}

fn keep<T>(kept: &Mutex<Vec<T>>, buffer: T) {
    let mut kept = kept.lock();
    if kept.len() < STEPS_MAX {
        kept.push(buffer);
    }
}
