//! The rules on stored rows, embedding and state side by side as [`table::RowLayout`] lays them
//! out. It finds no row: the caller has the slice.

use table::{Optimizer, RowLayout};

use crate::rule::{AdamStep, adagrad, adam, rowwise_adagrad_scale, sgd};

/// Adam counts a row's steps in an `f32`, which holds every integer up to here. A count that gets
/// this far stays: both bias corrections have long become 1.
const ROW_STEPS_MAX: f32 = (1 << 24) as f32;

/// A table's update rule with the rate of one push, chosen once for all of its rows.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    optimizer: Optimizer,
    dim: usize,
    learning_rate: f32,
}

impl Rule {
    /// The rule of a table of `dim` floats a row.
    pub fn new(optimizer: &Optimizer, dim: usize, learning_rate: f32) -> Self {
        Self { optimizer: *optimizer, dim, learning_rate }
    }

    /// Applies one gradient to one row. The caller guarantees that the row was made by a table of
    /// this optimizer; other lengths panic.
    #[inline(always)] // into kernels that know the length
    pub fn apply(
        &self,
        weights: &mut [f32], // [dim]
        state: &mut [f32],   // [state]
        gradient: &[f32],    // [dim]
    ) {
        let rate = self.rate(state, gradient);
        self.apply_at(rate, weights, state, gradient);
    }

    /// The first half of [`Self::apply`], which needs no weight: the rate of this row. It is the
    /// push's, but for row-wise Adagrad, whose accumulator takes the gradient up here.
    #[inline(always)] // into kernels that know the length
    pub fn rate(
        &self,
        state: &mut [f32], // [state]
        gradient: &[f32],  // [dim]
    ) -> f32 {
        match self.optimizer {
            Optimizer::RowWiseAdagrad { eps, .. } => {
                rowwise_adagrad_scale(&mut state[0], gradient, self.learning_rate, eps)
            }
            Optimizer::Sgd | Optimizer::Adagrad { .. } | Optimizer::Adam { .. } => {
                self.learning_rate
            }
        }
    }

    /// The second half of [`Self::apply`], with the rate of the first.
    #[inline(always)] // into kernels that know the length
    pub fn apply_at(
        &self,
        rate: f32,
        weights: &mut [f32], // [dim]
        state: &mut [f32],   // [state]
        gradient: &[f32],    // [dim]
    ) {
        match self.optimizer {
            Optimizer::Sgd | Optimizer::RowWiseAdagrad { .. } => sgd(weights, gradient, rate),
            Optimizer::Adagrad { eps, .. } => adagrad(weights, state, gradient, rate, eps),
            Optimizer::Adam { beta1, beta2, eps } => {
                let (moment1, state) = state.split_at_mut(self.dim);
                let (moment2, steps) = state.split_at_mut(self.dim);
                steps[0] = (steps[0] + 1.0).min(ROW_STEPS_MAX);
                let step = AdamStep::new(steps[0] as u32, rate, beta1, beta2, eps);
                adam(weights, moment1, moment2, gradient, step);
            }
        }
    }
}

/// Applies one gradient to one row that lies with its state behind it.
///
/// The caller guarantees that the row was made by a table of this optimizer, so that its length is
/// `dim + state`; another length panics.
pub fn update_row(
    optimizer: &Optimizer,
    row: &mut [f32],  // [dim + state]
    gradient: &[f32], // [dim]
    learning_rate: f32,
) {
    let dim = gradient.len();
    let layout = RowLayout { dim, state: optimizer.state_floats(dim) };
    assert_eq!(row.len(), layout.floats(), "rows with their state");
    let (weights, state) = row.split_at_mut(dim);
    Rule::new(optimizer, dim, learning_rate).apply(weights, state, gradient);
}

#[cfg(test)]
mod tests {
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
}
