//! One weight or bias with its gradient and optimizer state, named as in facebookresearch/dlrm's
//! `state_dict`. It does not know its layer.
//!
//! Floats lie as matrix products read them, so that weights need no copy on the way back. What is
//! between rows is zero and stays so, as its gradient is: an update may pass over it.

use std::borrow::Cow;
use std::fmt;

use crate::DenseOptimizer;
use crate::initial::fill_normal;
use crate::sheet::Sheet;

/// A parameter of the dense part, to look at.
#[derive(Clone, Copy)]
pub struct Parameter<'a> {
    /// Its name, as `bot_l.0.weight`.
    pub name: &'a str,
    /// Its shape: [out, in] of a weight, [out] of a bias.
    pub shape: &'a [usize],
    tensor: &'a Tensor,
}

/// A parameter of the dense part, whole.
pub(crate) struct Tensor {
    pub name: String,
    pub shape: Vec<usize>,
    pub values: Sheet,     // a bias is one row
    pub gradient: Sheet,   // as the values
    pub state: Vec<Sheet>, // as the values, one for each of the optimizer's state names
}

/// The most floats of state that an optimizer keeps for a weight.
const STATES: usize = 2;

/// Some floats of a parameter, those between rows too.
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
        let (&width, rows) = shape.split_last().expect("a parameter has a dimension");
        let rows: usize = rows.iter().product();
        let sheet = || Sheet::new(rows, width);
        let mut drawn = vec![0.0; rows * width];
        fill_normal(seed, &name, std, &mut drawn);
        let mut values = sheet();
        values.set_dense(&drawn);
        let state: Vec<_> = optimizer.state_names().iter().map(|_| sheet()).collect();
        assert!(state.len() <= STATES, "an optimizer's state");
        Self { name, shape, values, gradient: sheet(), state }
    }

    /// Its elements.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    pub(crate) fn view(&self) -> Parameter<'_> {
        Parameter { name: &self.name, shape: &self.shape, tensor: self }
    }

    /// All floats, those between rows too, in parts of `len`, but for the last.
    pub(crate) fn parts(&mut self, len: usize) -> impl Iterator<Item = TensorPart<'_>> {
        let values = self.values.all_mut().chunks_mut(len);
        let mut state = self.state.iter_mut();
        let mut states = [(); STATES].map(|()| {
            let state: &mut [f32] = state.next().map(Sheet::all_mut).unwrap_or_default();
            state.chunks_mut(len)
        });
        values.zip(self.gradient.all().chunks(len)).map(move |(values, gradient)| {
            let state = states.each_mut().map(|state| state.next().unwrap_or_default());
            TensorPart { values, gradient, state }
        })
    }
}

impl<'a> Parameter<'a> {
    /// Its values, row after row.
    pub fn values(&self) -> Cow<'a, [f32]> {
        self.tensor.values.dense()
    }

    /// The gradient of the last step, of the same shape; after [`crate::Model::rows_first`] that of
    /// the step before, until it is applied.
    pub fn gradient(&self) -> Cow<'a, [f32]> {
        self.tensor.gradient.dense()
    }
}

impl fmt::Debug for Parameter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, shape, tensor: _ } = self;
        f.debug_struct("Parameter")
            .field("name", name)
            .field("shape", shape)
            .finish_non_exhaustive()
    }
}
