//! What the kernels of other devices are held to: pooling, the dot interaction and the loss, by the
//! functions that a step takes. It checks no shapes.

pub use crate::loss::probability;

use crate::interaction::Dots;
use crate::pooling::pool;
use crate::row_terms::{RowTerms, Vectors};
use crate::workers::Workers;
use crate::{FeatureRows, Loss};

/// Vector 0 of a sample as it is, then the products of its vectors, in a step's order.
pub fn interact(
    features: &[f32], // [samples, vectors, dim]
    vectors: usize,
    dim: usize,
    with_itself: bool,
) -> Vec<f32> {
    let mut dots = Dots::new(vectors, dim, with_itself);
    let pairs = pairs(vectors, with_itself);
    let mut crossed = Vec::new(); // [samples, dim + pairs]
    for sample in features.chunks_exact(vectors * dim) {
        let mut products = vec![0.0; pairs];
        dots.forward(sample, &mut products);
        crossed.extend_from_slice(&sample[..dim]);
        crossed.extend(products);
    }
    crossed
}

/// The gradient by each vector from that of what [`interact`] makes.
pub fn interact_backward(
    features: &[f32],         // [samples, vectors, dim]
    crossed_gradient: &[f32], // [samples, dim + pairs]
    vectors: usize,
    dim: usize,
    with_itself: bool,
) -> Vec<f32> {
    let mut dots = Dots::new(vectors, dim, with_itself);
    let mut gradient = vec![0.0; features.len()];
    let rows = features.chunks_exact(vectors * dim).zip(gradient.chunks_exact_mut(vectors * dim));
    let crossed = crossed_gradient.chunks_exact(dim + pairs(vectors, with_itself));
    for ((features, gradient), crossed) in rows.zip(crossed) {
        let (first, products) = crossed.split_at(dim);
        dots.backward(features, products, gradient);
        gradient.iter_mut().zip(first).for_each(|(g, &x)| *g += x);
    }
    gradient
}

/// The sums of each feature's rows as vectors 1 on of each sample; vector 0 stays as it is.
pub fn pool_rows(
    features: &[FeatureRows<'_>],
    rows: &[f32], // [n_unique, dim]
    dim: usize,
    target: &mut [f32], // [samples, 1 + features, dim]
) {
    let width = (features.len() + 1) * dim;
    pool(features, rows, dim, 0..target.len() / width, dim, width, target);
}

/// The sum of each row's gradients over the samples that took it.
pub fn row_gradients(
    features: &[FeatureRows<'_>],
    upstream: &[f32], // [samples, 1 + features, dim]
    dim: usize,
    n_unique: usize,
) -> Vec<f32> {
    let mut gradients = vec![0.0; n_unique * dim];
    let vectors = Vectors { first: dim, dim, stride: (features.len() + 1) * dim };
    let (mut terms, mut workers) = (RowTerms::default(), Workers::new(1).expect("no more threads"));
    terms.list(features, n_unique, vectors, &mut workers).expect("lists of fewer than 2^32");
    terms.shares(dim, &mut gradients).for_each(|share| share.fill(upstream));
    gradients
}

/// Each sample's loss, and the gradient of their mean by each logit.
pub fn losses_of_logits(loss: Loss, logits: &[f32], labels: &[f32]) -> (Vec<f64>, Vec<f32>) {
    let samples = logits.iter().zip(labels);
    samples.map(|(&logit, &label)| loss.of_logit(logit, label, logits.len())).unzip()
}

fn pairs(vectors: usize, with_itself: bool) -> usize {
    vectors * (vectors - 1) / 2 + if with_itself { vectors } else { 0 }
}
