//! A step whose rows a session puts into the model's own memory on the device, and whose gradients
//! it takes from there: nothing of them crosses the bus, and the host waits for nothing but a loss,
//! a step late. It knows no session: `table::DevicePlaces` has the rules that both keep.

use gpu::Buffer;
use table::{DeviceId, DevicePlaces, DeviceSlots};

use super::inputs::{RowSource, Slot};
use super::machine::Machine;
use super::{DeviceModel, Work, check};
use crate::step::PulledInput;
use crate::{Error, Result};

/// Where the rows of the next batch go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NextPlace {
    /// The number of the slot.
    pub slot: u32,
    /// All slots, where they moved because the batch needs more room: to be shared anew.
    pub moved: Option<DevicePlaces>,
}

/// A loss that nobody took yet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum PendingLoss {
    /// On its way down in a slot.
    InSlot(usize),
    /// Here.
    Here(f32),
}

/// What a session in another process has open.
#[derive(Debug, Default)]
pub(super) struct Elsewhere {
    /// Slots and gradients that moved: kept until the session knows of those in their place.
    pub(super) before: Vec<(Vec<Slot>, Buffer)>,
}

impl DeviceModel {
    /// The device that it is on.
    pub fn device_id(&self) -> DeviceId {
        self.machine.device.description().id
    }

    /// The slots for a session on the same device. They stay where they are until a
    /// [`Self::next_place`] says that they moved, or the model is dropped.
    pub fn places(&mut self) -> DevicePlaces {
        self.shared = true;
        let slots = self.slots.iter().map(|slot| slot.place(&self.row_gradients)).collect();
        DevicePlaces { device: self.device_id(), slots: DeviceSlots::Here(slots) }
    }

    /// The same for a session in another process. The model is dropped after the session was told
    /// of other slots, or none.
    pub fn places_elsewhere(&mut self) -> Result<DevicePlaces> {
        self.shared = true;
        self.elsewhere.get_or_insert_default();
        let Self { slots, machine, row_gradients, .. } = self;
        let slots = slots.iter_mut().map(|slot| slot.shared_place(machine, row_gradients));
        let slots = DeviceSlots::Shared(slots.collect::<Result<_>>()?);
        Ok(DevicePlaces { device: self.device_id(), slots })
    }

    /// The slot of the next batch, with room for so many rows and terms: rows that samples take,
    /// counted each time. The last push must be ordered.
    pub fn next_place(&mut self, rows: usize, terms: usize) -> Result<NextPlace> {
        if let (Some(elsewhere), false) = (&mut self.elsewhere, self.moved) {
            elsewhere.before.clear(); // the session was told of others
        }
        if !self.room.holds(rows, terms) {
            self.fetch_losses(|_| true)?;
            let architecture = self.host.architecture().clone();
            self.grow(&architecture, self.room.grown(rows, terms))?;
        }
        let moved = match (std::mem::take(&mut self.moved), &self.elsewhere) {
            (false, _) => None,
            (true, None) => Some(self.places()),
            (true, Some(_)) => Some(self.places_elsewhere()?),
        };
        let slot = self.next_slot;
        self.fetch_losses(|other| other == slot)?; // the next one goes there
        Ok(NextPlace { slot: slot as u32, moved })
    }

    /// Orders forward and backward of a batch whose rows a session puts into the slot that
    /// [`Self::next_place`] named last. The rows' gradients are there behind the slot's
    /// `worker_done`; the loss is for [`Self::take_loss`].
    pub fn forward_backward_there(
        &mut self,
        input: &PulledInput<'_>,
        slot: u32,
        rows: usize,
    ) -> Result<()> {
        let &PulledInput { dense, labels, features } = input;
        self.gradients_ready = false;
        assert_eq!(slot as usize, self.next_slot, "the slot is the one that was named last");
        let batch = labels.len();
        self.check(batch)?;
        let dim = self.architecture().sparse_feature_size;
        check(self.architecture(), batch, dense, features, rows * dim)?;
        let terms: usize = features.iter().map(|feature| feature.indices.len()).sum();
        if !self.room.holds(rows, terms) {
            let (found, expected) = (terms, format!("at most {}, as asked for", self.room.terms));
            return Err(Error::Shape { what: "terms", found, expected });
        }
        let way = self.bring(dense, labels, features, RowSource::There(rows))?;
        self.machine.compute.wait_for(&self.slots[way.slot].session_done)?;
        self.work(Work::ToRows, batch, way)?;
        let Machine { compute, .. } = &self.machine;
        let slot = &mut self.slots[way.slot];
        compute.record(&slot.worker_done)?;
        // in the stream itself: the next step writes the loss anew
        slot.loss.receive(compute, &self.step.loss, 0, 4)?;
        self.pending.push_back(PendingLoss::InSlot(way.slot));
        self.work(Work::ToWeights, batch, way)?;
        self.machine.compute.record(&self.slots[way.slot].left)?;
        self.gradients_ready = true;
        Ok(())
    }

    /// The mean loss of the oldest step whose loss was not taken yet, before its update. Waits for
    /// it; none where all were taken.
    pub fn take_loss(&mut self) -> Result<Option<f32>> {
        let Some(first) = self.pending.pop_front() else { return Ok(None) };
        self.loss(first).map(Some)
    }

    fn loss(&mut self, pending: PendingLoss) -> Result<f32> {
        match pending {
            PendingLoss::InSlot(slot) => Ok(self.slots[slot].loss.values::<f32>(0, 1)?[0]),
            PendingLoss::Here(loss) => Ok(loss),
        }
    }

    /// Waits for losses that are in these slots, which others will need.
    fn fetch_losses(&mut self, wanted: impl Fn(usize) -> bool) -> Result<()> {
        for at in 0..self.pending.len() {
            let pending = self.pending[at];
            if let PendingLoss::InSlot(slot) = pending
                && wanted(slot)
            {
                self.pending[at] = PendingLoss::Here(self.loss(pending)?);
            }
        }
        Ok(())
    }
}
