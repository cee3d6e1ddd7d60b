//! The planted teacher: the log-odds of a click from what a row holds. Its effects are hashes of
//! the seed; the few that are not zero are worked out once. It draws no label.
//!
//! log-odds = bias + dense part + main effects + products of pairs. The dense part is linear in
//! standardised ln(1 + x), with one product of two columns and one threshold. A missing or negative
//! count is a 0 to it, as it is to a model that reads with `log1p`. An id has an effect if it is
//! among the most popular of its feature, or stands for missing; so a model can come close to the
//! teacher after a few million rows. Every part is scaled to a variance of its own, so the teacher
//! is about as strong for every seed and scale.

use rayon::prelude::*;

use super::features::{COUNTS, FEATURES};
use super::generator::{Generator, RowBlock};
use super::random::{Purpose, Stream};
use super::ranks::Ranks;

/// Ids of a feature that have an effect, besides the one for missing.
const POPULAR: u64 = 200;
/// The place of an id without effect.
const SLOT_NONE: u16 = 0;
/// The place of a missing id.
pub(super) const SLOT_MISSING: u16 = 1;
const SLOTS: usize = POPULAR as usize + 2;

const CLICK_RATE: f64 = 0.256;
const BIAS_SAMPLE_ROWS: u64 = 1 << 16;
/// Rows from here on serve the bias alone: no data set reaches them.
const BIAS_SAMPLE_START: u64 = 1 << 63;

const LATENT: usize = 4;
/// Features whose latent vectors are multiplied, counted from 0: such as have heavy heads.
const PAIRS: [(usize, usize); 12] = [
    (1, 16),
    (5, 13),
    (0, 17),
    (9, 22),
    (13, 16),
    (8, 1),
    (24, 5),
    (22, 17),
    (19, 13),
    (7, 22),
    (4, 16),
    (18, 8),
];
const DENSE_PRODUCT: (usize, usize) = (4, 7);
const DENSE_THRESHOLD: (usize, f64) = (5, 3.5); // ln(1 + x) of I6: about its median

// standard deviations of the parts of the log-odds
const DENSE_LINEAR_STD: f64 = 0.55;
const DENSE_PRODUCT_STD: f64 = 0.25;
const DENSE_THRESHOLD_STD: f64 = 0.25;
const MAIN_STD: f64 = 0.25; // of each of the 26
const PAIR_STD: f64 = 0.22; // of each of the 12

pub(super) struct Teacher {
    bias: f64,
    linear: [f64; 13],
    main: Vec<[f32; SLOTS]>, // [features]
    pairs: Vec<Pair>,
}

struct Pair {
    features: (usize, usize),
    left: Vec<[f32; LATENT]>,  // [SLOTS]
    right: Vec<[f32; LATENT]>, // [SLOTS], the scale in it
}

/// The place of an id's effects by its rank.
#[inline]
pub(super) fn slot_of_rank(rank: u64) -> u16 {
    if rank < POPULAR { rank as u16 + SLOT_MISSING + 1 } else { SLOT_NONE }
}

impl Teacher {
    /// The teacher without its bias.
    pub(super) fn new(seed: u64, ranks: &[Ranks]) -> Self {
        let shares: Vec<Vec<f64>> =
            ranks.iter().zip(&FEATURES).map(|(ranks, f)| slot_shares(ranks, f.missing)).collect();
        let main = shares.iter().enumerate();
        let main =
            main.map(|(f, shares)| main_effects(Stream::new(seed, Purpose::MainEffect(f)), shares));
        let pairs = PAIRS.iter().enumerate().map(|(number, &features)| {
            let left = latents(Stream::new(seed, Purpose::PairLeft(number)));
            let right = latents(Stream::new(seed, Purpose::PairRight(number)));
            Pair::new(features, left, right, &shares[features.0], &shares[features.1])
        });
        let effects = Stream::new(seed, Purpose::DenseEffect);
        let weights: [f64; 13] = std::array::from_fn(|column| effects.bell(column as u64));
        let norm = libm::sqrt(weights.iter().map(|w| w * w).sum());
        let linear = weights.map(|weight| weight / norm * DENSE_LINEAR_STD);
        Self { bias: 0.0, linear, main: main.collect(), pairs: pairs.collect() }
    }

    /// Bisects the bias to the click rate of the data that the generator follows.
    pub(super) fn set_bias(generator: &mut Generator) {
        const BLOCK: u64 = 1024;
        let logits: Vec<Vec<f64>> = (0..BIAS_SAMPLE_ROWS / BLOCK)
            .into_par_iter()
            .map(|block| {
                let start = BIAS_SAMPLE_START + block * BLOCK;
                let mut rows = RowBlock::new();
                rows.rows.extend(start..start + BLOCK);
                generator.fill(&mut rows);
                rows.logits
            })
            .collect();
        let rate = |bias: f64| {
            let sum: f64 = logits.iter().flatten().map(|logit| probability(logit + bias)).sum();
            sum / BIAS_SAMPLE_ROWS as f64
        };
        let (mut low, mut high) = (-20.0, 20.0);
        for _ in 0..40 {
            let middle = 0.5 * (low + high);
            if rate(middle) < CLICK_RATE { low = middle } else { high = middle }
        }
        generator.teacher.bias = 0.5 * (low + high);
    }

    /// The log-odds of each row. `counts` is [13][rows], `slots` [26][rows].
    pub(super) fn logits(&self, counts: &[i64], slots: &[u16], logits: &mut Vec<f64>, rows: usize) {
        logits.clear();
        logits.resize(rows, self.bias);
        let (low, high) = DENSE_PRODUCT;
        for (column, weight) in self.linear.iter().enumerate() {
            let counts = &counts[column * rows..][..rows];
            for (logit, &count) in logits.iter_mut().zip(counts) {
                *logit += weight * standardised(column, count);
            }
        }
        for (row, logit) in logits.iter_mut().enumerate() {
            let (a, b) = (counts[low * rows + row], counts[high * rows + row]);
            *logit += DENSE_PRODUCT_STD * standardised(low, a) * standardised(high, b);
            let above = log1p(counts[DENSE_THRESHOLD.0 * rows + row]) > DENSE_THRESHOLD.1;
            // half the rows lie on either side
            *logit += if above { DENSE_THRESHOLD_STD } else { -DENSE_THRESHOLD_STD };
        }
        for (effects, slots) in self.main.iter().zip(slots.chunks_exact(rows.max(1))) {
            for (logit, &slot) in logits.iter_mut().zip(slots) {
                *logit += f64::from(effects[usize::from(slot)]);
            }
        }
        for pair in &self.pairs {
            let left = &slots[pair.features.0 * rows..][..rows];
            let right = &slots[pair.features.1 * rows..][..rows];
            for ((logit, &l), &r) in logits.iter_mut().zip(left).zip(right) {
                *logit += f64::from(dot(&pair.left[usize::from(l)], &pair.right[usize::from(r)]));
            }
        }
    }
}

/// 1 / (1 + e^-x)
pub(super) fn probability(logit: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-logit))
}

fn log1p(count: i64) -> f64 {
    libm::log(count.max(0) as f64 + 1.0) // missing is the least number, and so 0 here
}

fn standardised(column: usize, count: i64) -> f64 {
    let column = &COUNTS[column];
    // over all rows: where a value is missing, ln(1 + x) is 0
    let held = 1.0 - column.missing;
    let mean = column.log1p_mean * held;
    let square =
        (column.log1p_std * column.log1p_std + column.log1p_mean * column.log1p_mean) * held;
    (log1p(count) - mean) / (square - mean * mean).sqrt()
}

/// How often each slot comes.
fn slot_shares(ranks: &Ranks, missing: f64) -> Vec<f64> {
    let mut shares = vec![0.0; SLOTS];
    shares[usize::from(SLOT_MISSING)] = missing;
    for (rank, share) in ranks.shares().iter().enumerate().take(POPULAR as usize) {
        shares[usize::from(slot_of_rank(rank as u64))] = share * (1.0 - missing);
    }
    shares[usize::from(SLOT_NONE)] = 1.0 - shares.iter().sum::<f64>();
    shares
}

fn main_effects(stream: Stream, shares: &[f64]) -> [f32; SLOTS] {
    let mut effects: [f64; SLOTS] = std::array::from_fn(|slot| stream.bell(slot as u64));
    effects[usize::from(SLOT_NONE)] = 0.0;
    let mean: f64 = effects.iter().zip(shares).map(|(e, p)| e * p).sum();
    let square: f64 = effects.iter().zip(shares).map(|(e, p)| e * e * p).sum();
    let scale = MAIN_STD / libm::sqrt((square - mean * mean).max(1e-3));
    effects.map(|effect| (effect * scale) as f32)
}

fn latents(stream: Stream) -> Vec<[f64; LATENT]> {
    let latent = |slot: usize, k: usize| match slot {
        0 => 0.0,
        _ => stream.bell((slot * LATENT + k) as u64),
    };
    (0..SLOTS).map(|slot| std::array::from_fn(|k| latent(slot, k))).collect()
}

impl Pair {
    fn new(
        features: (usize, usize),
        left: Vec<[f64; LATENT]>,
        right: Vec<[f64; LATENT]>,
        left_shares: &[f64],
        right_shares: &[f64],
    ) -> Self {
        // E[(u.v)^2] of independent u and v is the sum of the products of their second moments
        let (a, b) = (second_moments(&left, left_shares), second_moments(&right, right_shares));
        let square: f64 = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| a * b).sum();
        let scale = PAIR_STD / libm::sqrt(square.max(1e-6));
        let left = left.iter().map(|u| u.map(|x| x as f32)).collect();
        let right = right.iter().map(|v| v.map(|x| (x * scale) as f32)).collect();
        Self { features, left, right }
    }
}

fn second_moments(latents: &[[f64; LATENT]], shares: &[f64]) -> [[f64; LATENT]; LATENT] {
    let mut moments = [[0.0; LATENT]; LATENT];
    for (latent, share) in latents.iter().zip(shares) {
        for (k, row) in moments.iter_mut().enumerate() {
            for (l, moment) in row.iter_mut().enumerate() {
                *moment += share * latent[k] * latent[l];
            }
        }
    }
    moments
}

fn dot(a: &[f32; LATENT], b: &[f32; LATENT]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
