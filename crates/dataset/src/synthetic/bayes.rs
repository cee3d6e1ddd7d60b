//! How well the teacher itself predicts the labels it gave: what no model can exceed on average. It
//! trains nothing.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::generator::{Generator, RowBlock};
use super::rows::selected_rows;
use crate::{Error, Result, RowSelection, SyntheticSpec};

const CHUNK_ROWS: usize = 1 << 16;
const BLOCK_ROWS: usize = 1024;
/// Probabilities are sorted into so many bins; within a bin they count as equal, which moves the
/// AUC by less than 1e-5.
const BINS: usize = 1 << 20;

/// The quality of the teacher's own probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bayes {
    /// The expected AUC: Σ p_i Σ_{j<i} (1 - p_j) / (Σ p Σ (1 - p)) over p sorted.
    pub auc: f64,
    /// The expected logloss: the mean entropy of a label, in nats.
    pub logloss: f64,
    /// The expected share of clicks.
    pub click_rate: f64,
    /// Over how many rows.
    pub rows: u64,
}

impl SyntheticSpec {
    /// The quality of the teacher over the selected rows. It makes each of them once, on all
    /// threads; the result does not depend on how many there are.
    pub fn bayes(&self, selection: RowSelection) -> Result<Bayes> {
        let generator = Generator::new(self)?;
        let mut sums = Sums::new();
        let mut rows = selected_rows(self, selection, 0);
        let mut chunk = Vec::with_capacity(CHUNK_ROWS);
        loop {
            chunk.clear();
            chunk.extend(rows.by_ref().take(CHUNK_ROWS));
            if chunk.is_empty() {
                break;
            }
            let probabilities: Vec<Vec<f64>> =
                chunk.par_chunks(BLOCK_ROWS).map(|rows| probabilities(&generator, rows)).collect();
            probabilities.iter().flatten().for_each(|&p| sums.add(p));
        }
        let data = || format!("synthetic:{self}");
        if sums.rows == 0 { Err(Error::NothingToFit { data: data() }) } else { Ok(sums.finish()) }
    }
}

fn probabilities(generator: &Generator, rows: &[u64]) -> Vec<f64> {
    let mut block = RowBlock::new();
    block.rows.extend_from_slice(rows);
    generator.fill(&mut block);
    block.probabilities().collect()
}

struct Sums {
    bins: Vec<(f64, f64)>, // Σ p, Σ (1 - p)
    entropy: f64,
    rows: u64,
}

impl Sums {
    fn new() -> Self {
        Self { bins: vec![(0.0, 0.0); BINS], entropy: 0.0, rows: 0 }
    }

    fn add(&mut self, p: f64) {
        let bin = &mut self.bins[((p * BINS as f64) as usize).min(BINS - 1)];
        bin.0 += p;
        bin.1 += 1.0 - p;
        self.entropy += entropy(p);
        self.rows += 1;
    }

    fn finish(self) -> Bayes {
        let (mut clicks, mut others, mut ordered) = (0.0, 0.0, 0.0);
        for (p, q) in self.bins {
            ordered += p * (others + 0.5 * q);
            clicks += p;
            others += q;
        }
        Bayes {
            auc: ordered / (clicks * others),
            logloss: self.entropy / self.rows as f64,
            click_rate: clicks / self.rows as f64,
            rows: self.rows,
        }
    }
}

fn entropy(p: f64) -> f64 {
    let part = |p: f64| if p > 0.0 { -p * libm::log(p) } else { 0.0 };
    part(p) + part(1.0 - p)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_agree_with_the_formula_on_sorted_probabilities() {
        let spec: SyntheticSpec = "rows=20000,seed=3".parse().unwrap();
        let generator = Generator::new(&spec).unwrap();
        let mut sorted = probabilities(&generator, &(0..20_000).collect::<Vec<_>>());
        sorted.sort_unstable_by(f64::total_cmp);
        let (mut below, mut ordered) = (0.0, 0.0);
        for p in &sorted {
            ordered += p * below;
            below += 1.0 - p;
        }
        let auc = ordered / (sorted.iter().sum::<f64>() * below);
        let bayes = spec.bayes(RowSelection::All).unwrap();
        assert!((bayes.auc - auc).abs() < 2e-5, "{} against {auc}", bayes.auc);
        assert_eq!(bayes.rows, 20_000);
    }

    #[test]
    fn the_labels_are_as_predictable_as_it_says() {
        let spec: SyntheticSpec = "rows=60000,seed=2".parse().unwrap();
        let generator = Generator::new(&spec).unwrap();
        let mut block = RowBlock::new();
        block.rows.extend(0..60_000);
        generator.fill(&mut block);
        let mut loss = 0.0;
        let mut ranked: Vec<(f64, f32)> = block.probabilities().zip(block.labels.clone()).collect();
        for &(p, label) in &ranked {
            loss -= if label == 1.0 { p.ln() } else { (1.0 - p).ln() };
        }
        ranked.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let (mut others, mut ordered, mut clicks) = (0.0, 0.0, 0.0);
        for (_, label) in ranked {
            if label == 1.0 {
                ordered += others;
                clicks += 1.0;
            } else {
                others += 1.0;
            }
        }
        let bayes = spec.bayes(RowSelection::All).unwrap();
        assert!((loss / 60_000.0 - bayes.logloss).abs() < 0.005, "{bayes:?}");
        assert!((ordered / clicks / others - bayes.auc).abs() < 0.006, "{bayes:?}");
        assert!((bayes.click_rate - 0.256).abs() < 0.005, "{bayes:?}");
        // a rate of .256 known and nothing else costs .569
        assert!(bayes.logloss < 0.50 && bayes.auc > 0.79 && bayes.auc < 0.84, "{bayes:?}");
    }
}
