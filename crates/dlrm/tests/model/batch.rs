//! Made-up batches and models, the same at every run. It reads no file.

use dlrm::{
    Architecture, FeatureRows, Interaction, Loss, Pooling, PredictInput, StepInput, parse_widths,
};
use table::{GOLDEN, mix};

/// A batch with its memory.
#[derive(Clone)]
pub(crate) struct Batch {
    pub dense: Vec<f32>,
    pub labels: Vec<f32>,
    pub rows: Vec<f32>,
    pub lists: Vec<(Vec<u32>, Vec<u32>)>, // indices and offsets of each feature
    pub ways: Vec<Way>,                   // of pooling, for each feature
}

/// A way of pooling with its weights.
#[derive(Clone)]
pub(crate) enum Way {
    Sum,
    Mean,
    Weighted(Vec<f32>),
}

impl Batch {
    pub(crate) fn features(&self) -> Vec<FeatureRows<'_>> {
        let features = self.lists.iter().zip(&self.ways);
        features
            .map(|((indices, offsets), way)| {
                let pooling = match way {
                    Way::Sum => Pooling::Sum,
                    Way::Mean => Pooling::Mean,
                    Way::Weighted(weights) => Pooling::Weighted(weights),
                };
                FeatureRows { indices, offsets, pooling }
            })
            .collect()
    }

    /// Feature 0 weighted, by weights of either sign and zeros among them, feature 1 by its mean,
    /// and so on in turn.
    pub(crate) fn pooled_in_turn(mut self, seed: u64) -> Self {
        let mut noise = Noise(seed);
        let lists = self.lists.iter().enumerate();
        let ways = lists.map(|(f, (indices, _))| match f % 3 {
            0 => {
                let mut weights = noise.floats(indices.len(), 2.0);
                weights.iter_mut().step_by(7).for_each(|weight| *weight = 0.0);
                Way::Weighted(weights)
            }
            1 => Way::Mean,
            _ => Way::Sum,
        });
        self.ways = ways.collect();
        self
    }

    pub(crate) fn step<'a>(&'a self, features: &'a [FeatureRows<'a>]) -> StepInput<'a> {
        StepInput { dense: &self.dense, labels: &self.labels, rows: &self.rows, features }
    }

    pub(crate) fn unlabelled<'a>(&'a self, features: &'a [FeatureRows<'a>]) -> PredictInput<'a> {
        PredictInput { dense: &self.dense, rows: &self.rows, features }
    }
}

/// Numbers that look random: splitmix64 from a seed.
pub(crate) struct Noise(pub u64);

impl Noise {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        let word = mix(self.0);
        self.0 = self.0.wrapping_add(GOLDEN);
        word % end
    }

    pub(crate) fn floats(&mut self, len: usize, scale: f32) -> Vec<f32> {
        (0..len).map(|_| (self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0) * scale).collect()
    }
}

pub(crate) fn architecture(
    interaction: Interaction,
    loss: Loss,
    features: usize,
    bottom: &str,
    top: &str,
    dim: usize,
) -> Architecture {
    Architecture {
        sparse_feature_size: dim,
        features,
        mlp_bottom: parse_widths(bottom).unwrap(),
        mlp_top: parse_widths(top).unwrap(),
        interaction,
        loss,
    }
}

/// A batch whose feature f takes rows of a table of its own, `bag_max` at most for a sample.
pub(crate) fn made_up(
    architecture: &Architecture,
    samples: usize,
    table_rows: usize,
    bag_max: u64,
    seed: u64,
) -> Batch {
    let mut noise = Noise(seed);
    let dim = architecture.sparse_feature_size;
    let lists = (0..architecture.features)
        .map(|f| {
            let (mut indices, mut offsets) = (Vec::new(), vec![0]);
            for _ in 0..samples {
                let bag = if bag_max == 1 { 1 } else { noise.below(bag_max + 1) };
                for _ in 0..bag {
                    let row = noise.below(table_rows as u64) as usize;
                    indices.push((f * table_rows + row) as u32);
                }
                offsets.push(indices.len() as u32);
            }
            (indices, offsets)
        })
        .collect();
    Batch {
        dense: noise.floats(samples * architecture.dense_width(), 1.0),
        labels: (0..samples).map(|_| noise.below(2) as f32).collect(),
        rows: noise.floats(architecture.features * table_rows * dim, 0.5),
        lists,
        ways: vec![Way::Sum; architecture.features],
    }
}
