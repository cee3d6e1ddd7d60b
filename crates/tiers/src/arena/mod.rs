//! The memory that rows lie in: one anonymous mapping, cut into blocks of 64 KiB. A block serves
//! one row length: an array of slot headers, then the rows. A row's address follows from its slot
//! number; there is no allocation for a row. It does not decide which row leaves; `eviction` does.
//!
//! The unsafe code of this crate is here and nowhere else. What it rests on:
//! - the bytes of a block are headers or floats by the block's carving, and a block is carved anew
//!   only while every slot of it is vacant and none of its slots is in the index;
//! - a slot is handed out once (compare-and-swap on its state), and leaves only unpinned;
//! - floats of a published row are read and written under the lock of its table, through a pin;
//!   floats of a row not yet published belong to the one `Fresh` that claimed it.

mod blocks;
mod held;
mod memory;

use table::RowLayout;

pub(crate) use blocks::Blocks;
pub(crate) use held::{Fresh, Held, HeldRow, Pinned, PinnedRun};
pub(crate) use memory::{Arena, RowOrigin, RowsLock, prefetch};

/// The unit in which row lengths take memory from the budget.
pub(crate) const BLOCK_BYTES: usize = 64 << 10;
/// Bytes of a slot's header: key, owner, state.
pub(crate) const HEADER_BYTES: usize = 16;
const ROW_ALIGN: usize = 64; // a cache line
const PLACE_BITS: u32 = 12;

// The shortest row, one float, gives 64 KiB / 20 B = 3,276 slots; the longest, 3 x 4,096 floats of
// Adam and its step count, must still find a slot.
const _: () = assert!(BLOCK_BYTES / (HEADER_BYTES + 4) <= 1 << PLACE_BITS);
const _: () = assert!(3 * 4096 * 4 + 4 + HEADER_BYTES + ROW_ALIGN <= BLOCK_BYTES);

/// The number of a slot: its block and its place within the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot(u64);

impl Slot {
    /// Bits of a slot's number.
    pub(crate) const BITS: u32 = 40;
    /// No slot.
    pub(crate) const NONE: Slot = Slot(u64::MAX);

    pub(crate) fn new(block: u32, place: u32) -> Self {
        debug_assert!(place < 1 << PLACE_BITS);
        Slot(u64::from(block) << PLACE_BITS | u64::from(place))
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Slot(bits)
    }

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn block(self) -> usize {
        (self.0 >> PLACE_BITS) as usize
    }

    pub(crate) fn place(self) -> usize {
        (self.0 & ((1 << PLACE_BITS) - 1)) as usize
    }
}

/// How a block is cut for rows of one length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Floats of a row, state included.
    pub(crate) floats: usize,
    /// Rows that a block holds.
    pub(crate) slots: usize,
    /// Where the rows start within the block.
    pub(crate) rows_offset: usize,
}

impl Geometry {
    pub(crate) fn of(floats: usize) -> Self {
        let row_bytes = floats * size_of::<f32>();
        let mut slots = BLOCK_BYTES / (HEADER_BYTES + row_bytes);
        while rows_offset(slots) + slots * row_bytes > BLOCK_BYTES {
            slots -= 1;
        }
        assert!(floats > 0 && slots > 0, "rows of {floats} floats do not fit a block");
        Geometry { floats, slots, rows_offset: rows_offset(slots) }
    }
}

fn rows_offset(slots: usize) -> usize {
    (slots * HEADER_BYTES).next_multiple_of(ROW_ALIGN)
}

/// Bytes of the host-RAM budget that one cached row takes when the budget is full: the row itself,
/// its 16-byte header, its share of the index (64 bytes for 5.5 rows) and of what is left over at
/// the end of its block.
///
/// A row of 16 floats takes 93 bytes: 64 of its own and 29 of bookkeeping.
pub fn host_bytes_per_row(layout: RowLayout) -> u64 {
    let slots = Geometry::of(layout.floats()).slots as u64;
    (BLOCK_BYTES as u64).div_ceil(slots) + crate::index::BYTES_PER_ROW
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_length_fits_a_block_and_wastes_little() {
        for floats in 1..=3 * 4096 + 1 {
            let geometry = Geometry::of(floats);
            let used = geometry.rows_offset + geometry.slots * floats * 4;
            assert!(used <= BLOCK_BYTES, "{floats}");
            assert!(BLOCK_BYTES - used < floats * 4 + HEADER_BYTES + ROW_ALIGN, "{floats}");
        }
    }

    #[test]
    fn bytes_per_row_are_as_documented() {
        assert_eq!(host_bytes_per_row(RowLayout { dim: 16, state: 0 }), 93);
    }

    #[test]
    fn a_slot_number_keeps_its_parts() {
        let slot = Slot::new((1 << 28) - 1, 3275);
        assert_eq!((slot.block(), slot.place()), ((1 << 28) - 1, 3275));
        assert!(slot.bits() < 1 << Slot::BITS);
    }
}
