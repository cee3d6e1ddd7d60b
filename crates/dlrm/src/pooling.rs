//! Rows to samples and gradients back: sum pooling of jagged features, and its reverse. It does not
//! know where rows come from.

use std::ops::Range;

use crate::step::FeatureRows;

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
        for (sample, target) in samples.clone().zip(target.chunks_exact_mut(width)) {
            let target = &mut target[column..column + dim];
            match feature.of(sample) {
                [] => target.fill(0.0),
                [one, more @ ..] => {
                    target.copy_from_slice(row(rows, dim, *one));
                    for &index in more {
                        add(target, row(rows, dim, index));
                    }
                }
            }
        }
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
    /// Sets every row's gradient to the sum over the samples that took it: samples in order, the
    /// features of a sample in order, the indices of a feature in order.
    pub(crate) fn fill<'a>(
        &mut self,
        features: &[FeatureRows<'_>],
        dim: usize,
        first: usize,
        width: usize,
        tiles: impl Iterator<Item = &'a [f32]>, // each [samples, width]
    ) {
        self.gradients.fill(0.0);
        let samples = tiles.flat_map(|tile| tile.chunks_exact(width));
        for (sample, gradient) in samples.enumerate() {
            for &f in &self.features {
                let column = first + f * dim;
                let gradient = &gradient[column..column + dim];
                for &index in features[f].of(sample) {
                    let place = (index as usize - self.first_row) * dim;
                    add(&mut self.gradients[place..place + dim], gradient);
                }
            }
        }
    }
}

fn row(rows: &[f32], dim: usize, index: u32) -> &[f32] {
    &rows[index as usize * dim..][..dim]
}

#[inline]
fn add(target: &mut [f32], source: &[f32]) {
    target.iter_mut().zip(source).for_each(|(x, &y)| *x += y);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feature<'a>(indices: &'a [u32], offsets: &'a [u32]) -> FeatureRows<'a> {
        FeatureRows { indices, offsets }
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

    proptest! {
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
                    for &index in feature.of(sample) {
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
