//! How a row's embedding is made from its seed. It does not choose the seed; `spec` does.

use serde::{Deserialize, Serialize};

use crate::spec::{GOLDEN, mix};

/// The distribution of a new row's floats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Initializer {
    /// Uniform in ±sqrt(1/rows), facebookresearch/dlrm's rule for a table of `rows` rows.
    UniformByRows {
        /// The rows that the table is expected to have.
        rows: u64,
    },
    /// Uniform in ±bound.
    Uniform {
        /// Half the width.
        bound: f32,
    },
    /// Normal.
    Normal {
        /// Mean.
        mean: f32,
        /// Standard deviation.
        std: f32,
    },
    /// All zeros.
    Zeros,
}

impl Initializer {
    /// Fills `embedding` from `seed`: element i depends on (seed, i) alone.
    pub fn fill(&self, seed: u64, embedding: &mut [f32]) {
        match *self {
            Initializer::UniformByRows { rows } => {
                fill_uniform(seed, libm::sqrt(1.0 / rows as f64) as f32, embedding);
            }
            Initializer::Uniform { bound } => fill_uniform(seed, bound, embedding),
            Initializer::Normal { mean, std } => fill_normal(seed, mean, std, embedding),
            Initializer::Zeros => embedding.fill(0.0),
        }
    }

    pub(crate) fn fault(&self) -> Option<(String, &'static str)> {
        let sound = match *self {
            Initializer::UniformByRows { rows } => rows > 0,
            Initializer::Uniform { bound } => bound.is_finite() && bound >= 0.0,
            Initializer::Normal { mean, std } => mean.is_finite() && std.is_finite() && std >= 0.0,
            Initializer::Zeros => true,
        };
        let expected = "rows > 0, bound and std >= 0, all finite";
        (!sound).then(|| (format!("{self:?}"), expected))
    }
}

fn fill_uniform(seed: u64, bound: f32, embedding: &mut [f32]) {
    for (i, x) in embedding.iter_mut().enumerate() {
        // 24 bits, the precision of an f32, centred so that the mean is exactly zero
        let unit = ((word(seed, i) >> 40) as f32 + 0.5) / (1 << 24) as f32;
        *x = (2.0 * unit - 1.0) * bound;
    }
}

fn fill_normal(seed: u64, mean: f32, std: f32, embedding: &mut [f32]) {
    for (i, x) in embedding.iter_mut().enumerate() {
        // Box and Muller (1958), one value of the pair; `libm` so that every platform agrees
        let word = word(seed, i);
        let u = ((word >> 32) as f64 + 0.5) / (1_u64 << 32) as f64;
        let v = (word & 0xffff_ffff) as f64 / (1_u64 << 32) as f64;
        let z = libm::sqrt(-2.0 * libm::log(u)) * libm::cos(std::f64::consts::TAU * v);
        *x = mean + std * z as f32;
    }
}

fn word(seed: u64, i: usize) -> u64 {
    mix(seed.wrapping_add((i as u64).wrapping_mul(GOLDEN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(initializer: Initializer) -> (f64, f64, f32) {
        let mut all = vec![0.0; 1 << 18];
        for (row, chunk) in all.chunks_mut(64).enumerate() {
            initializer.fill(mix(row as u64), chunk);
        }
        let n = all.len() as f64;
        let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        let variance = all.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
        (mean, variance.sqrt(), all.iter().fold(0.0, |m, x| m.max(x.abs())))
    }

    #[test]
    fn distributions_have_their_moments() {
        let (mean, std, max) = moments(Initializer::Uniform { bound: 0.5 });
        assert!(mean.abs() < 2e-3 && (std - 0.5 / 3f64.sqrt()).abs() < 2e-3 && max <= 0.5);
        let (mean, std, max) = moments(Initializer::UniformByRows { rows: 100 });
        assert!(mean.abs() < 4e-4 && (std - 0.1 / 3f64.sqrt()).abs() < 4e-4 && max <= 0.1);
        let (mean, std, max) = moments(Initializer::Normal { mean: 1.0, std: 2.0 });
        assert!((mean - 1.0).abs() < 2e-2 && (std - 2.0).abs() < 2e-2 && max > 7.0);
        let (mean, std, _) = moments(Initializer::Zeros);
        assert_eq!((mean, std), (0.0, 0.0));
    }

    #[test]
    fn an_element_depends_on_its_place_alone() {
        for initializer in
            [Initializer::Uniform { bound: 1.0 }, Initializer::Normal { mean: 0.0, std: 1.0 }]
        {
            let (mut long, mut short) = (vec![0.0; 9], vec![0.0; 5]);
            initializer.fill(77, &mut long);
            initializer.fill(77, &mut short);
            assert_eq!(long[..5], short[..]);
        }
    }
}
