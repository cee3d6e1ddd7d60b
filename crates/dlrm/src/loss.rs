//! The loss and its gradient, from the logit, so that nothing is lost where the probability is near
//! 0 or 1. It takes no mean; the model does.

use crate::Loss;

/// PyTorch's `BCELoss` lets no logarithm fall below this.
const LOG_MIN: f64 = -100.0;

impl Loss {
    /// The loss of a sample, and the gradient of the *mean over `batch` samples* by its logit.
    pub(crate) fn of_logit(self, logit: f32, label: f32, batch: usize) -> (f64, f32) {
        let (loss, slope) = match self {
            Loss::Bce => cross_entropy(f64::from(logit), f64::from(label)),
            Loss::Mse => squared_error(f64::from(logit), f64::from(label)),
        };
        (loss, (slope / batch as f64) as f32)
    }
}

/// The probability that a logit stands for.
pub fn probability(logit: f32) -> f32 {
    sigmoid(f64::from(logit)) as f32
}

fn cross_entropy(logit: f64, label: f64) -> (f64, f64) {
    // log p = -softplus(-z), log(1 - p) = -softplus(z) = log p - z
    let tail = libm::log1p(libm::exp(-logit.abs()));
    let log_p = logit.min(0.0) - tail;
    let log_not_p = -logit.max(0.0) - tail;
    let loss = -(label * log_p.max(LOG_MIN) + (1.0 - label) * log_not_p.max(LOG_MIN));
    // `max` and `min` drop a NaN, which must be seen
    let loss = if logit.is_nan() { logit } else { loss };
    (loss, sigmoid(logit) - label)
}

fn squared_error(logit: f64, label: f64) -> (f64, f64) {
    let p = sigmoid(logit);
    let off = p - label;
    (off * off, 2.0 * off * p * (1.0 - p))
}

fn sigmoid(logit: f64) -> f64 {
    let tail = libm::exp(-logit.abs());
    if logit < 0.0 { tail / (1.0 + tail) } else { 1.0 / (1.0 + tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(loss: Loss, logit: f32, label: f32) -> (f64, f32) {
        loss.of_logit(logit, label, 1)
    }

    #[test]
    fn values_are_those_worked_out_by_hand() {
        let (loss, slope) = one(Loss::Bce, 0.0, 1.0);
        assert!((loss - std::f64::consts::LN_2).abs() < 1e-15 && slope == -0.5);
        let (loss, slope) = one(Loss::Mse, 0.0, 1.0);
        assert_eq!((loss, slope), (0.25, -0.25));
        assert_eq!(probability(0.0), 0.5);
    }

    #[test]
    fn far_out_the_loss_ends_at_100_and_nothing_overflows() {
        assert_eq!(one(Loss::Bce, 1e4, 0.0), (100.0, 1.0));
        assert_eq!(one(Loss::Bce, -1e4, 1.0), (100.0, -1.0));
        assert_eq!(one(Loss::Bce, -1e4, 0.0), (0.0, 0.0));
        let (loss, slope) = one(Loss::Bce, 50.0, 0.0);
        assert!((loss - 50.0).abs() < 1e-9 && slope == 1.0);
        assert_eq!(one(Loss::Mse, 1e4, 0.0), (1.0, 0.0));
        assert_eq!((probability(-1e4), probability(1e4)), (0.0, 1.0));
    }

    #[test]
    fn a_nan_is_seen() {
        for loss in [Loss::Bce, Loss::Mse] {
            let (value, slope) = one(loss, f32::NAN, 1.0);
            assert!(value.is_nan() && slope.is_nan() && probability(f32::NAN).is_nan());
        }
    }

    #[test]
    fn slopes_are_those_of_the_losses() {
        for loss in [Loss::Bce, Loss::Mse] {
            for (logit, label) in [(0.3, 1.0), (-2.0, 0.0), (4.0, 0.25), (-7.0, 1.0)] {
                let value = |logit: f64| match loss {
                    Loss::Bce => cross_entropy(logit, label).0,
                    Loss::Mse => squared_error(logit, label).0,
                };
                let step = 1e-5;
                let expected = (value(logit + step) - value(logit - step)) / (2.0 * step);
                let (_, slope) = one(loss, logit as f32, label as f32);
                assert!((f64::from(slope) - expected).abs() < 1e-7, "{loss:?} {logit} {label}");
            }
        }
    }

    #[test]
    fn the_gradient_is_the_means_and_the_loss_is_the_samples() {
        for (label, slope) in [(1.0, -0.0625), (0.0, 0.0625)] {
            let (loss, found) = Loss::Bce.of_logit(0.0, label, 8);
            assert!((loss - std::f64::consts::LN_2).abs() < 1e-15);
            assert_eq!(found, slope);
        }
    }
}
