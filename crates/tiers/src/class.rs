//! All rows of one layout, whatever their tables: an arena, and the sections that share it. It
//! moves no capacity; `room` does.

use std::io;
use std::sync::Arc;

use crate::arena::{Arena, Layout, MemoryUse, Row, check_lockable};
use crate::live::SectionId;
use crate::section::{Place, Section, slots_max};
use crate::sync::Mutex;

/// Bytes of the budget that a section is made for.
const SECTION_BYTES: u64 = 256 << 20;
/// Address space beyond its fair share that a section may grow into, where keys are unequally
/// spread: all of a small budget.
const SLACK_BYTES: u64 = 1 << 30;

pub(crate) struct Class {
    pub(crate) number: u32,
    pub(crate) arena: Arc<Arena>,
    /// Guard: which rows are in the section's part of the arena, and where. One is taken at a time:
    /// by a probe once a batch, and more often by what makes room for misses and brings them in.
    pub(crate) sections: Vec<Mutex<Section>>,
    hash_bits: u32,
    slots_max: u64, // of a section
}

impl Class {
    pub(crate) fn reserve(number: u32, layout: Layout, memory: MemoryUse) -> io::Result<Self> {
        check_lockable(memory)?;
        let budget_bytes = memory.budget_bytes as u64;
        let sections = budget_bytes.div_ceil(SECTION_BYTES).next_power_of_two();
        let share_bytes = (4 * budget_bytes / sections + SLACK_BYTES).min(budget_bytes);
        let slots_max = slots_max(layout.bytes(), share_bytes);
        let rows = sections * u64::from(slots_max);
        let arena = Arc::new(Arena::reserve(layout, rows, memory)?);
        let hash_bits = sections.trailing_zeros();
        let section = |i: u64| {
            let base = i * u64::from(slots_max);
            let place = Place { number: i, base, slots_max, hash_bits };
            Ok(Mutex::new(Section::reserve(Arc::clone(&arena), place, memory)?))
        };
        let sections = (0..sections).map(section).collect::<io::Result<Vec<_>>>()?;
        Ok(Self { number, arena, sections, hash_bits, slots_max: u64::from(slots_max) })
    }

    /// The section that a hash belongs to.
    pub(crate) fn section_of(&self, hash: u64) -> u32 {
        // a shift by all 64 bits is not one
        if self.hash_bits == 0 { 0 } else { (hash >> (64 - self.hash_bits)) as u32 }
    }

    /// The row in a slot of a section.
    pub(crate) fn row(&self, section: u32, slot: u32) -> Row {
        Row::new(u64::from(section) * self.slots_max + u64::from(slot))
    }

    pub(crate) fn id_of(&self, section: usize) -> SectionId {
        SectionId { class: self.number, section: section as u32 }
    }
}
