//! The optimizer of the dense part and the state that it keeps for each parameter. The rules
//! themselves are `optim`'s.

use optim::AdamStep;
use serde::{Deserialize, Serialize};

use crate::parameter::TensorPart;
use crate::{Error, Result};

/// The update rule of the dense part. The learning rate comes with each step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenseOptimizer {
    /// `w -= lr g`. No state.
    Sgd,
    /// Adagrad, its accumulators starting at zero.
    Adagrad {
        /// Added to the root of the accumulator.
        eps: f32,
    },
    /// Adam, with one step count for all parameters.
    Adam {
        /// Decay of the first moment.
        beta1: f32,
        /// Decay of the second moment.
        beta2: f32,
        /// Added to the root of the second moment.
        eps: f32,
    },
}

impl DenseOptimizer {
    pub(crate) fn validate(&self) -> Result<()> {
        let positive = |x: f32| x.is_finite() && x > 0.0;
        let unit = |x: f32| (0.0..1.0).contains(&x);
        let sound = match *self {
            DenseOptimizer::Sgd => true,
            DenseOptimizer::Adagrad { eps } => positive(eps),
            DenseOptimizer::Adam { beta1, beta2, eps } => {
                unit(beta1) && unit(beta2) && positive(eps)
            }
        };
        if sound {
            return Ok(());
        }
        let expected = "eps > 0, betas in [0, 1), all finite".to_owned();
        Err(Error::Field { field: "dense optimizer", found: format!("{self:?}"), expected })
    }

    /// What the state of a parameter is called, one name for each float beside a weight.
    pub(crate) fn state_names(&self) -> &'static [&'static str] {
        match self {
            DenseOptimizer::Sgd => &[],
            DenseOptimizer::Adagrad { .. } => &["acc"],
            DenseOptimizer::Adam { .. } => &["m", "v"],
        }
    }

    /// Whether the number of steps is part of the state.
    pub(crate) fn counts_steps(&self) -> bool {
        match self {
            DenseOptimizer::Sgd | DenseOptimizer::Adagrad { .. } => false,
            DenseOptimizer::Adam { .. } => true,
        }
    }

    /// Applies the gradient of some of a parameter's elements. `step` counts from 1.
    pub(crate) fn apply(&self, part: &mut TensorPart<'_>, step: u32, learning_rate: f32) {
        let TensorPart { values, gradient, state } = part;
        match *self {
            DenseOptimizer::Sgd => optim::sgd(values, gradient, learning_rate),
            DenseOptimizer::Adagrad { eps } => {
                let [accumulator, _] = state;
                optim::adagrad(values, accumulator, gradient, learning_rate, eps);
            }
            DenseOptimizer::Adam { beta1, beta2, eps } => {
                let [moment1, moment2] = state;
                let step = AdamStep::new(step, learning_rate, beta1, beta2, eps);
                optim::adam(values, moment1, moment2, gradient, step);
            }
        }
    }
}
