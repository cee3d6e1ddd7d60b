//! What a device knows of an arena: which of its rows are in the device's memory, and at which
//! address the others are reached. Pages are registered with the driver a chunk at a time, when the
//! first of their rows is asked for, and stay so as long as the arena. It moves no row.

use std::io;

use gpu::{Device, Registered};
use memmap2::MmapRaw;

use super::pages::PAGE_BYTES;
use super::{Arena, MemoryUse, Row, bit, map};
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Pages that are registered together: this share of the budget, but no fewer and no more bytes.
const CHUNK_SHARE: usize = 256;
const CHUNK_BYTES_MIN: usize = 64 << 10;
const CHUNK_BYTES_MAX: usize = 16 << 20;

/// Kept beside an arena's mappings, and dropped before them.
pub(super) struct Reach {
    /// Guards: what is registered, of the embeddings and of what lies beside them. Held for
    /// moments, but for the driver's pinning of a chunk.
    registered: Mutex<[Chunks; 2]>,
    on_device: MmapRaw, // [rows / 64] AtomicU64
    chunk_bytes: usize,
}

/// The chunks of one mapping.
#[derive(Default)]
struct Chunks(Vec<Option<Registered<'static>>>);

impl Reach {
    /// Nothing is registered yet, and no row is on a device.
    pub(super) fn reserve(rows: u64, memory: MemoryUse) -> io::Result<Self> {
        let chunk = memory.budget_bytes / CHUNK_SHARE;
        Ok(Self {
            registered: Mutex::new(<[Chunks; 2]>::default()),
            on_device: map(rows.div_ceil(64) as usize * size_of::<u64>(), memory)?.into(),
            chunk_bytes: chunk.next_power_of_two().clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX),
        })
    }

    /// The bits that say which rows are on a device.
    pub(super) fn words(&self) -> &MmapRaw {
        &self.on_device
    }

    /// Whether a device has registered any pages.
    pub(super) fn is_registered(&self) -> bool {
        self.registered.lock().iter().any(|chunks| !chunks.0.is_empty())
    }
}

impl Arena {
    /// Sees to it that the device reaches these rows where they lie.
    pub(crate) fn reach(
        &self,
        device: &Device,
        rows: impl Iterator<Item = Row>,
    ) -> gpu::Result<()> {
        let mut registered = self.reach.registered.lock();
        let [embeddings, beside] = &mut *registered;
        let chunk_bytes = self.reach.chunk_bytes;
        let (row_bytes, beside_bytes) =
            (self.layout.dim * size_of::<f32>(), self.layout.beside() * size_of::<f32>());
        for row in rows {
            self.check(&[row]);
            let number = row.0 as usize;
            embeddings.cover(
                &self.embeddings,
                device,
                chunk_bytes,
                number * row_bytes,
                row_bytes,
            )?;
            if beside_bytes > 0 {
                let begin = number * beside_bytes;
                beside.cover(&self.beside, device, chunk_bytes, begin, beside_bytes)?;
            }
        }
        Ok(())
    }

    /// Where a row's embedding is, for a device that reaches it.
    pub(crate) fn embedding_address(&self, row: Row) -> u64 {
        self.embedding(row) as u64
    }

    /// Where its optimizer state is, if it has any.
    pub(crate) fn state_address(&self, row: Row) -> u64 {
        self.beside_of(row) as u64
    }

    /// Whether the row's newest version may be in the device's memory: if not, it is here.
    pub(crate) fn is_on_device(&self, row: Row) -> bool {
        self.device_word(row).load(Ordering::Acquire) & bit(row) != 0
    }

    pub(crate) fn set_on_device(&self, row: Row, yes: bool) {
        if yes {
            self.device_word(row).fetch_or(bit(row), Ordering::Release);
        } else {
            self.device_word(row).fetch_and(!bit(row), Ordering::Release);
        }
    }

    fn device_word(&self, row: Row) -> &AtomicU64 {
        assert!(row.0 < self.rows, "row {} lies outside its arena", row.0);
        let words = self.reach.on_device.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping has a word for every 64 rows, page-aligned, and is only ever accessed
        // as atomics, for which any bits are valid.
        unsafe { &*words.wrapping_add(row.0 as usize / 64) }
    }
}

impl Chunks {
    /// Registers the chunks of these bytes, those that are not yet.
    fn cover(
        &mut self,
        mapping: &MmapRaw,
        device: &Device,
        chunk_bytes: usize,
        begin: usize,
        bytes: usize,
    ) -> gpu::Result<()> {
        for chunk in begin / chunk_bytes..=(begin + bytes - 1) / chunk_bytes {
            if self.0.len() <= chunk {
                self.0.resize_with(chunk + 1, || None);
            }
            if self.0[chunk].is_some() {
                continue;
            }
            let start = chunk * chunk_bytes;
            let length = chunk_bytes.min(mapping.len().next_multiple_of(PAGE_BYTES) - start);
            let host = mapping.as_mut_ptr().wrapping_add(start);
            // SAFETY: the pages are the mapping's, which is dropped after what is registered of it;
            // who reads and writes a row, and when, is ordered by `device`.
            let registered = unsafe { Registered::new(device, host, length as u64) }?;
            let (found, expected) = (registered.address(), host as u64);
            if found != expected {
                return Err(gpu::Error::HostElsewhere { found, expected });
            }
            self.0[chunk] = Some(registered);
        }
        Ok(())
    }
}
