//! What a batch brings, on its way to the device: twice, so that a batch goes up while the one
//! before it is computed. It computes nothing.

use bytemuck::Pod;
use gpu::kernels::FEW;
use gpu::{BagTerms, Buffer, Download, Event, Memory, RowTerms, Upload};
use table::{DeviceSlot, SharedSlot};

use super::arena::padded;
use super::layers::Activations;
use super::lists::Lists;
use super::machine::Machine;
use crate::{Architecture, Error, Result};

/// How much the memory of a batch holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    pub batch: usize,
    pub rows: usize,
    pub terms: usize,
}

/// Where the rows of a batch come from.
#[derive(Debug, Clone, Copy)]
pub(super) enum RowSource<'a> {
    /// From the host, one after the other.
    Host(&'a [f32]), // [rows, dim]
    /// From the slot's own pinned memory, where somebody put so many floats.
    Pulled(usize),
    /// From the slot's own memory on the device, where a session puts so many.
    There(usize),
    /// From a table on the device, by their slots.
    Resident {
        table: &'a Buffer,
        slots: &'a [u64], // [rows]
        /// Their states and how many floats each has, where they are to be updated.
        states: Option<(&'a Buffer, usize)>,
    },
}

/// One of the two places for a batch.
#[derive(Debug)]
pub(super) struct Slot {
    pub dense: Activations, // [batch, padded width]
    pub labels: Buffer,     // [batch]
    rows: Buffer,           // [rows, dim]
    own_addresses: Buffer,  // [rows] u64, of `rows`
    /// Into a table on the device, and into its states.
    pub addresses: Buffer, // [rows] u64
    pub state_addresses: Buffer, // [rows] u64
    bag_starts: Buffer,
    bag_places: Buffer,
    bag_weights: Buffer,
    row_starts: Buffer,
    row_places: Buffer,
    row_weights: Buffer,
    many: Buffer,
    counts: Buffer, // [2] u64
    upload: Upload, // first the rows, then all else
    rows_pinned_bytes: u64,
    arrived: Event,
    /// The device has done with what is in it.
    pub left: Event,
    /// The rows' gradients are there, and so nobody reads the rows of the batch any more.
    pub worker_done: Event,
    /// A session has written rows, or taken gradients.
    pub session_done: Event,
    /// The loss, where the host takes it later.
    pub loss: Download,
}

/// Which of the ways that a step can be computed a batch takes: each is recorded by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Way {
    pub slot: usize,
    pub weighted: bool,
    pub resident: bool,
}

impl RowSource<'_> {
    /// How many rows there are.
    pub(super) fn count(self, dim: usize) -> usize {
        match self {
            Self::Host(floats) => floats.len() / dim,
            Self::Pulled(floats) => floats / dim,
            Self::There(rows) => rows,
            Self::Resident { slots, .. } => slots.len(),
        }
    }
}

impl Room {
    fn many(self) -> usize {
        self.terms / (FEW as usize + 1) + 1
    }

    /// Enough for one index a feature.
    pub(super) fn one_hot(architecture: &Architecture, batch: usize) -> Self {
        let terms = batch * architecture.features;
        Self { batch, rows: terms, terms }
    }

    pub(super) fn holds(self, rows: usize, terms: usize) -> bool {
        rows <= self.rows && terms <= self.terms
    }

    /// Twice as much where it does not hold so much.
    pub(super) fn grown(self, rows: usize, terms: usize) -> Self {
        let grown =
            |had: usize, needed: usize| if needed > had { needed.max(2 * had) } else { had };
        Self { rows: grown(self.rows, rows), terms: grown(self.terms, terms), ..self }
    }

    /// Bytes of each of a slot's buffers, in the order in which they are taken.
    fn bytes(self, architecture: &Architecture) -> [u64; 13] {
        let dim = architecture.sparse_feature_size;
        let words = [
            self.batch,
            self.rows * dim,
            2 * self.rows,
            2 * self.rows,
            2 * self.rows,
            self.batch * architecture.features + 1,
            self.terms,
            self.terms,
            self.rows + 1,
            self.terms,
            self.terms,
            self.many(),
            4,
        ];
        words.map(|words| 4 * words.max(1) as u64)
    }
}

impl Slot {
    pub(super) fn new(machine: &Machine, architecture: &Architecture, room: Room) -> Result<Self> {
        let width = padded(architecture.dense_width());
        let sizes = room.bytes(architecture);
        let rounded = |bytes: &u64| bytes.next_multiple_of(256);
        let total = sizes.iter().map(rounded).sum::<u64>();
        let brief = machine.brief();
        let budget = total + Activations::bytes(room.batch, width, brief);
        let mut memory = Memory::take_shared(&machine.device, budget)?;
        let dense = Activations::new(&mut memory, room.batch, width, brief)?;
        let mut sizes = sizes.into_iter();
        let mut next = || memory.buffer(sizes.next().expect("one for each buffer"));
        let (labels, rows, own_addresses) = (next()?, next()?, next()?);
        let row_bytes = 4 * architecture.sparse_feature_size as u64;
        let list: Vec<u64> =
            (0..room.rows as u64).map(|row| rows.address() + row * row_bytes).collect();
        own_addresses.write(0, &list)?;
        let rows_pinned_bytes = rows.bytes().next_multiple_of(256);
        let pinned = total + (room.batch * width * 4) as u64;
        Ok(Self {
            dense,
            labels,
            rows,
            own_addresses,
            addresses: next()?,
            state_addresses: next()?,
            bag_starts: next()?,
            bag_places: next()?,
            bag_weights: next()?,
            row_starts: next()?,
            row_places: next()?,
            row_weights: next()?,
            many: next()?,
            counts: next()?,
            upload: Upload::new(&machine.device, pinned)?,
            rows_pinned_bytes,
            arrived: machine.device.event()?,
            left: machine.device.event()?,
            worker_done: machine.device.event()?,
            session_done: machine.device.event()?,
            loss: Download::new(&machine.device, 4)?,
        })
    }

    /// The slot in the words of a session that has its rows on this device.
    pub(super) fn place(&self, gradients: &Buffer) -> DeviceSlot {
        DeviceSlot {
            rows: self.rows.address(),
            gradients: gradients.address(),
            floats: self.rows.bytes().min(gradients.bytes()) / 4,
            worker_done: self.worker_done.word(),
            session_done: self.session_done.word(),
        }
    }

    /// The slot in the words of a session in another process. Events are made anew: those that the
    /// slot had were for this process alone, and no session has them.
    pub(super) fn shared_place(
        &mut self,
        machine: &Machine,
        gradients: &Buffer,
    ) -> Result<SharedSlot> {
        self.worker_done = machine.device.shared_event()?;
        self.session_done = machine.device.shared_event()?;
        let bytes = self.rows.bytes().min(gradients.bytes());
        Ok(SharedSlot {
            rows: self.rows.part(0, bytes)?.share()?,
            gradients: gradients.part(0, bytes)?.share()?,
            worker_done: self.worker_done.share()?,
            session_done: self.session_done.share()?,
        })
    }

    /// Pinned memory for the rows of the batch that is brought next. Waits until the last one's are
    /// on the device.
    pub(super) fn rows_pinned(&mut self, floats: usize) -> Result<&mut [f32]> {
        Ok(self.upload.values(0, floats)?)
    }

    /// Brings a batch up, behind what the device still does with the last one; what is computed
    /// from here on waits for it. The batch was checked, and fits.
    pub(super) fn bring(
        &mut self,
        machine: &Machine,
        architecture: &Architecture,
        dense: &[f32],  // [batch, dense width]
        labels: &[f32], // [batch], or none
        rows: RowSource<'_>,
        lists: &Lists,
    ) -> Result<()> {
        machine.up.wait_for(&self.left)?;
        let Self { upload, .. } = self;
        match rows {
            RowSource::Host(floats) => {
                upload.values(0, floats.len())?.copy_from_slice(floats);
                upload.send(&machine.up, 0, size_of_val(floats) as u64, &self.rows)?;
            }
            RowSource::Pulled(floats) => {
                upload.send(&machine.up, 0, 4 * floats as u64, &self.rows)?;
            }
            RowSource::There(_) | RowSource::Resident { .. } => {}
        }
        let count = rows.count(architecture.sparse_feature_size);
        let mut load = Load { upload, machine, at: self.rows_pinned_bytes };
        let (width, stride) = (architecture.dense_width(), self.dense.width);
        let batch = dense.len() / width;
        let to = self.dense.floats(batch)?;
        load.with(&to, batch * stride, |values: &mut [f32]| {
            for (to, from) in values.chunks_exact_mut(stride).zip(dense.chunks_exact(width)) {
                to[..width].copy_from_slice(from);
                to[width..].fill(0.0);
            }
        })?;
        load.copy(&self.labels, labels)?;
        if let RowSource::Resident { table, slots, states } = rows {
            let row_bytes = 4 * architecture.sparse_feature_size as u64;
            load.addresses(&self.addresses, table, slots, row_bytes)?;
            if let Some((states, floats @ 1..)) = states {
                load.addresses(&self.state_addresses, states, slots, 4 * floats as u64)?;
            }
        }
        load.copy(&self.counts, &[count as u64, lists.many.len() as u64])?;
        load.copy(&self.bag_starts, &lists.bag_starts)?;
        load.copy(&self.bag_places, &lists.bag_places)?;
        load.copy(&self.bag_weights, &lists.bag_weights)?;
        load.copy(&self.row_starts, &lists.row_starts)?;
        load.copy(&self.row_places, &lists.row_places)?;
        load.copy(&self.row_weights, &lists.row_weights)?;
        load.copy(&self.many, &lists.many)?;
        machine.up.record(&self.arrived)?;
        Ok(machine.compute.wait_for(&self.arrived)?)
    }

    pub(super) fn bags(&self, way: Way) -> BagTerms<'_> {
        BagTerms {
            addresses: if way.resident { &self.addresses } else { &self.own_addresses },
            starts: &self.bag_starts,
            places: &self.bag_places,
            weights: way.weighted.then_some(&self.bag_weights),
        }
    }

    pub(super) fn row_terms(&self, way: Way) -> RowTerms<'_> {
        RowTerms {
            starts: &self.row_starts,
            places: &self.row_places,
            weights: way.weighted.then_some(&self.row_weights),
            many: &self.many,
            counts: &self.counts,
        }
    }
}

/// Pinned memory that is filled from its start.
struct Load<'a> {
    upload: &'a mut Upload,
    machine: &'a Machine,
    at: u64, // byte
}

impl Load<'_> {
    fn copy<T: Pod>(&mut self, to: &Buffer, from: &[T]) -> Result<()> {
        self.with(to, from.len(), |values: &mut [T]| values.copy_from_slice(from))
    }

    fn addresses(
        &mut self,
        to: &Buffer,
        table: &Buffer,
        slots: &[u64],
        row_bytes: u64,
    ) -> Result<()> {
        let (first, bytes) = (table.address(), table.bytes());
        let whole = bytes / row_bytes;
        if let Some(row) = slots.iter().position(|&slot| slot >= whole) {
            let offset = slots[row].saturating_mul(row_bytes);
            return Err(Error::Device(gpu::Error::RowOutside { row, offset, bytes }));
        }
        self.with(to, slots.len(), |values: &mut [u64]| {
            values.iter_mut().zip(slots).for_each(|(to, slot)| *to = first + slot * row_bytes);
        })
    }

    fn with<T: Pod>(
        &mut self,
        to: &Buffer,
        count: usize,
        fill: impl FnOnce(&mut [T]),
    ) -> Result<()> {
        let bytes = (count * size_of::<T>()) as u64;
        fill(self.upload.values(self.at, count)?);
        self.upload.send(&self.machine.up, self.at, bytes, to)?;
        self.at = (self.at + bytes).next_multiple_of(16);
        Ok(())
    }
}
