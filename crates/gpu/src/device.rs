//! A device that is open: its context, streams in which work is ordered, and events between them.
//! It holds no memory and knows no kernel.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::{self, ThreadId};

use cudarc::driver::{result, sys};

use crate::probe::{Description, probe, said as said_no_device};
use crate::{Error, NoDevice, Result};

/// An open device. Its copies are the same device; it is closed when the last of them, and of what
/// was made from them, is dropped.
#[derive(Debug, Clone)]
pub struct Device {
    pub(crate) context: Arc<Context>,
    description: Description,
}

impl Device {
    /// Opens the device of that number. Without CUDA, or without that device, it says so.
    pub fn open(ordinal: u32) -> std::result::Result<Self, NoDevice> {
        let devices = probe()?;
        let count = devices.len();
        let found = devices.into_iter().find(|device| device.ordinal == ordinal);
        let description = found.ok_or(NoDevice::NoSuchDevice { ordinal, devices: count })?;
        let number = i32::try_from(ordinal).expect("the driver counts devices in an int");
        let device = said_no_device("cuDeviceGet", result::device::get(number))?;
        // SAFETY: `device` comes from the driver just above.
        let raw = unsafe { result::primary_ctx::retain(device) };
        let raw = said_no_device("cuDevicePrimaryCtxRetain", raw)?;
        let recording = Recording::of(device);
        let context = Arc::new(Context { device, raw, recording });
        Ok(Self { context, description })
    }

    /// What was known of it before it was opened.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Bytes of its memory that nobody has taken, ourselves and others alike.
    pub fn free_bytes(&self) -> Result<u64> {
        self.context.enter()?;
        let (free, _) = said("cuMemGetInfo", result::mem_get_info())?;
        Ok(free as u64)
    }

    /// Waits for all work that this process has ordered, and says whether any of it failed.
    pub fn finish(&self) -> Result<()> {
        self.context.settle()
    }

    /// A new stream: work in it runs in order, beside the work of other streams.
    pub fn stream(&self) -> Result<Stream> {
        self.context.enter()?;
        let kind = result::stream::StreamKind::NonBlocking;
        let raw = said("cuStreamCreate", result::stream::create(kind))?;
        Ok(Stream { context: Arc::clone(&self.context), raw })
    }

    /// A new event, which nothing has recorded yet.
    pub fn event(&self) -> Result<Event> {
        self.context.enter()?;
        let flags = sys::CUevent_flags::CU_EVENT_DEFAULT; // with times
        let raw = said("cuEventCreate", result::event::create(flags))?;
        Ok(Event { context: Arc::clone(&self.context), raw, lent: false })
    }
}

/// The driver's context of a device, shared by all that lives in it.
#[derive(Debug)]
pub(crate) struct Context {
    device: sys::CUdevice,
    raw: sys::CUcontext,
    pub(crate) recording: Arc<Recording>,
}

// SAFETY: the driver's context handles may be used from any thread, each of which enters first.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Makes it the calling thread's context: the driver's calls work on that one.
    pub(crate) fn enter(&self) -> Result<()> {
        // SAFETY: it was retained in `Device::open` and is released in `drop` alone.
        said("cuCtxSetCurrent", unsafe { result::ctx::set_current(self.raw) })
    }

    /// Whether the device lets other processes have its memory and events.
    pub(crate) fn can_share(&self) -> Result<()> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_IPC_EVENT_SUPPORTED;
        // SAFETY: the device is the driver's.
        let answer = unsafe { result::device::get_attribute(self.device, attribute) };
        match said("cuDeviceGetAttribute", answer)? {
            0 => Err(Error::NotShared),
            _ => Ok(()),
        }
    }

    /// Waits for all work of the device that this process has ordered.
    pub(crate) fn settle(&self) -> Result<()> {
        let _turn = self.recording.no_other();
        self.enter()?;
        said("cuCtxSynchronize", result::ctx::synchronize())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once, released once; what lives in it holds it, so nothing is left.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Whether a stream of a device is recorded. Whoever waits for the whole device meanwhile, on
/// whichever thread, is refused, and spoils the recording: so they take turns. A wait for a stream
/// or an event is no such wait.
#[derive(Debug, Default)]
pub(crate) struct Recording {
    /// Guards: exclusively, a recording; shared, a wait for the whole device. Taken after all
    /// other locks, none of which is taken while it is held.
    turn: RwLock<()>,
    /// Guards: who records. Held for moments.
    by: Mutex<Option<ThreadId>>,
}

/// A recording's turn.
#[derive(Debug)]
pub(crate) struct RecordingTurn<'a> {
    recording: &'a Recording,
    _turn: RwLockWriteGuard<'a, ()>,
}

impl Recording {
    /// That of a device: of the process, as the context that it is about is, however often the
    /// device was opened.
    fn of(device: sys::CUdevice) -> Arc<Self> {
        static OF_DEVICES: Mutex<BTreeMap<sys::CUdevice, Arc<Recording>>> =
            Mutex::new(BTreeMap::new());
        let mut all = OF_DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry(device).or_default())
    }

    /// Begins one when no other is under way and nobody waits for the whole device.
    pub(crate) fn begin(&self) -> RecordingTurn<'_> {
        let turn = self.turn.write().unwrap_or_else(PoisonError::into_inner);
        *self.by.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread::current().id());
        RecordingTurn { recording: self, _turn: turn }
    }

    /// Waits until no other thread records, and holds it so. The thread that records would wait for
    /// itself: the driver tells it what is wrong.
    fn no_other(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let by = *self.by.lock().unwrap_or_else(PoisonError::into_inner);
        (by != Some(thread::current().id()))
            .then(|| self.turn.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for RecordingTurn<'_> {
    fn drop(&mut self) {
        *self.recording.by.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Work in order.
#[derive(Debug)]
pub struct Stream {
    pub(crate) context: Arc<Context>,
    pub(crate) raw: sys::CUstream,
}

// SAFETY: the driver's stream handles may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// Waits until all work so far is done, and says whether any of it failed.
    pub fn finish(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the stream lives until `drop`.
        said("cuStreamSynchronize", unsafe { result::stream::synchronize(self.raw) })
    }

    /// The event happens when the work so far is done.
    pub fn record(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        // SAFETY: both live until they are dropped.
        said("cuEventRecord", unsafe { result::event::record(event.raw, self.raw) })
    }

    /// Work from here on waits, on the device, for what the event was last recorded after.
    pub fn wait_for(&self, event: &Event) -> Result<()> {
        self.context.enter()?;
        let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live until they are dropped.
        said("cuStreamWaitEvent", unsafe { result::stream::wait_event(self.raw, event.raw, flags) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: made by `Device::stream`, destroyed here alone. The driver lets work that is
            // under way end first.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// A moment in a stream.
#[derive(Debug)]
pub struct Event {
    pub(crate) context: Arc<Context>,
    pub(crate) raw: sys::CUevent,
    lent: bool, // somebody else destroys it
}

// SAFETY: the driver's event handles may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn of(context: &Arc<Context>, raw: sys::CUevent) -> Self {
        Self { context: Arc::clone(context), raw, lent: false }
    }

    /// An event that somebody else in this process has, by its [`Self::word`].
    ///
    /// # Safety
    /// The event stands, on this device, for as long as the value is used.
    pub unsafe fn lent(device: &Device, word: u64) -> Self {
        let raw = std::ptr::with_exposed_provenance_mut(word as usize);
        Self { context: Arc::clone(&device.context), raw, lent: true }
    }

    /// Its handle, for [`Self::lent`].
    pub fn word(&self) -> u64 {
        self.raw.expose_provenance() as u64
    }

    /// Whether it has happened, as it was recorded last; waits for nothing. One that was never
    /// recorded has.
    pub fn has_happened(&self) -> Result<bool> {
        self.context.enter()?;
        // SAFETY: the event lives until `drop`.
        match unsafe { result::event::query(self.raw) } {
            Err(error) if error.0 == sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            answer => said("cuEventQuery", answer).map(|()| true),
        }
    }

    /// Waits until it has happened.
    pub fn finish(&self) -> Result<()> {
        self.context.enter()?;
        // SAFETY: the event lives until `drop`.
        said("cuEventSynchronize", unsafe { result::event::synchronize(self.raw) })
    }

    /// Seconds from an earlier event to this one, on the device's clock; both have happened.
    pub fn seconds_since(&self, earlier: &Event) -> Result<f64> {
        self.context.enter()?;
        // SAFETY: both live until they are dropped.
        let ms = unsafe { result::event::elapsed(earlier.raw, self.raw) };
        Ok(f64::from(said("cuEventElapsedTime", ms)?) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if !self.lent && self.context.enter().is_ok() {
            // SAFETY: made or opened by `Device`, destroyed here alone.
            let _ = unsafe { result::event::destroy(self.raw) };
        }
    }
}

pub(crate) fn said<T>(
    call: &'static str,
    answer: std::result::Result<T, result::DriverError>,
) -> Result<T> {
    answer.map_err(|error| Error::Driver { call, code: format!("{:?}", error.0) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_that_device_says_so() {
        let refused = Device::open(4096).unwrap_err();
        match probe() {
            Ok(devices) => {
                let devices = devices.len();
                assert_eq!(refused, NoDevice::NoSuchDevice { ordinal: 4096, devices });
            }
            Err(reason) => assert_eq!(refused, reason),
        }
    }
}
