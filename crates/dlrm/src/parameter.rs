//! One weight or bias with its gradient and optimizer state, named as in facebookresearch/dlrm's
//! `state_dict`. It does not know its layer.

use crate::DenseOptimizer;
use crate::initial::fill_normal;

/// A parameter of the dense part, to look at.
#[derive(Debug, Clone, Copy)]
pub struct Parameter<'a> {
    /// Its name, as `bot_l.0.weight`.
    pub name: &'a str,
    /// Its shape: [out, in] of a weight, [out] of a bias.
    pub shape: &'a [usize],
    /// Its values, row after row.
    pub values: &'a [f32],
    /// The gradient of the last step, of the same shape; after [`crate::Model::rows_first`] that of
    /// the step before, until it is applied.
    pub gradient: &'a [f32],
}

/// A parameter of the dense part, whole.
pub(crate) struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
    pub gradient: Vec<f32>,
    pub state: Vec<Vec<f32>>, // one of the same shape for each of the optimizer's state names
}

/// The most floats of state that an optimizer keeps for a weight.
const STATES: usize = 2;

/// Some elements of a parameter, in a row.
pub(crate) struct TensorPart<'a> {
    pub values: &'a mut [f32],
    pub gradient: &'a [f32],
    pub state: [&'a mut [f32]; STATES], // empty beyond the optimizer's state names
}

impl Tensor {
    /// Drawn from N(0, `std`), its optimizer state zero.
    pub(crate) fn draw(
        name: String,
        shape: Vec<usize>,
        std: f64,
        seed: u64,
        optimizer: DenseOptimizer,
    ) -> Self {
        let len = shape.iter().product();
        let mut values = vec![0.0; len];
        fill_normal(seed, &name, std, &mut values);
        let state: Vec<_> = optimizer.state_names().iter().map(|_| vec![0.0; len]).collect();
        assert!(state.len() <= STATES, "an optimizer's state");
        Self { name, shape, values, gradient: vec![0.0; len], state }
    }

    pub(crate) fn view(&self) -> Parameter<'_> {
        Parameter {
            name: &self.name,
            shape: &self.shape,
            values: &self.values,
            gradient: &self.gradient,
        }
    }

    /// All elements in parts of `len`, but for the last.
    pub(crate) fn parts(&mut self, len: usize) -> impl Iterator<Item = TensorPart<'_>> {
        let values = self.values.chunks_mut(len);
        let mut state = self.state.iter_mut();
        let mut states = [(); STATES].map(|()| {
            let state: &mut [f32] = state.next().map(Vec::as_mut_slice).unwrap_or_default();
            state.chunks_mut(len)
        });
        values.zip(self.gradient.chunks(len)).map(move |(values, gradient)| {
            let state = states.each_mut().map(|state| state.next().unwrap_or_default());
            TensorPart { values, gradient, state }
        })
    }
}
