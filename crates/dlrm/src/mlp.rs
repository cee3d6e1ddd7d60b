//! A multi-layer perceptron on one tile of samples: forward, backward, and the weights' gradient
//! from all tiles. It neither holds the threads nor updates a weight.

use std::ops::Range;

use crate::DenseOptimizer;
use crate::matmul::{Matrix, add_product, multiply};
use crate::parameter::Tensor;

/// Fully connected layers, each but perhaps the last followed by ReLU.
pub(crate) struct Mlp {
    layers: Vec<Layer>,
}

struct Layer {
    weight: Tensor, // [outputs, inputs]
    bias: Tensor,   // [outputs]
    inputs: usize,
    outputs: usize,
    rectified: bool,
}

/// What one tile of samples keeps of one layer between forward and backward.
pub(crate) struct LayerTile {
    pub output: Vec<f32>, // [tile rows, outputs], after ReLU
    /// By the output; after backward, by the value before ReLU.
    pub gradient: Vec<f32>, // [tile rows, outputs]
    bias_gradient: Vec<f32>, // [outputs], this tile's sum
}

/// Some output rows of a layer's weight gradient, to be summed over the tiles.
pub(crate) struct Panel<'a> {
    pub layer: usize,
    outputs: Range<usize>,
    weight: &'a mut [f32], // [outputs, inputs]
    bias: &'a mut [f32],   // [outputs]
}

/// One tile's part in a weight gradient.
pub(crate) struct PanelTerm<'a> {
    pub samples: usize,
    pub input: &'a [f32], // [samples, inputs]
    pub layer: &'a LayerTile,
}

impl Mlp {
    /// An MLP of `widths`, input first, its parameters named `prefix.0.weight`, `prefix.0.bias`,
    /// `prefix.2.weight`, … as in facebookresearch/dlrm, where activations take the odd numbers.
    /// Weights are drawn from N(0, sqrt(2/(in+out))) and biases from N(0, sqrt(1/out)), its rule.
    pub(crate) fn draw(
        prefix: &str,
        widths: &[usize],
        last_rectified: bool,
        seed: u64,
        optimizer: DenseOptimizer,
    ) -> Self {
        let layer = |(i, pair): (usize, &[usize])| {
            let (inputs, outputs) = (pair[0], pair[1]);
            let draw = |kind, shape, variance: f64| {
                let name = format!("{prefix}.{}.{kind}", 2 * i);
                Tensor::draw(name, shape, libm::sqrt(variance), seed, optimizer)
            };
            Layer {
                weight: draw("weight", vec![outputs, inputs], 2.0 / (inputs + outputs) as f64),
                bias: draw("bias", vec![outputs], 1.0 / outputs as f64),
                inputs,
                outputs,
                rectified: last_rectified || i + 2 < widths.len(),
            }
        };
        Self { layers: widths.windows(2).enumerate().map(layer).collect() }
    }

    /// Buffers for tiles of up to `rows` samples.
    pub(crate) fn tile(&self, rows: usize) -> Vec<LayerTile> {
        let layer = |layer: &Layer| LayerTile {
            output: vec![0.0; rows * layer.outputs],
            gradient: vec![0.0; rows * layer.outputs],
            bias_gradient: vec![0.0; layer.outputs],
        };
        self.layers.iter().map(layer).collect()
    }

    /// Weights and biases, layer after layer.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.layers.iter().flat_map(|layer| [&layer.weight, &layer.bias])
    }

    /// Weights and biases, layer after layer.
    pub(crate) fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.layers.iter_mut().flat_map(|layer| [&mut layer.weight, &mut layer.bias])
    }

    /// Fills the outputs of every layer.
    pub(crate) fn forward(&self, samples: usize, input: &[f32], tiles: &mut [LayerTile]) {
        for (l, layer) in self.layers.iter().enumerate() {
            let (before, rest) = tiles.split_at_mut(l);
            let input = before.last().map_or(input, |tile| &tile.output[..samples * layer.inputs]);
            let output = &mut rest[0].output[..samples * layer.outputs];
            let weight = Matrix::new(&layer.weight.values, layer.outputs, layer.inputs);
            multiply(output, Matrix::new(input, samples, layer.inputs), weight.transposed());
            if layer.rectified {
                add_bias_and_rectify(output, &layer.bias.values);
            } else {
                add_bias(output, &layer.bias.values);
            }
        }
    }

    /// From the gradient by the last layer's output, which the caller has put in place, to the
    /// gradient of every layer and, where asked for, that of the input.
    pub(crate) fn backward(
        &self,
        samples: usize,
        tiles: &mut [LayerTile],
        mut input_gradient: Option<&mut [f32]>, // [samples, inputs]
    ) {
        for (l, layer) in self.layers.iter().enumerate().rev() {
            let (before, rest) = tiles.split_at_mut(l);
            let LayerTile { output, gradient, bias_gradient } = &mut rest[0];
            let gradient = &mut gradient[..samples * layer.outputs];
            if layer.rectified {
                cut_where_rectified(gradient, &output[..samples * layer.outputs]);
            }
            sum_rows(gradient, bias_gradient);
            let target = match before.last_mut() {
                Some(tile) => Some(&mut tile.gradient[..samples * layer.inputs]),
                None => input_gradient.take(),
            };
            if let Some(target) = target {
                let weight = Matrix::new(&layer.weight.values, layer.outputs, layer.inputs);
                multiply(target, Matrix::new(gradient, samples, layer.outputs), weight);
            }
        }
    }

    /// The gradients of all layers in panels of at most `outputs_max` outputs.
    pub(crate) fn panels(&mut self, outputs_max: usize) -> impl Iterator<Item = Panel<'_>> {
        self.layers.iter_mut().enumerate().flat_map(move |(l, layer)| {
            let inputs = layer.inputs;
            let weights = layer.weight.gradient.chunks_mut(outputs_max * inputs);
            let biases = layer.bias.gradient.chunks_mut(outputs_max);
            weights.zip(biases).enumerate().map(move |(i, (weight, bias))| {
                let start = i * outputs_max;
                Panel { layer: l, outputs: start..start + bias.len(), weight, bias }
            })
        })
    }
}

impl Panel<'_> {
    /// Sums the tiles' terms in their order.
    pub(crate) fn fill<'a>(&mut self, terms: impl Iterator<Item = PanelTerm<'a>>) {
        let inputs = self.weight.len() / self.bias.len();
        self.bias.fill(0.0);
        for (t, term) in terms.enumerate() {
            let outputs = term.layer.bias_gradient.len();
            let gradient = &term.layer.gradient[..term.samples * outputs];
            let gradient = Matrix::new(gradient, term.samples, outputs);
            let left = gradient.columns(self.outputs.clone()).transposed();
            let right = Matrix::new(term.input, term.samples, inputs);
            if t == 0 {
                multiply(self.weight, left, right);
            } else {
                add_product(self.weight, left, right);
            }
            let bias_gradient = &term.layer.bias_gradient[self.outputs.clone()];
            self.bias.iter_mut().zip(bias_gradient).for_each(|(sum, &g)| *sum += g);
        }
    }
}

fn add_bias_and_rectify(output: &mut [f32], bias: &[f32]) {
    for row in output.chunks_exact_mut(bias.len()) {
        for (x, &b) in row.iter_mut().zip(bias) {
            let sum = *x + b;
            *x = if sum < 0.0 { 0.0 } else { sum }; // a NaN stays, so that the loss tells of it
        }
    }
}

fn add_bias(output: &mut [f32], bias: &[f32]) {
    for row in output.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, &b)| *x += b);
    }
}

fn cut_where_rectified(gradient: &mut [f32], output: &[f32]) {
    for (g, &x) in gradient.iter_mut().zip(output) {
        *g = if x > 0.0 { *g } else { 0.0 };
    }
}

/// The sum of the rows, first to last.
fn sum_rows(rows: &[f32], sum: &mut [f32]) {
    sum.fill(0.0);
    for row in rows.chunks_exact(sum.len()) {
        sum.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x);
    }
}
