//! Training on rows that lie in a device's own memory, all of them: they are read and updated
//! there, and none crosses the bus. It holds one table of all features' rows and evicts none.

use gpu::{Buffer, Rows};
use table::Optimizer;

use super::inputs::RowSource;
use super::lists::Lists;
use super::machine::Machine;
use super::{DeviceModel, Work, check};
use crate::step::FeatureRows;
use crate::{Architecture, Error, Result};

/// Rows in a device's memory: row after row, and of each its optimizer state.
#[derive(Debug, Clone)]
pub struct ResidentTable {
    /// The rows.
    pub rows: Buffer, // [slots, sparse_feature_size]
    /// What the optimizer keeps for each.
    pub states: Option<Buffer>, // [slots, state floats]
    /// How they move.
    pub optimizer: Optimizer,
}

/// A batch over rows in a device's memory.
#[derive(Debug, Clone, Copy)]
pub struct ResidentInput<'a> {
    /// Dense values.
    pub dense: &'a [f32], // [batch, dense width]
    /// Labels.
    pub labels: &'a [f32], // [batch]
    /// Where each of the batch's unique rows lies, no slot twice.
    pub slots: &'a [u64], // [n_unique]
    /// For each categorical feature, which of the unique rows each sample takes.
    pub features: &'a [FeatureRows<'a>],
}

/// A batch that was checked, with its lists: all that the host does ahead of a step.
#[derive(Debug, Clone)]
pub struct ResidentBatch {
    dense: Vec<f32>,
    labels: Vec<f32>,
    slots: Vec<u64>,
    lists: Lists,
}

impl ResidentBatch {
    /// Checks a batch for a model of that shape, and makes its lists.
    pub fn new(architecture: &Architecture, input: &ResidentInput<'_>) -> Result<Self> {
        let ResidentInput { dense, labels, slots, features } = *input;
        let (batch, floats) = (labels.len(), slots.len() * architecture.sparse_feature_size);
        check(architecture, batch, dense, features, floats)?;
        let mut lists = Lists::default();
        lists.build(features, batch, slots.len());
        let (dense, labels, slots) = (dense.to_vec(), labels.to_vec(), slots.to_vec());
        Ok(Self { dense, labels, slots, lists })
    }
}

impl DeviceModel {
    /// One step: forward, backward, and the updates of rows and dense part. Orders the work and
    /// does not wait for it.
    pub fn resident_step(
        &mut self,
        batch: &ResidentBatch,
        table: &ResidentTable,
        learning_rate_tables: f32,
        learning_rate: f32,
    ) -> Result<()> {
        let ResidentBatch { dense, labels, slots, lists } = batch;
        let architecture = self.host.architecture().clone();
        if labels.is_empty() || labels.len() > self.batch_max {
            return Err(Error::Batch { found: labels.len(), max: self.batch_max });
        }
        let dim = architecture.sparse_feature_size;
        let state_floats = table.optimizer.state_floats(dim);
        let states = table.states.as_ref().map(|states| (states, state_floats));
        let rows = RowSource::Resident { table: &table.rows, slots, states };
        let way = self.bring_lists(&architecture, dense, labels, rows, lists)?;
        self.work(Work::ToRows, labels.len(), way)?;
        let Machine { compute, kernels, .. } = &self.machine;
        // in the stream itself: the next step writes the loss anew
        self.down.receive(compute, &self.step.loss, 0, 4)?;
        let (n, slot) = (slots.len() as u64, &self.slots[way.slot]);
        let rows = Rows::listed(&slot.addresses, n, dim as u32, &table.rows)?;
        let states = states.filter(|(_, floats)| *floats > 0);
        let states = states
            .map(|(states, floats)| Rows::listed(&slot.state_addresses, n, floats as u32, states))
            .transpose()?;
        let gradients = self.row_gradients.part(0, rows.bytes())?;
        let optimizer = &table.optimizer;
        kernels.update(
            compute,
            optimizer,
            &rows,
            states.as_ref(),
            &gradients,
            learning_rate_tables,
        )?;
        self.work(Work::ToWeights, labels.len(), way)?;
        self.machine.compute.record(&self.slots[way.slot].left)?;
        self.gradients_ready = true;
        self.apply_dense(learning_rate)
    }

    /// The mean loss of the last step's batch before its update. Waits for it.
    pub fn resident_loss(&mut self) -> Result<f32> {
        Ok(self.down.values::<f32>(0, 1)?[0])
    }

    /// The probabilities of a batch over rows in the device's memory, in its order.
    pub fn resident_predict(
        &mut self,
        batch: &ResidentBatch,
        table: &ResidentTable,
        probabilities: &mut [f32], // [batch]
    ) -> Result<()> {
        let ResidentBatch { dense, labels, slots, lists } = batch;
        let architecture = self.host.architecture().clone();
        if labels.len() != probabilities.len() || labels.is_empty() || labels.len() > self.batch_max
        {
            return Err(Error::Batch { found: probabilities.len(), max: self.batch_max });
        }
        let rows = RowSource::Resident { table: &table.rows, slots, states: None };
        let way = self.bring_lists(&architecture, dense, &[], rows, lists)?;
        self.predict_there(way, probabilities)
    }
}
