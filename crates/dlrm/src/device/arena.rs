//! The dense part's parameters in device memory: weights, gradients and optimizer state, each kind
//! in one piece, so that an update is one launch. It computes nothing.
//!
//! Widths are rounded up to whole blocks of eight, so that products find their matrices aligned.
//! What lies beyond a width is zero and stays so: its gradients are sums of products with zero.

use gpu::{Buffer, Memory};

use crate::sheet::Sheet;
use crate::{DenseOptimizer, Model, Result};

/// Every matrix on the device has a multiple of so many columns.
const BLOCK: usize = 8;
/// Parameters begin at a multiple of so many floats: 256 bytes of their brain floats too, which the
/// library of products takes for granted.
const ALIGNMENT: usize = 128;

/// A width on the device.
pub(super) fn padded(width: usize) -> usize {
    width.next_multiple_of(BLOCK)
}

/// Where a parameter lies.
#[derive(Debug, Clone, Copy)]
struct Place {
    first: usize,   // float
    rows: usize,    // with those beyond its height
    columns: usize, // without those beyond its width
}

/// The parameters: of layer l of all, first the bottom MLP's, the weight is at 2 l, then the bias.
#[derive(Debug)]
pub(super) struct Arena {
    places: Vec<Place>,
    pub weights: Buffer,
    pub gradient: Buffer,
    pub states: Vec<Buffer>,
    /// The weights in 16-bit brain floats, where products are made of those.
    pub brains: Option<Buffer>,
}

impl Place {
    fn floats(self) -> usize {
        self.rows * padded(self.columns)
    }
}

fn places(model: &Model) -> (Vec<Place>, usize) {
    let mut first = 0;
    let places = model.tensors().map(|tensor| {
        let (rows, columns) = match tensor.shape[..] {
            [outputs, inputs] => (padded(outputs), inputs),
            _ => (1, tensor.len()), // a bias
        };
        let place = Place { first, rows, columns };
        first = (first + place.floats()).next_multiple_of(ALIGNMENT);
        place
    });
    (places.collect(), first)
}

/// Bytes of device memory that the parameters take.
pub(super) fn bytes(model: &Model, brains: bool) -> u64 {
    let (_, floats) = places(model);
    let kinds = 2 + model.optimizer().state_names().len();
    (floats * 4 * kinds + if brains { floats * 2 } else { 0 } + 256 * 8) as u64
}

impl Arena {
    pub(super) fn new(memory: &mut Memory, model: &Model, brains: bool) -> Result<Self> {
        let (places, floats) = places(model);
        let mut kind = || memory.buffer((floats * 4) as u64);
        let (weights, gradient) = (kind()?, kind()?);
        let states = model.optimizer().state_names().iter().map(|_| kind());
        let states = states.collect::<gpu::Result<_>>()?;
        let brains = brains.then(|| memory.buffer((floats * 2) as u64)).transpose()?;
        let arena = Self { places, weights, gradient, states, brains };
        arena.gradient.write(0, &vec![0.0_f32; floats])?;
        arena.write(model)?;
        Ok(arena)
    }

    /// The part of one kind that a parameter has.
    pub(super) fn part(&self, of: &Buffer, parameter: usize) -> Result<Buffer> {
        let place = self.places[parameter];
        Ok(of.part((place.first * 4) as u64, (place.floats() * 4) as u64)?)
    }

    /// The same of the brain floats.
    pub(super) fn brain_part(&self, parameter: usize) -> Result<Option<Buffer>> {
        let place = self.places[parameter];
        let part =
            |brains: &Buffer| brains.part((place.first * 2) as u64, (place.floats() * 2) as u64);
        Ok(self.brains.as_ref().map(part).transpose()?)
    }

    /// Takes weights and state from the host. Waits for all work.
    pub(super) fn write(&self, model: &Model) -> Result<()> {
        let mut all = vec![0.0_f32; self.weights.bytes() as usize / 4];
        let mut kind = |to: &Buffer, values: &mut dyn Iterator<Item = &Sheet>| -> Result<()> {
            all.fill(0.0);
            for (place, values) in self.places.iter().zip(values) {
                let stride = padded(place.columns);
                let to = all[place.first..].chunks_mut(stride);
                let rows = values.each_row();
                rows.zip(to).for_each(|(row, to)| to[..row.len()].copy_from_slice(row));
            }
            Ok(to.write(0, &all)?)
        };
        kind(&self.weights, &mut model.tensors().map(|tensor| &tensor.values))?;
        for (s, state) in self.states.iter().enumerate() {
            kind(state, &mut model.tensors().map(|tensor| &tensor.state[s]))?;
        }
        Ok(())
    }

    /// Gives the host weights, gradients and state. Waits for all work.
    pub(super) fn read(&self, model: &mut Model) -> Result<()> {
        let mut all = vec![0.0_f32; self.weights.bytes() as usize / 4];
        let mut kind =
            |from: &Buffer, values: &mut dyn Iterator<Item = &mut Sheet>| -> Result<()> {
                from.read(0, &mut all)?;
                for (place, values) in self.places.iter().zip(values) {
                    let stride = padded(place.columns);
                    let from = all[place.first..].chunks(stride);
                    let rows = values.each_row_mut();
                    rows.zip(from).for_each(|(row, from)| row.copy_from_slice(&from[..row.len()]));
                }
                Ok(())
            };
        kind(&self.weights, &mut model.tensors_mut().map(|tensor| &mut tensor.values))?;
        kind(&self.gradient, &mut model.tensors_mut().map(|tensor| &mut tensor.gradient))?;
        for (s, state) in self.states.iter().enumerate() {
            kind(state, &mut model.tensors_mut().map(|tensor| &mut tensor.state[s]))?;
        }
        Ok(())
    }
}

/// The rule as the device has it.
pub(super) fn rule(optimizer: DenseOptimizer) -> gpu::DenseRule {
    match optimizer {
        DenseOptimizer::Sgd => gpu::DenseRule::Sgd,
        DenseOptimizer::Adagrad { eps } => gpu::DenseRule::Adagrad { eps },
        DenseOptimizer::Adam { beta1, beta2, eps } => gpu::DenseRule::Adam { beta1, beta2, eps },
    }
}
