//! Memory that a device reads and writes: its own, taken once as a budget and handed out from its
//! start, and the host's, pinned so that the device reaches it. It frees no part of a budget before
//! all of it.
#![allow(unsafe_code)]

use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{result, sys};

use crate::device::{Context, Device, Stream, said};
use crate::{Error, Result};

/// Every buffer begins at a multiple of it: rows are read in vectors of 16 bytes, and what the
/// library of matrix products likes best is more.
const ALIGNMENT: u64 = 256;

/// The device memory that a process may use, taken once.
#[derive(Debug)]
pub struct Memory {
    block: Arc<Block>,
    taken: u64, // bytes
}

impl Memory {
    /// Takes that many bytes of the device's memory.
    pub fn take(device: &Device, budget_bytes: u64) -> Result<Self> {
        device.context.enter()?;
        let bytes = usize::try_from(budget_bytes).expect("this is a 64-bit system");
        // SAFETY: the context is entered.
        let address = said("cuMemAlloc", unsafe { result::malloc_sync(bytes) })?;
        let context = Arc::clone(&device.context);
        Ok(Self {
            block: Arc::new(Block { context, kind: Kind::Device, address, bytes: budget_bytes }),
            taken: 0,
        })
    }

    /// The next so many bytes of the budget. What is in them is not said.
    pub fn buffer(&mut self, bytes: u64) -> Result<Buffer> {
        let left = self.left_bytes();
        let needed = bytes.checked_next_multiple_of(ALIGNMENT).unwrap_or(u64::MAX);
        if needed > left {
            return Err(Error::OutOfBudget { asked: bytes, left, budget: self.block.bytes });
        }
        let offset = self.taken;
        self.taken += needed;
        Ok(Buffer { block: Arc::clone(&self.block), offset, bytes })
    }

    /// A buffer with these values in it.
    pub fn buffer_of<T: Pod>(&mut self, values: &[T]) -> Result<Buffer> {
        let buffer = self.buffer(size_of_val(values) as u64)?;
        buffer.write(0, values)?;
        Ok(buffer)
    }

    /// Bytes that are left.
    pub fn left_bytes(&self) -> u64 {
        self.block.bytes - self.taken
    }

    /// Starts over where no buffer of the budget is held any more; else it is refused.
    pub fn clear(&mut self) -> std::result::Result<(), BuffersHeld> {
        match Arc::strong_count(&self.block) {
            1 => {
                self.taken = 0;
                Ok(())
            }
            others => Err(BuffersHeld(others - 1)),
        }
    }
}

/// How many buffers of a budget are held still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} buffers of the budget are still held")]
pub struct BuffersHeld(pub usize);

/// Pinned host memory, which the device reaches at its own address. Not write-combined: the host
/// reads it as fast as other memory.
pub fn pinned(device: &Device, bytes: u64) -> Result<Buffer> {
    device.context.enter()?;
    let size = usize::try_from(bytes).expect("this is a 64-bit system").max(1);
    let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
    // SAFETY: the context is entered.
    let host = said("cuMemHostAlloc", unsafe { result::malloc_host(size, flags) })?;
    let mut address = 0;
    // SAFETY: `host` was made just above, mapped for the device.
    let mapped = unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut address, host, 0) }.result();
    let context = Arc::clone(&device.context);
    let kind = Kind::Pinned { host: host.cast() };
    let block = Block { context, kind, address, bytes }; // frees what it has if this fails:
    said("cuMemHostGetDevicePointer", mapped)?;
    // what a host reads first must be something
    // SAFETY: `host` has `size` bytes, which nobody else knows of yet.
    unsafe { host.cast::<u8>().write_bytes(0, size) };
    Ok(Buffer { block: Arc::new(block), offset: 0, bytes })
}

/// Some bytes that the device reads and writes, its own or the host's. Copies are the same bytes.
#[derive(Debug, Clone)]
pub struct Buffer {
    block: Arc<Block>,
    offset: u64,
    bytes: u64,
}

impl Buffer {
    /// Memory of the device that somebody else in this process holds.
    ///
    /// # Safety
    /// The address leads to so many bytes of the device's memory for as long as the buffer, a copy
    /// or a part of it, or work that was ordered with one is there.
    pub unsafe fn lent(device: &Device, address: u64, bytes: u64) -> Self {
        let context = Arc::clone(&device.context);
        Self {
            block: Arc::new(Block { context, kind: Kind::Lent, address, bytes }),
            offset: 0,
            bytes,
        }
    }

    /// Where it begins, for the device.
    pub fn address(&self) -> u64 {
        self.block.address + self.offset
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is the host's memory.
    pub fn is_pinned(&self) -> bool {
        matches!(self.block.kind, Kind::Pinned { .. })
    }

    /// A part of it.
    pub fn part(&self, offset: u64, bytes: u64) -> Result<Buffer> {
        self.check(offset, bytes)?;
        Ok(Self { block: Arc::clone(&self.block), offset: self.offset + offset, bytes })
    }

    /// Writes values from byte `offset` on. Waits for all work before and for the copy.
    pub fn write<T: Pod>(&self, offset: u64, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.check(offset, bytes.len() as u64)?;
        self.block.context.settle()?;
        match self.block.kind {
            Kind::Device | Kind::Opened | Kind::Lent => {
                let at = self.address() + offset;
                // SAFETY: the bytes lie within the block, which `self` keeps.
                said("cuMemcpyHtoD", unsafe { result::memcpy_htod_sync(at, bytes) })?;
                // it returns when the values are taken: no stream waits for their way from there
                self.block.context.settle()
            }
            Kind::Pinned { host } => {
                let at = (self.offset + offset) as usize;
                // SAFETY: the bytes lie within the block; no work of the device is under way; and
                // no reference into it is ever handed out.
                unsafe { host.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                Ok(())
            }
        }
    }

    /// Reads values from byte `offset` on. Waits for all work before.
    pub fn read<T: Pod>(&self, offset: u64, values: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(values);
        self.check(offset, bytes.len() as u64)?;
        self.block.context.settle()?;
        match self.block.kind {
            Kind::Device | Kind::Opened | Kind::Lent => {
                let at = self.address() + offset;
                // SAFETY: the bytes lie within the block, which `self` keeps.
                said("cuMemcpyDtoH", unsafe { result::memcpy_dtoh_sync(bytes, at) })
            }
            Kind::Pinned { host } => {
                let at = (self.offset + offset) as usize;
                // SAFETY: as in `write`.
                unsafe { host.add(at).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
                Ok(())
            }
        }
    }

    /// Sets every byte, in order with the stream's work.
    pub fn fill(&self, stream: &Stream, byte: u8) -> Result<()> {
        stream.context.enter()?;
        // SAFETY: the bytes are the block's, which waits for the work before it is freed.
        said("cuMemsetD8Async", unsafe {
            result::memset_d8_async(self.address(), byte, self.bytes as usize, stream.raw)
        })
    }

    /// Copies the whole of another buffer of the same length here, from and to wherever they lie,
    /// in order with the stream's work.
    pub fn copy_from(&self, stream: &Stream, source: &Buffer) -> Result<()> {
        if source.bytes != self.bytes {
            let what = "source of a copy";
            return Err(Error::Length { what, found: source.bytes, expected: self.bytes });
        }
        stream.context.enter()?;
        let (to, from, bytes) = (self.address(), source.address(), self.bytes as usize);
        // SAFETY: the bytes are the blocks', which wait for the work before they are freed.
        said("cuMemcpyAsync", unsafe { sys::cuMemcpyAsync(to, from, bytes, stream.raw).result() })
    }

    /// Where it begins for the host, if it is the host's memory.
    pub(crate) fn host(&self) -> Option<*mut u8> {
        match self.block.kind {
            // SAFETY: the buffer lies within the block.
            Kind::Pinned { host } => Some(unsafe { host.add(self.offset as usize) }),
            Kind::Device | Kind::Opened | Kind::Lent => None,
        }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.block.context
    }

    /// Where what it is a part of begins, and how long that is.
    pub(crate) fn whole(&self) -> (u64, u64) {
        (self.block.address, self.block.bytes)
    }

    /// The whole of what another process shares, opened at that address.
    ///
    /// # Safety
    /// It was opened once more than it was closed.
    pub(crate) unsafe fn opened(context: &Arc<Context>, address: u64) -> Result<Self> {
        let context = Arc::clone(context);
        let mut block = Block { context, kind: Kind::Opened, address, bytes: 0 };
        let (mut first, mut bytes) = (0, 0);
        // SAFETY: it writes two numbers.
        let answer =
            unsafe { sys::cuMemGetAddressRange_v2(&raw mut first, &raw mut bytes, address) };
        said("cuMemGetAddressRange", answer.result())?; // closes it, as all that follows
        block.bytes = (first + bytes as u64).saturating_sub(address);
        let bytes = block.bytes;
        Ok(Self { block: Arc::new(block), offset: 0, bytes })
    }

    fn check(&self, offset: u64, bytes: u64) -> Result<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes => Ok(()),
            end => {
                let expected = end.unwrap_or(u64::MAX);
                Err(Error::Length { what: "buffer", found: self.bytes, expected })
            }
        }
    }
}

/// Where a block's bytes are.
#[derive(Debug)]
enum Kind {
    Device,
    Pinned {
        host: *mut u8,
    },
    /// The device's, taken by another process.
    Opened,
    /// The device's, held by somebody else.
    Lent,
}

/// What was taken from the driver in one piece, given back when no buffer is left.
#[derive(Debug)]
struct Block {
    context: Arc<Context>,
    kind: Kind,
    address: u64,
    bytes: u64,
}

// SAFETY: the host's pointer is followed in `Buffer::read` and `Buffer::write` alone.
unsafe impl Send for Block {}
// SAFETY: as above; two threads that write the same bytes of a block at once order that themselves,
// and see bytes of either, for no reference is made of them.
unsafe impl Sync for Block {}

impl Drop for Block {
    fn drop(&mut self) {
        if let Kind::Lent = self.kind {
            return;
        }
        // work that is under way may use it
        if self.context.settle().is_err() {
            return; // a failed context frees all it has when it goes
        }
        // SAFETY: made in this file by the matching call, freed here alone, with no work under way.
        let _ = unsafe {
            match self.kind {
                Kind::Device => result::free_sync(self.address),
                Kind::Pinned { host } => result::free_host(host.cast()),
                Kind::Opened => sys::cuIpcCloseMemHandle(self.address).result(),
                Kind::Lent => Ok(()),
            }
        };
    }
}

/// Memory of the host's that somebody else took, such as a tier's arena, while the device reaches
/// it.
#[derive(Debug)]
pub struct Registered<'a> {
    context: Arc<Context>,
    host: *mut u8,
    address: u64,
    bytes: u64,
    owner: std::marker::PhantomData<&'a ()>,
}

// SAFETY: the host's pointer is followed by nobody here; the driver is told of it from any thread.
unsafe impl Send for Registered<'_> {}
// SAFETY: as above.
unsafe impl Sync for Registered<'_> {}

impl<'a> Registered<'a> {
    /// Pins whole pages, so that the device reaches them at [`Registered::address`].
    ///
    /// # Safety
    /// The memory stays mapped for as long as the value lives, which `'a` has to see to, and the
    /// caller orders its own reads and writes of it against those of the device's work.
    pub unsafe fn new(device: &Device, host: *mut u8, bytes: u64) -> Result<Registered<'a>> {
        let context = Arc::clone(&device.context);
        context.enter()?;
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: the caller vouches for the memory.
        let answer = unsafe { sys::cuMemHostRegister_v2(host.cast(), bytes as usize, flags) };
        said("cuMemHostRegister", answer.result())?;
        let owner = std::marker::PhantomData;
        let mut registered = Self { context, host, address: 0, bytes, owner };
        // SAFETY: registered just above.
        let answer = unsafe {
            sys::cuMemHostGetDevicePointer_v2(&raw mut registered.address, host.cast(), 0)
        };
        said("cuMemHostGetDevicePointer", answer.result())?;
        Ok(registered)
    }

    /// Where it begins, for the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        if self.context.settle().is_ok() {
            // SAFETY: registered in `new`, with no work under way.
            let _ = unsafe { sys::cuMemHostUnregister(self.host.cast()) };
        }
    }
}
