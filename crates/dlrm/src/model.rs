//! The model: weights, tiles and threads put together. A training step is `forward_backward`, then
//! `apply_dense`; between them the caller may send the rows' gradients on their way.

use std::fmt;

use crate::mlp::{Mlp, Panel, Strip};
use crate::parameter::{Parameter, Tensor};
use crate::pooling::{RowRegion, row_regions};
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
    batch_max: usize,
    workers: Workers,
    gradients_ready: bool,
    /// Samples of the next batch that went through the bottom MLP already.
    begun: Option<usize>,
    /// Whether weights have changed that are not laid out for the products.
    stale: bool,
    /// The number of the next step, where it is traced.
    step_traced: Option<u64>,
}

/// What can be computed side by side once every tile has gone backward.
enum Sum<'a> {
    Weights(Part, Panel<'a>),
    Rows(RowRegion<'a>),
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
        if batch_max == 0 || u32::try_from(batch_max).is_err() {
            let (found, expected) = (batch_max.to_string(), "1 to 2^32 - 1".to_owned());
            return Err(Error::Field { field: "largest batch", found, expected });
        }
        let bottom = Mlp::draw("bot_l", &architecture.mlp_bottom, true, seed, optimizer);
        let top = Mlp::draw("top_l", &architecture.top_widths(), false, seed, optimizer);
        let rows = tile::rows_of(batch_max);
        let tile = |_| Tile::new(&architecture, &bottom, &top, rows);
        let tiles = (0..tile::count_max(batch_max)).map(tile).collect();
        let workers = Workers::new(threads)?;
        let (steps, gradients_ready, begun, stale, step_traced) = (0, false, None, true, None);
        Ok(Self {
            architecture,
            optimizer,
            bottom,
            top,
            steps,
            tiles,
            batch_max,
            workers,
            gradients_ready,
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
        self.lay_out();
        let rows = tile::rows_of(batch);
        let Self { bottom, tiles, workers, .. } = self;
        workers.for_each(&mut tiles[..batch.div_ceil(rows)], |t, tile| {
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
        let &StepInput { dense, labels, rows, features } = input;
        let input = &PredictInput { dense, rows, features };
        self.gradients_ready = false;
        let step = self.step_traced.take();
        self.check(input, labels.len())?;
        if row_gradients.len() != rows.len() {
            let (what, expected) = ("row gradients", format!("{}, as the rows", rows.len()));
            return Err(Error::Shape { what, found: row_gradients.len(), expected });
        }
        let tiles = self.run_tiles(input, labels.len(), step, |tile, shared| {
            let _span = span!("backward", step);
            tile.backward(shared, shared.architecture.loss, labels);
        });
        self.sum_gradients(input, tiles, step, row_gradients);
        self.gradients_ready = true;
        let loss_sum: f64 = self.tiles[..tiles].iter().map(Tile::loss_sum).sum();
        Ok((loss_sum / labels.len() as f64) as f32)
    }

    /// Applies the dense gradients of the last [`Model::forward_backward`], once.
    ///
    /// The caller guarantees that there was one since the last call; otherwise it panics.
    pub fn apply_dense(&mut self, learning_rate: f32) {
        assert!(self.gradients_ready, "apply_dense without gradients");
        self.gradients_ready = false;
        self.steps = self.steps.saturating_add(1);
        let (optimizer, steps) = (self.optimizer, self.steps);
        (self.stale, self.begun) = (false, None);
        self.for_each_strip(|strip| strip.apply(optimizer, steps, learning_rate));
    }

    /// Lays weights out that have changed since.
    fn lay_out(&mut self) {
        if std::mem::take(&mut self.stale) {
            self.for_each_strip(|strip| strip.lay_out());
        }
    }

    fn for_each_strip(&mut self, each: impl Fn(&mut Strip<'_>) + Sync) {
        let mut strips: Vec<_> = self.top.strips().chain(self.bottom.strips()).collect();
        self.workers.for_each(&mut strips, |_, strip| each(strip));
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
        let tiles = self.run_tiles(input, batch, None, |_, _| ());
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
        if values.len() != tensor.values.len() {
            return Err(Error::Tensor {
                name: name.to_owned(),
                found: format!("{} floats", values.len()),
                expected: format!("{} floats, shape {:?}", tensor.values.len(), tensor.shape),
            });
        }
        tensor.values.copy_from_slice(values);
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

    /// Every tile of the batch forward, then through `then`. Returns how many there are.
    fn run_tiles(
        &mut self,
        input: &PredictInput<'_>,
        batch: usize,
        step: Option<u64>,
        then: impl Fn(&mut Tile, Shared<'_>) + Sync,
    ) -> usize {
        self.lay_out();
        let begun = self.begun.take() == Some(batch);
        let rows = tile::rows_of(batch);
        let tiles = batch.div_ceil(rows);
        let Self { architecture, bottom, top, tiles: all, workers, .. } = self;
        let shared = Shared { architecture, bottom, top, input };
        workers.for_each(&mut all[..tiles], |t, tile| {
            let span = span!("forward", step);
            if !begun {
                let samples = t * rows..batch.min((t + 1) * rows);
                tile.forward_bottom(bottom, input.dense, architecture.dense_width(), samples);
            }
            tile.forward_top(shared);
            drop(span);
            then(tile, shared);
        });
        tiles
    }

    /// Sums over the tiles, in their order: the weights' gradients and the rows'.
    fn sum_gradients(
        &mut self,
        input: &PredictInput<'_>,
        tiles: usize,
        step: Option<u64>,
        row_gradients: &mut [f32], // [n_unique, sparse_feature_size]
    ) {
        let Self { architecture, bottom, top, .. } = self;
        let (architecture, tiles) = (&*architecture, &self.tiles[..tiles]);
        let (dim, width) = (architecture.sparse_feature_size, tiles[0].features_stride());
        let first = architecture.bottom_output();
        let top = top.panels(PANEL_OUTPUTS).map(|panel| Sum::Weights(Part::Top, panel));
        let bottom = bottom.panels(PANEL_OUTPUTS).map(|panel| Sum::Weights(Part::Bottom, panel));
        let rows = row_regions(input.features, dim, row_gradients).into_iter().map(Sum::Rows);
        // what one thread alone must do comes first, so that no other waits for it in the end
        let mut sums: Vec<Sum<'_>> = rows.chain(top).chain(bottom).collect();
        self.workers.for_each(&mut sums, |_, sum| match sum {
            Sum::Weights(part, panel) => {
                let _span = span!("sum weight gradients", step);
                let (part, layer) = (*part, panel.layer);
                panel.fill(tiles.len(), |t| tiles[t].term(part, layer));
            }
            Sum::Rows(region) => {
                let _span = span!("sum row gradients", step);
                let tiles = tiles.iter().map(Tile::features_gradient);
                region.fill(input.features, dim, first, width, tiles);
            }
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
