//! The mapping itself: block carvings, slot headers with their pins and flags, row addresses. It
//! hands out no row to the rest of the crate; `held` does, to those who hold it.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};
use parking_lot::{Condvar, Mutex, RwLock};
use table::Key;

use super::{BLOCK_BYTES, Geometry, HEADER_BYTES, Slot, rows_offset};

const OCCUPIED: u32 = 1;
const DIRTY: u32 = 1 << 1;
const ON_SSD: u32 = 1 << 2;
const REFERENCED: u32 = 1 << 3;
const FRESH: u32 = 1 << 4;
const PIN: u32 = 1 << 8; // 24 bits of pins: 16 M holders of one row

/// One slot's bookkeeping. Key and owner change only while the slot is not occupied.
#[repr(C)]
struct Header {
    key: AtomicU64,
    owner: AtomicU32,
    state: AtomicU32,
}

const _: () = assert!(size_of::<Header>() == HEADER_BYTES);

/// Where a row came from when it was published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RowOrigin {
    /// Read from SSD: clean.
    Ssd,
    /// Touched for the first time: dirty, so that it lasts.
    FirstTouch,
}

/// The lock over all cached rows of one table, and the cut of its blocks.
///
/// Guards: the floats of the table's published rows. A read-write lock, for gathers run beside each
/// other; taken once a batch. Last in the lock order.
pub(crate) struct RowsLock {
    pub(super) owner: u32,
    pub(super) geometry: Geometry,
    pub(super) floats: RwLock<()>,
}

impl RowsLock {
    pub(crate) fn owner(&self) -> u32 {
        self.owner
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }
}

/// What a slot is, at a glance.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SlotState(u32);

impl SlotState {
    pub(crate) fn is_occupied(self) -> bool {
        self.0 & OCCUPIED != 0
    }

    /// Held by a step, or about to be published.
    pub(crate) fn is_held(self) -> bool {
        self.0 >= PIN || self.0 & FRESH != 0
    }

    pub(crate) fn is_referenced(self) -> bool {
        self.0 & REFERENCED != 0
    }

    pub(crate) fn is_dirty(self) -> bool {
        self.0 & DIRTY != 0
    }
}

/// The mapping and what is shared about it.
pub(crate) struct Arena {
    map: MmapRaw,
    carvings: Box<[AtomicU64]>, // [blocks], floats << 32 | slots; 0: not carved
    owners: AtomicU32,
    pinned_rows: AtomicU64,
    releases: Mutex<u64>, // counts releases, so that none is missed between a try and a wait
    released: Condvar,
}

impl Arena {
    /// An arena of `blocks` blocks. No memory is touched until rows come.
    pub(crate) fn map(blocks: usize) -> io::Result<Self> {
        // no swap is reserved: the budget may be larger than what is ever used of it
        let map = MmapOptions::new().len(blocks * BLOCK_BYTES).no_reserve_swap().map_anon()?;
        Ok(Self {
            map: MmapRaw::from(map),
            carvings: (0..blocks).map(|_| AtomicU64::new(0)).collect(),
            owners: AtomicU32::new(0),
            pinned_rows: AtomicU64::new(0),
            releases: Mutex::new(0),
            released: Condvar::new(),
        })
    }

    /// Bytes kept outside the mapping for each block.
    pub(crate) const BYTES_PER_BLOCK: usize = size_of::<AtomicU64>();

    pub(crate) fn blocks(&self) -> usize {
        self.carvings.len()
    }

    /// A new owner of rows of `floats` floats; owners are numbered from 0.
    pub(crate) fn add_owner(&self, floats: usize) -> RowsLock {
        let owner = self.owners.fetch_add(1, Ordering::Relaxed);
        RowsLock { owner, geometry: Geometry::of(floats), floats: RwLock::new(()) }
    }

    pub(crate) fn pinned_rows(&self) -> u64 {
        self.pinned_rows.load(Ordering::Relaxed)
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

    pub(crate) fn state(&self, slot: Slot) -> SlotState {
        SlotState(self.header(slot).state.load(Ordering::Acquire))
    }

    pub(crate) fn clear_referenced(&self, slot: Slot) {
        self.header(slot).state.fetch_and(!REFERENCED, Ordering::Relaxed);
    }

    /// Owner and key of an occupied slot.
    pub(crate) fn identity(&self, slot: Slot) -> (u32, Key) {
        let header = self.header(slot);
        (header.owner.load(Ordering::Relaxed), Key(header.key.load(Ordering::Relaxed)))
    }

    pub(crate) fn is_on_ssd(&self, slot: Slot) -> bool {
        self.header(slot).state.load(Ordering::Relaxed) & ON_SSD != 0
    }

    pub(super) fn set_on_ssd(&self, slot: Slot) {
        self.header(slot).state.fetch_or(ON_SSD, Ordering::Relaxed);
    }

    pub(super) fn set_dirty(&self, slot: Slot) {
        let state = &self.header(slot).state;
        if state.load(Ordering::Relaxed) & DIRTY == 0 {
            state.fetch_or(DIRTY, Ordering::Relaxed);
        }
    }

    pub(super) fn take_dirty(&self, slot: Slot) -> bool {
        self.header(slot).state.fetch_and(!DIRTY, Ordering::Relaxed) & DIRTY != 0
    }

    /// The link to the next vacant slot, kept where an occupied slot has its key.
    pub(super) fn link(&self, slot: Slot) -> u32 {
        self.header(slot).key.load(Ordering::Relaxed) as u32
    }

    pub(super) fn set_link(&self, slot: Slot, next: u32) {
        self.header(slot).key.store(u64::from(next), Ordering::Relaxed);
    }

    /// Takes a vacant slot for one writer.
    pub(super) fn claim(&self, slot: Slot) {
        let state = &self.header(slot).state;
        let claimed = state.compare_exchange(0, FRESH, Ordering::AcqRel, Ordering::Relaxed);
        assert!(claimed.is_ok(), "slot {slot:?} was handed out twice");
    }

    /// Gives a claimed slot back.
    pub(super) fn unclaim(&self, slot: Slot) {
        let state = &self.header(slot).state;
        let freed = state.compare_exchange(FRESH, 0, Ordering::AcqRel, Ordering::Relaxed);
        assert!(freed.is_ok(), "slot {slot:?} was not claimed");
    }

    /// Makes a claimed slot a row of `rows`, pinned once.
    pub(super) fn publish(&self, slot: Slot, rows: &RowsLock, key: Key, origin: RowOrigin) {
        let (floats, _) = self.carving(slot.block());
        assert_eq!(floats, rows.geometry.floats, "slot {slot:?} has another row length");
        let header = self.header(slot);
        header.key.store(key.0, Ordering::Relaxed);
        header.owner.store(rows.owner, Ordering::Relaxed);
        let flags = match origin {
            RowOrigin::Ssd => ON_SSD,
            RowOrigin::FirstTouch => DIRTY,
        };
        let new = OCCUPIED | flags | PIN;
        let done = header.state.compare_exchange(FRESH, new, Ordering::AcqRel, Ordering::Relaxed);
        assert!(done.is_ok(), "slot {slot:?} was not claimed");
    }

    /// Pins the slot if it holds this row; tells whether it did.
    pub(super) fn pin(&self, slot: Slot, rows: &RowsLock, key: Key, touch: bool) -> bool {
        if !self.pin_any(slot, touch) {
            return false;
        }
        // Key and owner stand still from here on, for a pinned slot is not freed.
        if self.identity(slot) == (rows.owner, key) {
            return true;
        }
        self.unpin(slot);
        false
    }

    /// Pins the slot whatever row it holds; false if it holds none.
    pub(super) fn pin_any(&self, slot: Slot, touch: bool) -> bool {
        let state = &self.header(slot).state;
        let touched = if touch { REFERENCED } else { 0 };
        state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, |state| {
                assert!(state < u32::MAX - PIN, "too many pins on {slot:?}");
                (state & OCCUPIED != 0).then_some((state + PIN) | touched)
            })
            .is_ok()
    }

    /// Pins the slot if nobody holds it.
    pub(super) fn pin_idle(&self, slot: Slot) -> bool {
        let state = &self.header(slot).state;
        let idle = |state: u32| (state & OCCUPIED != 0 && state < PIN).then_some(state + PIN);
        state.fetch_update(Ordering::Acquire, Ordering::Relaxed, idle).is_ok()
    }

    /// Takes one pin back.
    pub(super) fn unpin(&self, slot: Slot) {
        let before = self.header(slot).state.fetch_sub(PIN, Ordering::Release);
        assert!(before >= PIN && before & OCCUPIED != 0, "slot {slot:?} was not pinned");
    }

    /// Makes a slot vacant whose only pin is the caller's.
    pub(super) fn vacate(&self, slot: Slot) {
        let state = &self.header(slot).state;
        let alone = |state: u32| (state & OCCUPIED != 0 && state >> 8 == 1).then_some(0);
        let vacated = state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, alone);
        assert!(vacated.is_ok(), "slot {slot:?} is held by another");
    }

    pub(super) fn add_pinned(&self, rows: u64) {
        self.pinned_rows.fetch_add(rows, Ordering::Relaxed);
    }

    pub(super) fn subtract_pinned(&self, rows: u64) {
        self.pinned_rows.fetch_sub(rows, Ordering::Relaxed);
    }

    /// Wakes the stages that wait for rows to be released.
    pub(super) fn tell_released(&self) {
        *self.releases.lock() += 1;
        self.released.notify_all();
    }

    /// Cuts an uncarved block.
    pub(super) fn carve(&self, block: u32, geometry: Geometry) {
        let carving = (geometry.floats as u64) << 32 | geometry.slots as u64;
        let before = self.carvings[block as usize].swap(carving, Ordering::AcqRel);
        assert_eq!(before, 0, "block {block} is carved already");
    }

    /// Gives a block's memory back to the system. All of its slots must be vacant.
    pub(super) fn uncarve(&self, block: u32) -> io::Result<()> {
        let (_, slots) = self.carving(block as usize);
        for place in 0..slots as u32 {
            let state = self.header(Slot::new(block, place)).state.load(Ordering::Acquire);
            assert_eq!(state, 0, "block {block}, place {place} is in use");
        }
        self.carvings[block as usize].store(0, Ordering::Release);
        let start = block as usize * BLOCK_BYTES;
        // SAFETY: the range is inside the mapping; every slot of the block is vacant, so that
        // nobody holds a reference into it, and zeros are valid headers and valid floats.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, BLOCK_BYTES) }
    }

    pub(super) fn carving(&self, block: usize) -> (usize, usize) {
        let carving = self.carvings[block].load(Ordering::Acquire);
        ((carving >> 32) as usize, (carving & 0xffff_ffff) as usize)
    }

    fn header(&self, slot: Slot) -> &Header {
        let (_, slots) = self.carving(slot.block());
        assert!(slot.place() < slots, "slot {slot:?} lies outside its block's carving");
        // SAFETY: the header lies in the mapping, within the header array that the block's carving
        // fixes, and that array is only ever accessed as headers, which are atomics: any bits are
        // valid and shared access is sound. 64 KiB x block + 16 x place is aligned for it.
        unsafe {
            let offset = slot.block() * BLOCK_BYTES + slot.place() * HEADER_BYTES;
            &*self.map.as_mut_ptr().add(offset).cast::<Header>()
        }
    }

    /// Where a slot's floats lie, and how many they are.
    pub(super) fn row_address(&self, slot: Slot) -> (*mut f32, usize) {
        let (floats, slots) = self.carving(slot.block());
        assert!(slot.place() < slots, "slot {slot:?} lies outside its block's carving");
        let row = rows_offset(slots) + slot.place() * floats * size_of::<f32>();
        // SAFETY: the carving keeps every row within its block, and the block is in the mapping.
        (
            unsafe { self.map.as_mut_ptr().add(slot.block() * BLOCK_BYTES + row).cast::<f32>() },
            floats,
        )
    }

    pub(super) fn prefetch_row(&self, slot: Slot) {
        if slot != Slot::NONE {
            let (row, floats) = self.row_address(slot);
            for line in (0..floats).step_by(16).take(4) {
                prefetch_address(row.wrapping_add(line).cast());
            }
        }
    }

    pub(super) fn prefetch_header(&self, slot: Slot) {
        if slot != Slot::NONE {
            let offset = slot.block() * BLOCK_BYTES + slot.place() * HEADER_BYTES;
            prefetch_address(self.map.as_mut_ptr().wrapping_add(offset));
        }
    }
}

/// Asks the processor to bring in what `x` points at.
pub(crate) fn prefetch<T>(x: &T) {
    prefetch_address(std::ptr::from_ref(x).cast());
}

#[cfg(target_arch = "x86_64")]
fn prefetch_address(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch is a hint; it faults on no address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_address(_address: *const u8) {}
