//! Rows to samples and gradients back: pooling of jagged features, and its reverse. It does not
//! know where rows come from.

use std::ops::Range;

use crate::kernels::{Bags, add_to_rows, sum_bags};
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

/// Features that share no row with features outside, with the stretch of row gradients that they
/// alone write.
pub(crate) struct RowRegion<'a> {
    features: Vec<usize>, // ascending
    first_row: usize,
    gradients: &'a mut [f32], // [rows of the region, dim]
}

/// Splits the row gradients among the features, so that regions can be filled side by side. What is
/// summed into one row, and in which order, does not depend on the split.
pub(crate) fn row_regions<'a>(
    features: &[FeatureRows<'_>],
    dim: usize,
    gradients: &'a mut [f32], // [n_unique, dim]
) -> Vec<RowRegion<'a>> {
    let mut spans: Vec<(u32, u32, usize)> = Vec::with_capacity(features.len());
    for (f, feature) in features.iter().enumerate() {
        let (low, high) =
            feature.indices.iter().fold((u32::MAX, 0), |(l, h), &i| (l.min(i), h.max(i)));
        if low <= high {
            spans.push((low, high, f));
        }
    }
    spans.sort_unstable();
    let mut starts: Vec<(usize, Vec<usize>)> = Vec::with_capacity(spans.len() + 1);
    let mut high_so_far = None;
    for (low, high, f) in spans {
        match starts.last_mut() {
            Some((_, members)) if high_so_far >= Some(low) => members.push(f),
            _ => starts.push((low as usize, vec![f])),
        }
        high_so_far = high_so_far.max(Some(high));
    }
    // every row belongs to a region, for one that no sample takes still gets its zeros
    match starts.first_mut() {
        Some((first, _)) => *first = 0,
        None => starts.push((0, Vec::new())),
    }
    let total = gradients.len() / dim;
    let ends: Vec<usize> = starts.iter().skip(1).map(|&(start, _)| start).chain([total]).collect();
    let (mut regions, mut rest) = (Vec::with_capacity(starts.len()), gradients);
    for ((first_row, mut members), end) in starts.into_iter().zip(ends) {
        let (gradients, later) = rest.split_at_mut((end - first_row) * dim);
        rest = later;
        members.sort_unstable();
        regions.push(RowRegion { features: members, first_row, gradients });
    }
    regions
}

impl RowRegion<'_> {
    /// Sets every row's gradient to the sum over the samples that took it, each term by how much of
    /// the row the sample took: samples in order, the features of a sample in order, the indices of
    /// a feature in order.
    pub(crate) fn fill<'a>(
        &mut self,
        features: &[FeatureRows<'_>],
        dim: usize,
        first: usize,
        width: usize,
        tiles: impl Iterator<Item = &'a [f32]>, // each [samples, width]
    ) {
        self.gradients.fill(0.0);
        let mut start = 0;
        for tile in tiles {
            let samples = start..start + tile.len() / width;
            start = samples.end;
            if let &[f] = &*self.features
                && features[f].pooling == Pooling::Sum
            {
                let bags = features[f].bags(samples, dim, first + f * dim, width);
                add_to_rows(bags, tile, self.first_row, self.gradients);
                continue;
            }
            for (sample, gradient) in samples.zip(tile.chunks_exact(width)) {
                for &f in &self.features {
                    let column = first + f * dim;
                    let gradient = &gradient[column..column + dim];
                    add_bag(&features[f], sample, gradient, self.first_row, self.gradients);
                }
            }
        }
    }
}

/// Adds what one sample gives to the rows of one feature.
#[inline]
fn add_bag(
    feature: &FeatureRows<'_>,
    sample: usize,
    gradient: &[f32], // [dim]
    first_row: usize,
    target: &mut [f32], // [rows from first_row on, dim]
) {
    let (dim, span) = (gradient.len(), feature.span(sample));
    let indices = &feature.indices[span.clone()];
    let places = indices.iter().map(|&index| (index as usize - first_row) * dim);
    match feature.pooling {
        Pooling::Sum => places.for_each(|at| add(&mut target[at..at + dim], gradient)),
        Pooling::Mean => {
            let share = share(indices.len());
            places.for_each(|at| add_scaled(&mut target[at..at + dim], gradient, share));
        }
        Pooling::Weighted(weights) => {
            for (place, &weight) in places.zip(&weights[span]) {
                add_scaled(&mut target[place..place + dim], gradient, weight);
            }
        }
    }
}

/// What each of so many rows counts in their mean.
fn share(rows: usize) -> f32 {
    1.0 / rows as f32
}

fn row(rows: &[f32], dim: usize, index: u32) -> &[f32] {
    &rows[index as usize * dim..][..dim]
}

#[inline]
fn scale(target: &mut [f32], by: f32) {
    target.iter_mut().for_each(|x| *x *= by);
}

#[inline]
fn add(target: &mut [f32], source: &[f32]) {
    target.iter_mut().zip(source).for_each(|(x, &y)| *x += y);
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

    /// Forward and backward of one feature: the pooled vectors and the rows' gradients.
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
        for mut region in row_regions(&[feature], dim, &mut gradients) {
            region.fill(&[feature], dim, 0, dim, upstream.chunks(2 * dim));
        }
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

    #[test]
    fn features_apart_have_regions_of_their_own_and_sharing_ones_have_one() {
        let offsets = [0, 2];
        let spans = |lists: &[[u32; 2]], rows: usize| {
            let features: Vec<_> = lists.iter().map(|list| feature(list, &offsets)).collect();
            let mut gradients = vec![0.0; rows * 3];
            row_regions(&features, 3, &mut gradients)
                .iter()
                .map(|region| {
                    (region.features.clone(), region.first_row, region.gradients.len() / 3)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(
            spans(&[[4, 5], [1, 3], [6, 6]], 9),
            [(vec![1], 0, 4), (vec![0], 4, 2), (vec![2], 6, 3)]
        );
        assert_eq!(spans(&[[3, 5], [0, 3], [7, 6]], 8), [(vec![0, 1], 0, 6), (vec![2], 6, 2)]);
        assert_eq!(spans(&[[0, 9], [2, 3], [5, 6]], 10), [(vec![0, 1, 2], 0, 10)]);
        assert_eq!(spans(&[], 4), [(vec![], 0, 4)]);
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

        #[test]
        fn row_gradients_are_the_sums_over_samples_features_and_indices_in_order(
            bags in proptest::collection::vec(
                proptest::collection::vec(proptest::collection::vec(0_u32..6, 0..4), 5),
                1..5,
            ),
            shared: bool,
        ) {
            let (dim, width, first) = (3, 1 + 3 * bags.len(), 1);
            let mut lists = Vec::new();
            for (f, samples) in bags.iter().enumerate() {
                let base = if shared { 0 } else { 6 * (bags.len() - 1 - f) as u32 };
                let indices: Vec<u32> = samples.iter().flatten().map(|i| base + i).collect();
                let mut offsets = vec![0];
                offsets.extend(samples.iter().scan(0, |end, bag| {
                    *end += bag.len() as u32;
                    Some(*end)
                }));
                lists.push((indices, offsets));
            }
            let features: Vec<_> = lists.iter().map(|(i, o)| feature(i, o)).collect();
            let total = 6 * bags.len();
            let upstream: Vec<f32> =
                (0..5 * width).map(|i| ((i * 7919 % 101) as f32 - 50.0) / 3.0).collect();
            let mut expected = vec![0.0_f32; total * dim];
            for sample in 0..5 {
                for (f, feature) in features.iter().enumerate() {
                    for &index in &feature.indices[feature.span(sample)] {
                        for k in 0..dim {
                            let g = upstream[sample * width + first + f * dim + k];
                            expected[index as usize * dim + k] += g;
                        }
                    }
                }
            }
            let mut found = vec![f32::NAN; total * dim];
            for mut region in row_regions(&features, dim, &mut found) {
                region.fill(&features, dim, first, width, upstream.chunks(2 * width));
            }
            prop_assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
