//! The rules on stored rows, embedding and state side by side as [`table::RowLayout`] lays them
//! out. It finds no row: the caller has the slice.

use table::{Optimizer, RowLayout};

use crate::rule::{AdamStep, adagrad, adam, rowwise_adagrad, sgd};

/// Adam counts a row's steps in an `f32`, which holds every integer up to here. A count that gets
/// this far stays: both bias corrections have long become 1.
const ROW_STEPS_MAX: f32 = (1 << 24) as f32;

/// Applies one gradient to one stored row.
///
/// The caller guarantees that the row was made by a table of this optimizer, so that its length is
/// `dim + state`; another length panics.
pub fn update_row(
    optimizer: &Optimizer,
    row: &mut [f32],  // [dim + state]
    gradient: &[f32], // [dim]
    learning_rate: f32,
) {
    update_rows(optimizer, gradient.len(), row, gradient, learning_rate);
}

/// Applies one gradient to each of the stored rows that lie one after the other.
///
/// The same bits as [`update_row`] on each; the rule is chosen once for all.
pub fn update_rows(
    optimizer: &Optimizer,
    dim: usize,
    rows: &mut [f32],  // [n, dim + state]
    gradients: &[f32], // [n, dim]
    learning_rate: f32,
) {
    let layout = RowLayout { dim, state: optimizer.state_floats(dim) };
    if gradients.is_empty() {
        assert!(rows.is_empty(), "rows without gradients");
        return;
    }
    assert_eq!(gradients.len() % dim, 0, "gradients of rows of {dim} floats");
    assert_eq!(rows.len(), gradients.len() / dim * layout.floats(), "rows with their state");
    let rows = rows.chunks_exact_mut(layout.floats());
    let pairs = rows.zip(gradients.chunks_exact(dim));
    match *optimizer {
        Optimizer::Sgd => {
            pairs.for_each(|(row, gradient)| sgd(row, gradient, learning_rate));
        }
        Optimizer::Adagrad { eps, .. } => {
            for (row, gradient) in pairs {
                let (weights, accumulator) = row.split_at_mut(dim);
                adagrad(weights, accumulator, gradient, learning_rate, eps);
            }
        }
        Optimizer::RowWiseAdagrad { eps, .. } => {
            for (row, gradient) in pairs {
                let (weights, accumulator) = row.split_at_mut(dim);
                rowwise_adagrad(weights, &mut accumulator[0], gradient, learning_rate, eps);
            }
        }
        Optimizer::Adam { beta1, beta2, eps } => {
            for (row, gradient) in pairs {
                let (weights, state) = row.split_at_mut(dim);
                let (moment1, state) = state.split_at_mut(dim);
                let (moment2, steps) = state.split_at_mut(dim);
                steps[0] = (steps[0] + 1.0).min(ROW_STEPS_MAX);
                let step = AdamStep::new(steps[0] as u32, learning_rate, beta1, beta2, eps);
                adam(weights, moment1, moment2, gradient, step);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Optimizer; 4] = [
        Optimizer::Sgd,
        Optimizer::Adagrad { eps: 1e-10, initial_accumulator: 0.1 },
        Optimizer::RowWiseAdagrad { eps: 1e-10, initial_accumulator: 0.1 },
        Optimizer::Adam { beta1: 0.9, beta2: 0.999, eps: 1e-8 },
    ];

    #[test]
    fn the_state_lies_behind_the_embedding() {
        let mut row = [1.0, 1.0, 0.0, 5.0];
        let adagrad = Optimizer::Adagrad { eps: 0.0, initial_accumulator: 0.0 };
        update_row(&adagrad, &mut row, &[2.0, -2.0], 0.5);
        assert_eq!(row, [0.5, 1.0 + 1.0 / 3.0, 4.0, 9.0]);

        let mut row = [1.0, 1.0, 3.5];
        let rowwise = Optimizer::RowWiseAdagrad { eps: 0.0, initial_accumulator: 0.0 };
        update_row(&rowwise, &mut row, &[3.0, -4.0], 0.5);
        assert_eq!(row, [1.0 - 0.375, 1.5, 16.0]);

        let mut row = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let adam = Optimizer::Adam { beta1: 0.5, beta2: 0.75, eps: 1e-30 };
        update_row(&adam, &mut row, &[4.0, -2.0], 0.25);
        assert_eq!(row, [0.75, 1.25, 2.0, -1.0, 4.0, 1.0, 1.0]);
    }

    #[test]
    fn adams_count_is_the_rows_own_and_stops_where_f32_ends() {
        let adam = ALL[3];
        let mut rows = [0.0; 8]; // two rows of dim 1: w, m, v, steps
        for _ in 0..3 {
            update_row(&adam, &mut rows[..4], &[1.0], 0.1);
        }
        update_row(&adam, &mut rows[4..], &[1.0], 0.1);
        assert_eq!((rows[3], rows[7]), (3.0, 1.0));
        rows[3] = ROW_STEPS_MAX;
        update_row(&adam, &mut rows[..4], &[1.0], 0.1);
        assert_eq!(rows[3], ROW_STEPS_MAX);
        assert!(rows[0].is_finite());
    }

    #[test]
    #[should_panic(expected = "rows with their state")]
    fn a_row_of_another_layout_is_refused() {
        update_row(&ALL[1], &mut [0.0; 5], &[0.0; 4], 0.1);
    }

    proptest! {
        #[test]
        fn rows_together_and_rows_alone_get_the_same_bits(
            dim in 1_usize..40,
            n in 0_usize..6,
            seed in any::<u32>(),
            which in 0_usize..4,
        ) {
            let optimizer = ALL[which];
            let floats = dim + optimizer.state_floats(dim);
            let noise = |i: usize| {
                let mixed = (i as u32).wrapping_mul(0x9e37_79b9) ^ seed;
                (mixed.wrapping_mul(0x85eb_ca6b) >> 8) as f32 / (1 << 24) as f32
            };
            let mut together: Vec<f32> = (0..n * floats).map(noise).collect();
            let mut alone = together.clone();
            let gradients: Vec<f32> = (0..n * dim).map(|i| noise(i + 7919) - 0.5).collect();
            update_rows(&optimizer, dim, &mut together, &gradients, 0.05);
            for (row, gradient) in alone.chunks_mut(floats).zip(gradients.chunks(dim)) {
                update_row(&optimizer, row, gradient, 0.05);
            }
            prop_assert!(together.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }
}
