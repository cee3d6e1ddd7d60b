//! Rows exchanged with a caller that has its floats in ordinary memory: gathered from wherever they
//! lie into a pinned buffer and handed over from there, and updated by gradients on the same way
//! up. It works in pieces of a fixed size, in a stream of its own, and returns when all is done. A
//! caller whose floats are on the device needs none of it.
#![allow(unsafe_code)]

use std::sync::Arc;

use table::Optimizer;

use crate::device::{Device, Stream};
use crate::list::List;
use crate::{Error, Kernels, Result, Rows};

/// Rows of one launch, at most.
const LAUNCH_ROWS: usize = 64 << 10;
/// Floats of one launch, at most: 4 MiB.
const LAUNCH_FLOATS: usize = 1 << 20;

/// A stream and pinned buffers.
#[derive(Debug)]
pub struct Exchange {
    kernels: Arc<Kernels>,
    stream: Stream,
    addresses: List<u64>,
    states: List<u64>,
    floats: List<f32>,
    failed: Option<Error>, // after it the lists may still be in use
}

impl Exchange {
    /// An exchange of a device, with pinned memory of 5 MiB.
    pub fn new(device: &Device, kernels: Arc<Kernels>) -> Result<Self> {
        Ok(Self {
            kernels,
            stream: device.stream()?,
            addresses: List::new(device, LAUNCH_ROWS)?,
            states: List::new(device, LAUNCH_ROWS)?,
            floats: List::new(device, LAUNCH_FLOATS)?,
            failed: None,
        })
    }

    /// `out[i]` is the row of so many floats at `addresses[i]`; what stands at address 0 is not
    /// said. out: [addresses, floats]
    ///
    /// # Safety
    /// The addresses lead to rows of that length that the device reaches and that nobody writes
    /// until this returns.
    pub unsafe fn gather(&mut self, floats: u32, addresses: &[u64], out: &mut [f32]) -> Result<()> {
        let width = floats as usize;
        let rows_max = self.begin(width, addresses.len(), out.len())?;
        for (addresses, out) in addresses.chunks(rows_max).zip(out.chunks_mut(rows_max * width)) {
            // SAFETY: no work of the exchange is under way between its launches.
            unsafe { self.addresses.set(addresses) };
            let outcome = self.addresses.first(addresses.len()).and_then(|list| {
                // SAFETY: the caller's promises are passed on.
                let rows = unsafe { Rows::at(list, floats) };
                self.kernels.gather(&self.stream, &rows, &self.floats.first(out.len())?)?;
                self.stream.finish()
            });
            self.noted(outcome)?;
            // SAFETY: the work is done.
            out.copy_from_slice(&unsafe { self.floats.values() }[..out.len()]);
        }
        Ok(())
    }

    /// One step of the optimizer for each row of so many floats at `addresses`, whose state is at
    /// `states`: empty where the optimizer has none. Rows at address 0 are left out. gradients:
    /// [addresses, floats]
    ///
    /// # Safety
    /// The addresses, but for 0, are distinct and lead to rows and states of their lengths that the
    /// device reaches and that nobody else reads or writes until this returns.
    pub unsafe fn update(
        &mut self,
        optimizer: &Optimizer,
        floats: u32,
        addresses: &[u64],
        states: &[u64],
        gradients: &[f32],
        rate: f32,
    ) -> Result<()> {
        let width = floats as usize;
        let rows_max = self.begin(width, addresses.len(), gradients.len())?;
        let state_floats = optimizer.state_floats(width) as u32;
        let expected = if state_floats == 0 { 0 } else { addresses.len() as u64 };
        let found = states.len() as u64;
        if found != expected {
            return Err(Error::Length { what: "optimizer states", found, expected });
        }
        let (mut rest, mut states) = (gradients, states);
        for addresses in addresses.chunks(rows_max) {
            let (gradients, after) = rest.split_at(addresses.len() * width);
            let (some, states_after) = states.split_at(addresses.len().min(states.len()));
            (rest, states) = (after, states_after);
            // SAFETY: no work of the exchange is under way between its launches.
            unsafe {
                self.addresses.set(addresses);
                self.states.set(some);
                self.floats.set(gradients);
            }
            let outcome = self.addresses.first(addresses.len()).and_then(|list| {
                let gradients = self.floats.first(gradients.len())?;
                // SAFETY: the caller's promises are passed on.
                let (rows, states) = unsafe {
                    let states = Rows::at(self.states.first(some.len())?, state_floats);
                    (Rows::at(list, floats), states)
                };
                let states = (state_floats > 0).then_some(&states);
                self.kernels.update(&self.stream, optimizer, &rows, states, &gradients, rate)?;
                self.stream.finish()
            });
            self.noted(outcome)?;
        }
        Ok(())
    }

    /// Checks the shape, and tells how many rows go at once.
    fn begin(&self, width: usize, rows: usize, floats: usize) -> Result<usize> {
        self.failed.clone().map_or(Ok(()), Err)?;
        let (found, expected) = (floats as u64, (rows * width) as u64);
        if found != expected {
            return Err(Error::Length { what: "floats of exchanged rows", found, expected });
        }
        let rows_max = (LAUNCH_FLOATS / width.max(1)).min(LAUNCH_ROWS);
        if rows_max == 0 {
            let (found, expected) = (width as u64, LAUNCH_FLOATS as u64);
            return Err(Error::Length { what: "floats of a row", found, expected });
        }
        Ok(rows_max)
    }

    fn noted(&mut self, outcome: Result<()>) -> Result<()> {
        if let Err(error) = &outcome {
            self.failed = Some(error.clone());
        }
        outcome
    }
}
