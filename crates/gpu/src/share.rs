//! Device memory and events that another process has too, on the same device: handles are made
//! here, travel as bytes, and are opened there. No stream waits for an event of another process
//! that has not happened: a process that is killed takes with it what it had recorded, and who
//! waited on the device would wait forever. The host looks, and may give up.
#![allow(unsafe_code)]

use std::ffi::c_char;
use std::time::{Duration, Instant};

use cudarc::driver::sys;
use table::{DeviceHandle, SharedBytes};

use crate::device::{Device, Event, said};
use crate::memory::{Buffer, Memory};
use crate::{Error, Result};

/// The driver gives out smaller pieces of memory from blocks of this size, and a handle opens the
/// whole block: what is shared is a multiple, so that a handle opens nothing else.
const BLOCK_BYTES: u64 = 2 << 20;
/// How long a look for an event goes on without rest: about what a launch takes.
const RESTLESS: Duration = Duration::from_micros(50);
/// The rest between two looks after that.
const REST: Duration = Duration::from_micros(20);

impl Memory {
    /// Takes at least that many bytes, buffers of which other processes may have.
    pub fn take_shared(device: &Device, budget_bytes: u64) -> Result<Self> {
        Self::take(device, budget_bytes.max(1).next_multiple_of(BLOCK_BYTES))
    }
}

impl Buffer {
    /// A handle of it for other processes. It is of [`Memory::take_shared`], and outlives what they
    /// open: memory that is freed while they have it open does what it will.
    pub fn share(&self) -> Result<SharedBytes> {
        self.context().enter()?;
        let (first, whole) = self.whole();
        if !whole.is_multiple_of(BLOCK_BYTES) {
            let (what, found) = ("memory to be shared, not of `Memory::take_shared`", whole);
            return Err(Error::Length { what, found, expected: BLOCK_BYTES });
        }
        self.context().can_share()?;
        let mut handle = sys::CUipcMemHandle { reserved: [0; 64] };
        // SAFETY: the address is where a block begins, which the buffer keeps.
        let answer = unsafe { sys::cuIpcGetMemHandle(&raw mut handle, first) };
        said("cuIpcGetMemHandle", answer.result())?;
        Ok(SharedBytes {
            memory: handle.reserved.map(|byte| byte as u8),
            offset: self.address() - first,
            bytes: self.bytes(),
        })
    }
}

impl Event {
    /// A handle of it for other processes. It was made by [`Device::shared_event`], and outlives
    /// what they do with it.
    pub fn share(&self) -> Result<DeviceHandle> {
        self.context.can_share()?;
        self.context.enter()?;
        let mut handle = sys::CUipcEventHandle { reserved: [0; 64] };
        // SAFETY: the event lives.
        let answer = unsafe { sys::cuIpcGetEventHandle(&raw mut handle, self.raw) };
        said("cuIpcGetEventHandle", answer.result())?;
        Ok(handle.reserved.map(|byte| byte as u8))
    }

    /// Looks until it has happened, or until whoever recorded it is given up, which is asked now
    /// and then; false if it was.
    pub fn look(&self, mut given_up: impl FnMut() -> bool) -> Result<bool> {
        let begun = Instant::now();
        loop {
            if self.has_happened()? {
                return Ok(true);
            }
            if begun.elapsed() < RESTLESS {
                std::hint::spin_loop();
                continue;
            }
            if given_up() {
                return self.has_happened();
            }
            std::thread::sleep(REST);
        }
    }
}

impl Device {
    /// Whether other processes may have its memory and events.
    pub fn shares(&self) -> bool {
        self.context.can_share().is_ok()
    }

    /// An event that other processes may have; it knows no times.
    pub fn shared_event(&self) -> Result<Event> {
        self.context.can_share()?;
        self.context.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_INTERPROCESS as u32
            | sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        let mut raw = std::ptr::null_mut();
        // SAFETY: it writes one handle.
        let answer = unsafe { sys::cuEventCreate(&raw mut raw, flags) };
        said("cuEventCreate", answer.result())?;
        Ok(Event::of(&self.context, raw))
    }

    /// The bytes that another process shares. They are closed when the last buffer over them is
    /// dropped, and stay until then, whatever becomes of that process.
    pub fn open_buffer(&self, shared: &SharedBytes) -> Result<Buffer> {
        self.context.enter()?;
        let handle = sys::CUipcMemHandle { reserved: shared.memory.map(|byte| byte as c_char) };
        let flags = sys::CUipcMem_flags::CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS as u32;
        let mut address = 0;
        // SAFETY: it writes one address. Whether any bytes are a handle the driver says.
        let answer = unsafe { sys::cuIpcOpenMemHandle_v2(&raw mut address, handle, flags) };
        opened("cuIpcOpenMemHandle", answer)?;
        // SAFETY: opened just above, once more than closed.
        let whole = unsafe { Buffer::opened(&self.context, address) }?;
        whole.part(shared.offset, shared.bytes)
    }

    /// The event that another process shares.
    pub fn open_event(&self, shared: &DeviceHandle) -> Result<Event> {
        self.context.enter()?;
        let handle = sys::CUipcEventHandle { reserved: shared.map(|byte| byte as c_char) };
        let mut raw = std::ptr::null_mut();
        // SAFETY: it writes one handle. As for memory.
        let answer = unsafe { sys::cuIpcOpenEventHandle(&raw mut raw, handle) };
        opened("cuIpcOpenEventHandle", answer)?;
        Ok(Event::of(&self.context, raw))
    }
}

fn opened(call: &'static str, answer: sys::CUresult) -> Result<()> {
    if answer == sys::CUresult::CUDA_ERROR_INVALID_CONTEXT {
        return Err(Error::OwnHandle);
    }
    said(call, answer.result())
}
