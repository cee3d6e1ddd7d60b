//! The model once more, in doubles and one sample at a time, from the paper alone: slow and plain.

use std::collections::BTreeMap;

use dlrm::{Architecture, Interaction, Loss, Model};

use crate::batch::{Batch, Way};

pub(crate) struct Oracle {
    pub architecture: Architecture,
    pub parameters: BTreeMap<String, Vec<f64>>,
    pub rows: Vec<f64>,
}

impl Oracle {
    pub(crate) fn of(model: &Model, batch: &Batch) -> Self {
        let doubles = |values: &[f32]| values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let parameters = model.parameters().map(|p| (p.name.to_owned(), doubles(&p.values())));
        Self {
            architecture: model.architecture().clone(),
            parameters: parameters.collect(),
            rows: doubles(&batch.rows),
        }
    }

    pub(crate) fn loss(&self, batch: &Batch) -> f64 {
        let losses = (0..batch.labels.len()).map(|sample| {
            let (p, y) = (self.probability(batch, sample), f64::from(batch.labels[sample]));
            match self.architecture.loss {
                Loss::Bce => -(y * p.ln() + (1.0 - y) * (1.0 - p).ln()),
                Loss::Mse => (p - y).powi(2),
            }
        });
        losses.sum::<f64>() / batch.labels.len() as f64
    }

    pub(crate) fn probability(&self, batch: &Batch, sample: usize) -> f64 {
        let Architecture { sparse_feature_size: dim, mlp_bottom, mlp_top, .. } = &self.architecture;
        let width = mlp_bottom[0];
        let dense = &batch.dense[sample * width..][..width];
        let mut x: Vec<f64> = dense.iter().map(|&x| f64::from(x)).collect();
        for layer in 0..mlp_bottom.len() - 1 {
            x = self.layer("bot_l", layer, &x).into_iter().map(|z| z.max(0.0)).collect();
        }
        let mut vectors = vec![x.clone()];
        for ((indices, offsets), way) in batch.lists.iter().zip(&batch.ways) {
            let mut sum = vec![0.0; *dim];
            let span = offsets[sample] as usize..offsets[sample + 1] as usize;
            for place in span.clone() {
                let taken = match way {
                    Way::Sum => 1.0,
                    Way::Mean => 1.0 / span.len() as f64,
                    Way::Weighted(weights) => f64::from(weights[place]),
                };
                let row = &self.rows[indices[place] as usize * dim..];
                sum.iter_mut().zip(row).for_each(|(sum, row)| *sum += taken * row);
            }
            vectors.push(sum);
        }
        let dots = |past: usize| {
            let mut input = x.clone();
            for (i, a) in vectors.iter().enumerate() {
                for b in &vectors[..i + past] {
                    input.push(a.iter().zip(b).map(|(a, b)| a * b).sum());
                }
            }
            input
        };
        let mut z = match self.architecture.interaction {
            Interaction::Dot => dots(0),
            Interaction::DotWithItself => dots(1),
            Interaction::Cat => vectors.concat(),
        };
        for layer in 0..mlp_top.len() {
            z = self.layer("top_l", layer, &z);
            if layer + 1 < mlp_top.len() {
                z.iter_mut().for_each(|z| *z = z.max(0.0));
            }
        }
        1.0 / (1.0 + (-z[0]).exp())
    }

    fn layer(&self, part: &str, layer: usize, input: &[f64]) -> Vec<f64> {
        let weight = &self.parameters[&format!("{part}.{}.weight", 2 * layer)];
        let bias = &self.parameters[&format!("{part}.{}.bias", 2 * layer)];
        let rows = weight.chunks(input.len()).zip(bias);
        rows.map(|(row, b)| b + row.iter().zip(input).map(|(w, x)| w * x).sum::<f64>()).collect()
    }
}
