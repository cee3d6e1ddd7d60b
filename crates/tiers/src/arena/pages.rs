//! Address space that is reserved once, and the memory behind it: pages come when they are touched,
//! are locked as the budget pays for them where that is wanted, and go back to the system. It knows
//! no rows.

use std::io;
use std::ops::Range;

use memmap2::{Advice, MmapMut, MmapOptions};
use rustix::mm::{self, MlockFlags};

/// A budget from which on huge pages pay; below it their rounding would outweigh it.
const HUGE_PAGES_FROM_BYTES: usize = 64 << 20;
const HUGE_PAGE_BYTES: usize = 2 << 20;
/// What every system's pages are made of: a mapping has whole ones.
pub(super) const PAGE_BYTES: usize = 4096;

/// How memory is taken from the system.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MemoryUse {
    /// The budget that all arenas share.
    pub(crate) budget_bytes: usize,
    /// Whether memory is locked as it is taken.
    pub(crate) lock: bool,
}

impl MemoryUse {
    fn huge_pages(self) -> bool {
        self.budget_bytes >= HUGE_PAGES_FROM_BYTES
    }
}

/// Zeroed memory that is taken when it is touched.
pub(crate) fn map(bytes: usize, memory: MemoryUse) -> io::Result<MmapMut> {
    // no swap is reserved: the addresses are more than what is ever used of them
    let map = MmapOptions::new().len(bytes.max(1)).no_reserve_swap().map_anon()?;
    if memory.huge_pages() {
        // a hint: where the system has no huge pages, small ones serve
        let _ = map.advise(Advice::HugePage);
    }
    Ok(map)
}

/// Whether the system would lock as much as the budget: asked before any row comes, so that a limit
/// that is too low is told when a store is opened.
pub(crate) fn check_lockable(memory: MemoryUse) -> io::Result<()> {
    if !memory.lock {
        return Ok(());
    }
    let map = map(memory.budget_bytes, memory)?;
    lock(map.as_ptr().cast_mut(), 0..map.len(), memory) // nothing is touched, and it ends here
}

/// Locks the pages that these bytes of a mapping lie in, where that is wanted. Those that are not
/// there yet are locked when they come.
pub(crate) fn lock_part(map: &MmapMut, bytes: Range<usize>, memory: MemoryUse) -> io::Result<()> {
    assert!(bytes.end <= map.len(), "bytes {bytes:?} of {}", map.len());
    lock(map.as_ptr().cast_mut(), bytes, memory)
}

/// Gives the pages of these bytes of a mapping back, which nobody needs any more and which are
/// zeros from now on; behind `bytes` there is nothing either, up to the mapping's end.
pub(crate) fn give_back_part(map: &mut MmapMut, bytes: Range<usize>, memory: MemoryUse) {
    assert!(bytes.end <= map.len(), "bytes {bytes:?} of {}", map.len());
    let (base, end) = (map.as_mut_ptr(), map.len());
    give_back(base, bytes, end, memory);
}

pub(super) fn lock(base: *mut u8, bytes: Range<usize>, memory: MemoryUse) -> io::Result<()> {
    if !memory.lock || bytes.is_empty() {
        return Ok(());
    }
    let (begin, end) = (bytes.start / PAGE_BYTES * PAGE_BYTES, bytes.end);
    // SAFETY: the callers' bytes are in their mapping, which has whole pages; locking changes no
    // byte of it.
    unsafe { mm::mlock_with(base.wrapping_add(begin).cast(), end - begin, MlockFlags::ONFAULT) }?;
    Ok(())
}

/// Gives pages back. The callers see to it that the bytes, and those behind them up to `end`, are
/// in the mapping at `base` and that nobody has anything in them, nor will read what was there.
pub(super) fn give_back(base: *mut u8, bytes: Range<usize>, end: usize, memory: MemoryUse) {
    // a part of a huge page would split it
    let unit = if memory.huge_pages() { HUGE_PAGE_BYTES } else { PAGE_BYTES };
    let address = base as usize;
    let begin = (address + bytes.start).next_multiple_of(unit);
    // what was given back before ended in the page that this ends in
    let end =
        (address + bytes.end).next_multiple_of(unit).min((address + end) / PAGE_BYTES * PAGE_BYTES);
    if begin >= end {
        return;
    }
    let (begin, length) = (base.wrapping_add(begin - address), end - begin);
    // SAFETY: whole pages of the mapping, in which nobody has anything (the callers' promise).
    let given = unsafe {
        let unlocked = if memory.lock { mm::munlock(begin.cast(), length) } else { Ok(()) };
        unlocked.and_then(|()| mm::madvise(begin.cast(), length, mm::Advice::LinuxDontNeed))
    };
    if let Err(error) = given {
        tracing::warn!(%error, length, "memory can't be given back to the system");
    }
}
