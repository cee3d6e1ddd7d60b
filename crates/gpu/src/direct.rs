//! Rows handed over to a caller on the same device: gathered from wherever they lie into its
//! buffer, and updated by the gradients that it leaves in another. Work is ordered and not waited
//! for: events say when the caller has done with its buffers, and when this has. A stage's
//! addresses go up once, in a stream of their own, ahead of its pull.
#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use table::Optimizer;

use crate::device::{Device, Event, Stream};
use crate::list::List;
use crate::memory::{Buffer, Memory};
use crate::{Kernels, Result, Rows};

/// Words of a list before the addresses: which gradient is not finite, and none.
const HEAD_WORDS: usize = 2;
/// Lists are made for a multiple of so many words, so that one serves many stages.
const BLOCK_WORDS: usize = 4096;

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
    has_states: bool,
    has_absent: bool,
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

    /// Lists for a stage of so many keys, with this much for keys without a row.
    pub fn lists(&self, keys: usize, absent: &Absent) -> Result<DirectLists> {
        let words = DirectLists::words_for(keys, absent).next_multiple_of(BLOCK_WORDS);
        let bytes = (words * size_of::<u64>()) as u64;
        Ok(DirectLists {
            pinned: List::new(&self.device, words)?,
            there: Memory::take(&self.device, bytes)?.buffer(bytes)?,
            sent: self.device.event()?,
            done: self.device.event()?,
            keys: 0,
            has_states: false,
            has_absent: false,
        })
    }

    /// Sends the addresses of a stage's rows up, 0 for a key without one, and of their states: none
    /// where no optimizer has any. Waits for nothing but what the lists were sent before.
    ///
    /// # Safety
    /// Work that was ordered with the lists before is done. The addresses lead to rows and states
    /// that the device reaches, and that stay until the work with the lists is done.
    pub unsafe fn send(
        &self,
        lists: &mut DirectLists,
        rows: &[u64],
        states: &[u64],
        absent: &Absent,
    ) -> Result<()> {
        lists.sent.finish()?;
        (lists.keys, lists.has_states) = (rows.len(), !states.is_empty());
        lists.has_absent = !absent.keys.is_empty();
        let (n, parts) = (rows.len(), lists.parts());
        let floats_at = lists.floats_at();
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
        if n > 0 {
            let (offset, bytes) = ((HEAD_WORDS * 8) as u64, (parts * n * 8) as u64);
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

    /// Gathers the rows of some of the stage's keys. out: [keys, floats]
    ///
    /// # Safety
    /// The rows have so many floats, and nobody writes them or `out` until the work is done, but
    /// for work in the same stream.
    pub unsafe fn gather(
        &self,
        lists: &DirectLists,
        keys: Range<usize>,
        floats: u32,
        out: &Buffer,
    ) -> Result<()> {
        let list = if lists.has_absent { lists.parts() - 1 } else { 0 };
        // SAFETY: the caller's promises are passed on.
        let rows = unsafe { Rows::at(lists.part(list, keys)?, floats) };
        self.kernels.gather(&self.stream, &rows, out)
    }

    /// Looks whether all these gradients are finite; updates from here on change nothing if not.
    pub fn check(&self, lists: &DirectLists, gradients: &Buffer) -> Result<()> {
        self.kernels.find_not_finite(&self.stream, gradients, &lists.first_refused()?)
    }

    /// One step of the optimizer for the rows of some of the stage's keys, if the check before
    /// found all gradients finite. gradients: [keys, floats]
    ///
    /// # Safety
    /// The rows have so many floats and their states what the optimizer wants; no key is there
    /// twice; nobody reads or writes them until the work is done, but for work in the same stream.
    pub unsafe fn update(
        &self,
        lists: &DirectLists,
        keys: Range<usize>,
        optimizer: &Optimizer,
        floats: u32,
        gradients: &Buffer,
        rate: f32,
    ) -> Result<()> {
        let state_floats = optimizer.state_floats(floats as usize) as u32;
        // SAFETY: the caller's promises are passed on.
        let rows = unsafe { Rows::at(lists.part(0, keys.clone())?, floats) };
        let states = if state_floats > 0 {
            // SAFETY: as above.
            Some(unsafe { Rows::at(lists.part(1, keys)?, state_floats) })
        } else {
            None
        };
        let first = lists.first_refused()?;
        let (stream, states) = (&self.stream, states.as_ref());
        self.kernels.update_unless(stream, optimizer, &rows, states, gradients, rate, Some(&first))
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
    fn words_for(keys: usize, absent: &Absent) -> usize {
        HEAD_WORDS + 3 * keys + 1 + absent.floats.len().div_ceil(2)
    }

    /// Whether they have room for so much.
    pub fn hold(&self, keys: usize, absent: &Absent) -> bool {
        Self::words_for(keys, absent) * size_of::<u64>() <= self.there.bytes() as usize
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

    /// The word behind the lists, at a multiple of 16 bytes.
    fn floats_at(&self) -> usize {
        (HEAD_WORDS + self.parts() * self.keys).next_multiple_of(2)
    }

    fn first_refused(&self) -> Result<Buffer> {
        self.there.part(0, 8)
    }

    fn part(&self, list: usize, keys: Range<usize>) -> Result<Buffer> {
        let first = HEAD_WORDS + list * self.keys + keys.start;
        self.there.part((first * 8) as u64, (keys.len() * 8) as u64)
    }
}
