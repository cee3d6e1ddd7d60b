//! A tile: a stretch of the batch's samples, with the memory of one pass through the model. A tile
//! goes forward and backward by itself; only the weights' and rows' gradients need all tiles.
//!
//! The cut into tiles follows from the batch alone, never from the number of threads.

use std::ops::Range;

use crate::interaction::Dots;
use crate::loss::probability;
use crate::mlp::{LayerTile, Mlp, PanelTerm};
use crate::pooling::pool;
use crate::sheet::{Sheet, SheetRows};
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
    dense: Sheet, // [tile rows, dense width]
    bottom: Vec<LayerTile>,
    top: Vec<LayerTile>,
    features: Sheet, // [tile rows, feature width]: x, e1, …, eM
    crossing: Option<Crossing>,
    loss_sum: f64,
}

/// The dot interaction's part of a tile; cat has none, for there the features are the top's input.
struct Crossing {
    dots: Dots,
    crossed: Sheet,          // [tile rows, interaction width]: x, products
    crossed_gradient: Sheet, // [tile rows, interaction width]
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
            crossed: Sheet::new(rows, architecture.interaction_width()),
            crossed_gradient: Sheet::new(rows, architecture.interaction_width()),
        };
        Self {
            samples: 0..0,
            dense: Sheet::new(rows, architecture.dense_width()),
            bottom: bottom.tile(rows),
            top: top.tile(rows),
            features: Sheet::new(rows, width),
            crossing: match architecture.interaction {
                Interaction::Dot => Some(crossing(false)),
                Interaction::DotWithItself => Some(crossing(true)),
                Interaction::Cat => None,
            },
            loss_sum: 0.0,
        }
    }

    /// The bottom MLP's outputs of `samples`, which stay in the tile.
    pub(crate) fn forward_bottom(
        &mut self,
        bottom: &Mlp,
        dense: &[f32], // [batch, width]
        width: usize,
        samples: Range<usize>,
    ) {
        let n = samples.len();
        let stride = self.dense.stride();
        let rows = self.dense.rows_mut(n).chunks_exact_mut(stride);
        for (row, values) in rows.zip(dense[samples.start * width..].chunks_exact(width)) {
            row[..width].copy_from_slice(values);
        }
        bottom.forward(n, &self.dense, &mut self.bottom);
        self.samples = samples;
    }

    /// The logits of the samples that went through the bottom MLP, which stay in the tile.
    pub(crate) fn forward_top(&mut self, shared: Shared<'_>) {
        let Shared { architecture, top, input, .. } = shared;
        let (samples, n) = (self.samples.clone(), self.samples.len());
        let x_width = architecture.bottom_output();
        let x = &output(&self.bottom);
        let x = x.rows(n).chunks_exact(x.stride());
        let width = self.features.stride();
        let features = self.features.rows_mut(n);
        for (row, x) in features.chunks_exact_mut(width).zip(x) {
            row[..x_width].copy_from_slice(&x[..x_width]);
        }
        let dim = architecture.sparse_feature_size;
        pool(input.features, input.rows, dim, samples, x_width, width, features);

        match &mut self.crossing {
            None => top.forward(n, &self.features, &mut self.top),
            Some(Crossing { dots, crossed, .. }) => {
                let stride = crossed.stride();
                let rows = crossed.rows_mut(n).chunks_exact_mut(stride);
                for (row, features) in rows.zip(features.chunks_exact(width)) {
                    let (x, products) =
                        row[..architecture.interaction_width()].split_at_mut(x_width);
                    x.copy_from_slice(&features[..x_width]);
                    dots.forward(&features[..architecture.feature_width()], products);
                }
                top.forward(n, crossed, &mut self.top);
            }
        }
    }

    /// Writes the probabilities of the samples that went forward.
    pub(crate) fn probabilities(&self, target: &mut [f32]) {
        let logits = output(&self.top);
        let logits = logits.rows(self.samples.len()).chunks_exact(logits.stride());
        target.iter_mut().zip(logits).for_each(|(p, logit)| *p = probability(logit[0]));
    }

    /// From the labels of the samples that went forward to the gradient of every layer and of the
    /// pooled features, which it writes.
    pub(crate) fn backward(
        &mut self,
        shared: Shared<'_>,
        loss: Loss,
        labels: &[f32],
        features_gradient: SheetRows<'_>, // [samples, feature width]
    ) {
        let Shared { architecture, bottom, top, .. } = shared;
        let (n, batch) = (self.samples.len(), labels.len());
        let x_width = architecture.bottom_output();
        let last = self.top.last_mut().expect("an MLP has a layer");
        let stride = last.output.stride();
        let logits = last.output.rows(n).chunks_exact(stride);
        let gradients = last.gradient.rows_mut(n).chunks_exact_mut(stride);
        self.loss_sum = 0.0;
        for ((logit, gradient), &label) in logits.zip(gradients).zip(&labels[self.samples.clone()])
        {
            let (loss_here, slope) = loss.of_logit(logit[0], label, batch);
            self.loss_sum += loss_here;
            gradient[0] = slope;
        }

        let (width, SheetRows { values, stride }) = (self.features.stride(), features_gradient);
        match &mut self.crossing {
            None => {
                top.backward(n, &mut self.top, Some(SheetRows { values: &mut *values, stride }))
            }
            Some(Crossing { dots, crossed_gradient, .. }) => {
                top.backward(n, &mut self.top, Some(crossed_gradient.part_mut(n)));
                let features = self.features.rows(n).chunks_exact(width);
                let gradients = values.chunks_exact_mut(stride);
                let crossed = crossed_gradient.rows(n).chunks_exact(crossed_gradient.stride());
                for (crossed, (features, gradient)) in crossed.zip(features.zip(gradients)) {
                    let (x, products) =
                        crossed[..architecture.interaction_width()].split_at(x_width);
                    let gradient = &mut gradient[..architecture.feature_width()];
                    dots.backward(&features[..architecture.feature_width()], products, gradient);
                    gradient.iter_mut().zip(x).for_each(|(g, &x)| *g += x);
                }
            }
        }

        let last = self.bottom.last_mut().expect("an MLP has a layer");
        let last_stride = last.gradient.stride();
        let x_gradient = last.gradient.rows_mut(n).chunks_exact_mut(last_stride);
        for (target, row) in x_gradient.zip(values.chunks_exact(stride)) {
            target[..x_width].copy_from_slice(&row[..x_width]);
        }
        bottom.backward(n, &mut self.bottom, None);
    }

    /// The sum of the samples' losses.
    pub(crate) fn loss_sum(&self) -> f64 {
        self.loss_sum
    }

    /// This tile's term of a layer's weight gradient.
    pub(crate) fn term(&self, part: Part, layer: usize) -> PanelTerm<'_> {
        let layers = match part {
            Part::Bottom => &self.bottom,
            Part::Top => &self.top,
        };
        let first = || match (part, &self.crossing) {
            (Part::Bottom, _) => &self.dense,
            (Part::Top, Some(crossing)) => &crossing.crossed,
            (Part::Top, None) => &self.features,
        };
        let input = layer.checked_sub(1).map_or_else(first, |before| &layers[before].output);
        PanelTerm { samples: self.samples.len(), input, layer: &layers[layer] }
    }
}

fn output(layers: &[LayerTile]) -> &Sheet {
    &layers.last().expect("an MLP has a layer").output
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
