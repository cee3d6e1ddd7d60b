//! How good predictions are: AUC, logloss and the like, computed while they stream by. It keeps
//! counts, not predictions, so its memory does not grow with the number of rows.

use std::fmt;

use serde::Serialize;

/// Bins over the logit. 2^21 over [-16, 16] is 1.5e-5 a bin: rows that share one count as ties,
/// which moves the AUC by less than half the share of such pairs.
const BINS: usize = 1 << 21;
const LOGIT_MAX: f64 = 16.0;

/// Quality of the predictions seen so far.
pub(crate) struct Scores {
    positives: Vec<u64>, // [BINS]
    negatives: Vec<u64>, // [BINS]
    logloss_sum: f64,
    predicted_sum: f64,
    correct: u64,
}

/// The quality of a set of predictions, beside that of always answering the base rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quality {
    /// Rows that were predicted.
    pub rows: u64,
    /// Share of them with a positive label.
    pub base_rate: f64,
    /// Area under the ROC curve; absent where only one class was seen.
    pub auc: Option<f64>,
    /// Mean binary cross-entropy, in nats.
    pub logloss: f64,
    /// The logloss of predicting the base rate for every row.
    pub base_logloss: f64,
    /// Logloss over that of the base rate (He et al., 2014): below 1 is better than no model.
    /// Absent where only one class was seen.
    pub normalised_entropy: Option<f64>,
    /// Positives that were predicted over those that were there: 1 is calibrated. Absent where
    /// there were none.
    pub calibration: Option<f64>,
    /// Share of rows on whose side of one half the prediction is.
    pub accuracy: f64,
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "accuracy {:.3} %", 100.0 * self.accuracy)?;
        if let Some(auc) = self.auc {
            write!(f, ", auc {auc:.5}")?;
        }
        write!(f, ", logloss {:.5}", self.logloss)?;
        if let Some(entropy) = self.normalised_entropy {
            write!(f, ", normalised entropy {entropy:.4}")?;
        }
        match self.calibration {
            Some(calibration) => write!(f, ", calibration {calibration:.4}"),
            None => Ok(()),
        }
    }
}

impl Scores {
    pub(crate) fn new() -> Self {
        Self {
            positives: vec![0; BINS],
            negatives: vec![0; BINS],
            logloss_sum: 0.0,
            predicted_sum: 0.0,
            correct: 0,
        }
    }

    /// Adds predictions in [0, 1] and their labels, both [rows].
    pub(crate) fn add(&mut self, probabilities: &[f32], labels: &[f32]) {
        assert_eq!(probabilities.len(), labels.len(), "a label for each prediction");
        for (&p, &label) in probabilities.iter().zip(labels) {
            let (p, positive) = (f64::from(p), label >= 0.5);
            let side = if positive { &mut self.positives } else { &mut self.negatives };
            side[bin(p)] += 1;
            self.logloss_sum += cross_entropy(p, f64::from(label));
            self.predicted_sum += p;
            self.correct += u64::from((p >= 0.5) == positive);
        }
    }

    pub(crate) fn quality(&self) -> Quality {
        let positives: u64 = self.positives.iter().sum();
        let negatives: u64 = self.negatives.iter().sum();
        let rows = positives + negatives;
        let base_rate = positives as f64 / rows as f64;
        let base_logloss = base_rate * cross_entropy(base_rate, 1.0)
            + (1.0 - base_rate) * cross_entropy(base_rate, 0.0);
        let logloss = self.logloss_sum / rows as f64;
        Quality {
            rows,
            base_rate,
            auc: self.auc(positives, negatives),
            logloss,
            base_logloss,
            normalised_entropy: (positives > 0 && negatives > 0).then(|| logloss / base_logloss),
            calibration: (positives > 0).then(|| self.predicted_sum / positives as f64),
            accuracy: self.correct as f64 / rows as f64,
        }
    }

    /// The Mann-Whitney statistic: the share of (positive, negative) pairs in the right order, ties
    /// counting half.
    fn auc(&self, positives: u64, negatives: u64) -> Option<f64> {
        if positives == 0 || negatives == 0 {
            return None;
        }
        let (mut below, mut ordered) = (0_u64, 0.0_f64);
        for (&p, &n) in self.positives.iter().zip(&self.negatives) {
            ordered += p as f64 * (below as f64 + 0.5 * n as f64);
            below += n;
        }
        Some(ordered / (positives as f64 * negatives as f64))
    }
}

fn bin(p: f64) -> usize {
    let logit = (p / (1.0 - p)).ln().clamp(-LOGIT_MAX, LOGIT_MAX); // ±inf at 0 and 1 clamp too
    let place = (logit + LOGIT_MAX) / (2.0 * LOGIT_MAX) * (BINS - 1) as f64;
    place.round() as usize
}

/// Cross-entropy with the logarithm held above -100, as PyTorch's BCELoss has it.
fn cross_entropy(p: f64, label: f64) -> f64 {
    -(label * p.ln().max(-100.0) + (1.0 - label) * (1.0 - p).ln().max(-100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair compared.
    fn auc_by_pairs(probabilities: &[f32], labels: &[f32]) -> f64 {
        let (mut ordered, mut pairs) = (0.0, 0.0);
        for (p, _) in probabilities.iter().zip(labels).filter(|(_, l)| **l == 1.0) {
            for (n, _) in probabilities.iter().zip(labels).filter(|(_, l)| **l == 0.0) {
                pairs += 1.0;
                ordered += if p > n { 1.0 } else { 0.5 * f64::from(u8::from(p == n)) };
            }
        }
        ordered / pairs
    }

    #[test]
    fn auc_agrees_with_every_pair_compared() {
        let mut seed = 9_u64;
        let mut uniform = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f32 / (1 << 24) as f32
        };
        let labels: Vec<f32> = (0..3000).map(|_| f32::from(u8::from(uniform() < 0.3))).collect();
        let predictions: Vec<f32> =
            labels.iter().map(|label| 0.2 * label + 0.8 * uniform()).collect();
        let mut scores = Scores::new();
        for (p, l) in predictions.chunks(700).zip(labels.chunks(700)) {
            scores.add(p, l);
        }
        let quality = scores.quality();
        let auc = quality.auc.unwrap();
        assert!((auc - auc_by_pairs(&predictions, &labels)).abs() < 1e-5, "{quality:?}");
        assert!(auc > 0.55 && auc < 0.8, "{quality:?}");
    }

    #[test]
    fn figures_of_a_hand_made_case() {
        let mut scores = Scores::new();
        scores.add(&[0.9, 0.2, 0.6, 0.0], &[1.0, 0.0, 0.0, 1.0]);
        let quality = scores.quality();
        assert_eq!((quality.rows, quality.base_rate, quality.accuracy), (4, 0.5, 0.5));
        assert_eq!(quality.auc, Some(0.5));
        let expected = -(0.9_f64.ln() + 0.8_f64.ln() + 0.4_f64.ln() - 100.0) / 4.0;
        assert!((quality.logloss - expected).abs() < 1e-6, "{quality:?}");
        assert!((quality.base_logloss - 2_f64.ln()).abs() < 1e-12);
        let entropy = quality.normalised_entropy.unwrap();
        assert!((entropy - expected / 2_f64.ln()).abs() < 1e-6, "{quality:?}");
        assert!((quality.calibration.unwrap() - 0.85).abs() < 1e-6, "{quality:?}");
    }

    #[test]
    fn the_base_rate_for_every_row_is_calibrated_and_has_an_entropy_of_1() {
        let mut scores = Scores::new();
        scores.add(&[0.25; 8], &[1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        let quality = scores.quality();
        assert!((quality.normalised_entropy.unwrap() - 1.0).abs() < 1e-12, "{quality:?}");
        assert!((quality.calibration.unwrap() - 1.0).abs() < 1e-12, "{quality:?}");
    }

    #[test]
    fn one_class_alone_has_no_auc() {
        let mut scores = Scores::new();
        scores.add(&[0.3, 0.4], &[0.0, 0.0]);
        let quality = scores.quality();
        assert_eq!(
            (quality.auc, quality.normalised_entropy, quality.calibration),
            (None, None, None)
        );
    }
}
