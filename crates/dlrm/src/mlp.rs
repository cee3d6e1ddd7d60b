//! A multi-layer perceptron on one tile of samples: forward, backward, and the weights' gradient
//! from all tiles. It neither holds the threads nor updates a weight.

use std::ops::Range;

use crate::DenseOptimizer;
use crate::kernels::{Finish, LANES, Left, PANEL, Right, Term, add_rows, product, turn};
use crate::parameter::{Tensor, TensorPart};
use crate::sheet::{Sheet, SheetRows};

/// Tiles whose terms of a weight gradient are summed in registers before memory sees their sum.
const TERMS: usize = 2;

/// Fully connected layers, each but perhaps the last followed by ReLU.
pub(crate) struct Mlp {
    layers: Vec<Layer>,
}

struct Layer {
    weight: Tensor, // [outputs, inputs]
    bias: Tensor,   // [outputs]
    /// The weights as products forward read them. It follows every change of them.
    turned: Sheet, // [outputs / PANEL, inputs, PANEL]: zeros after the last output
    inputs: usize,
    outputs: usize,
    rectified: bool,
}

/// What one tile of samples keeps of one layer between forward and backward.
pub(crate) struct LayerTile {
    pub output: Sheet, // [tile rows, outputs], after ReLU
    /// By the value before ReLU.
    pub gradient: Sheet, // [tile rows, outputs]
}

/// Some output rows of a layer's weight gradient, to be summed over the tiles.
pub(crate) struct Panel<'a> {
    pub layer: usize,
    outputs: Range<usize>,
    inputs: usize,
    stride: usize,
    weight: &'a mut [f32], // [outputs, stride]
    bias: &'a mut [f32],   // [outputs]
}

/// One tile's part in a weight gradient.
pub(crate) struct PanelTerm<'a> {
    pub samples: usize,
    pub input: &'a Sheet, // [samples, inputs]
    pub layer: &'a LayerTile,
}

/// The parameters of at most `PANEL` outputs of a layer, to be changed and laid out.
pub(crate) struct Strip<'a> {
    weight: TensorPart<'a>, // [outputs, stride]
    bias: TensorPart<'a>,   // [outputs], zeros after the last
    turned: &'a mut [f32],  // [inputs, PANEL]
    stride: usize,
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
                turned: Sheet::with_stride(outputs.div_ceil(PANEL) * inputs, PANEL),
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
            output: Sheet::new(rows, layer.outputs),
            gradient: Sheet::new(rows, layer.outputs),
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
    pub(crate) fn forward(&self, samples: usize, input: &Sheet, tiles: &mut [LayerTile]) {
        for (l, layer) in self.layers.iter().enumerate() {
            let (before, rest) = tiles.split_at_mut(l);
            let input = before.last().map_or(input, |tile| &tile.output);
            let output = &mut rest[0].output;
            let (turned, bias) = (&layer.turned, &layer.bias.values);
            let term = Term {
                left: Left { values: input.rows(samples), row: input.stride(), column: 1 },
                right: Right { values: turned.all(), panel: layer.inputs * PANEL, row: PANEL },
                inner: layer.inputs,
            };
            let shape = (samples, layer.outputs.next_multiple_of(LANES));
            let finish = Finish::Bias { bias: bias.all(), rectify: layer.rectified };
            let stride = output.stride();
            product(&[term], shape, output.rows_mut(samples), stride, finish);
        }
    }

    /// From the gradient by the last layer's output, which the caller has put in place, to the
    /// gradient of every layer and, where asked for, that of the input.
    pub(crate) fn backward(
        &self,
        samples: usize,
        tiles: &mut [LayerTile],
        mut input_gradient: Option<SheetRows<'_>>, // [samples, inputs]
    ) {
        if let (Some(layer), Some(LayerTile { output, gradient })) =
            (self.layers.last(), tiles.last_mut())
            && layer.rectified
        {
            cut_where_rectified(gradient.rows_mut(samples), output.rows(samples));
        }
        for (l, layer) in self.layers.iter().enumerate().rev() {
            let (before, rest) = tiles.split_at_mut(l);
            let gradient = &rest[0].gradient;
            let (target, finish) = match (before.last_mut(), input_gradient.take()) {
                (Some(LayerTile { output, gradient }), wanted) => {
                    input_gradient = wanted;
                    (gradient.part_mut(samples), Finish::Cut { by: output.rows(samples) })
                }
                (None, Some(target)) => (target, Finish::Set),
                (None, None) => continue,
            };
            let weight = &layer.weight.values;
            let term = Term {
                left: Left { values: gradient.rows(samples), row: gradient.stride(), column: 1 },
                right: Right { values: weight.all(), panel: PANEL, row: weight.stride() },
                inner: layer.outputs,
            };
            let shape = (samples, layer.inputs.next_multiple_of(LANES));
            product(&[term], shape, target.values, target.stride, finish);
        }
    }

    /// The parameters of all layers, to be changed side by side.
    pub(crate) fn strips(&mut self) -> impl Iterator<Item = Strip<'_>> {
        self.layers.iter_mut().flat_map(|layer| {
            let Layer { weight, bias, turned, inputs, .. } = layer;
            let (inputs, stride) = (*inputs, weight.values.stride());
            let parameters = weight.parts(PANEL * stride).zip(bias.parts(PANEL));
            let turned = turned.all_mut().chunks_mut(PANEL * inputs);
            parameters.zip(turned).map(move |((weight, bias), turned)| Strip {
                weight,
                bias,
                turned,
                stride,
            })
        })
    }

    /// The gradients of all layers in panels of at most `outputs_max` outputs.
    pub(crate) fn panels(&mut self, outputs_max: usize) -> impl Iterator<Item = Panel<'_>> {
        self.layers.iter_mut().enumerate().flat_map(move |(l, layer)| {
            let Layer { weight, bias, inputs, outputs, .. } = layer;
            let (inputs, outputs, stride) = (*inputs, *outputs, weight.gradient.stride());
            let weights = weight.gradient.all_mut().chunks_mut(outputs_max * stride);
            let biases = bias.gradient.all_mut()[..outputs].chunks_mut(outputs_max);
            weights.zip(biases).enumerate().map(move |(i, (weight, bias))| {
                let start = i * outputs_max;
                let outputs = start..start + bias.len();
                Panel { layer: l, outputs, inputs, stride, weight, bias }
            })
        })
    }
}

impl Panel<'_> {
    /// Sums the terms of so many tiles in their order.
    pub(crate) fn fill<'a>(&mut self, tiles: usize, term: impl Fn(usize) -> PanelTerm<'a>) {
        let shape = (self.outputs.len(), self.inputs);
        self.bias.fill(0.0);
        for first in (0..tiles).step_by(TERMS) {
            let count = TERMS.min(tiles - first);
            let terms: [Term<'_>; TERMS] = std::array::from_fn(|t| {
                let PanelTerm { samples, input, layer } = term(first + t.min(count - 1));
                let gradient = &layer.gradient;
                let values = &gradient.rows(samples)[self.outputs.start..];
                Term {
                    left: Left { values, row: 1, column: gradient.stride() },
                    right: Right { values: input.rows(samples), panel: PANEL, row: input.stride() },
                    inner: samples,
                }
            });
            let finish = if first == 0 { Finish::Set } else { Finish::Add };
            product(&terms[..count], shape, self.weight, self.stride, finish);
            for t in first..first + count {
                let PanelTerm { samples, layer, .. } = term(t);
                let gradient = &layer.gradient;
                let (rows, stride) = (gradient.rows(samples), gradient.stride());
                add_rows(rows, stride, self.outputs.start, self.bias);
            }
        }
    }
}

impl Strip<'_> {
    /// Applies the gradients, then lays the weights out.
    pub(crate) fn apply(&mut self, optimizer: DenseOptimizer, step: u32, learning_rate: f32) {
        optimizer.apply(&mut self.weight, step, learning_rate);
        optimizer.apply(&mut self.bias, step, learning_rate);
        self.lay_out();
    }

    /// Turns the weights for the products forward.
    pub(crate) fn lay_out(&mut self) {
        let (lines, _) = self.turned.as_chunks_mut::<PANEL>();
        turn(self.weight.values, self.stride, lines);
    }
}

fn cut_where_rectified(gradient: &mut [f32], output: &[f32]) {
    for (g, &x) in gradient.iter_mut().zip(output) {
        *g = if x > 0.0 { *g } else { 0.0 };
    }
}
