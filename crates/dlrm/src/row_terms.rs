//! The reverse of pooling: of which pooled vectors' gradients each row's gradient is the sum. A
//! batch's terms are listed row by row before they are wanted; then a row is summed in registers
//! and written once. It does not know where gradients go.

use std::ops::Range;

use crate::kernels::{Terms, sum_terms};
use crate::pooling::share;
use crate::step::{FeatureRows, Pooling};
use crate::workers::Workers;
use crate::{Error, Result};

/// Rows and terms that one thread sums at a time: a MiB of vectors of 16 floats, enough to be worth
/// taking, and few enough that threads end together.
const SHARE: usize = 1 << 14;

/// Where the gradients of the pooled vectors lie: a matrix of a row for each sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors {
    /// The column of the first feature's vector; the others follow.
    pub first: usize,
    /// Floats of a vector, and of a row of a table.
    pub dim: usize,
    /// Floats from one sample to the next.
    pub stride: usize,
}

/// The terms of one batch's rows. Its memory is kept from one batch to the next.
#[derive(Debug, Default)]
pub(crate) struct RowTerms {
    spans: Vec<(u32, u32, usize)>, // of each feature that takes a row: the first, the last; itself
    groups: Vec<Group>,
    members: Vec<usize>, // features, group after group
    ends: Vec<u32>,      // [rows]: where a row's terms end, which is where the next one's begin
    places: Vec<u32>,    // [terms]: floats before the vector in the matrix
    weights: Vec<f32>,   // [terms], or none: each counts once
}

/// Features that share no row with others, and a stretch of rows that has all of theirs.
#[derive(Debug)]
struct Group {
    members: Range<usize>, // features ascending
    rows: Range<usize>,
    terms: usize,
}

/// A group's part of the lists.
struct GroupLists<'a> {
    members: &'a [usize],
    first_row: u32,
    first_term: u32,
    ends: &'a mut [u32],    // [rows of the group]
    places: &'a mut [u32],  // [terms of the group]
    weights: &'a mut [f32], // [terms of the group], or none
}

/// Some rows whose gradients one thread sums.
pub(crate) struct RowShare<'a> {
    terms: Terms<'a>,
    gradients: &'a mut [f32], // [rows, dim]
}

impl RowTerms {
    /// Lists the terms of checked features over that many rows: a row's are the samples in order,
    /// the features of a sample in order, the indices of a feature in order.
    pub(crate) fn list(
        &mut self,
        features: &[FeatureRows<'_>],
        rows: usize,
        vectors: Vectors,
        workers: &mut Workers,
    ) -> Result<()> {
        let terms: usize = features.iter().map(|feature| feature.indices.len()).sum();
        if u32::try_from(terms).is_err() {
            let (what, expected) = ("all features' indices", "fewer than 2^32".to_owned());
            return Err(Error::Shape { what, found: terms, expected });
        }
        self.group(features, rows);
        let weighted = features.iter().any(|feature| feature.pooling != Pooling::Sum);
        self.ends.resize(rows, 0);
        self.places.resize(terms, 0);
        self.weights.resize(if weighted { terms } else { 0 }, 0.0);
        let groups = self.group_lists();
        // so few are not worth waking another thread
        if terms < SHARE {
            groups.for_each(|mut lists| lists.fill(features, vectors));
        } else {
            workers.for_each(groups, |_, mut lists| lists.fill(features, vectors));
        }
        Ok(())
    }

    /// Splits the features, so that lists can be made side by side.
    fn group(&mut self, features: &[FeatureRows<'_>], rows: usize) {
        let Self { spans, groups, members, .. } = self;
        spans.clear();
        groups.clear();
        members.clear();
        for (f, feature) in features.iter().enumerate() {
            let (low, high) =
                feature.indices.iter().fold((u32::MAX, 0), |(l, h), &i| (l.min(i), h.max(i)));
            if low <= high {
                spans.push((low, high, f));
            }
        }
        spans.sort_unstable();
        // every row belongs to a group, for one that no sample takes still gets its zeros
        groups.push(Group { members: 0..0, rows: 0..rows, terms: 0 });
        let mut high_so_far = None;
        for &(low, high, f) in &*spans {
            let mut last = groups.len() - 1;
            if high_so_far.is_some() && high_so_far < Some(low) {
                groups[last].rows.end = low as usize;
                let start = members.len();
                groups.push(Group { members: start..start, rows: low as usize..rows, terms: 0 });
                last += 1;
            }
            high_so_far = high_so_far.max(Some(high));
            members.push(f);
            groups[last].members.end = members.len();
            groups[last].terms += features[f].indices.len();
        }
        for group in &*groups {
            members[group.members.clone()].sort_unstable();
        }
    }

    fn group_lists(&mut self) -> impl Iterator<Item = GroupLists<'_>> {
        let Self { groups, members, ends, places, weights, .. } = self;
        let (mut ends, mut places, mut weights) = (&mut **ends, &mut **places, &mut **weights);
        let members = &**members;
        let mut first_term = 0;
        groups.iter().map(move |group| {
            let of_weights = if weights.is_empty() { 0 } else { group.terms };
            let lists = GroupLists {
                members: &members[group.members.clone()],
                first_row: group.rows.start as u32,
                first_term,
                ends: cut(&mut ends, group.rows.len()),
                places: cut(&mut places, group.terms),
                weights: cut(&mut weights, of_weights),
            };
            first_term += group.terms as u32;
            lists
        })
    }

    /// Splits the rows into shares of about as much work, whatever the features.
    pub(crate) fn shares<'a>(
        &'a self,
        dim: usize,
        gradients: &'a mut [f32], // [rows, dim]
    ) -> impl Iterator<Item = RowShare<'a>> + Send {
        let (ends, mut rest, mut start) = (&*self.ends, gradients, 0);
        let begin = move |row: usize| row.checked_sub(1).map_or(0, |before| ends[before]);
        std::iter::from_fn(move || {
            let rows = start..self.end_of_share(start);
            start = rows.end;
            (!rows.is_empty()).then(|| RowShare {
                terms: Terms {
                    first: begin(rows.start),
                    ends: &ends[rows.clone()],
                    places: &self.places,
                    weights: (!self.weights.is_empty()).then_some(&*self.weights),
                    dim,
                },
                gradients: cut(&mut rest, rows.len() * dim),
            })
        })
    }

    /// Where the share ends that begins with row `start`.
    fn end_of_share(&self, start: usize) -> usize {
        let work = |row: usize| row + 1 + self.ends[row] as usize; // up to the row's end
        let enough = start.checked_sub(1).map_or(0, work) + SHARE;
        let (mut low, mut high) = (start, self.ends.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if work(middle) < enough { low = middle + 1 } else { high = middle }
        }
        (low + 1).min(self.ends.len())
    }
}

impl GroupLists<'_> {
    /// Counts each row's terms, then puts each term where its row's have come to.
    fn fill(&mut self, features: &[FeatureRows<'_>], vectors: Vectors) {
        let Self { members, first_row, first_term, .. } = *self;
        let Self { ends, places, weights, .. } = self;
        let Vectors { first, dim, stride } = vectors;
        ends.fill(0);
        for &f in members {
            features[f].indices.iter().for_each(|&index| ends[(index - first_row) as usize] += 1);
        }
        let mut at = 0;
        for end in ends.iter_mut() {
            at += std::mem::replace(end, at); // where the row's terms begin, as yet
        }
        if let &[f] = members
            && weights.is_empty()
        {
            let feature = &features[f];
            let mut place = (first + f * dim) as u32;
            for bag in feature.offsets.windows(2) {
                for &index in &feature.indices[bag[0] as usize..bag[1] as usize] {
                    let end = &mut ends[(index - first_row) as usize];
                    places[*end as usize] = place;
                    *end += 1;
                }
                place = place.wrapping_add(stride as u32); // past the last sample nobody looks
            }
        } else {
            let samples = members.first().map_or(0, |&f| features[f].offsets.len() - 1);
            for sample in 0..samples {
                for &f in members {
                    let (feature, span) = (&features[f], features[f].span(sample));
                    let place = (sample * stride + first + f * dim) as u32;
                    for i in span.clone() {
                        let end = &mut ends[(feature.indices[i] - first_row) as usize];
                        places[*end as usize] = place;
                        if let Some(weight) = weights.get_mut(*end as usize) {
                            *weight = match feature.pooling {
                                Pooling::Sum => 1.0,
                                Pooling::Mean => share(span.len()),
                                Pooling::Weighted(weights) => weights[i],
                            };
                        }
                        *end += 1;
                    }
                }
            }
        }
        ends.iter_mut().for_each(|end| *end += first_term);
    }
}

impl RowShare<'_> {
    /// Sets every row's gradient to the sum over its terms, each by how much of the row the sample
    /// took.
    pub(crate) fn fill(
        self,
        vectors: &[f32], // [samples, stride]
    ) {
        sum_terms(self.terms, vectors, self.gradients);
    }
}

/// Takes the first so many off a slice.
fn cut<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (first, later) = std::mem::take(rest).split_at_mut(count);
    *rest = later;
    first
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn feature<'a>(indices: &'a [u32], offsets: &'a [u32]) -> FeatureRows<'a> {
        FeatureRows { indices, offsets, pooling: Pooling::Sum }
    }

    #[test]
    fn features_apart_are_groups_of_their_own_and_sharing_ones_are_one() {
        let offsets = [0, 2];
        let groups = |lists: &[[u32; 2]], rows: usize| {
            let features: Vec<_> = lists.iter().map(|list| feature(list, &offsets)).collect();
            let mut terms = RowTerms::default();
            terms.group(&[feature(&[0, 8], &offsets)], 9); // leaves no trace
            terms.group(&features, rows);
            let of = |group: &Group| {
                assert_eq!(group.terms, 2 * group.members.len());
                (terms.members[group.members.clone()].to_vec(), group.rows.clone())
            };
            terms.groups.iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(
            groups(&[[4, 5], [1, 3], [6, 6]], 9),
            [(vec![1], 0..4), (vec![0], 4..6), (vec![2], 6..9)]
        );
        assert_eq!(groups(&[[3, 5], [0, 3], [7, 6]], 8), [(vec![0, 1], 0..6), (vec![2], 6..8)]);
        assert_eq!(groups(&[[0, 9], [2, 3], [5, 6]], 10), [(vec![0, 1, 2], 0..10)]);
        assert_eq!(groups(&[], 4), [(vec![], 0..4)]);
    }

    #[test]
    fn shares_are_all_rows_once_however_the_terms_lie() {
        for (rows, indices) in [
            (0, vec![]),
            (3, vec![]),
            (3 * SHARE, vec![]),
            (3, vec![1; 5 * SHARE]),
            (2 * SHARE, (0..4 * SHARE as u32).map(|i| i * i % 100).collect()),
            (SHARE, vec![SHARE as u32 - 1; SHARE]),
        ] {
            let offsets = [0, indices.len() as u32];
            let mut terms = RowTerms::default();
            let place = Vectors { first: 0, dim: 1, stride: 1 };
            let mut workers = Workers::new(2).unwrap();
            terms.list(&[feature(&indices, &offsets)], rows, place, &mut workers).unwrap();
            let mut gradients = vec![f32::NAN; rows];
            let mut shares = 0;
            for share in terms.shares(1, &mut gradients) {
                shares += 1;
                let Terms { first, ends, .. } = share.terms;
                let before = &ends[..ends.len() - 1]; // its last row may be as long as it likes
                let terms = before.last().map_or(0, |end| end - first) as usize;
                assert!(before.len() + terms < SHARE, "{} rows, {terms} terms", before.len());
                share.fill(&[1.0]);
            }
            assert_eq!(shares > 0, rows > 0);
            let mut counts = vec![0.0; rows];
            indices.iter().for_each(|&index| counts[index as usize] += 1.0);
            assert_eq!(gradients, counts);
        }
    }

    /// A bag of each sample for a feature, and its way of pooling.
    type Bags = (Vec<Vec<(u32, f32)>>, u8);

    fn any_features() -> impl Strategy<Value = Vec<Bags>> {
        let weight = prop_oneof![Just(0.0_f32), -2.0_f32..2.0];
        let bag = prop::collection::vec((0_u32..6, weight), 0..4);
        prop::collection::vec((prop::collection::vec(bag, 5), 0_u8..3), 1..5)
    }

    proptest! {
        #[test]
        fn gradients_are_the_sums_over_samples_features_and_indices_in_order(
            batches in prop::collection::vec(any_features(), 1..3),
            shared: bool,
            dim in prop::sample::select(&[1_usize, 3, 16, 32, 64, 128][..]),
            sums_alone: bool,
        ) {
            let (mut terms, mut workers) = (RowTerms::default(), Workers::new(2).unwrap());
            for bags in batches {
                let stride = 2 + dim * bags.len();
                let mut lists = Vec::new();
                for (f, (samples, _)) in bags.iter().enumerate() {
                    let base = if shared { 0 } else { 6 * (bags.len() - 1 - f) as u32 };
                    let (indices, weights): (Vec<u32>, Vec<f32>) =
                        samples.iter().flatten().map(|&(i, weight)| (base + i, weight)).unzip();
                    let mut offsets = vec![0];
                    offsets.extend(samples.iter().scan(0, |end, bag| {
                        *end += bag.len() as u32;
                        Some(*end)
                    }));
                    lists.push((indices, offsets, weights));
                }
                let ways = bags.iter().map(|&(_, way)| if sums_alone { 0 } else { way });
                let features: Vec<_> = lists.iter().zip(ways).map(|((indices, offsets, w), way)| {
                    let ways = [Pooling::Sum, Pooling::Mean, Pooling::Weighted(w)];
                    let pooling = ways[usize::from(way)];
                    FeatureRows { indices, offsets, pooling }
                }).collect();
                let total = 6 * bags.len();
                // zeros less than zero among them: a sum from zero on is none
                let upstream: Vec<f32> = (0..5 * stride)
                    .map(|i| if i % 7 == 0 { -0.0 } else { ((i * 7919 % 101) as f32 - 50.0) / 3.0 })
                    .collect();
                let mut expected = vec![0.0_f32; total * dim];
                for sample in 0..5 {
                    for (f, feature) in features.iter().enumerate() {
                        let span = feature.span(sample);
                        for at in span.clone() {
                            let by = match feature.pooling {
                                Pooling::Sum => 1.0,
                                Pooling::Mean => 1.0 / span.len() as f32,
                                Pooling::Weighted(weights) => weights[at],
                            };
                            for k in 0..dim {
                                let product = by * upstream[sample * stride + 2 + f * dim + k];
                                expected[feature.indices[at] as usize * dim + k] += product;
                            }
                        }
                    }
                }
                let place = Vectors { first: 2, dim, stride };
                terms.list(&features, total, place, &mut workers).unwrap();
                let mut found = vec![f32::NAN; total * dim];
                terms.shares(dim, &mut found).for_each(|share| share.fill(&upstream));
                prop_assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}
