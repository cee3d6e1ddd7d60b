//! A batch's lists as kernels take them: each sample's rows, and each row's samples. The order in
//! which a row's gradients are summed is fixed here: samples in order, the features of a sample in
//! order, the indices of a feature in order. It knows no device.

use gpu::kernels::FEW;

use crate::{FeatureRows, Pooling};

/// The lists of one batch. Their memory is kept from one batch to the next.
#[derive(Debug, Default, Clone)]
pub(super) struct Lists {
    pub bag_starts: Vec<u32>,  // [batch * features + 1]
    pub bag_places: Vec<u32>,  // [terms]: rows
    pub bag_weights: Vec<f32>, // [terms], or none where every row counts once
    pub row_starts: Vec<u32>,  // [rows + 1]
    pub row_places: Vec<u32>,  // [terms]: vectors
    pub row_weights: Vec<f32>, // [terms], or none
    pub many: Vec<u32>,        // rows of more than FEW terms
    next: Vec<u32>,            // [rows]: where a row's next term goes
}

impl Lists {
    /// From checked features of that many samples, over that many rows.
    pub(super) fn build(&mut self, features: &[FeatureRows<'_>], batch: usize, rows: usize) {
        let terms: usize = features.iter().map(|feature| feature.indices.len()).sum();
        let weighted = features.iter().any(|feature| feature.pooling != Pooling::Sum);
        self.next.clear();
        self.next.resize(rows, 0);
        for feature in features {
            feature.indices.iter().for_each(|&index| self.next[index as usize] += 1);
        }
        self.row_starts.clear();
        self.many.clear();
        let mut end = 0;
        for (row, next) in self.next.iter_mut().enumerate() {
            self.row_starts.push(end);
            if *next > FEW {
                self.many.push(row as u32);
            }
            end += std::mem::replace(next, end);
        }
        self.row_starts.push(end);

        self.bag_starts.clear();
        self.bag_places.clear();
        self.bag_weights.clear();
        self.row_places.clear();
        self.row_places.resize(terms, 0);
        self.row_weights.clear();
        self.row_weights.resize(if weighted { terms } else { 0 }, 0.0);
        let vectors = features.len() + 1;
        for sample in 0..batch {
            for (f, feature) in features.iter().enumerate() {
                self.bag_starts.push(self.bag_places.len() as u32);
                let vector = (sample * vectors + 1 + f) as u32;
                let span = feature.span(sample);
                for (i, &index) in feature.indices[span.clone()].iter().enumerate() {
                    let at = &mut self.next[index as usize];
                    self.row_places[*at as usize] = vector;
                    if weighted {
                        let weight = match feature.pooling {
                            Pooling::Sum => 1.0,
                            Pooling::Mean => 1.0 / span.len() as f32,
                            Pooling::Weighted(weights) => weights[span.start + i],
                        };
                        self.row_weights[*at as usize] = weight;
                        self.bag_weights.push(weight);
                    }
                    *at += 1;
                    self.bag_places.push(index);
                }
            }
        }
        self.bag_starts.push(self.bag_places.len() as u32);
    }

    /// Terms: rows that samples take, counted each time.
    pub(super) fn terms(&self) -> usize {
        self.bag_places.len()
    }

    pub(super) fn weighted(&self) -> bool {
        !self.bag_weights.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_have_their_samples_in_order_and_weights_are_shares() {
        let features = [
            FeatureRows { indices: &[2, 0, 2], offsets: &[0, 1, 3], pooling: Pooling::Sum },
            FeatureRows { indices: &[1, 2], offsets: &[0, 2, 2], pooling: Pooling::Mean },
        ];
        let mut lists = Lists::default();
        lists.build(&[features[1], features[0]], 2, 5); // leaves no trace
        lists.build(&features, 2, 4);
        assert_eq!(lists.bag_starts, [0, 1, 3, 5, 5]);
        assert_eq!(lists.bag_places, [2, 1, 2, 0, 2]);
        assert_eq!(lists.bag_weights, [1.0, 0.5, 0.5, 1.0, 1.0]);
        assert_eq!(lists.row_starts, [0, 1, 2, 5, 5]);
        assert_eq!(lists.row_places, [4, 2, 1, 2, 4]);
        assert_eq!(lists.row_weights, [1.0, 0.5, 1.0, 0.5, 1.0]);
        assert!(lists.many.is_empty() && lists.weighted() && lists.terms() == 5);

        let indices = vec![1; FEW as usize + 1];
        let offsets = [0, FEW + 1];
        let feature = FeatureRows { indices: &indices, offsets: &offsets, pooling: Pooling::Sum };
        lists.build(&[feature], 1, 2);
        assert!(!lists.weighted() && lists.row_weights.is_empty());
        assert_eq!(lists.many, [1]);
    }
}
