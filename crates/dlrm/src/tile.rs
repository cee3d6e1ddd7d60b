//! A tile: a stretch of the batch's samples, with the memory of one pass through the model. A tile
//! goes forward and backward by itself; only the weights' and rows' gradients need all tiles.
//!
//! The cut into tiles follows from the batch alone, never from the number of threads.

use std::ops::Range;

use crate::interaction::Dots;
use crate::loss::probability;
use crate::mlp::{LayerTile, Mlp, PanelTerm};
use crate::pooling::pool;
use crate::step::PredictInput;
use crate::{Architecture, Interaction, Loss};

/// A tile of fewer samples wastes the matrix product's packing; one of more outgrows the cache.
const ROWS_MIN: usize = 64;
const ROWS_MAX: usize = 256;
/// As many tiles as this keep that many threads busy, where tiles are not too small by then.
const TILES: usize = 8;
/// Tiles hold whole blocks of the matrix product.
const ROWS_STEP: usize = 16;

/// Samples in each tile, but for the last, of a batch.
pub(crate) fn rows_of(batch: usize) -> usize {
    batch.div_ceil(TILES).next_multiple_of(ROWS_STEP).clamp(ROWS_MIN, ROWS_MAX)
}

/// The most tiles that any batch up to `batch_max` has.
pub(crate) fn count_max(batch_max: usize) -> usize {
    // a larger batch may have fewer tiles, for they are larger, until they are as large as may be
    batch_max.div_ceil(rows_of(batch_max)).max(batch_max.div_ceil(ROWS_MIN).min(TILES))
}

/// One tile.
pub(crate) struct Tile {
    samples: Range<usize>,
    bottom: Vec<LayerTile>,
    top: Vec<LayerTile>,
    features: Vec<f32>,          // [tile rows, feature width]: x, e1, …, eM
    features_gradient: Vec<f32>, // [tile rows, feature width]
    crossing: Option<Crossing>,
    loss_sum: f64,
}

/// The dot interaction's part of a tile; cat has none, for there the features are the top's input.
struct Crossing {
    dots: Dots,
    crossed: Vec<f32>,          // [tile rows, interaction width]: x, products
    crossed_gradient: Vec<f32>, // [tile rows, interaction width]
}

/// What a tile computes with and does not own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    pub architecture: &'a Architecture,
    pub bottom: &'a Mlp,
    pub top: &'a Mlp,
    pub input: &'a PredictInput<'a>,
}

/// One of the two MLPs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Bottom,
    Top,
}

impl Tile {
    /// A tile of up to `rows` samples.
    pub(crate) fn new(architecture: &Architecture, bottom: &Mlp, top: &Mlp, rows: usize) -> Self {
        let (width, dim) = (architecture.feature_width(), architecture.sparse_feature_size);
        let crossing = |with_itself| Crossing {
            dots: Dots::new(architecture.features + 1, dim, with_itself),
            crossed: vec![0.0; rows * architecture.interaction_width()],
            crossed_gradient: vec![0.0; rows * architecture.interaction_width()],
        };
        Self {
            samples: 0..0,
            bottom: bottom.tile(rows),
            top: top.tile(rows),
            features: vec![0.0; rows * width],
            features_gradient: vec![0.0; rows * width],
            crossing: match architecture.interaction {
                Interaction::Dot => Some(crossing(false)),
                Interaction::DotWithItself => Some(crossing(true)),
                Interaction::Cat => None,
            },
            loss_sum: 0.0,
        }
    }

    /// The logits of `samples`, which stay in the tile.
    pub(crate) fn forward(&mut self, shared: Shared<'_>, samples: Range<usize>) {
        let Shared { architecture, bottom, top, input } = shared;
        let (dense, n) = (architecture.dense_width(), samples.len());
        let (x_width, width) = (architecture.bottom_output(), architecture.feature_width());
        self.samples = samples.clone();

        let dense_values = &input.dense[samples.start * dense..samples.end * dense];
        bottom.forward(n, dense_values, &mut self.bottom);
        let x = output(&self.bottom, n * x_width);
        let features = &mut self.features[..n * width];
        for (row, x) in features.chunks_exact_mut(width).zip(x.chunks_exact(x_width)) {
            row[..x_width].copy_from_slice(x);
        }
        let dim = architecture.sparse_feature_size;
        pool(input.features, input.rows, dim, samples, x_width, width, features);

        match &mut self.crossing {
            None => top.forward(n, features, &mut self.top),
            Some(Crossing { dots, crossed, .. }) => {
                let crossed_width = architecture.interaction_width();
                let crossed = &mut crossed[..n * crossed_width];
                let rows = crossed.chunks_exact_mut(crossed_width);
                for (row, features) in rows.zip(features.chunks_exact(width)) {
                    let (x, products) = row.split_at_mut(x_width);
                    x.copy_from_slice(&features[..x_width]);
                    dots.forward(features, products);
                }
                top.forward(n, crossed, &mut self.top);
            }
        }
    }

    /// Writes the probabilities of the samples that went forward.
    pub(crate) fn probabilities(&self, target: &mut [f32]) {
        let logits = output(&self.top, self.samples.len());
        target.iter_mut().zip(logits).for_each(|(p, &logit)| *p = probability(logit));
    }

    /// From the labels of the samples that went forward to the gradient of every layer and of the
    /// pooled features.
    pub(crate) fn backward(&mut self, shared: Shared<'_>, loss: Loss, labels: &[f32]) {
        let Shared { architecture, bottom, top, .. } = shared;
        let (n, width) = (self.samples.len(), architecture.feature_width());
        let x_width = architecture.bottom_output();
        let last = self.top.last_mut().expect("an MLP has a layer");
        let labels_here = &labels[self.samples.clone()];
        self.loss_sum =
            loss.of_logits(&last.output[..n], labels_here, labels.len(), &mut last.gradient[..n]);

        let features = &self.features[..n * width];
        let gradient = &mut self.features_gradient[..n * width];
        match &mut self.crossing {
            None => top.backward(n, &mut self.top, Some(&mut *gradient)),
            Some(Crossing { dots, crossed_gradient, .. }) => {
                let crossed_width = architecture.interaction_width();
                let crossed_gradient = &mut crossed_gradient[..n * crossed_width];
                top.backward(n, &mut self.top, Some(&mut *crossed_gradient));
                let rows = features.chunks_exact(width).zip(gradient.chunks_exact_mut(width));
                for (crossed, (features, gradient)) in
                    crossed_gradient.chunks_exact(crossed_width).zip(rows)
                {
                    let (x, products) = crossed.split_at(x_width);
                    dots.backward(features, products, gradient);
                    gradient.iter_mut().zip(x).for_each(|(g, &x)| *g += x);
                }
            }
        }

        let last = self.bottom.last_mut().expect("an MLP has a layer");
        let x_gradient = last.gradient[..n * x_width].chunks_exact_mut(x_width);
        for (target, row) in x_gradient.zip(gradient.chunks_exact(width)) {
            target.copy_from_slice(&row[..x_width]);
        }
        bottom.backward(n, &mut self.bottom, None);
    }

    /// The sum of the samples' losses.
    pub(crate) fn loss_sum(&self) -> f64 {
        self.loss_sum
    }

    /// The gradient by x, e1, …, eM: [samples, feature width].
    pub(crate) fn features_gradient(&self, width: usize) -> &[f32] {
        &self.features_gradient[..self.samples.len() * width]
    }

    /// This tile's term of a layer's weight gradient.
    pub(crate) fn term<'a>(
        &'a self,
        architecture: &Architecture,
        input: &PredictInput<'a>,
        part: Part,
        layer: usize,
    ) -> PanelTerm<'a> {
        let n = self.samples.len();
        let (layers, widths_before) = match part {
            Part::Bottom => (&self.bottom, &architecture.mlp_bottom[1..]),
            Part::Top => (&self.top, &architecture.mlp_top[..]),
        };
        let first = || match (part, &self.crossing) {
            (Part::Bottom, _) => {
                let width = architecture.dense_width();
                &input.dense[self.samples.start * width..self.samples.end * width]
            }
            (Part::Top, Some(crossing)) => {
                &crossing.crossed[..n * architecture.interaction_width()]
            }
            (Part::Top, None) => &self.features[..n * architecture.feature_width()],
        };
        let input = match layer.checked_sub(1) {
            None => first(),
            Some(before) => &layers[before].output[..n * widths_before[before]],
        };
        PanelTerm { samples: n, input, layer: &layers[layer] }
    }
}

fn output(layers: &[LayerTile], len: usize) -> &[f32] {
    &layers.last().expect("an MLP has a layer").output[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_batch_needs_more_or_larger_tiles_than_there_are() {
        for batch_max in 1..5000 {
            let (rows, count) = (rows_of(batch_max), count_max(batch_max));
            assert!(rows * count < 2 * batch_max + ROWS_MIN + TILES * ROWS_STEP, "{batch_max}");
            for batch in [1, batch_max / 3, batch_max / 2, batch_max * 7 / 8, batch_max - 1] {
                assert!(rows_of(batch) <= rows, "{batch} of {batch_max}");
                assert!(batch.div_ceil(rows_of(batch)) <= count, "{batch} of {batch_max}");
            }
        }
        assert_eq!((rows_of(2048), rows_of(128), rows_of(1)), (256, 64, 64));
    }
}
