//! Rows handed over to a caller on the same device: gathered from wherever they lie into its
//! buffer, and updated by the gradients that it leaves in another. Work is ordered and not waited
//! for: events say when the caller has done with its buffers, and when this has. A stage's
//! addresses go up once, in a stream of their own, ahead of its pull. A gather is one launch, and
//! so is an update, whatever the lengths and rules of the rows.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use table::Optimizer;

use crate::device::{Device, Event, Stream};
use crate::exchange::{GatherRun, UpdateRun};
use crate::launch::length;
use crate::list::List;
use crate::memory::{Buffer, Memory};
use crate::module::Value;
use crate::{Error, Kernels, Result, Rows};

/// Words of a list before the addresses: which gradient is not finite, and none.
const HEAD_WORDS: usize = 2;
/// Lists are made for a multiple of so many words, so that one serves many stages.
const BLOCK_WORDS: usize = 4096;
const FLOAT_BYTES: u64 = size_of::<f32>() as u64;
/// Words of a run, of a gather or of an update.
const RUN_WORDS: usize = 4;
const _: () = assert!(size_of::<GatherRun>() == 8 * RUN_WORDS);
const _: () = assert!(size_of::<UpdateRun>() == 8 * RUN_WORDS);

/// The streams in which rows are handed over.
#[derive(Debug)]
pub struct Direct {
    device: Device,
    kernels: Arc<Kernels>,
    stream: Arc<Stream>,
    up: Stream,
}

/// The addresses of one stage on the device, and the event after its last work. They are for one
/// stage after the other.
#[derive(Debug)]
pub struct DirectLists {
    pinned: List<u64>, // the head, the lists, then floats of rows that there are not
    there: Buffer,     // the head and the lists
    sent: Event,
    done: Event,
    keys: usize,
    runs: Vec<DirectRun>,    // none is empty
    gathers: Vec<GatherRun>, // runs of one length, whatever their rules
    gather_parts: u64,       // of all
    has_states: bool,
    has_absent: bool,
}

/// Rows of one length and one rule that stand side by side among a stage's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DirectRun {
    /// How many.
    pub rows: usize,
    /// Floats of each.
    pub floats: u32,
    /// The rule.
    pub optimizer: Optimizer,
}

/// Keys that have no row, and what is gathered for them.
#[derive(Debug, Default)]
pub struct Absent {
    /// Which keys, and where the floats of each begin: at a multiple of four.
    pub keys: Vec<(usize, usize)>,
    /// The floats.
    pub floats: Vec<f32>,
}

impl Direct {
    /// On a device. `stream` is that of an exchange of the same rows, so that all that touches them
    /// has one order.
    pub fn new(device: &Device, kernels: Arc<Kernels>, stream: Arc<Stream>) -> Result<Self> {
        Ok(Self { device: device.clone(), kernels, stream, up: device.stream()? })
    }

    /// Lists for a stage of so many keys in so many runs, with this much for keys without a row.
    pub fn lists(&self, keys: usize, runs: usize, absent: &Absent) -> Result<DirectLists> {
        let words = DirectLists::words_for(keys, runs, absent).next_multiple_of(BLOCK_WORDS);
        let bytes = (words * size_of::<u64>()) as u64;
        Ok(DirectLists {
            pinned: List::new(&self.device, words)?,
            there: Memory::take(&self.device, bytes)?.buffer(bytes)?,
            sent: self.device.event()?,
            done: self.device.event()?,
            keys: 0,
            runs: Vec::new(),
            gathers: Vec::new(),
            gather_parts: 0,
            has_states: false,
            has_absent: false,
        })
    }

    /// Sends the addresses of a stage's rows up, 0 for a key without one, and of their states: none
    /// where no optimizer has any. The runs are all of them. Waits for nothing but what the lists
    /// were sent before.
    ///
    /// # Safety
    /// Work that was ordered with the lists before is done. The addresses lead to rows and states
    /// of the runs' lengths that the device reaches, and that stay until the work with the lists is
    /// done; no row is there twice.
    pub unsafe fn send(
        &self,
        lists: &mut DirectLists,
        rows: &[u64],
        states: &[u64],
        runs: &[DirectRun],
        absent: &Absent,
    ) -> Result<()> {
        lists.sent.finish()?;
        let (in_runs, expected) = (runs.iter().map(|run| run.rows).sum::<usize>(), rows.len());
        if in_runs != expected {
            let (found, expected) = (in_runs as u64, expected as u64);
            return Err(Error::Length { what: "rows of runs", found, expected });
        }
        (lists.keys, lists.has_states) = (rows.len(), !states.is_empty());
        lists.has_absent = !absent.keys.is_empty();
        lists.runs.clear();
        lists.runs.extend(runs.iter().filter(|run| run.rows > 0));
        lists.gather_parts = gathers_of(&lists.runs, &mut lists.gathers);
        let (n, parts) = (rows.len(), lists.parts());
        let (runs_at, floats_at) = (lists.runs_at(), lists.floats_at());
        let address = lists.pinned.address();
        // SAFETY: copies of the list have ended, and by the caller's promise so has all else.
        let words = unsafe { lists.pinned.values() };
        let mut at = HEAD_WORDS;
        let mut put = |list: &[u64], words: &mut [u64]| {
            words[at..at + n].copy_from_slice(list);
            at += n;
        };
        put(rows, words);
        if !states.is_empty() {
            put(states, words);
        }
        if !absent.keys.is_empty() {
            put(rows, words); // what an update leaves out is gathered from here
            let gathered = HEAD_WORDS + (parts - 1) * n;
            for &(key, first) in &absent.keys {
                let float = floats_at * 8 + first * size_of::<f32>();
                words[gathered + key] = address + float as u64;
            }
            let room: &mut [f32] = bytemuck::cast_slice_mut(&mut words[floats_at..]);
            room[..absent.floats.len()].copy_from_slice(&absent.floats);
        }
        let described = &mut words[runs_at..floats_at];
        let (gathers, updates) = described.split_at_mut(RUN_WORDS * lists.gathers.len());
        gathers.copy_from_slice(bytemuck::cast_slice(&lists.gathers));
        for (words, run) in updates.chunks_exact_mut(RUN_WORDS).zip(updates_of(&lists.runs)) {
            words.copy_from_slice(&bytemuck::cast::<_, [u64; RUN_WORDS]>(run));
        }
        if n > 0 {
            let (offset, bytes) = ((HEAD_WORDS * 8) as u64, ((floats_at - HEAD_WORDS) * 8) as u64);
            let from = lists.pinned.first(floats_at)?.part(offset, bytes)?;
            lists.there.part(offset, bytes)?.copy_from(&self.up, &from)?;
        }
        self.up.record(&lists.sent)
    }

    /// What is ordered from here on comes after the lists are up, and after an event of the
    /// caller's, if it has one that has not happened.
    pub fn begin(&self, lists: &DirectLists, after: Option<&Event>) -> Result<()> {
        self.stream.wait_for(&lists.sent)?;
        after.map_or(Ok(()), |after| self.stream.wait_for(after))
    }

    /// Gathers all rows of the stage. out: all floats
    ///
    /// # Safety
    /// Nobody writes the rows or `out` until the work is done, but for work in the same stream.
    pub unsafe fn gather(&self, lists: &DirectLists, out: &Buffer) -> Result<()> {
        length("gathered rows", out, lists.floats() * FLOAT_BYTES)?;
        let list = if lists.has_absent { lists.parts() - 1 } else { 0 };
        if lists.gathers.len() > 1 && out.address().is_multiple_of(16) {
            let values = [
                Value::U64(lists.part(list, 0..lists.keys)?.address()),
                Value::U64(out.address()),
                Value::U64(lists.words_at(lists.runs_at())),
                Value::U32(lists.gathers.len() as u32),
                Value::U64(lists.gather_parts),
            ];
            // SAFETY: the signature's values; the runs are within the lists and `out`; for the
            // rows the caller vouches.
            return unsafe { self.launch("gather_tables", lists.gather_parts, &values) };
        }
        for (at, run) in lists.gathers.iter().enumerate() {
            let end = lists.gathers.get(at + 1).map_or(lists.keys, |next| next.row as usize);
            let keys = run.row as usize..end;
            let floats = run.parts * if run.by_four == 1 { 4 } else { 1 };
            let bytes = (keys.len() as u64) * u64::from(floats) * FLOAT_BYTES;
            // SAFETY: the caller's promises are passed on.
            let rows = unsafe { Rows::at(lists.part(list, keys)?, floats) };
            self.kernels.gather(
                &self.stream,
                &rows,
                &out.part(run.floats * FLOAT_BYTES, bytes)?,
            )?;
        }
        Ok(())
    }

    /// Looks whether all these gradients are finite; updates from here on change nothing if not.
    pub fn check(&self, lists: &DirectLists, gradients: &Buffer) -> Result<()> {
        self.kernels.find_not_finite(&self.stream, gradients, &lists.first_refused()?)
    }

    /// One step of each run's rule for all rows of the stage, if the check before found all
    /// gradients finite. gradients: all floats
    ///
    /// # Safety
    /// Nobody reads or writes the rows until the work is done, but for work in the same stream.
    pub unsafe fn update(&self, lists: &DirectLists, gradients: &Buffer, rate: f32) -> Result<()> {
        length("gradients", gradients, lists.floats() * FLOAT_BYTES)?;
        let first = lists.first_refused()?;
        let all = 0..lists.keys;
        if let [DirectRun { floats, optimizer, .. }] = &lists.runs[..] {
            let state_floats = optimizer.state_floats(*floats as usize) as u32;
            // SAFETY: the caller's promises are passed on.
            let rows = unsafe { Rows::at(lists.part(0, all.clone())?, *floats) };
            let states = if state_floats > 0 {
                // SAFETY: as above.
                Some(unsafe { Rows::at(lists.part(1, all)?, state_floats) })
            } else {
                None
            };
            let (stream, states, first) = (&self.stream, states.as_ref(), Some(&first));
            return self
                .kernels
                .update_unless(stream, optimizer, &rows, states, gradients, rate, first);
        }
        if lists.runs.is_empty() {
            return Ok(());
        }
        let updates_at = lists.runs_at() + RUN_WORDS * lists.gathers.len();
        // where no run has states nobody looks at them
        let states = usize::from(lists.has_states);
        let values = [
            Value::U64(lists.part(0, all.clone())?.address()),
            Value::U64(lists.part(states, all)?.address()),
            Value::U64(gradients.address()),
            Value::U64(lists.words_at(updates_at)),
            Value::U32(lists.runs.len() as u32),
            Value::U64(lists.keys as u64),
            Value::F32(rate),
            Value::U64(first.address()),
        ];
        // SAFETY: as in `gather`; eight threads share a row.
        unsafe { self.launch("update_tables", lists.keys as u64 * 8, &values) }
    }

    /// # Safety
    /// As for [`crate::Module::launch`].
    unsafe fn launch(&self, kernel: &str, elements: u64, values: &[Value]) -> Result<()> {
        let (module, threads) = (self.kernels.module_of(kernel)?, self.kernels.threads(elements));
        // SAFETY: the caller's promises are passed on.
        unsafe { module.launch(&self.stream, kernel, threads, values) }
    }

    /// Notes what the check found, on its way to the host. Once after a check.
    pub fn tell(&self, lists: &DirectLists) -> Result<()> {
        let pinned = lists.pinned.first(1)?;
        pinned.copy_from(&self.stream, &lists.first_refused()?)
    }

    /// The lists' work ends here, and `told` happens when it is done.
    pub fn end(&self, lists: &DirectLists, told: &Event) -> Result<()> {
        self.stream.record(told)?;
        self.stream.record(&lists.done)
    }

    /// Waits on the host for all work so far.
    pub fn finish(&self) -> Result<()> {
        self.stream.finish()
    }
}

impl DirectLists {
    fn words_for(keys: usize, runs: usize, absent: &Absent) -> usize {
        HEAD_WORDS + 3 * keys + 1 + 2 * RUN_WORDS * runs + absent.floats.len().div_ceil(2)
    }

    /// Whether they have room for so much.
    pub fn hold(&self, keys: usize, runs: usize, absent: &Absent) -> bool {
        Self::words_for(keys, runs, absent) * size_of::<u64>() <= self.there.bytes() as usize
    }

    /// Whether the work with them is done; waits for nothing.
    pub fn are_done(&self) -> Result<bool> {
        self.done.has_happened()
    }

    /// Waits until the work with them is done.
    pub fn finish(&self) -> Result<()> {
        self.done.finish()
    }

    /// Which of the gradients was not finite, the first of them. Waits for the work.
    pub fn refused(&self) -> Result<Option<u64>> {
        self.done.finish()?;
        // SAFETY: the work with the lists is done.
        let first = unsafe { self.pinned.value(0) };
        Ok((first != u64::MAX).then_some(first))
    }

    /// How many lists of addresses there are.
    fn parts(&self) -> usize {
        1 + usize::from(self.has_states) + usize::from(self.has_absent)
    }

    /// The word behind the addresses, at a multiple of 16 bytes: there the runs begin.
    fn runs_at(&self) -> usize {
        (HEAD_WORDS + self.parts() * self.keys).next_multiple_of(2)
    }

    /// The word behind the runs, at a multiple of 16 bytes.
    fn floats_at(&self) -> usize {
        self.runs_at() + RUN_WORDS * (self.gathers.len() + self.runs.len())
    }

    /// Where a word is, for the device.
    fn words_at(&self, word: usize) -> u64 {
        self.there.address() + 8 * word as u64
    }

    /// Floats of all rows.
    fn floats(&self) -> u64 {
        self.runs.iter().map(|run| run.rows as u64 * u64::from(run.floats)).sum()
    }

    fn first_refused(&self) -> Result<Buffer> {
        self.there.part(0, 8)
    }

    fn part(&self, list: usize, keys: Range<usize>) -> Result<Buffer> {
        let first = HEAD_WORDS + list * self.keys + keys.start;
        self.there.part((first * 8) as u64, (keys.len() * 8) as u64)
    }
}

/// The runs as a gather has them, which does not look at rules: those of one length are one. Tells
/// the parts of all their rows.
fn gathers_of(runs: &[DirectRun], gathers: &mut Vec<GatherRun>) -> u64 {
    gathers.clear();
    let (mut begin, mut row, mut floats) = (0_u64, 0_u32, 0_u64);
    for alike in runs.chunk_by(|a, b| a.floats == b.floats) {
        let (width, rows) = (alike[0].floats, alike.iter().map(|run| run.rows as u64).sum::<u64>());
        let by_four = width.is_multiple_of(4) && floats.is_multiple_of(4);
        let parts = if by_four { width / 4 } else { width };
        let by_four = u32::from(by_four);
        gathers.push(GatherRun { begin, floats, row, parts, by_four, unused: 0 });
        begin += rows * u64::from(parts);
        row += rows as u32;
        floats += rows * u64::from(width);
    }
    begin
}

/// The runs as an update has them.
fn updates_of(runs: &[DirectRun]) -> impl Iterator<Item = UpdateRun> {
    runs.iter().scan((0, 0), |(row, floats), run| {
        let update = UpdateRun::new(&run.optimizer, run.floats, *row, *floats);
        *row += run.rows as u32;
        *floats += run.rows as u64 * u64::from(run.floats);
        Some(update)
    })
}
