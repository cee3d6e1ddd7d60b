//! The model: weights, tiles and threads put together. A training step is `rows_first`, then
//! `apply_dense`; between them the caller may send the rows' gradients on their way.

use std::fmt;

use crate::mlp::{Mlp, Strip};
use crate::parameter::{Parameter, Tensor};
use crate::row_terms::{RowTerms, Vectors};
use crate::sheet::{Sheet, SheetRows};
use crate::step::{PredictInput, StepInput};
use crate::tile::{self, Part, Shared, Tile};
use crate::workers::Workers;
use crate::{Architecture, DenseOptimizer, Error, Result};

/// Outputs in a panel of a weight gradient: enough to be worth the product's packing, few enough to
/// occupy several threads.
const PANEL_OUTPUTS: usize = 128;

/// What the model's spans are for in `tracing`; see [`Model::trace_step`].
pub const TRACE_TARGET: &str = "dlrm::trace";

/// Begins a span on this thread, which lasts as long as what is returned, if a step is traced.
macro_rules! span {
    ($name:literal, $step:expr) => {
        $step.map(|step| tracing::trace_span!(target: TRACE_TARGET, $name, step).entered())
    };
}

/// A DLRM with its dense weights, optimizer state, gradients and the memory for one batch.
pub struct Model {
    architecture: Architecture,
    optimizer: DenseOptimizer,
    pub(crate) bottom: Mlp,
    pub(crate) top: Mlp,
    /// Steps applied, which Adam counts.
    pub(crate) steps: u32,
    tiles: Vec<Tile>,
    /// By x, e1, …, eM of each sample.
    features_gradient: Sheet, // [batch_max, feature width]
    row_terms: RowTerms,
    batch_max: usize,
    workers: Workers,
    gradients: Gradients,
    /// Samples of the next batch that went through the bottom MLP already.
    begun: Option<usize>,
    /// Whether weights have changed that are not laid out for the products.
    stale: bool,
    /// The number of the next step, where it is traced.
    step_traced: Option<u64>,
}

/// How far the gradients of the weights are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gradients {
    /// Applied, or there were none.
    None,
    /// So many tiles have their terms, whose sums are not taken yet.
    Terms { tiles: usize, step_traced: Option<u64> },
    /// Summed.
    Ready,
}

impl Model {
    /// A model with weights drawn from `seed`, and all the memory that a batch of up to `batch_max`
    /// samples needs. `threads` compute; they change no bit of any result.
    pub fn new(
        architecture: Architecture,
        optimizer: DenseOptimizer,
        batch_max: usize,
        seed: u64,
        threads: usize,
    ) -> Result<Self> {
        architecture.validate()?;
        optimizer.validate()?;
        // places among the pooled vectors have 32 bits
        let most = u32::MAX as usize / Sheet::new(0, architecture.feature_width()).stride();
        if !(1..=most).contains(&batch_max) {
            let (found, expected) = (batch_max.to_string(), format!("1 to {most}"));
            return Err(Error::Field { field: "largest batch", found, expected });
        }
        let bottom = Mlp::draw("bot_l", &architecture.mlp_bottom, true, seed, optimizer);
        let top = Mlp::draw("top_l", &architecture.top_widths(), false, seed, optimizer);
        let rows = tile::rows_of(batch_max);
        let tile = |_| Tile::new(&architecture, &bottom, &top, rows);
        let tiles = (0..tile::count_max(batch_max)).map(tile).collect();
        let features_gradient = Sheet::new(batch_max, architecture.feature_width());
        let (row_terms, workers) = (RowTerms::default(), Workers::new(threads)?);
        let (steps, gradients, begun, stale) = (0, Gradients::None, None, true);
        let step_traced = None;
        Ok(Self {
            architecture,
            optimizer,
            bottom,
            top,
            steps,
            tiles,
            features_gradient,
            row_terms,
            batch_max,
            workers,
            gradients,
            begun,
            stale,
            step_traced,
        })
    }

    /// The shape of this model.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// The optimizer of the dense part.
    pub fn optimizer(&self) -> DenseOptimizer {
        self.optimizer
    }

    /// The largest batch.
    pub fn batch_max(&self) -> usize {
        self.batch_max
    }

    /// Makes the next [`Model::forward_backward`] tell `tracing` when each thread is at which tile,
    /// as spans that carry this number. None tells nothing.
    pub fn trace_step(&mut self, step: Option<u64>) {
        self.step_traced = step;
    }

    /// Takes the next batch's dense values through the bottom MLP, which needs no row: while that
    /// is done the rows may be fetched. [`Model::forward_backward`] of a batch with the same dense
    /// values must come next; a prediction or new weights between them undo this.
    pub fn begin(
        &mut self,
        dense: &[f32], // [batch, dense width]
    ) -> Result<()> {
        let (width, step) = (self.architecture.dense_width(), self.step_traced);
        let batch = dense.len() / width;
        if batch == 0 || batch > self.batch_max {
            return Err(Error::Batch { found: batch, max: self.batch_max });
        }
        if !dense.len().is_multiple_of(width) {
            let expected = format!("{batch} samples x {width}");
            return Err(Error::Shape { what: "dense", found: dense.len(), expected });
        }
        self.sum_weights(); // of the step before, whose activations this replaces
        self.lay_out();
        let rows = tile::rows_of(batch);
        let Self { bottom, tiles, workers, .. } = self;
        workers.for_each(tiles[..batch.div_ceil(rows)].iter_mut(), |t, tile| {
            let _span = span!("forward bottom", step);
            tile.forward_bottom(bottom, dense, width, t * rows..batch.min((t + 1) * rows));
        });
        self.begun = Some(batch);
        Ok(())
    }

    /// The mean loss of a batch before any update. Keeps the dense gradients for
    /// [`Model::apply_dense`] and writes the rows' gradients: those of equal rows are summed in the
    /// order of samples, features and indices, and a row that no sample takes gets zeros.
    ///
    /// A loss that is not finite is returned as it is; the gradients then are worth nothing.
    pub fn forward_backward(
        &mut self,
        input: &StepInput<'_>,
        row_gradients: &mut [f32], // [n_unique, sparse_feature_size]
    ) -> Result<f32> {
        let loss = self.rows_first(input, row_gradients)?;
        self.sum_weights();
        Ok(loss)
    }

    /// As [`Model::forward_backward`], but the sums of the dense gradients are left to
    /// [`Model::apply_dense`]: a third of a step's products, which need no row. While they are
    /// computed, the rows' gradients may be on their way and the next rows may come.
    pub fn rows_first(
        &mut self,
        input: &StepInput<'_>,
        row_gradients: &mut [f32], // [n_unique, sparse_feature_size]
    ) -> Result<f32> {
        let &StepInput { dense, labels, rows, features } = input;
        let input = &PredictInput { dense, rows, features };
        self.gradients = Gradients::None;
        let step = self.step_traced.take();
        self.check(input, labels.len())?;
        if row_gradients.len() != rows.len() {
            let (what, expected) = ("row gradients", format!("{}, as the rows", rows.len()));
            return Err(Error::Shape { what, found: row_gradients.len(), expected });
        }
        self.list_terms(input, step)?;
        let tiles = self.run_tiles(input, labels.len(), step, |tile, shared, gradient| {
            let _span = span!("backward", step);
            tile.backward(shared, shared.architecture.loss, labels, gradient);
        });
        self.sum_rows(labels.len(), step, row_gradients);
        self.gradients = Gradients::Terms { tiles, step_traced: step };
        let loss_sum: f64 = self.tiles[..tiles].iter().map(Tile::loss_sum).sum();
        Ok((loss_sum / labels.len() as f64) as f32)
    }

    /// Applies the dense gradients of the last [`Model::forward_backward`], once.
    ///
    /// The caller guarantees that there was one since the last call; otherwise it panics.
    pub fn apply_dense(&mut self, learning_rate: f32) {
        self.sum_weights();
        assert!(self.gradients == Gradients::Ready, "apply_dense without gradients");
        self.gradients = Gradients::None;
        self.steps = self.steps.saturating_add(1);
        let (optimizer, steps) = (self.optimizer, self.steps);
        (self.stale, self.begun) = (false, None);
        self.for_each_strip(|mut strip| strip.apply(optimizer, steps, learning_rate));
    }

    /// Lays weights out that have changed since.
    fn lay_out(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.for_each_strip(|mut strip| strip.lay_out());
        }
    }

    fn for_each_strip(&mut self, each: impl Fn(Strip<'_>) + Sync) {
        let Self { bottom, top, workers, .. } = self;
        workers.for_each(top.strips().chain(bottom.strips()), |_, strip| each(strip));
    }

    /// The probabilities of a batch, in its order.
    pub fn predict(
        &mut self,
        input: &PredictInput<'_>,
        probabilities: &mut [f32], // [batch]
    ) -> Result<()> {
        let batch = probabilities.len();
        self.begun = None; // by other dense values
        self.check(input, batch)?;
        self.sum_weights(); // of the step before, whose activations this replaces
        let tiles = self.run_tiles(input, batch, None, |_, _, _| ());
        let rows = tile::rows_of(batch);
        for (tile, target) in self.tiles[..tiles].iter().zip(probabilities.chunks_mut(rows)) {
            tile.probabilities(target);
        }
        Ok(())
    }

    /// The parameters of the dense part: bottom MLP, then top, each layer's weight before its bias.
    pub fn parameters(&self) -> impl Iterator<Item = Parameter<'_>> {
        self.tensors().map(Tensor::view)
    }

    /// Sets a parameter's values; the optimizer's state stays.
    pub fn set_parameter(&mut self, name: &str, values: &[f32]) -> Result<()> {
        let Some(tensor) = self.tensors_mut().find(|tensor| tensor.name == name) else {
            return Err(Error::UnknownTensor { name: name.to_owned() });
        };
        if values.len() != tensor.len() {
            return Err(Error::Tensor {
                name: name.to_owned(),
                found: format!("{} floats", values.len()),
                expected: format!("{} floats, shape {:?}", tensor.len(), tensor.shape),
            });
        }
        tensor.values.set_dense(values);
        Ok(())
    }

    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.bottom.tensors().chain(self.top.tensors())
    }

    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        (self.stale, self.begun) = (true, None);
        self.bottom.tensors_mut().chain(self.top.tensors_mut())
    }

    fn check(&self, input: &PredictInput<'_>, batch: usize) -> Result<()> {
        if batch == 0 || batch > self.batch_max {
            return Err(Error::Batch { found: batch, max: self.batch_max });
        }
        input.check(&self.architecture, batch)
    }

    /// Every tile of the batch forward, then through `then`, with its part of the features'
    /// gradient. Returns how many there are.
    fn run_tiles(
        &mut self,
        input: &PredictInput<'_>,
        batch: usize,
        step: Option<u64>,
        then: impl Fn(&mut Tile, Shared<'_>, SheetRows<'_>) + Sync,
    ) -> usize {
        self.lay_out();
        let begun = self.begun.take() == Some(batch);
        let rows = tile::rows_of(batch);
        let tiles = batch.div_ceil(rows);
        let Self { architecture, bottom, top, tiles: all, workers, features_gradient, .. } = self;
        let shared = Shared { architecture, bottom, top, input };
        let stride = features_gradient.stride();
        let gradients = features_gradient.rows_mut(batch).chunks_mut(rows * stride);
        workers.for_each(all[..tiles].iter_mut().zip(gradients), |t, (tile, values)| {
            let span = span!("forward", step);
            if !begun {
                let samples = t * rows..batch.min((t + 1) * rows);
                tile.forward_bottom(bottom, input.dense, architecture.dense_width(), samples);
            }
            tile.forward_top(shared);
            drop(span);
            then(tile, shared, SheetRows { values, stride });
        });
        tiles
    }

    /// Lists of which pooled vectors each row is a part.
    fn list_terms(&mut self, input: &PredictInput<'_>, step: Option<u64>) -> Result<()> {
        let _span = span!("list rows", step);
        let Self { architecture, features_gradient, row_terms, workers, .. } = self;
        let dim = architecture.sparse_feature_size;
        let (first, stride) = (architecture.bottom_output(), features_gradient.stride());
        let vectors = Vectors { first, dim, stride };
        row_terms.list(input.features, input.rows.len() / dim, vectors, workers)
    }

    /// Sums the rows' gradients over the samples, in their order.
    fn sum_rows(
        &mut self,
        batch: usize,
        step: Option<u64>,
        row_gradients: &mut [f32], // [n_unique, sparse_feature_size]
    ) {
        let Self { architecture, features_gradient, row_terms, workers, .. } = self;
        let vectors = features_gradient.rows(batch);
        let shares = row_terms.shares(architecture.sparse_feature_size, row_gradients);
        workers.for_each(shares, |_, share| {
            let _span = span!("sum row gradients", step);
            share.fill(vectors);
        });
    }

    /// Sums the weights' gradients over the tiles, in their order, if that is not done.
    fn sum_weights(&mut self) {
        let Gradients::Terms { tiles, step_traced } = self.gradients else { return };
        self.gradients = Gradients::Ready;
        let Self { bottom, top, tiles: all, workers, .. } = self;
        let tiles = &all[..tiles];
        let top = top.panels(PANEL_OUTPUTS).map(|panel| (Part::Top, panel));
        let bottom = bottom.panels(PANEL_OUTPUTS).map(|panel| (Part::Bottom, panel));
        workers.for_each(top.chain(bottom), |_, (part, mut panel)| {
            let _span = span!("sum weight gradients", step_traced);
            let layer = panel.layer;
            panel.fill(tiles.len(), |t| tiles[t].term(part, layer));
        });
    }
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Model")
            .field("architecture", &self.architecture)
            .field("optimizer", &self.optimizer)
            .field("batch_max", &self.batch_max)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}
