//! Lists in pinned host memory, which the host fills and a kernel reads across the bus, or the
//! other way round. Whose turn it is the owner has to know: a list waits for nobody.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use bytemuck::Pod;

use crate::device::Device;
use crate::memory::{Buffer, pinned};
use crate::{Error, Result};

/// Some values in pinned host memory.
#[derive(Debug)]
pub(crate) struct List<T> {
    buffer: Buffer,
    host: *mut T,
    length: usize,
    values: PhantomData<T>,
}

// SAFETY: the memory is the list's own, and its values may be sent.
unsafe impl<T: Send> Send for List<T> {}

// SAFETY: what a shared list gives is its address and, by the caller's promise, values that nobody
// writes meanwhile.
unsafe impl<T: Sync> Sync for List<T> {}

impl<T: Pod> List<T> {
    /// A list of so many zeros.
    pub(crate) fn new(device: &Device, length: usize) -> Result<Self> {
        let bytes = (length * size_of::<T>()) as u64;
        let buffer = pinned(device, bytes)?;
        let missing = Error::Length { what: "a pinned list", found: 0, expected: bytes };
        let host = buffer.host().ok_or(missing)?.cast();
        Ok(Self { buffer, host, length, values: PhantomData })
    }

    /// Where the list begins, for the device.
    pub(crate) fn address(&self) -> u64 {
        self.buffer.address()
    }

    /// The first so many values, as a buffer.
    pub(crate) fn first(&self, values: usize) -> Result<Buffer> {
        self.buffer.part(0, (values * size_of::<T>()) as u64)
    }

    /// One of the values.
    ///
    /// # Safety
    /// No work of the device that writes the list is under way.
    pub(crate) unsafe fn value(&self, at: usize) -> T {
        assert!(at < self.length, "value {at} of a list of {}", self.length);
        // SAFETY: it lies within the list (checked), any bits are a `T`, and by the caller's
        // promise nobody writes it.
        unsafe { self.host.add(at).read() }
    }

    /// The values.
    ///
    /// # Safety
    /// No work of the device that reads or writes the list is under way.
    pub(crate) unsafe fn values(&mut self) -> &mut [T] {
        // SAFETY: the memory is as long and was zeroed, any bits are a `T`, the driver aligns it to
        // pages, and by the caller's promise nobody else uses it.
        unsafe { std::slice::from_raw_parts_mut(self.host, self.length) }
    }

    /// Sets the first values.
    ///
    /// # Safety
    /// As for [`Self::values`].
    pub(crate) unsafe fn set(&mut self, values: &[T]) {
        // SAFETY: the caller's promise is passed on.
        let own = unsafe { self.values() };
        own[..values.len()].copy_from_slice(values);
    }
}
