//! What a step brings to the model, and the checks of its shapes. It copies nothing.

use std::ops::Range;

use crate::{Architecture, Error, Result};

/// A batch to train on.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Dense values.
    pub dense: &'a [f32], // [batch, dense width]
    /// Labels, 0 or 1 (or, for a soft label, between).
    pub labels: &'a [f32], // [batch]
    /// The unique rows of all tables, one after the other.
    pub rows: &'a [f32], // [n_unique, sparse_feature_size]
    /// For each categorical feature, which rows each sample takes.
    pub features: &'a [FeatureRows<'a>], // [features]
}

/// A batch to train on whose rows are where a network wants them: see [`crate::Network::rows`].
#[derive(Debug, Clone, Copy)]
pub struct PulledInput<'a> {
    /// Dense values.
    pub dense: &'a [f32], // [batch, dense width]
    /// Labels, 0 or 1 (or, for a soft label, between).
    pub labels: &'a [f32], // [batch]
    /// For each categorical feature, which rows each sample takes.
    pub features: &'a [FeatureRows<'a>], // [features]
}

/// A batch to predict.
#[derive(Debug, Clone, Copy)]
pub struct PredictInput<'a> {
    /// Dense values.
    pub dense: &'a [f32], // [batch, dense width]
    /// The unique rows of all tables, one after the other.
    pub rows: &'a [f32], // [n_unique, sparse_feature_size]
    /// For each categorical feature, which rows each sample takes.
    pub features: &'a [FeatureRows<'a>], // [features]
}

/// The rows of one categorical feature: sample s takes the rows
/// `indices[offsets[s]..offsets[s + 1]]`, pooled into one vector, or zeros where it has none.
#[derive(Debug, Clone, Copy)]
pub struct FeatureRows<'a> {
    /// Places among the step's unique rows.
    pub indices: &'a [u32],
    /// Where each sample's indices begin, and the end: ascending from 0 to the number of indices.
    pub offsets: &'a [u32], // [batch + 1]
    /// How a sample's rows become one vector.
    pub pooling: Pooling<'a>,
}

/// How a sample's rows become one vector, as PyTorch's `EmbeddingBag` has it. A bag of one row is
/// that row whichever way (weighted: by a weight of 1), to the bit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pooling<'a> {
    /// Their sum.
    Sum,
    /// Their sum, divided by how many they are.
    Mean,
    /// The sum of each times its weight, which is as it is given and is not learned. Weights stand
    /// beside the indices.
    Weighted(&'a [f32]), // [indices]
}

impl FeatureRows<'_> {
    /// Where the indices of one sample are.
    #[inline]
    pub(crate) fn span(&self, sample: usize) -> Range<usize> {
        self.offsets[sample] as usize..self.offsets[sample + 1] as usize
    }
}

impl PredictInput<'_> {
    /// Checks that everything fits a batch of `batch` samples.
    pub(crate) fn check(&self, architecture: &Architecture, batch: usize) -> Result<()> {
        let (width, dim) = (architecture.dense_width(), architecture.sparse_feature_size);
        let shape = |what, found, expected: String| Err(Error::Shape { what, found, expected });
        if self.dense.len() != batch * width {
            let expected = format!("{batch} samples x {width}");
            return shape("dense", self.dense.len(), expected);
        }
        if !self.rows.len().is_multiple_of(dim) {
            return shape("rows", self.rows.len(), format!("a multiple of {dim}"));
        }
        if self.features.len() != architecture.features {
            return shape("features", self.features.len(), architecture.features.to_string());
        }
        let rows = self.rows.len() / dim;
        self.features.iter().enumerate().try_for_each(|(f, feature)| feature.check(f, batch, rows))
    }
}

impl FeatureRows<'_> {
    pub(crate) fn check(&self, feature: usize, batch: usize, rows: usize) -> Result<()> {
        let FeatureRows { indices, offsets, pooling } = *self;
        if offsets.len() != batch + 1 {
            let expected = format!("{batch} samples + 1");
            return Err(Error::Shape { what: "offsets", found: offsets.len(), expected });
        }
        let offset = |sample: usize, expected: String| {
            Err(Error::Offset { feature, sample, found: offsets[sample], expected })
        };
        if offsets[0] != 0 {
            return offset(0, "0".to_owned());
        }
        if let Some(s) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            return offset(s + 1, format!("at least {}, the one before", offsets[s]));
        }
        if offsets[batch] as usize != indices.len() {
            return offset(batch, format!("{}, the number of indices", indices.len()));
        }
        if let Pooling::Weighted(weights) = pooling
            && weights.len() != indices.len()
        {
            let expected = format!("{}, one for each index of feature {feature}", indices.len());
            return Err(Error::Shape { what: "weights", found: weights.len(), expected });
        }
        // one pass without branches for the usual case; the culprit is looked for afterwards
        let largest = indices.iter().fold(0, |largest, &index| index.max(largest));
        if indices.is_empty() || (largest as usize) < rows {
            return Ok(());
        }
        let place = indices.iter().position(|&index| index as usize >= rows);
        let place = place.expect("the largest index is one of them");
        Err(Error::Index { feature, place, found: indices[place], rows })
    }
}
