//! A stretch of a file as bytes that are not copied. What they are is the reader's business.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use memmap2::{Mmap, MmapOptions};

/// Maps `length` bytes of a file from byte `at` on, all pages at once.
///
/// A file that somebody cuts short while it is mapped ends the process (SIGBUS) where its lost
/// pages are touched. The writer never does: a cache gets its name when it is whole.
pub(super) fn map(file: &File, at: u64, length: usize) -> io::Result<Mmap> {
    // SAFETY: the bytes are only read, and decoded with every index checked after their sum was
    // found right. Nobody writes to a file that bears a cache's name: it was renamed to it.
    unsafe { MmapOptions::new().offset(at).len(length).populate().map(file) }
}
