//! The learning rate over the steps: warm-up, plateau, decay. It applies nothing.

use crate::{Error, Result};

/// The smallest rate that a decay ends at, unless the base is smaller still.
const RATE_MIN: f64 = 1e-7;

/// The schedule of facebookresearch/dlrm's `LRPolicyScheduler`: a linear warm-up, a plateau, a
/// quadratic decay, then the decay's last rate.
///
/// As there, where a decay is set the plateau between it and the warm-up stays at the warm-up's
/// last rate, `base (1 - 1/warmup_steps)`, and steps are counted from 1 inside, so that the first
/// step of a warm-up already moves.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearningRate {
    base: f32,
    warmup_steps: u64,
    decay_start_step: u64,
    decay_steps: u64,
}

impl LearningRate {
    /// A schedule; `decay_steps` of 0 is one without decay.
    pub fn new(
        base: f32,
        warmup_steps: u64,
        decay_start_step: u64,
        decay_steps: u64,
    ) -> Result<Self> {
        let bad = |field, found: String, expected: &str| {
            Err(Error::Field { field, found, expected: expected.to_owned() })
        };
        if !base.is_finite() || base < 0.0 {
            return bad("learning rate", base.to_string(), "a finite number, not negative");
        }
        if decay_start_step < warmup_steps && decay_steps > 0 {
            let expected = format!("at least {warmup_steps}, the end of the warm-up");
            return bad("decay start step", decay_start_step.to_string(), &expected);
        }
        if decay_start_step.checked_add(decay_steps).is_none() {
            return bad("decay steps", decay_steps.to_string(), "an end below 2^64");
        }
        Ok(Self { base, warmup_steps, decay_start_step, decay_steps })
    }

    /// The same rate at every step.
    pub fn constant(base: f32) -> Result<Self> {
        Self::new(base, 0, 0, 0)
    }

    /// The rate of a step, the first being 0.
    pub fn at(&self, step: u64) -> f32 {
        let (base, count) = (f64::from(self.base), step.saturating_add(1));
        let warm = |count: u64| base * (count as f64 / self.warmup_steps as f64);
        let decayed = |past: u64| {
            let left = (self.decay_steps - past) as f64 / self.decay_steps as f64;
            (base * left * left).max(RATE_MIN.min(base))
        };
        let rate = if count < self.warmup_steps {
            warm(count)
        } else if self.decay_steps == 0 {
            base
        } else if count >= self.decay_start_step {
            decayed((count - self.decay_start_step).min(self.decay_steps - 1))
        } else if self.warmup_steps > 1 {
            warm(self.warmup_steps - 1)
        } else {
            base
        };
        rate as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(rate: LearningRate, steps: u64) -> Vec<f32> {
        (0..steps).map(|step| rate.at(step)).collect()
    }

    #[test]
    fn warm_up_plateau_decay_and_end_are_the_references() {
        // worked out by hand from the reference's formulas
        let rate = LearningRate::new(1.0, 4, 6, 4).unwrap();
        let expected = [0.25, 0.5, 0.75, 0.75, 0.75, 1.0, 0.5625, 0.25, 0.0625, 0.0625, 0.0625];
        assert_eq!(rates(rate, 11), expected);
        assert_eq!(rate.at(u64::MAX), 0.0625);
    }

    #[test]
    fn warm_up_alone_ends_at_the_base() {
        let rate = LearningRate::new(0.5, 2, 0, 0).unwrap();
        assert_eq!(rates(rate, 4), [0.25, 0.5, 0.5, 0.5]);
        assert_eq!(rates(LearningRate::constant(0.1).unwrap(), 3), [0.1; 3]);
    }

    #[test]
    fn decay_without_warm_up_starts_at_the_base_and_ends_above_zero() {
        let rate = LearningRate::new(1.0, 0, 3, 10_000).unwrap();
        assert_eq!(rates(rate, 3), [1.0; 3]);
        assert!(rate.at(3) < 1.0);
        assert_eq!(rate.at(1_000_000), 1e-7, "the floor, above (1/10000)^2");
        assert_eq!(LearningRate::new(0.0, 0, 0, 5).unwrap().at(9), 0.0);
    }

    #[test]
    fn a_decay_inside_the_warm_up_and_a_rate_that_is_none_are_refused() {
        for rate in [LearningRate::new(1.0, 5, 4, 1), LearningRate::new(f32::NAN, 0, 0, 0)] {
            assert!(matches!(rate, Err(Error::Field { .. })), "{rate:?}");
        }
        assert!(LearningRate::new(-1.0, 0, 0, 0).is_err());
        assert!(LearningRate::new(1.0, 0, 1, u64::MAX).is_err());
    }
}
