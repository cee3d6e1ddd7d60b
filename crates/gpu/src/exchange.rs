//! Rows exchanged with a caller that has its floats in ordinary memory: gathered from wherever
//! they lie into a pinned buffer and handed over from there, and updated by gradients on the same
//! way up; rows of several lengths and rules in one launch. It works in pieces of a fixed size, in
//! a stream of its own, and returns when all is done. A caller whose floats are on the device
//! needs none of it.
#![allow(unsafe_code)]

use std::sync::Arc;

use table::Optimizer;

use crate::device::{Device, Stream};
use crate::list::List;
use crate::module::Value;
use crate::{Error, Kernels, Result, Rows};

/// Rows of one launch, at most.
const LAUNCH_ROWS: usize = 64 << 10;
/// Floats of one launch, at most: 4 MiB.
const LAUNCH_FLOATS: usize = 1 << 20;
/// Runs of one launch, at most.
const LAUNCH_RUNS: usize = 1 << 10;

/// Rows of one length that are gathered, among others.
#[derive(Debug, Clone, Copy)]
pub struct RowsGathered<'a> {
    /// Floats of each.
    pub floats: u32,
    /// Where they are; 0 for a row that there is not.
    pub addresses: &'a [u64],
}

/// Rows of one length and one rule that are updated, among others.
#[derive(Debug, Clone, Copy)]
pub struct RowsUpdated<'a> {
    /// The rule.
    pub optimizer: &'a Optimizer,
    /// Floats of each.
    pub floats: u32,
    /// Where they are; 0 for a row that there is not.
    pub addresses: &'a [u64],
    /// Where their states are; empty where the optimizer has none.
    pub states: &'a [u64],
}

/// As the kernel has it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct GatherRun {
    pub begin: u64, // part of a row, of all
    pub floats: u64,
    pub row: u32,
    pub parts: u32, // of a row
    pub by_four: u32,
    pub unused: u32,
}

/// As the kernel has it.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct UpdateRun {
    floats: u64,
    begin: u32, // row
    dim: u32,
    rule: u32,
    beta1: f32,
    beta2: f32,
    eps: f32,
}

/// What a launch has so far.
#[derive(Debug, Default)]
struct Launch {
    runs: usize,
    rows: usize,
    floats: usize,
    parts: u64,
}

impl Launch {
    /// How many more rows of so many floats it has room for.
    fn room(&self, floats: usize) -> usize {
        if self.runs == LAUNCH_RUNS {
            return 0;
        }
        (LAUNCH_ROWS - self.rows).min((LAUNCH_FLOATS - self.floats) / floats.max(1))
    }
}

/// A stream and pinned buffers.
#[derive(Debug)]
pub struct Exchange {
    kernels: Arc<Kernels>,
    stream: Arc<Stream>,
    addresses: List<u64>,
    states: List<u64>,
    floats: List<f32>,
    gathers: List<GatherRun>,
    updates: List<UpdateRun>,
    failed: Option<Error>, // after it the lists may still be in use
}

impl Exchange {
    /// An exchange of a device, with pinned memory of 5 MiB.
    pub fn new(device: &Device, kernels: Arc<Kernels>) -> Result<Self> {
        Ok(Self {
            kernels,
            stream: Arc::new(device.stream()?),
            addresses: List::new(device, LAUNCH_ROWS)?,
            states: List::new(device, LAUNCH_ROWS)?,
            floats: List::new(device, LAUNCH_FLOATS)?,
            gathers: List::new(device, LAUNCH_RUNS)?,
            updates: List::new(device, LAUNCH_RUNS)?,
            failed: None,
        })
    }

    /// The stream that it works in.
    pub fn stream(&self) -> &Arc<Stream> {
        &self.stream
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

    /// As [`Self::gather`], of rows of several lengths, one length after the other. out: all floats
    ///
    /// # Safety
    /// As for [`Self::gather`].
    pub unsafe fn gather_all(&mut self, runs: &[RowsGathered<'_>], out: &mut [f32]) -> Result<()> {
        if let [run] = runs {
            // SAFETY: the caller's promises are passed on.
            return unsafe { self.gather(run.floats, run.addresses, out) };
        }
        self.check_all(runs.iter().map(|run| (run.floats, run.addresses.len())), out.len())?;
        let (mut launch, mut rest) = (Launch::default(), out);
        for &RowsGathered { floats, addresses } in runs.iter().filter(|run| run.floats > 0) {
            let (width, mut addresses) = (floats as usize, addresses);
            while !addresses.is_empty() {
                let some = launch.room(width).min(addresses.len());
                if some == 0 {
                    // SAFETY: as above.
                    rest = unsafe { self.gather_launch(&mut launch, rest) }?;
                    continue;
                }
                let by_four = width.is_multiple_of(4) && launch.floats.is_multiple_of(4);
                let parts = if by_four { width / 4 } else { width };
                let Launch { runs: number, rows, floats, parts: begin } = launch;
                // SAFETY: no work of the exchange is under way between its launches.
                unsafe {
                    self.addresses.values()[rows..rows + some].copy_from_slice(&addresses[..some]);
                    self.gathers.values()[number] = GatherRun {
                        begin,
                        floats: floats as u64,
                        row: rows as u32,
                        parts: parts as u32,
                        by_four: u32::from(by_four),
                        unused: 0,
                    };
                }
                launch = Launch {
                    runs: number + 1,
                    rows: rows + some,
                    floats: floats + some * width,
                    parts: begin + (some * parts) as u64,
                };
                addresses = &addresses[some..];
            }
        }
        // SAFETY: as above.
        unsafe { self.gather_launch(&mut launch, rest) }.map(drop)
    }

    /// Gathers what a launch has, which begins anew, and hands it over; tells what is left of
    /// `out`.
    ///
    /// # Safety
    /// As for [`Self::gather`].
    unsafe fn gather_launch<'o>(
        &mut self,
        launch: &mut Launch,
        out: &'o mut [f32],
    ) -> Result<&'o mut [f32]> {
        let Launch { runs, floats, parts, .. } = std::mem::take(launch);
        if parts > 0 {
            let values = [
                Value::U64(self.addresses.address()),
                Value::U64(self.floats.address()),
                Value::U64(self.gathers.address()),
                Value::U32(runs as u32),
                Value::U64(parts),
            ];
            // SAFETY: the signature's values; the lists are as long as a launch says, and for the
            // rows the caller vouches.
            let outcome = unsafe { self.run("gather_tables", parts, &values) };
            self.noted(outcome)?;
        }
        let (here, rest) = out.split_at_mut(floats);
        // SAFETY: the work is done.
        here.copy_from_slice(&unsafe { self.floats.values() }[..floats]);
        Ok(rest)
    }

    /// As [`Self::update`], of rows of several lengths and rules, one after the other. gradients:
    /// all floats
    ///
    /// # Safety
    /// As for [`Self::update`].
    pub unsafe fn update_all(
        &mut self,
        runs: &[RowsUpdated<'_>],
        gradients: &[f32],
        rate: f32,
    ) -> Result<()> {
        if let [run] = runs {
            let &RowsUpdated { optimizer, floats, addresses, states } = run;
            // SAFETY: the caller's promises are passed on.
            return unsafe { self.update(optimizer, floats, addresses, states, gradients, rate) };
        }
        self.check_all(runs.iter().map(|run| (run.floats, run.addresses.len())), gradients.len())?;
        for run in runs {
            let has_state = run.optimizer.state_floats(run.floats as usize) > 0;
            let expected = if has_state { run.addresses.len() as u64 } else { 0 };
            let found = run.states.len() as u64;
            if found != expected {
                return Err(Error::Length { what: "optimizer states", found, expected });
            }
        }
        let (mut launch, mut rest) = (Launch::default(), gradients);
        for run in runs.iter().filter(|run| run.floats > 0) {
            let (width, mut done) = (run.floats as usize, 0);
            while done < run.addresses.len() {
                let some = launch.room(width).min(run.addresses.len() - done);
                if some == 0 {
                    // SAFETY: as above.
                    unsafe { self.update_launch(&mut launch, rate) }?;
                    continue;
                }
                let (own, after) = rest.split_at(some * width);
                rest = after;
                let (from, to) = (done, done + some);
                let (row, end) = (launch.rows, launch.rows + some);
                let (float, float_end) = (launch.floats, launch.floats + own.len());
                // SAFETY: no work of the exchange is under way between its launches.
                unsafe {
                    self.addresses.values()[row..end].copy_from_slice(&run.addresses[from..to]);
                    let states = &mut self.states.values()[row..end];
                    match run.states.get(from..to) {
                        Some(own) => states.copy_from_slice(own),
                        None => states.fill(0),
                    }
                    self.floats.values()[float..float_end].copy_from_slice(own);
                    self.updates.values()[launch.runs] =
                        UpdateRun::new(run.optimizer, run.floats, row as u32, float as u64);
                }
                launch = Launch { runs: launch.runs + 1, rows: end, floats: float_end, parts: 0 };
                done = to;
            }
        }
        // SAFETY: as above.
        unsafe { self.update_launch(&mut launch, rate) }
    }

    /// Updates the rows that a launch has, which begins anew.
    ///
    /// # Safety
    /// As for [`Self::update`].
    unsafe fn update_launch(&mut self, launch: &mut Launch, rate: f32) -> Result<()> {
        let Launch { runs, rows, .. } = std::mem::take(launch);
        if rows == 0 {
            return Ok(());
        }
        let values = [
            Value::U64(self.addresses.address()),
            Value::U64(self.states.address()),
            Value::U64(self.floats.address()),
            Value::U64(self.updates.address()),
            Value::U32(runs as u32),
            Value::U64(rows as u64),
            Value::F32(rate),
            Value::U64(0), // the caller has looked at the gradients
        ];
        // SAFETY: as in `gather_launch`; eight threads share a row.
        let outcome = unsafe { self.run("update_tables", rows as u64 * 8, &values) };
        self.noted(outcome)
    }

    /// Launches and waits.
    ///
    /// # Safety
    /// As for [`crate::Module::launch`].
    unsafe fn run(&self, kernel: &str, elements: u64, values: &[Value]) -> Result<()> {
        let (module, threads) = (self.kernels.module_of(kernel)?, self.kernels.threads(elements));
        // SAFETY: the caller's promises are passed on.
        unsafe { module.launch(&self.stream, kernel, threads, values) }?;
        self.stream.finish()
    }

    /// Checks that rows of those lengths have so many floats in all, and that each finds room.
    fn check_all(&self, runs: impl Iterator<Item = (u32, usize)>, floats: usize) -> Result<()> {
        self.failed.clone().map_or(Ok(()), Err)?;
        let mut all = 0;
        for (width, rows) in runs {
            let (found, expected) = (u64::from(width), LAUNCH_FLOATS as u64);
            if found > expected {
                return Err(Error::Length { what: "floats of a row", found, expected });
            }
            all += rows * width as usize;
        }
        let (found, expected) = (floats as u64, all as u64);
        if found != expected {
            return Err(Error::Length { what: "floats of exchanged rows", found, expected });
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

impl UpdateRun {
    /// Rows of so many floats from place `begin` on, whose gradients begin at `floats`.
    pub(crate) fn new(optimizer: &Optimizer, dim: u32, begin: u32, floats: u64) -> Self {
        let (rule, [beta1, beta2, eps]) = match *optimizer {
            Optimizer::Sgd => (0, [0.0; 3]),
            Optimizer::Adagrad { eps, .. } => (1, [0.0, 0.0, eps]),
            Optimizer::RowWiseAdagrad { eps, .. } => (2, [0.0, 0.0, eps]),
            Optimizer::Adam { beta1, beta2, eps } => (3, [beta1, beta2, eps]),
        };
        Self { floats, begin, dim, rule, beta1, beta2, eps }
    }
}
