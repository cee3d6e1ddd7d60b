//! Made-up batches and models, the same at every run. It reads no file.

use dlrm::{Architecture, FeatureRows, Interaction, Loss, PredictInput, StepInput, parse_widths};
use table::{GOLDEN, mix};

/// A batch with its memory.
#[derive(Clone)]
pub(crate) struct Batch {
    pub dense: Vec<f32>,
    pub labels: Vec<f32>,
    pub rows: Vec<f32>,
    pub lists: Vec<(Vec<u32>, Vec<u32>)>, // indices and offsets of each feature
}

impl Batch {
    pub(crate) fn features(&self) -> Vec<FeatureRows<'_>> {
        self.lists.iter().map(|(indices, offsets)| FeatureRows { indices, offsets }).collect()
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
    }
}
