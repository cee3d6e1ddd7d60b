//! Pinned memory on its way up to a device or down from it: the host touches it only while no copy
//! is under way. It does not order copies against the work that reads or writes the device's side.
#![allow(unsafe_code)]

use bytemuck::Pod;

use crate::device::{Device, Event, Stream};
use crate::memory::{Buffer, pinned};
use crate::{Error, Result};

/// Pinned memory that the host writes and a device reads.
#[derive(Debug)]
pub struct Upload {
    buffer: Buffer,
    sent: Event,
    sent_bytes: u64, // from the start on, some of which may be under way
}

/// Pinned memory that a device writes and the host reads.
#[derive(Debug)]
pub struct Download {
    buffer: Buffer,
    received: Event,
}

impl Upload {
    /// Takes that many bytes of pinned memory, at least one.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let (buffer, sent) = (pinned(device, bytes.max(1))?, device.event()?);
        Ok(Self { buffer, sent, sent_bytes: 0 })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.buffer.bytes()
    }

    /// So many values from a byte on, to be written. Where they begin before the end of what was
    /// sent, it waits for all copies.
    pub fn values<T: Pod>(&mut self, offset: u64, count: usize) -> Result<&mut [T]> {
        if offset < self.sent_bytes {
            self.sent.finish()?;
            self.sent_bytes = 0;
        }
        let at = within::<T>(&self.buffer, offset, count)?;
        // SAFETY: the values lie within pinned memory that nobody else has; copies of them have
        // ended, for all that were sent lie before them, and the next one is ordered through
        // `&mut self`, when the slice is gone. Any bytes are a value of T.
        Ok(unsafe { std::slice::from_raw_parts_mut(at.cast(), count) })
    }

    /// Copies bytes from `offset` on into the first bytes of `to`, in order with the stream's work,
    /// which is always the same stream.
    pub fn send(&mut self, stream: &Stream, offset: u64, bytes: u64, to: &Buffer) -> Result<()> {
        if bytes > 0 {
            let (from, to) = (self.buffer.part(offset, bytes)?, to.part(0, bytes)?);
            to.copy_from(stream, &from)?;
        }
        self.sent_bytes = self.sent_bytes.max(offset + bytes);
        stream.record(&self.sent)
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let _ = self.sent.finish(); // the memory waits for the device too
    }
}

impl Download {
    /// Takes that many bytes of pinned memory, at least one.
    pub fn new(device: &Device, bytes: u64) -> Result<Self> {
        let (buffer, received) = (pinned(device, bytes.max(1))?, device.event()?);
        Ok(Self { buffer, received })
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.buffer.bytes()
    }

    /// Copies the first bytes of `from` to the bytes from `offset` on, in order with the stream's
    /// work.
    pub fn receive(
        &mut self,
        stream: &Stream,
        from: &Buffer,
        offset: u64,
        bytes: u64,
    ) -> Result<()> {
        if bytes > 0 {
            self.buffer.part(offset, bytes)?.copy_from(stream, &from.part(0, bytes)?)?;
        }
        stream.record(&self.received)
    }

    /// So many values from a byte on. Waits for copies that are under way.
    pub fn values<T: Pod>(&mut self, offset: u64, count: usize) -> Result<&[T]> {
        self.received.finish()?;
        let at = within::<T>(&self.buffer, offset, count)?;
        // SAFETY: as in `Upload::values`; copies into it have ended.
        Ok(unsafe { std::slice::from_raw_parts(at.cast(), count) })
    }
}

/// Where so many values begin for the host.
fn within<T>(buffer: &Buffer, offset: u64, count: usize) -> Result<*mut u8> {
    let bytes = (count as u64).saturating_mul(size_of::<T>() as u64);
    let part = buffer.part(offset, bytes)?;
    let at = part.host().expect("it is pinned memory");
    if !at.addr().is_multiple_of(align_of::<T>()) {
        let (what, expected) = ("alignment of pinned values", align_of::<T>() as u64);
        return Err(Error::Length { what, found: offset, expected });
    }
    Ok(at)
}
