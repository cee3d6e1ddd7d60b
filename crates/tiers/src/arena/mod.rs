//! The memory that rows of one layout lie in: a mapping of embeddings and a mapping of optimizer
//! state, so that a pull touches the lines of embeddings alone, and a bit for each row that says
//! whether it changed. A row's address follows from its number; there is no allocation for a row.
//! Address space is reserved once, memory comes when rows do. It does not know which rows are
//! there; `section` does.
//!
//! The unsafe code over rows in host RAM is here and nowhere else; `device` has that over addresses
//! which go to a device. What it rests on:
//! - a row number is below [`Arena::rows`], checked on every way in, so that every address lies in
//!   the mapping;
//! - the floats of a row that the index names are read under its table's [`RowsLock`] shared, and
//!   written under it exclusively, through a staged step that pins the row;
//! - the floats of a row that is on its way in, moved or taken out belong to the one thread that
//!   does it: no staged step that may pull or push has it yet, or none any more.
#![allow(unsafe_code)]

mod kernels;
mod lanes;
mod pages;
mod reach;

use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::MmapRaw;
use table::Optimizer;

pub(crate) use kernels::all_finite;
use kernels::prefetch_address;
pub(crate) use lanes::{Kernel, Lanes, run_widest};
pub(crate) use pages::{MemoryUse, check_lockable, give_back_part, lock_part, map};
use reach::Reach;

use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The number of a row in its arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row(u64);

impl Row {
    /// No row: a key that was not admitted.
    pub(crate) const NONE: Row = Row(u64::MAX);

    pub(crate) fn new(number: u64) -> Self {
        Row(number)
    }

    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// How a row lies in memory: embedding, optimizer state, and for tables whose rows expire a stamp
/// behind the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) dim: usize,
    pub(crate) state: usize,
    pub(crate) stamped: bool,
}

impl Layout {
    /// Floats behind the embedding, the stamp's included.
    fn beside(self) -> usize {
        self.state + usize::from(self.stamped)
    }

    /// Bytes of a row in memory.
    pub(crate) fn bytes(self) -> usize {
        (self.dim + self.beside()) * size_of::<f32>()
    }
}

/// The lock over all cached rows of one table.
///
/// Guards: the floats of the table's rows. A read-write lock, for gathers run beside each other;
/// taken once a batch. Last in the lock order.
#[derive(Default)]
pub(crate) struct RowsLock(RwLock<()>);

/// Rows of a table that nobody writes while this lives.
pub(crate) struct RowsRead<'a>(#[allow(dead_code)] RwLockReadGuard<'a, ()>);

/// Rows of a table that nobody else reads or writes while this lives.
pub(crate) struct RowsWrite<'a>(#[allow(dead_code)] RwLockWriteGuard<'a, ()>);

impl RowsLock {
    pub(crate) fn read(&self) -> RowsRead<'_> {
        RowsRead(self.0.read())
    }

    pub(crate) fn write(&self) -> RowsWrite<'_> {
        RowsWrite(self.0.write())
    }
}

/// Memory for rows of one layout.
pub(crate) struct Arena {
    layout: Layout,
    rows: u64,
    reach: Reach, // dropped before the mappings, of which it has registered parts
    embeddings: MmapRaw,
    beside: MmapRaw,
    dirty: MmapRaw, // [rows / 64] AtomicU64
    memory: MemoryUse,
    unlocked: AtomicBool, // whether it was told that the system locks no more
}

impl Arena {
    /// Reserves the addresses of `rows` rows. No memory is touched until rows come.
    pub(crate) fn reserve(layout: Layout, rows: u64, memory: MemoryUse) -> io::Result<Self> {
        let bytes = |floats: usize| rows as usize * floats * size_of::<f32>();
        Ok(Self {
            layout,
            rows,
            reach: Reach::reserve(rows, memory)?,
            embeddings: map(bytes(layout.dim), memory)?.into(),
            beside: map(bytes(layout.beside()), memory)?.into(),
            dirty: map(rows.div_ceil(64) as usize * size_of::<u64>(), memory)?.into(),
            memory,
            unlocked: AtomicBool::new(false),
        })
    }

    /// Locks the memory of these rows, where that is wanted; false if the system locks no more.
    pub(crate) fn lock_rows(&self, rows: Range<u64>) -> bool {
        if !self.memory.lock {
            return true;
        }
        assert!(rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        let words = rows.start / 64 * 8..rows.end.div_ceil(64) * 8;
        let words = words.start as usize..words.end as usize;
        let parts = [
            (&self.embeddings, self.bytes_of(&rows, self.layout.dim)),
            (&self.beside, self.bytes_of(&rows, self.layout.beside())),
            (&self.dirty, words.clone()),
            (self.reach.words(), words),
        ];
        let locked = parts
            .into_iter()
            .try_for_each(|(mapping, bytes)| pages::lock(mapping.as_mut_ptr(), bytes, self.memory));
        if let Err(error) = &locked
            && !self.unlocked.swap(true, Ordering::Relaxed)
        {
            tracing::error!(%error, "the system locks no more memory: fewer rows stay in RAM");
        }
        locked.is_ok()
    }

    /// Gives the memory of these rows back to the system: rows that are vacant, as all are behind
    /// them up to `end`. A device that has registered pages of the arena keeps them.
    pub(crate) fn give_back_rows(&self, rows: Range<u64>, end: u64) {
        assert!(rows.end <= end && end <= self.rows, "rows {rows:?} up to {end} of {}", self.rows);
        if self.reach.is_registered() {
            return;
        }
        for (mapping, floats) in
            [(&self.embeddings, self.layout.dim), (&self.beside, self.layout.beside())]
        {
            let (bytes, end) = (self.bytes_of(&rows, floats), self.bytes_of(&(end..end), floats));
            pages::give_back(mapping.as_mut_ptr(), bytes, end.start, self.memory);
        }
    }

    fn bytes_of(&self, rows: &Range<u64>, floats: usize) -> Range<usize> {
        let row_bytes = floats * size_of::<f32>();
        rows.start as usize * row_bytes..rows.end as usize * row_bytes
    }

    /// Where the mappings lie: of embeddings, and of what is beside them.
    #[cfg(test)]
    #[cfg(not(feature = "shuttle"))]
    pub(crate) fn mappings(&self) -> [Range<usize>; 2] {
        [&self.embeddings, &self.beside].map(|mapping| {
            let begin = mapping.as_ptr() as usize;
            begin..begin + mapping.len()
        })
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    /// Copies the embeddings of pinned rows, one after the other. What stands at [`Row::NONE`] is
    /// left as it is. `next` are the rows that are copied after these.
    pub(crate) fn gather(
        &self,
        rows: &[Row],
        next: &[Row],
        _lock: &RowsRead<'_>,
        out: &mut [f32], // [rows, dim]
    ) {
        assert_eq!(out.len(), rows.len() * self.layout.dim, "floats of the rows");
        let job = kernels::Gather {
            base: self.embedding_base(),
            rows: self.rows,
            wanted: rows,
            next,
            out: out.as_mut_ptr(),
        };
        // SAFETY: the mapping has the floats of `self.rows` rows; the table's lock is held shared,
        // so that nobody writes those that are pinned for its steps; `out` has room for each row
        // (checked).
        let all = unsafe { kernels::gather(self.layout.dim, job) };
        assert!(all, "a row lies outside its arena");
    }

    /// Applies one gradient to each of the pinned rows; those at [`Row::NONE`] are passed over.
    pub(crate) fn update(
        &self,
        rows: &[Row],
        _lock: &RowsWrite<'_>,
        optimizer: &Optimizer,
        gradients: &[f32], // [rows, dim]
        learning_rate: f32,
    ) {
        assert_eq!(gradients.len(), rows.len() * self.layout.dim, "floats of the gradients");
        assert_eq!(optimizer.state_floats(self.layout.dim), self.layout.state, "optimizer state");
        self.check(rows);
        let (dim, beside) = (self.layout.dim, self.layout.beside());
        let embeddings = kernels::Stride { base: self.embedding_base(), floats: dim };
        let states = kernels::Stride { base: self.beside_base(), floats: beside };
        // SAFETY: every row is below `self.rows` or NONE (checked), so that its floats lie in the
        // mappings; the table's lock is held exclusively, the rows of a batch are distinct, and
        // each is let out once at a time.
        unsafe {
            kernels::update(embeddings, states, rows, optimizer, gradients, learning_rate);
        }
    }

    /// The floats of a row to write: one that is on its way in, moved, or held under its table's
    /// lock exclusively.
    ///
    /// `write` gets the embedding and the optimizer's state.
    pub(crate) fn write<T>(&self, row: Row, write: impl FnOnce(&mut [f32], &mut [f32]) -> T) -> T {
        self.check(&[row]);
        let Layout { dim, state, .. } = self.layout;
        // SAFETY: the row is in the mapping (checked); the callers are the thread that brings the
        // row in or moves it, before any step can pull it, or hold its table's lock exclusively.
        let (embedding, state) = unsafe {
            (
                std::slice::from_raw_parts_mut(self.embedding(row), dim),
                std::slice::from_raw_parts_mut(self.beside_of(row), state),
            )
        };
        write(embedding, state)
    }

    /// The floats of a row to read: one that no step may push, or under its table's lock.
    pub(crate) fn read<T>(&self, row: Row, read: impl FnOnce(&[f32], &[f32]) -> T) -> T {
        self.check(&[row]);
        let Layout { dim, state, .. } = self.layout;
        // SAFETY: the row is in the mapping (checked); the callers hold its section, which keeps
        // it from leaving, and either its table's lock, shared, or know that no staged step has
        // the row, so that none can push it.
        let (embedding, state) = unsafe {
            (
                std::slice::from_raw_parts(self.embedding(row), dim),
                std::slice::from_raw_parts(self.beside_of(row), state),
            )
        };
        read(embedding, state)
    }

    /// When the row was last staged. Only under the lock of the row's section.
    pub(crate) fn stamp(&self, row: Row) -> u32 {
        self.stamp_word(row).load(Ordering::Relaxed)
    }

    pub(crate) fn set_stamp(&self, row: Row, stamp: u32) {
        self.stamp_word(row).store(stamp, Ordering::Relaxed);
    }

    /// Copies a row to the place of another; the callers hold both rows' section and no step has
    /// either.
    pub(crate) fn relocate(&self, from: Row, to: Row) {
        self.check(&[from, to]);
        assert_ne!(from, to, "a row is moved onto itself");
        assert!(!self.is_on_device(from), "a row on the device keeps its slot");
        // SAFETY: both rows are in the mappings (checked) and distinct, so that they don't overlap;
        // no staged step has either of them, so that nobody reads or writes their floats.
        unsafe {
            let (dim, beside) = (self.layout.dim, self.layout.beside());
            std::ptr::copy_nonoverlapping(self.embedding(from), self.embedding(to), dim);
            std::ptr::copy_nonoverlapping(self.beside_of(from), self.beside_of(to), beside);
        }
        self.set_dirty(to, self.take_dirty(from));
    }

    pub(crate) fn is_dirty(&self, row: Row) -> bool {
        self.dirty_word(row).load(Ordering::Relaxed) & bit(row) != 0
    }

    /// Says that a row changed since it was last written down, or that it did not.
    pub(crate) fn set_dirty(&self, row: Row, dirty: bool) {
        let word = self.dirty_word(row);
        if dirty && word.load(Ordering::Relaxed) & bit(row) == 0 {
            word.fetch_or(bit(row), Ordering::Relaxed);
        } else if !dirty {
            word.fetch_and(!bit(row), Ordering::Relaxed);
        }
    }

    /// Whether the row was dirty; it is clean from now on, until it changes.
    pub(crate) fn take_dirty(&self, row: Row) -> bool {
        self.dirty_word(row).fetch_and(!bit(row), Ordering::Relaxed) & bit(row) != 0
    }

    fn check(&self, rows: &[Row]) {
        let sound = rows.iter().all(|row| row.0 < self.rows || *row == Row::NONE);
        assert!(sound, "a row lies outside its arena");
    }

    fn embedding_base(&self) -> *mut f32 {
        self.embeddings.as_mut_ptr().cast()
    }

    fn beside_base(&self) -> *mut f32 {
        self.beside.as_mut_ptr().cast()
    }

    fn embedding(&self, row: Row) -> *mut f32 {
        assert!(row.0 < self.rows, "row {} lies outside its arena", row.0);
        self.embedding_base().wrapping_add(row.0 as usize * self.layout.dim)
    }

    fn beside_of(&self, row: Row) -> *mut f32 {
        assert!(row.0 < self.rows, "row {} lies outside its arena", row.0);
        self.beside_base().wrapping_add(row.0 as usize * self.layout.beside())
    }

    fn stamp_word(&self, row: Row) -> &std::sync::atomic::AtomicU32 {
        assert!(self.layout.stamped, "the rows of this arena carry no stamp");
        let word = self.beside_of(row).wrapping_add(self.layout.state);
        // SAFETY: the word lies in the mapping (checked by `beside_of`), is aligned for an u32 and
        // is only ever accessed as an atomic, but for the copy of a row that moves, which its
        // section's lock orders.
        unsafe { &*word.cast() }
    }

    fn dirty_word(&self, row: Row) -> &AtomicU64 {
        assert!(row.0 < self.rows, "row {} lies outside its arena", row.0);
        let word = self.dirty.as_mut_ptr().cast::<AtomicU64>().wrapping_add(row.0 as usize / 64);
        // SAFETY: the mapping has a word for every 64 rows, page-aligned, and is only ever accessed
        // as atomics, for which any bits are valid.
        unsafe { &*word }
    }
}

fn bit(row: Row) -> u64 {
    1 << (row.0 % 64)
}

/// Asks the processor to bring in what `x` points at.
pub(crate) fn prefetch<T>(x: &T) {
    prefetch_address(std::ptr::from_ref(x).cast());
}
