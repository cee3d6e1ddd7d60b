//! Rows to samples: pooling of jagged features. It does not know where rows come from; the way back
//! is `row_terms`.

use std::ops::Range;

use crate::kernels::{Bags, sum_bags};
use crate::step::{FeatureRows, Pooling};

/// Writes each feature's pooled rows for some samples, side by side from column `first` on.
pub(crate) fn pool(
    features: &[FeatureRows<'_>],
    rows: &[f32], // [n_unique, dim]
    dim: usize,
    samples: Range<usize>,
    first: usize,
    width: usize,
    target: &mut [f32], // [samples, width]
) {
    for (f, feature) in features.iter().enumerate() {
        let column = first + f * dim;
        let bags = feature.bags(samples.clone(), dim, column, width);
        match feature.pooling {
            Pooling::Sum => sum_bags(bags, rows, target),
            Pooling::Mean => {
                sum_bags(bags, rows, target);
                for (span, target) in bags.iter_mut(target) {
                    if !span.is_empty() {
                        scale(target, share(span.len()));
                    }
                }
            }
            Pooling::Weighted(weights) => {
                for (span, target) in bags.iter_mut(target) {
                    pool_weighted(&feature.indices[span.clone()], &weights[span], rows, target);
                }
            }
        }
    }
}

/// Writes the sum of one bag's rows, each times its weight: the indices in order, each product
/// rounded before it is added.
fn pool_weighted(
    indices: &[u32],
    weights: &[f32],    // [indices]
    rows: &[f32],       // [n_unique, dim]
    target: &mut [f32], // [dim]
) {
    let dim = target.len();
    let mut terms = indices.iter().zip(weights);
    let Some((&first, &weight)) = terms.next() else { return target.fill(0.0) };
    target.copy_from_slice(row(rows, dim, first));
    scale(target, weight);
    for (&index, &weight) in terms {
        add_scaled(target, row(rows, dim, index), weight);
    }
}

impl<'a> FeatureRows<'a> {
    /// Some samples' bags, and where their vectors are in a matrix of so many floats a row.
    fn bags(&self, samples: Range<usize>, dim: usize, column: usize, stride: usize) -> Bags<'a> {
        let offsets = &self.offsets[samples.start..=samples.end];
        Bags { indices: self.indices, offsets, dim, column, stride }
    }
}

/// What each of so many rows counts in their mean.
pub(crate) fn share(rows: usize) -> f32 {
    1.0 / rows as f32
}

fn row(rows: &[f32], dim: usize, index: u32) -> &[f32] {
    &rows[index as usize * dim..][..dim]
}

#[inline]
fn scale(target: &mut [f32], by: f32) {
    target.iter_mut().for_each(|x| *x *= by);
}

/// The product is rounded before it is added, so that no processor fuses both.
#[inline]
fn add_scaled(target: &mut [f32], source: &[f32], by: f32) {
    target.iter_mut().zip(source).for_each(|(x, &y)| *x += y * by);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::row_terms::{RowTerms, Vectors};
    use crate::workers::Workers;

    fn feature<'a>(indices: &'a [u32], offsets: &'a [u32]) -> FeatureRows<'a> {
        FeatureRows { indices, offsets, pooling: Pooling::Sum }
    }

    #[test]
    fn a_bag_is_summed_and_an_empty_one_is_zeros() {
        let rows = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0];
        let features = [feature(&[2, 0, 2], &[0, 0, 3]), feature(&[1, 1], &[0, 1, 2])];
        let mut target = [f32::NAN; 10];
        for row in target.chunks_mut(5) {
            row[0] = -1.0; // the column before the features is another's
        }
        pool(&features, &rows, 2, 0..2, 1, 5, &mut target);
        assert_eq!(target, [-1.0, 0.0, 0.0, 10.0, 20.0, -1.0, 201.0, 402.0, 10.0, 20.0]);
    }

    /// There and back of one feature: the pooled vectors and the rows' gradients.
    fn pooled(
        feature: FeatureRows<'_>,
        rows: &[f32],     // [n_unique, dim]
        upstream: &[f32], // [samples, dim]
        dim: usize,
    ) -> (Vec<f32>, Vec<f32>) {
        let samples = feature.offsets.len() - 1;
        let mut vectors = vec![f32::NAN; samples * dim];
        pool(&[feature], rows, dim, 0..samples, 0, dim, &mut vectors);
        let mut gradients = vec![f32::NAN; rows.len()];
        let (mut terms, mut workers) = (RowTerms::default(), Workers::new(1).unwrap());
        let place = Vectors { first: 0, dim, stride: dim };
        terms.list(&[feature], rows.len() / dim, place, &mut workers).unwrap();
        terms.shares(dim, &mut gradients).for_each(|share| share.fill(upstream));
        (vectors, gradients)
    }

    #[test]
    fn every_way_of_pooling_is_embedding_bags() {
        let rows = [0.5, -1.25, 2.0, 0.75, -0.3, 1.1, 0.7, 0.9];
        let (indices, offsets) = ([2, 0, 2, 3, 1, 3, 3], [0, 0, 3, 4, 7]);
        let weights = [0.5, -2.0, 0.25, 1.5, 0.1, 0.3, -0.7];
        let upstream = [1.0, 2.0, 3.0, -1.0, 0.5, 0.25, -2.0, 4.0];
        // PyTorch 2.12.0: nn.EmbeddingBag(mode), its output and its weight's gradient
        let cases = [
            (
                Pooling::Sum,
                [0.0, 0.0, -0.1, 0.95, 0.7, 0.9, 3.4, 2.55],
                [3.0, -1.0, -2.0, 4.0, 6.0, -2.0, -3.5, 8.25],
            ),
            (
                Pooling::Mean,
                [0.0, 0.0, -0.033333343, 0.3166667, 0.7, 0.9, 1.1333333, 0.85],
                [1.0, -0.33333334, -0.6666667, 1.3333334, 2.0, -0.6666667, -0.8333334, 2.9166667],
            ),
            (
                Pooling::Weighted(&weights),
                [0.0, 0.0, -1.225, 3.325, 1.05, 1.35, -0.08, -0.285],
                [-6.0, 2.0, -0.2, 0.4, 2.25, -0.75, 1.55, -1.225],
            ),
        ];
        for (pooling, vectors, gradients) in cases {
            let feature = FeatureRows { indices: &indices, offsets: &offsets, pooling };
            let found = pooled(feature, &rows, &upstream, 2);
            for (found, expected) in [(found.0, vectors), (found.1, gradients)] {
                for (found, expected) in found.iter().zip(expected) {
                    assert!((found - expected).abs() < 1e-6, "{pooling:?}: {found} {expected}");
                }
            }
        }
    }

    /// Indices with their weights, and the upstream gradient.
    type WeightedBag = (Vec<(u32, f32)>, [f32; 3]);

    /// Bags of indices below 9.
    fn weighted_bags() -> impl Strategy<Value = Vec<WeightedBag>> {
        let bag = prop::collection::vec((0_u32..9, -2.0_f32..2.0), 0..12);
        prop::collection::vec((bag, prop::array::uniform3(-3.0_f32..3.0)), 1..12)
    }

    proptest! {
        #[test]
        fn every_way_is_its_definition_in_doubles(
            bags in weighted_bags(),
            rows in prop::collection::vec(-4.0_f32..4.0, 27),
        ) {
            const DIM: usize = 3;
            let (taken, upstream): (Vec<_>, Vec<_>) = bags.iter().cloned().unzip();
            let (indices, weights): (Vec<u32>, Vec<f32>) = taken.iter().flatten().copied().unzip();
            let mut offsets = vec![0];
            for bag in &taken {
                offsets.push(offsets[offsets.len() - 1] + bag.len() as u32);
            }
            for pooling in [Pooling::Sum, Pooling::Mean, Pooling::Weighted(&weights)] {
                let (mut vectors, mut gradients) = (Vec::new(), vec![0.0_f64; rows.len()]);
                for (bag, upstream) in taken.iter().zip(&upstream) {
                    let mut vector = [0.0_f64; DIM];
                    for &(index, weight) in bag {
                        let by = match pooling {
                            Pooling::Sum => 1.0,
                            Pooling::Mean => 1.0 / bag.len() as f64,
                            Pooling::Weighted(_) => f64::from(weight),
                        };
                        for (k, sum) in vector.iter_mut().enumerate() {
                            let place = index as usize * DIM + k;
                            *sum += by * f64::from(rows[place]);
                            gradients[place] += by * f64::from(upstream[k]);
                        }
                    }
                    vectors.extend(vector);
                }
                let feature = FeatureRows { indices: &indices, offsets: &offsets, pooling };
                let found = pooled(feature, &rows, &upstream.concat(), DIM);
                let near = |found: &[f32], expected: &[f64], bound: f64| {
                    let mut both = found.iter().zip(expected);
                    both.all(|(&found, expected)| (f64::from(found) - expected).abs() < bound)
                };
                // 11 and 11 x 11 terms of up to 8 and 6: some sums of f32's last place of 100, 800
                prop_assert!(near(&found.0, &vectors, 1e-4), "{pooling:?}");
                prop_assert!(near(&found.1, &gradients, 1e-3), "{pooling:?}");
                for (bag, vector) in taken.iter().zip(found.0.chunks(DIM)) {
                    prop_assert!(!bag.is_empty() || vector == [0.0; DIM]);
                }
                for row in (0..9).filter(|row| !indices.contains(row)) {
                    prop_assert_eq!(&found.1[row as usize * DIM..][..DIM], &[0.0; DIM]);
                }
            }
        }
    }
}
