//! The model on a device: weights, optimizer state, gradients and activations in its memory, taken
//! once for the largest batch; products planned once for a size of batch; the work of a step
//! recorded the second time that it is done, and played from then on. It gives the numbers of
//! [`crate::Model`] to within rounding, not its bits.
//!
//! A step waits for the device once, for the loss and the rows' gradients. The weights' gradients
//! are computed while the host sends the rows' on their way, and the next batch goes up meanwhile.
//! With a session that has its rows on the same device (`shared`) a step waits for nothing.

mod arena;
mod inputs;
mod layers;
mod lists;
mod machine;
mod resident;
mod shared;

use std::collections::VecDeque;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use gpu::kernels::Interaction as Dots;
use gpu::{
    Buffer, Columns, Device, Download, Event, Graph, Kernels, Matrix, Memory, Precision, Upload,
};
use optim::AdamStep;

use self::arena::{Arena, padded, rule};
use self::inputs::{Room, RowSource, Slot, Way};
use self::layers::{Activations, Ends, LayerProducts, Layers};
use self::lists::Lists;
use self::machine::Machine;
pub use self::resident::{ResidentBatch, ResidentInput, ResidentTable};
pub use self::shared::NextPlace;
use self::shared::{Elsewhere, PendingLoss};
use crate::step::{FeatureRows, PredictInput, PulledInput};
use crate::{Architecture, DenseOptimizer, Error, Interaction, Loss, Model, Result};

/// Sizes of batch that stay planned: a training's, an evaluation's, and the last of each.
const PLANS_MAX: usize = 6;

/// What comes down: the loss, and behind it what a step or a prediction brings.
const BROUGHT_AT: u64 = 256;

/// How a model works on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    /// In which numbers products are made, those of the interaction too; all else is 32-bit floats.
    pub precision: Precision,
    /// Whether the interaction's are made by tensor cores, where the precision and the shape let
    /// them; without, it is in 32-bit floats, to compare with.
    pub tensor_interaction: bool,
    /// Whether work is recorded and played as one.
    pub graphs: bool,
}

impl Default for DeviceOptions {
    fn default() -> Self {
        Self { precision: Precision::F32, tensor_interaction: true, graphs: true }
    }
}

/// A DLRM on a device.
pub struct DeviceModel {
    host: Model, // as it was when it was last asked for
    machine: Machine,
    options: DeviceOptions,
    batch_max: usize,
    arena: Arena,
    step: StepMemory,
    plans: Vec<Plan>, // the one used last is the last
    slots: [Slot; 2],
    room: Room,
    next_slot: usize,
    pulled: Option<(usize, usize)>, // slot, and floats that somebody puts there
    row_gradients: Buffer,          // [room's rows, dim]
    down: Download,
    lists: Lists,
    rates: Upload,
    rates_there: Buffer, // [2]
    rows_summed: Event,
    dense_update: Recorded,
    steps: u32,
    gradients_ready: bool,
    shared: bool,                   // whether a session may work in the slots
    elsewhere: Option<Elsewhere>,   // of a session in another process
    moved: bool,                    // whether slots moved since they were told
    pending: VecDeque<PendingLoss>, // of steps in their order
}

/// Activations and their gradients, for the largest batch.
struct StepMemory {
    dots: Option<Dots>, // how features meet
    bottom: Layers,
    top: Layers,
    features: Buffer,          // [batch, 1 + features, dim]
    features_gradient: Buffer, // [batch, 1 + features, dim]
    crossed: Activations,
    crossed_gradient: Activations,
    losses: Buffer,        // [batch] f64
    loss: Buffer,          // [1]
    probabilities: Buffer, // [batch]
}

/// What is done with a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// Forward, loss, backward to the rows' gradients.
    ToRows,
    /// The weights' gradients, and backward through the bottom MLP.
    ToWeights,
    /// Forward to the probabilities.
    Predict,
}

/// The update of the dense part: done once by itself, then recorded, then played.
#[derive(Default)]
struct Recorded {
    is_done: bool,
    graph: Option<Graph>,
}

/// Everything that follows from the size of a batch.
struct Plan {
    batch: usize,
    bottom: LayerProducts,
    top: LayerProducts,
    recorded: Vec<(Work, Way, Option<Graph>)>, // none: it was done once
}

impl DeviceModel {
    /// Brings a model to a device, with memory for batches of up to `batch_max` samples. The model
    /// may be made for smaller ones. The kernels are compiled for it, or taken from a folder that
    /// keeps those that were.
    pub fn new(
        device: Device,
        host: Model,
        batch_max: usize,
        options: DeviceOptions,
        code_dir: Option<&Path>,
    ) -> Result<Self> {
        let capability = device.description().compute_capability;
        let kernels = Kernels::load::<Error>(&device, |source| {
            Ok(gpu::code_in(code_dir, source, capability)?)
        })?;
        Self::with_kernels(device, Arc::new(kernels), host, batch_max, options)
    }

    /// The same with kernels that were loaded into the device before.
    pub fn with_kernels(
        device: Device,
        kernels: Arc<Kernels>,
        host: Model,
        batch_max: usize,
        options: DeviceOptions,
    ) -> Result<Self> {
        let architecture = host.architecture().clone();
        if batch_max == 0 || u32::try_from(batch_max).is_err() {
            let (found, expected) = (batch_max.to_string(), "1 to 2^32 - 1".to_owned());
            return Err(Error::Field { field: "largest batch", found, expected });
        }
        let dots = dots(&architecture, options);
        if let Some(dots) = dots
            && dots.plain().warps(true).is_none()
        {
            return Err(Error::Field {
                field: "interaction on a device",
                found: format!("{} vectors of {} floats", dots.vectors, dots.dim),
                expected: "vectors of a sample within 48 KiB".to_owned(),
            });
        }
        let machine = Machine::new(device, kernels, options.precision)?;
        let bytes = arena::bytes(&host, machine.brief())
            + StepMemory::bytes(&architecture, batch_max, machine.brief());
        let mut memory = Memory::take(&machine.device, bytes)?;
        let arena = Arena::new(&mut memory, &host, machine.brief())?;
        let step = StepMemory::new(&machine, &mut memory, &architecture, dots, batch_max)?;
        let room = Room::one_hot(&architecture, batch_max);
        let slots =
            [Slot::new(&machine, &architecture, room)?, Slot::new(&machine, &architecture, room)?];
        let (row_gradients, down) = results(&machine, &architecture, room)?;
        let rates_there = memory.buffer(8)?;
        let rates = Upload::new(&machine.device, 8)?;
        let rows_summed = machine.device.event()?;
        let steps = host.steps;
        let model = Self {
            host,
            machine,
            options,
            batch_max,
            arena,
            step,
            plans: Vec::new(),
            slots,
            room,
            next_slot: 0,
            pulled: None,
            row_gradients,
            down,
            lists: Lists::default(),
            rates,
            rates_there,
            rows_summed,
            dense_update: Recorded::default(),
            steps,
            gradients_ready: false,
            shared: false,
            elsewhere: None,
            moved: false,
            pending: VecDeque::new(),
        };
        shorten(&model.machine, &model.arena)?;
        Ok(model)
    }

    /// The shape of this model.
    pub fn architecture(&self) -> &Architecture {
        self.host.architecture()
    }

    /// The optimizer of the dense part.
    pub fn optimizer(&self) -> DenseOptimizer {
        self.host.optimizer()
    }

    /// The largest batch.
    pub fn batch_max(&self) -> usize {
        self.batch_max
    }

    /// What the library of matrix products would not do for it so far, and what does it instead.
    pub fn refused_products(&self) -> Vec<String> {
        self.machine.refused()
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.machine.device
    }

    /// The model with the device's weights, gradients and state, on the host. Waits for all work.
    pub fn host(&mut self) -> Result<&Model> {
        self.arena.read(&mut self.host)?;
        self.host.steps = self.steps;
        Ok(&self.host)
    }

    /// Pinned memory for the rows of the next batch, to be filled before
    /// [`DeviceModel::forward_backward`] takes them from there.
    pub fn rows(&mut self, floats: usize) -> Result<&mut [f32]> {
        let architecture = self.host.architecture().clone();
        let count = floats.div_ceil(architecture.sparse_feature_size);
        if !self.room.holds(count, 0) {
            self.grow(&architecture, self.room.grown(count, 0))?;
        }
        self.pulled = Some((self.next_slot, floats));
        self.slots[self.next_slot].rows_pinned(floats)
    }

    /// As [`Model::forward_backward`], of a batch whose rows were put into [`DeviceModel::rows`];
    /// it panics where none were. The rows' gradients are there when it returns; the weights' may
    /// still be computed.
    pub fn forward_backward(
        &mut self,
        input: &PulledInput<'_>,
        row_gradients: &mut [f32], // [n_unique, sparse_feature_size]
    ) -> Result<f32> {
        let &PulledInput { dense, labels, features } = input;
        self.gradients_ready = false;
        let (slot, floats) = self.pulled.take().expect("rows were put there");
        assert_eq!(slot, self.next_slot, "nothing else was brought since");
        self.check(labels.len())?;
        check(self.architecture(), labels.len(), dense, features, floats)?;
        if row_gradients.len() != floats {
            let (what, expected) = ("row gradients", format!("{floats}, as the rows"));
            return Err(Error::Shape { what, found: row_gradients.len(), expected });
        }
        let way = self.bring(dense, labels, features, RowSource::Pulled(floats))?;
        self.order_to_weights(labels.len(), way, row_gradients.len())?;
        let loss = self.down.values::<f32>(0, 1)?[0];
        row_gradients.copy_from_slice(self.down.values(BROUGHT_AT, row_gradients.len())?);
        self.gradients_ready = true;
        Ok(loss)
    }

    /// The same for a batch that is there; orders the work, and the copy of the loss and of so many
    /// floats of the rows' gradients.
    fn order_to_weights(&mut self, batch: usize, way: Way, floats: usize) -> Result<()> {
        self.work(Work::ToRows, batch, way)?;
        let Machine { compute, down, .. } = &self.machine;
        compute.record(&self.rows_summed)?;
        down.wait_for(&self.rows_summed)?;
        self.down.receive(down, &self.step.loss, 0, 4)?;
        self.down.receive(down, &self.row_gradients, BROUGHT_AT, 4 * floats as u64)?;
        self.work(Work::ToWeights, batch, way)?;
        Ok(self.machine.compute.record(&self.slots[way.slot].left)?)
    }

    /// As [`Model::apply_dense`]: once after each [`DeviceModel::forward_backward`], or it panics.
    pub fn apply_dense(&mut self, learning_rate: f32) -> Result<()> {
        assert!(self.gradients_ready, "apply_dense without gradients");
        self.gradients_ready = false;
        self.steps = self.steps.saturating_add(1);
        let optimizer = self.optimizer();
        let rates = match optimizer {
            DenseOptimizer::Sgd | DenseOptimizer::Adagrad { .. } => [learning_rate, 1.0],
            DenseOptimizer::Adam { beta1, beta2, eps } => {
                let step = AdamStep::new(self.steps, learning_rate, beta1, beta2, eps);
                [step.rate(), step.root_of_correction()]
            }
        };
        self.rates.values(0, 2)?.copy_from_slice(&rates);
        let (machine, arena, rates_there) = (&self.machine, &self.arena, &self.rates_there);
        let Machine { compute, kernels, .. } = machine;
        self.rates.send(compute, 0, 8, rates_there)?;
        let order = || -> Result<()> {
            let Arena { weights, gradient, states, .. } = arena;
            kernels.step_dense(compute, rule(optimizer), weights, states, gradient, rates_there)?;
            shorten(machine, arena)
        };
        let dense_update = &mut self.dense_update;
        if !self.options.graphs || !dense_update.is_done {
            dense_update.is_done = true;
            return order();
        }
        if dense_update.graph.is_none() {
            dense_update.graph = Some(Graph::record(compute, order)?);
        }
        let graph = dense_update.graph.as_ref().expect("it is recorded");
        Ok(graph.play(compute)?)
    }

    /// As [`Model::predict`].
    pub fn predict(
        &mut self,
        input: &PredictInput<'_>,
        probabilities: &mut [f32], // [batch]
    ) -> Result<()> {
        self.check(probabilities.len())?;
        input.check(self.architecture(), probabilities.len())?;
        let PredictInput { dense, rows, features } = *input;
        let way = self.bring(dense, &[], features, RowSource::Host(rows))?;
        self.predict_there(way, probabilities)
    }

    fn predict_there(&mut self, way: Way, probabilities: &mut [f32]) -> Result<()> {
        let batch = probabilities.len();
        self.work(Work::Predict, batch, way)?;
        let Machine { compute, down, .. } = &self.machine;
        compute.record(&self.slots[way.slot].left)?;
        down.wait_for(&self.slots[way.slot].left)?;
        self.down.receive(down, &self.step.probabilities, BROUGHT_AT, 4 * batch as u64)?;
        probabilities.copy_from_slice(self.down.values(BROUGHT_AT, batch)?);
        Ok(())
    }

    fn check(&self, batch: usize) -> Result<()> {
        if batch == 0 || batch > self.batch_max {
            return Err(Error::Batch { found: batch, max: self.batch_max });
        }
        Ok(())
    }

    /// Brings a batch from the host to the slot whose turn it is.
    fn bring(
        &mut self,
        dense: &[f32],
        labels: &[f32],
        features: &[FeatureRows<'_>],
        rows: RowSource<'_>,
    ) -> Result<Way> {
        let architecture = self.host.architecture().clone();
        let batch = dense.len() / architecture.dense_width();
        let mut lists = std::mem::take(&mut self.lists);
        lists.build(features, batch, rows.count(architecture.sparse_feature_size));
        let way = self.bring_lists(&architecture, dense, labels, rows, &lists);
        self.lists = lists;
        way
    }

    fn bring_lists(
        &mut self,
        architecture: &Architecture,
        dense: &[f32],
        labels: &[f32],
        rows: RowSource<'_>,
        lists: &Lists,
    ) -> Result<Way> {
        let resident = match rows {
            RowSource::Host(_) | RowSource::Pulled(_) | RowSource::There(_) => false,
            RowSource::Resident { .. } => true,
        };
        let count = rows.count(architecture.sparse_feature_size);
        if !self.room.holds(count, lists.terms()) {
            let pulled = match rows {
                RowSource::Pulled(floats) => {
                    self.slots[self.next_slot].rows_pinned(floats)?.to_vec()
                }
                RowSource::Host(_) | RowSource::There(_) | RowSource::Resident { .. } => Vec::new(),
            };
            self.grow(architecture, self.room.grown(count, lists.terms()))?;
            if !pulled.is_empty() {
                let slot = &mut self.slots[self.next_slot];
                slot.rows_pinned(pulled.len())?.copy_from_slice(&pulled);
            }
        }
        let slot = self.next_slot;
        self.next_slot = 1 - slot;
        if self.shared && !matches!(rows, RowSource::There(_)) {
            // rows from the host go where a session may still work
            self.slots.iter().try_for_each(|slot| self.machine.up.wait_for(&slot.session_done))?;
        }
        self.slots[slot].bring(&self.machine, architecture, dense, labels, rows, lists)?;
        Ok(Way { slot, weighted: lists.weighted(), resident })
    }

    /// More memory for what batches bring: what was recorded with the old is forgotten first.
    fn grow(&mut self, architecture: &Architecture, room: Room) -> Result<()> {
        self.plans.iter_mut().for_each(|plan| plan.recorded.clear());
        let mut before = Vec::new();
        for slot in &mut self.slots {
            let grown = Slot::new(&self.machine, architecture, room)?;
            before.push(std::mem::replace(slot, grown));
        }
        let (row_gradients, down) = results(&self.machine, architecture, room)?;
        let gradients = std::mem::replace(&mut self.row_gradients, row_gradients);
        if let Some(elsewhere) = &mut self.elsewhere {
            elsewhere.before.push((before, gradients));
        }
        (self.down, self.moved) = (down, self.shared);
        self.room = room;
        Ok(())
    }

    /// Does work: by itself the first time, recorded from the second on.
    fn work(&mut self, work: Work, batch: usize, way: Way) -> Result<()> {
        let at = self.plan(batch)?;
        let doing = Doing {
            machine: &self.machine,
            architecture: self.host.architecture(),
            arena: &self.arena,
            step: &self.step,
            slot: &self.slots[way.slot],
            way,
            row_gradients: &self.row_gradients,
        };
        let Plan { bottom, top, recorded, .. } = &mut self.plans[at];
        let order = || doing.order(work, batch, bottom, top);
        if !self.options.graphs {
            return order();
        }
        let done = recorded.iter().position(|(w, y, _)| (*w, *y) == (work, way));
        match done.map(|at| &mut recorded[at].2) {
            None => {
                order()?; // a library may load code the first time, which can't be recorded
                recorded.push((work, way, None));
                Ok(())
            }
            Some(graph) => {
                if graph.is_none() {
                    *graph = Some(Graph::record(&self.machine.compute, order)?);
                }
                let graph = graph.as_ref().expect("it is recorded");
                Ok(graph.play(&self.machine.compute)?)
            }
        }
    }

    /// The place of the plan for that size of batch, made if need be.
    fn plan(&mut self, batch: usize) -> Result<usize> {
        if let Some(at) = self.plans.iter().position(|plan| plan.batch == batch) {
            let plan = self.plans.remove(at);
            self.plans.push(plan);
            return Ok(self.plans.len() - 1);
        }
        let StepMemory { bottom, top, crossed, crossed_gradient, .. } = &self.step;
        let ends = Ends { input: &self.slots[0].dense, input_gradient: None };
        let bottom = bottom.plan(&self.machine, &self.arena, batch, ends)?;
        let ends = Ends { input: crossed, input_gradient: Some(crossed_gradient) };
        let top = top.plan(&self.machine, &self.arena, batch, ends)?;
        if self.plans.len() == PLANS_MAX {
            self.plans.remove(0);
        }
        self.plans.push(Plan { batch, bottom, top, recorded: Vec::new() });
        Ok(self.plans.len() - 1)
    }
}

/// Brings the weights' brain floats, if there are any, to what the weights are.
fn shorten(machine: &Machine, arena: &Arena) -> Result<()> {
    if let Some(brains) = &arena.brains {
        machine.kernels.to_brain(&machine.compute, &arena.weights, brains)?;
    }
    Ok(())
}

/// Checks that everything fits a batch of `batch` samples and so many floats of rows.
fn check(
    architecture: &Architecture,
    batch: usize,
    dense: &[f32],
    features: &[FeatureRows<'_>],
    floats: usize,
) -> Result<()> {
    let (width, dim) = (architecture.dense_width(), architecture.sparse_feature_size);
    let shape = |what, found, expected: String| Err(Error::Shape { what, found, expected });
    if dense.len() != batch * width {
        return shape("dense", dense.len(), format!("{batch} samples x {width}"));
    }
    if !floats.is_multiple_of(dim) {
        return shape("rows", floats, format!("a multiple of {dim}"));
    }
    if features.len() != architecture.features {
        return shape("features", features.len(), architecture.features.to_string());
    }
    let mut all = features.iter().enumerate();
    all.try_for_each(|(f, feature)| feature.check(f, batch, floats / dim))
}

/// The shape of the dot interaction, if that is how features meet.
fn dots(architecture: &Architecture, options: DeviceOptions) -> Option<Dots> {
    let DeviceOptions { precision, tensor_interaction, .. } = options;
    let precision = if tensor_interaction { precision } else { Precision::F32 };
    let (vectors, dim) =
        (architecture.features as u32 + 1, architecture.sparse_feature_size as u32);
    match architecture.interaction {
        Interaction::Dot => Some(Dots { vectors, dim, with_itself: false, precision }),
        Interaction::DotWithItself => Some(Dots { vectors, dim, with_itself: true, precision }),
        Interaction::Cat => None,
    }
}

/// Memory for the rows' gradients on the device, and for what comes down.
fn results(
    machine: &Machine,
    architecture: &Architecture,
    room: Room,
) -> Result<(Buffer, Download)> {
    let bytes = (4 * room.rows * architecture.sparse_feature_size) as u64;
    let budget = bytes.next_multiple_of(256); // whole as the memory hands it out
    let buffer = Memory::take_shared(&machine.device, budget)?.buffer(bytes)?;
    let brought = bytes.max(4 * room.batch as u64);
    Ok((buffer, Download::new(&machine.device, BROUGHT_AT + brought)?))
}

impl StepMemory {
    fn new(
        machine: &Machine,
        memory: &mut Memory,
        architecture: &Architecture,
        dots: Option<Dots>,
        batch: usize,
    ) -> Result<Self> {
        let bottom_widths = &architecture.mlp_bottom;
        let bottom = Layers::new(machine, memory, bottom_widths, 0, batch, true)?;
        let first = 2 * (bottom_widths.len() - 1);
        let top = Layers::new(machine, memory, &architecture.top_widths(), first, batch, false)?;
        let vectors = features_bytes(architecture, batch);
        let crossed_width = padded(architecture.interaction_width());
        let mut crossed = || Activations::new(memory, batch, crossed_width, machine.brief());
        let (crossed, crossed_gradient) = (crossed()?, crossed()?);
        crossed.clear(machine)?; // columns that nobody writes are zero
        let step = Self {
            dots,
            bottom,
            top,
            features: memory.buffer(vectors)?,
            features_gradient: memory.buffer(vectors)?,
            crossed,
            crossed_gradient,
            losses: memory.buffer(8 * batch as u64)?,
            loss: memory.buffer(4)?,
            probabilities: memory.buffer(4 * batch as u64)?,
        };
        Ok(step)
    }

    fn bytes(architecture: &Architecture, batch: usize, brief: bool) -> u64 {
        let crossed_width = padded(architecture.interaction_width());
        Layers::bytes(&architecture.mlp_bottom, batch, brief)
            + Layers::bytes(&architecture.top_widths(), batch, brief)
            + 2 * features_bytes(architecture, batch)
            + 2 * Activations::bytes(batch, crossed_width, brief)
            + 12 * batch as u64
            + 8 * 256
    }
}

fn features_bytes(architecture: &Architecture, batch: usize) -> u64 {
    (4 * batch * (architecture.features + 1) * architecture.sparse_feature_size) as u64
}

/// What the work of a step is ordered with.
struct Doing<'a> {
    machine: &'a Machine,
    architecture: &'a Architecture,
    arena: &'a Arena,
    step: &'a StepMemory,
    slot: &'a Slot,
    way: Way,
    row_gradients: &'a Buffer,
}

impl Doing<'_> {
    fn order(
        &self,
        work: Work,
        batch: usize,
        bottom: &LayerProducts,
        top: &LayerProducts,
    ) -> Result<()> {
        match work {
            Work::ToRows => {
                self.forward(batch, bottom, top)?;
                self.loss(batch)?;
                self.backward_to_rows(batch, top)
            }
            Work::ToWeights => self.backward_to_weights(batch, bottom, top),
            Work::Predict => {
                self.forward(batch, bottom, top)?;
                let (logits, _) = self.step.top.end();
                let floats = logits.floats(batch)?;
                let probabilities = self.step.probabilities.part(0, 4 * batch as u64)?;
                let Machine { compute, kernels, .. } = self.machine;
                let logits = logits.matrix(&floats, batch);
                Ok(kernels.probabilities(compute, logits, &probabilities)?)
            }
        }
    }

    fn forward(&self, batch: usize, bottom: &LayerProducts, top: &LayerProducts) -> Result<()> {
        let Self { machine, architecture, arena, step, slot, .. } = *self;
        let Machine { compute, kernels, .. } = machine;
        slot.dense.shorten(machine, batch)?;
        step.bottom.forward(machine, arena, bottom, &slot.dense)?;
        let (x, _) = step.bottom.end();
        let x_floats = x.floats(batch)?;
        let from = Columns { matrix: x.matrix(&x_floats, batch), first: 0 };
        let features = self.features(&step.features, batch)?;
        let (x_width, dim) = (architecture.bottom_output() as u32, self.dim());
        let bags = slot.bags(self.way);
        let sparse = architecture.features as u32;
        kernels.pool_terms(compute, bags, &features, dim, sparse, batch as u64)?;
        let crossed = step.crossed.floats(batch)?;
        let crossed_matrix = step.crossed.matrix(&crossed, batch);
        let features_matrix = self.features_matrix(&features, batch);
        match step.dots {
            Some(shape) => {
                let to = Columns { matrix: features_matrix, first: 0 };
                kernels.copy_columns(compute, from, to, x_width)?;
                let width = step.crossed.width as u32;
                kernels.interact(compute, shape, batch as u64, &features, &crossed, width)?;
            }
            None => {
                let to = Columns { matrix: crossed_matrix, first: 0 };
                kernels.copy_columns(compute, from, to, x_width)?;
                let from = Columns { matrix: features_matrix, first: dim };
                let to = Columns { matrix: crossed_matrix, first: x_width };
                kernels.copy_columns(compute, from, to, sparse * dim)?;
            }
        }
        step.crossed.shorten(machine, batch)?;
        step.top.forward(machine, arena, top, &step.crossed)
    }

    fn loss(&self, batch: usize) -> Result<()> {
        let Self { machine, architecture, step, slot, .. } = *self;
        let (logits, gradient) = step.top.end();
        let (logits_floats, gradient) = (logits.floats(batch)?, gradient.floats(batch)?);
        let squared = match architecture.loss {
            Loss::Bce => false,
            Loss::Mse => true,
        };
        machine.kernels.loss(
            &machine.compute,
            logits.matrix(&logits_floats, batch),
            &slot.labels.part(0, 4 * batch as u64)?,
            &gradient,
            &step.losses.part(0, 8 * batch as u64)?,
            &step.loss,
            squared,
        )?;
        Ok(())
    }

    /// Through the top MLP and the interaction to the rows.
    fn backward_to_rows(&self, batch: usize, top: &LayerProducts) -> Result<()> {
        let Self { machine, architecture, arena, step, slot, .. } = *self;
        let Machine { compute, kernels, .. } = machine;
        step.top.backward(machine, arena, top, Some(&step.crossed_gradient))?;
        let features = self.features(&step.features, batch)?;
        let gradient = self.features(&step.features_gradient, batch)?;
        let crossed = step.crossed_gradient.floats(batch)?;
        match step.dots {
            Some(shape) => {
                let width = step.crossed.width as u32;
                let samples = batch as u64;
                kernels.interact_backward(
                    compute, shape, samples, &features, &crossed, width, &gradient,
                )?;
            }
            None => {
                let crossed = step.crossed_gradient.matrix(&crossed, batch);
                let from = Columns { matrix: crossed, first: architecture.bottom_output() as u32 };
                let to =
                    Columns { matrix: self.features_matrix(&gradient, batch), first: self.dim() };
                kernels.copy_columns(
                    compute,
                    from,
                    to,
                    architecture.features as u32 * self.dim(),
                )?;
            }
        }
        let vectors = batch as u64 * (architecture.features as u64 + 1);
        let upstream = Matrix { floats: &gradient, rows: vectors, width: self.dim() };
        let terms = slot.row_terms(self.way);
        Ok(kernels.sum_row_gradients(compute, upstream, terms, self.row_gradients)?)
    }

    /// Through the bottom MLP, and all weights.
    fn backward_to_weights(
        &self,
        batch: usize,
        bottom: &LayerProducts,
        top: &LayerProducts,
    ) -> Result<()> {
        let Self { machine, architecture, arena, step, slot, .. } = *self;
        let Machine { compute, kernels, .. } = machine;
        step.top.weight_gradients(machine, arena, top, &step.crossed)?;
        let (_, x_gradient) = step.bottom.end();
        let x_floats = x_gradient.floats(batch)?;
        let to = Columns { matrix: x_gradient.matrix(&x_floats, batch), first: 0 };
        let features = self.features(&step.features_gradient, batch)?;
        let crossed = step.crossed_gradient.floats(batch)?;
        let from = match step.dots {
            Some(_) => self.features_matrix(&features, batch),
            None => step.crossed_gradient.matrix(&crossed, batch),
        };
        let from = Columns { matrix: from, first: 0 };
        kernels.copy_columns(compute, from, to, architecture.bottom_output() as u32)?;
        step.bottom.backward(machine, arena, bottom, None)?;
        step.bottom.weight_gradients(machine, arena, bottom, &slot.dense)
    }

    fn dim(&self) -> u32 {
        self.architecture.sparse_feature_size as u32
    }

    fn features(&self, of: &Buffer, batch: usize) -> Result<Buffer> {
        Ok(of.part(0, features_bytes(self.architecture, batch))?)
    }

    fn features_matrix<'a>(&self, floats: &'a Buffer, batch: usize) -> Matrix<'a> {
        let width = (self.architecture.features as u32 + 1) * self.dim();
        Matrix { floats, rows: batch as u64, width }
    }
}

impl fmt::Debug for DeviceModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceModel")
            .field("host", &self.host)
            .field("device", self.machine.device.description())
            .field("options", &self.options)
            .field("batch_max", &self.batch_max)
            .finish_non_exhaustive()
    }
}
